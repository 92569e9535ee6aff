# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Answers of QEMU's monitor. Those that are no answers are in cases/calls/qmp-*.json."""

from __future__ import annotations

import json

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import Node, QemuView
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.qmp import parse_job_name, parse_view, parse_word


def answer(*found) -> str:
    return json.dumps({"return": found, "id": "libvirt-7"})


def node(file="/a", name="libvirt-1-format", driver="qcow2", readonly=False) -> dict:
    return {"node-name": name, "drv": driver, "file": file, "ro": readonly, "iops": 0}


def file_of(name: str) -> str:
    return parse_view(answer(node(name)), answer(), answer()).nodes[0].file


def test_a_view():
    storage = node(name="libvirt-1-storage", driver="file", readonly=True)
    job = {"type": "mirror", "device": "copy-vda-libvirt-1-format", "ready": True}
    devices = [
        {"device": "", "qdev": "/machine/peripheral/virtio-disk0/virtio-backend", "inserted": node()},
        {"device": "", "qdev": "ide0-1-0", "removable": True, "tray_open": False},  # no medium
        {"device": "drive-virtio-disk1", "inserted": {"file": "/old", "drv": "raw"}},  # before -blockdev
    ]
    assert parse_view(answer(node(), storage), answer(job), answer(*devices)) == QemuView(
        (Node("libvirt-1-format", "qcow2", "/a", False), Node("libvirt-1-storage", "file", "/a", True)),
        (job,),
        (("/machine/peripheral/virtio-disk0/virtio-backend", "libvirt-1-format", "/a"), ("drive-virtio-disk1", "", "/old")),
    )
    assert parse_view(answer(), answer(), answer()) == QemuView()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/srv/a.qcow2", "/srv/a.qcow2"),
        ("/srv/json:{}", "/srv/json:{}"),
        # A backing that was hidden, a slice, a relative name in a header: as QEMU 7.2 writes them.
        ('json:{"backing": null, "driver": "qcow2", "file": {"driver": "file", "filename": "/srv/a"}}', "/srv/a"),
        ('json:{"offset": 1048576, "driver": "raw", "size": 4096, "file": {"driver": "file", "filename": "/srv/a"}}', "/srv/a"),
        ('json:{"driver": "luks", "key-secret": "s", "file": {"driver": "raw", "file": {"driver": "host_device", "filename": "/dev/x"}}}', "/dev/x"),
        (
            'json:{"backing": {"driver": "qcow2", "file": {"driver": "file", "filename": "/srv/below"}}, "driver": "qcow2", "file": '
            '{"driver": "file", "filename": "/srv/a"}}',
            "/srv/a",
        ),
        ("nbd://me:SECRET@h:1/e", "nbd://h:1/e"),
        ('json:{"driver": "raw", "file": {"driver": "https", "url": "https://h/x", "password-secret": "SECRET"}}', None),
        ('json:{"driver": "raw", "file": {"driver": "x", "filename": "https://SECRET@h/x?SECRET"}}', "https://h/x"),
    ],
)
def test_the_file_of_a_node(name, path):
    found = file_of(name)
    assert found == path or (path is None and found.startswith("json:"))
    assert "SECRET" not in found


def test_a_name_that_qemu_cut_off():
    """Of a chain of 45 layers with relative names in their headers, QEMU 7.2 tells 4,092 bytes and three dots; the rest is told well."""
    whole = 'json:{"backing": %s}' % ('{"backing": ' * 400)
    view = parse_view(answer(node(whole[:4092] + "..."), node("/b")), answer(), answer({"qdev": "x", "inserted": node(whole[:4092] + "...")}))
    assert [one.file for one in view.nodes] == ["json: (not readable)", "/b"]
    assert view.devices == (("x", "libvirt-1-format", "json: (not readable)"),)


@pytest.mark.parametrize("name", ["json:", "json:[]", 'json:{"file": []}', 'json:{"file": {"filename": 5}}', "json:null", 'json:{"filename": null}', ""])
def test_a_name_that_says_nothing(name):
    assert isinstance(file_of(name), str)


def jobs(*names) -> str:
    return answer(*({"type": "mirror", "device": name} for name in names))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (jobs("copy-vda-libvirt-1-format"), "copy-vda-libvirt-1-format"),
        (jobs("pull-vda-libvirt-1-format", "copy-vdb-libvirt-2-format", "copy-vda-libvirt-12-format"), "copy-vda-libvirt-12-format"),
        (jobs("copy-vda10-libvirt-1-format"), None),
        (jobs("commit-vda-libvirt-1-format"), None),
        (jobs(), None),
        (jobs("copy-vda-libvirt-1-format", "copy-vda-libvirt-2-format"), None),
        ('{"error": {"class": "GenericError", "desc": "no"}}', None),
        ('{"return": [{}]}', None),
        ("no JSON", None),
    ],
)
def test_the_job_of_a_disk(text, name):
    if name is not None:
        assert parse_job_name(text, "vda") == name
        return
    with pytest.raises(Unavailable, match="disk vda") as caught:
        parse_job_name(text, "vda")
    assert caught.value.code == "qmp"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"return": {}, "id": "libvirt-9"}', None),
        ('{"error": {"class": "CommandNotFound", "desc": "The command x has not been found"}}', "The command x has not been found"),
        ('{"error": {}}', "its answer cannot be read"),
        ('{"error": "x"}', "its answer cannot be read"),
        ("[]", "its answer cannot be read"),
        ("7", "its answer cannot be read"),
        ("", "its answer cannot be read"),
    ],
)
def test_what_qemu_has_against_a_command(text, word):
    assert parse_word(text) == word
