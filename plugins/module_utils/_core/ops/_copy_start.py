# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps up to a running copy, and everything that is refused before they begin."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional, Tuple

from ..chain import Chain, Layer
from ..errors import Refused
from ..model import COPY, Disk, Domain, Observed
from ..plan import COPY as COPY_STEP
from ..plan import CREATE, PREPARE, Step
from . import _common as common
from . import _copied as copied
from . import _copy_ends as ends
from . import _dest as destination
from . import _files as files
from ._copy_request import Request

# The libvirt that each option came with.
GATES = (("synchronous_writes", (8, 0, 0)), ("target_zeroed", (12, 2, 0)), ("cluster_size", (7, 4, 0)), ("extended_l2", (8, 0, 0)))


def start(wanted: Request, domain: Domain, disk: Disk, layer: Layer, below: Chain, seen: Observed) -> Tuple[Step, ...]:
    """The steps up to the running job. Everything that can be refused is refused here."""
    common.no_job(domain, disk)
    common.may_start(wanted.waiting, domain, disk, COPY)
    ends.left_behind(domain, disk, layer, wanted.reuse, seen)
    destination.usable(domain, disk, layer, wanted.reuse, seen)
    copied.rules(domain, disk, layer, below, wanted.reuse, seen)
    _gates(wanted, seen)
    copied.room(domain, disk, layer, wanted.reuse, seen)
    file = seen.files.get(layer.path or "")
    created = layer.path if layer.type == "file" and not wanted.reuse and seen.local and file is not None and not file.exists else None
    first = _made(wanted, domain, disk, layer, below, created, seen)
    shallow = bool(below.layers)
    flags = ["SHALLOW"] if shallow else []
    flags += ["REUSE_EXT"] if wanted.reuse or first else []
    flags += ["TRANSIENT_JOB"] if domain.persistent else []
    flags += [name.upper() for name in wanted.wishes]
    data = files.data_of(disk.chain.layers[:1])
    record = replace(common.record_for(disk, COPY), layers=str(layer), source=disk.chain[0].path, creates=created, data=data)
    detail = {
        "to": layer,
        "below": below if shallow and (wanted.reuse or first) else None,
        "shallow": shallow,
        "params": dict(wanted.params),
        "flags": tuple(flags),
        "record": record,
        "creates": created,
        "pool": seen.volume.pool if seen.volume is not None and created is not None else None,
    }
    return first + (Step(COPY_STEP, disk.target, detail),)


def _made(wanted: Request, domain: Domain, disk: Disk, layer: Layer, below: Chain, created: Optional[str], seen: Observed) -> Tuple[Step, ...]:
    """The step that makes the destination before the copy, where libvirt's copy cannot make it as it is wanted."""
    volume, options = seen.volume, dict(wanted.dest.options) if wanted.dest is not None else {}
    prepared = copied.prepared(domain, disk, layer, below, wanted.reuse, seen)
    if options and (volume is None or volume.exists or prepared):
        reason = "it exists already" if volume is not None and volume.exists else "it has to be prepared on its backing"
        raise Refused("bad_dest", "The option dest has %s, but the volume is not created by its pool: %s." % (", ".join(sorted(options)), reason))
    if prepared:
        detail = {"path": layer.path, "format": layer.format, "size": disk.capacity, "above": disk.chain[1], "below": below[0]}
        return (Step(PREPARE, disk.target, dict(detail, creates=created, timeout=wanted.waiting.timeout)),)
    if options and volume is not None:
        detail = {"pool": volume.pool, "volume": volume.name, "capacity": disk.capacity, "format": layer.format, "options": options}
        return (Step(CREATE, disk.target, dict(detail, backing=below[0] if below.layers else None, creates=layer.path)),)
    return ()


def _gates(wanted: Request, seen: Observed) -> None:
    """Refuses what the daemon is too old for (code too_old)."""
    version = seen.versions.libvirt
    options = [name for name, dummy in wanted.dest.options] if wanted.dest is not None else []
    for name, since in GATES:
        if (name in wanted.wishes or name in options) and version is not None and version < since:
            words = (name, ".".join(map(str, since)), ".".join(map(str, version)))
            raise Refused("too_old", "The option %s needs libvirt %s, and this is %s: leave it out." % words)
