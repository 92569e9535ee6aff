# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of block_copy: a disk mirrored to another place, and pivoted there."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Optional, Tuple

from ..chain import Chain, Layer
from ..errors import Busy
from ..jobs import READY
from ..model import COPY, Disk, Domain, Job, Mirror, Observed, Record, with_chain, with_disk
from ..plan import ABORT, FORGET, PIVOT, WAIT, Plan, Step
from . import _common as common
from . import _copied as copied
from . import _copy_ends as ends
from . import _copy_request
from . import _copy_start as starting
from . import _dest as destination
from . import _files as files
from . import _lost as lost
from . import _merge_jobs as jobs
from ._copy_request import ABSENT, MIRRORED, Request

CHANGES = True
IMAGES = False
PER_DISK = False
request = _copy_request.request


def plan(wanted: Request, seen: Observed) -> Plan:
    """The steps of the copy. Raises Refused or Busy, naming the guest, the disk and the layer."""
    domain = common.the_guest(wanted.selection, seen)
    wanted = replace(wanted, disk=_target(wanted, domain, seen))
    astray = lost.plan(domain, common.the_disk(domain, wanted.disk), lambda disk: _place(wanted, domain, disk, seen), seen)
    if astray is not None:
        return astray
    if wanted.state == ABSENT and not domain.active and not seen.processes_of(domain):
        return Plan((domain,), (domain,))  # what is off has no copy
    domain, disk = common.workable(wanted.selection, wanted.disk, seen, "a copy", wanted.waiting)
    if wanted.state == ABSENT:
        return _absent(wanted, domain, disk, seen)
    layer = _place(wanted, domain, disk, seen)
    if disk.chain[0].place == layer.place:
        told = ends.acceptable(wanted.shallow, wanted.dest.format if wanted.dest is not None else None, domain, disk, layer)
        if wanted.state == MIRRORED:
            text = "Disk %s of guest %s lives on %s already: there is nothing to be mirrored."
            return Plan((domain,), (domain,), warnings=(text % (disk.target, domain.name, layer),), about=(disk.target,))
        found = ends.there(wanted.delete_source, wanted.waiting, domain, disk, seen)
        return replace(found, warnings=told + found.warnings)
    return _copy(wanted, domain, disk, layer, seen)


def _target(wanted: Request, domain: Domain, seen: Observed) -> str:
    """The disk that is meant. Named by the path of its active layer, it is the one that lives at the destination once that is done."""
    if wanted.dest is None or common.disks_named(domain, wanted.disk):
        return wanted.disk
    volume = seen.volume.path if seen.volume is not None else None
    place = wanted.dest.layer.place if wanted.dest.layer is not None else ("path", volume)
    found = [disk.target for disk in domain.disks if disk.chain.layers and disk.chain[0].place == place]
    return found[0] if len(found) == 1 and wanted.disk.startswith("/") else wanted.disk


def _place(wanted: Request, domain: Domain, disk: Disk, seen: Observed) -> Optional[Layer]:
    return None if wanted.dest is None else destination.the_layer(wanted.dest, domain, disk, seen, wanted.reuse)


def _absent(wanted: Request, domain: Domain, disk: Disk, seen: Observed) -> Plan:
    """End a copy, and keep the source. A copy to another destination than the one that was named is left alone."""
    layer = _place(wanted, domain, disk, seen)
    if disk.mirror is None or disk.mirror.job != COPY:
        return Plan((domain,), (domain,), common.leftovers(domain, disk), about=(disk.target,))
    if disk.job is None:
        common.no_job(domain, disk)
    if layer is not None:
        _same_destination(domain, disk, layer)
    after = with_disk(domain, disk.target, mirror=None, job=None)
    later = not wanted.waiting.waits
    return Plan((domain,), (after,), (Step(ABORT, disk.target, common.abort_detail(disk, COPY, later)),), settles=not later)


def _same_destination(domain: Domain, disk: Disk, layer: Layer) -> None:
    mirror = disk.mirror.chain.active if disk.mirror is not None else None
    if mirror is None or mirror.place == layer.place:
        return
    raise Busy(
        "foreign_job",
        "Disk %s of guest %s is being copied to %s, not to %s: let that copy end, or end it with state absent, then run again."
        % (disk.target, domain.name, mirror, layer),
    )


def _copy(wanted: Request, domain: Domain, disk: Disk, layer: Layer, seen: Observed) -> Plan:
    below = copied.stays_below(domain, disk, wanted.shallow, wanted.backing, seen)
    chain = Chain((layer,) + below.layers, below.ends)
    adopted = _adopted(domain, disk, layer, chain)
    config = domain.config_disk(disk.target)
    if config is not None and config.chain.places[:1] != disk.chain.places[:1]:
        ends.config_ours(domain, disk, config, None)
    record = domain.record(disk.target)
    lost_job = common.unfinished(wanted.waiting, domain, disk, COPY)
    if lost_job is not None:
        return ends.ended(wanted.waiting.owns, domain, disk, lost_job, seen)
    start = () if adopted else starting.start(wanted, domain, disk, layer, below, seen)
    ready = adopted and disk.mirror is not None and disk.mirror.ready == "yes"
    steps = start + (() if ready or not wanted.waiting.waits else (_wait(wanted, disk, record),))
    waits = wanted.waiting.waits or (ready and wanted.waiting.phase == "whole")
    if wanted.state == MIRRORED:
        mirror = Mirror(COPY, "yes" if wanted.waiting.waits else None, chain)
        after = with_disk(domain, disk.target, mirror=mirror, job=disk.job or Job(COPY))
        return Plan((domain,), (after,), steps, warnings=copied.losses(domain, disk, layer, seen), settles=wanted.waiting.waits, about=(disk.target,))
    after = with_chain(domain, disk.target, chain)
    fence = len(steps) if waits else None
    if waits:
        steps += (Step(PIVOT, disk.target, dict(common.pivot_detail(layer, wanted.waiting), guards=True, keep_note=True, **_begun(wanted, record))),)
        steps += (jobs.defined(disk, below.layers),) if domain.config_disk(disk.target) is not None else ()
    removals: Tuple[Step, ...] = ()
    if wanted.delete_source:
        copied.kept_inside(domain, disk, seen)
        removals = files.deletions(domain, disk, (disk.chain[0].path or str(disk.chain[0]),), after, seen, "delete_source")
    if waits:
        steps += removals + (Step(FORGET, disk.target),)
    warnings = common.snapshot_warnings(domain, disk, copied.leaving(disk, below), seen) + copied.losses(domain, disk, layer, seen)
    return Plan((domain,), (after,), steps, fence=fence, warnings=warnings, settles=waits, about=(disk.target,))


def _adopted(domain: Domain, disk: Disk, layer: Layer, chain: Chain) -> bool:
    """Is the copy that runs the one that is asked for? Its mirror tells."""
    mirror = disk.mirror
    if mirror is None or mirror.job != COPY or disk.job is None:
        return False
    _same_destination(domain, disk, layer)
    silent = len(mirror.chain) == 1 and mirror.chain.ends is None  # a shallow copy of which libvirt shows no more stands on what the disk stands on
    layers = mirror.chain.layers + (disk.chain.layers[1:] if silent else ())
    same_format = mirror.chain[0].format in (None, layer.format)
    if not same_format or Chain(layers).places != chain.places:
        how = "shallow on %s" % layers[1] if len(layers) > 1 else "with all layers"
        raise Busy(
            "foreign_job",
            "Disk %s of guest %s is being copied to %s already, %s as %s: ask for that, or end it with state absent, then run again."
            % (disk.target, domain.name, layer, how, mirror.chain[0].format),
        )
    return True


def _wait(wanted: Request, disk: Disk, record: Optional[Record]) -> Step:
    detail = dict(wanted.waiting.detail(), job=COPY, until=READY, stall_window=wanted.stall_window, converge=wanted.converge)
    return Step(WAIT, disk.target, dict(detail, **_begun(wanted, record)))


def _begun(wanted: Request, record: Optional[Record]) -> Dict[str, object]:
    """What the earlier phase of this very run has begun and created."""
    ours = wanted.waiting.owns and record is not None and record.job == COPY
    return {"begun": True, "creates": record.creates} if ours and record is not None else {}
