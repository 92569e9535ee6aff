# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's XML of snapshots, and our own note about them in a guest's metadata, to values and back.

The law: of what libvirt keeps only the places of images are changed that have moved, as it would itself have written them; all else
goes back as it came, since what a redefinition leaves out is lost (9.0: inactiveDomain).
"""

from __future__ import annotations

from typing import Callable, Iterable, Mapping, Optional, Tuple

from . import domain_xml
from .chain import Layer, normal_path
from .errors import Refused
from .notes import Snapshot
from .write_xml import tell_data

PLACES = ("file", "block", "network")


def parse_snapshot(xml: str, current: bool = False, resolved: Callable[[Layer], Layer] = lambda layer: layer) -> Snapshot:
    """A snapshot that libvirt keeps metadata of: its external overlays, what was active below them then, and what it tells of it.

    ``resolved`` gives a storage volume its path, by which an overlay names it.
    """
    root = domain_xml.parsed(xml)
    external = root.findall("disks/disk[@snapshot='external']")
    files = _named_paths((disk.get("name"), disk) for disk in external)
    # Once libvirt (9.9) has reverted to it, other overlays stand on what it holds.
    reverted = dict(_named_paths((disk.get("name"), disk) for disk in root.iterfind("revertDisks/disk")))
    files = tuple((name, reverted.get(name, path)) for name, path in files)
    disks = root.findall("domain/devices/disk")
    overlaid = {disk.get("name") for disk in external}
    bases = _named_paths(((disk.find("target").get("dev"), disk) for disk in disks if disk.find("target") is not None), resolved)
    memory = root.find("memory")
    created = root.findtext("creationTime") or ""
    return Snapshot(
        root.findtext("name"),
        files,
        tuple(pair for pair in bases if pair[0] in overlaid),
        parent=root.findtext("parent/name"),
        current=current,
        description=root.findtext("description"),
        state=root.findtext("state"),
        created=int(created) if created.isdecimal() else None,
        memory=memory.get("file") if memory is not None and memory.get("snapshot") == "external" else None,
        internal=tuple(disk.get("name", "") for disk in root.iterfind("disks/disk[@snapshot='internal']")),
    )


def _named_paths(disks: Iterable[tuple], resolved: Callable[[Layer], Layer] = lambda layer: layer) -> Tuple[Tuple[str, str], ...]:
    """(disk, the path of its layer, or what a layer without one is printed as)."""
    found = ((name, domain_xml.layer_of(disk)) for name, disk in disks)
    return tuple((name, str(resolved(layer))) for name, layer in found if name and layer is not None)


def snapshot_xml(
    name: Optional[str],
    overlays: Iterable[Tuple[str, Layer]],
    others: Iterable[str],
    description: Optional[str] = None,
    memory: Optional[str] = None,
) -> str:
    """``<domainsnapshot>`` with an external overlay for each (disk, layer) and ``snapshot='no'`` for the other disks.

    ``memory``: the file that the guest's memory goes to. Raises Refused (code overlay_type) for a layer of a type that libvirt takes no snapshot to.
    """
    root = domain_xml.etree.Element("domainsnapshot")
    for tag, text in (("name", name), ("description", description)):
        if text:
            domain_xml.etree.SubElement(root, tag).text = text
    if memory:
        domain_xml.etree.SubElement(root, "memory", snapshot="external", file=memory)
    disks = domain_xml.etree.SubElement(root, "disks")
    for target, layer in overlays:
        if layer.type not in PLACES:
            raise Refused("overlay_type", "The overlay of disk %s must be a file, a block device or on the network, not %s." % (target, layer.type))
        disk = domain_xml.etree.SubElement(disks, "disk", name=target, snapshot="external", type=layer.type)
        domain_xml.etree.SubElement(disk, "driver", type=layer.format)
        source = domain_xml.etree.SubElement(disk, "source", dict(layer.source))
        for host in layer.hosts:
            domain_xml.etree.SubElement(source, "host", dict(host))
    for target in others:
        domain_xml.etree.SubElement(disks, "disk", name=target, snapshot="no")
    return domain_xml.etree.tostring(root).decode()


def retold(xml: str, moved: Iterable[Tuple[str, str, Layer]], overlays: Mapping[str, Layer]) -> Optional[str]:
    """A snapshot's XML for its redefinition, None where nothing of it has moved.

    ``moved``: (disk, path that has left, the layer that stands for it), in the definitions that it keeps and in its overlays. A chain that
    is spelled out there and names such a path is left to the headers. ``overlays``: other overlays for the disks of this snapshot itself.
    """
    root = domain_xml.parsed(xml)
    before = domain_xml.etree.tostring(root)
    pairs = list(moved)
    for target, path, layer in pairs:
        for kept in ("domain", "inactiveDomain"):
            for disk in root.iterfind("%s/devices/disk" % kept):
                if disk.find("target") is not None and disk.find("target").get("dev") == target:
                    _replace(disk, path, layer)
        for disk in root.iterfind("disks/disk[@name='%s']" % target):
            _replace(disk, path, layer)
    for target, layer in overlays.items():
        for disk in root.iterfind("disks/disk[@name='%s']" % target):
            _place(disk, layer)
    return None if domain_xml.etree.tostring(root) == before else domain_xml.etree.tostring(root).decode()


def under(xml: str, parent: Optional[str]) -> str:
    """A snapshot's XML for its redefinition as one that comes after another, or (None) after none."""
    root = domain_xml.parsed(xml)
    for old in root.findall("parent"):
        root.remove(old)
    if parent is not None:
        domain_xml.etree.SubElement(domain_xml.etree.SubElement(root, "parent"), "name").text = parent
    return domain_xml.etree.tostring(root).decode()


def _replace(disk, path: str, layer: Layer) -> None:
    if _names(disk, path):
        _place(disk, layer)
    for chain in disk.findall("backingStore"):
        if any(_names(one, path) for one in chain.iter("backingStore")):
            disk.remove(chain)


def _names(element, path: str) -> bool:
    found = domain_xml.layer_of(element)
    return found is not None and (str(found) == path or (found.path is not None and normal_path(found.path) == normal_path(path)))


def _place(disk, layer: Layer) -> None:
    """Give a disk of a snapshot another image; what is below that is left to its header."""
    for old in disk.findall("backingStore"):
        disk.remove(old)
    driver, source = disk.find("driver"), disk.find("source")
    if driver is not None and layer.format is not None:
        driver.set("type", layer.format)
    disk.set("type", layer.type)
    if source is None:
        source = domain_xml.etree.SubElement(disk, "source")
    for name in ("file", "dev", "index", "protocol", "name"):
        source.attrib.pop(name, None)
    for host in source.findall("host"):
        source.remove(host)
    for name, value in layer.source:
        source.set(name, value)
    for position, facts in enumerate(layer.hosts):
        source.insert(position, domain_xml.etree.Element("host", dict(facts)))
    for old in source.findall("dataStore"):
        source.remove(old)
    tell_data(source, layer)


def noted_xml(shots: Iterable[Snapshot]) -> str:
    """The element for ``virDomainSetMetadata``, whose namespace is ``domain_xml.NOTED_URI``."""
    root = domain_xml.etree.Element("snapshots")
    for shot in shots:
        element = domain_xml.etree.SubElement(root, "snapshot", name=shot.name, tracked="yes" if shot.tracked else "no")
        values = {word: dict(getattr(shot, key)) for key, word in domain_xml.NOTE_WORDS}
        for target in dict.fromkeys(target for one in values.values() for target in one):
            found = {word: one[target] for word, one in values.items() if target in one}
            domain_xml.etree.SubElement(element, "disk", name=target, **found)
    return domain_xml.etree.tostring(root).decode()
