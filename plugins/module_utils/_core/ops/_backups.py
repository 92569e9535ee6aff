# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What checkpoints and backups both ask: can a disk have a bitmap, what is a checkpoint good for, is a backup running."""

from __future__ import annotations

import re
from typing import Iterable, List, Optional, Sequence, Tuple

from ..backups import BROKEN, NOTHING_KEPT, Backup, Checkpoint, Kept
from ..errors import Busy, LiveStorageError, Refused
from ..headers import probe_of
from ..model import BACKUP, Disk, Domain, Observed
from ..plan import CHECKPOINT, UNCHECK, Step
from . import _common as common

_NAME = re.compile(r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")  # libvirt's own schema
SINCE = (7, 6, 0)  # the libvirt that could do all of it


def checked_name(name: Optional[str], option: str) -> Optional[str]:
    """Refuses (code bad_name) what libvirt takes for no name of a checkpoint."""
    if name is not None and not _NAME.match(name):
        words = "The option %s is %r, which libvirt takes for no name: use letters, digits, hyphens, underscores and dots, and no dot at its beginning."
        raise Refused("bad_name", words % (option, name))
    return name


def kept_of(domain: Domain, seen: Observed) -> Kept:
    return seen.kept.get(domain.uuid, NOTHING_KEPT)


def new_enough(domain: Domain, seen: Observed) -> None:
    """Refuses (code too_old) a libvirt that has no incremental backups."""
    if seen.versions.libvirt is not None and seen.versions.libvirt < SINCE:
        version = ".".join(map(str, seen.versions.libvirt))
        raise Refused("too_old", "Checkpoints and backups of guest %s need libvirt 7.6, and this is %s: update it." % (domain.name, version))


def bitmap_disk(domain: Domain, disk: Disk, work: str) -> Disk:
    """Refuses a disk that can have no checkpoint (codes disk_kind, not_qcow2)."""
    common.writable_disk(domain, disk, work)
    if disk.chain[0].format != "qcow2":
        raise Refused(
            "not_qcow2",
            "Disk %s of guest %s is %s, and only a qcow2 image keeps the bitmap of a checkpoint: convert it with datafile_convert, which needs no copy of a "
            "raw image." % (disk.target, domain.name, disk.chain[0].format or "of an unknown format"),
        )
    return disk


def bitmap_disks(domain: Domain) -> List[Disk]:
    """Every disk that can have a checkpoint."""
    found = []
    for disk in domain.disks:
        try:
            found.append(bitmap_disk(domain, disk, "a checkpoint"))
        except LiveStorageError:
            continue
    return found


def no_other_job(domain: Domain, disk: Disk) -> None:
    """Raises Busy (code foreign_job) while a job other than a backup runs on the disk: its end may give the disk another image."""
    if disk.job is None or disk.job.type != BACKUP:
        common.no_job(domain, disk)


def idle(domain: Domain, kept: Kept, wanted: Sequence[str]) -> None:
    """Raises Busy (code foreign_job) while a backup runs: libvirt would let the next one wait for 30 seconds, and then fail."""
    if kept.running is None:
        return
    raise Busy(
        "foreign_job",
        "Guest %s has a backup running already (%s), and libvirt does only one at a time: let it end, or end it with state absent, then run this of disk %s."
        % (domain.name, kept.running, ", ".join(wanted)),
    )


def free_name(domain: Domain, name: str, disks: Sequence[Disk], kept: Kept, seen: Observed) -> None:
    """Refuses the name of a new checkpoint that a checkpoint, or a bitmap that belongs to none, has (codes name_taken, bitmap_taken)."""
    if kept.checkpoint(name) is not None:
        raise Refused("name_taken", "Guest %s has a checkpoint %s already: choose another name, or delete it first." % (domain.name, name))
    for disk in disks:
        probe = probe_of(disk.chain[0], seen.probes)
        if probe is not None and probe.image is not None and name in [bitmap for bitmap, dummy in probe.image.bitmaps]:
            raise Refused(
                "bitmap_taken",
                "The image %s of disk %s of guest %s has a bitmap %s that belongs to no checkpoint: choose another name, or remove it with qemu-img bitmap "
                "while the guest is off." % (disk.chain[0], disk.target, domain.name, name),
            )


def broken(domain: Domain, one: Checkpoint, disks: Iterable[str], advice: str) -> None:
    """Refuses (code broken_checkpoint) a checkpoint whose bitmap QEMU has not, or takes for inconsistent."""
    targets = [disk.target for disk in domain.disks]
    for target in disks:
        if one.condition(target, targets) == BROKEN:
            raise Refused(
                "broken_checkpoint",
                "The bitmap of the checkpoint %s on disk %s of guest %s, or of one after it, is missing or inconsistent, as after a QEMU that was killed: %s."
                % (one.name, target, domain.name, advice),
            )


def creation(name: str, disks: Sequence[Disk], domain: Domain, description: Optional[str]) -> dict:
    """What a step needs that creates a checkpoint."""
    targets = tuple(disk.target for disk in disks)
    return {"name": name, "targets": targets, "others": tuple(disk.target for disk in domain.disks if disk.target not in targets), "description": description}


def checkpoint_step(detail: dict) -> Step:
    return Step(CHECKPOINT, None, detail)


def deletion(domain: Domain, name: str, metadata_only: bool = False) -> Step:
    return Step(UNCHECK, None, {"name": name, "metadata_only": metadata_only, "guest": domain.name})


def point_results(one: Optional[Checkpoint]) -> List[dict]:
    return [] if one is None else [{"disk": point.disk, "bitmap": point.bitmap, "size": point.size} for point in one.points]


def as_made(detail: dict) -> List[dict]:
    """The disks of a checkpoint that is to be created: libvirt names the bitmap like the checkpoint."""
    return [{"disk": target, "bitmap": detail["name"], "size": None} for target in detail["targets"]]


def running_words(running: Optional[Backup]) -> Optional[str]:
    return None if running is None else str(running)


def names_of(kept: Kept) -> Tuple[str, ...]:
    return tuple(one.name for one in kept.checkpoints)
