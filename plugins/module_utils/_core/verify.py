# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prediction against a fresh look.

The law: a prediction that reality contradicts is an error, always; what neither side knows contradicts nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import List

from .chain import same_shape
from .model import Disk, Domain, Observed
from .plan import Plan, Step
from .render import chain_text


def mismatches(plan: Plan, seen: tuple) -> List[str]:
    """One sentence for each contradiction between ``plan.after`` and the guests as they are now; empty when all is well.

    Of a guest only the disks that the plan's steps are about are compared: other runs may work on its other disks.
    """
    found = []
    touched = plan.touched
    now = {domain.uuid: domain for domain in seen}
    before = {domain.uuid: domain for domain in plan.before}
    for expected in plan.after:
        actual = now.get(expected.uuid)
        if actual is None:
            found.append("guest %s is not there any more" % expected.name)
        elif actual.active != expected.active:
            found.append("guest %s is %s" % (expected.name, actual.state))
        else:
            found.extend(_domain(expected, actual, before.get(expected.uuid), plan.settles, touched))
    return found


def _domain(expected: Domain, actual: Domain, before, settles: bool, touched) -> List[str]:
    found = []
    for disk in expected.disks:
        real = actual.disk(disk.target)
        if disk.target not in touched:
            continue
        if real is None:
            found.append("disk %s of guest %s is not there any more" % (disk.target, expected.name))
        elif not settles and real.job is not None and before is not None and _as_before(before.disk(disk.target), real):
            continue  # not waited for: still on its way
        else:
            found.extend(_disk(expected, disk, real))
    for disk in expected.config:
        live = actual.disk(disk.target)
        if disk.target in touched and (settles or live is None or live.job is None):
            found.extend(_config(expected, disk, actual.config_disk(disk.target)))
    return found


def _as_before(before: Disk, real: Disk) -> bool:
    return same_shape(before.chain, real.chain)


def _disk(domain: Domain, disk: Disk, real: Disk) -> List[str]:
    found = []
    if not same_shape(disk.chain, real.chain):
        found.append(
            "disk %s of guest %s has the chain %s, where %s was expected"
            % (disk.target, domain.name, chain_text(real.chain), chain_text(disk.chain))
        )
    if real.mirror is not None and disk.mirror is None and real.job is None:
        # What a daemon leaves that died during a pivot: QEMU may write to the mirror already (libvirt 9.0 to 12.8).
        found.append(
            "a mirror (%s) is left without a job on disk %s of guest %s, find out which image QEMU writes to before the guest is restarted"
            % (real.mirror.job, disk.target, domain.name)
        )
    return found


def _config(domain: Domain, disk: Disk, real) -> List[str]:
    """The next start's chain may be written down less far than today's, but it must not say anything else."""
    if real is None:
        return ["disk %s is not in the persistent definition of guest %s any more" % (disk.target, domain.name)]
    if covers(real.chain, disk.chain):
        return []
    return [
        "the persistent definition of guest %s gives disk %s the chain %s, where %s was expected"
        % (domain.name, disk.target, chain_text(real.chain), chain_text(disk.chain))
    ]


def covers(written, wanted) -> bool:
    """Is ``written`` the same chain as ``wanted``, or a beginning of it whose rest libvirt will find in the headers?"""
    if written.ends or len(written) >= len(wanted):
        return same_shape(wanted, written)
    return written.places == wanted.places[: len(written)] and len(written) > 0


def same_as_before(plan: Plan, now: tuple) -> List[str]:
    """What differs, in sentences, between the guests before ``plan`` and after its undo; empty: as it was before."""
    found = mismatches(replace(plan, after=plan.before, settles=True), now)
    jobs = {(domain.uuid, disk.target): disk.job for domain in plan.before for disk in domain.disks}
    for domain in now:
        for disk in domain.disks:
            if disk.target in plan.touched and disk.job is not None and jobs.get((domain.uuid, disk.target)) is None:
                found.append("a %s job is running on disk %s of guest %s" % (disk.job.type, disk.target, domain.name))
    return found


def needed_again(step: Step, now: Observed) -> List[str]:
    """Who needs the file of a DELETE step by now, in sentences: a job may take a day, and guests come and go meanwhile."""
    path = step.detail["path"]
    places = {("path", path)}
    if path in now.files and now.files[path].real:
        places.add(("path", now.files[path].real))
    found = ["disk %s of guest %s uses it" % (use.disk, use.guest) for use in now.uses if use.place in places]
    return found or ["the chain below %s cannot be read" % image for image in now.unread]
