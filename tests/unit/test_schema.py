# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""docs/schema/disk_chain_info.json against the module's RETURN, and against what the module really returns.

RETURN is read by these rules: a key is optional if its ``returned`` says "when" or "failure"; it may be null if its
description has V(null), and its elements may if that says "element is V(null)"; what it has "the same keys as" is the key of
that name among a disk's.
"""

from __future__ import annotations

import copy
import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace

import jsonschema
import pytest
import yaml
from lxml import etree

from ansible_collections.livestorage.libvirt.plugins.module_utils import _pipeline
from ansible_collections.livestorage.libvirt.plugins.module_utils._core import findings
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import normal_path
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import parse_domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import FindingsMet
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.headers import wanted
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import Image, Node, Probe, Process, QemuView, Sizes
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Job, Observed, Snapshot, Use
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import disk_chain_info
from ansible_collections.livestorage.libvirt.tests.unit.support import COLLECTION, HERE, ROOT, load, params_for
from ansible_collections.livestorage.libvirt.tests.unit.test_cases import LOOKING, looked, name_of

SCHEMA = load(ROOT / "docs" / "schema" / "disk_chain_info.json")
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
RETURN = yaml.safe_load(importlib.import_module(COLLECTION + ".modules.disk_chain_info").RETURN)
OF_A_DISK = RETURN["domains"]["contains"]["disks"]["contains"]

# What Ansible adds to every module's result.
ANSIBLE = {"changed", "failed", "msg", "warnings", "deprecations", "exception", "invocation", "attempts", "item"}
TYPES = {"str": ["string"], "int": ["integer"], "bool": ["boolean"], "float": ["number"], "list": ["array"], "dict": ["object"], "raw": ["string", "integer"]}
WORDS = re.compile(r"V\(([\w-]+)\)")
# What is inside these is told once, of a disk.
SAME = re.compile(r"^(?:images|domains\.disks\.mirror)\.(chain|tree|findings|data_moved)\.")
# The keys that have one of a few words, and whose description has just these.
ENUMS = {"state", "device", "known_from", "unread", "startup_policy", "type", "job", "ready", "code", "severity"}


def description(facts: dict) -> str:
    return " ".join([facts["description"]] if isinstance(facts["description"], str) else facts["description"])


def told(facts: dict, name: str) -> dict:
    """One key of RETURN: its type, whether it may be null or missing, and the same of what is in it."""
    words = description(facts)
    contains = OF_A_DISK[name]["contains"] if "the same keys as" in words else facts.get("contains")
    return {
        "types": TYPES[facts["type"]],
        "null": bool(re.search(r"(?<!element is )V\(null\)", words)),
        "optional": facts.get("returned", "always") != "always",
        "elements": TYPES[facts["elements"]] if "elements" in facts else None,
        "null elements": "element is V(null)" in words,
        "contains": None if contains is None else {key: told(one, key) for key, one in contains.items()},
    }


def resolved(schema: dict, above: tuple) -> tuple:
    """(the schema without references and without null, may it be null, the references that led here)."""
    if "anyOf" in schema:
        options = [one for one in schema["anyOf"] if one != {"type": "null"}]
        assert len(options) == 1 and len(schema["anyOf"]) == 2
        found, dummy, above = resolved(options[0], above)
        return found, True, above
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return SCHEMA["$defs"][name], False, (*above, name)
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return dict(schema, type=[one for one in types if one != "null"]), "null" in types, above


def said(schema: dict, required: bool, above: tuple = ()) -> dict:
    """The same of one key of the schema."""
    found, null, above = resolved(schema, above)
    types = found["type"] if isinstance(found["type"], list) else [found["type"]]
    elements, null_elements, inner = (None, False, above)
    if "array" in types:
        elements, null_elements, inner = resolved(found["items"], above)
    holder = elements if elements is not None else found
    element_types = None if elements is None else elements["type"] if isinstance(elements["type"], list) else [elements["type"]]
    twice = len(set(inner)) < len(inner)
    return {
        "types": types,
        "null": null,
        "optional": not required,
        "elements": element_types,
        "null elements": null_elements,
        "contains": None if twice or "properties" not in holder else members(holder, inner),
    }


def members(schema: dict, above: tuple) -> dict:
    return {key: said(one, key in schema["required"], above) for key, one in schema["properties"].items()}


def flat(shape: dict, path: str = "") -> dict:
    """A shape by path, so that a difference is seen at once."""
    found = {}
    for key, one in shape.items():
        found[path + key] = {word: value for word, value in one.items() if word != "contains"}
        found.update(flat(one["contains"] or {}, path + key + "."))
    return found


def objects(schema):
    """Every schema in the document that describes an object."""
    if isinstance(schema, dict):
        if "properties" in schema and "type" in schema:
            yield schema
        for one in schema.values():
            yield from objects(one)
    elif isinstance(schema, list):
        for one in schema:
            yield from objects(one)


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]


def test_it_has_the_keys_of_return():
    ours = dict(SCHEMA, properties={key: one for key, one in SCHEMA["properties"].items() if key not in ANSIBLE})
    assert flat(members(ours, ())) == flat({key: told(one, key) for key, one in RETURN.items()})
    assert set(SCHEMA["properties"]) == set(RETURN) | ANSIBLE


def test_nothing_else_is_let_through():
    found = list(objects(SCHEMA))
    assert len(found) > 15
    for one in found:
        assert one["additionalProperties"] is False and set(one["required"]) <= set(one["properties"])


def test_codes_and_severities():
    finding = SCHEMA["$defs"]["finding"]["properties"]
    assert finding["code"]["enum"] == list(findings.CODES)
    assert finding["severity"]["enum"] == list(findings.SEVERITIES)


def test_the_guide_tells_of_every_code():
    guide = (ROOT / "docs" / "docsite" / "rst" / "guide_chain_info.rst").read_text(encoding="utf-8")
    assert re.findall(r"^   \* - ``(\w+)``\n     - (info|warning|critical)$", guide, re.MULTILINE) == list(findings.CODES.items())


def test_words():
    """Where the schema has a list of words, RETURN has the same ones."""
    seen = set()

    def compare(facts: dict, schema: dict, name: str, above: tuple):
        schema, null, above = resolved(schema, above)
        if "enum" in schema:
            seen.add(name)
            assert set(WORDS.findall(description(facts))) - {"null"} == set(schema["enum"]) - {None}, name
            assert null == (None in schema["enum"])
        holder = resolved(schema["items"], above)[0] if "items" in schema else schema
        for key, one in facts.get("contains", {}).items():
            compare(one, holder["properties"][key], key, above)

    for key, one in RETURN.items():
        compare(one, SCHEMA["properties"][key], key, ())
    assert seen == ENUMS


# What the module returns


GUESTS = sorted((HERE / "xml").glob("*.xml"))
VARIANTS = [
    {},
    {"sources": ["live"]},
    {"sources": ["inactive", "images"], "validate": True},
    {"validate": True, "estimate": True, "qemu_nodes": True, "max_depth": 2},
    {"fail_on": ["info"]},
]
OLD, NEW, BASE = "/srv/old.qcow2", "/srv/new.qcow2", "/srv/base.qcow2"
GUEST = """
<domain type='kvm' id='1'>
  <name>rich</name>
  <uuid>10ca1000-0000-4000-8000-0000000000ff</uuid>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/srv/old.qcow2' index='2'/>
      <target dev='vda' bus='virtio'/>
      <alias name='virtio-disk0'/>
      <mirror type='file' job='copy' ready='pivot'>
        <format type='qcow2'/>
        <source file='/srv/new.qcow2' index='3'/>
        <backingStore/>
      </mirror>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/srv/busy.qcow2' index='4'>
        <dataStore type='file'>
          <source file='/srv/busy.raw'/>
        </dataStore>
      </source>
      <backingStore/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/srv/loop.qcow2' index='5'/>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
  </devices>
</domain>
"""
UUID = "10ca1000-0000-4000-8000-0000000000ff"


def image(path: str, backing=None, backing_format=None, data=None, size: int = 1 << 20) -> Probe:
    """A qcow2 image that was read."""
    header = Image(path, "qcow2", size, 4096, backing, backing, backing_format, data, data, True if data else None)
    return Probe(path, "qcow2", kind="file", image=header, magic="qcow2", physical=8192, allocated=4096, mode=0o644, identity=(1, path), real=path)


def rich() -> Observed:
    """A look with something of everything: a chain by headers with a data file, a loop, a job, a stale mirror, what QEMU says."""
    old = parse_domain(GUEST, True, config_xml=GUEST.replace(NEW, OLD).replace("/srv/busy.qcow2", "/srv/other.qcow2"))
    disks = tuple(replace(one, job=Job("pull", 1, 4, 7)) if one.target == "vdb" else one for one in old.disks)
    domain = replace(old, disks=disks)
    found = [
        image(OLD, BASE, "qcow2"),
        image(BASE, data="/srv/base.raw", size=1 << 19),
        image(NEW),
        image("/srv/busy.qcow2", "json:{}"),
        image("/srv/loop.qcow2", "/srv/loop.qcow2"),
        image("/srv/bare.qcow2", BASE, "qcow2"),
    ]
    probes = {(one.path, one.format): one for one in found}
    probes["/srv/loop.qcow2", None] = probes["/srv/loop.qcow2", "qcow2"]
    probes["/srv/base.raw", "raw"] = Probe("/srv/base.raw", "raw", kind="file", physical=1 << 20, allocated=4096, mode=0o666)
    probes["/srv/bare.qcow2", None] = probes["/srv/bare.qcow2", "qcow2"]
    probes["/srv/unknown", None] = Probe("/srv/unknown", None, kind="block", problem="format_unknown", physical=512)
    devices = (("/machine/peripheral/virtio-disk0/virtio-backend", "libvirt-3-format", NEW),)
    jobs = ({"device": "drive-virtio-disk1", "type": "stream", "len": 4, "offset": 1},)
    return Observed(
        (domain,),
        uses=(Use(("path", BASE), "other", "another uuid", "vda", writes=True),),
        probes=probes,
        sizes={(UUID, "vdb", 4): Sizes(1 << 20, 4096, None)},
        shots={UUID: (Snapshot("before", (("vda", "/srv/gone.qcow2"),)),)},
        qemu={UUID: QemuView((Node("libvirt-2-format", "qcow2", OLD, False),), jobs, devices)},
        processes=(Process(7, "rich", UUID, ((OLD, True), (NEW, True))),),
    )


RICH_PARAMS = {"name": "rich", "images": ["/srv/bare.qcow2", "/srv/unknown"], "validate": True, "estimate": True, "qemu_nodes": True}


def result(params: dict, seen: Observed) -> dict:
    """What the module hands to Ansible, as JSON has it."""
    try:
        return as_json(disk_chain_info.report(disk_chain_info.request(params_for("disk_chain_info", params)), seen))
    except FindingsMet as error:
        return failure(error)


def failure(error: FindingsMet) -> dict:
    return as_json(dict(_pipeline._failure(disk_chain_info, error, {}), failed=True))


def as_json(value: dict) -> dict:
    return json.loads(json.dumps(value))


def looks(path):
    """Each guest of a document as one that runs, as one that will be gone when it stops, and as one that is off."""
    for element in etree.parse(str(path)).getroot().iter("domain", "inactiveDomain"):
        xml = etree.tostring(element, encoding="unicode", with_tail=False)
        running, transient, off = parse_domain(xml, True, config_xml=xml), parse_domain(xml, True, "paused", False), parse_domain(xml, False, "shutdown")
        probes = {key: Probe(key[0], key[1], problem="missing", detail="No such file or directory") for key in wanted([running])}
        yield Observed((running, off), local=False)
        yield Observed((transient, off), probes=probes)


def real() -> list:
    found = [(path.stem, result(params, seen)) for path in GUESTS for seen in looks(path) for params in VARIANTS]
    found.append(("rich", result(RICH_PARAMS, rich())))
    found.append(("rich, failed", result(dict(RICH_PARAMS, fail_on=["critical"]), rich())))
    found.append(("rich, without QEMU's view", result(RICH_PARAMS, replace(rich(), qemu={}))))
    return found


RESULTS = real()
RICH = dict(RESULTS)["rich"]


def test_results_are_valid():
    assert len(RESULTS) > 100
    wrong = ["%s: %s: %s" % (name, error.json_path, error.message[:200]) for name, one in RESULTS for error in VALIDATOR.iter_errors(one)]
    assert wrong == []


@pytest.mark.parametrize("path", [path for path in LOOKING if load(path).get("error", {}).get("code", "findings") == "findings"], ids=name_of)
def test_cases_are_valid(path, monkeypatch):
    dummy, found, error = looked(path, monkeypatch)
    assert [error.message for error in VALIDATOR.iter_errors(failure(error) if error is not None else as_json(found))] == []


def test_a_failure_has_the_findings():
    failed = dict(RESULTS)["rich, failed"]
    assert failed["code"] == "findings" and failed["domains"] == RICH["domains"] and failed["images"] == RICH["images"]


def seen_types(shape: dict, value: dict, found: dict, path: str = "") -> None:
    """By path of the shape: is there something somewhere, and is there null?"""
    for key, one in shape.items():
        here = SAME.sub(r"domains.disks.\1.", path + key)
        values = value.get(key, []) if "array" in one["types"] else [value[key]] if key in value else []
        found.setdefault(here, set()).update(["null"] if key in value and value[key] is None else ["value"] if values else [])
        for each in values or ():
            if each is None:
                found[here].add("null")
            elif one["contains"]:
                seen_types(one["contains"], each, found, here + ".")


def test_every_key_has_been_seen_and_null_where_it_may_be():
    """Nothing is allowed that no result needs."""
    shape, found = {key: told(one, key) for key, one in RETURN.items()}, {}
    for dummy, one in RESULTS:
        seen_types(shape, one, found)
    expected = {path: {"value"} | ({"null"} if one["null"] or one["null elements"] else set()) for path, one in flat(shape).items() if not SAME.match(path)}
    assert found == expected


# The keys of these are libvirt's and QEMU's own, and may be any.
FREE = {"driver", "host", "source", "slices", "seclabel", "jobs"}


def everything(value, path=()):
    """Every value in a result, with the way to it."""
    yield path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from everything(one, (*path, key))


def places() -> list:
    """The way to one value of each key, and that value. What libvirt or QEMU names as it likes is left out."""
    found = {}
    for path, one in everything(RICH):
        name = tuple(key if isinstance(key, str) else "*" for key in path)
        if path and not FREE & set(path[:-1]) and found.get(name, (path, None))[1] is None:
            found[name] = (path, one)
    return list(found.values())


def planted(path: tuple, change) -> dict:
    found = copy.deepcopy(RICH)
    holder = found
    for key in path[:-1]:
        holder = holder[key]
    change(holder, path[-1])
    return found


def test_an_extra_key_is_refused_anywhere():
    found = [(*path, "extra") for path, one in places() if isinstance(one, dict) and path[-1] not in FREE]
    assert len(found) > 20
    assert [path for path in found if VALIDATOR.is_valid(planted(path, lambda holder, key: holder.update({key: "1"})))] == []


def test_a_missing_key_is_refused_anywhere():
    optional = {path.rpartition(".")[2] for path, one in flat({key: told(one, key) for key, one in RETURN.items()}).items() if one["optional"]}
    found = [path for path, dummy in places() if isinstance(path[-1], str) and path[-1] not in optional]
    assert len(found) > 100
    assert [path for path in found if VALIDATOR.is_valid(planted(path, lambda holder, key: holder.pop(key)))] == []


def test_a_wrong_type_is_refused_anywhere():
    def spoil(holder, key):
        holder[key] = [1.5] if not isinstance(holder[key], list) else {"a": 1.5}

    found = [path for path, dummy in places()]
    assert len(found) > 120
    assert [path for path in found if VALIDATOR.is_valid(planted(path, spoil))] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("changed",), True),
        (("code",), "no_guest"),
        (("domains", 0, "state"), "pmsuspended"),
        (("domains", 0, "disks", 0, "mirror", "job"), ""),
        (("domains", 0, "disks", 0, "chain", 0, "address"), "vda"),
        (("domains", 0, "disks", 0, "chain", 0, "known_from"), "guess"),
        (("domains", 0, "disks", 0, "chain", 0, "unread"), "because"),
        (("domains", 0, "disks", 0, "chain", 0, "virtual_size"), -1),
        (("domains", 0, "disks", 0, "findings", 0, "code"), "stale"),
        (("domains", 0, "disks", 0, "findings", 0, "severity"), "error"),
    ],
)
def test_a_wrong_value_is_refused(path, value):
    assert not VALIDATOR.is_valid(planted(path, lambda holder, key: holder.update({key: value})))


@pytest.mark.parametrize(("change", "says"), [({}, ""), ({"extra": 1}, "'extra' does not match"), ({"images": None}, "$.images: None is not of type 'array'")])
def test_the_tool_of_the_integration_tests(change, says):
    command = [sys.executable, str(ROOT / "tests" / "tools" / "schema.py"), "disk_chain_info"]
    done = subprocess.run(command, input=json.dumps(dict(RICH, **change)), text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1 if says else 0, "")
    assert says in done.stdout and len(done.stdout.splitlines()) == len(change)


def test_the_rich_guest_has_what_the_others_lack():
    """A check of the example itself: its chain comes from headers, and its findings of both kinds of sources are there."""
    disk = RICH["domains"][0]["disks"][0]
    assert [one["known_from"] for one in disk["chain"]] == ["xml", "header"]
    assert normal_path(disk["chain"][1]["data_store"]["path"]) == "/srv/base.raw"
    assert {"stale_pivot", "shared_image", "snapshot_stale"} <= {one["code"] for one in disk["findings"]}
