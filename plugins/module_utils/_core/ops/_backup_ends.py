# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What block_backup returns of a backup, and the steps that end one."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

from ..backups import PUSH, Backup
from ..headers import probe_of
from ..jobs import COMPLETED
from ..model import BACKUP, Domain, Observed, Record
from ..plan import AWAIT, BACK, FORGET, INSPECT, Step
from ._backup_request import Item, Request


def result(wanted: Request, backup: Backup, domain: Domain, seen: Observed) -> dict:
    """The backup as the module returns it; of a push with what the headers of its targets say now."""
    items = dict(zip(backup.targets, wanted.items))
    return {
        "mode": backup.mode,
        "since": wanted.since,
        "checkpoint": wanted.checkpoint,
        "bytes": None,
        "server": server_result(backup),
        "disks": [_disk(backup, number, items[part.disk], seen) for number, part in enumerate(backup.parts)],
    }


def server_result(backup: Backup) -> Optional[dict]:
    server = dict(backup.server)
    if not server:
        return None
    return {"socket": server.get("socket"), "host": server.get("name"), "port": int(server["port"]) if server.get("port") else None}


def _disk(backup: Backup, number: int, item: Item, seen: Observed) -> dict:
    part = backup.parts[number]
    push = backup.mode == PUSH
    probe = probe_of(part.place, seen.probes) if push and part.place is not None else None
    image = probe.image if probe is not None else None
    backing = item.backing if item.backing is not None else (None, None)
    return {
        "disk": part.disk,
        "path": part.place.path if push and part.place is not None else None,
        "type": part.place.type if push and part.place is not None else None,
        "format": part.place.format if push and part.place is not None else None,
        "virtual_size": probe.virtual if probe is not None else None,
        "actual_size": probe.allocated if probe is not None else None,
        "backing": image.backing_path if image is not None else backing[0],
        "backing_format": image.backing_format if image is not None else backing[1],
        "scratch": None if push or part.place is None else part.place.path,
        "export": part.export,
        "bitmap": part.bitmap,
        "uri": None if push else uri(backup, part.export or part.disk),
    }


def uri(backup: Backup, export: str) -> str:
    """Where an NBD client finds an export."""
    server = dict(backup.server)
    if server.get("socket"):
        return "nbd+unix:///%s?socket=%s" % (export, server["socket"])
    host = server.get("name", "")
    return "nbd://%s:%s/%s" % ("[%s]" % host if ":" in host else host, server.get("port", ""), export)


def forgotten(domain: Domain, targets: Sequence[str]) -> Tuple[Step, ...]:
    return tuple(Step(FORGET, target) for target in targets)


def ends(wanted: Request, domain: Domain, backup: Backup, records: Sequence[Optional[Record]], facts: dict, seen: Observed) -> Tuple[Step, ...]:
    """Wait for a push, and finish it."""
    waiting = dict(wanted.waiting.detail(), job=BACKUP, until=COMPLETED)
    return (Step(AWAIT, None, dict(waiting, **made(records), targets=backup.targets)), *finish(wanted, domain, backup, facts, seen))


def made(records: Sequence[Optional[Record]]) -> dict:
    """What the notes say that was created for a backup."""
    found = [record for record in records if record is not None]
    names = [record.checkpoint for record in found if record.checkpoint]
    return {"creates": tuple(record.creates for record in found if record.creates), "checkpoint": names[0] if names else None}


def finish(wanted: Request, domain: Domain, backup: Backup, facts: dict, seen: Observed) -> Tuple[Step, ...]:
    """What is to be done once a push has completed: the headers put right, the targets looked at, the notes taken away."""
    steps: List[Step] = []
    images = []
    for part, item in zip(backup.parts, wanted.items):
        place, disk = part.place, domain.disk(part.disk)
        if place is None or disk is None or not seen.local:
            continue
        backing = item.backing or (None, None)
        if part.since is not None:
            steps.append(Step(BACK, part.disk, {"path": place.path, "format": place.format, "backing": backing[0], "backing_format": backing[1]}))
        images.append((part.disk, place.path, place.type, place.format, disk.capacity, backing[0]))
    if images:
        steps.append(Step(INSPECT, None, {"images": tuple(images), "backup": facts}))
    return (*steps, *forgotten(domain, backup.targets))
