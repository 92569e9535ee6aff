# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""docs/schema/external_snapshot_info.json against the module's RETURN (by the rules of ``test_schema``), and against what the module returns."""

from __future__ import annotations

import copy
import importlib
import re

import jsonschema
import pytest
import yaml

from ansible_collections.livestorage.libvirt.tests.unit import test_schema as rules
from ansible_collections.livestorage.libvirt.tests.unit.support import COLLECTION, ROOT, load
from ansible_collections.livestorage.libvirt.tests.unit.test_snapshot_info import FILES, name_of, reported

SCHEMA = load(ROOT / "docs" / "schema" / "external_snapshot_info.json")
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
RETURN = yaml.safe_load(importlib.import_module(COLLECTION + ".modules.external_snapshot_info").RETURN)
SHOWN = [path for path in FILES if "shows" in load(path)]


def test_it_has_the_keys_of_return(monkeypatch):
    monkeypatch.setattr(rules, "SCHEMA", SCHEMA)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    ours = dict(SCHEMA, properties={key: one for key, one in SCHEMA["properties"].items() if key not in rules.ANSIBLE})
    assert rules.flat(rules.members(ours, ())) == rules.flat({key: rules.told(one, key) for key, one in RETURN.items()})
    assert set(SCHEMA["properties"]) == set(RETURN) | rules.ANSIBLE


def test_nothing_else_is_let_through():
    found = list(rules.objects(SCHEMA))
    assert len(found) > 10
    for one in found:
        assert one["additionalProperties"] is False and set(one["required"]) <= set(one["properties"])


@pytest.mark.parametrize("path", SHOWN, ids=name_of)
def test_a_result_is_as_it_says(path, monkeypatch):
    dummy, warnings, result = reported(path, monkeypatch)
    assert [error.message for error in VALIDATOR.iter_errors(dict(result, warnings=warnings))] == []


# What an untracked overlay has like a disk of a snapshot, and both images of either.
ALIKE = re.compile(r"^domains\.(?:snapshots\.disks|untracked)\.(?:(?:overlay|base)(?=\.)|(merge|deletes|kept|deletable|reason))")


def test_every_key_has_been_seen_and_null_where_it_may_be(monkeypatch):
    """Nothing is allowed that no result needs, but for a tree that is too deep (see ``test_snapshot_info``)."""
    shape, seen = {key: rules.told(one, key) for key, one in RETURN.items() if key != "code"}, {}
    for path in SHOWN:
        with monkeypatch.context() as patched:
            rules.seen_types(shape, reported(path, patched)[2], seen)
    seen["domains.tree.children"].add("null")
    found, expected = {}, {}
    for path, one in rules.flat(shape).items():
        found.setdefault(ALIKE.sub(r"disk.\1", path), set()).update(seen[path])
        expected.setdefault(ALIKE.sub(r"disk.\1", path), {"value"}).update({"null"} if one["null"] else set())
    assert found == expected


def test_what_is_wrong_is_refused(monkeypatch):
    dummy, dummy, result = reported(next(path for path in SHOWN if path.stem == "two"), monkeypatch)
    places = [(path, one) for path, one in rules.everything(result) if path]
    assert len(places) > 50
    for path, one in places:
        wrong = copy.deepcopy(result)
        holder = wrong
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = [1.5] if not isinstance(one, list) else {"a": 1.5}
        assert not VALIDATOR.is_valid(wrong), path
