# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A qcow2 layer over a raw image, with the real qemu-img and qemu-io: the image keeps its bytes, and the layer shows just them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Layer, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops._datafile_request import tables
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import datafile
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.qemu_img import read_image

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
CLUSTER = 64 * KiB


def qemu(*command) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def raw_image(path: Path, size: int, *parts) -> str:
    """A sparse file with data at (start, length)."""
    with open(path, "wb") as file:
        file.truncate(size)
        for start, length in parts:
            file.seek(start)
            file.write(b"\x5a" * length)
    return str(path)


def digest(path: str) -> tuple:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest(), os.stat(path).st_mtime_ns


def layer_over(raw: str, cluster: int = CLUSTER, marked: bool = True) -> str:
    """As the steps METADATA and ADOPT do it."""
    path, over, size = raw + ".qcow2", raw + ".qcow2.adopting", os.path.getsize(raw)
    assert datafile.create(path, over, size, cluster, 60) is None
    assert not marked or datafile.mark_holes(path, raw, size, cluster, 60) is None
    assert datafile.stand_over(path, raw, 60) is None
    os.unlink(over)
    return path


def proofs(path: str, raw: str) -> tuple:
    """(why the layer does not show what the image holds, why qemu-img says so, why it is not whole)"""
    data = file_layer(raw, "raw")
    return datafile.differs(path, data, os.path.getsize(raw)), datafile.compared(path, data, 60), datafile.checked(path, data, 60)


def differs(path: str, raw: str):
    return datafile.differs(path, file_layer(raw, "raw"), os.path.getsize(raw))


def used(path: str, raw: str, commands, discard=("unmap", "unmap")) -> None:
    """Let a guest write: through the layer, with ``discard`` of the layer and of its data file."""
    node = {"driver": "file", "filename": raw, "discard": discard[1]}
    top = {"driver": "qcow2", "file": {"driver": "file", "filename": path}, "data-file": node, "discard": discard[0]}
    qemu("qemu-io", "-d", discard[0], *(word for command in commands for word in ("-c", command)), "json:" + json.dumps(top))


def shown(path: str) -> list:
    """(start, length, zeros?) of what a layer says of itself."""
    return [(one["start"], one["length"], one["zero"]) for one in json.loads(qemu("qemu-img", "map", "--output=json", "-f", "qcow2", path))]


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(("name", "cluster"), [("a.raw", 512), ("a,b=c.raw", 64 * KiB), ("json:a %s.raw", 2 * MiB)])
def test_a_layer_over_an_image(tmp_path, name, cluster, marked):
    """A layer shows what the image holds, which nothing is written to, and takes no more room than was promised."""
    raw = raw_image(tmp_path / name, 6 * MiB, (0, 4096), (5 * MiB, MiB))
    before = digest(raw)
    path = layer_over(raw, cluster, marked)
    assert proofs(path, raw) == (None, None, None) and digest(raw) == before
    image = read_image(path, "qcow2")
    assert (image.data_path, image.data_raw, image.virtual_size, image.backing) == (raw, True, 6 * MiB, None)
    whole = {512: 5 * MiB - 4096, CLUSTER: 5 * MiB - CLUSTER, 2 * MiB: 2 * MiB}[cluster]
    assert sum(length for dummy, length, zero in shown(path) if zero) == (whole if marked else 0)
    assert os.path.getsize(path) <= tables(6 * MiB, cluster)
    assert sorted(os.listdir(tmp_path)) == sorted([name, name + ".qcow2"])


@pytest.mark.parametrize(("size", "cluster"), [(512, 512), (MiB + 512, 512), (CLUSTER, CLUSTER), (64 * MiB, CLUSTER), (10 * GiB, CLUSTER), (20 * GiB, 2 * MiB)])
def test_the_promised_room(tmp_path, size, cluster):
    """What is told before anything is made is enough, and not much more."""
    path, over = str(tmp_path / "a"), str(tmp_path / "b")
    assert datafile.create(path, over, size, cluster, 60) is None
    assert os.path.getsize(over) == size
    assert os.path.getsize(path) <= tables(size, cluster) <= 2 * os.path.getsize(path) + 12 * cluster


def test_an_image_that_is_full_or_empty(tmp_path):
    for name, parts, zeros in (("full", [(0, MiB)], 0), ("empty", [], MiB)):
        raw = raw_image(tmp_path / name, MiB, *parts)
        path = layer_over(raw)
        assert sum(length for dummy, length, zero in shown(path) if zero) == zeros and proofs(path, raw) == (None, None, None)


HOLES = [
    ((), [(0, 4 * MiB)]),
    (((0, 4 * MiB),), []),
    (((MiB, MiB),), [(0, MiB), (2 * MiB, 4 * MiB)]),
    (((0, MiB), (3 * MiB, MiB)), [(MiB, 3 * MiB)]),
    (((0, 4096), (4 * MiB - 4096, 4096)), [(4096, 4 * MiB - 4096)]),
]


@pytest.mark.parametrize(("parts", "expected"), HOLES)
def test_holes(tmp_path, parts, expected):
    assert list(datafile.holes(raw_image(tmp_path / "a", 4 * MiB, *parts), 4 * MiB)) == expected


def refuse_lseek(monkeypatch, number: int, *kinds) -> None:
    lseek = os.lseek

    def refused(descriptor, position, kind):
        if kind in kinds:
            raise OSError(number, os.strerror(number))
        return lseek(descriptor, position, kind)

    monkeypatch.setattr(datafile.os, "lseek", refused)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_what_cannot_tell_its_holes_is_all_data(tmp_path, monkeypatch, number):
    """A block device: nothing is marked, and what the layer shows as zeros is read."""
    raw = raw_image(tmp_path / "a", MiB, (0, 4096))
    marked, thick = layer_over(raw), raw_image(tmp_path / "b", MiB, (0, 4096))
    refuse_lseek(monkeypatch, number, os.SEEK_HOLE, os.SEEK_DATA)
    assert list(datafile.holes(thick, MiB)) == [] and datafile.mark_holes("/none", thick, MiB, CLUSTER, 1) is None
    assert not any(zero for dummy, dummy, zero in shown(layer_over(thick)))
    assert differs(marked, raw) is None
    raw_image(Path(raw), MiB, (0, 4096), (MiB - 1, 1))
    assert differs(marked, raw) == "it shows zeros at %d, where the raw image has data" % CLUSTER


def test_an_image_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    raw = raw_image(tmp_path / "a", MiB)
    refuse_lseek(monkeypatch, errno.EIO, os.SEEK_HOLE)
    with pytest.raises(OSError) as caught:
        list(datafile.holes(raw, MiB))
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(100, 130)], []),
        ([(0, 65536)], [(0, 65536)]),
        ([(1, 3 * 65536 - 1)], [(65536, 65536)]),
        ([(0, 2 * GiB + 65537)], [(0, GiB), (GiB, GiB), (2 * GiB, 65536)]),
        ([(0, 65536), (131072, 196608)], [(0, 65536), (131072, 65536)]),
    ],
)
def test_only_whole_clusters_are_marked(parts, expected):
    """Part of a cluster that is no hole would be hidden. And one write of zeros takes no more than 2 GiB."""
    assert list(datafile._pieces(iter(parts), 65536)) == expected


def test_a_hole_of_more_than_one_write(tmp_path):
    raw = raw_image(tmp_path / "a", 3 * GiB + 2 * MiB, (0, 512))
    path = layer_over(raw, 2 * MiB)
    assert shown(path)[-1] == (2 * MiB, 3 * GiB, True) and differs(path, raw) is None
    assert os.stat(raw).st_blocks * 512 < MiB and os.stat(path).st_blocks * 512 < 16 * MiB


def test_failures_are_told(tmp_path):
    raw, nothing = raw_image(tmp_path / "a", MiB), raw_image(tmp_path / "b", 4096)
    assert "No such file or directory" in datafile.create("/none/a", str(tmp_path / "c"), MiB, CLUSTER, 60)
    assert "qemu-io marked 0 of 1 holes: " in datafile.mark_holes(nothing, raw, MiB, CLUSTER, 60)
    assert datafile.mark_holes(nothing, raw, MiB, CLUSTER, 0) == "qemu-io marked 0 of 1 holes"
    path = str(tmp_path / "d")
    assert datafile.create(path, str(tmp_path / "e"), MiB, CLUSTER, 60) is None
    os.unlink(tmp_path / "e")  # as the recipe in circulation has it
    assert "Could not open" in datafile.stand_over(path, raw, 60) and read_image(path, "qcow2").data_path == str(tmp_path / "e")
    assert differs(nothing, raw) == "its header cannot be read" == differs("/none", raw)
    assert "differ" in datafile.compared(path, file_layer(raw, "raw"), 0)


@pytest.mark.parametrize("mark", [True, False])
def test_what_is_made_over_another_image_is_found(tmp_path, mark):
    one, two = (raw_image(tmp_path / name, MiB, *parts) for name, parts in (("one", [(0, MiB)]), ("two", [])))
    path = layer_over(one, marked=mark)
    assert differs(path, two) == "its data file is %s" % one
    qemu("qemu-img", "create", "-q", "-f", "qcow2", str(tmp_path / "own"), "1M")
    assert differs(str(tmp_path / "own"), one) == "its data file is none"


def test_a_data_file_that_is_not_raw(tmp_path):
    path, raw = str(tmp_path / "a"), str(tmp_path / "b")
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=%s,data_file_raw=off" % raw, path, "1M")
    assert differs(path, raw) == "its data file alone is not what it shows (data_file_raw is off)"


@pytest.mark.parametrize("size", [MiB - 512, MiB + 512])
def test_other_sizes(tmp_path, size):
    raw = raw_image(tmp_path / "a", MiB)
    path = layer_over(raw)
    os.truncate(raw, size)
    assert differs(path, raw) == "it has %d bytes, and the raw image %d" % (MiB, size)
    assert datafile.differs(path, file_layer(raw, "raw"), MiB) == "it has %d bytes, and the raw image %d" % (MiB, size)
    os.truncate(raw, MiB)
    assert differs(path, raw) is None
    assert datafile.differs(path, file_layer(raw, "raw"), size) == "it has %d bytes, and the raw image %d" % (MiB, MiB)


def test_a_backing_image(tmp_path, monkeypatch):
    """QEMU makes none for such a layer; a header could say it."""
    raw = raw_image(tmp_path / "a", MiB)
    path = layer_over(raw)
    image = replace(read_image(path, "qcow2"), backing="/base")
    monkeypatch.setattr(datafile, "read_image", lambda *dummy: image)
    assert differs(path, raw) == "it has a backing image"


def part(start, length, data=True, zero=False, offset=0):
    return {"start": start, "length": length, "data": data, "zero": zero, "offset": start + offset}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([part(0, 100)], None),
        ([part(0, 60), part(60, 40, data=False, zero=True, offset=7)], None),
        ([part(0, 60), part(70, 30)], "its map has a gap at 60"),
        ([part(0, 60), part(60, 40, offset=4)], "what it shows at 60 is elsewhere in its data file"),
        ([{"start": 0, "length": 100, "data": True, "zero": False}], "what it shows at 0 is elsewhere in its data file"),
        ([part(0, 60, data=False), part(60, 40)], "it holds nothing at 0"),
        ([part(0, 60)], "its map ends at 60 of 100"),
        ([], "its map ends at 0 of 100"),
    ],
)
def test_a_map_that_leads_elsewhere(parts, expected):
    assert datafile._moved(parts, 100) == expected


def test_zeros_are_read_however_they_are_kept(tmp_path):
    raw = raw_image(tmp_path / "a", MiB, (512, 512))
    for data in (True, False):
        assert datafile._not_zero([part(0, 100, data, True), part(600, 100, data, True)], raw) == "it shows zeros at 600, where the raw image has data"


def test_holes_that_were_not_marked_are_noticed(tmp_path, monkeypatch):
    """qemu-io ends well whatever becomes of its commands."""
    (tmp_path / "qemu-io").write_text("#!/bin/sh\nexit 0\n")
    os.chmod(tmp_path / "qemu-io", 0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + ":" + os.environ["PATH"])
    assert datafile.mark_holes("/none", raw_image(tmp_path / "a", MiB), MiB, CLUSTER, 60) == "qemu-io marked 0 of 1 holes"


def test_tables_that_cannot_be_read(tmp_path, monkeypatch):
    """And those that are not whole, of which only the check tells."""
    raw = raw_image(tmp_path / "a", 16 * MiB, (0, 512))
    path = layer_over(raw)
    with open(path, "r+b") as file:
        file.seek(48)  # where the header has the place of the refcounts
        file.write((1 << 40).to_bytes(8, "big"))
    assert datafile.checked(path, file_layer(raw, "raw"), 60)
    assert differs(path, raw) is None
    monkeypatch.setattr(datafile, "told", lambda *dummy: None)
    assert differs(path, raw) == "its tables cannot be read"


@pytest.mark.parametrize("place", [CLUSTER, CLUSTER + 511, 2 * MiB - 1, 4 * MiB - 1])
def test_an_image_that_was_used_without_its_layer(tmp_path, place):
    """One byte in what the layer shows as zeros; what it has as data at its place shows whatever is there."""
    raw = raw_image(tmp_path / "a", 4 * MiB, (0, 4096))
    path = layer_over(raw)
    raw_image(Path(raw), 4 * MiB, (8, 512))
    assert proofs(path, raw) == (None, None, None)
    raw_image(Path(raw), 4 * MiB, (place, 1))
    told = differs(path, raw)
    assert told.startswith("it shows zeros at ") and told.endswith(", where the raw image has data")
    assert datafile.BLOCK > place - int(told.split()[4].rstrip(",")) >= 0
    assert datafile.compared(path, file_layer(raw, "raw"), 60).startswith("qemu-img finds that they differ (")


def test_whether_a_layer_shows_its_data_file(tmp_path, monkeypatch):
    """By its tables, and by what is in the image where it shows zeros; not known where either cannot be read."""
    raw = raw_image(tmp_path / "a.raw", MiB, (0, CLUSTER))
    layer = Layer("file", (("file", layer_over(raw)),), "qcow2", store=file_layer(raw, "raw"))
    assert datafile.shows(layer) is True
    with open(raw, "r+b") as file:
        file.seek(MiB // 2)
        file.write(b"x")
    assert datafile.shows(layer) is False
    assert datafile.shows(replace(layer, store=None)) is None
    monkeypatch.setattr(datafile, "told", lambda *dummy: None)
    assert datafile.shows(layer) is None
    monkeypatch.setattr(datafile, "told", lambda *dummy: [])
    os.unlink(raw)
    assert datafile.shows(layer) is None


def test_bytes_that_a_layer_hides(tmp_path):
    """A discard that reaches the layer and not its data file leaves the bytes there."""
    raw = raw_image(tmp_path / "a", MiB, (0, MiB))
    path = layer_over(raw)
    used(path, raw, ["discard 64k 128k"], ("unmap", "ignore"))
    assert differs(path, raw) == "it shows zeros at 65536, where the raw image has data"
    assert datafile.compared(path, file_layer(raw, "raw"), 60) is not None


OPERATIONS = (
    "write -P %(byte)d %(start)d %(length)d",
    "write -z %(start)d %(length)d",
    "write -z -u %(start)d %(length)d",
    "discard %(start)d %(length)d",
    "flush",
)


def some(chance: random.Random, size: int, count: int) -> list:
    found = []
    for dummy in range(count):
        start = chance.randrange(size // 512)
        length = min(chance.choice((1, 8, 100, 128, 256, 500)), size // 512 - start)
        found.append(chance.choice(OPERATIONS) % {"byte": chance.randrange(1, 256), "start": start * 512, "length": length * 512})
    return found


@pytest.mark.parametrize("discard", [("unmap", "unmap"), ("ignore", "ignore"), ("ignore", "unmap")], ids="-over-".join)
@pytest.mark.parametrize(("seed", "cluster"), [(1, 512), (2, CLUSTER)])
def test_whatever_a_guest_does(tmp_path, discard, seed, cluster):
    """The image alone is what the layer shows, also after it was opened again, and what was written is there."""
    chance, size = random.Random(seed), 2 * MiB + 3 * cluster
    raw = raw_image(tmp_path / "a", size, (100 * KiB, 300 * KiB), (MiB, 512))
    path = layer_over(raw, cluster)
    for dummy in range(2):
        used(path, raw, [*some(chance, size, 60), "write -P 77 1000k 8k"], discard)
        assert proofs(path, raw) == (None, None, None)
        assert Path(raw).read_bytes()[1000 * KiB : 1008 * KiB] == b"\x4d" * (8 * KiB)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_guest_whose_discards_end_at_the_layer(tmp_path, seed):
    """What `qemu-img compare` finds by reading both, the tables and the zeros tell as well."""
    chance, size = random.Random(seed), 2 * MiB
    raw = raw_image(tmp_path / "a", size, (0, size))
    path = layer_over(raw)
    used(path, raw, [*some(chance, size, 30), "write -P 7 %d 128k" % (seed * CLUSTER), "discard %d 128k" % (seed * CLUSTER)], ("unmap", "ignore"))
    different, compared, checked = proofs(path, raw)
    assert different.startswith("it shows zeros at ") and compared is not None and checked is None


def test_a_copy_of_an_image_that_holds_its_data(tmp_path):
    """With its bitmaps, into files that are there already, as they were claimed."""
    source, path, data = (str(tmp_path / name) for name in ("a.qcow2", "b.raw.qcow2", "b.raw"))
    qemu("qemu-img", "create", "-q", "-f", "qcow2", source, "2M")
    qemu("qemu-img", "bitmap", "--add", source, "daily")
    qemu("qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 64k", "-c", "write -z 0 64k", source)
    for claimed in (path, data):
        Path(claimed).touch()
    assert datafile.convert(file_layer(source, "qcow2"), path, data, CLUSTER, 60, ()) is None
    image = read_image(path, "qcow2")
    assert (image.data_path, image.data_raw, [name for name, dummy in image.bitmaps]) == (data, True, ["daily"])
    assert proofs(path, data) == (None, None, None)
    assert Path(data).read_bytes() == bytes(MiB) + b"\x09" * CLUSTER + bytes(MiB - CLUSTER)
    assert os.stat(data).st_blocks * 512 <= 2 * CLUSTER


def test_a_copy_of_a_raw_image(tmp_path):
    raw = raw_image(tmp_path / "a", MiB, (0, 4096))
    path, data = (str(tmp_path / name) for name in ("b.qcow2", "b"))
    before = digest(raw)
    assert datafile.convert(file_layer(raw, "raw"), path, data, 512, 60, ()) is None
    assert Path(data).read_bytes() == Path(raw).read_bytes() and proofs(path, data) == (None, None, None) and digest(raw) == before


@pytest.mark.parametrize(("format_", "seconds", "words"), [("qcow2", 60, "not in qcow2 format"), ("raw", 0, "no end after 0 seconds")])
def test_a_copy_that_fails(tmp_path, format_, seconds, words):
    raw = raw_image(tmp_path / "a", MiB)
    assert words in datafile.convert(file_layer(raw, format_), str(tmp_path / "b"), str(tmp_path / "c"), CLUSTER, seconds, ())
