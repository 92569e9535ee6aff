# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of block_backup: a push to files or devices, or a pull that is served over NBD; and the end of either."""

from __future__ import annotations

from dataclasses import replace
from typing import List, Optional, Sequence, Tuple

from ..backups import BROKEN, PULLED, PUSH, Backup, Kept, lines, same_backup
from ..errors import Busy
from ..headers import probe_of
from ..model import BACKUP, Disk, Domain, Observed, Record, with_disk
from ..plan import ABORT, BEGIN, Plan, Step
from . import _backup_request
from . import _backup_rules as rules
from . import _backups as backups
from . import _common as common
from ._backup_ends import ends, finish, forgotten, made, result
from ._backup_request import ABSENT, Request

CHANGES = True
IMAGES = False
PER_DISK = False
MORE = {"backup": None}
DONE, FAILED, NOT_KNOWN = "done", "failed", "not known"
request = _backup_request.request


def plan(wanted: Request, seen: Observed) -> Plan:
    """The steps. Raises Refused or Busy, naming the guest and the disk."""
    domain = common.the_guest(wanted.selection, seen)
    kept = backups.kept_of(domain, seen)
    if wanted.state == ABSENT:
        return _absent(wanted, domain, kept, seen)
    disks = [common.workable(wanted.selection, item.disk, seen, "a backup", wanted.waiting)[1] for item in wanted.items]
    backup = wanted.backup(domain)
    if kept.running is not None:
        return _running(wanted, domain, disks, backup, kept, seen)
    if wanted.mode == PUSH:
        records = _records(domain, backup)
        if records:
            return _over(wanted, domain, disks, backup, records, kept, seen)
        common.may_start(wanted.waiting, domain, disks[0], BACKUP)
        if _there(wanted, disks, kept, seen):
            told = _told(domain, kept, None, backup)[1]
            return Plan((domain,), (domain,), about=backup.targets, facts={"backup": result(wanted, backup, domain, seen)}, told=(told, told))
    return _begin(wanted, domain, disks, backup, kept, seen)


def _told(domain: Domain, kept: Kept, checkpoint: Optional[str], backup: Optional[Backup]) -> Tuple[str, str]:
    """The lines for --diff, before and after."""
    names = backups.names_of(kept)
    more = () if checkpoint is None or checkpoint in names else (checkpoint,)
    return lines(domain.name, names, backups.running_words(kept.running)), lines(domain.name, (*names, *more), backups.running_words(backup))


def _records(domain: Domain, backup: Backup) -> List[Record]:
    """The notes of this very backup, where an earlier run, or an earlier phase of this one, has begun it; none where any is missing."""
    pairs = [(domain.record(part.disk), part) for part in backup.parts]
    ours = [record for record, part in pairs if record is not None and record.job == BACKUP and record.layers == str(part.place)]
    return ours if len(ours) == len(pairs) else []


def _running(wanted: Request, domain: Domain, disks: Sequence[Disk], backup: Backup, kept: Kept, seen: Observed) -> Plan:
    """A backup runs: it is adopted if it is the one that is asked for."""
    if kept.running is None or not same_backup(backup, kept.running):
        backups.idle(domain, kept, backup.targets)
    if wanted.checkpoint is not None and kept.checkpoint(wanted.checkpoint) is None:
        raise Busy(
            "foreign_job",
            "The backup of disk %s of guest %s that is asked for runs already, but the checkpoint %s was not created with it: let it end, or end it with "
            "state absent, then run this one." % (", ".join(backup.targets), domain.name, wanted.checkpoint),
        )
    facts = {"backup": result(wanted, backup, domain, seen)}
    told = _told(domain, kept, None, backup)
    if wanted.mode == PULLED or not wanted.waiting.waits:
        return Plan((domain,), (domain,), about=backup.targets, facts=facts, told=told, settles=False)
    steps = ends(wanted, domain, backup, _records(domain, backup), facts["backup"], seen)
    return Plan((domain,), (_without_jobs(domain, backup),), steps, about=backup.targets, facts=facts, told=told)


def _without_jobs(domain: Domain, backup: Backup) -> Domain:
    for target in backup.targets:
        domain = with_disk(domain, target, job=None)
    return domain


def _over(wanted: Request, domain: Domain, disks: Sequence[Disk], backup: Backup, records: List[Record], kept: Kept, seen: Observed) -> Plan:
    """A push that was begun before is over: it is finished, or what is left of it is taken away."""
    outcome = _outcome(backup, kept, seen)
    if outcome == DONE:
        facts = {"backup": dict(result(wanted, backup, domain, seen), bytes=kept.last.total if kept.last is not None else None)}
        steps = finish(wanted, domain, backup, facts["backup"], seen)
        return Plan((domain,), (domain,), steps, about=backup.targets, facts=facts, told=_told(domain, kept, None, backup))
    left = made(records)["checkpoint"] if outcome == FAILED else None
    cleaning: Tuple[Step, ...] = ()
    if left is not None and kept.checkpoint(left) is not None:
        cleaning = (backups.deletion(domain, left),)
        kept = replace(kept, checkpoints=tuple(one for one in kept.checkpoints if one.name != left))
    if wanted.waiting.starts:
        begun = _begin(wanted, domain, disks, backup, kept, seen)
        return replace(begun, steps=cleaning + begun.steps)
    reason = kept.last.message if kept.last is not None and kept.last.message else "as with full or broken storage, or by somebody else"
    words = "The backup of disk %s of guest %s ended without its work (%s): nothing of it is kept, run the whole task again."
    failing = ("job_failed", words % (", ".join(backup.targets), domain.name, reason.rstrip(".")))
    if outcome == NOT_KNOWN:
        words = "How the backup of disk %s of guest %s ended is not known: look at its targets and at its checkpoint, then run the whole task again."
        failing = ("job_failed", words % (", ".join(backup.targets), domain.name))
    told = _told(domain, kept, None, None)
    return Plan((domain,), (domain,), cleaning + forgotten(domain, backup.targets), failing=failing, about=backup.targets, told=told)


def _outcome(backup: Backup, kept: Kept, seen: Observed) -> str:
    """What became of a push that is over. libvirt removes the files of one that failed, and forgets how it ended when its daemon is restarted."""
    places = [part.place for part in backup.parts if part.place is not None and part.place.type == "file"]
    there = [place for place in places if place.path in seen.files and seen.files[place.path].exists]
    if kept.last is not None and not kept.last.success:
        return NOT_KNOWN if there else FAILED
    if not seen.local:
        return DONE if kept.last is not None else NOT_KNOWN
    known = kept.last is not None or len(places) == len(backup.parts)
    return DONE if known and len(there) == len(places) else NOT_KNOWN


def _there(wanted: Request, disks: Sequence[Disk], kept: Kept, seen: Observed) -> bool:
    """Was this backup done before? So it was where its checkpoint exists, with just these disks, and every target is an image as asked for.

    Not where the bitmaps of the checkpoint are broken: a QEMU that died in the push leaves both, and an image that is not whole.
    """
    found = kept.checkpoint(wanted.checkpoint)
    targets = [disk.target for disk in disks]
    if found is None or sorted(found.targets) != sorted(targets) or not seen.local:
        return False
    if any(found.condition(target, targets) == BROKEN for target in targets):
        return False
    for item in wanted.items:
        probe = probe_of(item.place, seen.probes) if item.place is not None else None
        if probe is None or probe.problem is not None or probe.virtual is None:
            return False
        if item.backing is not None and (probe.image is None or probe.image.backing_path != item.backing[0]):
            return False
    return True


def _begin(wanted: Request, domain: Domain, disks: Sequence[Disk], backup: Backup, kept: Kept, seen: Observed) -> Plan:
    common.may_start(wanted.waiting, domain, disks[0], BACKUP)
    rules.usable(wanted, domain, disks, kept, seen)
    push = wanted.mode == PUSH
    creation = None if wanted.checkpoint is None else backups.creation(wanted.checkpoint, disks, domain, None)
    records = [_record(wanted, disk, backup, number) for number, disk in enumerate(disks)] if push else []
    others = tuple(disk.target for disk in domain.disks if disk.target not in backup.targets)
    facts = {"backup": result(wanted, backup, domain, seen)}
    detail = {"backup": backup, "others": others, "creation": creation, "records": tuple(records), "guest": domain.name}
    begin = Step(BEGIN, None, {**detail, **made(records), "checkpoint": wanted.checkpoint})
    more = ends(wanted, domain, backup, records, facts["backup"], seen) if push and wanted.waiting.waits else ()
    told = _told(domain, kept, wanted.checkpoint, backup)
    return Plan(
        (domain,), (domain,), (begin, *more), warnings=_warnings(wanted, domain, backup, seen), settles=bool(more), about=backup.targets, facts=facts, told=told
    )


def _record(wanted: Request, disk: Disk, backup: Backup, number: int) -> Record:
    place = backup.parts[number].place
    created = place.path if place is not None and place.type == "file" else None
    return replace(common.record_for(disk, BACKUP), layers=str(place), creates=created, checkpoint=wanted.checkpoint)


def _warnings(wanted: Request, domain: Domain, backup: Backup, seen: Observed) -> Tuple[str, ...]:
    if wanted.since is None or wanted.mode == PULLED or seen.local:
        return ()
    words = "libvirt lets the headers of %s name the images of guest %s as what is below them, which is wrong as soon as the guest writes: put each on the "
    words += "earlier backup with qemu-img rebase -u before it is read."
    return (words % (", ".join(str(part.place) for part in backup.parts), domain.name),)


def _absent(wanted: Request, domain: Domain, kept: Kept, seen: Observed) -> Plan:
    """End the backup that runs. One of other disks, or to other targets, than those that are named is left alone."""
    common.no_orphan(domain, seen)
    noted = [record for record in domain.records if record.job == BACKUP]
    if not domain.active:
        return Plan((domain,), (domain,))  # what is off has no backup
    running = kept.running
    if running is None:
        told = _told(domain, kept, None, None)
        return Plan((domain,), (domain,), forgotten(domain, [record.disk for record in noted]), told=told)
    for item in wanted.items:
        disk = common.the_disk(domain, item.disk)
        places = [part.place.place for part in running.parts if part.disk == disk.target and part.place is not None]
        if disk.target not in running.targets or (item.place is not None and item.place.place not in places):
            backups.idle(domain, kept, [disk.target])
    push = running.mode == PUSH
    first = running.targets[0]
    left = made([record for record in noted if record.disk in running.targets])["checkpoint"] if push else None
    steps: Tuple[Step, ...] = (Step(ABORT, first, {"job": BACKUP, "later": False, "unseen": False}),)
    remaining = kept
    if left is not None and kept.checkpoint(left) is not None:
        steps += (backups.deletion(domain, left),)
        remaining = replace(kept, checkpoints=tuple(one for one in kept.checkpoints if one.name != left))
    steps += forgotten(domain, [record.disk for record in noted if record.disk != first])
    text = "The backup of guest %s is ended on all its disks, and libvirt removes what it has written so far."
    told = (_told(domain, kept, None, None)[0], _told(domain, remaining, None, None)[1])
    warnings = (text % domain.name,) if push else ()
    return Plan((domain,), (_without_jobs(domain, running),), steps, warnings=warnings, about=running.targets, told=told)
