# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of external_snapshot: take one (present), delete one (absent), or go back to one (reverted)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

from ..chain import Layer
from ..errors import Refused
from ..model import Domain, Needs, Observed, Selection
from ..plan import Plan, Waiting
from ..sizes import parse_bandwidth
from . import _common as common
from . import _dest as dests
from . import _files as files
from . import _offline as offline
from . import _snapshot_delete as deletes
from . import _snapshot_revert as reverts
from ._merge_jobs import How
from ._snapshot_take import Overlay, Taking, beside, default_paths, take

CHANGES = True
IMAGES = True
PER_DISK = True
PRESENT, ABSENT, REVERTED = "present", "absent", "reverted"


@dataclass(frozen=True)
class Request:
    selection: Selection
    state: str
    taking: Optional[Taking] = None
    deletion: Optional[deletes.Deletion] = None
    reversion: Optional[reverts.Reversion] = None
    images: Tuple[Tuple[str, Optional[str]], ...] = ()

    @property
    def needs(self) -> Needs:
        reuse = self.taking is not None and self.taking.reuse_existing
        given = [one for one in self.taking.overlays if one.layer is not None and one.layer.path] if self.taking is not None else []
        paths = tuple(one.layer.path for one in given if one.layer is not None and one.layer.path)
        memory = (self.taking.memory,) if self.taking is not None and self.taking.memory else ()
        return Needs(
            self.selection,
            guests=not self.images,
            bare=self.images,
            as_guests=bool(self.images),
            offline=True,
            headers=offline.DEEPEST,
            sizes=self.deletion is not None,
            paths=paths + memory,
            images=tuple((path, one.format) for path, one in zip(paths, given) if reuse or self.images) + self._beside(),
            capacities=reuse,
            uses=True,
            snapshots=True,
            of_snapshots=self.deletion is not None or self.reversion is not None,
            doubts=True,
            bitmaps=True,
            versions=True,
            confinement=self.deletion is not None,
            paths_of=self._paths,
            agree=self._already_back,
            stores=True,
        )

    def _beside(self) -> Tuple[Tuple[str, str], ...]:
        """Where the overlays of images by themselves would be: an earlier run may have made them."""
        name = self.taking.name if self.taking is not None else None
        return tuple((beside(path, name), "qcow2") for path, dummy in self.images) if name else ()

    def _paths(self, domain: Domain) -> Tuple[str, ...]:
        if self.taking is not None:
            return default_paths(self.taking, domain)
        found = deletes.paths(domain)
        return found + (reverts.candidates(domain, self.reversion.name) if self.reversion is not None else ())

    def _already_back(self, domain: Domain) -> tuple:
        """The overlays, and what they stand on: is there nothing of their own in them?"""
        if self.reversion is None or domain.active:
            return ()
        return tuple((disk.target, disk.chain.layers, ()) for disk in domain.disks if len(disk.chain) > 1 and disk.chain.ends)


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused for what is wrong in itself."""
    entries, state, images = params["disks"], params["state"], common.bare_images(params)
    if entries is not None and not entries:
        raise Refused("no_disks", "The option disks is an empty list: name a disk, or leave it out for every writable disk.")
    name = params["snapshot_name"]
    if name is not None and (not name.isprintable() or not name or "/" in name or name.startswith(".")):
        raise Refused("bad_name", "The snapshot_name %r cannot be used: it must not be empty, hold a slash or a control character, or start with a dot." % name)
    waiting = common.waiting(params)
    if images and state != PRESENT:
        raise Refused("images_state", "Images by themselves have no snapshots to delete or go back to: use block_commit or block_rebase with images.")
    if state == PRESENT:
        return Request(common.one_guest(params), state, taking=_taking(params, entries or (), name, bool(images), waiting), images=images)
    if state == REVERTED:
        if name is None:
            raise Refused("no_name", "The state reverted needs a snapshot_name: name the snapshot to go back to.")
        return Request(common.one_guest(params), state, reversion=reverts.Reversion(name, params["delete_files"]))
    return Request(common.one_guest(params), state, deletion=_deletion(params, entries or (), name, waiting))


def _taking(params: dict, entries, name: Optional[str], bare: bool, waiting: Waiting) -> Taking:
    overlays = tuple(Overlay(one["disk"], _layer(one), one["format"], one["on_delete"]) for one in entries)
    metadata = params["metadata"] and not bare
    if name is None and (metadata or not overlays or any(one.layer is None for one in overlays)):
        raise Refused("no_name", "A snapshot_name is needed where libvirt keeps metadata or a disk has no path: give both, or metadata: false and paths.")
    if params["reuse_existing"] and (not overlays or any(one.layer is None for one in overlays)):
        raise Refused("reuse_needs_path", "The option reuse_existing needs disks, each with the path of its prepared overlay.")
    if params["memory"] is not None and (not metadata or params["quiesce"]):
        raise Refused("memory", "The option memory needs metadata, and goes without quiesce, since the memory holds what is not written: leave one out.")
    if params["description"] is not None and not metadata:
        raise Refused("no_metadata", "The option description needs metadata, which keeps it: leave it out, or let libvirt keep metadata.")
    return Taking(
        name,
        overlays,
        metadata,
        params["reuse_existing"],
        params["description"],
        None if params["memory"] is None else files.absolute(params["memory"], "memory"),
        params["quiesce"],
        params["quiesce_fallback"],
        params["quiesce_timeout"],
        params["on_delete"],
        waiting.timeout,
    )


def _layer(entry: dict) -> Optional[Layer]:
    """Where an overlay is to be, None: beside the active layer."""
    if entry["path"] is None and entry["protocol"] is None and entry["type"] is None:
        return None
    return dests.parse_place(entry, entry["format"], "disks[]")


def _deletion(params: dict, entries, name: Optional[str], waiting: Waiting) -> deletes.Deletion:
    found = tuple(deletes.Entry(one["disk"], one["merge"], one["layer"]) for one in entries)
    if name is None and (not found or any(one.layer is None for one in found)):
        raise Refused("no_name", "The state absent needs a snapshot_name, or disks, each with the layer that is to be merged: give one of them.")
    if name is not None and any(one.layer is not None for one in found):
        raise Refused("name_or_layer", "The disks name a layer each, and there is a snapshot_name, which names them all: leave one out.")
    if params["delete_files"] and not waiting.wait:
        raise Refused("delete_needs_wait", "The option delete_files needs wait: files are only removed after the merge was verified.")
    how = How(parse_bandwidth(params["bandwidth"]), False, waiting)
    return deletes.Deletion(name, params["merge"], found, params["delete_files"], params["resize_base"], how)


def plan(wanted: Request, seen: Observed) -> Plan:
    """The steps. Raises Refused or Busy, naming the guest, the disk and the layer."""
    if wanted.images and wanted.taking is not None:
        return offline.joined(take(wanted.taking, image, seen) for image in seen.domains)
    domain = common.the_guest(wanted.selection, seen)
    common.no_orphan(domain, seen)
    if wanted.taking is not None:
        return take(wanted.taking, domain, seen)
    if wanted.deletion is not None:
        return deletes.plan(wanted.deletion, domain, seen)
    if wanted.reversion is not None:
        return reverts.plan(wanted.reversion, domain, seen)
    raise ValueError(wanted.state)
