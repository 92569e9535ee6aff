# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The algebra of chains, and that XML is only another way to write a chain."""

from __future__ import annotations

import functools
import socket
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from lxml import etree

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import (
    HEADER,
    Chain,
    Facts,
    Layer,
    commit,
    copy,
    file_layer,
    normal_path,
    pull,
    same_shape,
    snapshot,
)
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import parse_domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.snapshot_xml import parse_snapshot, snapshot_xml
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.write_xml import chain_xml
from ansible_collections.livestorage.libvirt.tests.unit.strategies import (
    SAFE,
    WORDS,
    chains,
    disks,
    families,
    families_of_all_sources,
    full_disks,
    overlays,
    placed,
    places,
    vhost,
)
from ansible_collections.livestorage.libvirt.tests.unit.support import SCHEMAS
from ansible_collections.livestorage.libvirt.tests.unit.xml_writer import SECRET, disk_xml

GUEST = "<domain type='kvm'><name>vm1</name><memory>1024</memory><os><type>hvm</type></os><devices>%s</devices></domain>"


@st.composite
def ranges(draw, least=2):
    """(chain, top, base) of a commit."""
    chain = draw(chains(least=least))
    top = draw(st.integers(0, len(chain) - 2))
    return chain, top, draw(st.integers(top + 1, len(chain) - 1))


@st.composite
def with_new(draw):
    """(chain, a layer that is not in it)"""
    chain, layer = draw(chains()), draw(overlays())
    assume(layer.place not in chain.places)
    return chain, layer


def is_part(fewer, layers) -> bool:
    """Are ``fewer`` some of ``layers``, the very same and in the same order?"""
    rest = iter(layers)
    return all(any(one is other for other in rest) for one in fewer)


# The algebra


@given(with_new())
def test_snapshot_then_commit_is_identity(pair):
    chain, overlay = pair
    after = snapshot(chain, overlay)
    assert after.active is overlay and after.layers[1:] == chain.layers and after.ends == chain.ends
    assert commit(after, 0, 1) == chain


@given(ranges())
def test_commit_keeps_what_is_outside_its_range(drawn):
    chain, top, base = drawn
    after = commit(chain, top, base)
    assert after.layers == chain.layers[:top] + chain.layers[base:]
    assert is_part(after.layers, chain.layers) and after.ends == chain.ends


@given(ranges(least=3))
def test_commits_compose(drawn):
    chain, top, base = drawn
    assume(base - top > 1)
    assert commit(commit(chain, top, base - 1), top, top + 1) == commit(chain, top, base)


@given(ranges())
def test_pull_then_commit(drawn):
    chain, dummy, depth = drawn
    assert commit(pull(chain, depth), 0, 1) == commit(chain, 0, depth)


@given(ranges())
def test_pulls_compose(drawn):
    chain, first, second = drawn
    once = pull(chain, second)
    assert once.layers == chain.layers[:1] + chain.layers[second:] and once.ends == chain.ends
    assert is_part(once.layers, chain.layers)
    assert pull(once, 1) == once
    if first:
        assert pull(pull(chain, first), second - first + 1) == once
    assert pull(once) == pull(chain)


@given(chains(), st.data())
def test_a_pull_into_a_layer_is_one_into_the_chain_that_it_begins(chain, data):
    """What is above ``top`` stays, and below it the same happens as to the active layer of a shorter chain."""
    top = data.draw(st.integers(0, len(chain) - 1))
    base = data.draw(st.one_of(st.none(), st.integers(top + 1, len(chain) - 1)) if top + 1 < len(chain) else st.none())
    after = pull(chain, base, top)
    alone = pull(replace(chain, layers=chain.layers[top:]), None if base is None else base - top)
    assert after == replace(alone, layers=chain.layers[:top] + alone.layers)
    assert is_part(after.layers, chain.layers) and after.ends == (True if base is None else chain.ends)
    assert pull(after, None if base is None else top + 1, top) == after
    assert top or pull(chain, base) == after


@given(chains(least=2), st.data())
def test_both_merges_take_one_border_away(chain, data):
    """Backward or forward, one of the two layers goes and the other one stays where they were; all else is the same."""
    over = data.draw(st.integers(0, len(chain) - 2))
    backward = commit(chain, over, over + 1)
    forward = pull(chain, over + 2 if over + 2 < len(chain) else None, over)
    assert len(backward) == len(forward) == len(chain) - 1
    assert backward.layers[over] is chain[over + 1] and forward.layers[over] is chain[over]
    assert backward.layers[:over] == forward.layers[:over] and backward.layers[over + 1 :] == forward.layers[over + 1 :]
    assert forward.ends == (chain.ends if over + 2 < len(chain) else True)


@given(chains())
def test_flatten(chain):
    flat = pull(chain)
    assert flat.layers == chain.layers[:1] and flat.ends is True and flat.active is chain.active
    assert pull(flat) == flat


@given(with_new())
def test_copy(pair):
    chain, destination = pair
    assert copy(chain, destination) == Chain((destination,), True)
    shallow = copy(chain, destination, shallow=True)
    assert shallow.layers == (destination,) + chain.layers[1:]
    assert shallow.ends == (chain.ends if len(chain) > 1 else True)
    assert copy(chain, destination, shallow=True) == (commit(snapshot(pull(chain, 1), destination), 1, 2) if len(chain) > 1 else shallow)


@given(chains())
def test_only_the_last_layer_can_end_a_chain(chain):
    ends = [chain.terminated(depth) for depth in range(len(chain))]
    assert ends == [False] * (len(chain) - 1) + [chain.ends]


@given(chains(), places())
def test_depth_of_finds_a_place_and_only_that(chain, other):
    assert [chain.depth_of(place) for place in chain.places] == list(range(len(chain)))
    assert chain.depth_of(other.place) == next((depth for depth, layer in enumerate(chain.layers) if layer.place == other.place), None)


@given(chains(), st.integers(-9, 9), st.integers(-9, 9))
def test_nonsense_is_refused(chain, top, base):
    if not 0 < base < len(chain):
        with pytest.raises(ValueError):
            pull(chain, base)
    if not 0 <= top < base < len(chain):
        with pytest.raises(ValueError):
            commit(chain, top, base)


@given(chains())
def test_a_layer_cannot_be_put_on_itself(chain):
    for layer in chain.layers:
        for call in (snapshot, copy):
            with pytest.raises(ValueError, match="already a layer"):
                call(chain, replace(layer, format=None, index=99))


@pytest.mark.parametrize(
    "call", [lambda c: snapshot(c, file_layer("/a", "qcow2")), pull, lambda c: copy(c, file_layer("/a", "raw")), lambda c: commit(c, 0, 1)]
)
def test_an_empty_drive_has_nothing_to_work_on(call):
    with pytest.raises(ValueError):
        call(Chain())


# Chains with siblings


def size(chain) -> int:
    return sum(1 + sum(map(size, layer.branches)) for layer in chain.layers)


@given(families_of_all_sources())
def test_a_walk_meets_every_layer_once_from_the_top_down(chain):
    found = chain.walk()
    assert [place.position for place in found] == list(range(size(chain)))
    assert tuple(place.layer for place in found[: len(chain)]) == chain.layers
    assert (found[0].parent, found[0].depth) == (None, 0)
    for place in found[1:]:
        above = found[place.parent]
        assert above.position < place.position and above.depth + 1 == place.depth
    children = {place.position: [one for one in found if one.parent == place.position] for place in found}
    for place in found:
        below = [one.layer for one in children[place.position]]
        siblings = [branch.active for branch in place.layer.branches]
        assert below[len(below) - len(siblings) :] == siblings and len(below) - len(siblings) in (0, 1)
        # A layer with something below it is no end; what is known of the others is what their own chain says.
        assert (place.terminated is False) == bool(children[place.position])
    assert chain.branched == (size(chain) > len(chain))


@given(families(), st.integers(1, 99), st.integers(0, 9))
def test_a_walk_can_begin_anywhere(chain, first, depth):
    for one, moved in zip(chain.walk(), chain.walk(first, 0, depth)):
        assert (moved.position, moved.depth) == (one.position + first, one.depth + depth)
        assert moved.parent == (0 if one.parent is None else one.parent + first)
        assert (moved.layer, moved.terminated) == (one.layer, one.terminated)


@given(families_of_all_sources())
def test_images_are_the_layers_and_their_data_files(chain):
    found, layers = list(chain.images()), [place.layer for place in chain.walk()]
    stores = [layer.store for layer in layers if layer.store is not None]
    assert len(found) == len(layers) + len(stores)
    assert all(any(one is image for one in found) for image in layers + stores)
    if not chain.branched and not stores:
        assert found == list(chain.layers)


@given(families_of_all_sources())
def test_a_map_changes_every_image_once_and_nothing_else(chain):
    assert chain.map(lambda layer: layer) == chain
    met = []

    def mark(layer):
        met.append(layer.place)
        return replace(layer, format="marked")

    marked = chain.map(mark)
    assert sorted(met, key=str) == sorted((image.place for image in chain.images()), key=str)
    assert all(image.format == "marked" for image in marked.images())
    assert marked.map(lambda layer: replace(layer, format=None)) == chain.map(lambda layer: replace(layer, format=None))
    assert [place[:3] for place in marked.walk()] == [place[:3] for place in chain.walk()]


def test_an_empty_drive_has_nothing_to_walk():
    assert Chain().walk() == [] and list(Chain().images()) == [] and Chain().map(lambda layer: None) == Chain() and not Chain().branched


# Places and shapes


@pytest.mark.parametrize("path", ["/a/b", "//a/b", "///a//b", "/a/./b", "/a/c/../b", "/a/b/"])
def test_one_path_has_one_place(path):
    assert normal_path(path) == "/a/b"
    assert file_layer(path, "raw").place == Layer("block", (("dev", "/a/b"),), "qcow2", 4).place


def test_a_whole_address_is_a_place():
    layer = Layer("network", (("name", "x"), ("protocol", "nbd")), hosts=((("name", "a"),),))
    others = [replace(layer, hosts=((("name", "b"),),)), replace(layer, source=(("name", "y"), ("protocol", "nbd"))), replace(layer, hosts=())]
    assert len({one.place for one in others + [layer]}) == 4
    nvme = Layer("nvme", (("namespace", "1"),), address=(("slot", "0x01"),))
    assert nvme.place != replace(nvme, address=(("slot", "0x02"),)).place


@given(chains(), chains())
def test_same_shape_is_an_agreement(one, two):
    assert same_shape(one, one)
    assert same_shape(one, two) == same_shape(two, one)
    assert not same_shape(one, two) or one.places == two.places


@given(chains(), st.data())
def test_the_unknown_contradicts_nothing(chain, data):
    forgotten = tuple(replace(layer, index=None, format=data.draw(st.sampled_from([None, layer.format]))) for layer in chain.layers)
    assert same_shape(chain, Chain(forgotten, data.draw(st.sampled_from([None, chain.ends]))))


@given(chains(known_formats=True), st.data())
def test_the_known_contradicts(chain, data):
    depth = data.draw(st.integers(0, len(chain) - 1))
    other = chain.layers[:depth] + (replace(chain[depth], format="other"),) + chain.layers[depth + 1 :]
    assert not same_shape(chain, replace(chain, layers=other))
    assert not same_shape(chain, replace(chain, layers=chain.layers[1:]))
    assert not same_shape(replace(chain, ends=True), replace(chain, ends=False))
    assert len(chain) == 1 or not same_shape(chain, replace(chain, layers=chain.layers[::-1]))


def test_data_files_that_both_sides_know_have_to_be_the_same():
    one, two = (Chain((replace(file_layer("/m", "qcow2"), store=file_layer(path, "raw")),), True) for path in ("/d", "/e"))
    told = Chain((replace(one[0], store=replace(file_layer("/d", None, 9), known_from=HEADER, raw=True)),), True)
    assert same_shape(one, told) and not same_shape(one, two)
    assert all(same_shape(*pair) for pair in [(one, Chain((file_layer("/m", "qcow2"),), True)), (Chain((file_layer("/m", "qcow2"),), True), two)])
    assert not same_shape(one, Chain((file_layer("/m", "raw"),), True)) and not same_shape(one, Chain((file_layer("/d", "raw"),), True))


# XML


def domain_of(*elements: str):
    return parse_domain(GUEST % "".join(elements), True)


@given(disks())
def test_a_disk_comes_back_from_its_xml(disk):
    assert domain_of(chain_xml(disk)).disks == (disk,)


@given(full_disks())
def test_all_that_is_read_comes_back(disk):
    xml = disk_xml(disk)
    assert domain_of(xml).disks == (disk,)
    assert SECRET not in repr(domain_of(xml))


@given(disks())
def test_the_definition_of_a_guest_that_is_off_is_its_next_start(disk):
    xml = GUEST % chain_xml(disk)
    assert parse_domain(xml, False).config == (disk,)
    assert parse_domain(xml, False, persistent=False).config == ()
    assert parse_domain(xml, True, config_xml=GUEST % "").config == ()


@given(chains())
def test_a_missing_terminator_is_not_an_empty_one(chain):
    """For every depth: cutting the XML off leaves the end unknown, an empty element there makes it known."""
    for depth in range(len(chain)):
        element = etree.fromstring(chain_xml(Disk("vda", replace(chain, ends=True))))
        below = element
        for dummy in range(depth):
            below = below.find("backingStore")
        below.remove(below.find("backingStore"))
        expected = Chain(chain.layers[: depth + 1], None)
        assert domain_of(etree.tostring(element).decode()).disks[0].chain == expected
        etree.SubElement(below, "backingStore")
        assert domain_of(etree.tostring(element).decode()).disks[0].chain == replace(expected, ends=True)


@pytest.mark.parametrize(
    "source", ["", "<source/>", "<source index='7'/>", "<source startupPolicy='optional'/>", "<source index='7' startupPolicy='optional'/>"]
)
@pytest.mark.parametrize("end", ["", "<backingStore/>"])
def test_an_empty_drive_has_no_layer(source, end):
    disk = domain_of("<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>%s%s<target dev='hdc'/></disk>" % (source, end)).disks[0]
    assert disk.chain == Chain() and disk.device == "cdrom"


def test_attributes_that_say_nothing_about_the_place():
    source = (
        "<source protocol='nbd' name='x' tls='yes' tlsHostname='h' index='3' startupPolicy='optional'><host name='a' port='1'/><reconnect delay='1'/></source>"
    )
    layer = domain_of("<disk type='network'>%s<target dev='vda'/></disk>" % source).disks[0].chain[0]
    hosts = ((("name", "a"), ("port", "1")),)
    assert layer == Layer("network", (("name", "x"), ("protocol", "nbd")), None, 3, hosts, facts=Facts(startup_policy="optional"))


def test_the_longest_chain_that_libvirt_allows():
    chain = Chain(tuple(file_layer("/%d" % depth, "qcow2", 200 - depth) for depth in range(200)), True)
    assert domain_of(chain_xml(Disk("vda", chain))).disks[0].chain == chain


def without_drivers(xml: str):
    """The schema (of 9.0) has no <driver> for an overlay on a server, which libvirt itself writes nevertheless."""
    document = etree.fromstring(xml)
    for disk in document.iterfind("disks/disk[@type='network']"):
        disk.remove(disk.find("driver"))
    return document


@functools.cache
def schema(name: str) -> etree.RelaxNG:
    """libvirt's own schema. That it is missing is a failure: without it nobody knows whether libvirt takes our XML."""
    return etree.RelaxNG(etree.parse(str(SCHEMAS / name)))


def test_the_schema_can_say_no():
    for name, xml in (
        ("domain.rng", GUEST % "<disk type='file'><target dev='vda'/><nonsense/></disk>"),
        ("domainsnapshot.rng", "<domainsnapshot><x/></domainsnapshot>"),
    ):
        assert not schema(name).validate(etree.fromstring(xml))


@given(disks(words=SAFE, known_formats=True))
def test_libvirt_takes_our_disk_xml(disk):
    # Newer than the schemas of the oldest libvirt that is supported.
    assume(not disk.chain.layers or disk.chain.active.type != "vhostvdpa")
    document = etree.fromstring(GUEST % chain_xml(disk))
    assert schema("domain.rng").validate(document), schema("domain.rng").error_log


@given(st.one_of(st.none(), SAFE), st.lists(placed(), min_size=1, max_size=3), st.integers(0, 2), st.one_of(st.none(), WORDS), st.one_of(st.none(), SAFE))
def test_libvirt_takes_our_snapshot_xml(name, layers, others, description, memory):
    """Wherever its overlays are, with the memory of the guest and without."""
    named = [("vd" + letter, layer) for letter, layer in zip("abc", layers)]
    rest = ["hd" + letter for letter in "abc"[:others]]
    memory = memory and "/" + memory
    xml = snapshot_xml(name, named, rest, description, memory)
    document = without_drivers(xml)
    assert schema("domainsnapshot.rng").validate(document), schema("domainsnapshot.rng").error_log
    found = [(disk.get("name"), disk.get("snapshot")) for disk in document.iterfind("disks/disk")]
    assert found == [(target, "external") for target, dummy in named] + [(target, "no") for target in rest]
    shot = parse_snapshot(xml)
    assert shot.files == tuple((target, str(layer)) for target, layer in named)
    assert (shot.name, shot.description, shot.memory) == (name, description, memory)


@given(vhost())
def test_what_another_process_serves_has_a_name_to_show(layer):
    assert str(layer) and layer.place not in Chain().places


# Hostile XML


@pytest.mark.parametrize(
    "doctype",
    [
        "<!DOCTYPE domain [<!ENTITY a 'secret'>]>",
        "<!DOCTYPE domain [<!ENTITY a SYSTEM 'file://%(file)s'>]>",
        "<!DOCTYPE domain SYSTEM 'http://127.0.0.1:%(port)d/x.dtd'>",
        "<!DOCTYPE domain [<!ENTITY %% p SYSTEM 'http://127.0.0.1:%(port)d/p'> %%p;]>",
        "<!DOCTYPE domain [<!ENTITY b '1234567890'><!ENTITY a '%(bombs)s'>]>",
    ],
)
@pytest.mark.parametrize(
    "body", ["<domain><name>&a;</name></domain>", "<domain><name>x</name><devices><disk><source file='&a;'/></disk></devices></domain>", "<domain/>"]
)
def test_a_document_type_is_refused_and_nothing_is_fetched(tmp_path, doctype, body):
    (tmp_path / "file").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        facts = {"file": tmp_path / "file", "port": server.getsockname()[1], "bombs": "&b;" * 1000}
        with pytest.raises(Unavailable, match="libvirt sent XML") as caught:
            parse_domain(doctype % facts + body, True)
        assert "secret" not in str(caught.value) and caught.value.code == "bad_xml"
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "xml",
    ["", "<domain>", "<a>" * 100000, "<domain>" + "<backingStore>" * 5000 + "</backingStore>" * 5000 + "</domain>", "<domain a='%s'/>" % ("x" * 11000000)],
)
def test_what_is_no_xml_of_libvirt_is_refused(xml):
    with pytest.raises(Unavailable, match="libvirt sent XML"):
        parse_domain(xml, True)
