# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of checkpoint_info: no steps; the checkpoints of guests, what a backup can be based on, and the bitmaps that no checkpoint knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional

from ..backups import BROKEN, Asked, Backup, Checkpoint, Kept
from ..headers import probe_of
from ..model import Disk, Domain, Needs, Observed, Selection
from ..plan import Plan
from . import _backups as backups
from . import _common as common
from ._backup_ends import server_result, uri
from ._offline import DEEPEST

CHANGES = False
NOTHING = {"domains": []}  # what is returned where nothing could be read


@dataclass(frozen=True)
class Request:
    selection: Selection
    name: Optional[str]
    sizes: bool

    @property
    def needs(self) -> Needs:
        return Needs(self.selection, tolerant=True, config=False, headers=DEEPEST, kept=Asked(dirty=self.sizes))


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused (code bad_filter)."""
    return Request(common.several_guests(params), params["checkpoint_name"], params["sizes"])


def plan(wanted: Request, seen: Observed) -> Plan:
    """Nothing to do. Raises Refused (code no_guest) for a guest that was named and is not there."""
    common.none_missing(wanted.selection, seen)
    return Plan(seen.domains, seen.domains, warnings=seen.troubles)


def report(wanted: Request, seen: Observed) -> dict:
    """What the module returns."""
    return {"changed": False, "domains": [_guest(wanted, domain, backups.kept_of(domain, seen), seen) for domain in seen.domains]}


def _guest(wanted: Request, domain: Domain, kept: Kept, seen: Observed) -> dict:
    lost = seen.unanswered.get((domain.uuid, "kept"))
    shown = [one for one in kept.checkpoints if wanted.name in (None, one.name)]
    return {
        "name": domain.name,
        "uuid": domain.uuid,
        "active": domain.active,
        "persistent": domain.persistent,
        "state": domain.state,
        "unread": None if lost is None else {"code": lost[0], "message": lost[1]},
        "checkpoints": [_checkpoint(one, domain, kept) for one in shown],
        "tree": _tree(kept),
        "backup": None if kept.running is None else _backup(kept.running),
        "bitmaps": [one for disk in domain.disks for one in _bitmaps(domain, disk, kept, seen)],
    }


def _checkpoint(one: Checkpoint, domain: Domain, kept: Kept) -> dict:
    targets = [disk.target for disk in domain.disks]
    disks = [{**result, "state": one.condition(result["disk"], targets)} for result in backups.point_results(one)]
    sizes = [point.size for point in one.points if point.size is not None]
    children = [other.name for other in kept.checkpoints if other.parent == one.name]
    return {
        "name": one.name,
        "parent": one.parent,
        "children": children,
        "current": not children and one == kept.checkpoints[-1],
        "created": one.created,
        "description": one.description,
        "size": sum(sizes) if sizes and len(sizes) == len(one.points) else None,
        "usable": bool(disks) and all(disk["state"] != BROKEN for disk in disks) if one.sized else None,
        "disks": disks,
    }


def _tree(kept: Kept) -> List[dict]:
    """The checkpoints without a parent, each with those that were created after it."""
    nodes: Dict[Optional[str], dict] = {one.name: {"name": one.name, "children": []} for one in kept.checkpoints}
    roots: List[dict] = []
    for one in kept.checkpoints:
        above = nodes.get(one.parent)
        (roots if above is None else above["children"]).append(nodes[one.name])
    return roots


def _backup(running: Backup) -> dict:
    parts = [(part, part.place.path if part.place is not None else None) for part in running.parts]
    push = not running.server
    return {
        "mode": running.mode,
        "server": server_result(running),
        "disks": [
            {
                "disk": part.disk,
                "path": path if push else None,
                "scratch": None if push else path,
                "format": part.place.format if part.place is not None else None,
                "since": part.since,
                "export": part.export,
                "bitmap": part.bitmap,
                "uri": None if push else uri(running, part.export or part.disk),
            }
            for part, path in parts
        ],
    }


def _bitmaps(domain: Domain, disk: Disk, kept: Kept, seen: Observed) -> List[dict]:
    """The bitmaps in the headers of a disk's layers. Those of a running guest that were made since its start are not there yet."""
    owners = {point.bitmap: one.name for one in kept.checkpoints for point in one.points if point.disk == disk.target}
    found = []
    for layer in disk.chain.layers:
        probe = probe_of(layer, seen.probes)
        image = probe.image if probe is not None else None
        for name, granularity in image.bitmaps if image is not None else ():
            broken = None if domain.active else name in image.broken_bitmaps
            found.append({"disk": disk.target, "layer": str(layer), "name": name, "granularity": granularity, "checkpoint": owners.get(name), "broken": broken})
    return found
