# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the verifier says about made-up disks: it must find every kind of damage, and nothing else."""

from __future__ import annotations

import io
import random
import struct
import unittest

from ring import BOOT, CHUNK, CONFIG_OFFSET, RING_SECTOR, SECTOR, Ring, boot_sector, chunk, digest, examine, parse, past

RING = Ring(slots=8, disks=1)


def disk_with(sequences, ring=RING, number=0, boots=None) -> io.BytesIO:
    """Return a disk on which these writes were done in this order."""
    image = io.BytesIO(bytes(ring.end))
    for sequence in sequences:
        disk, slot = ring.place(sequence)
        if disk == number:
            image.seek(RING_SECTOR * SECTOR + slot * CHUNK)
            image.write(chunk(sequence, slot))
    image.seek(CONFIG_OFFSET)
    image.write(struct.pack("<I", boots if boots is not None else max(sequences, default=0) // BOOT))
    return image


def run(boot: int, count: int) -> list[int]:
    """Return the sequence numbers of the first writes of a boot."""
    return [boot * BOOT + n for n in range(1, count + 1)]


def overwrite(image, offset: int, data: bytes) -> io.BytesIO:
    """Return the image with some bytes replaced."""
    image.seek(offset)
    image.write(data)
    return image


class Parsing(unittest.TestCase):
    def test_only_whole_lines_count(self):
        assert parse(b"W01000001\n!\nW01000002\nW0100") == [BOOT + 1, BOOT + 2]

    def test_a_line_cut_by_a_power_off_hides_nothing(self):
        assert parse(b"W01000001\nW010W02000001\n") == [BOOT + 1, 2 * BOOT + 1]

    def test_boot_sector_keeps_its_size_and_signature(self):
        sector = boot_sector(bytes(510) + b"\x55\xaa", Ring(7, 3), 2)
        assert (len(sector), sector[-2:]) == (SECTOR, b"U\xaa")
        assert struct.unpack_from("<4I", sector, CONFIG_OFFSET) == (0, 7, 3, 2)


class Sound(unittest.TestCase):
    def assert_sound(self, image, sequences, ring=RING, number=0):
        found = examine(image, number, ring, digest(sequences, ring))
        assert (found.lost, found.torn, found.damage) == (0, 0, [])
        assert found.present == ring.slots

    def test_before_the_ring_is_full(self):
        self.assert_sound(disk_with(run(1, 3)), run(1, 3))

    def test_after_many_rounds(self):
        self.assert_sound(disk_with(run(1, 100)), run(1, 100))

    def test_a_whole_write_that_was_not_acknowledged_yet(self):
        self.assert_sound(disk_with(run(1, 101)), run(1, 100))

    def test_the_write_in_flight_may_be_there_in_part(self):
        done = disk_with(run(1, 100))
        sequence = BOOT + 101
        half = chunk(sequence, RING.place(sequence)[1])[:CHUNK // 2]
        self.assert_sound(overwrite(done, RING_SECTOR * SECTOR + RING.place(sequence)[1] * CHUNK, half), run(1, 100))

    def test_the_write_in_flight_at_an_earlier_power_off(self):
        acknowledged = [*run(1, 20), *run(2, 3)]
        cut = BOOT + 21
        slot = RING.place(cut)[1]
        assert slot not in [RING.place(sequence)[1] for sequence in run(2, 3)]
        image = overwrite(disk_with(acknowledged), RING_SECTOR * SECTOR + slot * CHUNK, chunk(cut, slot)[:SECTOR])
        self.assert_sound(image, acknowledged)

    def test_every_disk_of_several(self):
        ring = Ring(slots=4, disks=3)
        for number in range(3):
            self.assert_sound(disk_with(run(1, 50), ring, number, boots=1), run(1, 50), ring, number)


class Damaged(unittest.TestCase):
    def findings(self, image, sequences, ring=RING, number=0):
        return examine(image, number, ring, digest(sequences, ring))

    def test_one_missing_write(self):
        for missing in run(1, 8):
            image = disk_with([sequence for sequence in run(1, 8) if sequence != missing], boots=1)
            assert self.findings(image, run(1, 8)).lost == 1

    def test_an_older_write_in_place_of_the_newest(self):
        assert self.findings(disk_with(run(1, 19)), run(1, 20)).lost == 1
        assert self.findings(disk_with(run(1, 10)), run(1, 20)).lost == RING.slots

    def test_an_empty_disk(self):
        found = self.findings(disk_with([]), run(1, 5))
        assert found.lost == 5
        assert len(found.damage) == 1

    def test_an_image_that_ends_early(self):
        image = io.BytesIO(disk_with(run(1, 8)).getvalue()[:RING.end - CHUNK])
        found = self.findings(image, run(1, 8))
        assert found.lost + found.torn == 1

    def test_any_changed_byte(self):
        chance = random.Random(1)
        for dummy in range(200):
            image = disk_with(run(1, 8))
            offset = chance.randrange(RING_SECTOR * SECTOR, RING.end)
            image.seek(offset)
            other = bytes([image.read(1)[0] ^ 1 << chance.randrange(8)])
            assert self.findings(overwrite(image, offset, other), run(1, 8)).torn == 1, offset

    def test_an_acknowledged_write_that_is_there_in_part(self):
        newest = BOOT + 20
        slot = RING.place(newest)[1]
        older = chunk(newest - RING.slots, slot)[:SECTOR]
        image = overwrite(disk_with(run(1, 20)), RING_SECTOR * SECTOR + slot * CHUNK, older)
        assert self.findings(image, run(1, 20)).torn == 1

    def test_a_write_in_another_slot(self):
        image = disk_with(run(1, 8))
        image.seek(RING_SECTOR * SECTOR)
        moved = image.read(CHUNK)
        assert self.findings(overwrite(image, RING_SECTOR * SECTOR + CHUNK, moved), run(1, 8)).torn == 1

    def test_two_disks_taken_for_each_other(self):
        ring = Ring(slots=4, disks=2)
        swapped = disk_with(run(1, 50), ring, number=1, boots=1)
        assert self.findings(swapped, run(1, 50), ring, number=0).torn == ring.slots

    def test_a_write_that_the_guest_never_made(self):
        assert self.findings(disk_with(run(1, 20)), run(1, 10)).torn == RING.slots

    def test_an_old_cut_write_in_place_of_the_newest(self):
        acknowledged = [*run(1, 20), *run(2, 20)]
        cut = BOOT + 21
        slot = RING.place(cut)[1]
        image = overwrite(disk_with(acknowledged), RING_SECTOR * SECTOR + slot * CHUNK, chunk(cut, slot))
        assert self.findings(image, acknowledged).lost == 1

    def test_a_start_from_older_data(self):
        acks = digest([*run(1, 20), *run(2, 10), *run(2, 4)], RING)
        assert (acks.count, acks.taken_back) == (34, 10)
        assert digest([*run(1, 20), *run(1, 4)], RING).taken_back == 20
        assert digest([*run(1, 20), *run(2, 4)], RING).taken_back == 0


class Moments(unittest.TestCase):
    """Images of an earlier moment, such as a snapshot's base."""

    def assert_sound(self, image, acknowledged, until, ring=RING, number=0):
        sequences = past(image, number, ring, acknowledged, 0)
        assert sequences == acknowledged[:until]
        found = examine(image, number, ring, digest(sequences, ring))
        assert (found.lost, found.torn, found.present) == (0, 0, ring.slots)

    def test_what_came_later_is_not_missed(self):
        for moment in (0, 1, 5, 30, 100):
            self.assert_sound(disk_with(run(1, moment), boots=1), run(1, 100), moment)

    def test_a_write_in_flight_in_part(self):
        sequence = BOOT + 31
        half = chunk(sequence, RING.place(sequence)[1])[:SECTOR]
        image = overwrite(disk_with(run(1, 30)), RING_SECTOR * SECTOR + RING.place(sequence)[1] * CHUNK, half)
        self.assert_sound(image, run(1, 100), 30)

    def test_one_disk_of_several(self):
        ring = Ring(slots=4, disks=2)
        for number in range(2):
            # The 31st write goes to the second disk, so nothing on the first one tells whether it was done.
            self.assert_sound(disk_with(run(1, 30), ring, number, boots=1), run(1, 100), 31 - number, ring, number)

    def test_across_a_restart(self):
        acknowledged = [*run(1, 30), *run(2, 30)]
        self.assert_sound(disk_with(run(1, 30)), acknowledged, 30)
        self.assert_sound(disk_with([*run(1, 30), *run(2, 10)]), acknowledged, 40)

    def test_a_hole_in_the_past(self):
        image = disk_with([sequence for sequence in run(1, 30) if sequence != BOOT + 25])
        assert examine(image, 0, RING, digest(past(image, 0, RING, run(1, 100), 0), RING)).lost == 1

    def test_what_was_acknowledged_before_has_to_be_there(self):
        image = disk_with(run(1, 30))
        assert examine(image, 0, RING, digest(past(image, 0, RING, run(1, 100), 30), RING)).lost == 0
        assert examine(image, 0, RING, digest(past(image, 0, RING, run(1, 100), 33), RING)).lost == 3


if __name__ == "__main__":
    unittest.main()
