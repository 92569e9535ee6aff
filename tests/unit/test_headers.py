# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Chains by the images' own headers: what is followed, where it ends, and why."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import BOTH, HEADER, NO_FACTS, XML, Chain, Facts, Layer, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.headers import (
    Walk,
    below,
    completed,
    follow,
    key_of,
    probe_of,
    store_layer,
    stores,
    wanted,
    with_stores,
)
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import Image, Probe
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.image_info import resolve_backing
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain, Mirror


def header(path, backing=None, backing_format="qcow2", inode=None, data=None, **facts):
    """What a qcow2 image says; an inode of its own for each path, unless it is a link to another."""
    named = {"backing_path": resolve_backing(path, backing), "data": data, "data_path": resolve_backing(path, data), "data_raw": True if data else None}
    image = Image(path, "qcow2", 1 << 30, 1 << 20, backing, backing_format=backing_format if backing else None, **named)
    return Probe(path, "qcow2", "file", image, identity=(1, inode or zlib.crc32(path.encode())), real=path, **facts)


def by_key(*found, asked=None):
    return {(one.path, one.format): one for one in found} | {(path, None): replace(one, path=path) for path, one in (asked or {}).items()}


def chain_to(depth, **end):
    """Probes of /0 on /1 on ... on /depth, whose last one is as ``end`` says."""
    return by_key(*(header("/%d" % one, "/%d" % (one + 1)) for one in range(depth)), header("/%d" % depth, **end))


def told(walk: Walk) -> tuple:
    return [str(layer) for layer in walk.chain.layers], walk.chain.ends, walk.problem


TOP = file_layer("/0", "qcow2", 7)


@pytest.mark.parametrize(
    ("probes", "expected"),
    [
        (by_key(header("/0")), (["/0"], True, None)),
        (chain_to(3), (["/0", "/1", "/2", "/3"], True, None)),
        # A circle is one by the file, whatever its name.
        (by_key(header("/0", "/0")), (["/0"], None, "loop")),
        (by_key(header("/0", "/1"), header("/1", "/0")), (["/0", "/1"], None, "loop")),
        (by_key(header("/0", "/1"), header("/1", "/link"), header("/link", "/1", inode=header("/0").identity[1])), (["/0", "/1"], None, "loop")),
        (by_key(header("/0", "/1"), header("/1", "//./1")), (["/0", "/1"], None, "loop")),
        # What ".." means is the kernel's to say: it may lead through a link.
        (by_key(header("/0", "/1"), header("/1", "/0/../2"), header("/0/../2")), (["/0", "/1", "/0/../2"], True, None)),
        (
            by_key(header("/0", "/1"), *(replace(one, identity=None, real="") for one in (header("/1", "/2"), header("/2", "/1")))),
            (["/0", "/1", "/2"], None, "loop"),
        ),
        # What is no path is told, and not followed.
        (by_key(header("/0", "nbd://h/x")), (["/0"], None, "protocol")),
        (by_key(header("/0", 'json:{"driver": "file", "filename": "/1"}'), header("/1")), (["/0"], None, "protocol")),
        (by_key(header("/0", "/1"), Probe("/1", "qcow2", problem="missing")), (["/0", "/1"], None, "missing")),
        (by_key(header("/0", "/1"), Probe("/1", "qcow2", problem="not_a_file")), (["/0", "/1"], None, "not_a_file")),
        (by_key(header("/0", "/1")), (["/0", "/1"], None, "remote")),
        (by_key(header("/0", "/1", None)), (["/0", "/1"], None, "remote")),
        # Raw has no header: the chain ends there, and a header that a guest wrote into it is never looked at.
        (by_key(header("/0", "/1", "raw"), Probe("/1", "raw", "file", magic="qcow2")), (["/0", "/1"], True, None)),
        (by_key(header("/0", "/1", "raw"), replace(header("/1", "/2"), format="raw"), header("/2")), (["/0", "/1"], True, None)),
        (by_key(header("/0", "/1", "raw"), Probe("/1", "raw", problem="missing")), (["/0", "/1"], True, "missing")),
        # A header that names no format asks for it, and nobody guesses raw.
        (by_key(header("/0", "/1", None), asked={"/1": Probe("/1", None, "file", problem="format_unknown")}), (["/0", "/1"], None, "format_unknown")),
    ],
)
def test_follow(probes, expected):
    assert told(follow(TOP, probes, 200)) == expected


@pytest.mark.parametrize("layers", [1, 2, 5, 200])
def test_a_chain_may_be_as_deep_as_allowed_and_no_deeper(layers):
    probes = chain_to(layers - 1)
    walk = follow(TOP, probes, layers)
    assert (len(walk.chain), walk.chain.ends, walk.problem) == (layers, True, None)
    deeper = follow(TOP, chain_to(layers), layers)
    assert (len(deeper.chain), deeper.chain.ends, deeper.problem) == (layers, None, "too_deep")


def test_a_circle_is_told_as_one_however_little_is_allowed():
    assert follow(TOP, by_key(header("/0", "/0")), 1).problem == "loop"


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 40))
def test_whatever_the_headers_say_it_ends(depth, allowed, back):
    """Every image names the next, and the last one any of them: never more layers than there are, nor than allowed."""
    found = {"/%d" % one: header("/%d" % one, "/%d" % (one + 1)) for one in range(depth)}
    found["/%d" % depth] = header("/%d" % depth, "/%d" % min(back, depth))
    walk = follow(TOP, by_key(*found.values()), allowed)
    assert len(walk.chain) == min(allowed, depth + 1) and walk.problem == ("loop" if allowed > depth else "too_deep")
    assert walk.chain.ends is None


def test_the_first_layer_keeps_what_is_known_of_it_and_the_rest_is_known_from_headers():
    walk = follow(TOP, chain_to(1), 9)
    assert walk.chain[0] == TOP and walk.chain[1] == Layer("file", (("file", "/1"),), "qcow2", known_from=HEADER)


def test_a_layer_is_of_the_kind_that_was_found():
    below_ = replace(header("/1"), kind="block")
    assert follow(TOP, by_key(header("/0", "/1"), below_), 9).chain[1] == Layer("block", (("dev", "/1"),), "qcow2", known_from=HEADER)


# What libvirt says, completed


A, B = file_layer("/0", "qcow2", 1), file_layer("/1", "qcow2", 2)


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (Chain((A, B), True), (["/0", "/1"], True, None)),
        (Chain((A, B), None), (["/0", "/1", "/2"], True, None)),
        (Chain((A,), None), (["/0", "/1", "/2"], True, None)),
        # libvirt says that it ends here, and that is what the guest has.
        (Chain((A,), True), (["/0"], True, None)),
        (Chain((), None), ([], None, None)),
        (Chain((replace(A, format="raw"),), None), (["/0"], True, None)),
        (Chain((Layer("network", (("name", "x"), ("protocol", "nbd")), "qcow2"),), None), (["nbd:///x"], None, "protocol")),
        (Chain((file_layer("/elsewhere", "qcow2"),), None), (["/elsewhere"], None, "remote")),
        (Chain((replace(A, facts=Facts(slices=((("offset", "0"),),))),), None), (["/0"], None, "slices")),
    ],
)
def test_completed(chain, expected):
    assert told(completed(chain, chain_to(2), 200)) == expected


def test_what_libvirt_knows_is_not_changed_by_headers():
    probes = by_key(header("/0", "/9"), header("/1", "/8"), header("/9"), header("/8"))
    assert completed(Chain((A, B), True), probes, 200) == Walk(Chain((A, B), True))
    assert told(completed(Chain((A, B), None), probes, 200)) == (["/0", "/1", "/8"], True, None)


def test_siblings_are_left_as_they_are():
    parent = replace(A, branches=(Chain((file_layer("/5", "qcow2"),), None),))
    chain = Chain((parent, B), None)
    assert completed(chain, chain_to(3), 200) == Walk(chain)


@pytest.mark.parametrize(("deepest", "length", "problem"), [(4, 4, None), (3, 3, "too_deep"), (2, 2, "too_deep"), (1, 2, "too_deep")])
def test_the_limit_counts_libvirts_layers_too(deepest, length, problem):
    walk = completed(Chain((A, B), None), chain_to(3), deepest)
    assert (len(walk.chain), walk.problem) == (length, problem)


@pytest.mark.parametrize("ends", [True, None])
def test_a_data_file_of_the_header_is_added_where_the_xml_has_none(ends):
    probes = by_key(header("/0", data="d.raw"), Probe("/d.raw", "raw", "block", physical=5))
    store = completed(Chain((A,), ends), probes, 9).chain[0].store
    assert store == Layer("block", (("dev", "/d.raw"),), "raw", known_from=HEADER, relative=True, raw=True)
    own = replace(A, store=file_layer("/mine.raw", "raw", 4))
    assert completed(Chain((own,), ends), probes, 9).chain[0] == own


def test_a_data_file_that_xml_and_header_name_is_known_from_both():
    """Through a link, too; a file of another name is not, and where the header says nothing only the XML knows it."""
    raw, link = (Probe(path, "raw", "file", identity=(1, 77), real="/d.raw") for path in ("/d.raw", "/link.raw"))
    probes = by_key(header("/0", data="/link.raw"), raw, link, replace(raw, path="/e.raw", identity=(1, 78)))
    for path, known_from in (("/d.raw", BOTH), ("/link.raw", BOTH), ("//link.raw", BOTH), ("/e.raw", XML), ("/unread.raw", XML)):
        own = replace(A, store=file_layer(path, "raw", 4))
        found = completed(Chain((own,), True), probes, 9).chain[0].store
        assert found == replace(own.store, known_from=known_from, raw=True if known_from == BOTH else None)
        assert completed(Chain((own,), True), by_key(header("/0"), raw), 9).chain[0] == own
    by_header = completed(Chain((A,), True), probes, 9).chain
    assert completed(by_header, probes, 9).chain == by_header and by_header[0].store.known_from == HEADER  # read again, it is no other knowledge


def test_a_guest_has_the_data_files_of_all_its_chains():
    """Now, in a mirror, and at the next start; and they are no files that its XML is silent about."""
    probes = by_key(header("/0", data="/a.raw"), header("/1", data="/b.raw"), header("/2", data="c.raw"), Probe("/a.raw", "raw", real="/real.raw"))
    mirror = Mirror("copy", None, Chain((file_layer("/2", "qcow2"),), True))
    domain = Domain("vm1", "u1", True, disks=(Disk("vda", Chain((A, B), True), mirror=mirror),), config=(Disk("vda", Chain((B,), None)),))
    found = with_stores(domain, probes)
    stores_ = [[str(layer.store) for layer in chain.layers] for chain in (found.disks[0].chain, found.disks[0].mirror.chain, found.config[0].chain)]
    assert stores_ == [["/a.raw", "/b.raw"], ["/c.raw"], ["/b.raw"]] and found.disks[0].mirror.chain[0].store.relative
    assert found.mentioned == {"/a.raw", "/real.raw", "/b.raw", "/c.raw"}
    assert with_stores(domain, by_key(header("/0"))) is not None and with_stores(domain, {}) == domain


def test_a_data_file_that_is_no_path_is_a_name():
    found = store_layer(header("/0", data="json:{}"), {})
    assert (found.path, found.name, found.known_from) == (None, "json:{}", HEADER)
    assert store_layer(header("/0"), {}) is None and store_layer(Probe("/0", "raw"), {}) is None


# What is asked for


@pytest.mark.parametrize(
    ("layer", "key"),
    [
        (A, ("/0", "qcow2")),
        (file_layer("/0", None), ("/0", None)),
        (Layer("block", (("dev", "/dev/x"),), "raw"), ("/dev/x", "raw")),
        (Layer("volume", (("pool", "p"), ("volume", "v")), "raw", resolved="/p/v"), ("/p/v", "raw")),
        (Layer("volume", (("pool", "p"), ("volume", "v")), "raw"), None),
        (Layer("dir", (("dir", "/d"),), "fat"), None),
        (Layer("vhostvdpa", (("dev", "/dev/vhost-vdpa-0"),), "raw"), None),
        (Layer("network", (("name", "/x"), ("protocol", "nbd")), "raw"), None),
        (replace(A, facts=Facts(slices=((("offset", "0"),),))), None),
        (replace(A, facts=Facts(encryption="luks")), ("/0", "qcow2")),
    ],
)
def test_only_whole_files_and_block_devices_are_looked_into(layer, key):
    assert key_of(layer) == key
    assert (probe_of(layer, {("/0", "qcow2"): Probe("/0", "qcow2")}) is not None) == (key == ("/0", "qcow2"))


def test_a_layer_whose_format_was_asked_for_finds_its_answer():
    probe = Probe("/0", "qcow2", "file")
    assert probe_of(file_layer("/0", "qcow2"), {("/0", None): probe}) is probe
    assert probe_of(file_layer("/0", None), {("/0", None): probe}) is probe


def test_what_is_wanted_of_guests():
    network = Layer("network", (("name", "x"), ("protocol", "nbd")), "raw")
    store, sibling, copied, later = (file_layer("/" + name, "raw") for name in ("store", "sibling", "copied", "later"))
    parent = replace(A, store=store, branches=(Chain((sibling,), True),))
    live = Disk("vda", Chain((parent, B, network), True), mirror=Mirror("copy", None, Chain((copied,), None)))
    domain = Domain("vm1", "u1", True, disks=(live,), config=(Disk("vda", Chain((A, later), None)), Disk("hdc", Chain())))
    named = ["/0", "/store", "/1", "/sibling", "/copied", "/later"]
    assert sorted(path for path, dummy in wanted([domain, domain])) == sorted(named)
    assert [path for path, dummy in wanted([domain], only_open=True)] == ["/copied", "/later"]


def test_what_headers_lead_to():
    assert below(header("/a/b", "c", "raw")) == ("/a/c", "raw")
    assert below(header("/a/b", "../c", None)) == ("/a/../c", None)
    assert below(header("/a")) is None and below(header("/a", "nbd:x")) is None and below(Probe("/a", "raw")) is None
    assert stores([header("/a/b", data="c"), header("/a"), header("/a", data="json:{}"), Probe("/a", "raw")]) == [("/a/c", "raw")]


def test_a_layer_without_facts_costs_nothing():
    assert A.facts is NO_FACTS


@pytest.mark.parametrize("data", ['json:{"driver": "nbd", "password": "SECRET"}', "nbd://user:SECRET@host/x", "https://host/x?token=SECRET"])
def test_no_secret_of_a_data_file_is_told(data):
    probe = header("/0", data=data)
    store = store_layer(probe, by_key(probe))
    assert store.name and "SECRET" not in repr(store) and store.path is None
