# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What libvirt keeps of snapshots, put right, and our own note about them: only what has moved is another, and all comes back."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from lxml import etree

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Layer, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import NOTED_URI, mentioned, parse_domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Snapshot
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.snapshot_xml import noted_xml, parse_snapshot, retold, under
from ansible_collections.livestorage.libvirt.tests.unit.strategies import SAFE, WORDS, overlays, placed
from ansible_collections.livestorage.libvirt.tests.unit.support import HERE, SCHEMAS
from ansible_collections.livestorage.libvirt.tests.unit.test_chain_laws import without_drivers

# A snapshot as libvirt 9.0 keeps it of a running guest: the live definition, the one of the next start, and the overlays.
TAKEN = (HERE / "timelapse" / "snapshot" / "3-taken.snapshot.xml").read_text(encoding="utf-8")
STATE, STATE_B = "/var/lib/libvirt/images/pair-current1.qcow2", "/var/lib/libvirt/images/pair-current1-vdb.qcow2"
OVER, OVER_B = "/var/lib/libvirt/images/pair-current1.moment", "/var/lib/libvirt/images/pair-current1-vdb.moment"
SPELLED = """<domainsnapshot><name>s2</name><parent><name>s1</name></parent><state>disk-snapshot</state><creationTime>7</creationTime>
<memory snapshot='external' file='/mem'/><disks><disk name='vda' snapshot='external' type='file'><driver type='qcow2'/><source file='/c'/></disk>
<disk name='vdb' snapshot='no'/></disks>
<domain><devices>
<disk type='file'><driver name='qemu' type='qcow2' cache='none'/><source file='/b' index='1'><seclabel model='dac' relabel='no'/></source>
<backingStore type='file'><format type='raw'/><source file='/a'/><backingStore/></backingStore><target dev='vda'/></disk>
<disk type='file'><driver name='qemu' type='raw'/><source file='/a'/><target dev='vdb'/></disk>
</devices></domain>
<inactiveDomain><devices><disk type='file'><driver name='qemu' type='qcow2'/><source file='/b'/><target dev='vda'/></disk></devices></inactiveDomain>
<cookie><x/></cookie></domainsnapshot>"""
PATHS = {TAKEN: (STATE, STATE_B, OVER, OVER_B), SPELLED: ("/a", "/b", "/c")}


def rest_of(xml: str) -> bytes:
    """All but what says which image a disk is on."""
    root = etree.fromstring(xml)
    for disk in list(root.iterfind("disks/disk")) + list(root.iterfind("domain/devices/disk")) + list(root.iterfind("inactiveDomain/devices/disk")):
        disk.attrib.pop("type", None)
        for part in disk.findall("backingStore") + disk.findall("source"):
            disk.remove(part)
        for driver in disk.findall("driver"):
            driver.attrib.pop("type", None)
    return etree.tostring(root, method="c14n")


@st.composite
def moves(draw):
    """(a snapshot's XML, the disk, the path that left, the layer that stands for it)."""
    xml = draw(st.sampled_from(sorted(PATHS)))
    path, layer = draw(st.sampled_from(PATHS[xml])), draw(placed())
    assume(str(layer) not in PATHS[xml])
    return xml, draw(st.sampled_from(["vda", "vdb"])), path, layer


@given(moves())
def test_what_has_moved_is_named_by_its_new_place_and_nothing_else_changes(drawn):
    xml, disk, path, layer = drawn
    before, after = parse_snapshot(xml), retold(xml, [(disk, path, layer)], {})
    named = (disk, path) in before.files + before.bases
    spelled = xml == SPELLED and (disk, path) == ("vda", "/a")
    assert (after is not None) == (named or spelled or (xml == SPELLED and (disk, path) == ("vdb", "/a")))
    if after is None:
        return

    def moved(pairs):
        return tuple((target, str(layer) if (target, one) == (disk, path) else one) for target, one in pairs)

    assert parse_snapshot(after) == replace(before, files=moved(before.files), bases=moved(before.bases))
    assert rest_of(after) == rest_of(xml)
    assert retold(after, [(disk, path, layer)], {}) is None


@given(st.sampled_from(sorted(PATHS)), st.lists(st.tuples(st.sampled_from(["vda", "vdb", "vdz"]), SAFE.map("/srv/new/{}".format), placed()), max_size=3))
def test_what_has_not_moved_is_not_touched(xml, pairs):
    assert retold(xml, pairs, {}) is None


@given(st.sampled_from(sorted(PATHS)), placed())
def test_a_reversion_changes_the_overlay_alone(xml, layer):
    assume(str(layer) not in PATHS[xml])
    before, after = parse_snapshot(xml), retold(xml, [], {"vda": layer})
    files = tuple((target, str(layer) if target == "vda" else path) for target, path in before.files)
    assert parse_snapshot(after) == replace(before, files=files)
    one, two = (copy.deepcopy(etree.fromstring(text)) for text in (xml, after))
    for root in (one, two):
        root.remove(root.find("disks"))
    assert etree.tostring(one, method="c14n") == etree.tostring(two, method="c14n") and rest_of(after) == rest_of(xml)


def test_a_chain_that_is_spelled_out_is_left_to_the_headers_where_it_names_what_left():
    """The layer itself keeps what else is said of it, such as labels and how it is opened."""
    document = etree.fromstring(retold(SPELLED, [("vda", "/a", file_layer("/b", "qcow2"))], {}))
    disk = document.find("domain/devices/disk")
    assert disk.find("backingStore") is None and disk.find("source").get("file") == "/b" and disk.find("source/seclabel") is not None
    assert dict(disk.find("driver").attrib) == {"name": "qemu", "type": "qcow2", "cache": "none"}
    assert document.findall("domain/devices/disk")[1].find("source").get("file") == "/a"  # of the other disk nothing was said


def test_a_layer_takes_the_place_of_another_with_its_own_format_and_kind():
    document = etree.fromstring(retold(SPELLED, [("vda", "/b", Layer("block", (("dev", "/dev/x"),), "raw"))], {}))
    for disk in (document.find("domain/devices/disk"), document.find("inactiveDomain/devices/disk")):
        source = disk.find("source")
        assert (disk.get("type"), disk.find("driver").get("type"), dict(source.attrib)) == ("block", "raw", {"dev": "/dev/x"})
        assert disk.find("backingStore") is None


def test_no_data_file_of_the_layer_that_left_stays():
    """A new one comes where libvirt is to know it."""
    data = "<dataStore type='file'><format type='raw'/><source file='/%s.raw'/></dataStore>"
    root = etree.fromstring(SPELLED)
    for source in root.iterfind(".//source[@file='/b']"):
        source.append(etree.fromstring(data % "old"))
    xml = etree.tostring(root).decode()
    for layer, stores in ((file_layer("/n", "qcow2"), []), (replace(file_layer("/n", "qcow2"), store=file_layer("/new.raw", "raw")), ["/new.raw"])):
        document = etree.fromstring(retold(xml, [("vda", "/b", layer)], {}))
        for disk in (document.find("domain/devices/disk"), document.find("inactiveDomain/devices/disk")):
            assert disk.find("source").get("file") == "/n"
            assert [one.get("file") for one in disk.iterfind("source/dataStore/source")] == stores


def test_what_was_on_a_server_leaves_nothing_of_it():
    """Nor does what had no source at all, as an overlay that libvirt has made up a name for."""
    root = etree.fromstring(retold(SPELLED, [], {"vda": Layer("network", (("name", "x"), ("protocol", "nbd")), "qcow2", hosts=((("name", "far"),),))}))
    assert [one.get("name") for one in root.iterfind("disks/disk/source/host")] == ["far"]
    disk = etree.fromstring(retold(etree.tostring(root, encoding="unicode"), [("vda", "nbd://far/x", file_layer("/c", "qcow2"))], {})).find("disks/disk")
    assert disk.get("type") == "file" and len(disk.find("source")) == 0 and dict(disk.find("source").attrib) == {"file": "/c"}
    bare = "<domainsnapshot><name>s</name><disks><disk name='vda' snapshot='external'/></disks></domainsnapshot>"
    assert parse_snapshot(retold(bare, [], {"vda": file_layer("/c", "qcow2")})).files == (("vda", "/c"),)


def test_one_path_in_two_spellings_is_one_path():
    assert retold(SPELLED, [("vda", "//b/", file_layer("/new", "qcow2"))], {}) is not None


@given(placed())
def test_libvirt_takes_what_is_put_right(layer):
    """By its schema: the place of an overlay, in a snapshot without definitions (those of the films have parts of their own)."""
    disk = "<disk name='vda' snapshot='external' type='file'><driver type='qcow2'/><source file='/old'/></disk>"
    xml = retold("<domainsnapshot><name>s</name><disks>%s</disks></domainsnapshot>" % disk, [("vda", "/old", layer)], {})
    schema = etree.RelaxNG(etree.parse(str(SCHEMAS / "domainsnapshot.rng")))
    assert schema.validate(without_drivers(xml)), schema.error_log


# Our own note


@st.composite
def shots(draw):
    """What a note can hold of a snapshot: pairs for some of the disks, in the order of the first of them that names a disk."""
    targets = ["vda", "vdb", "vdc"]

    def pairs(values):
        return tuple((target, draw(values)) for target in targets if draw(st.booleans()))

    paths = WORDS.map("/srv/{}".format)
    directions = st.sampled_from(["forward", "backward"])
    return Snapshot(draw(WORDS), pairs(paths), pairs(paths), tracked=draw(st.booleans()), on_delete=pairs(directions), spoiled=pairs(paths))


def domain_with(note: str, more: str = "") -> str:
    """As libvirt keeps it: with a prefix, beside the notes of others."""
    root = etree.fromstring("<domain><name>vm1</name><uuid>u</uuid><metadata>%s%s</metadata><devices/></domain>" % (note, more))
    for element in root.find("metadata")[0].iter():
        element.tag = "{%s}%s" % (NOTED_URI, element.tag)
    return etree.tostring(root, encoding="unicode")


def told(shot: Snapshot) -> tuple:
    return (shot.name, shot.tracked, dict(shot.files), dict(shot.bases), dict(shot.on_delete), dict(shot.spoiled))


@given(st.lists(shots(), max_size=4))
def test_a_note_comes_back(drawn):
    strange = "<!-- not ours --><other:x xmlns:other='http://other.example/'><snapshot name='no'/></other:x>"
    found = parse_domain(domain_with(noted_xml(drawn), strange), False).noted
    assert list(map(told, found)) == list(map(told, drawn))
    assert list(map(told, parse_domain(domain_with(noted_xml(found)), False).noted)) == list(map(told, drawn))


@given(st.lists(shots(), min_size=1, max_size=3))
def test_what_is_only_noted_is_no_path_of_the_guest(drawn):
    """Else an image that a note remembers would be taken for one that the guest uses."""
    assert mentioned(domain_with(noted_xml(drawn))) == frozenset()


@pytest.mark.parametrize("direction", ["", "sideways"])
def test_a_direction_that_nobody_knows_is_none(direction):
    note = "<snapshots><snapshot name='s' tracked='yes'><disk name='vda' overlay='/o' on_delete='%s'/></snapshot></snapshots>" % direction
    (found,) = parse_domain(domain_with(note), False).noted
    assert found.on_delete == () and found.files == (("vda", "/o"),) and found.tracked


# Reading what libvirt keeps


def test_all_that_libvirt_tells_of_a_snapshot():
    found = parse_snapshot(SPELLED, True)
    assert found == Snapshot("s2", (("vda", "/c"),), (("vda", "/b"),), parent="s1", current=True, state="disk-snapshot", created=7, memory="/mem")
    assert found.paths == ("/c", "/b", "/mem") and (found.overlay("vda"), found.base("vda"), found.overlay("vdb")) == ("/c", "/b", None)


@pytest.mark.parametrize("attributes", ["snapshot='internal'", "snapshot='no'"])
def test_memory_inside_an_image_or_nowhere_is_no_file(attributes):
    assert parse_snapshot("<domainsnapshot><name>s</name><memory %s/></domainsnapshot>" % attributes).memory is None


def test_a_snapshot_inside_the_images():
    xml = "<domainsnapshot><name>s</name><disks><disk name='vda' snapshot='internal'/><disk name='vdb' snapshot='no'/></disks></domainsnapshot>"
    found = parse_snapshot(xml)
    assert found.internal == ("vda",) and found.files == () == found.bases


def test_after_a_reversion_of_libvirts_own_other_overlays_stand_on_the_moment():
    """9.9 leaves the old one in <disks> and writes the new one down in <revertDisks>."""
    xml = SPELLED.replace("<domain>", "<revertDisks><disk name='vda' snapshot='external' type='file'><source file='/c.1795'/></disk></revertDisks><domain>")
    assert parse_snapshot(xml).files == (("vda", "/c.1795"),)


@given(overlays(SAFE), overlays(SAFE))
def test_a_snapshot_of_a_disk_without_a_definition_has_no_image_below(layer, other):
    xml = "<domainsnapshot><name>s</name><disks><disk name='vda' snapshot='external' type='%s'><source %s='%s'/></disk></disks></domainsnapshot>"
    found = parse_snapshot(xml % (layer.type, *layer.source[0]))
    assert found.files == (("vda", str(layer)),) and found.bases == ()


@pytest.mark.parametrize("xml", [TAKEN, SPELLED])
@pytest.mark.parametrize("parent", ["s0", None])
def test_a_snapshot_below_another_parent_is_the_same_in_all_else(xml, parent):
    moved = under(xml, parent)
    assert parse_snapshot(moved) == replace(parse_snapshot(xml), parent=parent)
    assert under(moved, "s9") == under(xml, "s9")
    assert without_parent(moved) == without_parent(xml)


def without_parent(xml):
    root = etree.fromstring(xml)
    for old in root.findall("parent"):
        root.remove(old)
    return etree.tostring(root)
