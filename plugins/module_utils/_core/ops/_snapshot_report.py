# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What external_snapshot_info tells of snapshots: their tree, their files, and what lies in these.

The law: what nobody knows is null.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Tuple

from ..chain import Chain, Layer, file_layer
from ..errors import LiveStorageError
from ..headers import Walk, probe_of
from ..model import Domain, Observed, Snapshot, Use
from ..report import TREE_DEEPEST, LayerReport, held
from . import _files as files

Parents = Dict[str, Optional[str]]


def reason_of(error: LiveStorageError) -> dict:
    return {"code": error.code, "message": str(error)}


def parents(shots: Tuple[Snapshot, ...]) -> Parents:
    """The name of each snapshot's parent: as libvirt says, unless one that it keeps no metadata of lies between, which the layers tell."""
    names = {shot.name for shot in shots}
    untracked = tuple(shot for shot in shots if not shot.tracked)
    found: Parents = {shot.name: _below(shot, untracked) or shot.parent if shot.tracked else _below(shot, shots) for shot in shots}
    for name, parent in found.items():
        found[name] = parent if parent in names and name not in _ancestors(name, found) else None
    return found


def _ancestors(name: str, above: Parents) -> List[str]:
    """An outdated note may lead in a circle."""
    found: List[str] = []
    parent = above[name]
    while parent is not None and parent not in found:
        found.append(parent)
        parent = above.get(parent)
    return found


def _below(shot: Snapshot, shots: Tuple[Snapshot, ...]) -> Optional[str]:
    """The snapshot whose overlay is the image that this one stands for."""
    return next((one.name for one in shots if one.name != shot.name and set(one.files) & set(shot.bases)), None)


def in_order(shots: Tuple[Snapshot, ...], above: Parents) -> Tuple[Snapshot, ...]:
    """Each snapshot after its parent, and those of one parent by the time when they were taken. libvirt has no order."""
    ranked = sorted(shots, key=lambda shot: (shot.created is None, shot.created or 0, shot.name), reverse=True)
    found: List[Snapshot] = []
    todo = [shot for shot in ranked if above[shot.name] is None]
    while todo:
        found.append(todo.pop())
        todo += [shot for shot in ranked if above[shot.name] == found[-1].name]
    return tuple(found)


def tree(shots: Tuple[Snapshot, ...], above: Parents) -> List[dict]:
    """The snapshots without a parent, each with those that were taken after it. Where it would be deeper than ``TREE_DEEPEST`` it is cut."""
    found: List[dict] = []
    places: Dict[Optional[str], Optional[List[dict]]] = {None: found}
    depths: Dict[Optional[str], int] = {None: 0}
    for shot in shots:
        parent = above[shot.name]
        depths[shot.name] = depths[parent] + 1
        cut = depths[shot.name] == TREE_DEEPEST and shot.name in above.values()
        node: dict = {"name": shot.name, "current": shot.current, "children": None if cut else []}
        place = places[parent]
        if place is not None:
            place.append(node)
        places[shot.name] = node["children"] if place is not None else None
    return found


def memory_result(shot: Snapshot, seen: Observed) -> Optional[dict]:
    file = seen.files.get(shot.memory or "")
    if shot.memory is None:
        return None
    return {"path": shot.memory, "exists": None if file is None else file.exists, "size": file.size if file is not None and file.exists else None}


class LayerFacts:
    """Of the layers of one guest, and of other images that its snapshots name."""

    def __init__(self, domain: Domain, seen: Observed):
        self._domain, self._seen = domain, seen

    def depth(self, target: str, name: Optional[str]) -> Optional[int]:
        disk = self._domain.disk(target)
        return None if disk is None or name is None else disk.chain.named(name)

    def named(self, target: str, name: Optional[str]) -> Optional[dict]:
        """Of the image that a snapshot names by its path, or as it is printed; None where it does not say which."""
        if name is None:
            return None
        depth = self.depth(target, name)
        if depth is not None:
            return self.at(target, depth)
        return self._facts(target, file_layer(name, None) if name.startswith("/") else Layer("network", (("name", name),)))

    def at(self, target: str, depth: int) -> dict:
        return self._facts(target, self._layer(target, depth))

    def held(self, target: str, depth: int) -> Optional[int]:
        """An estimate of the bytes that a merge of this layer moves."""
        return held(self._row(target, self._layer(target, depth)))

    def _layer(self, target: str, depth: int) -> Layer:
        return next(disk.chain[depth] for disk in self._domain.disks if disk.target == target)

    def _row(self, target: str, layer: Layer) -> dict:
        return LayerReport(self._seen.probes, self._seen.sizes, self._domain.uuid, target).chain(Walk(Chain((layer,))))[0]

    def _facts(self, target: str, layer: Layer) -> dict:
        row, probe = self._row(target, layer), probe_of(layer, self._seen.probes)
        file = self._seen.files.get(layer.path or "")
        return {
            "path": str(layer),
            "format": layer.format or (probe.format if probe is not None else None),
            "exists": None if file is None else file.exists,
            "virtual_size": row["virtual_size"],
            "actual_size": row["actual_size"],
            "physical_size": row["physical_size"],
        }


def uses_by_guest(seen: Observed) -> Callable[[Domain], Tuple[Use, ...]]:
    """The uses that a plan for a guest can be about: of every image that it, or a snapshot of it, names. A host has thousands of others."""
    by_place: Dict[tuple, List[int]] = {}
    own: Dict[str, set] = {}
    for number, use in enumerate(seen.uses):
        by_place.setdefault(use.place, []).append(number)
        own.setdefault(use.uuid, set()).add(use.place)

    def of(domain: Domain) -> Tuple[Use, ...]:
        shots = (*seen.shots.get(domain.uuid, ()), *domain.noted)
        layers = [layer for disk in domain.disks + domain.config for layer in disk.chain.images()]
        paths = [path for shot in shots for path in shot.paths] + [layer.path for layer in layers if layer.path]
        places = own.get(domain.uuid, set()) | {layer.place for layer in layers}
        for path in dict.fromkeys(paths):
            places |= files.places_of(path, seen)
        return tuple(seen.uses[number] for number in sorted({number for place in places for number in by_place.get(place, ())}))

    return of
