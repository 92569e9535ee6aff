# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who uses which image, where XML leaves it open: headers, volumes, links, and what cannot be read."""

from __future__ import annotations

import subprocess
import types
from dataclasses import replace

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, Layer, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain, Mirror
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import images as images_edge
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.images import Images
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.uses import all_uses

VOLUME = Layer("volume", (("pool", "p"), ("volume", "v")), "qcow2")
EXPORT = Layer("network", (("name", "e"), ("protocol", "nbd")), "raw", None, ((("name", "h"),),))


class Connection:
    local = True

    def __init__(self, *disks):
        self.disks = disks

    def select(self, selection):
        return [None]

    def read(self, handle, with_config, with_jobs):
        return Domain("vm2", "u2", False, "shutdown", disks=self.disks)


def create(path, *arguments):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *arguments, str(path), "1M"], check=True)


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    """Images; top.qcow2 stands on base.qcow2 by its header, and far.qcow2 on a server."""
    folder = tmp_path_factory.mktemp("images")
    create(folder / "base.qcow2")
    create(folder / "top.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    create(folder / "slow.qcow2")
    create(folder / "far.qcow2", "-u", "-b", "nbd://127.0.0.1:1/e", "-F", "raw")
    create(folder / "orphan.qcow2", "-u", "-b", "gone.qcow2", "-F", "qcow2")
    create(folder / "split.qcow2", "-o", "data_file=%s,data_file_raw=on" % (folder / "data.raw"))
    (folder / "bad.qcow2").write_bytes(b"QFI\xfb\0\0\0\3")
    (folder / "link.qcow2").symlink_to(folder / "top.qcow2")
    return folder


@pytest.fixture(name="found")
def _found(folder, monkeypatch):
    """Paths used and unread (below the folder, without it) for a chain of one layer. slow.qcow2 gives no answer."""
    probe_all = images_edge.probe_all

    def slow(*arguments):
        probes = probe_all(*arguments)
        late = {"problem": "timeout", "detail": "no answer", "image": None}
        return {key: replace(probe, **late) if key[0].endswith("slow.qcow2") else probe for key, probe in probes.items()}

    monkeypatch.setattr(images_edge, "probe_all", slow)

    def uses(layer, ends=None, volume=None):
        layer = layer(folder) if callable(layer) else layer
        if volume:
            layer = replace(layer, resolved=str(folder / volume))
        connection = Connection(Disk("vda", Chain((layer,), ends)))
        used, unread = all_uses(connection, Images(connection.local))
        assert {(use.guest, use.uuid, use.disk) for use in used} == {("vm2", "u2", "vda")}
        short = str(folder) + "/"
        return {use.place[1].replace(short, "") for use in used if use.place[0] == "path"}, [one.replace(short, "") for one in unread]

    return uses


def a_file(name, format="qcow2"):
    return lambda folder: file_layer(str(folder / name), format)


@pytest.mark.parametrize(
    ("layer", "ends", "volume", "used", "unread"),
    [
        (a_file("top.qcow2"), None, None, {"top.qcow2", "base.qcow2"}, []),
        (a_file("top.qcow2"), True, None, {"top.qcow2"}, []),
        (a_file("link.qcow2"), None, None, {"link.qcow2", "top.qcow2", "base.qcow2"}, []),
        (a_file("top.qcow2", "raw"), None, None, {"top.qcow2"}, []),
        # Without a format nothing is taken from the first bytes: a guest may have written them.
        (a_file("top.qcow2", None), None, None, {"top.qcow2"}, ["top.qcow2"]),
        (a_file("data.raw", None), None, None, {"data.raw"}, ["data.raw"]),
        (a_file("slow.qcow2"), None, None, {"slow.qcow2"}, ["slow.qcow2"]),
        (a_file("bad.qcow2"), None, None, {"bad.qcow2"}, ["bad.qcow2"]),
        (a_file("far.qcow2"), None, None, {"far.qcow2"}, ["far.qcow2"]),
        (a_file("split.qcow2"), None, None, {"split.qcow2", "data.raw"}, []),
        (a_file("split.qcow2"), True, None, {"split.qcow2", "data.raw"}, []),
        (a_file("slow.qcow2"), True, None, {"slow.qcow2"}, ["slow.qcow2"]),
        (a_file("bad.qcow2"), True, None, {"bad.qcow2"}, ["bad.qcow2"]),
        (a_file("bad.qcow2", "raw"), True, None, {"bad.qcow2"}, []),
        (a_file("gone.qcow2"), True, None, {"gone.qcow2"}, []),
        (a_file("gone.qcow2"), None, None, {"gone.qcow2"}, []),
        (a_file("orphan.qcow2"), None, None, {"orphan.qcow2", "gone.qcow2"}, []),
        (a_file("unmounted/gone.qcow2"), None, None, {"unmounted/gone.qcow2"}, ["unmounted/gone.qcow2"]),
        (VOLUME, None, "top.qcow2", {"top.qcow2", "base.qcow2"}, []),
        (VOLUME, True, "top.qcow2", {"top.qcow2"}, []),
        (VOLUME, True, None, set(), ["p/v"]),
        (EXPORT, True, None, set(), []),
    ],
)
def test_uses(found, layer, ends, volume, used, unread):
    assert found(layer, ends, volume) == (used, unread)


A, B, C, D, E = (file_layer("/none/" + name, "qcow2") for name in "abcde")


def written(*disks) -> set:
    connection = Connection(*disks)
    used, dummy = all_uses(connection, Images(connection.local))
    assert all(use.layer == () for use in used)
    return {use.place[1][-1:] for use in used if use.writes}


@pytest.mark.parametrize(
    ("disk", "paths"),
    [
        (Disk("vda", Chain((A, B), True)), {"a"}),
        (Disk("vda", Chain((A, B), True), device="lun"), {"a"}),
        (Disk("vda", Chain((A, B), True), readonly=True), set()),
        (Disk("vda", Chain((A, B), True), shareable=True), set()),
        (Disk("vda", Chain((A, B), True), device="cdrom"), set()),
        (Disk("vda", Chain((A, B), True), mirror=Mirror("copy", None, Chain((C, D), True))), {"a", "c"}),
        (Disk("vda", Chain((replace(A, store=E), B), True)), {"a", "e"}),
        (Disk("vda", Chain((A, replace(B, store=E)), True)), {"a"}),
    ],
)
def test_only_the_active_layer_is_written_to(disk, paths):
    assert written(disk) == paths


def test_a_link_is_told_with_the_place_as_written(folder):
    layer = file_layer(str(folder / "link.qcow2"), "qcow2")
    connection = Connection(Disk("vda", Chain((layer,), True)))
    used, dummy = all_uses(connection, Images(connection.local))
    real = ("path", str(folder / "top.qcow2"))
    assert [(use.place, use.layer) for use in used] == [(layer.place, ()), (real, layer.place)]


def test_siblings_and_their_data_files_are_used(folder):
    parent = replace(A, branches=(Chain((replace(C, store=E), D), True),))
    connection = Connection(Disk("vda", Chain((parent, B), True)))
    used, unread = all_uses(connection, Images(connection.local))
    assert {use.place[1][-1:] for use in used} == set("abcde") and unread == ()


def test_a_data_file_that_the_definition_names_is_believed(folder):
    layer = replace(file_layer(str(folder / "split.qcow2"), "qcow2"), store=E)
    connection = Connection(Disk("vda", Chain((layer,), True)))
    used, unread = all_uses(connection, Images(connection.local))
    assert {use.place for use in used} == {layer.place, E.place} and unread == ()


def test_a_guest_that_vanished_uses_nothing(folder):
    connection = types.SimpleNamespace(local=True, select=lambda selection: [None], read=lambda *arguments: None)
    assert all_uses(connection, Images(connection.local)) == ((), ())
