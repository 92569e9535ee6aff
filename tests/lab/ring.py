# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ring that a guest writes: where each write goes, what it looks like, and what a disk image says about it.

Sizes are bytes. The law is in guest/bootwriter.S; nothing here touches a host.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass, field

SECTOR = 512
CHUNK_SECTORS = 64
CHUNK = CHUNK_SECTORS * SECTOR
RING_SECTOR = 2048
CONFIG_OFFSET = 492
MAGIC = 0x3151534C
BOOT = 1 << 24
MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Ring:
    """How many slots on each of how many disks."""

    slots: int
    disks: int

    @property
    def end(self) -> int:
        """The first byte after the ring, on each disk."""
        return RING_SECTOR * SECTOR + self.slots * CHUNK

    def place(self, sequence: int) -> tuple[int, int]:
        """Return the disk and the slot that a write goes to."""
        return sequence % self.disks, sequence // self.disks % self.slots


@dataclass
class Acks:
    """What the guest has acknowledged.

    `newest` has the newest write of each place, `unacknowledged` those that may be on the disks without being in the
    log, and `taken_back` counts what the guest undid by starting from older data.
    """

    count: int = 0
    last: int = 0
    newest: dict[tuple[int, int], int] = field(default_factory=dict)
    unacknowledged: set[int] = field(default_factory=set)
    taken_back: int = 0


@dataclass
class Findings:
    """What a disk image lacks. `recovery`: whether the journal of its file system has to be recovered, if it has one."""

    lost: int = 0
    torn: int = 0
    present: int = 0
    damage: list[str] = field(default_factory=list)
    recovery: bool | None = None


def boot_sector(code: bytes, ring: Ring, delay: int) -> bytes:
    """Return the assembled boot sector with its configuration filled in."""
    return code[:CONFIG_OFFSET] + struct.pack("<4I", 0, ring.slots, ring.disks, delay) + code[CONFIG_OFFSET + 16:]


def chunk(sequence: int, slot: int) -> bytes:
    """Return what the guest writes as its write number `sequence` to a slot."""
    body = struct.pack("<I", sequence * 0x9E3779B1 & MASK) * 124
    first = RING_SECTOR + slot * CHUNK_SECTORS
    return b"".join(struct.pack("<4I", MAGIC, sequence, number, sequence ^ MASK) + body
                    for number in range(first, first + CHUNK_SECTORS))


def parse(log: bytes) -> list[int]:
    """Return the acknowledged sequence numbers in the order of the log; a half-written line is none."""
    return [int(digits, 16) for digits in re.findall(rb"W([0-9A-F]{8})\n", log)]


def digest(sequences: list[int], ring: Ring) -> Acks:
    """Sum up acknowledged sequence numbers.

    Numbers rise, also across a guest's restarts. One that does not means that the guest started from a disk older than
    what it had acknowledged: all that it numbers again was lost.
    """
    stands: list[int] = []
    for sequence in sequences:
        while stands and stands[-1] >= sequence:
            stands.pop()
        stands.append(sequence)
    acks = Acks(count=len(sequences), taken_back=len(sequences) - len(stands), last=stands[-1] if stands else 0)
    acks.newest = {ring.place(sequence): sequence for sequence in stands}
    for before, after in zip([0, *stands], [*stands, acks.last + BOOT]):
        if before // BOOT != after // BOOT:
            acks.unacknowledged |= {before + 1, after // BOOT * BOOT + 1}
    return acks


def past(image, disk: int, ring: Ring, sequences: list[int], least: int) -> list[int]:
    """Return what was acknowledged before the moment that an image of one disk is of, and the first `least` in any case.

    The moment is right before the next acknowledged write to that disk: the newest one that is whole there tells it.
    """
    newest = 0
    for slot in range(ring.slots):
        image.seek((RING_SECTOR + slot * CHUNK_SECTORS) * SECTOR)
        seen = set(sectors_of(image.read(CHUNK), slot))
        if len(seen) == 1 and None not in seen:
            newest = max(newest, *seen)
    later = (number for number, sequence in enumerate(sequences) if ring.place(sequence)[0] == disk and sequence > newest)
    return sequences[:max(next(later, len(sequences)), least)]


def examine(image, disk: int, ring: Ring, acks: Acks) -> Findings:
    """Compare one disk, an open raw image, with what was acknowledged."""
    found = Findings()
    for slot in range(ring.slots):
        image.seek((RING_SECTOR + slot * CHUNK_SECTORS) * SECTOR)
        seen = set(sectors_of(image.read(CHUNK), slot))
        verdict = judge({None if of and ring.place(of) != (disk, slot) else of for of in seen},
                        acks.newest.get((disk, slot), 0), acks.unacknowledged)
        setattr(found, verdict, getattr(found, verdict) + 1)
    if disk == 0:
        image.seek(CONFIG_OFFSET)
        boots = struct.unpack("<I", image.read(4))[0]
        if boots < acks.last // BOOT:
            found.damage.append(f"the boot record counts {boots} boots, the guest has acknowledged {acks.last // BOOT}")
    return found


def judge(seen: set[int | None], wanted: int, unacknowledged: set[int]) -> str:
    """Return "present", "lost" or "torn" for one slot.

    `seen` are the writes that its sectors hold (see sectors_of), `wanted` is its newest acknowledged one or 0.
    Only a write that was never acknowledged may be there in part, over what the slot held before.
    """
    if seen <= {wanted} | {sequence for sequence in unacknowledged if sequence > wanted}:
        return "present"
    whole = next(iter(seen)) if len(seen) == 1 else None
    return "lost" if whole is not None and whole < wanted else "torn"


def sectors_of(data: bytes, slot: int) -> list[int | None]:
    """Return for each sector of a slot which write it holds: 0 for never written, None for anything else."""
    seen = []
    intact: dict[int, bytes] = {}
    for n in range(CHUNK_SECTORS):
        sector = data[n * SECTOR:(n + 1) * SECTOR]
        if sector.count(0) == SECTOR:
            seen.append(0)
            continue
        sequence = struct.unpack_from("<I", sector, 4)[0] if len(sector) == SECTOR else 0
        if sequence not in intact:
            intact[sequence] = chunk(sequence, slot)
        seen.append(sequence if sector == intact[sequence][n * SECTOR:(n + 1) * SECTOR] else None)
    return seen


def fill_digest(image, start: int, length: int) -> str:
    """Return the SHA-256 of a part of an open image."""
    image.seek(start)
    total = hashlib.sha256()
    while length > 0:
        block = image.read(min(length, 1 << 20))
        if not block:
            break
        total.update(block)
        length -= len(block)
    return total.hexdigest()
