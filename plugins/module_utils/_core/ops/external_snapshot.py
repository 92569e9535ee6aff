# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of external_snapshot: one overlay for each disk, all in one transaction."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Optional, Tuple

from ..chain import Layer, file_layer, normal_path, snapshot
from ..errors import Refused
from ..model import Disk, Domain, Needs, Observed, Selection, with_chain
from ..plan import SNAPSHOT, Plan, Step
from . import _common as common
from . import _files as files

CHANGES = True


@dataclass(frozen=True)
class Overlay:
    """One entry of the option disks. ``path`` None: beside the active layer, with the snapshot's name as suffix."""

    disk: str
    path: Optional[str] = None
    format: str = "qcow2"


@dataclass(frozen=True)
class Request:
    selection: Selection
    overlays: Tuple[Overlay, ...]
    snapshot_name: Optional[str]
    metadata: bool
    reuse_existing: bool

    @property
    def needs(self) -> Needs:
        paths = tuple(one.path for one in self.overlays if one.path)
        images = tuple((one.path, one.format) for one in self.overlays if one.path and self.reuse_existing)
        return Needs(
            self.selection,
            paths=paths,
            images=images,
            capacities=self.reuse_existing,
            uses=True,
            snapshots=True,
            paths_of=self._default_paths,
            doubts=True,
        )

    def _default_paths(self, domain: Domain) -> Tuple[str, ...]:
        unnamed = [disk for one in self.overlays if one.path is None for disk in common.disks_named(domain, one.disk)]
        found = unnamed if self.overlays else _writable(domain)
        return tuple(default_path(domain, disk, self.snapshot_name) for disk in found if disk.chain.layers and disk.chain.active.type == "file")


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused for what is wrong in itself."""
    entries = params["disks"]
    if entries is not None and not entries:
        raise Refused("no_disks", "The option disks is an empty list: name a disk, or leave it out for every writable disk.")
    name = params["snapshot_name"]
    if name is not None and (not name or "/" in name or name.startswith(".")):
        raise Refused("bad_name", "The snapshot_name %r cannot be used: it must not be empty, hold a slash or start with a dot." % name)
    overlays = tuple(
        Overlay(one["disk"], None if one["path"] is None else files.absolute(one["path"], "disks[].path"), one["format"]) for one in entries or ()
    )
    if name is None and (params["metadata"] or not overlays or any(one.path is None for one in overlays)):
        raise Refused("no_name", "A snapshot_name is needed where libvirt keeps metadata or a disk has no path: give both, or metadata: false and paths.")
    if params["reuse_existing"] and (not overlays or any(one.path is None for one in overlays)):
        raise Refused("reuse_needs_path", "The option reuse_existing needs disks, each with the path of its prepared overlay.")
    return Request(common.one_guest(params), overlays, name, params["metadata"], params["reuse_existing"])


def plan(wanted: Request, seen: Observed) -> Plan:
    """The one step of the snapshot. Raises Refused or Busy, naming the guest, the disk and the layer."""
    domain = common.running_guest(wanted.selection, seen)
    pairs = tuple((disk, _layer(wanted, domain, disk, entry)) for disk, entry in _chosen(wanted, domain))
    _no_doubles(domain, pairs)
    if _already(wanted, domain, pairs, seen):
        return Plan((domain,), (domain,))
    after = domain
    for disk, layer in pairs:
        common.agreed(domain, disk, seen)
        common.known_end(domain, disk)
        common.no_job(domain, disk)
        _destination(wanted, domain, disk, layer, seen)
        after = with_chain(after, disk.target, snapshot(disk.chain, layer))
    targets = [disk.target for disk, dummy in pairs]
    detail = {
        "name": wanted.snapshot_name,
        "overlays": tuple((disk.target, layer) for disk, layer in pairs),
        "others": tuple(disk.target for disk in domain.disks if disk.target not in targets),
        "metadata": wanted.metadata,
        "reuse_existing": wanted.reuse_existing,
        "creates": tuple(layer.path for dummy, layer in pairs if not _exists(layer.path, seen)) if seen.local else (),
    }
    return Plan((domain,), (after,), (Step(SNAPSHOT, None, detail),), warnings=_warnings(wanted, domain, targets, seen))


def _chosen(wanted: Request, domain: Domain):
    """(disk, entry) for each disk of the snapshot; without entries, every disk that is writable."""
    if not wanted.overlays:
        found = _writable(domain)
        if not found:
            raise Refused("no_disks", "Guest %s has no writable disk: nothing can be snapshotted." % domain.name)
        return [(common.writable_disk(domain, disk, "a snapshot"), Overlay(disk.target)) for disk in found]
    return [(common.writable_disk(domain, _disk_of(domain, one), "a snapshot"), one) for one in wanted.overlays]


def _writable(domain: Domain):
    return [disk for disk in domain.disks if disk.device == "disk" and not disk.readonly and disk.chain.layers]


def _disk_of(domain: Domain, entry: Overlay) -> Disk:
    """The disk that an entry names. Named by the path of its active layer, it is the one on the new layer once that is done."""
    if entry.path is not None and not common.disks_named(domain, entry.disk):
        done = common.disks_named(domain, entry.path)
        if len(done) == 1 and ("path", normal_path(entry.disk)) in done[0].chain.places[1:]:
            return done[0]
    return common.the_disk(domain, entry.disk)


def _layer(wanted: Request, domain: Domain, disk: Disk, entry: Overlay) -> Layer:
    return file_layer(entry.path or default_path(domain, disk, wanted.snapshot_name), entry.format)


def default_path(domain: Domain, disk: Disk, name: str) -> str:
    """libvirt's own choice of a name: the suffix of the active layer's file replaced by the snapshot's name."""
    active = disk.chain.active
    if active.type != "file":
        raise Refused("no_path", "Disk %s of guest %s is not in a file (type %s): give the overlay's path." % (disk.target, domain.name, active.type))
    folder, base = posixpath.split(active.path)
    stem = base.rsplit(".", 1)[0] if "." in base[1:] else base
    if base == "%s.%s" % (stem, name):
        return active.path  # made by an earlier run of the same task
    return posixpath.join(folder, "%s.%s" % (stem, name))


def _no_doubles(domain: Domain, pairs) -> None:
    for what, values in (("disk", [disk.target for disk, dummy in pairs]), ("path", [layer.path for dummy, layer in pairs])):
        for value in values:
            if values.count(value) > 1:
                raise Refused("double", "The %s %s is named twice for guest %s: every disk needs a file of its own." % (what, value, domain.name))


def _already(wanted: Request, domain: Domain, pairs, seen: Observed) -> bool:
    """Is every active layer that file already? Some of them is a Refusal: a moment that has passed cannot be completed."""
    done = [disk.target for disk, layer in pairs if disk.chain.active.place == layer.place]
    tracked = any(shot.name == wanted.snapshot_name for shot in seen.snapshots)
    if len(done) == len(pairs):
        if wanted.metadata and not tracked:
            raise Refused(
                "no_metadata",
                "Disk %s of guest %s is on %s already, but libvirt keeps no snapshot named %s: set metadata to false or choose other paths."
                % (done[0], domain.name, domain.disk(done[0]).chain.active, wanted.snapshot_name),
            )
        return True
    if done:
        raise Refused(
            "partly_done",
            "Of the disks asked for, guest %s has %s on the new layer already and the others not: one moment cannot be completed later, choose new paths."
            % (domain.name, ", ".join(done)),
        )
    if wanted.metadata and tracked:
        raise Refused("name_taken", "Guest %s has another snapshot named %s: choose another snapshot_name." % (domain.name, wanted.snapshot_name))
    return False


def _destination(wanted: Request, domain: Domain, disk: Disk, layer: Layer, seen: Observed) -> None:
    if wanted.reuse_existing:
        _prepared(domain, disk, layer, seen)
    else:
        files.new_file(domain, disk, layer.path, seen)


def _prepared(domain: Domain, disk: Disk, layer: Layer, seen: Observed) -> None:
    """A prepared overlay has to exist, be of the stated format, be large enough and name the active layer as its backing."""
    files.unused(domain, disk, layer.path, seen)
    what = "The prepared overlay %s for disk %s of guest %s" % (layer.path, disk.target, domain.name)
    if not seen.local:
        raise Refused("remote_files", "%s cannot be read through a remote URI: run this task on the guest's host." % what)
    image = seen.images.get(layer.path)
    if image is None:
        raise Refused("not_prepared", "%s is not there, or is not a %s image: create it first, or leave reuse_existing out." % (what, layer.format))
    if disk.capacity is not None and image.virtual_size < disk.capacity:
        raise Refused("too_small", "%s has %d bytes, but the disk has %d: create it with the disk's size." % (what, image.virtual_size, disk.capacity))
    if image.backing_path is None or ("path", image.backing_path) != disk.chain.active.place:
        raise Refused(
            "wrong_backing",
            "%s has the backing file %s in its header, not %s: the next start would read other data, create it with -b %s -F %s."
            % (what, image.backing or "(none)", disk.chain.active, disk.chain.active, disk.chain.active.format),
        )
    if image.backing_format != disk.chain.active.format:
        raise Refused(
            "wrong_backing",
            "%s says in its header that its backing file is of the format %s, not %s: the next start would misread it, create it with -b %s -F %s."
            % (what, image.backing_format or "(none)", disk.chain.active.format, disk.chain.active, disk.chain.active.format),
        )


def _exists(path: str, seen: Observed) -> bool:
    return path in seen.files and seen.files[path].exists


def _warnings(wanted: Request, domain: Domain, targets, seen: Observed) -> tuple:
    if wanted.metadata:
        return ()
    return tuple(
        "Guest %s has the tracked snapshot %s on disk %s: after an overlay without metadata, libvirt can no longer delete that snapshot."
        % (domain.name, shot.name, target)
        for shot in seen.snapshots
        for target, dummy in shot.files
        if target in targets
    )
