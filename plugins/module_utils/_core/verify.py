# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prediction against a fresh look.

The law: a prediction that reality contradicts is an error, always; what neither side knows contradicts nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import List, Optional

from .chain import same_places, same_shape
from .model import Disk, Domain, Observed
from .plan import ABORT, DISOWN, SNAPSHOT, Plan, Step
from .render import chain_text


def mismatches(plan: Plan, seen: tuple, with_config: bool = True, only: Optional[str] = None) -> List[str]:
    """One sentence for each contradiction between ``plan.after`` and the guests as they are now; empty when all is well.

    Of a guest only the disks that the plan's steps are about are compared: other runs may work on its other disks.
    ``with_config``: the definitions of the next start as well. ``only``: nothing but that disk.
    """
    found = []
    touched = plan.touched if only is None else frozenset([only])
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
            found.extend(_still_running(plan, expected, actual))
            if with_config:
                found.extend(_configs(expected, actual, plan.settles, touched))
    return found


def disk_results(plan: Plan, now: tuple) -> List[dict]:
    """How far the work on each disk of a plan is, also where an earlier run did it: done, as_before, or other (neither of them)."""
    found = []
    states = {domain.uuid: domain.active for domain in now}
    # A guest that has stopped meanwhile has its disks as they are nevertheless.
    plan = replace(plan, **{when: tuple(replace(one, active=states.get(one.uuid, one.active)) for one in getattr(plan, when)) for when in ("before", "after")})
    for target in sorted(plan.touched.union(plan.about)):
        wrong = mismatches(plan, now, with_config=False, only=target)
        back = mismatches(replace(plan, after=plan.before, settles=True), now, with_config=False, only=target)
        found.append({"disk": target, "result": "done" if not wrong else "as_before" if not back else "other", "msg": "; ".join(wrong)})
    return found


def definitions(plan: Plan, seen: tuple) -> List[str]:
    """One sentence for each definition of a next start that is not as ``plan.after`` has it."""
    now = {domain.uuid: domain for domain in seen}
    pairs = [(expected, now.get(expected.uuid)) for expected in plan.after]
    return [wrong for expected, actual in pairs if actual is not None for wrong in _configs(expected, actual, True, plan.touched)]


def _still_running(plan: Plan, expected: Domain, actual: Domain) -> List[str]:
    """The jobs that were to be ended and run on; some calls of libvirt return before a job is over."""
    ended = [(step, expected.disk(step.disk or ""), actual.disk(step.disk or "")) for step in plan.steps if step.action == ABORT and plan.settles]
    return [
        "the %s job on disk %s of guest %s still runs" % (real.job.type, real.target, actual.name)
        for step, disk, real in ended
        if disk is not None and disk.job is None and real is not None and real.job is not None and real.job.type == step.detail["job"]
    ]


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
        elif not settles and real.job is None and before is not None and _as_before(before.disk(disk.target), real) and not _as_before(disk, real):
            found.append("the job on disk %s of guest %s ended at once without its work, see the log of the guest" % (disk.target, expected.name))
        else:
            found.extend(_disk(expected, disk, real))
    return found


def _configs(expected: Domain, actual: Domain, settles: bool, touched) -> List[str]:
    found = []
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
    elif disk.mirror is not None and (real.mirror is None or real.mirror.chain.places[:1] != disk.mirror.chain.places[:1]):
        found.append("disk %s of guest %s has no mirror to %s, where one was expected" % (disk.target, domain.name, disk.mirror.chain.active))
    elif disk.mirror is not None and disk.mirror.ready == "yes" and real.mirror is not None and real.mirror.ready != "yes":
        found.append("the mirror of disk %s of guest %s is not ready" % (disk.target, domain.name))
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
    return same_places(wanted.places[: len(written)], written.places) and len(written) > 0


def same_disks(one: Domain, two: Domain) -> bool:
    """Are they the same but for what moves by itself, as a job's progress?"""

    def shape(domain: Domain) -> tuple:
        return (domain.active, [(disk.target, disk.chain, disk.mirror) for disk in domain.disks], [(disk.target, disk.chain) for disk in domain.config])

    return shape(one) == shape(two)


def same_as_before(plan: Plan, now: tuple) -> List[str]:
    """What differs, in sentences, between the guests before ``plan`` and after its undo; empty: as it was before."""
    alone = tuple(replace(domain, disks=tuple(replace(disk, mirror=None) for disk in domain.disks)) for domain in plan.before)
    found = mismatches(replace(plan, after=alone, settles=True), now)  # a copy that ran before and is over has changed nothing
    jobs = {(domain.uuid, disk.target): disk.job for domain in plan.before for disk in domain.disks}
    for domain in now:
        for disk in domain.disks:
            if disk.target in plan.touched and disk.job is not None and jobs.get((domain.uuid, disk.target)) is None:
                found.append("a %s job is running on disk %s of guest %s" % (disk.job.type, disk.target, domain.name))
    return found


def still_kept(plan: Plan, now: Observed) -> List[str]:
    """The snapshots that libvirt was to forget and still keeps, or was to keep and does not, in sentences."""
    names = {shot.name for shot in now.snapshots}
    found = ["libvirt still keeps the snapshot %s" % step.detail["name"] for step in plan.steps if step.action == DISOWN and step.detail["name"] in names]
    taken = [step.detail["name"] for step in plan.steps if step.action == SNAPSHOT and step.detail["metadata"]]
    return found + ["libvirt keeps no snapshot %s" % name for name in taken if name not in names]


def needed_again(step: Step, now: Observed) -> List[str]:
    """Who needs the file of a DELETE step by now, in sentences: a job may take a day, and guests come and go meanwhile."""
    path = step.detail["path"]
    places = {("path", path)}
    if path in now.files and now.files[path].real:
        places.add(("path", now.files[path].real))
    found = ["disk %s of guest %s uses it" % (use.disk, use.guest) for use in now.uses if use.place in places]
    return found or ["the chain below %s cannot be read" % image for image in now.unread]
