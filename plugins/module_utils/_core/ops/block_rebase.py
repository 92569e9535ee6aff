# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of block_rebase: a pull down to a base that stays, or a flatten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

from ..chain import pull
from ..errors import Refused
from ..jobs import COMPLETED
from ..model import PULL, Disk, Domain, Needs, Observed, Record, Selection, with_chain
from ..plan import PULL as PULL_STEP
from ..plan import WAIT, Plan, Step, Waiting
from ..sizes import parse_bandwidth
from . import _common as common
from . import _files as files

CHANGES = True


@dataclass(frozen=True)
class Request:
    selection: Selection
    disk: str
    base: Optional[str]
    bandwidth: int
    keep_relative: bool
    delete_dropped: Tuple[str, ...]
    waiting: Waiting

    @property
    def needs(self) -> Needs:
        deletes = bool(self.delete_dropped)
        return Needs(
            self.selection,
            paths=self.delete_dropped,
            images=tuple((path, "qcow2") for path in self.delete_dropped),
            paths_of=self._layers if deletes else None,
            uses=deletes,
            snapshots=True,
            doubts=True,
        )

    def _layers(self, domain: Domain) -> Tuple[str, ...]:
        return tuple(path for disk in common.disks_named(domain, self.disk) for path in files.paths_of_layers(domain, disk))


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused for what is wrong in itself."""
    if params["keep_relative"] and params["base"] is None:
        raise Refused("relative_needs_base", "The option keep_relative needs a base: without one no backing name is left to keep.")
    waiting = common.waiting(params)
    if params["delete_dropped"] and not waiting.wait:
        raise Refused("delete_needs_wait", "The option delete_dropped needs wait: files are only removed after the pull was verified.")
    return Request(
        common.one_guest(params),
        params["disk"],
        params["base"],
        parse_bandwidth(params["bandwidth"]),
        params["keep_relative"],
        tuple(files.absolute(path, "delete_dropped") for path in params["delete_dropped"]),
        waiting,
    )


def plan(wanted: Request, seen: Observed) -> Plan:
    """The steps of the pull. Raises Refused or Busy, naming the guest, the disk and the layer."""
    domain, disk = common.workable(wanted.selection, wanted.disk, seen, "a pull", wanted.waiting)
    common.known_end(domain, disk)
    base = _base(domain, disk, wanted.base)
    chain = pull(disk.chain, base)
    after = with_chain(domain, disk.target, chain)
    removals = files.deletions(domain, disk, wanted.delete_dropped, after, seen, "delete_dropped")
    _were_layers(wanted, domain, disk, base, removals, seen)
    if chain.layers == disk.chain.layers:
        if disk.job is not None and disk.job.type == PULL:
            common.no_job(domain, disk)  # it would take that base away
        notes = common.leftovers(domain, disk)
        removals = removals if wanted.waiting.waits else ()
        return Plan((domain,), (domain,), notes + removals, fence=len(notes) if removals else None, about=(disk.target,))
    lost_job = common.unfinished(wanted.waiting, domain, disk, PULL)
    if lost_job is not None:
        return common.ended(domain, disk, lost_job)
    steps = _job_steps(wanted, domain, disk, base)
    dropped = [layer for layer in disk.chain.layers if layer not in chain.layers]
    return Plan(
        (domain,),
        (after,),
        steps + (removals if wanted.waiting.waits else ()),
        fence=len(steps) - 1 if wanted.waiting.waits else None,
        warnings=common.snapshot_warnings(domain, disk, dropped, seen),
        settles=wanted.waiting.waits,
    )


def _base(domain: Domain, disk: Disk, wanted: Optional[str]) -> Optional[int]:
    if wanted is None:
        return None
    depth = common.the_layer(domain, disk, wanted, "base")
    if depth == 0:
        raise Refused(
            "base_is_active",
            "The base %s is the active layer of disk %s of guest %s: name a layer below it, the chain is %s."
            % (wanted, disk.target, domain.name, common.addresses(disk)),
        )
    return depth


def _were_layers(wanted: Request, domain: Domain, disk: Disk, base: Optional[int], removals: Tuple[Step, ...], seen: Observed) -> None:
    """Refuses (code not_a_layer) to remove a file that neither is a layer of the chain nor can have been one.

    After an earlier run nothing names the layers that left: their own headers do, which lead down to the base.
    """
    paths = [step.detail["path"] for step in removals]
    known = set(disk.chain.places) | {("path", path) for path in wanted.delete_dropped}
    for path in paths:
        if files.places_of(path, seen) & set(disk.chain.places):
            continue
        image = seen.images.get(path)
        below = None if image is None or image.backing_path is None else ("path", image.backing_path)
        if image is None or (base is not None and below not in known):
            raise Refused(
                "not_a_layer",
                "The option delete_dropped for disk %s of guest %s names %s, which is no layer of its chain, and no qcow2 image%s: leave it out."
                % (disk.target, domain.name, path, "" if base is None else " on %s" % disk.chain[base]),
            )


def _job_steps(wanted: Request, domain: Domain, disk: Disk, base: Optional[int]) -> Tuple[Step, ...]:
    record = _record(disk, base)
    start: Tuple[Step, ...] = ()
    if not _adopted(domain, disk, base):
        common.no_job(domain, disk)
        common.may_start(wanted.waiting, domain, disk, PULL)
        detail = {
            "base": None if base is None else disk.address(base),
            "bandwidth": wanted.bandwidth,
            "keep_relative": wanted.keep_relative,
            "record": record,
        }
        start = (Step(PULL_STEP, disk.target, detail),)
    if not wanted.waiting.waits:
        return start
    return start + (Step(WAIT, disk.target, dict(wanted.waiting.detail(), job=PULL, until=COMPLETED)),)


def _adopted(domain: Domain, disk: Disk, base: Optional[int]) -> bool:
    """Is the pull that runs the one that is asked for? libvirt does not tell its base, so only the record can say so."""
    return common.own_job(domain, disk, _record(disk, base))


def _record(disk: Disk, base: Optional[int]) -> Record:
    return common.record_for(disk, PULL, *(() if base is None else (base,)))
