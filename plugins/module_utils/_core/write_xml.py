# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Values to libvirt's XML.

The law: what is written here is what libvirt itself would write; of a definition that exists, only the one disk that is meant
is changed, and all that is not about its place stays as it was.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Iterable, Mapping, Optional, Sequence

from . import domain_xml
from .chain import Chain, Layer
from .errors import Moved
from .model import Disk, Record
from .notes import Conversion
from .verify import covers

# What the chain of a disk is made of, beside the format; a disk that was defined in the words before libvirt 3.9 has the last two itself.
_WHERE = ("source", "backingStore", "mirror", "auth", "encryption")


def record_xml(record: Record) -> str:
    """The element for ``virDomainSetMetadata`` (its namespace is ``RECORD_URI % disk``)."""
    facts = {"disk": record.disk, "type": record.job, "layers": record.layers, "indexes": record.indexes}
    more = {"since": record.since, "source": record.source, "creates": record.creates, "checkpoint": record.checkpoint}
    facts.update((name, str(value)) for name, value in more.items() if value is not None)
    element = domain_xml.etree.Element("job", facts)
    for path in record.merges:
        domain_xml.etree.SubElement(element, "merges", path=path)
    for image, path in record.data:
        domain_xml.etree.SubElement(element, "data", image=image, path=path)
    return domain_xml.etree.tostring(element).decode()


def conversion_xml(note: Conversion) -> str:
    """The element for ``virDomainSetMetadata`` (its namespace is ``CONVERSION_URI % disk``)."""
    facts = {"disk": note.disk, "metadata": note.metadata, "data": note.data, "state": note.state, "ran": "yes" if note.ran else "no"}
    return domain_xml.etree.tostring(domain_xml.etree.Element("datafile", facts)).decode()


def copy_xml(destination: Layer, below: Optional[Chain] = None) -> str:
    """The ``<disk>`` that ``virDomainBlockCopy`` takes. ``below``: the chain that the copy stands on, where it is spelled out.

    Without any data file, of which libvirt (11.3, 12.8) makes no node here: it fails with an argument 'data-file' that is null.
    """
    root = domain_xml.etree.Element("disk", device="disk")
    chain = Chain((destination,)) if below is None else Chain((destination,) + below.layers, below.ends)
    _write_chain(root, chain.map(lambda layer: replace(layer, index=None, store=None)), "driver")
    return domain_xml.etree.tostring(root).decode()


def _without_index(layer: Layer) -> Layer:
    return layer if layer.index is None else replace(layer, index=None)


def volume_xml(name: str, capacity: int, format: str, options: Mapping[str, object], backing: Optional[Layer]) -> str:
    """``<volume>`` for ``virStorageVolCreateXML``. ``capacity`` in bytes; ``options``: cluster_size (bytes), extended_l2, lazy_refcounts."""
    root = domain_xml.etree.Element("volume")
    domain_xml.etree.SubElement(root, "name").text = name
    domain_xml.etree.SubElement(root, "capacity", unit="B").text = str(capacity)
    domain_xml.etree.SubElement(root, "allocation", unit="B").text = "0"
    target = domain_xml.etree.SubElement(root, "target")
    domain_xml.etree.SubElement(target, "format", type=format)
    if options.get("cluster_size"):
        domain_xml.etree.SubElement(target, "clusterSize", unit="B").text = str(options["cluster_size"])
    features = [feature for feature in ("lazy_refcounts", "extended_l2") if options.get(feature)]
    if format == "qcow2":
        domain_xml.etree.SubElement(target, "compat").text = "1.1"
    if features:
        parent = domain_xml.etree.SubElement(target, "features")
        for feature in features:
            domain_xml.etree.SubElement(parent, feature)
    if backing is not None:
        store = domain_xml.etree.SubElement(root, "backingStore")
        domain_xml.etree.SubElement(store, "path").text = backing.path
        domain_xml.etree.SubElement(store, "format", type=backing.format)
    return domain_xml.etree.tostring(root).decode()


def as_running(config: str, live: str, target: str, known: Sequence[Layer] = ()) -> Optional[str]:
    """The definition of the next start with a disk's whole chain as the running guest has it, with all that libvirt knows of each
    layer, as libvirt itself writes it after a pivot; None where it says the same already, or less of it and nothing else.

    ``known``: layers with their data files. libvirt forgets those below a copy, and (11.3) keeps in its memory alone that one was below another
    layer: with any, the definition is written in any case.
    """
    root, disk = _disk_of(config, target)
    running = copy.deepcopy(_disk_of(live, target)[1])
    _remind(running, known)
    then, now = domain_xml.chain_of(disk), domain_xml.chain_of(running)
    if not known and covers(then, now) and not _lacks_data(then, now):
        return None
    parts = [element for element in running if element.tag in _WHERE and element.tag != "mirror"]
    for element in [one for part in parts for one in part.iter()]:
        element.attrib.pop("index", None)
    for private in [one for part in parts for one in part.iter("privateData")]:
        private.getparent().remove(private)
    format_ = running.find("driver").get("type") if running.find("driver") is not None else None
    return domain_xml.etree.tostring(root).decode() if _rewrite(disk, running.get("type"), format_, parts) or known else None


def _remind(element, known: Iterable[Layer]) -> None:
    stores = {layer.place: layer.store for layer in known if layer.told_store is not None}
    for layer in domain_xml.chain_of(element).layers:
        if layer.store is None and layer.place in stores:
            tell_data(element.find("source"), replace(layer, store=stores[layer.place]))
        element = element.find("backingStore")


def on_image(config: str, target: str, layer: Layer) -> Optional[str]:
    """The definition of the next start with that layer as a disk's active one, and what is below it left to the layer's own header."""
    return with_chains(config, {target: Chain((layer,))})


def with_chains(config: str, chains: Mapping[str, Chain]) -> Optional[str]:
    """The definition of the next start with these chains for disks (by target); None where it says so already.

    What is below an active layer is only spelled out where that was so before: elsewhere libvirt goes on to read it from the headers.
    What the definition says of a layer that stays, such as a secret, it still says.
    """
    before, root = domain_xml.parse_domain(config, False), domain_xml.parsed(config)
    changed = False
    for target, chain in chains.items():
        disk = _disk_in(root, target)
        wanted = chain if disk.find("backingStore") is not None else Chain(chain.layers[:1])
        written = before.disk(target).chain
        if not _says(written, wanted):
            changed = _rewrite(disk, wanted.active.type, wanted.active.format, _spelled(disk, written, wanted)) or changed
    return domain_xml.etree.tostring(root).decode() if changed else None


def without_conversions(xml: str) -> str:
    """A guest's XML without our notes of conversions, which tell of this host; an element for notes that is empty then is left out."""
    root = domain_xml.parsed(xml)
    for metadata in root.findall("metadata"):
        for element in list(metadata):
            if isinstance(element.tag, str) and domain_xml.is_conversion(element):
                metadata.remove(element)
        if not len(metadata):
            root.remove(metadata)
    return domain_xml.etree.tostring(root).decode()


def _says(written: Chain, wanted: Chain) -> bool:
    """Does a definition name these layers, in these formats, as far as it does not leave them to the headers?"""
    formats = all(one.format in (None, two.format) for one, two in zip(wanted.layers, written.layers))
    ends = written.ends is None or (written.ends == wanted.ends and len(written) == len(wanted))
    data = all(_data_said(one, two.store) for one, two in zip(wanted.layers, written.layers))
    return bool(written.layers) and written.places == wanted.places[: len(written)] and formats and ends and data


def _data_said(layer: Layer, written: Optional[Layer]) -> bool:
    """Is that ``<dataStore>`` (or none) right for a layer? Where nobody has looked for a data file, the definition is believed."""
    if written is None:
        return layer.told_store is None
    if layer.store is None:
        return layer.format != "raw"
    return written.place == layer.store.place


def _lacks_data(written: Chain, now: Chain) -> bool:
    """Does a definition leave out a data file that the running guest has?

    libvirt would not look for it where the chain is spelled out, and (11.3) start the guest with a read-only one where it was that of a backing before.
    """
    return any(one.store is None and two.told_store is not None for one, two in zip(written.layers, now.layers))


def _spelled(disk, written: Chain, wanted: Chain) -> list:
    """The elements for a chain, with the sources that a disk has already for the same layers."""
    known, wanted = _sources(disk, written), wanted.map(_without_index)
    root = element = domain_xml.etree.Element("disk")
    _write_chain(root, wanted, "driver")
    for layer in wanted.layers:
        source = known.get(_where(layer))
        if source is not None:
            tell_data(source, layer)
            element.replace(element.find("source"), source)
        element = element.find("backingStore")
    return [child for child in root if child.tag in _WHERE]


def _sources(disk, written: Chain) -> dict:
    """The ``<source>`` of each layer, with what stood beside it before libvirt 3.9."""
    found, element = {}, disk
    for layer in written.layers:
        source = copy.deepcopy(element.find("source"))
        if source is not None:
            source.attrib.pop("index", None)
            source.extend(copy.deepcopy(child) for child in element if child.tag in ("auth", "encryption"))
            found[_where(layer)] = source
        element = element.find("backingStore")
    return found


def _where(layer: Layer) -> tuple:
    return (layer.type, layer.source, layer.hosts, layer.address, layer.details)


def _disk_of(xml: str, target: str) -> tuple:
    root = domain_xml.parsed(xml)
    return root, _disk_in(root, target)


def _disk_in(root, target: str):
    found = [disk for disk in root.iterfind("devices/disk") if disk.find("target") is not None and disk.find("target").get("dev") == target]
    if not found:
        raise Moved("disk_gone", "The guest %s has no disk %s in its definition any more." % (root.findtext("name"), target))
    return found[0]


def _rewrite(disk, kind: str, format_: Optional[str], wanted: list) -> bool:
    """Was there anything to change?"""
    before = domain_xml.etree.tostring(disk, method="c14n")
    position = next((number for number, child in enumerate(disk) if child.tag in _WHERE), len(disk))
    for child in [child for child in disk if child.tag in _WHERE]:
        disk.remove(child)
    for number, element in enumerate(wanted):
        element.tail = disk[0].tail if len(disk) else None
        disk.insert(position + number, element)
    disk.set("type", kind)
    if format_ is not None:
        driver = disk.find("driver")
        if driver is None:
            driver = domain_xml.etree.Element("driver", name="qemu")
            disk.insert(0, driver)
        driver.set("type", format_)
    return domain_xml.etree.tostring(disk, method="c14n") != before


def chain_xml(disk: Disk) -> str:
    """A ``<disk>`` with the whole chain spelled out, the terminator included where the end is known."""
    root = domain_xml.etree.Element("disk", device=disk.device)
    _write_chain(root, disk.chain, "driver")
    if disk.mirror is not None:
        mirror = domain_xml.etree.SubElement(root, "mirror", job=disk.mirror.job)
        if disk.mirror.ready:
            mirror.set("ready", disk.mirror.ready)
        _write_chain(mirror, disk.mirror.chain, "format")
    target = domain_xml.etree.SubElement(root, "target", dev=disk.target)
    if disk.bus:
        target.set("bus", disk.bus)
    for flag in ("readonly", "shareable", "transient"):
        if getattr(disk, flag):
            domain_xml.etree.SubElement(root, flag)
    return domain_xml.etree.tostring(root).decode()


def _write_chain(element, chain: Chain, format_element: str) -> None:
    for depth, layer in enumerate(chain.layers):
        element.set("type", layer.type)
        if layer.format is not None:
            domain_xml.etree.SubElement(element, format_element, type=layer.format)
        format_element = "format"
        source = _source_of(element, layer)
        if layer.index is not None:
            (element if depth else source).set("index", str(layer.index))
        if depth < len(chain) - 1:
            element = domain_xml.etree.SubElement(element, "backingStore")
    if chain.layers and chain.ends:
        domain_xml.etree.SubElement(element, "backingStore")


def _source_of(element, layer: Layer):
    source = domain_xml.etree.SubElement(element, "source", dict(layer.source))
    for host in layer.hosts:
        domain_xml.etree.SubElement(source, "host", dict(host))
    if layer.address:
        domain_xml.etree.SubElement(source, "address", dict(layer.address))
    tell_data(source, layer)
    return source


def tell_data(source, layer: Layer) -> None:
    """Let a ``<source>`` name the data file of its layer where libvirt's XML is to name it, and none that is not the layer's."""
    written = source.find("dataStore")
    if _data_said(layer, None if written is None else domain_xml.layer_of(written)):
        return
    if written is not None:
        source.remove(written)
    store = layer.told_store
    if store is not None:
        element = domain_xml.etree.SubElement(source, "dataStore", type=store.type)
        domain_xml.etree.SubElement(element, "format", type=store.format or "raw")
        inner = _source_of(element, store)
        if store.index is not None:
            inner.set("index", str(store.index))
