# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What datafile_convert was asked for, and what has to be seen for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Optional, Tuple

from ..chain import Layer, normal_path
from ..errors import Refused
from ..model import Disk, Domain, Needs, Selection
from ..plan import Waiting
from ..sizes import parse_bandwidth, parse_size
from . import _common as common
from . import _files as files
from . import _offline as offline

PRESENT, ABSENT = "present", "absent"
AUTO, OFFLINE, SAVED, COPY, MIGRATE = "auto", "offline", "saved", "copy", "migrate_xml"
RAW, QCOW2 = "raw", "qcow2"
SUFFIX, UNFINISHED = ".qcow2", ".adopting"
SMALLEST, BIGGEST = 512, 2 << 20  # QEMU's limits for a cluster, in bytes
NARROW, WIDE = 64 << 10, 2 << 20
HUGE = 1 << 40  # from here on the tables of small clusters take long to be written and much memory to be held


@dataclass(frozen=True)
class Request:
    """``path``: an image that belongs to no guest. ``metadata``, ``dest`` and ``cluster_size`` are None where they follow from the disk."""

    selection: Selection
    disk: str
    path: Optional[str]
    state: str
    metadata: Optional[str]
    method: str
    dest: Optional[str]
    allow_pause: bool
    cluster_size: Optional[int]
    preserve_holes: bool
    bandwidth: int
    waiting: Waiting

    @property
    def needs(self) -> Needs:
        bare = () if self.path is None else ((self.layer_over(self.path), QCOW2), (self.path, RAW))
        return Needs(
            self.selection,
            guests=self.path is None,
            bare=bare,
            as_guests=self.path is not None,
            offline=True,
            headers=offline.DEEPEST,
            stores=True,
            uses=True,
            snapshots=True,
            bitmaps=True,
            doubts=True,
            versions=True,
            runner=True,
            texts=self.method == MIGRATE,
            holes_at=self._data if self.state == PRESENT else None,
            paths=() if self.path is None else (self.path, *self._new_paths(self.path)),
            paths_of=self._paths,
            images_of=self._images,
            measure=self._measure,
            agree=self._agree,
        )

    def layer_over(self, raw: str) -> str:
        return self.metadata or (self.dest or raw) + SUFFIX

    def _new_paths(self, raw: str) -> Tuple[str, ...]:
        layer = self.layer_over(raw)
        return (layer, layer + UNFINISHED) + ((self.dest,) if self.dest is not None else ())

    def disks(self, domain: Domain) -> Tuple[Disk, ...]:
        found = domain.disks if domain.bare else self.named(domain) or common.disks_named(domain, self.disk)
        return tuple(disk for disk in found if disk.chain.layers)

    def named(self, domain: Domain) -> Tuple[Disk, ...]:
        """The disks that have an image of that path, the data file of a layer included."""
        return tuple(disk for disk in domain.disks if any(image.place == ("path", normal_path(self.disk)) for image in disk.chain.images()))

    def _paths(self, domain: Domain) -> Iterable[str]:
        found = []
        for disk in self.disks(domain) if not domain.bare else ():
            note = domain.conversion(disk.target)
            found += [note.metadata, note.metadata + UNFINISHED, note.data] if note is not None else []
            found += [path for layer in disk.chain.images() for path in (layer.path,) if path]
            found += self._new_paths(data_of(disk))
        return tuple(dict.fromkeys(path for path in found if path))

    def _data(self, domain: Domain) -> Iterable[str]:
        return () if domain.bare else tuple(self.dest or data_of(disk) for disk in self.disks(domain))

    def _images(self, domain: Domain) -> Iterable[Tuple[str, str]]:
        """The layer that may be there already, of an earlier run or of somebody else."""
        found = [self.layer_over(data_of(disk)) for disk in self.disks(domain)]
        found += [one.metadata for one in domain.conversions]
        return tuple((path, QCOW2) for path in dict.fromkeys(found))

    def _agree(self, domain: Domain) -> Iterable[Tuple[str, Tuple[Layer, ...], Tuple[Layer, ...]]]:
        """A layer that no QEMU has open and the data file that it has to show."""
        disks = [disk for disk in self.disks(domain) if len(disk.chain) == 1] if not domain.active else []
        return tuple((disk.target, disk.chain.layers, (disk.chain[0].store,)) for disk in disks if disk.chain[0].store is not None)

    def _measure(self, domain: Domain) -> Optional[Tuple[Tuple[Layer, ...], str]]:
        disks = self.disks(domain)
        wanted = self.dest is not None and self.state == PRESENT and len(disks) == 1 and disks[0].job is None and len(disks[0].chain) == 1
        return (disks[0].chain.layers, QCOW2) if wanted else None


def data_of(disk: Disk) -> str:
    """The path of the raw image that a disk has, or that is the data file of its active layer."""
    active = disk.chain.layers[0]
    return (active.store.path if active.store is not None else active.path) or ""


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused for what is wrong in itself."""
    state, method = params["state"], params["method"]
    if state == ABSENT and method == COPY:
        raise Refused("bad_method", "The state absent copies nothing: choose another method, or copy the disk to a raw image with block_copy.")
    if method == COPY and params["dest"] is None:
        raise Refused("dest_needed", "The method copy needs the option dest: name the new data file.")
    if params["dest"] is not None and (method not in (AUTO, COPY) or state == ABSENT):
        words = "The option dest is for the method copy and the state present, where the disk is copied to a new data file: leave it out."
        raise Refused("dest_needed", words)
    if params["path"] is not None and method in (SAVED, MIGRATE):
        words = "The method %s is for a running guest, and path is an image that belongs to none: name the guest, or leave it out."
        raise Refused("bad_method", words % method)
    size = None if params["cluster_size"] is None else parse_size(params["cluster_size"], "cluster_size")
    if size is not None and (not SMALLEST <= size <= BIGGEST or size & (size - 1)):
        raise Refused("bad_cluster_size", "The option cluster_size is %s: give a power of two from 512 bytes to 2MiB." % params["cluster_size"])
    place = {name: None if params[name] is None else files.absolute(params[name], name) for name in ("path", "metadata", "dest")}
    return Request(
        common.one_guest(params),
        params["disk"] or "",
        place["path"],
        state,
        place["metadata"],
        method,
        place["dest"],
        params["allow_pause"],
        size,
        params["preserve_holes"],
        parse_bandwidth(params["bandwidth"]),
        common.waiting(params),
    )


def cluster_size(wanted: Request, size: int) -> int:
    """The bytes of a cluster: as asked, or by the size of the disk, which has to be a multiple of it: QEMU fills a last cluster that is not
    whole, so that the raw image would grow, and a block device, which cannot, would fail."""
    cluster = wanted.cluster_size or (WIDE if size >= HUGE else NARROW)
    while wanted.cluster_size is None and size % cluster and cluster > SMALLEST:
        cluster //= 2
    return cluster


def tables(size: int, cluster: int) -> int:
    """The bytes that a layer takes whose data is in a data file: its tables know every cluster from the beginning."""
    clusters = -(-size // cluster)
    lower = -(-clusters * 8 // cluster)
    upper = -(-lower * 8 // cluster)
    own = lower + upper + 8
    return (own + -(-own * 2 // cluster) + 1) * cluster
