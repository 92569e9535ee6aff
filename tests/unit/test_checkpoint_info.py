# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""cases/checkpoint_info/*.json: a guest with ``kept`` (see ``support``), and what the module ``shows`` of it at some paths, or its ``error``."""

from __future__ import annotations

import json

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import LiveStorageError
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import checkpoint_info
from ansible_collections.livestorage.libvirt.tests.unit.support import HERE, load, observed, params_for
from ansible_collections.livestorage.libvirt.tests.unit.test_cases import value_at
from ansible_collections.livestorage.libvirt.tests.unit.test_every_module import text

CASES = HERE / "cases"
FILES = sorted((CASES / "checkpoint_info").glob("*.json"))
KEYS = {"about", "params", "guests", "headers", "kept", "jobs", "shows", "error"}
TYPES = {"str": str, "int": int, "bool": bool, "list": list, "dict": dict}


def reported(path) -> dict:
    case = load(path)
    assert set(case) <= KEYS and ("shows" in case) != ("error" in case)
    request = checkpoint_info.request(params_for("checkpoint_info", case["params"]))
    seen = observed(case, request.needs, CASES)
    plan = checkpoint_info.plan(request, seen)
    assert plan.before == plan.after == seen.domains and plan.steps == ()
    return checkpoint_info.report(request, seen)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_case(path):
    case = load(path)
    if "error" in case:
        with pytest.raises(LiveStorageError) as caught:
            reported(path)
        assert {"code": caught.value.code, "message": str(caught.value)} == case["error"]
        return
    result = reported(path)
    json.dumps(result)  # plain data
    assert {where: value_at(result, where) for where in case["shows"]} == case["shows"]


@pytest.mark.parametrize("path", [path for path in FILES if "shows" in load(path)], ids=lambda path: path.stem)
def test_what_is_returned_is_what_is_documented(path):
    compare(reported(path)["domains"], text("checkpoint_info", "RETURN")["domains"])


def compare(value, told: dict) -> None:
    if value is None:
        return
    assert isinstance(value, TYPES[told["type"]])
    for one in value if isinstance(value, list) else [value] if isinstance(value, dict) else []:
        if "contains" in told:
            assert set(one) == set(told["contains"])
            for key, inner in told["contains"].items():
                compare(one[key], inner)
