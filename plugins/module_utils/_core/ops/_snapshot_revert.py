# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Going back to a snapshot: each of its disks gets a new overlay on the image that holds the moment.

The law: that image is never written to, so that one can go back again. What was above it is dropped from the chain; its files go only
where that is asked for, and nobody else needs them. A guest that is off is reverted here; one that runs is libvirt's to revert (9.9).
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace
from typing import List, Optional, Tuple

from ..chain import Chain, Layer, file_layer, unnamed
from ..errors import Refused
from ..headers import with_layers
from ..model import Disk, Domain, Observed, Snapshot, where, with_chain
from ..plan import OVERLAY, REVERT, Plan, Step
from . import _base as bases
from . import _offline as offline
from ._snapshots import known, left_out, retell

NATIVE = (9, 9, 0)  # libvirt reverts to external snapshots from here on
TRIES = 9


@dataclass(frozen=True)
class Reversion:
    name: str
    delete_files: bool


def candidates(domain: Domain, name: str) -> Tuple[str, ...]:
    """The paths that new overlays may get, whichever snapshot it is."""
    paths = [layer.path for disk in domain.disks for layer in disk.chain.layers if layer.path]
    paths += [path for shot in domain.noted if shot.name == name for dummy, path in shot.bases]
    return tuple(one for path in dict.fromkeys(paths) for one in new_paths(path, name))


def new_paths(path: str, name: str) -> Tuple[str, ...]:
    """The paths that a new overlay on this image may get, the first choice first."""
    return tuple(_numbered(path, name, number) for number in range(1, TRIES + 1))


def _numbered(path: str, name: str, number: int) -> str:
    folder, base = posixpath.split(path)
    stem = base.rsplit(".", 1)[0] if "." in base[1:] else base
    return posixpath.join(folder, "%s.%s-%d" % (stem, name, number))


def plan(wanted: Reversion, domain: Domain, seen: Observed) -> Plan:
    """The steps that take a guest back. Raises Refused or Busy, naming the guest, the disk and the layer."""
    shot = next((one for one in known(domain, seen) if one.name == wanted.name), None)
    if shot is None:
        names = ", ".join(one.name for one in known(domain, seen)) or "none"
        raise Refused("no_snapshot", "Guest %s has no snapshot %s: its snapshots are %s." % (domain.name, wanted.name, names))
    if shot.internal:
        raise Refused("internal_snapshot", "Snapshot %s of guest %s is inside its images: revert to it with virsh snapshot-revert." % (shot.name, domain.name))
    if shot.spoiled:
        raise Refused(
            "partly_deleted",
            "A deletion of snapshot %s of guest %s was begun, which has written newer data into %s: there is no way back to that moment, finish it with the "
            "state absent." % (shot.name, domain.name, ", ".join(path for dummy, path in shot.spoiled)),
        )
    native = shot.tracked and seen.versions.libvirt is not None and seen.versions.libvirt >= NATIVE
    if domain.active and (native or shot.memory is None):
        return _by_libvirt(wanted, domain, shot, seen)
    if shot.memory is not None:
        raise Refused(
            "memory",
            "Snapshot %s of guest %s has its memory, too (%s), which only libvirt 9.9 or later brings back: use virsh snapshot-revert there."
            % (shot.name, domain.name, shot.memory),
        )
    return _offline(wanted, domain, shot, seen)


def _by_libvirt(wanted: Reversion, domain: Domain, shot: Snapshot, seen: Observed) -> Plan:
    version = seen.versions.libvirt
    if not shot.tracked or version is None or version < NATIVE:
        why = "libvirt keeps no metadata of it" if not shot.tracked else "only libvirt 9.9 or later reverts to an external one while the guest runs"
        raise Refused("running", "Guest %s runs, and snapshot %s cannot be reverted to like that (%s): shut it down first." % (domain.name, shot.name, why))
    after = domain
    for target, state in shot.bases:
        disk = domain.disk(target)
        if disk is None:
            continue
        if disk.job is not None:
            raise Refused("foreign_job", "A %s job is running on %s: let it end first." % (disk.job.type, where(domain, disk)))
        depth = disk.chain.named(state)
        below = disk.chain.layers[depth:] if depth is not None else (file_layer(state, None),)
        after = with_chain(after, target, Chain((unnamed(),) + below, disk.chain.ends if depth is not None else None))
    about = tuple(dict(shot.files))
    return Plan((domain,), (_without_indexes(after),), (Step(REVERT, None, {"name": shot.name}),), fence=0, about=about)


def _without_indexes(domain: Domain) -> Domain:
    return with_layers(domain, lambda layer: replace(layer, index=None))


def _offline(wanted: Reversion, domain: Domain, shot: Snapshot, seen: Observed) -> Plan:
    pairs = []
    for target, state in shot.bases:
        disk = domain.disk(target)
        if disk is not None:
            offline.idle(domain, disk, seen, "a reversion")
            pairs.append((disk, _state(domain, disk, shot, state)))
    if pairs and all(_already(domain, disk, depth, seen) for disk, depth in pairs):
        known_so = all(disk.chain.named(shot.overlay(disk.target) or "") == 0 for disk, dummy in pairs)
        left = () if known_so else _retold(domain, shot, [(disk, disk.chain) for disk, dummy in pairs])  # a run that was cut off has not told it
        return Plan((domain,), (domain,), left, about=tuple(disk.target for disk, dummy in pairs))
    steps: List[Step] = []
    after, chains, dropped = domain, [], []
    for disk, depth in pairs:
        layers = disk.chain.layers
        path = _free_path(domain, disk, layers[depth], shot.name, seen)
        size = bases.size_of(domain, disk, layers[depth], seen)
        overlay = file_layer(path, "qcow2")
        steps.append(offline.free(domain, disk, (), layers[depth:], seen))
        detail = {"path": path, "format": "qcow2", "on": layers[depth], "below": layers[depth + 1 :], "mode_of": layers[depth].path}
        steps.append(Step(OVERLAY, disk.target, dict(detail, size=size, creates=path)))
        chain = Chain((overlay,) + layers[depth:], disk.chain.ends)
        after = with_chain(after, disk.target, chain)
        chains.append((disk, chain))
        dropped += [(disk, layer) for layer in layers[:depth]]
    steps += offline.redefine(domain, chains) + _retold(domain, shot, chains)
    removals = _removals(wanted, domain, shot, after, dropped, seen)
    needed = _needed(domain, shot, seen)
    unused = [layer for disk, layer in dropped if (disk.target, layer.path) not in needed]
    warnings = () if removals else tuple("The file %s is not in use any more and stays." % layer for layer in unused)
    warnings += left_out(domain, shot)
    return Plan((domain,), (after,), offline.locks_first(steps) + removals, fence=len(steps) - 1 if removals else None, warnings=warnings)


def _state(domain: Domain, disk: Disk, shot: Snapshot, path: str) -> int:
    depth = disk.chain.named(path)
    if depth is None:
        raise Refused(
            "not_in_chain",
            "The image %s, which snapshot %s of guest %s stands for, is not in the chain of disk %s any more: define the guest with it by hand."
            % (path, shot.name, domain.name, disk.target),
        )
    return depth


def _already(domain: Domain, disk: Disk, depth: int, seen: Observed) -> bool:
    """Is the disk on an overlay directly above the moment that holds nothing of its own?"""
    return depth == 1 and seen.same.get((domain.uuid, disk.target)) is True


def _free_path(domain: Domain, disk: Disk, state: Layer, name: str, seen: Observed) -> str:
    for path in new_paths(state.path or "", name):
        file = seen.files.get(path)
        if file is not None and not file.exists:
            return path
    raise Refused("exists", "All names for a new overlay of %s beside %s are taken: remove those that nobody needs." % (where(domain, disk), state))


def _retold(domain: Domain, shot: Snapshot, chains: list) -> Tuple[Step, ...]:
    """From now on the new overlays are what the snapshot's border is at."""
    new = {disk.target: str(chain[0]) for disk, chain in chains}
    files = tuple((target, new.get(target, path)) for target, path in shot.files)
    notes: Optional[tuple] = tuple(replace(one, files=files) if one.name == shot.name else one for one in domain.noted)
    notes = None if notes == domain.noted else notes
    overlays = tuple((disk.target, chain[0]) for disk, chain in chains)
    return (retell((shot.name,) if shot.tracked else (), notes, overlays=overlays, before=domain.noted),)


def _needed(domain: Domain, shot: Snapshot, seen: Observed) -> dict:
    """Which other snapshot needs an image of a disk, by (disk, path)."""
    return {(target, path): one.name for one in known(domain, seen) if one.name != shot.name for target, path in one.files + one.bases}


def _removals(wanted: Reversion, domain: Domain, shot: Snapshot, after: Domain, dropped: list, seen: Observed) -> Tuple[Step, ...]:
    if not wanted.delete_files:
        return ()
    needed = _needed(domain, shot, seen)
    steps: List[Step] = []
    for disk, layer in dropped:
        owner = needed.get((disk.target, str(layer)))
        if owner is not None:
            raise Refused(
                "snapshot_needs",
                "Snapshot %s of guest %s needs %s, which delete_files would remove: delete that snapshot first, or leave delete_files out."
                % (owner, domain.name, layer),
            )
        steps += offline.removable(domain, disk, [layer.path or ""], after, seen, "delete_files")
    return tuple(steps)
