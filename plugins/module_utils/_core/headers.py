# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chains as the images' own headers tell them.

The law: a name in a header is followed only where it is a path of a file or a block device, one image at a time, no
deeper than asked and never in a circle; where the way ends too early, the reason is told. What is read, and by whom, is
decided elsewhere: here are only probes, by (path, format) as they were asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Tuple

from .chain import BOTH, HEADER, OPTION, Chain, Layer, normal_path
from .host_facts import Probe
from .image_info import shown_name
from .model import Disk, Domain

Key = Tuple[str, Optional[str]]
Probes = Mapping[Key, Probe]

PROBED_TYPES = ("file", "block", "volume")


@dataclass(frozen=True)
class Walk:
    """A chain as far as headers tell it. ``problem`` is why its end is not known (see ``Probe.problem``, and loop, too_deep, protocol, slices)."""

    chain: Chain
    problem: Optional[str] = None


def key_of(layer: Layer) -> Optional[Key]:
    """What a layer is probed as; None for one that is no file or block device, or only a slice of one."""
    return (layer.path, layer.format) if layer.type in PROBED_TYPES and layer.path and not layer.facts.slices else None


def probe_of(layer: Layer, probes: Probes) -> Optional[Probe]:
    """The probe of a layer. A header that names no format had it asked for as such, whatever it turned out to be."""
    key = key_of(layer)
    return None if key is None else probes.get(key) or probes.get((key[0], None))


def wanted(domains: Iterable[Domain], only_open: bool = False) -> List[Key]:
    """The keys of every layer and data store that libvirt names, of all disks and mirrors: they may be looked into.

    ``only_open``: just the last layer of the chains of which libvirt does not know the end.
    """
    found: Dict[Optional[Key], None] = {}
    for domain in domains:
        for disk in domain.disks + domain.config:
            for chain in chains_of(disk):
                layers = chain.images() if not only_open else chain.layers[-1:] if chain.ends is None else ()
                for layer in layers:
                    found[key_of(layer)] = None
    return [key for key in found if key is not None]


def measured(domain: Domain, probes: Probes) -> bool:
    """Is the size of every layer in use known from its file?"""
    found = (probe_of(layer, probes) for disk in domain.disks for chain in chains_of(disk) for layer in chain.images())
    return all(probe is not None and probe.virtual is not None for probe in found)


def chains_of(disk: Disk) -> Tuple[Chain, ...]:
    return (disk.chain,) if disk.mirror is None else (disk.chain, disk.mirror.chain)


def below(probe: Probe) -> Optional[Key]:
    """What the header of an image names as its backing, where that is a path."""
    image = probe.image
    return (image.backing_path, image.backing_format) if image is not None and image.backing_path else None


def stores(probes: Iterable[Probe]) -> Iterable[Key]:
    """The data files that headers name. Nobody opens them: they are only asked for their size."""
    return [(probe.image.data_path, "raw") for probe in probes if probe.image is not None and probe.image.data_path]


def store_layer(probe: Probe, probes: Probes) -> Optional[Layer]:
    """The data file that a header names, as a layer."""
    image = probe.image
    if image is None or not image.data:
        return None
    if image.data_path is None:
        return Layer("network", (("name", shown_name(image.data)),), "raw", known_from=HEADER, raw=image.data_raw)
    return replace(_header_layer(image.data_path, "raw", probes), relative=image.data_relative, raw=image.data_raw)


def _header_layer(path: str, format: Optional[str], probes: Probes) -> Layer:
    probe = probes.get((path, format))
    kind = probe.kind if probe is not None and probe.kind else "file"
    found = format or (probe.image.format if probe is not None and probe.image is not None else None)
    return Layer(kind, (("dev" if kind == "block" else "file", path),), found, known_from=HEADER)


def follow(start: Layer, probes: Probes, deepest: int) -> Walk:
    """The chain from ``start`` downwards, by headers alone. ``start`` itself keeps what is known of it."""
    layers = []
    layer = start
    seen = set()
    while True:
        probe = probe_of(layer, probes)
        layer = _with_store(layer, probes)
        layers.append(layer)
        if layer.format == "raw":
            return Walk(Chain(tuple(layers), True), probe and probe.problem)
        if probe is None:
            return Walk(Chain(tuple(layers), None), _unprobed(layer))
        if probe.problem is not None or probe.image is None:
            return Walk(Chain(tuple(layers), None), probe.problem or "remote")
        seen.add(probe.identity or probe.real or layer.path)
        if not probe.image.backing:
            return Walk(Chain(tuple(layers), True))
        key = below(probe)
        if key is None:
            return Walk(Chain(tuple(layers), None), "protocol")
        following = probes.get(key)
        if following is not None and (following.identity or following.real or key[0]) in seen:
            return Walk(Chain(tuple(layers), None), "loop")
        if len(layers) >= deepest:
            return Walk(Chain(tuple(layers), None), "too_deep")
        layer = _header_layer(key[0], key[1], probes)


def _unprobed(layer: Layer) -> str:
    if layer.facts.slices:
        return "slices"
    return "protocol" if layer.path is None else "remote"


def completed(chain: Chain, probes: Probes, deepest: int) -> Walk:
    """A chain of libvirt's, with what the headers tell below its last layer where libvirt leaves that open, and its data files."""
    if not chain.layers:
        return Walk(chain)
    known = tuple(_with_store(layer, probes) for layer in chain.layers)
    if chain.ends is not None or chain.branched:
        return Walk(replace(chain, layers=known))
    walk = follow(known[-1], probes, max(1, deepest - len(known) + 1))
    return Walk(Chain(known[:-1] + walk.chain.layers, walk.chain.ends), walk.problem)


def _with_store(layer: Layer, probes: Probes) -> Layer:
    """The layer with its data file: by libvirt's XML, by the header, or by both where they agree."""
    probe = probe_of(layer, probes)
    told = store_layer(probe, probes) if probe is not None else None
    if told is None:
        return layer
    if layer.store is None or layer.store.known_from == HEADER:
        return replace(layer, store=told)
    if not same_store(layer.store, told, probes):
        return layer
    return replace(layer, store=replace(layer.store, known_from=BOTH, relative=told.relative, raw=told.raw))


def same_store(one: Layer, two: Layer, probes: Probes) -> bool:
    """Are two data files the same, links resolved?"""
    if one.path is None or two.path is None:
        return one.place == two.place
    if normal_path(one.path) == normal_path(two.path):
        return True
    first, second = (probes.get((path, "raw")) for path in (one.path, two.path))
    return first is not None and second is not None and first.identity is not None and first.identity == second.identity


def with_stores(domain: Domain, probes: Probes) -> Domain:
    """The guest with the data file of every layer, now, in a mirror and at the next start, as far as the headers tell it."""
    found = with_layers(domain, lambda layer: _with_store(layer, probes))
    data = [layer.store for disk in found.disks + found.config for chain in chains_of(disk) for layer in chain.layers if layer.store is not None]
    names = {path for store in data for path in (store.path, _real(store, probes)) if path}
    return replace(found, mentioned=found.mentioned | names) if names else found


def _real(layer: Layer, probes: Probes) -> Optional[str]:
    probe = probe_of(layer, probes)
    return None if probe is None else probe.real


def whole(domain: Domain, probes: Probes, deepest: int, same: Callable[[Chain, Chain], Optional[bool]]) -> Domain:
    """A guest that is off with the chains of its disks down to their end, by the headers; ``config`` stays what its definition says.

    Where the definition and the headers differ, but ``same`` finds that both chains show the same data, the headers are right: a run that was
    killed has changed them, and not yet the definition.
    """
    if domain.active:
        return domain
    return replace(domain, disks=tuple(replace(disk, chain=_by_both(disk.chain, probes, deepest, same)) for disk in domain.disks))


def _by_both(written: Chain, probes: Probes, deepest: int, same: Callable[[Chain, Chain], Optional[bool]]) -> Chain:
    chain = completed(written, probes, deepest).chain
    if len(written) < 2 or not chain.ends:
        return chain
    told = follow(chain.layers[0], probes, deepest).chain
    return told if told.ends and told.places != chain.places and same(chain, told) else chain


def bare_guest(path: str, format: Optional[str], probes: Probes, deepest: int, name: Optional[str] = None) -> Domain:
    """An image that belongs to no guest, as a guest that is off and has it as its one disk. An image that is not there has no chain.

    ``name``: what it is called where its chain began at another image before.
    """
    probe, name = probes[path, format], name or path
    disk = Disk(name, Chain())
    if probe.problem != "missing":
        kind = probe.kind or "file"
        start = Layer(kind, (("dev" if kind == "block" else "file", path),), probe.format, known_from=OPTION)
        disk = replace(disk, chain=follow(start, probes, deepest).chain)
    return Domain(name, name, False, "shutdown", False, (disk,), bare=True)


def with_layers(domain: Domain, change: Callable[[Layer], Layer]) -> Domain:
    """The guest with every layer of every chain changed: of today's disks, of their mirrors, and of the next start's."""

    def changed(disk: Disk) -> Disk:
        mirror = disk.mirror and replace(disk.mirror, chain=disk.mirror.chain.map(change))
        return replace(disk, chain=disk.chain.map(change), mirror=mirror)

    return replace(domain, disks=tuple(map(changed, domain.disks)), config=tuple(map(changed, domain.config)))
