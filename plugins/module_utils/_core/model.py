# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests, disks and jobs as values: what was seen at one moment, and what is predicted.

The law: an ``Observed`` is complete in itself. A planner reads nothing else, and two looks are compared by their
``identity``: chains, jobs and files that exist, never counters that move by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Callable, Dict, Iterable, Mapping, Optional, Tuple

from .apparmor import Confinement
from .backups import Asked, Kept
from .chain import Chain, Layer, Pairs
from .host_facts import NOT_ASKED, File, Image, Probe, Process, QemuView, Sizes, Versions, Volume
from .notes import Conversion, Record, Snapshot, Use
from .selection import Selection

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
    """A disk of a guest, with its chain and the job that runs on it. ``capacity``: what the guest sees, in bytes, if asked for.

    ``alias`` is the name of the running guest's device in QEMU, ``driver`` the attributes of ``<driver>``.
    """

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
    driver: Pairs = ()
    alias: Optional[str] = None

    @property
    def indexes(self) -> str:
        """libvirt's identities of all layers, in one word."""
        return ",".join(str(layer.index) for layer in self.chain.layers)

    def address(self, depth: int) -> Optional[str]:
        """libvirt's address of a layer, such as vda[2]; None where libvirt gave the layer no index."""
        index = self.chain[depth].index
        return None if index is None else "%s[%d]" % (self.target, index)


@dataclass(frozen=True)
class Domain:
    """A guest. ``disks`` is what is in use now; ``config`` is what the next start will have (empty for a transient guest).

    ``mentioned``: every path that its XML names anywhere, and the data files of its layers, if asked for. ``saved``: libvirt keeps its memory (managed save).
    ``agent`` is the state of its guest agent's channel, connected or disconnected, None where it has no such channel.
    ``noted``: what our own note in its metadata says of its snapshots. ``bare``: no guest at all, but an image by itself, whose path is the
    name, the uuid and the one disk.
    ``seclabels`` are the (model, label) pairs that its QEMU runs under. ``conversions``: what the definition notes of those that were begun.
    ``memory`` is what it has of it, in bytes.
    """

    name: str
    uuid: str
    active: bool
    state: str = "running"
    persistent: bool = True
    disks: Tuple[Disk, ...] = ()
    config: Tuple[Disk, ...] = ()
    records: Tuple[Record, ...] = ()
    mentioned: frozenset = frozenset()
    saved: bool = False
    agent: Optional[str] = None
    noted: Tuple[Snapshot, ...] = ()
    bare: bool = False
    seclabels: Tuple[Tuple[str, str], ...] = field(default=(), compare=False)
    conversions: Tuple[Conversion, ...] = ()
    memory: Optional[int] = field(default=None, compare=False)

    def disk(self, target: str) -> Optional[Disk]:
        return next((disk for disk in self.disks if disk.target == target), None)

    def config_disk(self, target: str) -> Optional[Disk]:
        return next((disk for disk in self.config if disk.target == target), None)

    def record(self, target: str) -> Optional[Record]:
        return next((record for record in self.records if record.disk == target), None)

    def conversion(self, target: str) -> Optional[Conversion]:
        return next((one for one in self.conversions if one.disk == target), None)


@dataclass(frozen=True)
class Needs:
    """What a planner has to see: the guests, the paths (as the host sees them), the image headers (path, format) and more.

    ``paths_of`` and ``images_of`` name further ones once the guest is known. ``tolerant``: a guest whose jobs cannot be read is no failure.
    ``headers``: how many layers deep the chains of all guests seen are read from the images' own headers (0: not at all), and
    ``bare`` the (path, format) of images that belong to no guest. ``guests``: False where no guest is to be looked at at all.
    ``of_snapshots``: the files that the guest's snapshots name, and their headers.
    ``shots``: the snapshots of every guest seen. ``doubts``: QEMU is asked about guests of which libvirt may be wrong (``pivot.doubtful``).
    ``volume`` is a (pool, volume) to look up, to be read as ``volume_format``. ``bitmaps``: of the guest's checkpoints. ``versions``: of
    libvirt and QEMU. ``sample``: the seconds between two looks at running jobs, for their rate (0: none).
    ``measure`` names, once the guest is known, (layers, format): what an image of that format needs for what they hold.
    ``prepared`` says then whether the volume, or the first of ``bare``, is looked at for data of its own.
    ``offline``: the chains of guests that are off are read to their end, by the headers, and each of their images is asked for its holders;
    ``as_guests``: the ``bare`` images are looked at as guests of their own that are off, with those
    ``names`` where they are given. ``agree`` names, of a guest, (disk, layers, layers): whether both chains show
    the same data, or, where the second is empty, whether the first layer holds nothing of its own.
    ``runner``: as whom the QEMU of a guest runs. ``holes_at`` names paths whose storage is asked whether it takes holes.
    ``texts``: the XML with which each running guest could be migrated.
    ``confinement``: what AppArmor lets the QEMU of each running guest do. ``paths_with`` names further paths of each guest, its ``shots`` being
    known; these with ``bitmaps`` are the checkpoints of every guest seen.
    ``stores``: the layers have the data files, too, that only their headers name (with ``headers``). ``kept``: checkpoints and backups.
    """

    selection: Selection
    paths: Tuple[str, ...] = ()
    images: Tuple[Tuple[str, str], ...] = ()
    config: bool = True
    capacities: bool = False
    paths_of: Optional[Callable[[Domain], Iterable[str]]] = None
    images_of: Optional[Callable[[Domain], Iterable[Tuple[str, str]]]] = None
    uses: bool = False
    snapshots: bool = False
    of_snapshots: bool = False
    tolerant: bool = False
    guests: bool = True
    headers: int = 0
    bare: Tuple[Tuple[str, Optional[str]], ...] = ()
    sizes: bool = False
    shots: bool = False
    qemu: bool = False
    processes: bool = False
    doubts: bool = False
    volume: Optional[Tuple[str, str]] = None
    volume_format: Optional[str] = None
    bitmaps: bool = False
    versions: bool = False
    sample: float = 0.0
    measure: Optional[Callable[[Domain], Optional[Tuple[Tuple[Layer, ...], str]]]] = None
    prepared: Optional[Callable[[Domain], bool]] = None
    offline: bool = False
    as_guests: bool = False
    names: Tuple[str, ...] = ()
    agree: Optional[Callable[[Domain], Iterable[Tuple[str, Tuple[Layer, ...], Tuple[Layer, ...]]]]] = None
    confinement: bool = False
    runner: bool = False
    holes_at: Optional[Callable[[Domain], Iterable[str]]] = None
    texts: bool = False
    paths_with: Optional[Callable[[Domain, Tuple[Snapshot, ...]], Iterable[str]]] = None
    stores: bool = False
    kept: Optional[Asked] = None


@dataclass(frozen=True)
class Observed:
    """One look. ``files`` is empty where the host's files cannot be seen (``local`` is False: a remote URI).

    ``uses`` is every layer of every guest; ``unread`` names the images whose headers hid a part of that; ``silent`` the guests
    whose jobs could not be read. ``probes`` is what was found of images, by path and format as they were asked for; ``sizes``
    is by guest, disk and index; ``shots`` (snapshots) and ``qemu`` are by the guest's uuid; ``troubles`` says what could not be read, ``moved``
    which guests (uuid) changed during the look. ``bitmaps`` are (disk, name) of the guest's checkpoints, ``volume`` is what was asked for.
    ``rates`` are of the jobs that were looked at twice and still run, by (uuid, disk): the job at the second look, and its bytes per second between.
    ``measured`` is in bytes, ``holds`` whether a prepared image has data of its own; None where it was not asked for or not found out.
    ``same`` is by (uuid, disk), whether the chains that were asked for show the same data. ``held`` is why an
    image cannot be locked now, by (path, for writing), None where it can.
    ``runner`` is (user, group) as whom libvirt starts a QEMU, where nothing else is said for a guest, None where it was not asked for or is not told.
    ``texts`` are (live XML, definition, whether there are secrets that both leave out), by uuid. ``takes_holes`` is by path: does what is
    punched out of a file there read as zeros? None where that is not known.
    ``confinement`` is by uuid, for guests that AppArmor confines. ``checkpoints`` are by uuid, (name, (disk, bitmap) pairs) each. ``unanswered``
    is the (code, sentence) of a question about a guest that got no answer, by (uuid, question). ``kept`` is by uuid.
    """

    domains: Tuple[Domain, ...]
    files: Dict[str, File] = field(default_factory=dict)
    images: Dict[str, Image] = field(default_factory=dict)
    uses: Tuple[Use, ...] = ()
    unread: Tuple[str, ...] = ()
    snapshots: Tuple[Snapshot, ...] = ()
    silent: Tuple[str, ...] = ()
    local: bool = True
    probes: Mapping[Tuple[str, Optional[str]], Probe] = field(default_factory=dict)
    sizes: Mapping[Tuple[str, str, Optional[int]], Sizes] = field(default_factory=dict)
    shots: Mapping[str, Tuple[Snapshot, ...]] = field(default_factory=dict)
    qemu: Mapping[str, QemuView] = field(default_factory=dict)
    processes: Tuple[Process, ...] = ()
    troubles: Tuple[str, ...] = ()
    moved: Tuple[str, ...] = ()
    bitmaps: Tuple[Tuple[str, str], ...] = ()
    volume: Optional[Volume] = None
    versions: Versions = NOT_ASKED
    rates: Mapping[Tuple[str, str], Tuple[Job, Optional[float]]] = field(default_factory=dict)
    measured: Optional[int] = None
    holds: Optional[bool] = None
    same: Mapping[Tuple[str, str], bool] = field(default_factory=dict)
    held: Mapping[Tuple[str, bool], Optional[str]] = field(default_factory=dict)
    confinement: Mapping[str, Confinement] = field(default_factory=dict)
    runner: Optional[Tuple[int, int]] = None
    takes_holes: Mapping[str, Optional[bool]] = field(default_factory=dict)
    texts: Mapping[str, Tuple[str, str, bool]] = field(default_factory=dict)
    checkpoints: Mapping[str, Tuple[Tuple[str, Tuple[Pairs, ...]], ...]] = field(default_factory=dict)
    unanswered: Mapping[Tuple[str, str], Tuple[str, str]] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)

    @property
    def domain(self) -> Domain:
        """The guest, for a request about exactly one."""
        return self.domains[0]

    def processes_of(self, domain: Domain) -> Tuple[Process, ...]:
        """The QEMU processes with a guest's uuid, whatever libvirt knows of them."""
        return tuple(process for process in self.processes if process.uuid == domain.uuid)

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
    return (domain.uuid, domain.active, domain.persistent, domain.saved, disks, tuple((disk.target, disk.chain) for disk in domain.config))


def where(domain: Domain, disk: Disk) -> str:
    """A disk in a message."""
    return "the image %s" % domain.name if domain.bare else "disk %s of guest %s" % (disk.target, domain.name)


def with_disk(domain: Domain, target: str, **changes) -> Domain:
    """The guest with one disk changed, and the next start's definition as it was."""
    return replace(domain, disks=tuple(replace(disk, **changes) if disk.target == target else disk for disk in domain.disks))


def with_config(domain: Domain, target: str, chain: Chain) -> Domain:
    """The guest with another chain on one disk of its next start."""
    return replace(domain, config=tuple(replace(disk, chain=chain) if disk.target == target else disk for disk in domain.config))


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
