# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who uses which image: every layer of every guest, now and at its next start.

What XML leaves open is read from the image headers, one at a time. What cannot be read is named, so that nobody takes
silence for "nobody uses it".
"""

from __future__ import annotations

import os
from typing import Iterator, List, Optional, Tuple

from .._core.chain import Chain, Layer
from .._core.headers import Probes, chains_of, follow, key_of, probe_of, store_layer
from .._core.model import Disk, Domain, Selection, Use
from .images import DEEPEST, Images
from .libvirt_host import Connection
from .patience import RealPaths


def all_uses(connection: Connection, images: Images, deadline: Optional[float] = None) -> Tuple[Tuple[Use, ...], Tuple[str, ...]]:
    """(uses, the images that hid a part of them, as those do that were not read until ``deadline``, in monotonic seconds)."""
    read = (connection.read(handle, True, False) for handle in connection.select(Selection()))
    domains = [domain for domain in read if domain is not None]
    chains = [chain for domain in domains for chain in _chains(domain) if chain.layers]
    open_ends = {key_of(chain.layers[-1]) for chain in chains if chain.ends is None}
    if connection.local:  # elsewhere nothing tells of data files
        open_ends.update(key_of(place.layer) for chain in chains for place in chain.walk() if _may_have_data(place.layer))
    probes = images.read(dict.fromkeys(key for key in open_ends if key is not None), DEEPEST, deadline=deadline)
    uses: List[Use] = []
    unread: List[str] = []
    real = RealPaths() if connection.local else None
    for domain in domains:
        for disk in domain.disks + domain.config:
            for chain in chains_of(disk):
                problem = _add(uses, domain, disk, chain, probes, real)
                unread += [problem] if problem else []
                unread += [str(place.layer) for place in chain.walk() if _may_have_data(place.layer) and _hides_data(place.layer, probes)]
                unread += [str(layer) for layer in chain.images() if layer.type == "volume" and layer.path is None]
    return tuple(dict.fromkeys(uses)), tuple(dict.fromkeys(unread))


def _chains(domain: Domain) -> Iterator[Chain]:
    return (chain for disk in domain.disks + domain.config for chain in chains_of(disk))


def _add(uses: List[Use], domain: Domain, disk: Disk, chain: Chain, probes: Probes, real: Optional[RealPaths]) -> Optional[str]:
    """Add the uses of one chain; the image whose header hid what is below it, if there is one."""
    below, problem = _below(chain, probes)
    writes = not disk.readonly and not disk.shareable and disk.device in ("disk", "lun")
    for number, layer in enumerate([place.layer for place in chain.walk()] + below):
        probe = probe_of(layer, probes)
        store = layer.store or (store_layer(probe, probes) if probe is not None else None)
        for image in [layer] + ([store] if store is not None else []):
            for place, written in _places(image, real):
                uses.append(Use(place, domain.name, domain.uuid, disk.target, written, writes and number == 0))
    return problem


def _may_have_data(layer: Layer) -> bool:
    """May a layer have a data file of its own that libvirt does not name?"""
    return layer.format == "qcow2" and layer.store is None


def _hides_data(layer: Layer, probes: Probes) -> bool:
    """Is it not known whether a layer has one, as its header cannot be read? Nothing can depend on what an image that is gone would name."""
    probe = probe_of(layer, probes)
    return probe is not None and probe.image is None and probe.problem not in (None, "missing", "remote")


def _places(layer: Layer, real: Optional[RealPaths]) -> List[tuple]:
    """(place, place as written) of an image: as it is named, and with its links resolved."""
    place = layer.place
    there = ("path", real.of(layer.path)) if real is not None and layer.path else place
    return [(place, ())] + ([(there, place)] if there != place else [])


def _below(chain: Chain, probes: Probes) -> Tuple[List[Layer], Optional[str]]:
    """The layers that headers name below a chain's open end, and the image of which it is not known what is below."""
    if not chain.layers or chain.ends is not None:
        return [], None
    walk = follow(chain.layers[-1], probes, DEEPEST)
    last = walk.chain.layers[-1]
    hidden: Optional[str] = str(last)
    if walk.chain.ends:
        hidden = None
    elif walk.problem == "missing" and last.path and os.path.isdir(os.path.dirname(last.path)):
        hidden = None  # nothing can depend on what an image that is gone would name; one whose directory is gone may come back with it
    return list(walk.chain.layers[1:]), hidden
