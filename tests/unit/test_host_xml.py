# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What libvirt's XML says beside the disks: as whom QEMU runs, the memory of a guest, and the notes of conversions that were begun."""

from __future__ import annotations

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import CONVERSION_URI, etree, parse_domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_xml import numbers_of, parse_runner
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.notes import Conversion
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.write_xml import conversion_xml
from ansible_collections.livestorage.libvirt.tests.unit.support import HERE

LIVE, CONFIG = ((HERE / "cases" / name).read_text(encoding="utf-8") for name in ("raw.xml", "raw.inactive.xml"))
NOTE = Conversion("vda", "/srv/m&m.qcow2", "/srv/'d\".raw", "present", True)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("+64055:+108", (64055, 108)),
        ("0:0", (0, 0)),
        ("+0:+0", (0, 0)),
        ("107:+36", (107, 36)),
        ("qemu:kvm", None),
        ("+107:kvm", None),
        ("+107", None),
        ("", None),
        ("1:2:3", None),
        ("-1:2", None),
        (":", None),
    ],
)
def test_numbers(label, expected):
    assert numbers_of(label) == expected


def capabilities(*models) -> str:
    return "<capabilities><host>%s</host><guest/></capabilities>" % "".join("<secmodel><model>%s</model><doi>0</doi>%s</secmodel>" % one for one in models)


BASE = "<baselabel type='%s'>%s</baselabel>"


@pytest.mark.parametrize(
    ("xml", "expected"),
    [
        (capabilities(("apparmor", ""), ("dac", BASE % ("kvm", "+64055:+108") + BASE % ("qemu", "+1:+2"))), (64055, 108)),
        (capabilities(("dac", BASE % ("qemu", "+1:+2") + BASE % ("kvm", " +3:+4 "))), (3, 4)),
        (capabilities(("dac", BASE % ("qemu", "+1:+2"))), (1, 2)),
        (capabilities(("selinux", BASE % ("kvm", "system_u:object_r"))), None),
        (capabilities(("dac", "")), None),
        (capabilities(("dac", BASE % ("kvm", "qemu:kvm"))), None),
        (capabilities(), None),
    ],
)
def test_as_whom_libvirt_starts_qemu(xml, expected):
    assert parse_runner(xml) == expected


@pytest.mark.parametrize(("xml", "expected"), [(LIVE, 512 << 20), (LIVE.replace("<memory unit='KiB'>524288</memory>", ""), None)])
def test_the_memory_of_a_guest(xml, expected):
    assert parse_domain(xml, True).memory == expected


def noted(xml: str, *notes, uri=CONVERSION_URI, word="datafile") -> str:
    """With these notes, as libvirt puts them there."""
    root = etree.fromstring(xml)
    for note in notes:
        space = uri % note.disk if "%s" in uri else uri
        place = etree.SubElement(root.find("metadata"), "{%s}%s" % (space, word), nsmap={"livestorage": space})
        place.attrib.update(etree.fromstring(conversion_xml(note)).attrib)
    return etree.tostring(root).decode()


@pytest.mark.parametrize("note", [NOTE, Conversion("vdb", "/m", "/d", "absent"), Conversion("sda", "/m", "/d", "migrate_xml", False)])
def test_a_note_is_read_as_it_was_written(note):
    found = parse_domain(noted(CONFIG, note), False)
    assert found.conversions == (note,) and found.conversion(note.disk) == note and found.conversion("other") is None


def test_a_note_stands_in_the_definition():
    """What the live XML has is not asked: a note there would go with the guest."""
    assert parse_domain(LIVE, True, config_xml=noted(CONFIG, NOTE)).conversions == (NOTE,)
    assert parse_domain(noted(LIVE, NOTE), True, config_xml=CONFIG).conversions == ()
    assert parse_domain(noted(LIVE, NOTE), True, persistent=False).conversions == (NOTE,)


def test_each_disk_has_its_own_note():
    two = (NOTE, Conversion("vdb", "/m", "/d", "absent"))
    assert parse_domain(noted(CONFIG, *two), False).conversions == two


@pytest.mark.parametrize("more", [{"uri": CONVERSION_URI % "vdz"}, {"word": "job"}, {"uri": "https://example.com/%s"}])
def test_what_is_no_note_of_ours_is_left_alone(more):
    assert parse_domain(noted(CONFIG, NOTE, **more), False).conversions == ()


def test_a_comment_is_no_note():
    assert parse_domain(CONFIG.replace("<metadata/>", "<metadata><!-- x --><?y z?></metadata>"), False).conversions == ()
