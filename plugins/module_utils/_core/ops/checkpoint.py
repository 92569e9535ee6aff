# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of checkpoint: create one (present) or delete one, whose bitmap is merged into that of the one before (absent)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Tuple

from ..backups import BROKEN, Asked, Checkpoint, Kept, Point, lines
from ..errors import Refused
from ..headers import probe_of
from ..model import Disk, Domain, Needs, Observed, Selection
from ..plan import Plan
from . import _backups as backups
from . import _common as common
from ._offline import DEEPEST

CHANGES = True
IMAGES = False
PER_DISK = False
MORE = {"checkpoint": None}
PRESENT, ABSENT = "present", "absent"


@dataclass(frozen=True)
class Request:
    selection: Selection
    name: str
    state: str
    disks: Optional[Tuple[str, ...]]
    description: Optional[str]
    metadata_only: bool

    @property
    def needs(self) -> Needs:
        return Needs(self.selection, headers=DEEPEST, doubts=True, versions=True, kept=Asked(dirty=True))


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused for what is wrong in itself."""
    state, disks = params["state"], params["disks"]
    if disks is not None and not disks:
        raise Refused("no_disks", "The option disks is an empty list: name a disk, or leave it out for every disk that can have a checkpoint.")
    if params["metadata_only"] and state != ABSENT:
        raise Refused("metadata_only", "The option metadata_only is for the state absent, not for %s: leave it out." % state)
    name = backups.checked_name(params["checkpoint_name"], "checkpoint_name") or ""
    named = None if disks is None else tuple(disks)
    return Request(common.one_guest(params), name, state, named, params["description"], params["metadata_only"])


def plan(wanted: Request, seen: Observed) -> Plan:
    """The steps. Raises Refused or Busy, naming the guest and the disk."""
    domain = common.the_guest(wanted.selection, seen)
    kept = backups.kept_of(domain, seen)
    return _present(wanted, domain, kept, seen) if wanted.state == PRESENT else _absent(wanted, domain, kept, seen)


def _present(wanted: Request, domain: Domain, kept: Kept, seen: Observed) -> Plan:
    found = kept.checkpoint(wanted.name)
    domain = common.running_guest(wanted.selection, seen) if found is None or domain.active else domain
    disks = _disks(wanted, domain)
    if found is not None:
        return _there(wanted, domain, found, disks, kept)
    backups.new_enough(domain, seen)
    if not disks:
        text = "Guest %s has no disk that can have a checkpoint: it needs one with a qcow2 image that it may write to, as datafile_convert makes of a raw one."
        raise Refused("no_disks", text % domain.name)
    for disk in disks:
        common.agreed(domain, disk, seen)
        backups.no_other_job(domain, disk)
    backups.free_name(domain, wanted.name, disks, kept, seen)
    detail = backups.creation(wanted.name, disks, domain, wanted.description)
    parent = kept.checkpoints[-1].name if kept.checkpoints else None
    facts = {"checkpoint": _result(wanted.name, backups.as_made(detail), parent, None)}
    names = backups.names_of(kept)
    told = (lines(domain.name, names), lines(domain.name, (*names, wanted.name)))
    return Plan((domain,), (domain,), (backups.checkpoint_step(detail),), about=detail["targets"], facts=facts, told=told)


def _disks(wanted: Request, domain: Domain) -> List[Disk]:
    """The disks that are meant. Raises Refused (codes no_disk, ambiguous_disk, disk_kind, not_qcow2)."""
    if wanted.disks is None:
        return backups.bitmap_disks(domain)
    found = [common.the_disk(domain, one) for one in wanted.disks]
    return [backups.bitmap_disk(domain, disk, "a checkpoint") for disk in dict.fromkeys(found)]


def _there(wanted: Request, domain: Domain, found: Checkpoint, disks: List[Disk], kept: Kept) -> Plan:
    """The checkpoint exists: is it the one that is asked for, and can a backup be based on it?"""
    targets = [disk.target for disk in disks]
    if wanted.disks is not None and sorted(targets) != sorted(found.targets):
        raise Refused(
            "other_disks",
            "The checkpoint %s of guest %s is of the disks %s, not of %s: choose another name, or delete it first."
            % (found.name, domain.name, ", ".join(found.targets), ", ".join(targets)),
        )
    advice = "delete it (state absent), create it again, and let the next backup be a full one"
    backups.broken(domain, found, found.targets, advice)
    missing = [target for target in targets if target not in found.targets]
    text = "The checkpoint %s of guest %s is older than its disks %s, or was created without them: a backup of these cannot be based on it."
    warnings = (text % (found.name, domain.name, ", ".join(missing)),) if missing else ()
    facts = {"checkpoint": _result(found.name, backups.point_results(found), found.parent, found.created)}
    told = lines(domain.name, backups.names_of(kept))
    return Plan((domain,), (domain,), warnings=warnings, about=found.targets, facts=facts, told=(told, told))


def _absent(wanted: Request, domain: Domain, kept: Kept, seen: Observed) -> Plan:
    found = kept.checkpoint(wanted.name)
    names = backups.names_of(kept)
    before = lines(domain.name, names)
    if found is None:
        return Plan((domain,), (domain,), told=(before, before))
    if not domain.active and not wanted.metadata_only:
        raise Refused(
            "not_running",
            "Guest %s is not running (%s), and libvirt deletes the checkpoint %s only while it runs: start it first, or set metadata_only, which leaves "
            "the bitmaps in the images." % (domain.name, domain.state, found.name),
        )
    facts = {"checkpoint": _result(found.name, backups.point_results(found), found.parent, found.created)}
    after = lines(domain.name, [name for name in names if name != found.name])
    step = backups.deletion(domain, found.name, wanted.metadata_only or (domain.active and _gone(domain, found, seen)))
    about = tuple(target for target in found.targets if domain.disk(target) is not None)
    return Plan((domain,), (domain,), (step,), warnings=_losses(wanted, domain, found, kept), about=about, facts=facts, told=(before, after))


def _gone(domain: Domain, found: Checkpoint, seen: Observed) -> bool:
    """Has it no bitmap left at all? libvirt (9.0) deletes none then, and confuses its list. Refuses (code bitmap_missing) one that has some of them."""
    targets = [disk.target for disk in domain.disks]
    lost = [point for point in found.points if found.condition(point.disk, targets) == BROKEN and not _in_headers(domain.disk(point.disk), point, seen)]
    there = [point.disk for point in found.points if point not in lost and point.disk in targets]
    if lost and there:
        raise Refused(
            "bitmap_missing",
            "The checkpoint %s of guest %s has no bitmap any more on disk %s, but on %s, and libvirt deletes none of them then: set metadata_only, and remove "
            "that with qemu-img bitmap while the guest is off." % (found.name, domain.name, lost[0].disk, ", ".join(there)),
        )
    return bool(lost)


def _in_headers(disk: Optional[Disk], point: Point, seen: Observed) -> bool:
    """Does an image of the disk have that bitmap? Where no header can be read, libvirt is to find out."""
    images = [probe.image for probe in (probe_of(layer, seen.probes) for layer in (disk.chain.layers if disk is not None else ())) if probe is not None]
    known = [image for image in images if image is not None]
    return not known or any(point.bitmap == name for image in known for name, dummy in image.bitmaps)


def _losses(wanted: Request, domain: Domain, found: Checkpoint, kept: Kept) -> Tuple[str, ...]:
    """What is not as it was before, beside the checkpoint."""
    if wanted.metadata_only:
        text = "Only libvirt forgets the checkpoint %s of guest %s: its bitmaps stay in the images of %s, where they take time with each write."
        return (text % (found.name, domain.name, ", ".join(found.targets)),)
    targets = [disk.target for disk in domain.disks]
    lost = [target for target in found.targets if found.condition(target, targets) == BROKEN]
    if lost:
        text = "The bitmap of the checkpoint %s, or of one after it, is missing or inconsistent on disk %s of guest %s: nothing of it is merged."
        return (text % (found.name, ", ".join(lost), domain.name),)
    return ()


def _result(name: str, disks: List[dict], parent: Optional[str], created: Optional[int]) -> dict:
    return {"name": name, "parent": parent, "created": created, "disks": disks}
