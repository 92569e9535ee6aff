# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""hypothesis strategies: layers of every type, chains, disks, and chains with everything that a layer can have."""

from __future__ import annotations

import functools
from dataclasses import replace

from hypothesis import strategies as st

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import HEADER, NO_FACTS, XML, Chain, Facts, Layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Mirror

FORMATS = ("raw", "qcow2", "qed", "vmdk", "luks")
# Some need an escape in XML or are not ASCII. Drawing from a list is many times as fast as drawing texts.
WORDS = st.sampled_from(["a", "b.qcow2", ".c", "d e", "f&g", "<h>", "i'j", 'k"l', "m;n", "ä", "雪", "vda[1]", "%s", "json:{}", "-x"])
SAFE = st.sampled_from(["a", "b", "c", "D", "e-1", "f_2", "g3", "h", "i", "j"])


def _path(words):
    return st.one_of(words.map("/{}".format), st.tuples(words, words).map(lambda pair: "/%s/%s" % pair))


def _pairs(**values):
    return st.fixed_dictionaries(values).map(lambda facts: tuple(sorted(facts.items())))


def _with_path(kind: str, attribute: str, words):
    return st.builds(Layer, type=st.just(kind), source=_pairs(**{attribute: _path(words)}))


def _host():
    ports = st.integers(1, 65535).map(str)
    named = _pairs(name=st.sampled_from(["127.0.0.1", "store1", "::1"]), port=ports)
    return st.one_of(named, _pairs(name=st.just("store2")), _pairs(name=st.just("store3"), port=ports, transport=st.just("tcp")))


def _one_host():
    socket = _pairs(socket=_path(SAFE), transport=st.just("unix"))
    return st.one_of(_host(), socket).map(lambda host: (host,))


def _network(words):
    def build(protocol, hosts):
        return st.builds(Layer, type=st.just("network"), source=_pairs(protocol=st.just(protocol), name=words), hosts=hosts)

    several = st.lists(_host(), min_size=2, max_size=3).map(tuple)
    return st.one_of(build("nbd", _one_host()), build("rbd", several), build("gluster", several), build("rbd", st.just(())))


def _nvme():
    address = _pairs(bus=st.just("0x02"), domain=st.just("0x0000"), function=st.just("0x0"), slot=st.integers(0, 31).map("0x{:02x}".format))
    source = _pairs(managed=st.sampled_from(["yes", "no"]), namespace=st.integers(1, 9).map(str), type=st.just("pci"))
    return st.builds(Layer, type=st.just("nvme"), source=source, address=address)


def places(words=WORDS):
    """Layers without format and index, of all types that can be part of a chain."""
    return st.one_of(
        _with_path("file", "file", words),
        _with_path("block", "dev", words),
        _with_path("dir", "dir", words),
        st.builds(Layer, type=st.just("volume"), source=_pairs(pool=SAFE, volume=SAFE)),
        _network(words),
        _nvme(),
    )


def vhost():
    """Layers of the types that are served by another process, and that always stand alone."""
    user = st.builds(Layer, type=st.just("vhostuser"), source=_pairs(path=_path(SAFE), type=st.just("unix")))
    return st.one_of(user, _with_path("vhostvdpa", "dev", SAFE))


@st.composite
def chains(draw, least=1, most=6, words=WORDS, known_formats=False):
    """Chains of different layers. Indexes are an identity: unique, and in no order; a guest that is off has none."""
    found = draw(st.lists(_places(words), min_size=least, max_size=most, unique_by=lambda layer: layer.place))
    turn = draw(st.integers(0, len(found)))
    indexes = [1 + (turn + 2 * depth) % (2 * len(found) + 1) for depth in range(len(found))] if draw(st.booleans()) else [None] * len(found)
    formats = draw(st.lists(st.sampled_from(FORMATS if known_formats else FORMATS + (None,)), min_size=most, max_size=most))
    layers = tuple(Layer(one.type, one.source, format_, index, one.hosts, one.address) for one, format_, index in zip(found, formats, indexes))
    return Chain(layers, draw(st.sampled_from([True, None])) if layers else None)


_places = functools.lru_cache(maxsize=None)(places)


@st.composite
def disks(draw, words=WORDS, known_formats=False):
    """Disks with a chain or empty, and now and then a mirror."""
    drawn = chains(words=words, known_formats=known_formats)
    chain = draw(st.one_of(drawn, drawn, vhost().map(lambda layer: Chain((layer,), None)), st.just(Chain())))
    mirror = None
    if chain.layers and draw(st.booleans()):
        mirror = Mirror(draw(st.sampled_from(["copy", "active-commit"])), draw(st.sampled_from([None, "yes", "abort", "pivot"])), draw(drawn))
    flags = {name: draw(st.booleans()) for name in ("readonly", "shareable", "transient")}
    driver = (("type", chain.active.format),) if chain.layers and chain.active.format else ()
    return Disk("vda", chain, "disk", draw(st.sampled_from(["virtio", "scsi", None])), mirror=mirror, driver=driver, **flags)


def _facts(slices=(), *rest, **more):
    return Facts(tuple((("offset", str(start)), ("size", "4096"), ("type", "storage")) for start in slices), *rest, **more)


NO_RELABEL = (("model", "dac"), ("relabel", "no"))
# What libvirt tells of a layer beside its place: lists again, since drawing each part is many times as slow.
FACTS = st.sampled_from(
    [
        NO_FACTS,
        NO_FACTS,
        _facts([0]),
        _facts([0, 4096], startup_policy="optional"),
        _facts(reservations="yes", auth="me"),
        _facts(reservations="no", encryption="luks"),
        _facts(encryption="qcow", seclabels=(NO_RELABEL,)),
        _facts([7], "no", "luks", "me", (NO_RELABEL, (("model", "selinux"), ("relabel", "yes"), ("label", "a:b"))), "requisite"),
    ]
)
NBD_STORE = Layer("network", (("name", "e"), ("protocol", "nbd")), "raw", 100, ((("name", "h"), ("port", "1")),))
STORES = st.sampled_from(
    [
        None,
        None,
        None,
        Layer("file", (("file", "/store/a"),), "raw"),
        Layer("file", (("file", "/store/b"),), "raw", 101),
        Layer("block", (("dev", "/dev/store"),), "raw", 102),
        NBD_STORE,
    ]
)


@st.composite
def families(draw, deepest=2, knowledge=(XML,)):
    """Chains whose layers have facts, details, data files and siblings (with families of their own) now and then."""
    chain = draw(chains(most=3, words=SAFE))
    layers = []
    for layer in chain.layers:
        details = ()
        if layer.type == "network" and draw(st.booleans()):
            details = tuple((name, draw(SAFE)) for name in ("config", "initiator", "snapshot") if draw(st.booleans()))
        branches = draw(st.lists(families(deepest=deepest - 1, knowledge=knowledge), max_size=2)) if deepest and draw(st.integers(0, 3)) == 0 else []
        layers.append(
            replace(layer, details=details, facts=draw(FACTS), store=draw(STORES), branches=tuple(branches), known_from=draw(st.sampled_from(knowledge)))
        )
    # What is below the first child follows it in the chain: without one there are no siblings.
    last = replace(layers[-1], branches=())
    return replace(chain, layers=tuple(layers[:-1]) + (last,))


@st.composite
def families_of_all_sources(draw):
    return draw(families(knowledge=(XML, HEADER)))


@st.composite
def full_disks(draw):
    """Disks as a running guest may have them, with all that is read of them."""
    chain = draw(families())
    names = [name for name in ("cache", "discard", "io") if draw(st.booleans())]
    driver = [(name, draw(SAFE)) for name in names] + ([("type", chain.active.format)] if chain.active.format else [])
    mirror = Mirror("copy", draw(st.sampled_from([None, "yes"])), draw(families(deepest=0))) if draw(st.booleans()) else None
    return Disk("vda", chain, "disk", "virtio", mirror=mirror, driver=tuple(sorted(driver)), alias=draw(st.one_of(st.none(), SAFE)))


def overlays(words=WORDS):
    """New active layers, as a snapshot makes them."""
    return st.one_of(_with_path("file", "file", words), _with_path("block", "dev", words)).flatmap(
        lambda layer: st.sampled_from(("qcow2", "qed")).map(lambda format_: Layer(layer.type, layer.source, format_))
    )


def placed():
    """New active layers of all the kinds that a snapshot can go to, exports of NBD included."""
    export = st.builds(Layer, type=st.just("network"), source=_pairs(protocol=st.just("nbd"), name=SAFE), format=st.just("qcow2"), hosts=_one_host())
    return st.one_of(overlays(SAFE), export)
