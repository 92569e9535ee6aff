# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Checkpoints and backups of a guest, as values.

The law: what libvirt itself says of a backup that runs is what it is; our note only adds what libvirt does not keep. A bitmap of which
libvirt tells no size in a running guest is missing or broken: nothing may be based on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Iterable, List, Mapping, Optional, Tuple

from .chain import Layer, Pairs

PUSH, PULLED = "push", "pull"
VALID, BROKEN, UNKNOWN, DETACHED = "valid", "broken", "unknown", "detached"


@dataclass(frozen=True)
class Point:
    """A checkpoint on one disk: its bitmap, and the bytes that were written since (None: not asked for, or libvirt tells none)."""

    disk: str
    bitmap: str
    size: Optional[int] = field(default=None, compare=False)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that libvirt keeps. ``created`` in seconds of Unix time; ``sized``: it was asked how much was written since."""

    name: str
    points: Tuple[Point, ...] = ()
    parent: Optional[str] = None
    created: Optional[int] = None
    description: Optional[str] = None
    sized: bool = field(default=False, compare=False)

    @property
    def targets(self) -> Tuple[str, ...]:
        return tuple(point.disk for point in self.points)

    def point(self, target: str) -> Optional[Point]:
        return next((point for point in self.points if point.disk == target), None)

    def condition(self, target: str, targets: Iterable[str]) -> str:
        """Can a backup be based on it, of a guest with the disks ``targets``?"""
        point = self.point(target)
        if target not in targets or point is None:
            return DETACHED
        if not self.sized:
            return UNKNOWN
        return BROKEN if point.size is None else VALID


@dataclass(frozen=True)
class Part:
    """A disk in a backup. ``place`` is its target (push) or its scratch file (pull); ``since`` the checkpoint that it is based on (None: all of it)."""

    disk: str
    place: Optional[Layer] = None
    since: Optional[str] = None
    export: Optional[str] = None
    bitmap: Optional[str] = None


@dataclass(frozen=True)
class Backup:
    """A backup that runs, or is to run. ``server`` is where the disks of a pull are served, in the words of libvirt's ``<server>``."""

    mode: str
    parts: Tuple[Part, ...] = ()
    server: Pairs = ()

    @property
    def targets(self) -> Tuple[str, ...]:
        return tuple(part.disk for part in self.parts)

    def __str__(self) -> str:
        words = [("%s to %s" if self.mode == PUSH else "%s with the scratch file %s") % (part.disk, part.place) for part in self.parts]
        since = sorted({"since %s" % part.since if part.since else "of everything" for part in self.parts})
        return "%s %s: %s" % (self.mode, " and ".join(since), ", ".join(words))


@dataclass(frozen=True)
class Ended:
    """How the last backup of a guest ended. ``total`` in bytes; ``message`` is QEMU's own."""

    success: bool
    total: int = 0
    message: Optional[str] = None


Measure = Callable[..., Iterable[Tuple[str, Tuple[Layer, ...], str]]]


@dataclass(frozen=True)
class Asked:
    """What is to be seen of it: ``dirty``: how much was written since each checkpoint, which libvirt only tells of a running guest;
    ``measure`` names, of a guest, (disk, layers, format): what an image of that format needs for what they hold.
    """

    dirty: bool = False
    measure: Optional[Measure] = None


@dataclass(frozen=True)
class Kept:
    """What was seen of the checkpoints and backups of a guest. ``needed`` is in bytes, by disk; what could not be measured is not there."""

    checkpoints: Tuple[Checkpoint, ...] = ()
    running: Optional[Backup] = None
    last: Optional[Ended] = None
    needed: Mapping[str, int] = field(default_factory=dict, compare=False)

    def checkpoint(self, name: Optional[str]) -> Optional[Checkpoint]:
        return next((one for one in self.checkpoints if one.name == name), None)


NOTHING_KEPT = Kept()


def same_backup(one: Backup, two: Backup) -> bool:
    """Are they the same, as far as both say it? (A port or a name that libvirt chose by itself is any.)"""
    if one.mode != two.mode or sorted(one.targets) != sorted(two.targets) or dict(one.server) != dict(two.server):
        return False
    others = {part.disk: part for part in two.parts}
    return all(_same_part(part, others[part.disk]) for part in one.parts)


def _same_part(one: Part, two: Part) -> bool:
    places = [None if part.place is None else (part.place.place, part.place.format) for part in (one, two)]
    return places[0] == places[1] and one.since == two.since and one.export == two.export and one.bitmap == two.bitmap


def lines(name: str, checkpoints: Iterable[str], running: Optional[str] = None) -> str:
    """The checkpoints of a guest and its backup, for --diff."""
    found: List[str] = ["guest %s, checkpoint %s" % (name, one) for one in checkpoints]
    found += ["guest %s, %s" % (name, running)] if running else []
    return "".join(line + "\n" for line in found)
