# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A disk's backing chain as a value, and what live block work does to it.

The law: the active layer comes first and the base last. A layer is known by its *place* (where its bytes are);
libvirt's index is an identity that lasts only while the guest runs, and neither of them is the depth.
A chain whose last layer carries an explicit terminator has ``ends=True``; where the terminator is missing nobody knows
what follows, and ``ends`` is None. A layer with several children (a quorum) has its first child in the chain and the others
as ``branches``. Every operation is a function chain -> chain; a call that makes no sense is a ValueError.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple

Pairs = Tuple[Tuple[str, str], ...]

PATH_ATTRIBUTES = ("file", "dev", "dir")
ACCESS_ATTRIBUTES = ("managed", "mode", "type")  # how libvirt gets there, not where it is


def normal_path(path: str) -> str:
    """The path without dots and double slashes; POSIX lets two slashes at the start stand, Linux gives them no meaning."""
    return posixpath.normpath("/" + path.lstrip("/") if path.startswith("/") else path)


@dataclass(frozen=True)
class Facts:
    """What libvirt tells of a layer beside its place, and never a secret.

    ``slices`` and ``seclabels`` are sorted pairs each; ``reservations`` is yes or no (managed by libvirt); ``encryption`` the
    kind, such as luks; ``auth`` the user.
    """

    slices: Tuple[Pairs, ...] = ()
    reservations: Optional[str] = None
    encryption: Optional[str] = None
    auth: Optional[str] = None
    seclabels: Tuple[Pairs, ...] = ()
    startup_policy: Optional[str] = None


NO_FACTS = Facts()
XML, HEADER, BOTH, OPTION = "xml", "header", "both", "option"


@dataclass(frozen=True)
class Layer:
    """One image of a chain, in the words of libvirt's ``<source>``.

    ``source`` holds the attributes of ``<source>`` that say where the image is (sorted pairs), ``hosts``, ``address`` and
    ``details`` (snapshot, config, initiator) its children of those names; ``format`` is None where libvirt does not say it;
    ``index`` is None outside a running guest. ``resolved`` is the path of a storage volume, ``store`` the data file of a
    qcow2 layer. ``known_from`` tells libvirt's knowledge (xml) and the user's (option) from what only a header claims; a data file may be
    known from both. ``relative``: the header names the data file without its directory, which libvirt (10.10) takes to be that of the
    image, as it is here, and QEMU by itself to be its own. ``raw`` is data_file_raw: does the data file alone show the whole disk?
    """

    type: str
    source: Pairs = ()
    format: Optional[str] = None
    index: Optional[int] = None
    hosts: Tuple[Pairs, ...] = ()
    address: Pairs = ()
    details: Pairs = ()
    facts: Facts = NO_FACTS
    store: Optional[Layer] = None
    branches: Tuple[Chain, ...] = ()
    resolved: Optional[str] = None
    known_from: str = XML
    relative: bool = False
    raw: Optional[bool] = None

    def attribute(self, name: str) -> Optional[str]:
        """The attribute of ``<source>`` with that name, or None."""
        return next((value for key, value in self.source if key == name), None)

    @property
    def path(self) -> Optional[str]:
        """The path on the host, for the types that have one (file, block, dir, vhostvdpa, and a volume that was looked up)."""
        for name, value in self.source:
            if name in PATH_ATTRIBUTES:
                return value
        return self.resolved

    @property
    def protocol(self) -> Optional[str]:
        return self.attribute("protocol") if self.type == "network" else None

    @property
    def name(self) -> Optional[str]:
        """The name on the server (network), POOL/VOLUME (volume), the socket (vhostuser), or PCI address and namespace (nvme)."""
        if self.type == "volume":
            return "%s/%s" % (self.attribute("pool"), self.attribute("volume"))
        if self.type == "vhostuser":
            return self.attribute("path")
        if self.type == "nvme" and self.address:
            return "%s/%s" % (pci_address(self.address), self.attribute("namespace"))
        return self.attribute("name") if self.type in ("network", UNNAMED) else None

    @property
    def place(self) -> tuple:
        """What makes two layers the same image: a path, or else the whole address. The format and the index do not count."""
        path = self.path
        if path is not None:
            return ("path", normal_path(path))
        where = tuple(pair for pair in self.source if pair[0] not in ACCESS_ATTRIBUTES)
        return (self.type, where, self.hosts, self.address, self.details)

    @property
    def told_store(self) -> Optional[Layer]:
        """The data file that libvirt's XML names, or is to name."""
        return self.store if self.store is not None and self.store.known_from != HEADER else None

    def __str__(self) -> str:
        if self.protocol:
            hosts = ",".join(_host(host) for host in self.hosts)
            return "%s://%s/%s" % (self.protocol, hosts, (self.name or "").lstrip("/"))
        return self.path or self.name or self.type


def pci_address(address: Pairs) -> str:
    """0000:01:00.0 of libvirt's ``<address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>``."""
    facts = dict(address)
    numbers = [int(facts.get(key, "0"), 0) for key in ("domain", "bus", "slot", "function")]
    return "%04x:%02x:%02x.%x" % tuple(numbers)


def _host(host: Pairs) -> str:
    facts = dict(host)
    if facts.get("socket"):
        return facts["socket"]
    return ":".join(facts[key] for key in ("name", "port") if facts.get(key))


def file_layer(path: str, format: Optional[str], index: Optional[int] = None) -> Layer:
    """A layer in a regular file."""
    return Layer("file", (("file", path),), format, index)


UNNAMED = "unnamed"


def unnamed() -> Layer:
    """A layer of a prediction whose name libvirt will choose."""
    return Layer(UNNAMED, (("name", "a new overlay, which libvirt names"),), "qcow2")


def same_places(expected: tuple, actual: tuple) -> bool:
    """Are they the same places, one by one? A place that is not yet named is any."""
    return len(expected) == len(actual) and all(one[0] == UNNAMED or one == two for one, two in zip(expected, actual))


class Place(NamedTuple):
    """Where a layer stands in the flat list of a chain: ``parent`` is the position of the layer that it backs."""

    position: int
    parent: Optional[int]
    depth: int
    layer: Layer
    terminated: Optional[bool]


@dataclass(frozen=True)
class Chain:
    """The layers of one disk, active first. No layer at all is an empty drive."""

    layers: Tuple[Layer, ...] = ()
    ends: Optional[bool] = None

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, depth: int) -> Layer:
        return self.layers[depth]

    @property
    def active(self) -> Optional[Layer]:
        return self.layers[0] if self.layers else None

    @property
    def places(self) -> tuple:
        return tuple(layer.place for layer in self.layers)

    def terminated(self, depth: int) -> Optional[bool]:
        """Does the chain end at this layer? True, False (a layer follows), or None: unknown."""
        return self.ends if depth == len(self.layers) - 1 else False

    def depth_of(self, place: tuple) -> Optional[int]:
        return self.places.index(place) if place in self.places else None

    def named(self, text: str) -> Optional[int]:
        """The depth of the layer at that path, or that is printed like that; None where there is none."""
        depth = self.depth_of(("path", normal_path(text)))
        return depth if depth is not None else next((depth for depth, layer in enumerate(self.layers) if str(layer) == text), None)

    @property
    def branched(self) -> bool:
        """Has any layer more than one child?"""
        return any(layer.branches for layer in self.layers)

    def walk(self, first: int = 0, parent: Optional[int] = None, depth: int = 0) -> List[Place]:
        """Every layer as a flat list: the chain, then the branches of its layers, each with what is below it."""
        last = len(self.layers) - 1
        found = []
        for number, layer in enumerate(self.layers):
            above = first + number - 1 if number else parent
            found.append(Place(first + number, above, depth + number, layer, False if number < last else self.ends))
        for number, layer in enumerate(self.layers):
            for branch in layer.branches:
                found += branch.walk(first + len(found), first + number, depth + number + 1)
        return found

    def images(self) -> Iterator[Layer]:
        """Every image that the disk needs: the layers, their branches and data stores."""
        for place in self.walk():
            yield place.layer
            if place.layer.store is not None:
                yield place.layer.store

    def map(self, change: Callable[[Layer], Layer]) -> Chain:
        """The same chain with every layer, branch and data store changed."""
        return replace(self, layers=tuple(_changed(layer, change) for layer in self.layers))


NO_CHAIN = Chain()


def _changed(layer: Layer, change: Callable[[Layer], Layer]) -> Layer:
    store = layer.store and _changed(layer.store, change)
    branches = tuple(branch.map(change) for branch in layer.branches)
    return change(replace(layer, store=store, branches=branches) if store is not layer.store or branches else layer)


def snapshot(chain: Chain, overlay: Layer) -> Chain:
    """The chain after an external snapshot: ``overlay`` becomes the active layer, all others stay below it."""
    if not chain.layers:
        raise ValueError("an empty drive has nothing to put an overlay on")
    if overlay.place in chain.places:
        raise ValueError("%s is already a layer of this chain" % overlay)
    return replace(chain, layers=(overlay,) + chain.layers)


def pull(chain: Chain, base: Optional[int] = None, top: int = 0) -> Chain:
    """The chain after a pull into the layer at depth ``top``, down to that at depth ``base`` (kept), or to the end where ``base`` is None."""
    if not chain.layers:
        raise ValueError("an empty drive has nothing to pull")
    if not 0 <= top < len(chain):
        raise ValueError("depth %s is not a layer of this chain" % top)
    if base is None:
        return Chain(chain.layers[: top + 1], True)
    if not top < base < len(chain):
        raise ValueError("depth %s is not a layer below that at depth %s" % (base, top))
    return replace(chain, layers=chain.layers[: top + 1] + chain.layers[base:])


def commit(chain: Chain, top: int, base: int) -> Chain:
    """The chain after the layers from depth ``top`` down to just above ``base`` were merged into ``base``."""
    if not 0 <= top < base < len(chain):
        raise ValueError("a commit needs a base (%s) below its top (%s)" % (base, top))
    return replace(chain, layers=chain.layers[:top] + chain.layers[base:])


def copy(chain: Chain, destination: Layer, shallow: bool = False) -> Chain:
    """The chain after a copy was pivoted: ``destination`` alone, or (shallow) above the old active layer's backing."""
    if not chain.layers:
        raise ValueError("an empty drive has nothing to copy")
    below = chain.layers[1:] if shallow else ()
    if destination.place in chain.places:
        raise ValueError("%s is already a layer of this chain" % destination)
    return Chain((destination,) + below, chain.ends if below else True)


def same_shape(expected: Chain, actual: Chain) -> bool:
    """Do two chains name the same images in the same order, with no contradiction in formats and ends?

    What either side does not know (a format, an end, a data file) contradicts nothing; indexes are not compared.
    """
    if not same_places(expected.places, actual.places):
        return False
    if expected.ends is not None and actual.ends is not None and expected.ends != actual.ends:
        return False
    pairs = tuple(zip(expected.layers, actual.layers))
    return same_stores(expected, actual) and all(one.format is None or two.format is None or one.format == two.format for one, two in pairs)


def same_stores(one: Chain, two: Chain) -> bool:
    """Do the layers have the same data files, one by one, where both sides know them?"""
    pairs = ((first.store, second.store) for first, second in zip(one.layers, two.layers))
    return all(first is None or second is None or first.place == second.place for first, second in pairs)
