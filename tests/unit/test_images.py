# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which images are read, in which order and how often, for whatever headers say."""

from __future__ import annotations

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import Image, Probe
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import images as edge
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.images import Images
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.qemu_img import SECONDS

LOCAL = True


def image(path, backing=None, data=None, seconds=0.0):
    told = Image(path, "qcow2", 1, 1, backing, backing, "qcow2" if backing else None, data, data, True if data else None)
    return Probe(path, "qcow2", "file", told, seconds=seconds)


@pytest.fixture(name="disk")
def _disk(monkeypatch):
    """A table of images; ``asked`` is what was looked at, each time with what was told about it."""

    class Disk:
        def probe_all(self, keys, named=(), guessed=(), deadline=None):
            self.asked += list(keys)
            self.told.append((dict(keys), frozenset(named), frozenset(guessed)))
            self.deadlines.append(deadline)
            return {key: self.table.get(key[0]) or Probe(*key, problem="missing") for key in keys}

    disk = Disk()
    disk.table, disk.asked, disk.told, disk.deadlines = {}, [], [], []
    monkeypatch.setattr(edge, "probe_all", disk.probe_all)
    return disk


def chain(disk, *paths, **more):
    for path, below in zip(paths, paths[1:] + (None,)):
        disk.table[path] = image(path, below, **more)


def keys(*paths):
    return [(path, "qcow2") for path in paths]


def test_each_image_is_read_once(disk):
    chain(disk, "/a", "/c", "/d")
    chain(disk, "/b", "/c", "/d")
    images = Images(LOCAL)
    found = images.read(keys("/a", "/b", "/a"), 200)
    assert sorted(disk.asked) == keys("/a", "/b", "/c", "/d") and sorted(found) == keys("/a", "/b", "/c", "/d")
    disk.table["/e"] = image("/e", "/b")
    again = images.read(keys("/e", "/a"), 200)
    assert disk.asked[4:] == keys("/e") and sorted(again) == keys("/a", "/b", "/c", "/d", "/e")


def test_a_later_look_goes_on_where_the_first_one_ended(disk):
    """A chain of which only the top was allowed is read to its end by who may read more."""
    chain(disk, "/a", "/b", "/c")
    images = Images(LOCAL)
    assert sorted(images.read(keys("/a"), 1)) == keys("/a")
    assert sorted(images.read(keys("/a"), 200)) == keys("/a", "/b", "/c") and len(disk.asked) == 3


@pytest.mark.parametrize("deepest", [1, 2, 3, 7, 200])
def test_no_deeper_than_asked(disk, deepest):
    chain(disk, *("/%d" % depth for depth in range(1000)))
    found = Images(LOCAL).read(keys("/0"), deepest)
    assert sorted(found) == sorted(keys(*("/%d" % depth for depth in range(deepest))))


def test_a_circle_ends(disk):
    disk.table.update({"/a": image("/a", "/b"), "/b": image("/b", "/a"), "/c": image("/c", "/c")})
    assert sorted(Images(LOCAL).read(keys("/a", "/c"), 10**9)) == keys("/a", "/b", "/c") and len(disk.asked) == 3


def test_what_is_asked_for_with_two_formats_is_two_questions(disk):
    disk.table["/a"] = image("/a")
    assert set(Images(LOCAL).read([("/a", "qcow2"), ("/a", None), ("/a", "raw")], 9)) == {("/a", "qcow2"), ("/a", None), ("/a", "raw")}


def test_a_data_file_is_asked_for_as_raw_and_as_nobodys_word(disk):
    """Raw is measured, and not opened; nor is it by its first bytes, since only a header names it."""
    disk.table.update({"/a": image("/a", "/b", data="/data"), "/b": image("/b", data="/dev/mem"), "/data": Probe("/data", "raw", "file")})
    found = Images(LOCAL).read(keys("/a"), 200, ["/a"])
    assert set(found) == {("/a", "qcow2"), ("/b", "qcow2"), ("/data", "raw"), ("/dev/mem", "raw")}
    last, named, guessed = disk.told[-1]
    assert set(last) == {("/data", "raw"), ("/dev/mem", "raw")} and not named and not guessed


def test_only_what_libvirt_or_the_user_names_is_named(disk):
    chain(disk, "/a", "/b", "/c")
    Images(LOCAL).read(keys("/a", "/x"), 200, ["/x"])
    assert {named for told, named, dummy in disk.told if told} == {frozenset(["/a", "/x"])}
    assert {guessed for told, dummy, guessed in disk.told if told} == {frozenset(["/x"])}


def test_a_whole_chain_has_one_time(disk):
    chain(disk, "/a", "/b", "/c", "/d", "/e", "/f", seconds=1.0)
    Images(LOCAL).read(keys("/a"), 200)
    left = [seconds for told, dummy, dummy2 in disk.told for seconds in told.values()]
    assert left == [max(SECONDS - spent, 0.0) for spent in range(6)]


def test_an_image_of_two_chains_has_the_time_of_the_faster(disk):
    disk.table.update({"/a": image("/a", "/c", seconds=2.0), "/b": image("/b", "/c", seconds=0.5), "/c": image("/c")})
    Images(LOCAL).read(keys("/a", "/b"), 200)
    assert disk.told[1][0] == {("/c", "qcow2"): SECONDS - 0.5}


def test_a_deadline_is_for_headers_only(disk):
    """A data file is not read anyway."""
    disk.table.update({"/a": image("/a", "/b", data="/data"), "/b": image("/b")})
    Images(LOCAL).read(keys("/a"), 200, deadline=12.5)
    assert disk.deadlines == [12.5, 12.5, None]


# Another host

VOLUME = "<volume type='file'><capacity>9</capacity><target><format type='qcow2'/></target>%s</volume>"


def test_on_another_host_volumes_are_asked_and_no_file_is(disk):
    asked = []
    volumes = {"/p/a": VOLUME % "<backingStore><path>/p/b</path><format type='qcow2'/></backingStore>", "/p/b": VOLUME % ""}
    found = Images(False, lambda path: asked.append(path) or volumes.get(path)).read(keys("/p/a", "/x"), 200)
    assert disk.asked == [] and asked == ["/p/a", "/x", "/p/b"]
    assert found["/p/a", "qcow2"].image.backing_path == "/p/b" and found["/p/b", "qcow2"].virtual == 9
    assert (found["/x", "qcow2"].problem, found["/x", "qcow2"].image) == ("remote", None)
