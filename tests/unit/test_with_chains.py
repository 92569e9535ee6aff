# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The definition after work on the images of a guest that is off: its chains, as far as it names them, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lxml import etree

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import BOTH, HEADER, XML, Chain, Layer, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import parse_domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Moved
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.write_xml import with_chains
from ansible_collections.livestorage.libvirt.tests.unit.support import SCHEMAS

TOP, MID, LOW, BASE = (file_layer("/i/" + name, "qcow2") for name in ("top", "mid", "low", "base"))
RAW = Layer("block", (("dev", "/dev/vg/base"),), "raw")
FULL = Chain((TOP, MID, LOW, RAW), True)
SCHEMA = etree.RelaxNG(etree.parse(str(SCHEMAS / "domain.rng")))

LABEL = "<seclabel model='dac' relabel='no'/>"
OPEN = "<source file='/i/top' startupPolicy='optional'>%s</source>" % LABEL
ENDED = OPEN + "\n      <backingStore/>"
PART = OPEN + "<backingStore type='file'><format type='qcow2'/><source file='/i/mid'/></backingStore>"
WHOLE = (
    OPEN
    + """<backingStore type='file'>
        <format type='qcow2'/>
        <source file='/i/mid'/>
        <backingStore type='file'>
          <format type='qcow2'/>
          <source file='/i/low'>
            <encryption format='luks'><secret type='passphrase' uuid='f52a81b2-424e-490c-823d-6bd4235bc572'/></encryption>
          </source>
          <backingStore type='block'>
            <format type='raw'/>
            <source dev='/dev/vg/base'/>
            <backingStore/>
          </backingStore>
        </backingStore>
      </backingStore>"""
)


def guest(vda: str, vdb: str = OPEN, before: str = "") -> str:
    disk = "    <disk type='file' device='disk'>%s\n      <driver name='qemu' type='qcow2' cache='none' discard='unmap'/>\n      %s\n"
    disk += "      <target dev='%s' bus='virtio'/><!-- kept -->\n      <serial>x</serial>\n    </disk>\n"
    parts = disk % (before, vda, "vda") + disk % ("", vdb.replace("/i/", "/j/"), "vdb")
    start = "<domain type='qemu'><name>vm1</name><uuid>11111111-2222-4333-8444-555555555555</uuid><memory>2048</memory><os><type>hvm</type></os>\n  <devices>\n"
    return start + parts + "  </devices>\n</domain>"


def chain_of(xml: str, target: str = "vda") -> Chain:
    return parse_domain(xml, False).disk(target).chain


def places(chain: Chain) -> tuple:
    return tuple((str(layer), layer.type, layer.format) for layer in chain.layers), chain.ends


@pytest.mark.parametrize("written", [OPEN, ENDED, PART, WHOLE])
@pytest.mark.parametrize(
    "chain",
    [
        Chain((TOP, RAW), True),
        Chain((TOP, MID, RAW), True),
        Chain((TOP,), True),
        Chain((MID, LOW, RAW), True),
        Chain((RAW,), True),
        Chain((BASE, TOP, MID, LOW, RAW), True),
        Chain((TOP, LOW, RAW), None),
    ],
    ids=lambda chain: "-".join(str(layer).rsplit("/", 1)[-1] for layer in chain.layers),
)
def test_the_chain_is_spelled_out_where_it_was(written, chain):
    before = guest(written)
    after = with_chains(before, {"vda": chain})
    now = chain_of(after or before)
    open_ = chain_of(before).ends is None and len(chain_of(before)) == 1
    says = chain_of(before).ends is None and chain_of(before).places == chain.places[: len(chain_of(before))]
    assert (after is None) == (says or places(chain_of(before)) == places(chain))
    if after is not None:
        assert places(now) == places(Chain(chain.layers[:1]) if open_ else chain)
        assert SCHEMA.validate(etree.fromstring(before)) and SCHEMA.validate(etree.fromstring(after)), SCHEMA.error_log
        assert the_rest(before) == the_rest(after)


def the_rest(xml: str) -> list:
    """All text of a definition but the lines and elements that tell where vda is."""
    root = etree.fromstring(xml)
    disk = root.find("devices/disk")
    disk.attrib.pop("type")
    disk.find("driver").attrib.pop("type")
    for child in [child for child in disk if child.tag in ("source", "backingStore")]:
        disk.remove(child)
    return [line.strip() for line in etree.tostring(root).decode().splitlines() if line.strip()]


def test_what_is_known_of_a_layer_stays():
    """Of one that moves up as well as of one that goes down: secrets, labels, policies."""
    after = with_chains(guest(WHOLE), {"vda": Chain((LOW, RAW), True)})
    disk = etree.fromstring(after).find("devices/disk")
    assert disk.find("source/encryption/secret").get("uuid") == "f52a81b2-424e-490c-823d-6bd4235bc572"
    assert (
        disk.find("source").get("file") == "/i/low" and disk.find("source/seclabel") is None and disk.find("backingStore/source").get("dev") == "/dev/vg/base"
    )
    after = with_chains(guest(WHOLE), {"vda": Chain((BASE, TOP, LOW, RAW), True)})
    disk = etree.fromstring(after).find("devices/disk")
    assert disk.find("source").attrib == {"file": "/i/base"} and len(disk.find("source")) == 0
    below = disk.find("backingStore")
    assert below.find("source").get("startupPolicy") == "optional" and below.find("source/seclabel").get("model") == "dac"
    assert below.find("backingStore/source/encryption/secret") is not None


STORE, OTHER = (file_layer("/i/" + name, "raw") for name in ("data", "other"))
TOLD = "<dataStore type='file'><format type='raw'/><source file='/i/%s'/></dataStore>"


def stores(xml: str) -> list:
    return [None if layer.store is None else str(layer.store) for layer in chain_of(xml).layers]


@pytest.mark.parametrize("known_from", [XML, BOTH])
def test_a_data_file_is_written_where_libvirt_is_to_know_it(known_from):
    """Of the active layer as of one below it, once; what is said of their sources beside that stays."""
    store = replace(STORE, known_from=known_from, index=7)
    wanted = Chain((replace(TOP, store=store), MID, replace(LOW, store=replace(OTHER, type="block", source=(("dev", "/dev/vg/data"),))), RAW), True)
    after = with_chains(guest(WHOLE), {"vda": wanted})
    assert stores(after) == ["/i/data", None, "/dev/vg/data", None] and "index" not in after
    disk = etree.fromstring(after).find("devices/disk")
    assert [child.tag for child in disk.find("source")] == ["seclabel", "dataStore"]
    assert etree.tostring(disk.find("source/dataStore")).decode().split("</dataStore>")[0] + "</dataStore>" == (TOLD % "data").replace("'", '"')
    assert the_rest(guest(WHOLE)) == the_rest(after) and with_chains(after, {"vda": wanted}) is None
    opened = with_chains(guest(OPEN), {"vda": wanted})
    assert stores(opened) == ["/i/data"] and chain_of(opened).ends is None and with_chains(opened, {"vda": wanted}) is None


def test_a_data_file_that_only_the_header_names_is_not_written():
    layer = replace(TOP, store=replace(STORE, known_from=HEADER))
    assert with_chains(guest(ENDED), {"vda": Chain((layer,), True)}) is None
    assert stores(with_chains(guest(ENDED), {"vda": Chain((replace(layer, source=(("file", "/i/new"),)),), True)})) == [None]


SPLIT = ENDED.replace("</source>", TOLD % "data" + "</source>")


@pytest.mark.parametrize(
    ("layer", "data"),
    [
        (replace(TOP, store=STORE), "as-before"),
        (replace(TOP, store=replace(STORE, known_from=HEADER)), "as-before"),
        (TOP, "as-before"),  # nobody has looked
        (replace(TOP, store=OTHER), "/i/other"),
        (replace(TOP, store=replace(OTHER, known_from=HEADER)), None),  # libvirt would give QEMU the one that is written
        (replace(TOP, format="raw"), None),
        (BASE, None),
        (STORE, None),
    ],
)
def test_no_data_file_is_left_that_is_not_the_layers(layer, data):
    after = with_chains(guest(SPLIT), {"vda": Chain((layer,), True)})
    assert (after is None) == (data == "as-before")
    if after is not None:
        assert stores(after) == [data] and chain_of(after)[0].format == layer.format
        assert with_chains(after, {"vda": Chain((layer,), True)}) is None and the_rest(after) == the_rest(guest(SPLIT))


def test_words_of_before_libvirt_3_9_go_into_the_source():
    auth = "<auth username='me'><secret type='ceph' uuid='f52a81b2-424e-490c-823d-6bd4235bc572'/></auth>"
    xml = guest(ENDED + auth)
    after = with_chains(xml, {"vda": Chain((BASE, TOP), True)})
    disk = etree.fromstring(after).find("devices/disk")
    assert disk.find("auth") is None and disk.find("source/auth") is None and disk.find("backingStore/source/auth").get("username") == "me"
    assert chain_of(after)[1].facts.auth == "me"


def test_all_disks_in_one_definition():
    before = guest(WHOLE, ENDED)
    new = file_layer("/k/new", "qcow2")
    after = with_chains(before, {"vda": Chain((TOP, RAW), True), "vdb": Chain((new,), True)})
    assert places(chain_of(after)) == places(Chain((TOP, RAW), True)) and places(chain_of(after, "vdb")) == places(Chain((new,), True))
    assert with_chains(after, {"vda": Chain((TOP, RAW), True), "vdb": Chain((new,), True)}) is None
    half = with_chains(before, {"vda": FULL, "vdb": Chain((new,), True)})
    assert etree.tostring(etree.fromstring(half).find("devices/disk")) == etree.tostring(etree.fromstring(before).find("devices/disk"))


def test_nothing_to_change():
    assert with_chains(guest(WHOLE), {}) is None
    assert with_chains(guest(WHOLE), {"vda": FULL}) is None
    assert with_chains(guest(WHOLE), {"vda": FULL.map(lambda layer: replace(layer, index=3))}) is None
    assert with_chains(guest(OPEN), {"vda": FULL}) is None
    assert with_chains(guest(PART), {"vda": FULL}) is None  # what it leaves open is read from the headers


@pytest.mark.parametrize("written", [OPEN, ENDED, WHOLE])
def test_another_format_or_another_end_is_a_change(written):
    assert with_chains(guest(written), {"vda": Chain((replace(TOP, format="raw"),), None)}) is not None
    assert (with_chains(guest(written), {"vda": replace(FULL, ends=None)}) is None) == (written == OPEN)


def test_no_index_is_written():
    after = with_chains(guest(ENDED), {"vda": Chain((replace(BASE, index=4), replace(TOP, index=3)), True)})
    assert "index" not in after


def test_a_disk_that_is_gone():
    with pytest.raises(Moved, match="no disk vdc"):
        with_chains(guest(OPEN), {"vdc": FULL})


def test_an_empty_drive_gets_its_image():
    xml = guest("").replace("<driver name='qemu' type='qcow2' cache='none' discard='unmap'/>", "")
    assert chain_of(with_chains(xml, {"vda": Chain((TOP,), True)})).active.path == "/i/top"
