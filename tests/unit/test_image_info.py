# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the names in headers mean and may show, which format first bytes are, and what libvirt says of a storage volume."""

from __future__ import annotations

import json
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import mentioned
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_xml import parse_volume
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.image_info import MAGIC_BYTES, SAFE_FORMATS, magic_format, resolve_backing, shown_name


def nested(levels: int, inner: str) -> str:
    """A json: name in a json: name in a json: name ..."""
    name = inner
    for dummy in range(levels):
        name = "json:" + json.dumps({"driver": "raw", "file": {"driver": "x", "filename": name, "password": "SECRET"}})
    return name


def lists(levels: int) -> str:
    return "json:" + '{"file": ' * levels + '{"key": "SECRET"}' + "}" * levels


HIDDEN = [
    "nbd://SECRET:SECRET@h:10809/export",
    "nbd://SECRET@h/export",
    "ssh://me:SECRET@h/path?host_key_check=SECRET",
    "https://h/x.qcow2?token=SECRET#SECRET",
    "https://me:SECRET@h/x?sig=SECRET",
    "http://a@SECRET:SECRET@h/x",
    "rbd:pool/image:id=SECRET:key=SECRET==:mon_host=h",
    "nbd:h:10809:exportname=e:password=SECRET",
    'json:{"driver": "https", "url": "https://h/x", "username": "SECRET", "password-secret": "SECRET"}',
    'json:{"file.driver": "https", "file.username": "SECRET", "file.cookie": "SECRET", "file.url": "https://SECRET@h/SECRET"}',
    'json:{"driver": "rbd", "pool": "p", "image": "i", "user": "SECRET", "key-secret": "SECRET", "conf": "SECRET", "auth-client-required": ["SECRET"]}',
    'json:{"driver": "qcow2", "encrypt": {"format": "luks", "key-secret": "SECRET"}, "file": {"driver": "file", "filename": "/a"}}',
    'json:{"driver": "iscsi", "portal": "SECRET", "initiator-name": "SECRET", "user": "SECRET", "password-secret": "SECRET"}',
    'json:{"driver": "quorum", "children": [{"file": {"filename": "https://SECRET@h/x?SECRET", "key": "SECRET"}}]}',
    'json:{"file": {"filename": "nbd://SECRET@h/x"}}',
    'json:{"file": {"filename": "rbd:p/i:id=SECRET:key=SECRET"}}',
    'json:{"file": {"filename": "nbd:h:1:password=SECRET"}}',
    nested(3, "https://me:SECRET@h/x?t=SECRET"),
    nested(12, 'json:{"password": "SECRET"}'),
    lists(500),
    lists(100_000),
    'json:{"driver": "SECRET", ',
    "json:SECRET",
    'json:["SECRET"',
]


@pytest.mark.parametrize("name", HIDDEN, ids=lambda name: name[:40])
def test_no_secret_of_a_header_is_shown(name):
    assert "SECRET" not in shown_name(name)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/srv/a.qcow2", "/srv/a.qcow2"),
        ("/srv/a:b?c#d.qcow2", "/srv/a:b?c#d.qcow2"),
        ("./a:b", "./a:b"),
        ("../a:b?c", "../a:b?c"),
        ("a.qcow2", "a.qcow2"),
        ("nbd://h:10809/export", "nbd://h:10809/export"),
        ("nbd://me:pw@[::1]:10809/export", "nbd://[::1]:10809/export"),
        ("nbd:h:10809:exportname=e", "nbd:h:10809:exportname=e"),
        ("nbd+unix:///e?socket=/run/s", "nbd+unix:///e"),
        ("rbd:pool/image:id=admin:key=abc", "rbd:pool/image"),
        ("https://me@h", "https://h"),
        ("json:{no", "json: (not readable)"),
    ],
)
def test_what_says_where_is_shown(name, shown):
    assert shown_name(name) == shown


@pytest.mark.parametrize(
    "told",
    [
        {"driver": "qcow2", "file": {"driver": "nbd", "server": {"host": "h", "port": "1", "type": "inet"}, "export": "e"}},
        {"driver": "qcow2", "backing": {"driver": "raw", "file": {"driver": "file", "filename": "/b:c?d#e"}}},
        {"driver": "rbd", "pool": "p", "image": "i", "server": [{"host": "h", "port": "1"}]},
        {"file.driver": "nbd", "file.server.0.host": "h", "file.export": "a:b"},
        {"driver": "gluster", "volume": "v", "path": "a/b", "server": [{"type": "unix", "path": "/run/s"}]},
    ],
)
def test_what_of_a_json_name_says_where_is_shown(told):
    shown = shown_name("json:" + json.dumps(told))
    assert shown.startswith("json:") and json.loads(shown[len("json:") :]) == told


@given(st.text(max_size=60))
def test_any_name_can_be_shown(name):
    for one in (name, "json:" + name, "https://" + name, "rbd:" + name):
        assert isinstance(shown_name(one), str)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("base.qcow2", "/srv/vm/base.qcow2"),
        ("../base.qcow2", "/srv/vm/../base.qcow2"),
        ("/a//b/./c", "/a/b/c"),
        ("file:base.qcow2", "/srv/vm/base.qcow2"),
        ("file:/b", "/b"),
        ("./a:b", "/srv/vm/a:b"),
        ("/a:b", "/a:b"),
        ("dir/a:b", "/srv/vm/dir/a:b"),
        ("a:b", None),
        ("nbd://h/x", None),
        ("nbd:h:1", None),
        ("json:{}", None),
        ("fat:/etc", None),
        ("host_device:/dev/sda", None),
        ("", None),
        (None, None),
    ],
)
def test_only_a_path_is_a_path(name, path):
    assert resolve_backing("/srv/vm/top.qcow2", name) == path


# First bytes


@pytest.mark.parametrize("format", ["qcow2", "qcow", "qed", "vdi", "vhdx", "vpc", "parallels", "vmdk", "raw"])
def test_the_first_bytes_of_what_qemu_img_makes(tmp_path, format):
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", format, str(path), "4M"], check=True)
    assert magic_format(path.read_bytes()[:MAGIC_BYTES]) == (format if format != "raw" else None)


@pytest.mark.parametrize(
    ("head", "format"),
    [
        (b"QFI\xfb\x00\x00\x00\x01", "qcow"),
        (b"QFI\xfb\x00\x00\x00\x02", "qcow2"),
        (b"QFI\xfb\x00\x00\x00\x03", "qcow2"),
        (b"# Disk DescriptorFile\nversion=1\n", "vmdk"),
        (b"KDMV", "vmdk"),
        (b"COWD", "vmdk"),
        (b"WithouFreSpacExt", "parallels"),
        (b"\x00" * 64 + b"\x7f\x10\xda\xbe", "vdi"),
        (b"\x00" * 63 + b"\x7f\x10\xda\xbe", None),
        (b"QFI", None),
        (b" QFI\xfb\x00\x00\x00\x03", None),
        # A guest that encrypts its own raw disk writes this: it tells nothing about the image.
        (b"LUKS\xba\xbe\x00\x01", None),
        (b"\x55\xaa" * 256, None),
        (b"", None),
    ],
)
def test_magic(head, format):
    assert magic_format(head) == format


def test_a_format_that_opens_more_than_its_own_file_is_not_safe():
    assert "vmdk" not in SAFE_FORMATS and "raw" not in SAFE_FORMATS and "qcow2" in SAFE_FORMATS


# Storage volumes

FORMAT, BELOW = "<target><path>/p/v</path><format type='%s'/></target>", "<backingStore><path>%s</path><format type='%s'/></backingStore>"
SIZES = "<capacity unit='bytes'>100</capacity><allocation unit='bytes'>60</allocation><physical unit='bytes'>70</physical>"


def volume(inside, kind="file"):
    return "<volume type='%s'><name>v</name>%s%s</volume>" % (kind, SIZES, inside)


@pytest.mark.parametrize(
    ("asked", "xml", "expected"),
    [
        # asked format, XML, (format, kind, problem, magic, virtual, backing, its format)
        ("qcow2", volume(FORMAT % "qcow2" + BELOW % ("/p/b", "raw")), ("qcow2", "file", None, "qcow2", 100, "/p/b", "raw")),
        ("qcow2", volume(FORMAT % "qcow2"), ("qcow2", "file", None, "qcow2", 100, None, None)),
        ("qcow2", volume(FORMAT % "qcow2" + "<backingStore><path>b</path></backingStore>"), ("qcow2", "file", None, "qcow2", 100, "/p/b", None)),
        (None, volume(FORMAT % "qcow2"), ("qcow2", "file", None, "qcow2", 100, None, None)),
        ("raw", volume(FORMAT % "raw"), ("raw", "file", None, None, 512, None, None)),
        ("raw", volume(FORMAT % "raw", "block"), ("raw", "block", None, None, 512, None, None)),
        # libvirt says what the pool takes the file for, a guest may have written it.
        ("raw", volume(FORMAT % "qcow2" + BELOW % ("/etc/shadow", "raw")), ("raw", "file", None, "qcow2", None, None, None)),
        # Of an LVM volume libvirt says no format, or what it finds on it: nobody has looked into the header.
        ("qcow2", volume(""), ("qcow2", "file", "remote", None, None, None, None)),
        ("raw", volume(FORMAT % "linux", "block"), ("raw", "block", "remote", None, 100, None, None)),
        (None, volume(""), (None, "file", "format_unknown", None, None, None, None)),
        ("qcow2", volume(FORMAT % "qcow2" + BELOW % ("nbd://h/x", "raw")), ("qcow2", "file", None, "qcow2", 100, None, "raw")),
        ("vmdk", volume(FORMAT % "vmdk"), ("vmdk", "file", "remote", None, 100, None, None)),
    ],
)
def test_volume(asked, xml, expected):
    probe = parse_volume(("/p/v", asked), xml)
    image = probe.image
    below = (None, None) if image is None or asked == "raw" else (image.backing_path, image.backing_format)
    virtual = None if asked == "raw" and probe.magic else probe.virtual
    assert (probe.format, probe.kind, probe.problem, probe.magic, virtual, *below) == expected
    assert (probe.path, probe.physical, probe.allocated, probe.real) == ("/p/v", 70, 60, "/p/v")


def test_a_volume_without_sizes_and_a_broken_one():
    probe = parse_volume(("/p/v", "raw"), "<volume><capacity>9</capacity></volume>")
    assert (probe.physical, probe.allocated, probe.kind) == (9, 0, "file")
    for xml in ("", "<volume>", "<!DOCTYPE volume [<!ENTITY a 'b'>]><volume/>"):
        with pytest.raises(Unavailable):
            parse_volume(("/p/v", "raw"), xml)


def test_every_path_that_xml_mentions_anywhere():
    xml = "<domain><os><nvram template='/t'>/nvram \n</nvram></os><!-- /comment --><a b='/c' d='e/f'><g>\n  /h i</g></a><k>x</k></domain>"
    assert mentioned(xml) == {"/t", "/nvram", "/c", "/h i"}
