# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of block_job: end, pivot or slow down the job of a disk, whoever started it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

from ..chain import Chain, Layer, commit
from ..errors import Refused
from ..jobs import READY
from ..model import ACTIVE_COMMIT, BACKUP, COPY, Disk, Domain, Job, Needs, Observed, Selection, with_chain, with_disk
from ..pivot import cut_off
from ..plan import ABORT, FORGET, PIVOT, SPEED, WAIT, Plan, Step, Waiting
from ..sizes import parse_bandwidth
from . import _common as common
from . import _lost as lost
from . import _merge_jobs as jobs

CHANGES = True
IMAGES = False
PER_DISK = False
ABSENT, PIVOTED, THROTTLED = "absent", "pivoted", "throttled"


@dataclass(frozen=True)
class Request:
    selection: Selection
    disk: str
    state: str
    bandwidth: int
    waiting: Waiting

    @property
    def needs(self) -> Needs:
        return Needs(self.selection, doubts=True)


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused for what is wrong in itself."""
    if params["state"] == THROTTLED and params["bandwidth"] is None:
        raise Refused("bandwidth_needed", "The state throttled needs the option bandwidth: give a size per second, or 0 for no limit.")
    if params["state"] != THROTTLED and params["bandwidth"] is not None:
        raise Refused("bandwidth_needed", "The option bandwidth is for the state throttled, not for %s: leave it out." % params["state"])
    return Request(common.one_guest(params), params["disk"], params["state"], parse_bandwidth(params["bandwidth"]), common.waiting(params))


def plan(wanted: Request, seen: Observed) -> Plan:
    """The steps. Raises Refused or Busy, naming the guest and the disk."""
    domain = common.the_guest(wanted.selection, seen)
    astray = lost.plan(domain, common.the_disk(domain, wanted.disk), lambda disk: None, seen)
    if astray is not None:
        return astray
    if not domain.active and wanted.state == ABSENT and not seen.processes_of(domain):
        return Plan((domain,), (domain,))  # what is off has no job
    domain = common.running_guest(wanted.selection, seen)
    disk = common.the_disk(domain, wanted.disk)
    common.agreed(domain, disk, seen)
    if disk.job is None:
        return _none(wanted, domain, disk)
    if wanted.state == ABSENT:
        return _end(wanted, domain, disk, disk.job)
    if wanted.state == THROTTLED:
        return _slow(wanted, domain, disk, disk.job)
    return _pivot(wanted, domain, disk, disk.job)


def _none(wanted: Request, domain: Domain, disk: Disk) -> Plan:
    """Nothing runs: that is what absent asks for, and nothing waits for a pivot either."""
    if disk.mirror is not None:
        common.no_job(domain, disk)
    if wanted.state == THROTTLED:
        raise Refused("no_job", "No job runs on disk %s of guest %s whose speed could be limited: it may have ended." % (disk.target, domain.name))
    if wanted.state == PIVOTED:
        common.may_start(wanted.waiting, domain, disk, "block")  # a run that is only to finish had seen a job
        _not_lost(domain, disk)
    return Plan((domain,), (domain,), common.leftovers(domain, disk), about=(disk.target,))


def _not_lost(domain: Domain, disk: Disk) -> None:
    """Refuses where the note of a job says that it was to be pivoted and is gone without that (code job_failed)."""
    record = domain.record(disk.target)
    if record is not None and cut_off(domain, disk):
        raise Refused(
            "job_failed",
            "The %s job (%s) on disk %s of guest %s ended without its pivot, and the disk is on %s: start it again, or forget it with the state absent."
            % (record.job, record.layers, disk.target, domain.name, disk.chain.active),
        )


def _end(wanted: Request, domain: Domain, disk: Disk, job: Job) -> Plan:
    """A job that ends by itself at that very moment makes another chain than this predicts, and the run says so."""
    later = not wanted.waiting.waits
    after = with_disk(domain, disk.target, mirror=None, job=None)
    warnings: Tuple[str, ...] = ()
    if job.type == BACKUP:
        warnings = ("The backup of guest %s is ended on all its disks, and libvirt removes what it has written so far." % domain.name,)
    step = Step(ABORT, disk.target, common.abort_detail(disk, job.type, later))
    return Plan((domain,), (after,), (step,), warnings=warnings, settles=not later)


def _slow(wanted: Request, domain: Domain, disk: Disk, job: Job) -> Plan:
    if job.bandwidth == wanted.bandwidth:
        return Plan((domain,), (domain,), about=(disk.target,))
    detail = {"job": job.type, "bandwidth": wanted.bandwidth, "before": job.bandwidth}
    return Plan((domain,), (domain,), (Step(SPEED, disk.target, detail),), settles=False)


def _pivot(wanted: Request, domain: Domain, disk: Disk, job: Job) -> Plan:
    if job.type not in (COPY, ACTIVE_COMMIT) or disk.mirror is None:
        raise Refused(
            "no_pivot",
            "A %s job runs on disk %s of guest %s, which ends by itself and has nothing to pivot to: only a copy and an active commit have."
            % (job.type, disk.target, domain.name),
        )
    ready = disk.mirror.ready == "yes"
    if wanted.waiting.phase == "start":
        return Plan((domain,), (domain,), about=(disk.target,))
    if not ready and not wanted.waiting.waits:
        raise Refused(
            "not_ready",
            "The %s job on disk %s of guest %s is not ready to be pivoted: set wait, or run again when block_job_info says that it is ready."
            % (job.type, disk.target, domain.name),
        )
    to = _target(domain, disk)
    chain = _chain_after(disk, job)
    wait = (Step(WAIT, disk.target, dict(wanted.waiting.detail(), job=job.type, until=READY)),)
    steps = (() if ready else wait) + (Step(PIVOT, disk.target, dict(common.pivot_detail(to, wanted.waiting), guards=job.type == COPY)),)
    fence = len(steps) - 1
    steps += (jobs.defined(disk, disk.chain.layers),) if _follows(domain, disk) else ()
    notes = (Step(FORGET, disk.target),) if domain.record(disk.target) is not None else ()
    return Plan((domain,), (with_chain(domain, disk.target, chain),), steps + notes, fence=fence)


def _follows(domain: Domain, disk: Disk) -> bool:
    """Is the next start's definition about the disk that is pivoted? One that names another image is somebody's intent."""
    config = domain.config_disk(disk.target)
    return config is not None and config.chain.places[:1] == disk.chain.places[:1]


def _target(domain: Domain, disk: Disk) -> Layer:
    active: Optional[Layer] = disk.mirror.chain.active if disk.mirror is not None else None
    if active is None:
        raise Refused("no_pivot", "libvirt does not say where the mirror of disk %s of guest %s is: look with qemu_nodes." % (disk.target, domain.name))
    return active


def _chain_after(disk: Disk, job: Job) -> Chain:
    """An active commit ends in its base; a copy in its mirror, above the same layers as now where libvirt does not show what is below it."""
    mirror = disk.mirror.chain if disk.mirror is not None else Chain()
    if job.type == ACTIVE_COMMIT:
        depth = disk.chain.depth_of(mirror.places[0])
        return commit(disk.chain, 0, depth) if depth else mirror
    if mirror.ends is None and len(mirror) == 1:
        return Chain(mirror.layers + disk.chain.layers[1:], disk.chain.ends)
    return mirror
