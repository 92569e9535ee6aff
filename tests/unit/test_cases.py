# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every file below cases/ is one test: a request and what the host shows, and the plan or the refusal that follows.

cases/<planner>/*.json has ``params``, ``guests`` (see ``support.guest``) and what else the host shows, then ``plan`` or
``error`` with a ``code`` and the whole ``message``. cases/calls/*.json calls a function of the core by itself.

What a case of a changing module does not say is as it should be: what libvirt names is there, with the header that its XML says
(``chains`` is for what libvirt does not name, ``headers`` for the exceptions), and other paths are free. ``qemu`` is what QEMU would
say if it were asked. What else a case may say is told in ``support``.

A case of block_job_info is a whole host (see ``case_host``). It ends with ``jobs``, the whole result.

A case of disk_chain_info is a whole host, too. It ends with ``findings``, all of them and whole (where they are,
code, severity, layer, expected, actual, message), with what the result ``shows`` at some paths, or with ``error``. ``near`` names
the code of a finding that the case just misses.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core import errors
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, Layer, file_layer, normal_path
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.findings import CODES, SEVERITIES
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Record, Snapshot
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.render import steps_result
from ansible_collections.livestorage.libvirt.tests.unit.case_host import CaseHost
from ansible_collections.livestorage.libvirt.tests.unit.support import COLLECTION, HERE, ROOT, guest, load, observed, operation, params_for, told_data, written

CASES = HERE / "cases"
ERRORS = dict(inspect.getmembers(errors, inspect.isclass))
FILES = sorted(CASES.glob("*/*.json"))
PLANNED = [path for path in FILES if path.parent.name != "calls"]
CHANGING = [path for path in PLANNED if operation(path.parent.name).CHANGES]
LOOKING = [path for path in PLANNED if path.parent.name == "disk_chain_info"]
JOBS = [path for path in PLANNED if path.parent.name == "block_job_info"]
KEYS = {"about", "params", "guests", "jobs", "capacities", "files", "images", "headers", "uses", "unread", "snapshots", "local", "plan", "error"}
KEYS |= {"processes", "qemu", "troubles", "bitmaps", "volume", "libvirt", "measured", "writes", "holds"}
KEYS |= {"chains", "sizes", "held", "same", "confinement", "kept"}
KEYS |= {"runner", "migratable", "secrets", "takes_holes"}
LOOKING_KEYS = {"about", "params", "guests", "files", "processes", "volumes", "pools", "local", "warnings", "findings", "shows", "near", "error"}
JOBS_KEYS = {"about", "params", "guests", "warnings", "jobs", "slept", "error"}
GUEST_KEYS = {"xml", "config", "replace", "active", "state", "persistent", "jobs", "later", "snapshots", "sizes", "qemu", "silent"}
OF_A_LAYER = {"not_in_chain", "base_is_active", "base_not_below", "base_shared", "in_use", "still_in_chain", "not_a_file", "unread", "remote_files"}
# What is wrong with an option on this host, whichever guest it is for.
OF_THE_OPTION = {"bad_dest", "too_old"}
# What is wrong with the guest as a whole names no disk.
OF_THE_GUEST = {
    "no_guest",
    "not_running",
    "no_disks",
    "name_taken",
    "orphaned_guest",
    "saved",
    "no_snapshot",
    "internal_snapshot",
    "memory",
    "running",
    "no_agent",
    "bad_method",
    "transient",
    "snapshots",
    "no_checkpoint",
    "too_old",
}


# What a plan in a case does not say.
NOTHING = {"steps": [], "fence": None, "fences": [], "spoils": [], "warnings": [], "settles": True, "after": {}}
NOTHING |= {"failing": None, "stands": None, "quiesces": None}


def name_of(path) -> str:
    return "%s/%s" % (path.parent.name, path.stem)


def outcome(path):
    """(request or None, the look or None, Plan or the error) of a case."""
    case, planner = load(path), operation(path.parent.name)
    request = seen = None
    try:
        request = planner.request(params_for(path.parent.name, case["params"]))
        seen = observed(case, request.needs, CASES)
        return request, seen, planner.plan(request, seen)
    except errors.LiveStorageError as error:
        return request, seen, error


@pytest.mark.parametrize("path", CHANGING, ids=name_of)
def test_case(path):
    case = load(path)
    assert set(case) <= KEYS and ("plan" in case) != ("error" in case)
    dummy, seen, result = outcome(path)
    if "error" in case:
        assert isinstance(result, errors.LiveStorageError), result
        assert {"kind": type(result).__name__, "code": result.code, "message": str(result)} == dict({"kind": "Refused"}, **case["error"])
    else:
        assert not isinstance(result, Exception), repr(result)
        expected = dict(NOTHING, **case["plan"])
        assert shown(result, seen, expected) == expected


def shown(plan, seen, expected) -> dict:
    """A plan in the words of a case. ``after`` and ``config`` name the disks whose chains change (or that the case asks for)."""
    steps = steps_result(plan, ())
    assert plan.before == seen.domains
    found = {
        "steps": [step["does"] for step in steps],
        "fence": None if plan.fence is None else plan.steps[plan.fence].action,
        "fences": ["%s %s" % (plan.steps[position].action, plan.steps[position].disk) for position in plan.fences],
        "spoils": list(plan.spoils),
        "warnings": list(plan.warnings),
        "settles": plan.settles,
        "after": changed(plan, "disks"),
        "failing": None if plan.failing is None else list(plan.failing),
        "stands": plan.stands,
        "quiesces": plan.quiesces,
    }
    if "config" in expected:
        found["config"] = changed(plan, "config")
    if "mirrors" in expected:
        disks = [disk for domain in plan.after for disk in domain.disks if disk.mirror is not None]
        found["mirrors"] = {disk.target: [disk.mirror.job, disk.mirror.ready] + written(disk.mirror.chain) for disk in disks}
    if "about" in expected:
        found["about"] = list(plan.about)
    if "facts" in expected:
        found["facts"] = dict(plan.facts)
    if "told" in expected:
        found["told"] = [text.splitlines() for text in plan.told]
    if "details" in expected:
        found["details"] = [plain(step.detail) for step in plan.steps]
    return found


def changed(plan, where: str) -> dict:
    pairs = [pair for one, two in zip(plan.before, plan.after) for pair in zip(getattr(one, where), getattr(two, where))]
    return {two.target: written(two.chain) for one, two in pairs if one.chain != two.chain}


def plain(detail):
    """A step's detail as JSON has it."""
    if isinstance(detail, Layer):
        return "%s (%s%s)" % (detail, detail.format, told_data(detail))
    if isinstance(detail, Chain):
        return written(detail)
    if isinstance(detail, (Record, Snapshot)):
        return {key: plain(value) for key, value in vars(detail).items() if value not in (None, "", (), False)}
    if hasattr(detail, "__dataclass_fields__"):
        return plain(dict(vars(detail)))
    if isinstance(detail, (tuple, list)):
        return [plain(one) for one in detail]
    return {key: plain(value) for key, value in detail.items()} if hasattr(detail, "items") else detail


def looked(path, monkeypatch):
    """(the warnings, the result, the error or None) of a case of disk_chain_info."""
    case, planner = load(path), operation(path.parent.name)
    warnings: list = []
    try:
        request = planner.request(params_for(path.parent.name, case["params"]))
        seen = CaseHost(monkeypatch, case, CASES).observe(request.needs)
        plan = planner.plan(request, seen)
        assert plan.before == plan.after == seen.domains and plan.steps == ()
        warnings += plan.warnings
        return warnings, planner.report(request, seen), None
    except errors.LiveStorageError as error:
        return warnings, error.facts, error


def findings_of(result: dict) -> list:
    """Every finding of a result as a list, with the disk or the image first."""
    found = [("%s/%s" % (domain["name"], disk["disk"]), disk) for domain in result["domains"] for disk in domain["disks"]]
    found += [(image["path"], image) for image in result["images"]]
    return [[where] + list(one.values()) for where, holder in found for one in holder["findings"]]


def value_at(result, path: str):
    for part in path.split("/"):
        result = result[int(part)] if isinstance(result, list) else result[part]
    return result


@pytest.mark.parametrize("path", LOOKING, ids=name_of)
def test_look(path, monkeypatch):
    case = load(path)
    assert set(case) <= LOOKING_KEYS and all(set(one) <= GUEST_KEYS for one in case["guests"])
    warnings, result, error = looked(path, monkeypatch)
    told = error and {"kind": type(error).__name__, "code": error.code, "message": str(error)}
    assert told == (dict({"kind": "Refused"}, **case["error"]) if "error" in case else None)
    assert warnings == case.get("warnings", [])
    if "domains" not in result:
        assert not {"findings", "shows"} & set(case)
        return
    json.dumps(result)  # plain data
    assert ("findings" in case) == bool(case["params"].get("validate") or case["params"].get("fail_on"))
    if "findings" in case:
        found = findings_of(result)
        assert found == case["findings"]
        assert case.get("near") not in {one[1] for one in found}
    else:
        assert not any("findings" in disk for domain in result["domains"] for disk in domain["disks"])
    shows = case.get("shows", {})
    assert {where: value_at(result, where) for where in shows} == shows


@pytest.mark.parametrize("path", JOBS, ids=name_of)
def test_jobs(path, monkeypatch):
    case = load(path)
    assert set(case) <= JOBS_KEYS and ("jobs" in case) != ("error" in case) and all(set(one) <= GUEST_KEYS for one in case["guests"])
    warnings, result, error = looked(path, monkeypatch)
    told = error and {"kind": type(error).__name__, "code": error.code, "message": str(error)}
    assert told == (dict({"kind": "Refused"}, **case["error"]) if "error" in case else None)
    assert warnings == case.get("warnings", [])
    if error is None:
        assert result == {"changed": False, "jobs": case["jobs"]}


def test_every_finding_has_a_case_and_a_near_miss():
    cases = [load(path) for path in LOOKING]
    assert {one[1] for case in cases for one in case.get("findings", ())} == set(CODES)
    assert {case["near"] for case in cases if "near" in case} == set(CODES)


@pytest.mark.parametrize("path", [path for path in LOOKING if load(path).get("findings")], ids=name_of)
def test_findings_say_where_and_what_to_do(path):
    """One sentence with the guest and its disk, or the image, and then the way out."""
    for where, code, severity, layer, expected, actual, message in load(path)["findings"]:
        assert SEVERITIES.index(severity) <= SEVERITIES.index(CODES[code])
        guest_name, dummy, disk = where.partition("/")
        named = "disk %s of guest %s" % (disk, guest_name) if guest_name else where
        assert named in message or (code == "orphaned_guest" and "Guest %s " % guest_name in message and "disk %s" % disk in message)
        assert message.startswith(("libvirt ", message[0].upper())) and message.endswith(".") and "\n" not in message and ".." not in message.replace("../", "")
        assert "None" not in message and "%" not in message
        assert any(mark in message for mark in (":", ";")) and (expected, actual) != (layer, layer)


@pytest.mark.parametrize("path", [path for path in CHANGING if "error" in load(path)], ids=name_of)
def test_messages_say_where(path):
    """A refusal of the plan names the guest, the disk, and the layer or file where one is concerned."""
    case = load(path)
    request, seen, error = outcome(path)
    message = str(error)
    assert message.endswith(".") and "\n" not in message and not message.endswith("..")
    if request is None:
        return  # an option that is wrong in itself: no guest was looked at
    selection = request.selection
    if error.code in OF_THE_OPTION and message.startswith("The option "):
        return
    if error.code == "no_guest":
        assert (selection.name or selection.uuid) in message
        return
    domains = seen.domains if seen is not None else (guest(case, CASES, case["guests"][0]),)  # None: the look itself found what is wrong
    params, domain = case["params"], domains[0]
    assert any(one.name in message for one in domains)
    if error.code in OF_THE_GUEST or domain.bare:
        return
    wanted = [params["disk"]] if "disk" in params else disks_of(params) or [disk.target for disk in domain.disks]
    named = [disk.target for disk in domain.disks if disk.target in wanted or (disk.chain.layers and disk.chain.active.path in wanted)]
    paths = [one["path"] for one in params.get("disks") or () if error.code == "double" and "path" in one]
    paths += [params["memory"]] if params.get("memory") else []
    shots = ["napshot %s of guest " % shot.name for shot in (*seen.snapshots, *domain.noted)] if seen is not None else []
    assert any(word in message for word in named + wanted + paths + shots)
    if error.code in OF_A_LAYER and (domain.active or error.code not in ("unread", "remote_files")):  # else all its layers are meant
        asked = [params.get("top"), params.get("base"), params.get("backing"), dest_of(params)]
        asked += params.get("delete_dropped", []) + [one.get("path") for one in params.get("disks") or ()]
        layers = [str(layer) for disk in domain.disks if disk.target in named for layer in disk.chain.images()]
        layers += [record.source for record in domain.records if record.source] + [path for shot in seen.snapshots for path in shot.paths]
        layers += [one["host"][0]["name"] for one in params.get("disks") or () if one.get("host")]
        assert any(word in message for word in [normal_path(word) for word in asked if word] + layers)


def dest_of(params: dict):
    dest = params.get("dest")
    return dest.get("path") if isinstance(dest, dict) else dest


def disks_of(params: dict) -> list:
    return [one if isinstance(one, str) else one["disk"] for one in params.get("disks") or ()]


def codes_raised(folder) -> dict:
    """code -> where, for every error that the core constructs. A code that is not a literal is not allowed."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                assert isinstance(node.args[0], ast.Constant), "%s:%d" % (path, node.lineno)
                found["%s %s" % (node.func.id, node.args[0].value)] = "%s:%d" % (path.name, node.lineno)
    return found


def test_every_code_of_the_core_has_a_case():
    raised = codes_raised(ROOT / "plugins" / "module_utils" / "_core")
    told = {"%s %s" % (error.get("kind", "Refused"), error["code"]) for error in (load(path).get("error") for path in FILES) if error}
    assert len(raised) > 30
    assert {code: where for code, where in raised.items() if code not in told} == {}
    assert told - set(raised) == set()


@pytest.mark.parametrize("path", sorted((CASES / "calls").glob("*.json")), ids=name_of)
def test_call(path):
    """``call`` is module.function; ``arguments`` its arguments, a layer written as {"layer": [path, format, type]}."""
    case = load(path)
    module, function = case["call"].split(".")
    call = getattr(importlib.import_module("%s.module_utils._core.%s" % (COLLECTION, module)), function)
    arguments = [layered(argument) for argument in case["arguments"]]
    if "error" not in case:
        result = call(*arguments)
        assert (plain(result) if not isinstance(result, (str, int)) else result) == case["result"]
        return
    with pytest.raises(errors.LiveStorageError) as caught:
        call(*arguments)
    assert {"kind": type(caught.value).__name__, "code": caught.value.code, "message": str(caught.value)} == dict({"kind": "Refused"}, **case["error"])


def layered(value):
    if isinstance(value, dict) and "layer" in value:
        path, format_, kind = value["layer"]
        return file_layer(path, format_) if kind == "file" else Layer(kind, (("name", path),), format_)
    return [layered(one) for one in value] if isinstance(value, list) else value
