# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""May this backup begin? Its targets, what it is based on, and the space for it."""

from __future__ import annotations

import posixpath
from typing import Dict, List, Optional, Sequence, Tuple

from ..backups import PUSH, Kept
from ..chain import Layer
from ..errors import Refused
from ..headers import probe_of
from ..model import Disk, Domain, Observed
from . import _backups as backups
from . import _common as common
from . import _dest as destination
from . import _files as files
from ._backup_request import Item, Request

CLUSTER = 64 * 1024  # of the qcow2 images that libvirt makes
TABLE = 512 * 1024 * 1024  # what one cluster of tables tells of
HEAD = 6  # clusters of an empty image


def usable(wanted: Request, domain: Domain, disks: Sequence[Disk], kept: Kept, seen: Observed) -> None:
    """Refuses what cannot be backed up so. Codes: see the functions below."""
    backups.new_enough(domain, seen)
    for disk in disks:
        common.agreed(domain, disk, seen)
        common.no_job(domain, disk)
    if wanted.checkpoint is not None:
        for disk in disks:
            backups.bitmap_disk(domain, disk, "a checkpoint")
        backups.free_name(domain, wanted.checkpoint, disks, kept, seen)
    _base(wanted, domain, disks, kept)
    for item, disk in zip(wanted.items, disks):
        if wanted.mode == PUSH and item.place is not None:
            _target(domain, disk, item.place, seen)
            _backing(domain, disk, item, seen)
    if wanted.mode == PUSH:
        _room(wanted, domain, disks, kept, seen)
    else:
        _scratch(wanted, domain, disks, seen)


def _base(wanted: Request, domain: Domain, disks: Sequence[Disk], kept: Kept) -> None:
    """Refuses (codes no_checkpoint, not_covered, broken_checkpoint) what nothing can be based on."""
    if wanted.since is None:
        return
    found = kept.checkpoint(wanted.since)
    if found is None:
        raise Refused(
            "no_checkpoint",
            "Guest %s has no checkpoint %s, which a backup is to be based on (it has %s): name one of these, or make a full backup."
            % (domain.name, wanted.since, ", ".join(backups.names_of(kept)) or "none"),
        )
    for disk in disks:
        if found.point(disk.target) is None:
            raise Refused(
                "not_covered",
                "The checkpoint %s of guest %s has no bitmap on disk %s, only on %s: make a full backup of that disk."
                % (found.name, domain.name, disk.target, ", ".join(found.targets)),
            )
    backups.broken(domain, found, [disk.target for disk in disks], "make a full backup")


def _target(domain: Domain, disk: Disk, place: Layer, seen: Observed) -> None:
    """Refuses (code exists) a file that is there, and what ``_dest.usable`` does."""
    file = seen.files.get(place.path or "")
    if place.type == "file" and file is not None and file.exists and file.kind in ("file", "other"):
        files.layer_unused(domain, disk, place, seen)
        words = "The target %s of the backup of disk %s of guest %s exists already, and nothing is overwritten: remove it, or choose another path."
        raise Refused("exists", words % (place, disk.target, domain.name))
    destination.usable(domain, disk, place, False, seen)


def _backing(domain: Domain, disk: Disk, item: Item, seen: Observed) -> None:
    """Refuses an earlier backup that is none. Codes: remote_files, missing, wrong_format, in_use, size_differs."""
    if item.backing is None:
        return
    path, format_ = item.backing
    what = "The backing %s of the backup of disk %s of guest %s to %s" % (path, disk.target, domain.name, item.place)
    if not seen.local:
        raise Refused("remote_files", "%s cannot be written down through a remote URI: run this task on the guest's host, or leave backing out." % what)
    for use in seen.uses:
        if use.place in files.places_of(path, seen):
            raise Refused("in_use", "%s is a layer of disk %s of guest %s, which changes it: name the earlier backup." % (what, use.disk, use.guest))
    probe = seen.probes.get((path, format_))
    if probe is None or probe.problem == "missing":
        raise Refused("missing", "%s does not exist: name the earlier backup that this one stands on." % what)
    if probe.problem is not None or probe.virtual is None or probe.magic not in (None if format_ == "raw" else format_, format_):
        raise Refused("wrong_format", "%s is no image of the format %s: correct backing_format, or name another backup." % (what, format_))
    if disk.capacity is not None and probe.virtual > disk.capacity:
        raise Refused("size_differs", "%s has %d bytes, and the disk has %d: it is no earlier backup of it." % (what, probe.virtual, disk.capacity))


def _scratch(wanted: Request, domain: Domain, disks: Sequence[Disk], seen: Observed) -> None:
    """Refuses a scratch file or a socket that exists (code exists), or where there is no such directory (code no_parent)."""
    parts = wanted.backup(domain).parts
    places = [("scratch file %s" % part.place, part.place.path or "", disk) for part, disk in zip(parts, disks) if part.place is not None]
    places += [("socket %s" % value, value, disks[0]) for key, value in wanted.server if key == "socket"]
    for words, path, disk in places:
        file = seen.files.get(path)
        what = "The %s of the backup of disk %s of guest %s" % (words, disk.target, domain.name)
        if file is None:
            continue
        if file.parent != "dir":
            raise Refused("no_parent", "%s is in %s, which is not a directory: create it first." % (what, posixpath.dirname(path)))
        if file.exists:
            raise Refused("exists", "%s exists already, as after a QEMU that was killed: remove it if nobody has it open, or choose another." % what)


def _room(wanted: Request, domain: Domain, disks: Sequence[Disk], kept: Kept, seen: Observed) -> None:
    """Refuses (code no_space) file systems, and devices, that are too small. What the guest writes meanwhile does not count: it is not backed up."""
    found = kept.checkpoint(wanted.since)
    by_system: Dict[object, Tuple[int, int, List[str]]] = {}
    for item, disk in zip(wanted.items, disks):
        point = found.point(disk.target) if found is not None else None
        needed = _needed(kept.needed.get(disk.target), point.size if point is not None else None, disk.capacity or 0)
        place, file = item.place, seen.files.get(item.place.path or "") if item.place is not None else None
        if place is None or needed is None or file is None:
            continue
        probe = probe_of(place, seen.probes)
        if place.type == "block" and place.format != "raw" and probe is not None and probe.physical is not None and needed > probe.physical:
            words = "The target %s of the backup of disk %s of guest %s has %d bytes, and it needs %d: make the device bigger."
            raise Refused("no_space", words % (place, disk.target, domain.name, probe.physical, needed))
        if place.type == "file" and file.free is not None:
            folder = seen.files.get(posixpath.dirname(place.path or ""))
            key = folder.device if folder is not None and folder.exists else posixpath.dirname(place.path or "")
            total, free, names = by_system.get(key, (0, file.free, []))
            by_system[key] = (total + needed, free, [*names, "%s of disk %s" % (place, disk.target)])
    for total, free, names in by_system.values():
        if total > free:
            words = "The backup of guest %s to %s needs %d bytes, and the file system there has %d left: make room, or choose another place."
            raise Refused("no_space", words % (domain.name, " and ".join(names), total, free))


def _needed(whole: Optional[int], dirty: Optional[int], capacity: int) -> Optional[int]:
    """What a target takes, in bytes: of an incremental one what was written since, and its tables; never more than a full one."""
    if dirty is None:
        return whole
    part = dirty + (capacity // TABLE + HEAD) * CLUSTER
    return part if whole is None else min(whole, part)
