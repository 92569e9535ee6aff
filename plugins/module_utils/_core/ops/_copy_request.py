# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What block_copy was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from ..chain import Layer
from ..errors import Refused
from ..model import Domain, Needs, Selection
from ..plan import Waiting
from ..sizes import parse_bandwidth, parse_size
from . import _common as common
from . import _copied as copied
from . import _dest as destination
from . import _files as files

PIVOTED, MIRRORED, ABSENT = "pivoted", "mirrored", "absent"
FINEST, COARSEST = 512, 64 * 1024 * 1024  # QEMU's limits for the granularity, in bytes
LARGEST_BUFFER = 2**62
WISHES = ("synchronous_writes", "target_zeroed")


@dataclass(frozen=True)
class Request:
    selection: Selection
    disk: str
    dest: Optional[destination.Dest]
    state: str
    shallow: bool
    reuse: bool
    backing: Optional[Tuple[str, Optional[str]]]
    params: Tuple[Tuple[str, int], ...]
    wishes: Tuple[str, ...]
    delete_source: bool
    waiting: Waiting
    stall_window: float
    converge: bool

    @property
    def needs(self) -> Needs:
        bare = [(layer.path, layer.format) for layer in [self.dest and self.dest.layer] if layer and layer.path and layer.format]
        bare += [self.backing] if self.backing is not None and self.backing[0].startswith("/") and self.backing[1] else []
        return Needs(
            self.selection,
            capacities=True,
            paths_of=self._paths,
            uses=True,
            snapshots=True,
            headers=copied.DEEPEST,
            stores=True,
            bare=tuple(bare),
            doubts=True,
            volume=self.dest.volume if self.dest is not None else None,
            volume_format=self.dest.format if self.dest is not None else None,
            bitmaps=True,
            versions=True,
            measure=self._measure if self.state != ABSENT else None,
            prepared=self._idle if self.shallow and self.reuse and self.state != ABSENT else None,
        )

    def _idle(self, domain: Domain) -> bool:
        """Is no copy running? Then a prepared image is as it was prepared."""
        disks = common.disks_named(domain, self.disk)
        return domain.active and len(disks) == 1 and disks[0].job is None

    def _measure(self, domain: Domain) -> Optional[Tuple[Tuple[Layer, ...], str]]:
        """What is to be measured: the data that would be copied, while no copy runs, as an image of the destination's format."""
        disks = [disk for disk in common.disks_named(domain, self.disk) if disk.chain.layers and disk.job is None]
        if not domain.active or len(disks) != 1 or self.dest is None:
            return None
        named = self.backing[0] if self.backing is not None else None
        return copied.to_measure(domain, disks[0], self.shallow, named), self.dest.format or disks[0].chain[0].format or destination.RAW

    def _paths(self, domain: Domain) -> Tuple[str, ...]:
        """What is to be looked at as a file: the destination, and what may be removed in the end."""
        found = [self.dest.layer.path] if self.dest is not None and self.dest.layer is not None else []
        for disk in common.disks_named(domain, self.disk):
            record = domain.record(disk.target)
            found += [record.source, record.creates, *(data for dummy, data in record.data)] if record is not None else []
            found += files.paths_of_layers(domain, disk)
        return tuple(dict.fromkeys(path for path in found if path))


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused for what is wrong in itself."""
    waiting = common.waiting(params)
    state = params["state"]
    dest = destination.parse(params["dest"])
    if dest is None and state != ABSENT:
        raise Refused("bad_dest", "The state %s needs the option dest: say where the disk is to be copied to." % state)
    if params["delete_source"] and (state != PIVOTED or not waiting.wait):
        raise Refused("delete_needs_wait", "The option delete_source needs the state pivoted and wait: a file is only removed after the pivot was verified.")
    if params["backing"] is not None and not params["shallow"]:
        raise Refused("backing_needs_shallow", "The option backing needs shallow: a copy of everything has nothing below it.")
    if not params["stall_window"] > 0:
        raise Refused("bad_wait", "The option stall_window is %s: give a number of seconds above 0." % params["stall_window"])
    return Request(
        common.one_guest(params),
        params["disk"],
        dest,
        state,
        params["shallow"],
        params["reuse_existing"],
        None if params["backing"] is None else (params["backing"], params["backing_format"]),
        _numbers(params),
        tuple(name for name in WISHES if params[name]),
        params["delete_source"],
        waiting,
        params["stall_window"],
        params["converge"],
    )


def _numbers(params: dict) -> Tuple[Tuple[str, int], ...]:
    """The numbers that libvirt takes, by its names: bytes per second and bytes."""
    found: Dict[str, int] = {"bandwidth": parse_bandwidth(params["bandwidth"])}
    if params["granularity"] is not None:
        grain = parse_size(params["granularity"], "granularity")
        if not FINEST <= grain <= COARSEST or grain & (grain - 1):
            raise Refused("bad_granularity", "The option granularity is %s: give a power of two from 512 bytes to 64MiB." % params["granularity"])
        found["granularity"] = grain
    if params["buf_size"] is not None:
        size = parse_size(params["buf_size"], "buf_size")
        if not 0 < size <= LARGEST_BUFFER:
            raise Refused("bad_buf_size", "The option buf_size is %s: give a size above 0, such as 16MiB." % params["buf_size"])
        found["buf-size"] = size
    return tuple((name, value) for name, value in found.items() if value)
