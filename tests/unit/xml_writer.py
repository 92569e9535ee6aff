# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A disk with everything that is read of it, written as libvirt writes it: the reader's counterpart, for tests only."""

from __future__ import annotations

from lxml import etree

SECRET = "7f1e3f4a-0000-4000-8000-00000000c0de"


def disk_xml(disk) -> str:
    root = etree.Element("disk", device=disk.device)
    if disk.driver:
        etree.SubElement(root, "driver", dict(disk.driver))
    _write(root, disk.chain, None)
    if disk.mirror is not None:
        mirror = etree.SubElement(root, "mirror", job=disk.mirror.job)
        if disk.mirror.ready:
            mirror.set("ready", disk.mirror.ready)
        _write(mirror, disk.mirror.chain, "format")
    target = etree.SubElement(root, "target", dev=disk.target)
    if disk.bus:
        target.set("bus", disk.bus)
    if disk.alias:
        etree.SubElement(root, "alias", name=disk.alias)
    return etree.tostring(root).decode()


def _write(element, chain, format_element) -> None:
    """``element`` becomes the first layer of the chain; each further one, and each sibling, is a <backingStore> in the one above."""
    for depth, layer in enumerate(chain.layers):
        _write_layer(element, layer, format_element if not depth else "format", on_source=not depth and element.tag != "backingStore")
        below = etree.SubElement(element, "backingStore") if depth < len(chain) - 1 else None
        for branch in layer.branches:
            _write(etree.SubElement(element, "backingStore"), branch, "format")
        if below is None and chain.ends:
            etree.SubElement(element, "backingStore")
        element = below


def _write_layer(element, layer, format_element, on_source=True) -> None:
    element.set("type", layer.type)
    if layer.format is not None and format_element:
        etree.SubElement(element, format_element, type=layer.format)
    source = etree.SubElement(element, "source", dict(layer.source))
    if layer.index is not None:
        (source if on_source else element).set("index", str(layer.index))
    for host in layer.hosts:
        etree.SubElement(source, "host", dict(host))
    if layer.address:
        etree.SubElement(source, "address", dict(layer.address))
    for name, value in layer.details:
        child = etree.SubElement(source, name, {} if name == "initiator" else {"file" if name == "config" else "name": value})
        if name == "initiator":
            etree.SubElement(child, "iqn", name=value)
    _write_facts(source, layer.facts)
    if layer.store is not None:
        _write_layer(etree.SubElement(source, "dataStore"), layer.store, "format", on_source=False)


def _write_facts(source, facts) -> None:
    if facts.startup_policy:
        source.set("startupPolicy", facts.startup_policy)
    if facts.slices:
        slices = etree.SubElement(source, "slices")
        for one in facts.slices:
            etree.SubElement(slices, "slice", dict(one))
    if facts.reservations:
        etree.SubElement(source, "reservations", managed=facts.reservations)
    for kind, name, value in (("encryption", "format", facts.encryption), ("auth", "username", facts.auth)):
        if value:
            etree.SubElement(etree.SubElement(source, kind, {name: value}), "secret", type="x", uuid=SECRET)
    for one in facts.seclabels:
        pairs = dict(one)
        label = pairs.pop("label", None)
        element = etree.SubElement(source, "seclabel", pairs)
        if label:
            etree.SubElement(element, "label").text = label
