# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""XML that is written: what it means is read again by our own reader, libvirt's schemas take it, and nothing else is changed."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from lxml import etree

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import BOTH, HEADER, XML, Chain, Layer, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import RECORD_URI, parse_domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Moved
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Record
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.write_xml import (
    as_running,
    copy_xml,
    on_image,
    record_xml,
    volume_xml,
    without_conversions,
)
from ansible_collections.livestorage.libvirt.tests.unit.strategies import SAFE, chains
from ansible_collections.livestorage.libvirt.tests.unit.support import HERE, SCHEMAS

COPIED, STALE = HERE / "timelapse" / "copy", HERE / "timelapse" / "stale-pivot"
OWN = ("local", "network", "devices", "newer")
NEW = file_layer("/srv/new & more.qcow2", "qcow2", 9)
DEVICE = Layer("block", (("dev", "/dev/vg/new"),), "raw")
NBD = Layer("network", (("name", "x"), ("protocol", "nbd")), "raw", hosts=((("name", "192.0.2.7"), ("port", "10809")),))
SOCKET = Layer("network", (("protocol", "nbd"),), "raw", hosts=((("socket", "/run/nbd"), ("transport", "unix")),))


def text(folder, name) -> str:
    return (folder / (name + ".xml")).read_text(encoding="utf-8")


def own(name) -> str:
    """The first guest of a file of the set."""
    root = etree.fromstring(text(HERE / "xml", name).encode())
    return etree.tostring(root if root.tag == "domain" else next(root.iter("domain")), with_tail=False).decode()


def schema(name: str) -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(str(SCHEMAS / name)))


DOMAIN, VOLUME = schema("domain.rng"), schema("storagevol.rng")


def disk_of(xml: str, target: str):
    return next(disk for disk in etree.fromstring(xml).iterfind("devices/disk") if disk.find("target").get("dev") == target)


def canonical(element) -> bytes:
    """An element without the blanks between its children."""
    return etree.tostring(etree.fromstring(etree.tostring(element, with_tail=False), etree.XMLParser(remove_blank_text=True)), method="c14n")


def the_rest(xml: str, target: str) -> list:
    """All of a definition but where one disk is: its other disks and devices, and what else is said of that disk."""
    root = etree.fromstring(xml)
    for disk in root.iterfind("devices/disk"):
        if disk.find("target").get("dev") != target:
            continue
        disk.attrib.pop("type")
        for child in [child for child in disk if child.tag in ("source", "backingStore", "mirror", "auth", "encryption")]:
            disk.remove(child)
        driver = disk.find("driver")
        if driver is not None:
            driver.attrib.pop("type", None)
            if dict(driver.attrib) == {"name": "qemu"}:  # as good as none
                disk.remove(driver)
    return [canonical(one) for one in root.iter() if isinstance(one.tag, str) and one.tag != "domain" and len(one) == 0] + [canonical(root)]


def targets(xml: str) -> list:
    """The disks that a copy is possible of: no media, and something is in them."""
    return [disk.target for disk in parse_domain(xml, False).disks if disk.chain.layers and disk.device == "disk"]


IMAGES = [(name, target) for name in OWN for target in targets(own(name))]


@pytest.mark.parametrize("layer", [NEW, DEVICE, NBD, SOCKET], ids=str)
@pytest.mark.parametrize(("name", "target"), IMAGES)
def test_on_image(name, target, layer):
    """The disk has that image, what is below it is left open, and nothing else of the definition moves, secrets included."""
    before = own(name)
    after = on_image(before, target, layer)
    domain = parse_domain(after, False)
    disk = domain.disk(target)
    assert disk.chain == Chain((replace(layer, index=None),), None) and disk.mirror is None
    assert the_rest(after, target) == the_rest(before, target)
    old = parse_domain(before, False)
    assert [one for one in domain.disks if one.target != target] == [one for one in old.disks if one.target != target]
    assert DOMAIN.validate(etree.fromstring(before)) <= DOMAIN.validate(etree.fromstring(after)), DOMAIN.error_log


def test_there_is_something_to_keep():
    """Of the disks that are rewritten some have driver attributes, and some definitions secrets."""
    assert len(IMAGES) > 20
    drivers = [disk_of(own(name), target).find("driver") for name, target in IMAGES]
    assert sum(driver is not None and len(driver.keys()) > 2 for driver in drivers) >= 2 and None in drivers
    assert all("<secret" in own(name) for name in ("local", "network"))


def test_an_image_that_is_there_already_is_no_change():
    after = on_image(text(COPIED, "4-pivoted.inactive"), "vda", NEW)
    assert on_image(after, "vda", NEW) is None
    assert on_image(after, "vda", replace(NEW, format="raw")) is not None
    assert on_image(after, "vda", DEVICE) is not None


def test_a_disk_without_a_driver_gets_one():
    xml = "<domain><name>g</name><devices><disk type='file' device='disk'><target dev='vda'/></disk></devices></domain>"
    disk = disk_of(on_image(xml, "vda", NEW), "vda")
    assert dict(disk.find("driver").attrib) == {"name": "qemu", "type": "qcow2"} and disk[0].tag == "driver"
    assert parse_domain(on_image(xml, "vda", NEW), False).disk("vda").chain.active.path == NEW.path


PIVOTED = text(COPIED, "4-pivoted")


@pytest.mark.parametrize("stage", ["1-before", "2-running"])
def test_as_running(stage):
    """After the pivot the next start has the running guest's whole chain, with its end, as libvirt writes it without identities."""
    before = text(COPIED, stage + ".inactive")
    after = as_running(before, PIVOTED, "vda")
    live = parse_domain(PIVOTED, True).disk("vda")
    found = parse_domain(after, False).disk("vda")
    assert found.chain == live.chain.map(lambda layer: replace(layer, index=None)) and found.mirror is None
    assert found.chain.ends is True and dict(found.driver)["type"] == live.chain[0].format
    assert the_rest(after, "vda") == the_rest(before, "vda")
    assert b" index=" not in etree.tostring(disk_of(after, "vda")) and "<mirror" not in after
    assert DOMAIN.validate(etree.fromstring(after)), DOMAIN.error_log
    assert as_running(after, PIVOTED, "vda") is None


def test_a_whole_chain_is_spelled_out():
    before, live = text(COPIED, "4-pivoted.inactive"), text(COPIED, "1-before")
    after = as_running(before, live, "vda")
    assert parse_domain(after, False).disk("vda").chain.places == parse_domain(live, True).disk("vda").chain.places
    assert len(parse_domain(after, False).disk("vda").chain) == 2 and DOMAIN.validate(etree.fromstring(after)), DOMAIN.error_log


DATA = "<dataStore type='file'><format type='raw'/><source file='/srv/data.raw' index='9'/></dataStore>"


def test_a_data_file_of_the_running_guest_is_spelled_out_with_its_chain():
    """Where a definition leaves the chain open, libvirt finds it by itself."""
    path = "/" + parse_domain(PIVOTED, True).disk("vda").chain[0].path.lstrip("/")
    live = re.sub("<source file='%s'([^>]*)/>" % re.escape(path), lambda found: "<source file='%s'%s>%s</source>" % (path, found.group(1), DATA), PIVOTED)
    assert live != PIVOTED
    for before in (as_running(text(COPIED, "1-before.inactive"), PIVOTED, "vda"), text(COPIED, "1-before.inactive")):
        after = as_running(before, live, "vda")
        assert parse_domain(after, False).disk("vda").chain[0].store == file_layer("/srv/data.raw", "raw") and as_running(after, live, "vda") is None
    left_open = on_image(text(COPIED, "1-before.inactive"), "vda", parse_domain(PIVOTED, True).disk("vda").chain[0])
    assert parse_domain(as_running(left_open, live, "vda"), False).disk("vda").chain[0].store == file_layer("/srv/data.raw", "raw")


@pytest.mark.parametrize("known_from", [XML, BOTH, HEADER])
def test_a_data_file_that_libvirt_has_forgotten_is_told_again(known_from):
    """And what is told is written once more where the text is the same: the daemon may have something else in its memory."""
    live = parse_domain(PIVOTED, True).disk("vda").chain
    store = replace(file_layer("/srv/data.raw", "raw", 4), known_from=known_from)
    known = [replace(layer, store=store) for layer in (live[len(live) - 1], NEW)]
    after = as_running(text(COPIED, "1-before.inactive"), PIVOTED, "vda", known)
    found = parse_domain(after, False).disk("vda").chain
    assert [layer.store for layer in found.layers][-1] == (None if known_from == HEADER else replace(store, index=None, known_from=XML))
    assert found.places == live.places and found[0].store is (None if len(live) > 1 else found[0].store)
    again = as_running(after, PIVOTED, "vda", known)
    assert canonical(etree.fromstring(again)) == canonical(etree.fromstring(after))
    assert the_rest(after, "vda") == the_rest(text(COPIED, "1-before.inactive"), "vda")


def test_a_copy_names_no_data_file():
    store = replace(file_layer("/srv/data.raw", "raw", 4), known_from=BOTH)
    below = Chain((replace(file_layer("/srv/below", "qcow2", 5), store=store), DEVICE), True)
    found = as_disk(copy_xml(replace(NEW, store=store), below)).chain
    assert [layer.store for layer in found.layers] == [None, None, None] and found.places == (NEW.place, *below.places)


@pytest.mark.parametrize("stage", ["1-before", "4-pivoted"])
def test_a_definition_that_says_less_and_nothing_else_stays_as_it_is(stage):
    assert as_running(text(COPIED, stage + ".inactive"), text(COPIED, stage), "vda") is None


@pytest.mark.parametrize(("name", "target"), IMAGES)
def test_as_running_knows_every_kind_of_source(name, target):
    """All that libvirt says of a layer comes along, whatever the definition had before."""
    live = own(name)
    driver = disk_of(live, target).find("driver")
    before = on_image(live, target, NEW if driver is not None else replace(NEW, format=None))
    after = as_running(before, live, target)
    wanted = parse_domain(live, True).disk(target)
    found = parse_domain(after, False).disk(target)
    assert found.chain == wanted.chain.map(lambda layer: replace(layer, index=None)) and found.mirror is None
    assert the_rest(after, target) == the_rest(before, target)
    assert DOMAIN.validate(etree.fromstring(live)) <= DOMAIN.validate(etree.fromstring(after)), DOMAIN.error_log


def test_what_is_private_to_a_running_guest_stays_there():
    source = "<source file='/srv/fast/copied.qcow2' index='3'"
    live = PIVOTED.replace(source + "/>", source + "><privateData><nodenames/></privateData></source>")
    assert live != PIVOTED and "privateData" not in as_running(text(COPIED, "1-before.inactive"), live, "vda")


@pytest.mark.parametrize(("config", "live"), [("1-before.inactive", "4-pivoted"), ("4-pivoted.inactive", "1-before")])
def test_a_disk_that_is_gone(config, live):
    for change in (lambda target: as_running(text(COPIED, config), text(COPIED, live), target), lambda target: on_image(text(COPIED, config), target, NEW)):
        with pytest.raises(Moved, match="no disk vdz") as caught:
            change("vdz")
        assert caught.value.code == "disk_gone"


@pytest.mark.parametrize("stage", ["1-stale", "2-silent", "3-silent-flat", "5-config"])
def test_the_definitions_of_lost_pivots_can_be_made_safe(stage):
    before = text(STALE, stage + ".inactive")
    after = on_image(before, "vda", NEW)
    assert parse_domain(after, False).disk("vda").chain == Chain((replace(NEW, index=None),), None)
    assert the_rest(after, "vda") == the_rest(before, "vda") and DOMAIN.validate(etree.fromstring(after)), DOMAIN.error_log


# What a copy and a volume are asked for with

GUEST = "<domain type='kvm'><name>g</name><memory>1</memory><os><type>hvm</type></os><devices>%s</devices></domain>"


def as_disk(xml: str):
    """The destination of a copy as a disk of a guest: what libvirt's parser makes of it."""
    return parse_domain(GUEST % xml.replace("</disk>", "<target dev='vda'/></disk>"), False).disk("vda")


@pytest.mark.parametrize("layer", [NEW, DEVICE, NBD, SOCKET], ids=str)
@pytest.mark.parametrize("below", [None, Chain((file_layer("/b", "qcow2", 1), file_layer("/c", "raw", 2)), True), Chain((file_layer("/b", "qcow2", 1),), None)])
def test_copy_xml(layer, below):
    xml = copy_xml(layer, below)
    chain = Chain((layer,) + (below.layers if below else ()), below.ends if below else None)
    assert as_disk(xml).chain == chain.map(lambda one: replace(one, index=None)) and "index" not in xml
    assert etree.fromstring(xml).tag == "disk" and (below is None) == (etree.fromstring(xml).find("backingStore") is None)
    document = etree.fromstring(GUEST % xml.replace("</disk>", "<target dev='vda'/></disk>"))
    assert DOMAIN.validate(document), DOMAIN.error_log


@given(chains(words=SAFE, known_formats=True))
def test_libvirt_takes_our_copies(chain):
    assume(all(layer.type in ("file", "block", "network") for layer in chain.layers))
    below = Chain(chain.layers[1:], chain.ends) if len(chain) > 1 else None
    document = etree.fromstring(GUEST % copy_xml(chain[0], below).replace("</disk>", "<target dev='vda'/></disk>"))
    assert DOMAIN.validate(document), DOMAIN.error_log
    assert as_disk(copy_xml(chain[0], below)).chain.places == chain.places


@pytest.mark.parametrize("options", [{}, {"cluster_size": 131072}, {"extended_l2": True, "lazy_refcounts": True}, {"cluster_size": 65536, "extended_l2": True}])
@pytest.mark.parametrize("format_", ["qcow2", "raw"])
@pytest.mark.parametrize("backing", [None, file_layer("/srv/base & more.qcow2", "qcow2")])
def test_volume_xml(options, format_, backing):
    options = options if format_ == "qcow2" else {}
    root = etree.fromstring(volume_xml("v", 1 << 30, format_, options, backing))
    assert VOLUME.validate(root), VOLUME.error_log
    size, grain = root.find("capacity"), root.find("target/clusterSize")
    assert (root.findtext("name"), size.get("unit"), size.text, root.find("target/format").get("type")) == ("v", "B", str(1 << 30), format_)
    assert root.findtext("allocation") == "0"  # nothing is reserved beforehand
    assert (grain is not None and (grain.get("unit"), int(grain.text))) == ("cluster_size" in options and ("B", options["cluster_size"]))
    features = {one.tag for one in root.iterfind("target/features/*")}
    assert features == {name for name in ("extended_l2", "lazy_refcounts") if options.get(name)}
    # Features need the newer kind of qcow2.
    assert (root.findtext("target/compat") == "1.1") == (format_ == "qcow2")
    store = root.find("backingStore")
    assert (store is None) == (backing is None)
    assert store is None or (store.findtext("path"), store.find("format").get("type")) == (backing.path, backing.format)


def test_the_schema_can_say_no():
    assert not VOLUME.validate(etree.fromstring("<volume><name>v</name><nonsense/></volume>"))
    assert not DOMAIN.validate(etree.fromstring(GUEST % "<disk device='disk'><nonsense/></disk>"))


TEXTS = st.text(st.characters(codec="ascii", min_codepoint=32), max_size=12)
RECORDS = st.builds(
    Record,
    st.sampled_from(["vda", "sdb"]),
    TEXTS,
    TEXTS,
    TEXTS,
    since=st.none() | st.integers(0, 2**40),
    source=st.none() | TEXTS,
    creates=st.none() | TEXTS,
    merges=st.lists(TEXTS, max_size=3).map(tuple),
    data=st.lists(st.tuples(TEXTS, TEXTS), max_size=2).map(tuple),
)


@given(RECORDS)
def test_a_note_is_read_as_it_was_written(record):
    root = etree.fromstring(record_xml(record))
    for element in root.iter():  # as libvirt keeps it: in the namespace that it was given with it
        element.tag = "{%s}%s" % (RECORD_URI % record.disk, element.tag)
    note = etree.tostring(root).decode()
    found = parse_domain("<domain><name>g</name><metadata>%s</metadata></domain>" % note, True).records
    assert [vars(one) for one in found] == [vars(record)]


def test_a_note_of_an_older_run_has_less_in_it():
    note = "<l:job xmlns:l='%s' disk='vda' type='pull' layers='/b' indexes='1,2' since='soon'/>" % RECORD_URI % "vda"
    assert parse_domain("<domain><name>g</name><metadata>%s</metadata></domain>" % note, True).records == (Record("vda", "pull", "/b", "1,2"),)


def test_what_says_no_more_about_a_notes_meaning():
    """The same job, started at another time."""
    one = Record("vda", "copy", "/new", "1,2", since=1, source="/old", creates="/new")
    assert one == Record("vda", "copy", "/new", "1,2") and one != Record("vda", "copy", "/new", "2,1")


@pytest.mark.parametrize(("others", "left"), [("", None), ("<x:other xmlns:x='urn:x' disk='vda'/>", ["{urn:x}other"])])
def test_a_migrated_guest_takes_no_note_along(others, left):
    """Those of other programs it does; an element for notes that held only ours goes with them."""
    uri = "https://livestorage.github.io/libvirt/datafile/1/"
    ours = "".join("<o:datafile xmlns:o='%s%s' disk='%s' state='migrate_xml'/>" % (uri, disk, disk) for disk in ("vda", "vdb"))
    xml = without_conversions("<domain><name>vm1</name><metadata>\n  %s%s</metadata><devices/></domain>" % (ours, others))
    root = etree.fromstring(xml)
    metadata = root.find("metadata")
    assert (None if metadata is None else [one.tag for one in metadata]) == left
    assert [one.tag for one in root if one.tag != "metadata"] == ["name", "devices"]
