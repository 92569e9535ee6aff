# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What disk_chain_info returns: every layer with all that is known of it, and the three sources side by side.

The law: the flat list and the tree are made from the same walk over the same chain; what nobody knows is null, with the
reason beside it. No secret is rendered, because none was read.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Tuple

from .chain import Chain, Layer, pci_address
from .headers import Probes, Walk, probe_of
from .host_facts import QemuView, Sizes
from .model import Disk
from .render import job_result, store_result

SizesOf = Mapping[Tuple[str, str, Optional[int]], Sizes]
NOTHING = Sizes()
TREE_DEEPEST = 64
# They have keys of their own; a query may be the token of a signed URL.
_SHOWN_ELSEWHERE = frozenset(["file", "dev", "dir", "protocol", "name", "query"])


class LayerReport:
    """Renders the layers of one guest's disk, or of a bare image (``target`` None)."""

    def __init__(self, probes: Probes, sizes: SizesOf, uuid: str = "", target: Optional[str] = None, nodes: Optional[Dict[str, str]] = None):
        self._probes, self._sizes, self._uuid, self._target, self._nodes = probes, sizes, uuid, target, nodes

    def chain(self, walk: Walk, readonly: bool = False) -> List[dict]:
        """The flat list: the chain, then the branches; ``parent`` is a position in this list."""
        places = walk.chain.walk()
        end = len(walk.chain) - 1
        found = []
        for position, parent, depth, layer, terminated in places:
            one = {"depth": depth, "parent": parent, "terminated": terminated, "readonly": readonly or depth > 0}
            one.update(self._layer(layer, walk.problem if position == end else None))
            found.append(one)
        return found

    def _layer(self, layer: Layer, problem: Optional[str]) -> dict:
        index, facts = layer.index, layer.facts
        probe = probe_of(layer, self._probes) if self._probes else None
        size = self._sizes.get((self._uuid, self._target or "", index), NOTHING) if self._sizes else NOTHING
        found = {
            "index": index,
            "address": None if index is None else "%s[%d]" % (self._target, index),
            "type": layer.type,
            "protocol": layer.protocol,
            "path": layer.path,
            "name": layer.name,
            "host": [dict(host) for host in layer.hosts],
            "source": _source(layer) or None,
            "format": layer.format,
            "known_from": layer.known_from,
            "unread": problem or (probe.problem if probe is not None else None),
            "virtual_size": size.virtual if probe is None or probe.virtual is None else probe.virtual,
            "actual_size": self._allocated(layer, size.allocated if probe is None or probe.allocated is None else probe.allocated),
            "physical_size": size.physical if probe is None else probe.physical,
            "data_store": store_result(layer.store),
            "slices": [dict(one) for one in facts.slices] or None,
            "reservations": None if facts.reservations is None else {"managed": facts.reservations == "yes"},
            "encryption": facts.encryption,
            "auth": facts.auth,
            "seclabel": [dict(one) for one in facts.seclabels] or None,
            "startup_policy": facts.startup_policy,
        }
        if self._nodes is not None:
            found["node_name"] = next((self._nodes[name] for name in ("libvirt-%s-format" % index, "libvirt-%s-storage" % index) if name in self._nodes), None)
        return found

    def _allocated(self, layer: Layer, own: Optional[int]) -> Optional[int]:
        """With what the data file holds."""
        if layer.store is None or own is None:
            return own
        probe = probe_of(layer.store, self._probes)
        return own + probe.allocated if probe is not None and probe.allocated is not None else None


def _source(layer: Layer) -> dict:
    """What ``<source>`` says beyond the keys that a layer has of its own."""
    found = {key: value for key, value in layer.source if key not in _SHOWN_ELSEWHERE}
    found.update(layer.details)
    if layer.address:
        found["address"] = pci_address(layer.address)
    return found


def tree(chain: Chain) -> Optional[dict]:
    """The chain as a tree of dicts: ``layer`` is the position in the flat list, ``backing`` what is below.

    Where it would be deeper than ``TREE_DEEPEST`` it is cut (``backing`` is null): Ansible recurses into what it shows.
    """
    nodes: List[dict] = []
    for place in chain.walk():
        cut = place.depth == TREE_DEEPEST - 1 and place.terminated is False
        node: dict = {"layer": place.position, "source": str(place.layer), "backing": None if cut else []}
        nodes.append(node)
        if place.parent is not None and place.depth < TREE_DEEPEST:
            nodes[place.parent]["backing"].append(node)
    return nodes[0] if nodes else None


def source_result(chain: Chain) -> dict:
    """A chain as one source tells it, short."""
    layers = [{"source": str(one), "format": one.format, "data_store": None if one.store is None else str(one.store)} for one in chain.layers]
    return {"layers": layers, "terminated": chain.ends}


def data_moved(chain: List[dict], ends: Optional[bool]) -> dict:
    """Bytes that a pull or a commit would move, from the allocated bytes of the layers; null where one of them is not known.

    ``pull`` is by base (position; what every layer between the active one and it holds), ``flatten`` the same for all of
    them, and null where the end is not known (``ends``). ``commit`` is by layer: what merging it into the one below moves. No
    more than the guest sees can be moved.
    """
    sizes = [held(layer) for layer in chain]
    most = chain[0]["virtual_size"] if chain else None
    pulls = [None if position == 0 else _sum(sizes[1:position], most) for position in range(len(chain))]
    commits = [sizes[position] if position < len(chain) - 1 else None for position in range(len(chain))]
    return {"flatten": _sum(sizes[1:], most) if chain and ends else None, "pull": pulls, "commit": commits}


def held(layer: dict) -> Optional[int]:
    held, most = layer["actual_size"], layer["virtual_size"]
    return held if held is None or most is None else min(held, most)


def _sum(sizes: List[Optional[int]], most: Optional[int]) -> Optional[int]:
    if any(size is None for size in sizes):
        return None
    total = sum(size for size in sizes if size is not None)
    return total if most is None else min(total, most)


def qemu_result(view: Optional[QemuView]) -> Optional[dict]:
    """QEMU's own view of a guest's storage."""
    if view is None:
        return None
    return {
        "nodes": [{"node_name": one.name, "driver": one.driver, "file": one.file, "readonly": one.readonly} for one in view.nodes],
        "jobs": [dict(one) for one in view.jobs],
        "devices": [{"qdev": qdev, "node_name": node, "file": file} for qdev, node, file in view.devices],
    }


def disk_head(disk: Disk) -> dict:
    return {
        "disk": disk.target,
        "device": disk.device,
        "bus": disk.bus,
        "driver": dict(disk.driver),
        "readonly": disk.readonly,
        "shareable": disk.shareable,
        "transient": disk.transient,
        "job": job_result(disk.job),
    }
