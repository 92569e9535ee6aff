# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of block_job_info: no steps; the jobs that run now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ..errors import Refused
from ..model import Disk, Domain, Needs, Observed, Selection
from ..plan import Plan
from ..render import job_result
from . import _common as common

CHANGES = False
NOTHING = {"jobs": []}  # what is returned where nothing could be read
LONGEST = 60.0  # seconds between two looks


@dataclass(frozen=True)
class Request:
    selection: Selection
    disk: Optional[str]
    interval: float

    @property
    def needs(self) -> Needs:
        return Needs(self.selection, config=False, tolerant=True, sample=self.interval)


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused (codes bad_filter, bad_interval)."""
    selection = common.several_guests(params)
    if not 0 <= params["interval"] <= LONGEST:
        raise Refused("bad_interval", "The option interval is %s: give a number of seconds from 0 to %g." % (params["interval"], LONGEST))
    return Request(selection, params["disk"], params["interval"])


def plan(wanted: Request, seen: Observed) -> Plan:
    """Nothing to do. Raises Refused for a guest (code no_guest) or a disk (code no_disk) that was named and is not there."""
    found = {domain.name for domain in seen.domains}
    asked = (wanted.selection.name,) if wanted.selection.name is not None else wanted.selection.names or ()
    missing = [name for name in asked if name not in found]
    if wanted.selection.single and not seen.domains:
        common.the_guest(wanted.selection, seen)
    if missing and wanted.selection.pattern is None:
        raise Refused("no_guest", "libvirt knows no guest named %s: leave the name out to list the jobs of all guests." % ", ".join(missing))
    if wanted.disk is not None and wanted.selection.single:
        common.the_disk(seen.domain, wanted.disk)
    warnings = tuple("The jobs of guest %s cannot be read now: none of them is returned." % name for name in seen.silent)
    return Plan(seen.domains, seen.domains, warnings=warnings + seen.troubles)


def report(wanted: Request, seen: Observed) -> dict:
    """What the module returns."""
    pairs = ((domain, disk) for domain in seen.domains for disk in domain.disks if disk.job is not None)
    pairs = (pair for pair in pairs if not wanted.interval or (pair[0].uuid, pair[1].target) in seen.rates)  # the others have ended meanwhile
    chosen = ((domain, disk) for domain, disk in pairs if wanted.disk is None or disk in common.disks_named(domain, wanted.disk))
    return {"changed": False, "jobs": [_job(domain, disk, seen) for domain, disk in chosen]}


def _job(domain: Domain, disk: Disk, seen: Observed) -> dict:
    """One job, as it was at the last look. ``rate`` and ``eta`` are None where it was looked at only once, or is at rest."""
    job, rate = seen.rates.get((domain.uuid, disk.target), (disk.job, None))
    record = domain.record(disk.target)
    mirror = disk.mirror.chain.active if disk.mirror is not None else None
    left = max(0, job.end - job.cur)
    found = {"name": domain.name, "uuid": domain.uuid, "disk": disk.target}
    found.update(job_result(job))
    found["rate"] = None if rate is None else int(rate)
    found["eta"] = int(left / rate) if rate and not job.ready else None
    found["since"] = record.since if record is not None and record.job == job.type else None
    found["dest"] = None if mirror is None else str(mirror)
    return found
