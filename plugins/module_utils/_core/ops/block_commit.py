# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of block_commit: layers merged backward into one below them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional, Tuple

from ..chain import Layer, commit, normal_path
from ..errors import Refused
from ..jobs import COMPLETED, READY
from ..model import ACTIVE_COMMIT, COMMIT, Disk, Domain, Needs, Observed, Record, Selection, with_chain
from ..plan import COMMIT as COMMIT_STEP
from ..plan import FORGET, PIVOT, WAIT, Plan, Step, Waiting
from ..sizes import parse_bandwidth
from . import _common as common
from . import _files as files
from . import _lost as lost

CHANGES = True


@dataclass(frozen=True)
class Request:
    selection: Selection
    disk: str
    top: Optional[str]
    base: Optional[str]
    bandwidth: int
    keep_relative: bool
    delete_merged: bool
    waiting: Waiting

    @property
    def needs(self) -> Needs:
        return Needs(self.selection, paths_of=self._layers, uses=True, snapshots=True, doubts=True)

    def _layers(self, domain: Domain) -> Tuple[str, ...]:
        disks = common.disks_named(domain, self.disk)
        merged = [path for record in (domain.record(disk.target) for disk in disks) if record is not None for path in record.merges]
        return tuple(dict.fromkeys(merged + [path for disk in disks for path in files.paths_of_layers(domain, disk)]))


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused for what is wrong in itself."""
    waiting = common.waiting(params)
    if params["delete_merged"] and not waiting.wait:
        raise Refused("delete_needs_wait", "The option delete_merged needs wait: files are only removed after the commit was verified.")
    return Request(
        common.one_guest(params),
        params["disk"],
        params["top"],
        params["base"],
        parse_bandwidth(params["bandwidth"]),
        params["keep_relative"],
        params["delete_merged"],
        waiting,
    )


def plan(wanted: Request, seen: Observed) -> Plan:
    """The steps of the commit. Raises Refused or Busy, naming the guest, the disk and the layer."""
    found = common.the_guest(wanted.selection, seen)
    astray = lost.plan(found, common.the_disk(found, wanted.disk), lambda disk: _named_base(wanted, found, disk), seen)
    if astray is not None:
        return astray
    domain, disk = common.workable(wanted.selection, wanted.disk, seen, "a commit", wanted.waiting)
    common.known_end(domain, disk)
    for job in (COMMIT, ACTIVE_COMMIT):
        lost_job = common.unfinished(wanted.waiting, domain, disk, job)
        if lost_job is not None:
            return _over(wanted, domain, disk, lost_job, seen)
    if _already(wanted, domain, disk):
        return Plan((domain,), (domain,), common.leftovers(domain, disk), about=(disk.target,))
    top, base = _range(wanted, domain, disk)
    after = with_chain(domain, disk.target, commit(disk.chain, top, base))
    merged = disk.chain.layers[top:base]
    steps = _job_steps(wanted, domain, disk, top, base)
    _base_is_ours(domain, disk, base, seen, starts=any(step.action == COMMIT_STEP for step in steps))
    removals: Tuple[Step, ...] = ()
    if wanted.delete_merged:
        paths = tuple(layer.path for layer in merged if layer.path)
        removals = files.deletions(domain, disk, paths, after, seen, "delete_merged")
    return Plan(
        (domain,),
        (after,),
        steps + (removals if wanted.waiting.waits else ()),
        fence=len(steps) - 1 if wanted.waiting.waits else None,
        spoils=tuple(str(layer) for layer in disk.chain.layers[top + 1 : base + 1]),
        warnings=common.snapshot_warnings(domain, disk, merged, seen),
        settles=wanted.waiting.waits,
    )


def _named_base(wanted: Request, domain: Domain, disk: Disk) -> Optional[Layer]:
    """The layer that an active commit would have pivoted to."""
    depth = 1 if wanted.base is None else common.find_layer(domain, disk, wanted.base, "base")
    return disk.chain[depth] if depth is not None and depth < len(disk.chain) else None


def _over(wanted: Request, domain: Domain, disk: Disk, record: Record, seen: Observed) -> Plan:
    """The commit that this run was to finish is over: its layers have left the chain, or it has failed."""
    if any(("path", normal_path(path)) in disk.chain.places for path in record.merges):
        return common.ended(domain, disk, record)
    removals = files.deletions(domain, disk, record.merges, domain, seen, "delete_merged") if wanted.delete_merged else ()
    return Plan((domain,), (domain,), removals + (Step(FORGET, disk.target),), fence=0 if removals else None)


def _already(wanted: Request, domain: Domain, disk: Disk) -> bool:
    """A named top that is gone while its named base is there has been merged."""
    if wanted.top is None or wanted.base is None:
        return False
    top = common.find_layer(domain, disk, wanted.top, "top")
    return top is None and common.find_layer(domain, disk, wanted.base, "base") is not None


def _range(wanted: Request, domain: Domain, disk: Disk) -> Tuple[int, int]:
    top = 0 if wanted.top is None else common.the_layer(domain, disk, wanted.top, "top")
    if wanted.base is None:
        base = top + 1
        if base == len(disk.chain):
            raise Refused(
                "nothing_below",
                "Nothing lies below %s on disk %s of guest %s, so there is no layer to merge it into: the chain is %s."
                % (disk.chain[top], disk.target, domain.name, common.addresses(disk)),
            )
        return top, base
    base = common.the_layer(domain, disk, wanted.base, "base")
    if base <= top:
        raise Refused(
            "base_not_below",
            "The base %s is not below the top %s on disk %s of guest %s: swap them, the chain is %s."
            % (disk.chain[base], disk.chain[top], disk.target, domain.name, common.addresses(disk)),
        )
    return top, base


def _base_is_ours(domain: Domain, disk: Disk, base: int, seen: Observed, starts: bool) -> None:
    """A base that another disk needs must not be written to. What is not known only matters before the first write."""
    path = disk.chain[base].path
    places = {disk.chain[base].place} | (files.places_of(path, seen) if path else set())
    places |= {use.place for use in seen.uses if (use.uuid, use.disk) == (domain.uuid, disk.target) and use.layer == disk.chain[base].place}
    for use in seen.uses:
        if use.place in places and (use.uuid, use.disk) != (domain.uuid, disk.target):
            raise Refused(
                "base_shared",
                "The base %s of disk %s of guest %s is also a layer of disk %s of guest %s, which a commit would corrupt: choose a base above it."
                % (disk.chain[base], disk.target, domain.name, use.disk, use.guest),
            )
    if starts and seen.unread and not seen.local:
        raise Refused(
            "remote_files",
            "Whether another guest needs the base %s of disk %s of guest %s cannot be seen through a remote URI: run this task on the guest's host."
            % (disk.chain[base], disk.target, domain.name),
        )
    if starts and seen.unread:
        raise Refused(
            "unread",
            "The base %s of disk %s of guest %s may be shared: the chain below %s cannot be read, so nobody knows who needs it, mend that first."
            % (disk.chain[base], disk.target, domain.name, ", ".join(seen.unread)),
        )


def _job_steps(wanted: Request, domain: Domain, disk: Disk, top: int, base: int) -> Tuple[Step, ...]:
    job = COMMIT if top else ACTIVE_COMMIT
    adopted = _adopted(domain, disk, top, base)
    start: Tuple[Step, ...] = ()
    if not adopted:
        common.no_job(domain, disk)
        common.may_start(wanted.waiting, domain, disk, job)
        detail = {
            "job": job,
            "top": disk.address(top) if top else None,
            "base": disk.address(base),
            "bandwidth": wanted.bandwidth,
            "keep_relative": wanted.keep_relative,
            "record": replace(common.record_for(disk, job, top, base), merges=tuple(layer.path for layer in disk.chain.layers[top:base] if layer.path)),
        }
        start = (Step(COMMIT_STEP, disk.target, detail),)
    if not wanted.waiting.waits:
        return start
    until = COMPLETED if top else READY
    wait = (Step(WAIT, disk.target, dict(wanted.waiting.detail(), job=job, until=until)),)
    pivot = () if top else (Step(PIVOT, disk.target, common.pivot_detail(disk.chain[base], wanted.waiting)),)
    ready = adopted and disk.mirror is not None and disk.mirror.ready == "yes"
    return start + (() if ready else wait) + pivot


def _adopted(domain: Domain, disk: Disk, top: int, base: int) -> bool:
    """An active commit shows its base as its mirror; a commit further down is known by its record."""
    if disk.job is None:
        return False
    if top == 0:
        mirror = disk.mirror
        return mirror is not None and mirror.job == ACTIVE_COMMIT and mirror.chain.places[:1] == (disk.chain[base].place,)
    return common.own_job(domain, disk, common.record_for(disk, COMMIT, top, base))
