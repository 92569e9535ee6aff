# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The XML reader against files: what it finds is what XPath counts, and nothing secret comes out.

xml/*.xml is the set of this collection, each file with what has to be read from it in a .json of the same name. Further
directories can be named in LIVESTORAGE_XML (colons between them, searched in depth): ``tests/tools/libvirt-xml`` does that
with libvirt's own test data.

A layer is the disk's or the mirror's own <source>, if it says where the image is, and each <backingStore> below it that has
anything in it: a quorum has no source of its own. A terminator is no layer; data files are counted for themselves.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from lxml import etree

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import parse_domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Observed
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import disk_chain_info
from ansible_collections.livestorage.libvirt.tests.unit.support import HERE, SCHEMAS, load, params_for

OWN = HERE / "xml"
FOLDERS = [OWN] + [Path(name) for name in os.environ.get("LIVESTORAGE_XML", "").split(":") if name]

# Where an image is. (A drive without a medium may still have a <source> with an index or a policy, or with an empty path.)
PLACE = "source[@file != '' or @dev != '' or @dir != '' or @protocol or @pool or @path or @namespace]"
BELOW = "*[self::backingStore or self::backingFile]"
TOP = "%s or %s[*]" % (PLACE, BELOW)
PATHS = "source[not(parent::reservations)]/@*[name() = 'file' or name() = 'dev' or name() = 'dir'][. != '']"
IN_DISK = "not(ancestor::mirror)"
COUNTS = {
    "layers": "count(self::*[%s] | descendant::backingStore[*][%s])" % (TOP, IN_DISK),
    "ends": "count(descendant::backingStore[not(*) and not(@type)][%s][parent::*[%s]])" % (IN_DISK, TOP),
    "stores": "count(descendant::dataStore[%s])" % IN_DISK,
    "mirror layers": "count(mirror[@file != '' or %s] | mirror/descendant::%s[*])" % (TOP, BELOW),
    "mirror ends": "count(mirror/descendant::%s[not(*) and not(@type)][parent::*[@file or %s]])" % (BELOW, TOP),
    "mirror stores": "count(mirror/descendant::dataStore)",
}
LISTS = {"paths": "descendant::%s[%s]" % (PATHS, IN_DISK), "mirror paths": "mirror/descendant::%s | mirror[not(source)]/@file" % PATHS}
SECRETS = "//secret/@uuid | //secret/@usage | //cookie | //@passwd"
# It is a part of the address, and may be what opens the door.
NOT_SHOWN = SECRETS + " | //source/@query"
WANTED = disk_chain_info.request(params_for("disk_chain_info", {"sources": ["live", "inactive"], "validate": True}))

# What the set has to have, as XPath.
TYPES = ("file", "block", "dir", "network", "volume", "nvme", "vhostuser", "vhostvdpa", "quorum")
PROTOCOLS = ("nbd", "rbd", "iscsi", "gluster", "ssh", "http", "https", "nfs", "vxhs", "sheepdog", "ftp")
OF_A_DISK = ("readonly", "shareable", "transient", "auth", "encryption", "driver[@cache and @discard]", "source/@startupPolicy")
OF_A_SOURCE = ("auth", "config", "initiator", "snapshot", "cookies", "ssl", "readahead", "timeout", "identity", "reservations/source", "encryption")
ITEMS = (
    *("//disk[@type = '%s']" % kind for kind in TYPES),
    *("//disk[@device = '%s']" % device for device in ("disk", "cdrom", "floppy", "lun")),
    *("//disk/" + item for item in OF_A_DISK),
    *("//disk/source[@protocol = '%s']" % protocol for protocol in PROTOCOLS),
    *("//disk/source/" + item for item in OF_A_SOURCE),
    *("//disk/source[@mode = '%s']" % mode for mode in ("host", "direct")),
    "//disk/source[count(host) > 2]",
    "//disk/source[@protocol = 'nbd']/host[@transport = 'unix']",
    "//disk/source/reservations[@managed = 'yes']",
    *("//disk/source/dataStore[@type = '%s']" % kind for kind in ("file", "network")),
    "//disk[@device = 'cdrom'][not(source)]",
    "//disk[@device = 'cdrom']/source[@index and not(@file)]",
    "//disk/source[count(seclabel) > 1]",
    *("//backingStore/source/" + item for item in ("seclabel", "encryption", "slices/slice", "dataStore[@type = 'block']")),
    "//backingStore/backingStore[not(*) and not(@*)]",
    "//backingStore[source and not(backingStore)]",
    "//backingStore[@index]/backingStore[@index]",
    "//disk[count(backingStore) > 2]/backingStore[2]/backingStore/source",
    *("//mirror[@job = '%s']" % job for job in ("copy", "active-commit")),
    *("//mirror[@ready = '%s']" % ready for ready in ("yes", "abort", "pivot")),
    "//mirror[@job and not(@ready)]",
    "//mirror/backingStore/backingStore/source",
    "//mirror/source/dataStore",
    "//mirror[@file and @format and @ready and not(*)]",
    "//mirror/backingFile/backingFile/source",
)


def documents(folder: Path):
    """(path, its guests that have a disk, or a word why there is none) of every XML file below a directory."""
    for path in sorted(folder.rglob("*.xml")):
        try:
            root = etree.parse(str(path), etree.XMLParser(resolve_entities=False, no_network=True)).getroot()
        except (etree.XMLSyntaxError, OSError) as error:
            yield path, "not readable" if isinstance(error, OSError) else "not well-formed XML"
            continue
        # Snapshots and libvirt's own status files have guests inside; the <domain> of a network has no devices.
        guests = [one for one in root.iter("domain", "inactiveDomain") if one.find("devices/disk") is not None]
        yield path, guests or ("guests without a disk" if root.tag == "domain" else "no guests (<%s>)" % root.tag)


FOUND = {folder: list(documents(folder)) for folder in FOLDERS}
GUESTS = [
    pytest.param(guests, id="%s:%s" % (folder.name, path.relative_to(folder)))
    for folder in FOLDERS
    for path, guests in FOUND[folder]
    if isinstance(guests, list)
]


def parsed(element):
    return parse_domain(etree.tostring(element, encoding="unicode", with_tail=False), active=True)


def stores(layer):
    """The data file of a layer, and that one's."""
    while layer.store is not None:
        layer = layer.store
        yield layer


def read(chain, prefix="") -> dict:
    """What the reader found, in the words of COUNTS and LISTS."""
    places = chain.walk() if chain is not None else []
    files = [store for place in places for store in stores(place.layer)]
    paths = [layer.path for layer in [place.layer for place in places] + files]
    return {
        prefix + "layers": len(places),
        prefix + "ends": sum(place.terminated is True for place in places),
        prefix + "stores": len(files),
        prefix + "paths": sorted(path for path in paths if path is not None),
    }


def counted(disk) -> dict:
    """The same by XPath."""
    numbers = {word: int(disk.xpath(path)) for word, path in COUNTS.items()}
    return {**numbers, **{word: sorted(disk.xpath(path)) for word, path in LISTS.items()}}


def secrets(element, which=SECRETS) -> set:
    """Values that must not come out. (The usage of a volume's secret is by custom the volume's path.)"""
    found = {one if isinstance(one, str) else one.text for one in element.xpath(which)}
    return found - set(element.xpath("//source/@file | //source/@dev"))


def reported(domain) -> dict:
    """What disk_chain_info says of a guest whose images nobody can look at."""
    return disk_chain_info.report(WANTED, Observed((domain,), local=False))["domains"][0]


def branches(node, parent=None) -> dict:
    """The parents of a tree's layers, by position."""
    found = {node["layer"]: parent} if node else {}
    for below in node["backing"] if node else ():
        found.update(branches(below, node["layer"]))
    return found


@pytest.mark.parametrize("guests", GUESTS)
def test_document(guests):
    for element in guests:
        domain, disks = parsed(element), element.findall("devices/disk")
        result = reported(domain)
        assert len(domain.disks) == len(result["disks"]) == len(disks)
        for disk, shown, written in zip(domain.disks, result["disks"], disks):
            mirror = disk.mirror and disk.mirror.chain
            found = {**read(disk.chain), **read(mirror, "mirror ")}
            assert (disk.target, found) == (written.xpath("string(target/@dev)"), counted(written))
            assert len(shown["chain"]) == found["layers"]
            assert len(shown["mirror"]["chain"] if mirror else []) == found["mirror layers"]
            assert branches(shown["tree"]) == {number: one["parent"] for number, one in enumerate(shown["chain"])}
        assert not [secret for secret in secrets(element) if secret in repr(domain)]
        assert not [secret for secret in secrets(element, NOT_SHOWN) if secret in json.dumps(result)]


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_folder(folder, capsys):
    """Nothing is passed over in silence: what else lies there is counted and named."""
    others = [(guests, path.relative_to(folder)) for path, guests in FOUND[folder] if isinstance(guests, str)]
    used = [guests for dummy, guests in FOUND[folder] if not isinstance(guests, str)]
    disks = sum(len(element.findall("devices/disk")) for guests in used for element in guests)
    with capsys.disabled():
        print("\n%s: %d XML files, %d of them with %d guests and %d disks" % (folder, len(FOUND[folder]), len(used), sum(map(len, used)), disks))
        for reason, number in sorted(Counter(reason for reason, dummy in others).items()):
            names = [str(path) for why, path in others if why == reason]
            print("  %d %s: %s" % (number, reason, ", ".join(names)))
    assert disks


def layer_facts(layer) -> dict:
    facts = layer.facts
    return {
        "type": layer.type,
        "protocol": layer.protocol,
        "path": layer.path,
        "name": layer.name,
        "host": [dict(host) for host in layer.hosts],
        "details": dict(layer.details),
        "format": layer.format,
        "index": layer.index,
        "slices": [dict(one) for one in facts.slices],
        "reservations": facts.reservations,
        "encryption": facts.encryption,
        "auth": facts.auth,
        "seclabel": [dict(one) for one in facts.seclabels],
        "startup_policy": facts.startup_policy,
        "store": layer.store and layer_facts(layer.store),
    }


def chain_facts(chain) -> list:
    return [{**layer_facts(one.layer), "parent": one.parent, "depth": one.depth, "terminated": one.terminated} for one in chain.walk()]


def disk_facts(disk) -> dict:
    mirror = disk.mirror
    return {
        **{word: getattr(disk, word) for word in ("device", "bus", "readonly", "shareable", "transient")},
        "driver": dict(disk.driver),
        "layers": chain_facts(disk.chain),
        "mirror": mirror and {"job": mirror.job, "ready": mirror.ready, "layers": chain_facts(mirror.chain)},
    }


NOTHING = {"host": [], "details": {}, "slices": [], "seclabel": []}
NO_LAYER = dict.fromkeys(["protocol", "path", "name", "format", "index", "reservations", "encryption", "auth", "startup_policy", "store"])
NO_DISK = {"bus": None, "readonly": False, "shareable": False, "transient": False, "driver": {}, "mirror": None}


def full_layer(layer: dict, **more) -> dict:
    store = layer.get("store")
    return {**NOTHING, **NO_LAYER, **more, **layer, "store": store and full_layer(store)}


def full_chain(layers: list) -> list:
    """What a side file says, and that there is nothing more: a line of layers, each below the one before and none the last."""
    return [full_layer(one, parent=number - 1 if number else None, depth=number, terminated=False) for number, one in enumerate(layers)]


def full_disk(disk: dict) -> dict:
    mirror = disk.get("mirror")
    return {**NO_DISK, **disk, "layers": full_chain(disk["layers"]), "mirror": mirror and {**mirror, "layers": full_chain(mirror["layers"])}}


def same(layers) -> list:
    """What the module's result and a side file call by the same names. (The result has null for an empty list.)"""
    words = ("type", "protocol", "path", "name", "host", "format", "index", "parent", "depth", "terminated", "encryption", "auth", "seclabel", "startup_policy")
    return [{word: None if layer[word] == [] else layer[word] for word in words} for layer in layers]


def own(path):
    return next(guests for found, guests in FOUND[OWN] if found == path)


@pytest.mark.parametrize("path", sorted(OWN.glob("*.xml")), ids=lambda path: path.stem)
def test_own_set(path):
    expected = load(path.with_suffix(".json"))
    assert set(expected) <= {"about", "invalid", "domains"}
    domains = [parsed(element) for element in own(path)]
    assert len(domains) == len(expected["domains"])
    for domain, disks in zip(domains, expected["domains"]):
        assert [disk.target for disk in domain.disks] == list(disks)
        for disk, shown in zip(domain.disks, reported(domain)["disks"]):
            wanted = full_disk(disks[disk.target])
            assert disk_facts(disk) == wanted, disk.target
            assert same(shown["chain"]) == same(wanted["layers"])
            if disk.mirror:
                assert same(shown["mirror"]["chain"]) == same(wanted["mirror"]["layers"])


@pytest.mark.parametrize("path", sorted(OWN.glob("*.xml")), ids=lambda path: path.stem)
def test_own_set_is_as_libvirt_writes(path):
    """But for the files that say why not."""
    schema = etree.RelaxNG(etree.parse(str(SCHEMAS / "domain.rng")))
    valid = [schema.validate(etree.ElementTree(element)) for element in own(path) if element.tag == "domain"]
    assert all(valid) or "invalid" in load(path.with_suffix(".json")), schema.error_log


def test_own_set_is_complete():
    roots = [guests[0].getroottree() for dummy, guests in FOUND[OWN]]
    assert not [item for item in ITEMS if not any(root.xpath(item) for root in roots)]
    assert len(set().union(*map(secrets, roots))) > 10
