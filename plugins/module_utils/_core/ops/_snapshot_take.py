# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Taking a snapshot: one overlay for each disk, all in one transaction where the guest runs."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Iterable, List, Optional, Tuple

from ..chain import Layer, file_layer, normal_path, snapshot
from ..errors import Refused
from ..model import Disk, Domain, Observed, Snapshot, where, with_chain
from ..plan import FREEZE, OVERLAY, SNAPSHOT, THAW, Plan, Step
from . import _base as bases
from . import _common as common
from . import _files as files
from . import _offline as offline
from ._overlay import exists, overlay_place
from ._snapshots import known, retell


@dataclass(frozen=True)
class Overlay:
    """One entry of the option disks. ``layer`` None: beside the active layer, with the snapshot's name as suffix."""

    disk: str
    layer: Optional[Layer] = None
    format: str = "qcow2"
    on_delete: Optional[str] = None

    @property
    def path(self) -> Optional[str]:
        return self.layer.path if self.layer is not None else None


@dataclass(frozen=True)
class Taking:
    """``quiesce_timeout`` and ``timeout`` in seconds; the latter is for the memory."""

    name: Optional[str]
    overlays: Tuple[Overlay, ...]
    metadata: bool
    reuse_existing: bool
    description: Optional[str] = None
    memory: Optional[str] = None
    quiesce: bool = False
    quiesce_fallback: bool = False
    quiesce_timeout: float = 30
    on_delete: Optional[str] = None
    timeout: float = 86400


def default_paths(wanted: Taking, domain: Domain) -> Tuple[str, ...]:
    """The paths that are looked at beside those that the options name."""
    unnamed = [disk for one in wanted.overlays if one.layer is None for disk in common.disks_named(domain, one.disk)]
    found = unnamed if wanted.overlays else _writable(domain)
    chosen = [default_path(domain, disk, wanted.name or "") for disk in found if disk.chain.layers and disk.chain.active.type == "file"]
    return tuple(chosen) + tuple(path for disk in domain.disks for path in files.paths_of_layers(domain, disk))


def take(wanted: Taking, domain: Domain, seen: Observed) -> Plan:
    """The steps of the snapshot. Raises Refused or Busy, naming the guest, the disk and the layer."""
    pairs = tuple((disk, _layer(wanted, domain, disk, entry)) for disk, entry in _chosen(wanted, domain))
    _no_doubles(domain, pairs)
    if _already(wanted, domain, pairs, seen):
        notes = _noted(wanted, domain, pairs)  # which a run that was cut off has not written
        left = () if notes is None or set(notes) == set(domain.noted) else (retell((), notes, before=domain.noted),)
        return Plan((domain,), (domain,), left, about=tuple(disk.target for disk, dummy in pairs))
    after = domain
    for disk, layer in pairs:
        if domain.active:
            common.agreed(domain, disk, seen)
            common.known_end(domain, disk)
            common.no_job(domain, disk)
        else:
            offline.idle(domain, disk, seen, "a snapshot")
        overlay_place(domain, disk, layer, wanted.reuse_existing, seen)
        after = with_chain(after, disk.target, snapshot(disk.chain, layer))
    _memory_place(wanted, domain, seen)
    steps = _live(wanted, domain, pairs, seen) if domain.active else _offline(wanted, domain, pairs, seen)
    notes = _noted(wanted, domain, pairs)
    if notes is not None:
        steps += (retell((), notes, before=domain.noted),)
    warnings = _warnings(wanted, domain, [disk.target for disk, dummy in pairs], seen) + _unquiesced(wanted, domain)
    froze = any(step.action == FREEZE for step in steps) if wanted.quiesce and domain.active else None
    return Plan((domain,), (after,), steps, warnings=warnings, quiesces=froze)


def _memory_place(wanted: Taking, domain: Domain, seen: Observed) -> None:
    """libvirt would overwrite a file that exists, and find out about a missing directory only then."""
    file = seen.files.get(wanted.memory or "")
    if file is None:
        return
    what = "The file %s for the memory of guest %s" % (wanted.memory, domain.name)
    if file.parent != "dir":
        raise Refused("no_parent", "%s is in %s, which is not a directory: create it first." % (what, posixpath.dirname(file.path)))
    if file.exists:
        raise Refused("exists", "%s exists already: choose another path." % what)


def _live(wanted: Taking, domain: Domain, pairs, seen: Observed) -> Tuple[Step, ...]:
    step = Step(SNAPSHOT, None, _detail(wanted, domain, pairs, seen))
    if not wanted.quiesce or _no_agent(domain) is not None:
        return (step,)
    freeze = Step(FREEZE, None, {"timeout": wanted.quiesce_timeout, "fallback": wanted.quiesce_fallback})
    return (freeze, step, Step(THAW, None, {"timeout": wanted.quiesce_timeout}))


def _detail(wanted: Taking, domain: Domain, pairs, seen: Observed) -> dict:
    targets = [disk.target for disk, dummy in pairs]
    created = [layer.path for dummy, layer in pairs if layer.type == "file" and not exists(layer.path, seen)]
    return {
        "name": wanted.name,
        "description": wanted.description,
        "memory": wanted.memory,
        "timeout": wanted.timeout,
        "overlays": tuple((disk.target, layer) for disk, layer in pairs),
        "others": tuple(disk.target for disk in domain.disks if disk.target not in targets),
        "metadata": wanted.metadata,
        "offline": not domain.active,
        "reuse_existing": wanted.reuse_existing or not domain.active,
        "creates": tuple(created) if seen.local else (),
        "back": tuple((disk.target, config.chain) for disk, dummy in pairs for config in [domain.config_disk(disk.target)] if config is not None),
    }


def _offline(wanted: Taking, domain: Domain, pairs, seen: Observed) -> Tuple[Step, ...]:
    """libvirt would make the overlays itself, but readable for everybody before 11.10 (CVE-2025-13193)."""
    steps: List[Step] = []
    if wanted.memory is not None:
        raise Refused("memory", "Guest %s is off, so it has no memory that could be kept: leave memory out." % domain.name)
    for disk, layer in pairs:
        layers = disk.chain.layers
        if layer.type != "file":
            raise Refused("offline_kind", "The overlay of %s, which is off, has to be a file: start the guest for another kind." % where(domain, disk))
        steps.append(offline.free(domain, disk, (), layers, seen))
    for disk, layer in pairs:
        if wanted.reuse_existing:
            continue
        layers = disk.chain.layers
        detail = {"path": layer.path, "format": layer.format, "on": layers[0], "below": layers[1:], "mode_of": layers[0].path}
        size = bases.size_of(domain, disk, layers[0], seen)
        steps.append(Step(OVERLAY, disk.target, dict(detail, size=size, creates=None if exists(layer.path, seen) else layer.path)))
    if not domain.bare:
        steps.append(Step(SNAPSHOT, None, _detail(wanted, domain, pairs, seen)))
    return tuple(steps)


def _no_agent(domain: Domain) -> Optional[str]:
    """Why the guest's file systems cannot be frozen; None where they may be."""
    if domain.agent is None:
        return "it has no channel for a guest agent (org.qemu.guest_agent.0)"
    if domain.state != "running":
        return "it is %s" % domain.state
    return None if domain.agent == "connected" else "its guest agent is not connected"


def _unquiesced(wanted: Taking, domain: Domain) -> Tuple[str, ...]:
    """The warning of a snapshot that goes on without a freeze. Raises Refused (code no_agent) where that is not wanted."""
    reason = _no_agent(domain) if wanted.quiesce and domain.active else None
    if reason is None:
        return ()
    if not wanted.quiesce_fallback:
        raise Refused(
            "no_agent",
            "The file systems of guest %s cannot be frozen, because %s: install and start qemu-guest-agent there, set quiesce_fallback, or leave quiesce out."
            % (domain.name, reason),
        )
    return ("The snapshot of guest %s is not quiesced, because %s." % (domain.name, reason),)


def _noted(wanted: Taking, domain: Domain, pairs) -> Optional[Tuple[Snapshot, ...]]:
    """Our note about the guest's snapshots with this one, None where none is needed: libvirt keeps no direction, and nothing without metadata."""
    directions = dict(_directions(wanted, domain, pairs))
    if domain.bare or wanted.name is None:
        return None
    new = all(disk.chain[0].place != layer.place for disk, layer in pairs)
    old = None if new else next((one for one in domain.noted if one.name == wanted.name), None)
    others = tuple(one for one in domain.noted if one.name != wanted.name)
    if wanted.metadata and not directions:  # a note of that name tells of one that is gone
        return others if new and others != domain.noted else None
    paths = tuple((disk.target, str(layer)) for disk, layer in pairs)
    states = tuple((disk.target, str(disk.chain[0 if new else 1])) for disk, dummy in pairs if new or len(disk.chain) > 1)
    spoiled = () if old is None else old.spoiled
    return others + (Snapshot(wanted.name, paths, states, tracked=wanted.metadata, on_delete=tuple(directions.items()), spoiled=spoiled),)


def _directions(wanted: Taking, domain: Domain, pairs) -> Iterable[Tuple[str, str]]:
    chosen = {disk.target: entry.on_delete for disk, entry in _chosen(wanted, domain)}
    for disk, dummy in pairs:
        direction = chosen.get(disk.target) or wanted.on_delete
        if direction is not None:
            yield disk.target, direction


def _chosen(wanted: Taking, domain: Domain) -> List[Tuple[Disk, Overlay]]:
    """(disk, entry) for each disk of the snapshot; without entries, every disk that is writable."""
    if domain.bare:
        entries = [one for one in wanted.overlays if normal_path(one.disk) == domain.name]
        return [(domain.disks[0], entries[0] if entries else Overlay(domain.name))]
    if not wanted.overlays:
        found = _writable(domain)
        if not found:
            raise Refused("no_disks", "Guest %s has no writable disk: nothing can be snapshotted." % domain.name)
        return [(common.writable_disk(domain, disk, "a snapshot"), Overlay(disk.target)) for disk in found]
    return [(common.writable_disk(domain, _disk_of(domain, one), "a snapshot"), one) for one in wanted.overlays]


def _writable(domain: Domain) -> List[Disk]:
    return [disk for disk in domain.disks if disk.device == "disk" and not disk.readonly and disk.chain.layers]


def _disk_of(domain: Domain, entry: Overlay) -> Disk:
    """The disk that an entry names. Named by the path of its active layer, it is the one on the new layer once that is done."""
    if entry.path is not None and not common.disks_named(domain, entry.disk):
        done = common.disks_named(domain, entry.path)
        if len(done) == 1 and ("path", normal_path(entry.disk)) in done[0].chain.places[1:]:
            return done[0]
    return common.the_disk(domain, entry.disk)


def _layer(wanted: Taking, domain: Domain, disk: Disk, entry: Overlay) -> Layer:
    if domain.bare and not disk.chain.layers:
        raise Refused("image_missing", "The image %s is not there: correct the path." % domain.name)
    return entry.layer or file_layer(default_path(domain, disk, wanted.name or ""), entry.format)


def default_path(domain: Domain, disk: Disk, name: str) -> str:
    """libvirt's own choice of a name, beside the active layer."""
    active = disk.chain.active
    if active is None or active.path is None or active.type != "file":
        raise Refused("no_path", "The active layer of %s is not a file: give the overlay's path." % where(domain, disk))
    return beside(active.path, name)


def beside(path: str, name: str) -> str:
    """The suffix of a file replaced by the snapshot's name."""
    folder, base = posixpath.split(path)
    stem = base.rsplit(".", 1)[0] if "." in base[1:] else base
    if base == "%s.%s" % (stem, name):
        return path  # made by an earlier run of the same task
    return posixpath.join(folder, "%s.%s" % (stem, name))


def _no_doubles(domain: Domain, pairs) -> None:
    for what, values in (("disk", [disk.target for disk, dummy in pairs]), ("path", [layer.path for dummy, layer in pairs])):
        for value in values:
            if values.count(value) > 1:
                raise Refused("double", "The %s %s is named twice for guest %s: every disk needs a file of its own." % (what, value, domain.name))


def _already(wanted: Taking, domain: Domain, pairs, seen: Observed) -> bool:
    """Is every active layer that file already? Some of them is a Refusal: a moment that has passed cannot be completed."""
    if domain.bare:
        made = seen.images.get(pairs[0][1].path or "")
        return not wanted.reuse_existing and made is not None and made.backing_path == domain.name
    done = [disk.target for disk, layer in pairs if disk.chain.active.place == layer.place]
    tracked = any(shot.name == wanted.name for shot in seen.snapshots)
    if len(done) == len(pairs):
        if wanted.metadata and not tracked:
            raise Refused(
                "no_metadata",
                "Disk %s of guest %s is on %s already, but libvirt keeps no snapshot named %s: set metadata to false or choose other paths."
                % (done[0], domain.name, domain.disk(done[0]).chain.active, wanted.name),
            )
        return True
    if done:
        raise Refused(
            "partly_done",
            "Of the disks asked for, guest %s has %s on the new layer already and the others not: one moment cannot be completed later, choose new paths."
            % (domain.name, ", ".join(done)),
        )
    if wanted.name is not None and any(shot.name == wanted.name for shot in known(domain, seen)):
        raise Refused("name_taken", "Guest %s has another snapshot named %s: choose another snapshot_name." % (domain.name, wanted.name))
    return False


def _warnings(wanted: Taking, domain: Domain, targets, seen: Observed) -> tuple:
    if wanted.metadata:
        return ()
    return tuple(
        "Guest %s has the tracked snapshot %s on disk %s: after an overlay without metadata, libvirt may refuse to delete that snapshot."
        % (domain.name, shot.name, target)
        for shot in seen.snapshots
        for target, dummy in shot.files
        if target in targets
    )
