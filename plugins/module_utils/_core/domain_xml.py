# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's XML to values (``write_xml.py`` is the way back).

The law: an empty ``<backingStore/>`` says that the chain ends there, a missing one that nobody knows; the two are never
mixed up. ``index`` is read, not counted. Nothing is fetched, expanded or guessed while parsing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Iterable, List, Optional, Tuple

from .chain import NO_FACTS, Chain, Facts, Layer, Pairs
from .errors import Unavailable
from .model import Disk, Domain, Mirror, Record, Snapshot
from .notes import Conversion

try:
    from lxml import etree
except ImportError:  # the pipeline says which package is missing, before anything here is called
    etree = None

# One namespace for each disk, so that two runs on two disks of a guest never rewrite each other's note.
RECORD_URI = "https://livestorage.github.io/libvirt/job/1/%s"
RECORD_PREFIX = "livestorage"
CONVERSION_URI = "https://livestorage.github.io/libvirt/datafile/1/%s"
NOTED_URI = "https://livestorage.github.io/libvirt/snapshots/1"
NOTE_WORDS = (("files", "overlay"), ("bases", "state"), ("on_delete", "on_delete"), ("spoiled", "spoiled"))
KIB = 1024  # libvirt writes the memory so, whatever unit it was given in
AGENT = "org.qemu.guest_agent.0"

_NOT_A_PLACE = frozenset(["index", "startupPolicy", "fdgroup", "tls", "tlsHostname", "tlsFromConfig"])
_DETAILS = ("config", "initiator", "snapshot")


def parsed(xml: str):
    """The root element. Raises Unavailable (code bad_xml) for what libvirt never sends."""
    try:
        root = etree.fromstring(xml.encode(), etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False))
    except etree.XMLSyntaxError as error:
        raise Unavailable("bad_xml", "libvirt sent XML that cannot be read: check what answers at this URI.") from error
    if root.getroottree().docinfo.internalDTD is not None:  # entities in attributes are expanded whatever the parser is told
        raise Unavailable("bad_xml", "libvirt sent XML with a document type, which it never does: check what answers at this URI.")
    return root


def _pairs(element) -> Pairs:
    found = element.items()
    return tuple(sorted(found)) if len(found) > 1 else tuple(found)


def parse_domain(xml: str, active: bool, state: str = "running", persistent: bool = True, config_xml: Optional[str] = None) -> Domain:
    """A guest from its XML: live (or inactive, when it is off), and the inactive XML of a running persistent guest."""
    root = parsed(xml)
    disks = tuple(map(_disk, root.iterfind("devices/disk")))
    if config_xml is not None:
        config = tuple(map(_disk, parsed(config_xml).iterfind("devices/disk")))
    else:
        config = disks if persistent and not active else ()
    name, uuid = root.findtext("name"), root.findtext("uuid") or ""
    more = {
        "records": tuple(_records(root)),
        "agent": _agent(root),
        "noted": _noted(root),
        "seclabels": tuple(_labels(root)),
        "conversions": tuple(_conversions(root if config_xml is None else parsed(config_xml))),
        "memory": int(root.findtext("memory") or 0) * KIB or None,
    }
    return Domain(name, uuid, active, state, persistent, disks, config, **more)


def mentioned(xml: str) -> frozenset:
    """Every absolute path that a guest's XML names anywhere: its disks, logs, firmware, sockets and shares.

    But for its metadata, which libvirt does not read: a note there about a copy names its destination, whatever became of it.
    """
    parts = (part for part in parsed(xml) if part.tag != "metadata")
    words = (word for part in parts for element in part.iter() if isinstance(element.tag, str) for word in element.values() + [element.text or ""])
    return frozenset(word.strip() for word in words if word.strip().startswith("/"))


def _disk(element) -> Disk:
    parts = _parts(element)
    target, driver, mirror, alias = (parts.get(name) for name in ("target", "driver", "mirror", "alias"))
    return Disk(
        target="" if target is None else target.get("dev", ""),
        chain=_chain(element),
        device=element.get("device", "disk"),
        bus=None if target is None else target.get("bus"),
        readonly="readonly" in parts,
        shareable="shareable" in parts,
        transient="transient" in parts,
        mirror=None if mirror is None else _mirror(mirror),
        driver=() if driver is None else _pairs(driver),
        alias=None if alias is None else alias.get("name"),
    )


def _parts(element) -> dict:
    """The children by name; comments have no name that anybody asks for."""
    return {child.tag: child for child in element}


def _mirror(element) -> Mirror:
    chain = _chain(element)
    if element.find("source") is None and element.get("file"):  # all that libvirt wrote before 1.2.6
        chain = Chain((Layer("file", (("file", element.get("file")),), element.get("format")),) + chain.layers[1:], chain.ends)
    return Mirror(element.get("job", "copy"), element.get("ready"), chain)


def chain_of(element) -> Chain:
    """The chain of a ``<disk>`` or anything like it."""
    return _chain(element)


def layer_of(element) -> Optional[Layer]:
    """The layer of a ``<disk>`` or anything like it, None where it has none."""
    return _chain(element).active


def _chain(element) -> Chain:
    """The chain under ``<disk>``, ``<mirror>`` or ``<backingStore>``: each ``<source>`` and what stands below it.

    A parent of several ``<backingStore>`` (a quorum) need not have a source of its own. The early drafts of mirrors called
    the element ``<backingFile>``.
    """
    layers: List[Layer] = []
    while True:
        parts = _parts(element)
        source = parts.get("source")
        if "backingStore" in parts or "backingFile" in parts:
            below = element.findall("backingStore") or element.findall("backingFile")
        else:
            below = []
        if _nowhere(source) and not any(one.find("*") is not None for one in below) and not (layers and element.find("*") is not None):
            # An ejected medium leaves <source index='7'/>. A terminator has no type; with one, it is a source that went missing.
            return Chain(tuple(layers), True if layers and element.get("type") is None else None)
        branches = tuple(branch for branch in map(_chain, below[1:]) if branch.layers)
        layers.append(_layer(element, parts, source, branches))
        if not below:
            return Chain(tuple(layers), None)
        element = below[0]


def _nowhere(source) -> bool:
    """Does a ``<source>`` say nothing about where? (libvirt takes an empty path for none.)"""
    return source is None or (all(name in _NOT_A_PLACE or not value for name, value in source.items()) and source.find("host") is None)


def _layer(element, parts: dict, source, branches: Tuple[Chain, ...] = ()) -> Layer:
    driver, format_ = parts.get("driver"), parts.get("format")
    named = format_ if format_ is not None else driver
    children = _parts(source) if source is not None and len(source) else {}
    address, store = children.get("address"), children.get("dataStore")
    return Layer(
        type=element.get("type", "file"),
        source=() if source is None else tuple(pair for pair in _pairs(source) if pair[0] not in _NOT_A_PLACE),
        format=None if named is None else named.get("type"),
        index=_index(source, element),
        hosts=tuple(_pairs(host) for host in source.iterfind("host")) if "host" in children else (),
        address=() if address is None else _pairs(address),
        details=tuple(_detail(name, children[name]) for name in _DETAILS if name in children) if children else (),
        facts=_facts(element, parts, source, children),
        store=None if store is None else _layer(store, _parts(store), store.find("source")),
        branches=branches,
    )


def _detail(name: str, element) -> Tuple[str, str]:
    """rbd's snapshot and configuration file, and iSCSI's initiator."""
    if name == "initiator":
        iqn = element.find("iqn")
        return name, "" if iqn is None else iqn.get("name", "")
    return name, element.get("file" if name == "config" else "name", "")


def _facts(element, parts: dict, source, children: dict) -> Facts:
    """What else is told of a layer. Kinds and users only: secrets, cookies and their names are not read at all."""
    policy = None if source is None else source.get("startupPolicy")
    encryption = children.get("encryption", parts.get("encryption"))  # on the disk until libvirt 3.9
    auth = children.get("auth", parts.get("auth"))
    if not children and policy is None and encryption is None and auth is None:
        return NO_FACTS
    reservations = children.get("reservations")
    return Facts(
        slices=tuple(_pairs(one) for one in source.iterfind("slices/slice")) if "slices" in children else (),
        reservations=None if reservations is None else reservations.get("managed", "no"),
        encryption=None if encryption is None else encryption.get("format"),
        auth=None if auth is None else auth.get("username"),
        seclabels=tuple(_seclabel(one) for one in source.iterfind("seclabel")) if "seclabel" in children else (),
        startup_policy=policy,
    )


def _seclabel(element) -> Pairs:
    label = element.findtext("label")
    return _pairs(element) + ((("label", label.strip()),) if label else ())


def _index(source, element) -> Optional[int]:
    """The identity stands on ``<source>`` of the disk and of a mirror, and on ``<backingStore>`` below them."""
    text = (source.get("index") if source is not None else None) or element.get("index")
    return int(text) if text else None


def _records(root) -> Iterable[Record]:
    for element in root.iterfind("metadata/*"):
        if not isinstance(element.tag, str):
            continue
        name = etree.QName(element)
        disk = element.get("disk")
        if disk and name.localname == "job" and name.namespace == RECORD_URI % disk:
            since = element.get("since", "")
            yield Record(
                disk,
                element.get("type", ""),
                element.get("layers", ""),
                element.get("indexes", ""),
                since=int(since) if since.isdecimal() else None,
                source=element.get("source"),
                creates=element.get("creates"),
                merges=tuple(one.get("path", "") for one in element.iterfind("{*}merges")),
                data=tuple((one.get("image", ""), one.get("path", "")) for one in element.iterfind("{*}data")),
                checkpoint=element.get("checkpoint"),
            )


def _conversions(root) -> Iterable[Conversion]:
    for element in root.iterfind("metadata/*"):
        if isinstance(element.tag, str) and is_conversion(element):
            told = (element.get(name, "") for name in ("disk", "metadata", "data", "state"))
            yield Conversion(*told, element.get("ran") == "yes")


def is_conversion(element) -> bool:
    """Is it our note of a conversion?"""
    name, disk = etree.QName(element), element.get("disk")
    return bool(disk) and name.localname == "datafile" and name.namespace == CONVERSION_URI % disk


def _labels(root) -> Iterable[Tuple[str, str]]:
    """What the guest's QEMU runs under, as (model, label): only a running guest has it."""
    for element in root.iterfind("seclabel"):
        label = (element.findtext("label") or "").strip()
        if label:
            yield element.get("model", ""), label


def _agent(root) -> Optional[str]:
    """The state of the guest agent's channel; None where there is none."""
    targets = (target for target in root.iterfind("devices/channel/target") if target.get("name") == AGENT)
    return next((target.get("state") or "disconnected" for target in targets), None)


def _noted(root) -> Tuple[Snapshot, ...]:
    """What our own note in the metadata of a domain's XML says of its snapshots."""
    found = []
    for element in root.iterfind("metadata/{%s}snapshots/{*}snapshot" % NOTED_URI):
        disks = [(disk.get("name", ""), disk) for disk in element.iterfind("{*}disk")]
        shot = Snapshot(element.get("name", ""), tracked=element.get("tracked") == "yes")
        values = {key: tuple((name, disk.get(word)) for name, disk in disks if disk.get(word)) for key, word in NOTE_WORDS}
        values["on_delete"] = tuple(pair for pair in values["on_delete"] if pair[1] in ("forward", "backward"))
        found.append(replace(shot, **values))
    return tuple(found)


def parse_checkpoint(xml: str) -> Tuple[Tuple[str, str], ...]:
    """The (disk, bitmap) pairs of a checkpoint."""
    disks = parsed(xml).iterfind("disks/disk[@checkpoint='bitmap']")
    return tuple((disk.get("name", ""), disk.get("bitmap", "")) for disk in disks)
