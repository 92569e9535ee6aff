# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who uses which image, where XML leaves it open: headers, volumes, links, and what cannot be read."""

from __future__ import annotations

import json

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, Layer, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import qemu_img
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.uses import all_uses

VOLUME = Layer("volume", (("pool", "p"), ("volume", "v")), "qcow2")


class Connection:
    local = True

    def __init__(self, chain, volume):
        self.chain, self.volume = chain, volume

    def select(self, selection):
        return [None]

    def read(self, handle, with_config, with_jobs):
        return Domain("vm2", "u2", False, "shutdown", disks=(Disk("vda", self.chain),))

    def volume_path(self, pool, volume):
        assert (pool, volume) == ("p", "v")
        return self.volume


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Paths used and unread (below tmp_path, without it) for a chain; top.qcow2 stands on base.qcow2 by its header."""
    monkeypatch.setattr(qemu_img.shutil, "which", lambda tool: "/bin/" + tool)
    (tmp_path / "base.qcow2").write_text("")
    (tmp_path / "top.qcow2").write_text("")
    (tmp_path / "slow.qcow2").write_text("")
    (tmp_path / "link.qcow2").symlink_to(tmp_path / "top.qcow2")

    def run_command(command, **options):
        path = command[-1]
        if path.endswith("slow.qcow2"):
            return 124, "", ""
        facts = {"format": "qcow2", "virtual-size": 1}
        if not path.endswith("base.qcow2"):
            facts.update({"backing-filename": "base.qcow2", "backing-filename-format": "qcow2"})
        return 0, json.dumps(facts), ""

    def uses(layer, ends=None, volume=None):
        chain = Chain((layer(tmp_path),) if callable(layer) else (layer,), ends)
        used, unread = all_uses(Connection(chain, volume and str(tmp_path / volume)), run_command)
        assert {(use.guest, use.uuid, use.disk) for use in used} == {("vm2", "u2", "vda")}
        short = str(tmp_path) + "/"
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
        (a_file("top.qcow2", None), None, None, {"top.qcow2"}, ["top.qcow2"]),
        (a_file("slow.qcow2"), None, None, {"slow.qcow2"}, ["slow.qcow2"]),
        (a_file("gone.qcow2"), None, None, {"gone.qcow2"}, []),
        (a_file("unmounted/gone.qcow2"), None, None, {"unmounted/gone.qcow2"}, ["unmounted/gone.qcow2"]),
        (VOLUME, None, "top.qcow2", {"top.qcow2", "base.qcow2"}, []),
        (VOLUME, True, "top.qcow2", {"top.qcow2"}, []),
        (VOLUME, True, None, set(), ["p/v"]),
    ],
)
def test_uses(found, layer, ends, volume, used, unread):
    assert found(layer, ends, volume) == (used, unread)
