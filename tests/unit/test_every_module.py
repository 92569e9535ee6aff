# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What holds for every module of the collection, whichever it is."""

from __future__ import annotations

import ast
import importlib
import re

import pytest
import yaml

from ansible_collections.livestorage.libvirt.tests.unit.support import COLLECTION, MODULES, ROOT, declaration, operation

COMMON = {"domains", "steps", "spoils", "job", "rolled_back", "code", "diff"}
TEXTS = ("DOCUMENTATION", "EXAMPLES", "RETURN")
CHANGING = [name for name in MODULES if operation(name).CHANGES]
# How a description says what happens without an option that has no default.
ABSENCE = re.compile(r"[Bb]y default|[Ww]ithout|left out|leaving it out|leave it out|[Ee]xactly one of|[Nn]eeded if|\bOnly\b")
SPEC_KEYS = ("type", "elements", "choices", "default", "required", "aliases")


def text(name: str, which: str):
    """DOCUMENTATION, EXAMPLES or RETURN, parsed: a literal that is found without running the module."""
    tree = ast.parse((ROOT / "plugins" / "modules" / (name + ".py")).read_text(encoding="utf-8"))
    found = [node.value.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == which]
    assert len(found) == 1 and isinstance(found[0], str)
    return yaml.safe_load(found[0])


def fragment(name: str) -> dict:
    """A doc fragment by its full name, as in livestorage.libvirt._disk.guest."""
    stem, dummy, part = name.split(".", 2)[2].partition(".")
    found = importlib.import_module("%s.doc_fragments.%s" % (COLLECTION, stem)).ModuleDocFragment
    return yaml.safe_load(getattr(found, (part or "documentation").upper()))


def documented(name: str) -> dict:
    """The options of a module with those of its fragments. What is said twice is an error."""
    document = text(name, "DOCUMENTATION")
    options = dict(document.get("options") or {})
    for one in document["extends_documentation_fragment"]:
        more = fragment(one).get("options") or {}
        assert not set(more) & set(options)
        options.update(more)
    return options


def attributes(name: str) -> dict:
    """The attributes of a module over those of its fragments, the last fragment lowest."""
    document = text(name, "DOCUMENTATION")
    found: dict = {}
    for one in [fragment(one) for one in document["extends_documentation_fragment"]] + [document]:
        for attribute, facts in (one.get("attributes") or {}).items():
            found[attribute] = dict(found.get(attribute, {}), **facts)
    return found


def every_option(options: dict, prefix: str = ""):
    for name, option in options.items():
        yield prefix + name, option
        yield from every_option(option.get("suboptions") or {}, prefix + name + ".")


def test_there_are_modules():
    assert len(MODULES) >= 4 and CHANGING


@pytest.mark.parametrize("name", MODULES)
def test_texts(name):
    document, examples, result = (text(name, which) for which in TEXTS)
    assert document["module"] == name and document["short_description"] and document["version_added"] and document["author"]
    found = attributes(name)
    assert set(found) == {"action_group", "check_mode", "diff_mode", "idempotent"}
    assert all(facts["description"] and facts["support"] for facts in found.values())
    assert result and all(value["description"] and value["returned"] and value["type"] for value in result.values())
    assert examples


@pytest.mark.parametrize("name", MODULES)
def test_options_are_documented(name):
    for option, facts in every_option(documented(name)):
        words = " ".join([facts["description"]] if isinstance(facts["description"], str) else facts["description"])
        assert words and facts["version_added"] and facts["type"], option
        assert ("default" in facts) + bool(facts.get("required")) + bool(ABSENCE.search(words)) >= 1, option
        assert not ("default" in facts and facts.get("required")), option


@pytest.mark.parametrize("name", MODULES)
def test_the_spec_is_what_is_documented(name):
    compare(declaration(name)["argument_spec"], documented(name))


def compare(spec: dict, options: dict) -> None:
    assert set(spec) == set(options)
    for name, option in spec.items():
        told = options[name]
        ours = {key: option.get(key) for key in SPEC_KEYS}
        theirs = {key: told.get(key) for key in SPEC_KEYS}
        for one in (ours, theirs):
            one["required"] = bool(one["required"])
            one["aliases"] = sorted(one["aliases"] or [])
        assert ours == theirs, name
        compare(option.get("options") or {}, told.get("suboptions") or {})


@pytest.mark.parametrize("name", MODULES)
def test_declaration(name):
    declared = declaration(name)
    assert declared["supports_check_mode"] is True
    rules = [declared.get("mutually_exclusive", [])] + [declared.get("required_one_of", [])]
    assert {option for rule in rules for group in rule for option in group} <= set(declared["argument_spec"])
    assert any({"name", "uuid"} <= set(group) for group in declared["mutually_exclusive"])
    image = [one for one in ("images", "path") if name in CHANGING and operation(name).IMAGES and one in declared["argument_spec"]]
    needed = ("name", "uuid", *image)
    assert (needed in declared.get("required_one_of", [])) == (name in CHANGING)
    assert declared["argument_spec"]["uri"]["fallback"][1] == ["LIBVIRT_DEFAULT_URI"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_tasks_with_full_names(name):
    options = documented(name)
    aliases = {alias for option in options.values() for alias in option.get("aliases", [])}
    used = [task for task in text(name, "EXAMPLES") if "livestorage.libvirt." + name in task]
    assert used
    for task in text(name, "EXAMPLES"):
        actions = [key for key in task if "." in key]
        assert task["name"] and len(actions) == 1 and actions[0].count(".") >= 2, task
        assert set(task) <= {"name", "register", "when", "delegate_to", "loop", "check_mode", "diff", "vars"} | set(actions), task
    for task in used:
        assert set(task["livestorage.libvirt." + name] or {}) <= set(options) | aliases


def test_the_action_group_names_every_module():
    runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text(encoding="utf-8"))
    assert sorted(runtime["action_groups"]["all"]) == MODULES
    assert all("livestorage.libvirt._attributes.actiongroup" in text(name, "DOCUMENTATION")["extends_documentation_fragment"] for name in MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_attributes_say_what_the_planner_does(name):
    fragments = text(name, "DOCUMENTATION")["extends_documentation_fragment"]
    assert ("livestorage.libvirt._attributes.changes" in fragments) == (name in CHANGING)
    assert ("livestorage.libvirt._attributes.info" in fragments) == (name not in CHANGING) == name.endswith("_info")


@pytest.mark.parametrize("name", CHANGING)
def test_common_results_have_one_text(name):
    """RETURN takes no fragments before ansible-core 2.20, so the same text stands in every module, but for a code's sample."""
    one, other = text(CHANGING[0], "RETURN"), text(name, "RETURN")
    assert set(one) >= COMMON
    for key in set(one) & set(other) - {"code"}:
        assert other[key] == one[key], key
    more = {"images": operation(name).IMAGES, "disk_results": operation(name).PER_DISK, "quiesced": operation(name).PER_DISK}
    assert set(other) == COMMON | {key for key, has in more.items() if has} | set(getattr(operation(name), "MORE", {}))


def returned(name: str, which: str) -> dict:
    """What a module returns under a key: every key with its type, in one flat list."""
    found = {which: text(name, "RETURN")[which]}
    return {key.partition(".")[2]: (facts["type"], facts.get("elements")) for key, facts in every_key(found)}


def every_key(values: dict, prefix: str = ""):
    for name, facts in values.items():
        yield prefix + name, facts
        yield from every_key(facts.get("contains") or {}, prefix + name + ".")


@pytest.mark.parametrize(("name", "which", "same"), [("disk_chain_info", "domains", "domains"), ("block_job_info", "jobs", "job")])
def test_an_info_module_returns_all_that_the_others_do(name, which, same):
    """And of the same types: what reads the one result can read the other."""
    assert name not in CHANGING
    found = returned(name, which)
    for other in CHANGING:
        base = {key: kind for key, kind in returned(other, same).items() if key}
        assert len(base) > 5
        assert {key: found.get(key) for key in base} == base


@pytest.mark.parametrize("name", MODULES)
def test_it_has_an_integration_target(name):
    target = ROOT / "tests" / "integration" / "targets" / name
    assert (target / "tasks" / "main.yml").is_file() and (target / "aliases").is_file()


@pytest.mark.parametrize("name", MODULES)
def test_it_has_cases(name):
    assert list((ROOT / "tests" / "unit" / "cases" / name).glob("*.json"))
