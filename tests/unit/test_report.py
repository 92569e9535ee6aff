# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What disk_chain_info returns of a layer, a chain and a guest: one shape, two forms of it, and sums."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, Facts, Layer, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import parse_domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.findings import CODES, SEVERITIES, Finding, Subject, distinct, failing
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.headers import Walk
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import Image, Node, Probe, QemuView, Sizes
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Observed
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import disk_chain_info
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.report import TREE_DEEPEST, LayerReport, data_moved, qemu_result, source_result, tree
from ansible_collections.livestorage.libvirt.tests.unit.strategies import families_of_all_sources, full_disks
from ansible_collections.livestorage.libvirt.tests.unit.support import params_for
from ansible_collections.livestorage.libvirt.tests.unit.test_chain_laws import GUEST
from ansible_collections.livestorage.libvirt.tests.unit.test_every_module import text
from ansible_collections.livestorage.libvirt.tests.unit.xml_writer import SECRET, disk_xml

RETURN = text("disk_chain_info", "RETURN")
LAYER_KEYS = set(RETURN["domains"]["contains"]["disks"]["contains"]["chain"]["contains"])
DISK_KEYS = set(RETURN["domains"]["contains"]["disks"]["contains"])


def rendered(chain, **arguments):
    return LayerReport({}, {}, "u1", "vda", **arguments).chain(Walk(chain))


# Layers


def flat(node, parent=None) -> list:
    """(position, parent, source) of every node of a tree."""
    return [] if node is None else [(node["layer"], parent, node["source"])] + [one for below in node["backing"] for one in flat(below, node["layer"])]


@given(families_of_all_sources())
def test_the_flat_list_and_the_tree_are_the_walk(chain):
    places, layers = chain.walk(), rendered(chain, nodes={})
    assert len(layers) == len(places) and {frozenset(layer) for layer in layers} == {frozenset(LAYER_KEYS)}
    assert {frozenset(layer) for layer in rendered(chain)} == {frozenset(LAYER_KEYS - {"node_name"})}
    for layer, place in zip(layers, places):
        assert (layer["parent"], layer["depth"], layer["terminated"]) == (place.parent, place.depth, place.terminated)
        assert (layer["path"], layer["format"], layer["index"]) == (place.layer.path, place.layer.format, place.layer.index)
        assert layer["address"] == (None if place.layer.index is None else "vda[%d]" % place.layer.index)
        assert layer["readonly"] == (place.depth > 0)
    assert sorted(flat(tree(chain))) == [(place.position, place.parent, str(place.layer)) for place in places]
    json.dumps(layers)


@pytest.mark.parametrize("depth", [1, TREE_DEEPEST - 1, TREE_DEEPEST, TREE_DEEPEST + 1, 200, 1000])
@pytest.mark.parametrize("ends", [True, None])
def test_a_tree_is_cut_where_it_is_too_deep_for_ansible(depth, ends):
    node = tree(Chain(tuple(file_layer("/%d" % one, "qcow2") for one in range(depth)), ends))
    found = []
    while node is not None:
        found.append(node["layer"])
        last, node = node, (node["backing"] or [None])[0]
    assert found == list(range(min(depth, TREE_DEEPEST)))
    assert last["backing"] == ([] if depth <= TREE_DEEPEST else None)


def test_a_sibling_that_is_too_deep_is_cut_too():
    below = Chain(tuple(file_layer("/%d" % one, "qcow2") for one in range(TREE_DEEPEST + 5)), True)
    parent = Layer("file", (("file", "/a"),), branches=(below, below))
    node = tree(Chain((parent, file_layer("/b", "raw")), True))
    assert [one["source"] for one in node["backing"]] == ["/b", "/0", "/0"]
    for one in node["backing"][1:]:
        for dummy in range(TREE_DEEPEST - 2):
            one = one["backing"][0]
        assert (one["source"], one["backing"]) == ("/%d" % (TREE_DEEPEST - 2), None)
    json.dumps(node)


def test_an_empty_drive():
    assert rendered(Chain()) == [] and tree(Chain()) is None and source_result(Chain()) == {"layers": [], "terminated": None}


@given(full_disks())
def test_the_whole_report_of_a_guest(disk):
    domain = parse_domain(GUEST % disk_xml(disk), True)
    asked = {"validate": True, "estimate": True, "qemu_nodes": True}
    found = disk_chain_info.report(disk_chain_info.request(params_for("disk_chain_info", asked)), Observed((domain,), local=False))
    assert set(found) == set(RETURN) - {"code"} | {"changed"} and found["changed"] is False
    assert set(found["domains"][0]) == set(RETURN["domains"]["contains"])
    shown = found["domains"][0]["disks"][0]
    assert set(shown) == DISK_KEYS and shown["driver"] == dict(disk.driver)
    assert set(shown["sources"]) == {"live", "inactive", "images"}
    assert SECRET not in json.dumps(found)


@pytest.mark.parametrize(
    ("asked", "keys"), [({}, set()), ({"validate": True}, {"findings"}), ({"fail_on": ["info"]}, {"findings"}), ({"estimate": True}, {"data_moved"})]
)
def test_what_was_not_asked_for_is_not_there(asked, keys):
    domain = parse_domain(GUEST % "<disk><source file='/a'/><target dev='vda'/></disk>", False)
    found = disk_chain_info.report(disk_chain_info.request(params_for("disk_chain_info", dict(asked, sources=["inactive"]))), Observed((domain,), local=False))
    disk = found["domains"][0]["disks"][0]
    assert set(disk) == DISK_KEYS - {"findings", "data_moved"} | keys and set(disk["sources"]) == {"inactive"}
    assert "qemu" not in found["domains"][0] and "node_name" not in disk["chain"][0]


def test_what_source_says_beyond_the_keys_that_stand_for_themselves():
    nbd = Layer("network", (("name", "x"), ("protocol", "https"), ("query", "token=" + SECRET)), details=(("config", "/c"), ("snapshot", "s")))
    nvme = Layer("nvme", (("managed", "yes"), ("namespace", "1"), ("type", "pci")), address=(("bus", "0x02"), ("slot", "0x1f")))
    volume = Layer("volume", (("mode", "host"), ("pool", "p"), ("volume", "v")), resolved="/p/v")
    shown = [rendered(Chain((layer,)))[0]["source"] for layer in (nbd, nvme, volume, file_layer("/a", "raw"))]
    assert shown == [
        {"config": "/c", "snapshot": "s"},
        {"managed": "yes", "namespace": "1", "type": "pci", "address": "0000:02:1f.0"},
        {"mode": "host", "pool": "p", "volume": "v"},
        None,
    ]


def test_facts_of_a_layer():
    facts = Facts(((("offset", "1"), ("size", "2")),), "no", "luks", "me", ((("model", "dac"), ("relabel", "no")),), "optional")
    found = rendered(Chain((Layer("file", (("file", "/a"),), "raw", facts=facts),)))[0]
    assert (found["slices"], found["reservations"]) == ([{"offset": "1", "size": "2"}], {"managed": False})
    assert (found["encryption"], found["auth"], found["startup_policy"]) == ("luks", "me", "optional")
    assert found["seclabel"] == [{"model": "dac", "relabel": "no"}]


A = file_layer("/a", "qcow2", 3)
HEADER = Probe("/a", "qcow2", "file", Image("/a", "qcow2", 100, 50), physical=60, allocated=50)
STATISTICS = {("u1", "vda", 3): Sizes(7, 8, 9), ("u1", "vdb", 3): Sizes(1, 1, 1), ("u2", "vda", 3): Sizes(2, 2, 2)}


@pytest.mark.parametrize(
    ("probes", "sizes", "expected"),
    [
        ({}, {}, (None, None, None, None)),
        ({("/a", "qcow2"): HEADER}, {}, (100, 50, 60, None)),
        ({}, STATISTICS, (7, 8, 9, None)),
        # The header is the word of today; where it says nothing, the statistics do.
        ({("/a", "qcow2"): HEADER}, STATISTICS, (100, 50, 60, None)),
        ({("/a", "qcow2"): Probe("/a", "qcow2", problem="permission")}, STATISTICS, (7, 8, None, "permission")),
    ],
)
def test_sizes(probes, sizes, expected):
    found = LayerReport(probes, sizes, "u1", "vda").chain(Walk(Chain((A,))))[0]
    assert (found["virtual_size"], found["actual_size"], found["physical_size"], found["unread"]) == expected


def test_why_an_end_is_not_known_stands_on_the_last_layer_only():
    chain = Chain((A, file_layer("/b", "qcow2")), None)
    assert [layer["unread"] for layer in LayerReport({}, {}).chain(Walk(chain, "too_deep"))] == [None, "too_deep"]


@pytest.mark.parametrize(
    ("names", "expected"), [(["libvirt-3-format", "libvirt-3-storage"], "libvirt-3-format"), (["libvirt-3-storage"], "libvirt-3-storage"), (["x"], None)]
)
def test_node_names(names, expected):
    assert rendered(Chain((A,)), nodes={name: name for name in names})[0]["node_name"] == expected


def test_qemus_own_view():
    view = QemuView((Node("n", "qcow2", "/a", True),), ({"type": "mirror"},), (("/machine/x", "n", "/a"),))
    assert qemu_result(view) == {
        "nodes": [{"node_name": "n", "driver": "qcow2", "file": "/a", "readonly": True}],
        "jobs": [{"type": "mirror"}],
        "devices": [{"qdev": "/machine/x", "node_name": "n", "file": "/a"}],
    }
    assert qemu_result(None) is None


# Sums


def layers(*pairs):
    return [{"actual_size": held, "virtual_size": seen} for held, seen in pairs]


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (layers(), {"flatten": None, "pull": [], "commit": []}),
        (layers((5, 100)), {"flatten": 0, "pull": [None], "commit": [None]}),
        (layers((5, 100), (7, 100), (11, 100)), {"flatten": 18, "pull": [None, 0, 7], "commit": [5, 7, None]}),
        # A layer may hold more than the guest sees (metadata), and all of them together may.
        (layers((5, 10), (17, 10), (11, 10)), {"flatten": 10, "pull": [None, 0, 10], "commit": [5, 10, None]}),
        (layers((5, 10), (None, 10), (11, 10)), {"flatten": None, "pull": [None, 0, None], "commit": [5, None, None]}),
        (layers((None, None), (7, None), (11, None)), {"flatten": 18, "pull": [None, 0, 7], "commit": [None, 7, None]}),
    ],
)
def test_data_moved(chain, expected):
    assert data_moved(chain, True) == expected


@pytest.mark.parametrize("ends", [None, False])
def test_what_a_flatten_moves_is_not_known_without_the_end(ends):
    found = data_moved(layers((5, None), (7, None), (11, None)), ends)
    assert found == {"flatten": None, "pull": [None, 0, 7], "commit": [5, 7, None]}


SIZE = st.one_of(st.none(), st.integers(0, 1 << 60))


@given(st.lists(st.tuples(SIZE, SIZE), max_size=6))
def test_no_more_is_moved_than_the_guest_sees_nor_less_by_a_longer_pull(pairs):
    found = data_moved(layers(*pairs), True)
    known = [size for size in found["pull"][1:] + [found["flatten"]] if size is not None] if pairs else []
    assert known == sorted(known) and all(size >= 0 for size in known)
    if pairs and pairs[0][1] is not None:
        assert all(size <= pairs[0][1] for size in known)
    assert len(found["pull"]) == len(found["commit"]) == len(pairs)


# Findings


def finding(code, layer=None, actual=None):
    return Finding(code, layer, None, actual, "x")


def test_codes_have_a_severity_and_are_the_documented_ones():
    assert set(CODES.values()) == set(SEVERITIES) and list(CODES) == sorted(CODES)
    described = str(RETURN["domains"]["contains"]["disks"]["contains"]["findings"]["contains"]["code"]["description"])
    assert [word for word in CODES if "V(%s)" % word not in described] == []
    assert set(finding("loop").result()) == set(RETURN["domains"]["contains"]["disks"]["contains"]["findings"]["contains"])


@given(st.lists(st.sampled_from(sorted(CODES))), st.lists(st.sampled_from(sorted(CODES) + list(SEVERITIES))))
def test_what_fail_on_means(codes, words):
    found = [finding(code) for code in codes]
    wrong = {one.code for one in failing(found, tuple(words))}
    for code in codes:
        worse = SEVERITIES[: SEVERITIES.index(CODES[code]) + 1]
        assert (code in wrong) == (code in words or bool(set(words) & set(worse)))
    assert [one for one in found if one.code in wrong] == failing(found, tuple(words))


def test_the_same_finding_is_told_once():
    one, same, other, more = finding("loop", "vda[1]"), finding("loop", "vda[1]"), finding("loop", "vda[2]"), finding("loop", "vda[1]", 5)
    assert distinct([one, other, same, more]) == [one, other, more]


def test_how_a_layer_is_named():
    layer, image = Subject("disk vda of guest vm1", "vda"), Subject("image /a")
    assert (layer.label(A), layer.name(A)) == ("vda[3]", "/a (vda[3])")
    off = file_layer("/a", "qcow2")
    assert (layer.label(off), layer.name(off), image.label(off), image.name(off)) == ("/a",) * 4
