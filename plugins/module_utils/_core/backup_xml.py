# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's XML of checkpoints and backups, to values and back."""

from __future__ import annotations

from typing import Iterable, Mapping, Optional, Tuple

from . import domain_xml
from .backups import PUSH, Backup, Checkpoint, Ended, Part, Point
from .chain import Layer

BACKUP_OPERATION = 9  # VIR_DOMAIN_JOB_OPERATION_BACKUP
COMPLETED = 3  # VIR_DOMAIN_JOB_COMPLETED


def parse_points(xml: str, sized: bool = False) -> Checkpoint:
    """A checkpoint. ``sized``: its XML was asked for with what was written since."""
    root = domain_xml.parsed(xml)
    created = root.findtext("creationTime") or ""
    disks = root.iterfind("disks/disk[@checkpoint='bitmap']")
    return Checkpoint(
        root.findtext("name") or "",
        tuple(Point(disk.get("name", ""), disk.get("bitmap", ""), int(disk.get("size")) if disk.get("size") else None) for disk in disks),
        root.findtext("parent/name"),
        int(created) if created.isdecimal() else None,
        root.findtext("description"),
        sized,
    )


def checkpoint_xml(name: str, targets: Iterable[str], others: Iterable[str], description: Optional[str] = None) -> str:
    """``<domaincheckpoint>`` with a bitmap on each of the disks ``targets``, and none on the ``others``."""
    root = domain_xml.etree.Element("domaincheckpoint")
    domain_xml.etree.SubElement(root, "name").text = name
    if description:
        domain_xml.etree.SubElement(root, "description").text = description
    disks = domain_xml.etree.SubElement(root, "disks")
    for target in targets:
        domain_xml.etree.SubElement(disks, "disk", name=target, checkpoint="bitmap")
    for target in others:
        domain_xml.etree.SubElement(disks, "disk", name=target, checkpoint="no")
    return domain_xml.etree.tostring(root).decode()


def parse_backup(xml: str) -> Backup:
    """A backup that runs."""
    root = domain_xml.parsed(xml)
    mode, server = root.get("mode", PUSH), root.find("server")
    disks = root.iterfind("disks/disk[@backup='yes']")
    return Backup(mode, tuple(_part(disk, mode) for disk in disks), () if server is None else tuple(sorted(server.items())))


def _part(disk, mode: str) -> Part:
    where, driver = disk.find("target" if mode == PUSH else "scratch"), disk.find("driver")
    kind, format_ = disk.get("type", "file"), None if driver is None else driver.get("type")
    attribute = "dev" if kind == "block" else "file"
    place = None if where is None else Layer(kind, ((attribute, where.get(attribute, "")),), format_ or "qcow2")
    return Part(disk.get("name", ""), place, disk.get("incremental"), disk.get("exportname"), disk.get("exportbitmap"))


def backup_xml(backup: Backup, others: Iterable[str]) -> str:
    """``<domainbackup>``. ``others``: the disks of the guest that are left out."""
    root = domain_xml.etree.Element("domainbackup", mode=backup.mode)
    if backup.server:
        domain_xml.etree.SubElement(root, "server", dict(backup.server))
    disks = domain_xml.etree.SubElement(root, "disks")
    for part in backup.parts:
        disk = domain_xml.etree.SubElement(disks, "disk", _attributes(part))
        if part.place is not None:
            domain_xml.etree.SubElement(disk, "driver", type=part.place.format or "qcow2")
            domain_xml.etree.SubElement(disk, "target" if backup.mode == PUSH else "scratch", dict(part.place.source))
    for target in others:
        domain_xml.etree.SubElement(disks, "disk", name=target, backup="no")
    return domain_xml.etree.tostring(root).decode()


def _attributes(part: Part) -> Mapping[str, str]:
    found = {"name": part.disk, "backup": "yes", "type": part.place.type if part.place is not None else "file"}
    more: Tuple[Tuple[str, Optional[str]], ...] = (("incremental", part.since), ("exportname", part.export), ("exportbitmap", part.bitmap))
    found.update({"backupmode": "incremental" if part.since else "full"})
    found.update((name, value) for name, value in more if value is not None)
    return found


def parse_ended(stats: Mapping[str, object]) -> Optional[Ended]:
    """The statistics of the last job of a guest; None where it was no backup, or libvirt has forgotten it."""
    if stats.get("operation") != BACKUP_OPERATION:
        return None
    success = bool(stats.get("success")) and stats.get("type") == COMPLETED
    message = stats.get("errmsg")
    return Ended(success, int(str(stats.get("disk_total", 0))), None if message is None else str(message))
