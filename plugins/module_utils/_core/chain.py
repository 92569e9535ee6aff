# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A disk's backing chain as a value, and what live block work does to it.

The law: the active layer comes first and the base last. A layer is known by its *place* (where its bytes are);
libvirt's index is an identity that lasts only while the guest runs, and neither of them is the depth.
A chain whose last layer carries an explicit terminator has ``ends=True``; where the terminator is missing nobody knows
what follows, and ``ends`` is None. Every operation is a function chain -> chain; a call that makes no sense is a ValueError.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace
from typing import Optional, Tuple

Pairs = Tuple[Tuple[str, str], ...]

PATH_ATTRIBUTES = ("file", "dev", "dir")


def normal_path(path: str) -> str:
    """The path without dots and double slashes; POSIX lets two slashes at the start stand, Linux gives them no meaning."""
    return posixpath.normpath("/" + path.lstrip("/") if path.startswith("/") else path)


@dataclass(frozen=True)
class Layer:
    """One image of a chain, in the words of libvirt's ``<source>``.

    ``source`` holds the attributes of ``<source>`` that say where the image is (sorted pairs), ``hosts`` and ``address``
    its children of those names; ``format`` is None where libvirt does not say it; ``index`` is None outside a running guest.
    """

    type: str
    source: Pairs = ()
    format: Optional[str] = None
    index: Optional[int] = None
    hosts: Tuple[Pairs, ...] = ()
    address: Pairs = ()

    def attribute(self, name: str) -> Optional[str]:
        """The attribute of ``<source>`` with that name, or None."""
        return dict(self.source).get(name)

    @property
    def path(self) -> Optional[str]:
        """The path on the host, for the types that have one (file, block, dir, vhostvdpa)."""
        for name in PATH_ATTRIBUTES:
            value = self.attribute(name)
            if value is not None:
                return value
        return None

    @property
    def protocol(self) -> Optional[str]:
        return self.attribute("protocol")

    @property
    def name(self) -> Optional[str]:
        """The name on the server (type network) or POOL/VOLUME (type volume)."""
        if self.type == "volume":
            return "%s/%s" % (self.attribute("pool"), self.attribute("volume"))
        return self.attribute("name")

    @property
    def place(self) -> tuple:
        """What makes two layers the same image: a path, or else the whole address. The format and the index do not count."""
        if self.path is not None:
            return ("path", normal_path(self.path))
        return (self.type, self.source, self.hosts, self.address)

    def __str__(self) -> str:
        where = self.path or self.name or self.type
        if self.protocol:
            hosts = ",".join(_host(host) for host in self.hosts)
            where = "%s://%s/%s" % (self.protocol, hosts, (self.name or "").lstrip("/"))
        return where


def _host(host: Pairs) -> str:
    facts = dict(host)
    if facts.get("socket"):
        return facts["socket"]
    return ":".join(facts[key] for key in ("name", "port") if facts.get(key))


def file_layer(path: str, format: Optional[str], index: Optional[int] = None) -> Layer:
    """A layer in a regular file."""
    return Layer("file", (("file", path),), format, index)


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


def snapshot(chain: Chain, overlay: Layer) -> Chain:
    """The chain after an external snapshot: ``overlay`` becomes the active layer, all others stay below it."""
    if not chain.layers:
        raise ValueError("an empty drive has nothing to put an overlay on")
    if overlay.place in chain.places:
        raise ValueError("%s is already a layer of this chain" % overlay)
    return replace(chain, layers=(overlay,) + chain.layers)


def pull(chain: Chain, base: Optional[int] = None) -> Chain:
    """The chain after a pull down to the layer at depth ``base`` (kept), or a flatten where ``base`` is None."""
    if not chain.layers:
        raise ValueError("an empty drive has nothing to pull")
    if base is None:
        return Chain(chain.layers[:1], True)
    if not 0 < base < len(chain):
        raise ValueError("depth %s is not a layer below the active one" % base)
    return replace(chain, layers=chain.layers[:1] + chain.layers[base:])


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

    What either side does not know (a format, an end) contradicts nothing; indexes are not compared.
    """
    if expected.places != actual.places:
        return False
    if expected.ends is not None and actual.ends is not None and expected.ends != actual.ends:
        return False
    pairs = zip(expected.layers, actual.layers)
    return all(one.format is None or two.format is None or one.format == two.format for one, two in pairs)
