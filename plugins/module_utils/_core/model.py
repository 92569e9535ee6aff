# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests, disks and jobs as values: what was seen at one moment, and what is predicted.

The law: an ``Observed`` is complete in itself. A planner reads nothing else, and two looks are compared by their
``identity``: chains, jobs and files that exist, never counters that move by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Callable, Dict, Iterable, Optional, Tuple

from .chain import Chain

PULL, COPY, COMMIT, ACTIVE_COMMIT, BACKUP = "pull", "copy", "commit", "active-commit", "backup"


@dataclass(frozen=True)
class Job:
    """A block job as libvirt reports it. ``cur`` and ``end`` in bytes, ``bandwidth`` in bytes per second (0: no limit)."""

    type: str
    cur: int = 0
    end: int = 0
    bandwidth: int = 0
    ready: bool = False


@dataclass(frozen=True)
class Mirror:
    """A ``<mirror>``: ``job`` copy or active-commit, ``ready`` yes, abort, pivot, or None while it still copies."""

    job: str
    ready: Optional[str]
    chain: Chain


@dataclass(frozen=True)
class Disk:
    """A disk of a guest, with its chain and the job that runs on it. ``capacity``: what the guest sees, in bytes, if asked for."""

    target: str
    chain: Chain
    device: str = "disk"
    bus: Optional[str] = None
    readonly: bool = False
    shareable: bool = False
    transient: bool = False
    mirror: Optional[Mirror] = None
    job: Optional[Job] = None
    capacity: Optional[int] = None

    def address(self, depth: int) -> Optional[str]:
        """libvirt's address of a layer, such as vda[2]; None where libvirt gave the layer no index."""
        index = self.chain[depth].index
        return None if index is None else "%s[%d]" % (self.target, index)


@dataclass(frozen=True)
class Record:
    """The note that a run leaves in the guest's live metadata before it starts a job (see ``domain_xml.record_xml``).

    ``job`` is its type, ``layers`` the layers it was given (pull: the base; commit: top and base), ``indexes`` the
    identities of all layers at that time: the note speaks of today's job only while they are the same.
    """

    disk: str
    job: str
    layers: str
    indexes: str


@dataclass(frozen=True)
class Domain:
    """A guest. ``disks`` is what is in use now; ``config`` is what the next start will have (empty for a transient guest)."""

    name: str
    uuid: str
    active: bool
    state: str = "running"
    persistent: bool = True
    disks: Tuple[Disk, ...] = ()
    config: Tuple[Disk, ...] = ()
    records: Tuple[Record, ...] = ()

    def disk(self, target: str) -> Optional[Disk]:
        return next((disk for disk in self.disks if disk.target == target), None)

    def config_disk(self, target: str) -> Optional[Disk]:
        return next((disk for disk in self.config if disk.target == target), None)

    def record(self, target: str) -> Optional[Record]:
        return next((record for record in self.records if record.disk == target), None)


@dataclass(frozen=True)
class File:
    """What the host says of a path. ``size`` in bytes; ``kind`` is file, block, dir or other, ``parent`` that of its directory.

    ``device`` and ``inode`` tell two files of one name apart; ``real`` is the path with its links resolved.
    """

    path: str
    exists: bool
    kind: Optional[str] = None
    size: int = 0
    device: int = 0
    inode: int = 0
    real: str = ""
    parent: Optional[str] = None


@dataclass(frozen=True)
class Image:
    """What an image's own header says (qemu-img). Sizes in bytes; ``backing`` as written, ``backing_path`` resolved."""

    path: str
    format: str
    virtual_size: int
    actual_size: int
    backing: Optional[str] = None
    backing_path: Optional[str] = None
    backing_format: Optional[str] = None


@dataclass(frozen=True)
class Use:
    """A layer that some guest's disk uses: in its live chain or in the chain of its next start.

    ``layer`` is the place as the XML writes it, where it was resolved to this one (a volume to its path, a link to its target).
    """

    place: tuple
    guest: str
    uuid: str
    disk: str
    layer: tuple = ()


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that libvirt keeps metadata of: its external overlays as (disk, path) pairs."""

    name: str
    files: Tuple[Tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Selection:
    """Which guests: one by ``name`` or ``uuid``, or several by ``names``, ``pattern`` (re.search) and ``state``."""

    name: Optional[str] = None
    uuid: Optional[str] = None
    names: Optional[Tuple[str, ...]] = None
    pattern: Optional[str] = None
    state: Optional[str] = None

    @property
    def single(self) -> bool:
        return self.name is not None or self.uuid is not None


@dataclass(frozen=True)
class Needs:
    """What a planner has to see: the guests, the paths (as the host sees them), the image headers (path, format) and more.

    ``paths_of`` names further paths once the guest is known. ``tolerant``: a guest whose jobs cannot be read is no failure.
    """

    selection: Selection
    paths: Tuple[str, ...] = ()
    images: Tuple[Tuple[str, str], ...] = ()
    config: bool = True
    capacities: bool = False
    paths_of: Optional[Callable[[Domain], Iterable[str]]] = None
    uses: bool = False
    snapshots: bool = False
    tolerant: bool = False


@dataclass(frozen=True)
class Observed:
    """One look. ``files`` is empty where the host's files cannot be seen (``local`` is False: a remote URI).

    ``uses`` is every layer of every guest; ``unread`` names the images whose headers hid a part of that; ``silent`` the guests
    whose jobs could not be read.
    """

    domains: Tuple[Domain, ...]
    files: Dict[str, File] = field(default_factory=dict)
    images: Dict[str, Image] = field(default_factory=dict)
    uses: Tuple[Use, ...] = ()
    unread: Tuple[str, ...] = ()
    snapshots: Tuple[Snapshot, ...] = ()
    silent: Tuple[str, ...] = ()
    local: bool = True

    @property
    def domain(self) -> Domain:
        """The guest, for a request about exactly one."""
        return self.domains[0]

    @property
    def identity(self) -> tuple:
        """What must not change between the look and the act. (Other guests come and go: of them only the plan can be compared.)"""
        files = tuple((path, one.exists, one.device, one.inode) for path, one in sorted(self.files.items()))
        return (tuple(_domain_identity(domain) for domain in self.domains), files, self.snapshots)


def _domain_identity(domain: Domain) -> tuple:
    disks = tuple(
        (
            disk.target,
            disk.chain,
            disk.job.type if disk.job else None,
            (disk.mirror.job, disk.mirror.ready, disk.mirror.chain.places) if disk.mirror else None,
        )
        for disk in domain.disks
    )
    return (domain.uuid, domain.active, domain.persistent, disks, tuple((disk.target, disk.chain) for disk in domain.config))


def with_chain(domain: Domain, target: str, chain: Chain) -> Domain:
    """The guest with another chain on one disk and no job on it: how planners write a prediction.

    The next start's definition follows only where it named the same active layer before: libvirt rewrites no other.
    """
    old = domain.disk(target)

    def change(disk: Disk) -> Disk:
        return replace(disk, chain=chain, job=None, mirror=None) if disk.target == target else disk

    def reconfigure(disk: Disk) -> Disk:
        followed = disk.target == target and old is not None and disk.chain.places[:1] == old.chain.places[:1]
        return replace(disk, chain=chain) if followed else disk

    return replace(domain, disks=tuple(map(change, domain.disks)), config=tuple(map(reconfigure, domain.config)))
