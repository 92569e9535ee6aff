# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""cases/external_snapshot_info/*.json: whole hosts (see ``case_host``), and what the module ``shows`` of them at some paths, or its ``error``.

Whatever else a case is about: each reason in its result has to be what external_snapshot itself says on that host, word for word.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import LiveStorageError
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Selection, Snapshot
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import external_snapshot, external_snapshot_info
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops._snapshot_report import in_order, parents, tree
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.plan import DELETE
from ansible_collections.livestorage.libvirt.tests.unit.case_host import CaseHost
from ansible_collections.livestorage.libvirt.tests.unit.support import HERE, load, observed, params_for
from ansible_collections.livestorage.libvirt.tests.unit.test_cases import value_at

CASES = HERE / "cases"
FILES = sorted((CASES / "external_snapshot_info").glob("*.json"))
KEYS = {"about", "params", "guests", "files", "chains", "held", "libvirt", "processes", "local", "warnings", "shows", "error"}
GUEST_KEYS = {"xml", "config", "replace", "active", "state", "persistent", "saved", "jobs", "snapshots", "checkpoints", "noted", "sizes", "silent", "errors"}


def name_of(path) -> str:
    return path.stem


def reported(path, monkeypatch) -> tuple:
    """(the host, the warnings, the result) of a case."""
    case = load(path)
    assert set(case) <= KEYS and ("shows" in case) != ("error" in case) and all(set(one) <= GUEST_KEYS for one in case["guests"])
    host = CaseHost(monkeypatch, case, CASES)
    request = external_snapshot_info.request(params_for("external_snapshot_info", case["params"]))
    seen = host.observe(request.needs)
    plan = external_snapshot_info.plan(request, seen)
    assert plan.before == plan.after == seen.domains and plan.steps == ()
    return host, list(plan.warnings), external_snapshot_info.report(request, seen)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_case(path, monkeypatch):
    case = load(path)
    if "error" in case:
        with pytest.raises(LiveStorageError) as caught:
            reported(path, monkeypatch)
        assert {"code": caught.value.code, "message": str(caught.value)} == case["error"]
        return
    dummy, warnings, result = reported(path, monkeypatch)
    json.dumps(result)  # plain data
    assert warnings == case.get("warnings", [])
    assert {where: value_at(result, where) for where in case["shows"]} == case["shows"]


def asked(host, params: dict) -> tuple:
    """(the plan, None) of external_snapshot on that host, or (None, why it refuses)."""
    try:
        request = external_snapshot.request(params_for("external_snapshot", params))
        seen = host.observe(request.needs)
        return external_snapshot.plan(request, seen), None
    except LiveStorageError as error:
        return None, {"code": error.code, "message": str(error)}


def removed(plan, target: str) -> list:
    return [step.detail["path"] for step in plan.steps if step.action == DELETE and step.disk == target]


@pytest.mark.parametrize("path", [path for path in FILES if "shows" in load(path)], ids=name_of)
def test_it_says_what_external_snapshot_does(path, monkeypatch):
    host, dummy, result = reported(path, monkeypatch)
    merge = load(path)["params"].get("merge")
    for domain in result["domains"]:
        who = {"name": domain["name"], "state": "absent", "merge": merge}
        for shot in domain["snapshots"]:
            check(host, shot, shot["disks"], dict(who, snapshot_name=shot["name"]), shot["deletable"], shot["delete_reason"])
            dummy, reason = asked(host, {"name": domain["name"], "state": "reverted", "snapshot_name": shot["name"]})
            assert (shot["revertable"], shot["revert_reason"]) == (reason is None, reason), shot["name"]
        for one in domain["untracked"]:
            check(host, one, [one], dict(who, disks=[{"disk": one["disk"], "layer": one["layer"]}]), one["deletable"], one["reason"])


def check(host, one: dict, disks: list, params: dict, deletable: bool, told) -> None:
    """The same of one deletion, with its files and without."""
    plan, reason = asked(host, params)
    assert (deletable, told) == (reason is None, reason), one
    if reason is None:
        assert plan.changes
        plan, reason = asked(host, dict(params, delete_files=True))
        assert reason in ([disk["kept"] for disk in disks] if reason is not None else [None]), one
        assert reason is not None or {disk["disk"]: [disk["deletes"]] if disk["deletes"] else [] for disk in disks} == {
            disk["disk"]: removed(plan, disk["disk"]) for disk in disks
        }


DELETIONS = [path for path in sorted((CASES / "external_snapshot").glob("*.json")) if load(path)["params"].get("state") in ("absent", "reverted")]
OWN = {"name", "uuid", "state", "snapshot_name", "merge", "delete_files", "uri"}  # what a report can be asked about
NAMED = [path for path in DELETIONS if load(path)["params"].get("snapshot_name") and set(load(path)["params"]) <= OWN]


@pytest.mark.parametrize("path", NAMED, ids=name_of)
def test_it_says_what_the_cases_of_external_snapshot_say(path):
    """The cases that the planner itself is tested with, seen from here."""
    case = load(path)
    params = case["params"]
    request = external_snapshot_info.request(params_for("external_snapshot_info", {key: params[key] for key in ("snapshot_name", "merge") if key in params}))
    name = params_for("external_snapshot", params)["name"]
    request = replace(request, selection=Selection(name, params.get("uuid")) if params.get("uuid") is None else Selection(uuid=params["uuid"]))
    found = [shot for domain in external_snapshot_info.report(request, observed(case, request.needs, CASES))["domains"] for shot in domain["snapshots"]]
    error = case.get("error")
    told = None if error is None else {key: error[key] for key in ("code", "message")}
    if not found:  # there is no such snapshot, or no such guest
        assert (error is not None and error["code"] in ("no_snapshot", "no_guest")) or case["plan"].get("steps", []) == []
    elif params["state"] == "reverted":
        assert params.get("delete_files") or found[0]["revert_reason"] == told
    else:
        kept = [disk["kept"] for disk in found[0]["disks"]] if params.get("delete_files") else []
        assert told in [found[0]["delete_reason"], *(kept if found[0]["deletable"] else [])]


def test_there_are_many_of_these():
    assert len(NAMED) > 40


def test_a_guest_that_kept_changing_is_named(monkeypatch):
    case = load(CASES / "external_snapshot_info" / "two.json")
    request = external_snapshot_info.request(params_for("external_snapshot_info", {}))
    seen = CaseHost(monkeypatch, case, CASES).observe(request.needs)
    warnings = external_snapshot_info.plan(request, replace(seen, moved=(seen.domains[0].uuid,))).warnings
    assert warnings == ("Guest vm1 changed while it was looked at: what is returned of it may be outdated.",)


def shots(*pairs) -> tuple:
    return tuple(Snapshot(name, parent=parent, created=1) for name, parent in pairs)


def test_a_tree_that_is_too_deep_is_cut():
    """Each snapshot is in the list nevertheless."""
    many = shots(("0", None), *((str(number), str(number - 1)) for number in range(1, 70)), ("beside", "61"))
    above = parents(many)
    found = in_order(many, above)
    assert len(found) == 71 and [one.name for one in found[:3]] == ["0", "1", "2"]
    node, depth = tree(found, above)[0], 1
    while node["children"]:
        assert [one["name"] for one in node["children"]] == ([str(depth), "beside"] if depth == 62 else [str(depth)])
        node, depth = node["children"][0], depth + 1
    assert (node["children"], depth) == (None, 64)


def test_a_circle_of_outdated_notes_ends():
    one = Snapshot("one", (("vda", "/b"),), (("vda", "/a"),), tracked=False)
    two = Snapshot("two", (("vda", "/a"),), (("vda", "/b"),), tracked=False)
    above = parents((one, two))
    assert above == {"one": None, "two": "one"}
    assert [shot.name for shot in in_order((two, one), above)] == ["one", "two"]


def test_siblings_are_in_the_order_of_their_time():
    many = tuple(Snapshot(name, created=created) for name, created in (("late", 9), ("unknown", None), ("b", 3), ("a", 3)))
    assert [one.name for one in in_order(many, parents(many))] == ["a", "b", "late", "unknown"]
