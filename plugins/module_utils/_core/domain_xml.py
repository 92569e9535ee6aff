# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's XML to values, and back.

The law: an empty ``<backingStore/>`` says that the chain ends there, a missing one that nobody knows; the two are never
mixed up. ``index`` is read, not counted. Nothing is fetched, expanded or guessed while parsing.
"""

from __future__ import annotations

from typing import Iterable, Optional, Tuple

from .chain import Chain, Layer, Pairs
from .errors import Refused, Unavailable
from .model import Disk, Domain, Mirror, Record, Snapshot

try:
    from lxml import etree
except ImportError:  # the pipeline says which package is missing, before anything here is called
    etree = None

# One namespace for each disk, so that two runs on two disks of a guest never rewrite each other's note.
RECORD_URI = "https://livestorage.github.io/libvirt/job/1/%s"
RECORD_PREFIX = "livestorage"

_NOT_A_PLACE = ("index", "startupPolicy", "fdgroup", "tls", "tlsHostname")


def _root(xml: str):
    try:
        root = etree.fromstring(xml.encode(), etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False))
    except etree.XMLSyntaxError as error:
        raise Unavailable("bad_xml", "libvirt sent XML that cannot be read: check what answers at this URI.") from error
    if root.getroottree().docinfo.internalDTD is not None:  # entities in attributes are expanded whatever the parser is told
        raise Unavailable("bad_xml", "libvirt sent XML with a document type, which it never does: check what answers at this URI.")
    return root


def _pairs(element) -> Pairs:
    return tuple(sorted(element.attrib.items()))


def parse_domain(xml: str, active: bool, state: str = "running", persistent: bool = True, config_xml: Optional[str] = None) -> Domain:
    """A guest from its XML: live (or inactive, when it is off), and the inactive XML of a running persistent guest."""
    root = _root(xml)
    disks = tuple(map(_disk, root.iterfind("devices/disk")))
    if config_xml is not None:
        config = tuple(map(_disk, _root(config_xml).iterfind("devices/disk")))
    else:
        config = disks if persistent and not active else ()
    return Domain(root.findtext("name"), root.findtext("uuid") or "", active, state, persistent, disks, config, tuple(_records(root)))


def _disk(element) -> Disk:
    target = element.find("target")
    mirror = element.find("mirror")
    return Disk(
        target=target.get("dev"),
        chain=_chain(element),
        device=element.get("device", "disk"),
        bus=target.get("bus"),
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        transient=element.find("transient") is not None,
        mirror=None if mirror is None else _mirror(mirror),
    )


def _mirror(element) -> Mirror:
    return Mirror(element.get("job", "copy"), element.get("ready"), _chain(element))


def _chain(element) -> Chain:
    """The chain under ``<disk>``, ``<mirror>`` or ``<backingStore>``: each ``<source>`` and what stands below it."""
    layers = []
    while True:
        source = element.find("source")
        if source is None or set(source.attrib) <= {"index", "startupPolicy"}:  # an ejected medium leaves <source index='7'/>
            return Chain(tuple(layers), True if layers else None)
        layers.append(_layer(element, source))
        below = element.find("backingStore")
        if below is None:
            return Chain(tuple(layers), None)
        element = below


def _layer(element, source) -> Layer:
    driver = element.find("driver")
    format_ = driver.get("type") if driver is not None else None
    if element.find("format") is not None:
        format_ = element.find("format").get("type")
    address = source.find("address")
    return Layer(
        type=element.get("type", "file"),
        source=tuple((name, value) for name, value in _pairs(source) if name not in _NOT_A_PLACE),
        format=format_,
        index=_index(source.get("index") or element.get("index")),
        hosts=tuple(_pairs(host) for host in source.iterfind("host")),
        address=() if address is None else _pairs(address),
    )


def _index(text: Optional[str]) -> Optional[int]:
    """The identity stands on ``<source>`` of the disk and of a mirror, and on ``<backingStore>`` below them."""
    return int(text) if text else None


def _records(root) -> Iterable[Record]:
    for element in root.iterfind("metadata/*"):
        if not isinstance(element.tag, str):
            continue
        name = etree.QName(element)
        disk = element.get("disk")
        if disk and name.localname == "job" and name.namespace == RECORD_URI % disk:
            yield Record(disk, element.get("type", ""), element.get("layers", ""), element.get("indexes", ""))


def parse_snapshot(xml: str) -> Snapshot:
    """The name and the external overlays of a snapshot that libvirt keeps metadata of."""
    root = _root(xml)
    disks = root.iterfind("disks/disk[@snapshot='external']")
    found = tuple((disk.get("name"), disk.find("source")) for disk in disks)
    files = tuple((name, source.get("file") or source.get("dev")) for name, source in found if source is not None)
    return Snapshot(root.findtext("name"), tuple(pair for pair in files if pair[1]))


def record_xml(record: Record) -> str:
    """The element for ``virDomainSetMetadata`` (its namespace is ``RECORD_URI % disk``)."""
    element = etree.Element("job", disk=record.disk, type=record.job, layers=record.layers, indexes=record.indexes)
    return etree.tostring(element).decode()


def snapshot_xml(name: Optional[str], overlays: Iterable[Tuple[str, Layer]], others: Iterable[str]) -> str:
    """``<domainsnapshot>`` with an external overlay for each (disk, layer) and ``snapshot='no'`` for the other disks.

    Raises Refused (code overlay_type) for a layer that is neither a file nor a block device.
    """
    root = etree.Element("domainsnapshot")
    if name:
        etree.SubElement(root, "name").text = name
    disks = etree.SubElement(root, "disks")
    for target, layer in overlays:
        if layer.type not in ("file", "block"):
            raise Refused("overlay_type", "The overlay of disk %s must be a file or a block device, not %s." % (target, layer.type))
        disk = etree.SubElement(disks, "disk", name=target, snapshot="external", type=layer.type)
        etree.SubElement(disk, "driver", type=layer.format)
        etree.SubElement(disk, "source", dict(layer.source))
    for target in others:
        etree.SubElement(disks, "disk", name=target, snapshot="no")
    return etree.tostring(root).decode()


def chain_xml(disk: Disk) -> str:
    """A ``<disk>`` with the whole chain spelled out, the terminator included where the end is known."""
    root = etree.Element("disk", device=disk.device)
    _write_chain(root, disk.chain, "driver")
    if disk.mirror is not None:
        mirror = etree.SubElement(root, "mirror", job=disk.mirror.job)
        if disk.mirror.ready:
            mirror.set("ready", disk.mirror.ready)
        _write_chain(mirror, disk.mirror.chain, "format")
    target = etree.SubElement(root, "target", dev=disk.target)
    if disk.bus:
        target.set("bus", disk.bus)
    for flag in ("readonly", "shareable", "transient"):
        if getattr(disk, flag):
            etree.SubElement(root, flag)
    return etree.tostring(root).decode()


def _write_chain(element, chain: Chain, format_element: str) -> None:
    for depth, layer in enumerate(chain.layers):
        element.set("type", layer.type)
        if layer.format is not None:
            etree.SubElement(element, format_element, type=layer.format)
        format_element = "format"
        source = etree.SubElement(element, "source", dict(layer.source))
        if layer.index is not None:
            (element if depth else source).set("index", str(layer.index))
        for host in layer.hosts:
            etree.SubElement(source, "host", dict(host))
        if layer.address:
            etree.SubElement(source, "address", dict(layer.address))
        if depth < len(chain) - 1:
            element = etree.SubElement(element, "backingStore")
    if chain.layers and chain.ends:
        etree.SubElement(element, "backingStore")
