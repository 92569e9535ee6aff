# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who may import whom, and what no file under plugins/ may do: read from the syntax trees, so that nothing slips by."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ansible_collections.livestorage.libvirt.tests.unit.support import ROOT

HOME = "ansible_collections.livestorage.libvirt.plugins."
PURE = {"__future__", "copy", "dataclasses", "fractions", "json", "posixpath", "re", "typing"}
CONTROLLER = {"__future__", "time", "os"}  # on the controller nothing is read and nothing is decided
LONGEST_FUNCTION, LONGEST_CORE_FILE = 60, 300
# The one place that reads the outside's XML, the one that reads libvirt's, and the one that may end the module.
XML, LIBVIRT, PIPELINE = "module_utils/_core/domain_xml.py", "module_utils/_edge/libvirt_host.py", "module_utils/_pipeline.py"


def layer_of(path: str) -> str:
    for start, name in (("module_utils/_core/", "core"), ("module_utils/_edge/", "edge"), (PIPELINE, "pipeline"), ("module_utils/_arguments.py", "arguments")):
        if path.startswith(start):
            return name
    return path.split("/")[0]


def imports(tree: ast.AST, path: str):
    """(line, module) of every import; what is ours as a path below plugins/, such as module_utils/_core/chain."""
    package = path.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, ours(alias.name)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (start, node.module) if part)
            for alias in node.names:
                yield node.lineno, ours(base + "." + alias.name, local=bool(node.level))


def ours(name: str, local: bool = False) -> str:
    if name.startswith(HOME):
        return name[len(HOME) :].replace(".", "/")
    return name.replace(".", "/") if local else name


def allowed(path: str, layer: str, name: str) -> bool:
    """May this file import that? Names of ours have slashes in them, with the imported object as the last part."""
    core, edge, planners = (name.startswith("module_utils/" + part) for part in ("_core/", "_edge/", "_core/ops/"))
    outside = name.split(".")[0]
    if name.startswith(("__future__.", "typing.")):
        return True
    if layer == "core":
        return core or (outside in PURE and "/" not in name) or (path == XML and name in ("lxml.etree", "lxml"))
    if layer == "edge":
        foreign = {"ansible", "lxml"} | ({"libvirt"} if path != LIBVIRT else set())
        return (core and not planners) or edge or ("/" not in name and outside not in foreign)
    if layer == "pipeline":
        return (core and not planners) or edge or ("/" not in name and outside not in ("libvirt", "lxml"))
    if layer == "arguments":
        return name.startswith("ansible.")
    if layer == "modules":
        stem = path.split("/")[-1][: -len(".py")]
        return name in ("ansible.module_utils.basic.AnsibleModule", "module_utils/_arguments", "module_utils/_pipeline", "module_utils/_core/ops/" + stem)
    if layer == "plugin_utils":
        return name.startswith("ansible.") or ("/" not in name and outside in CONTROLLER)
    if layer == "action":
        return name.startswith("plugin_utils/")
    return layer == "filter" and name.startswith("ansible.errors.")


def complaints_about(path: str, text: str) -> list:
    """Every complaint about one file, as "path:line: what"."""
    try:
        tree = ast.parse(text, feature_version=(3, 9))
    except SyntaxError as error:
        return ["%s:%s: not Python 3.9" % (path, error.lineno)]
    layer = layer_of(path)
    found = [(line, "imports " + name) for line, name in imports(tree, path) if not allowed(path, layer, name)]
    for node in ast.walk(tree):
        found += [(node.lineno, what) for what in faults(node, layer)]
    if layer == "core" and len(text.splitlines()) > LONGEST_CORE_FILE:
        found.append((1, "is longer than %d lines" % LONGEST_CORE_FILE))
    return ["%s:%d: %s" % (path, line, what) for line, what in sorted(found)]


def faults(node: ast.AST, layer: str):
    """What a syntax node does wrong in that layer."""
    if isinstance(node, ast.Assert):
        yield "asserts"
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
        yield "%s is longer than %d lines" % (node.name, LONGEST_FUNCTION)
    if isinstance(node, ast.Call):
        if any(keyword.arg in ("slots", "kw_only") for keyword in node.keywords):
            yield "uses slots or kw_only"
        if isinstance(node.func, ast.Name) and node.func.id in ("open", "print", "exec", "eval", "__import__") and layer == "core":
            yield "calls " + node.func.id
    if layer != "pipeline":
        if isinstance(node, ast.ExceptHandler) and broad(node.type):
            yield "catches broadly"
        if isinstance(node, ast.Attribute) and node.attr in ("fail_json", "exit_json", "check_mode")[: 2 if layer == "plugin_utils" else 3]:
            yield "uses " + node.attr


def broad(kind) -> bool:
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return kind is None or any(isinstance(one, ast.Name) and one.id in ("Exception", "BaseException") for one in kinds)


def complaints(plugins: Path) -> list:
    """Every complaint about a tree of plugins."""
    files = {path.relative_to(plugins).as_posix(): path.read_text(encoding="utf-8") for path in sorted(plugins.rglob("*.py"))}
    found = [one for path, text in files.items() for one in complaints_about(path, text)]
    # The controller asks for its own task: it has nothing to watch in check mode.
    hosts = [text for path, text in files.items() if layer_of(path) != "plugin_utils"]
    reads = [node for text in hosts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute) and node.attr == "check_mode"]
    return found + (["check_mode is read in %d places, not in one" % len(reads)] if len(reads) != 1 else [])


def test_the_collection():
    assert complaints(ROOT / "plugins") == []


def test_the_walk_sees_the_whole_collection():
    layers = {layer_of(path.relative_to(ROOT / "plugins").as_posix()) for path in (ROOT / "plugins").rglob("*.py")}
    assert layers == {"core", "edge", "pipeline", "arguments", "modules", "filter", "doc_fragments", "action", "plugin_utils"}


C, OPS, E, M = "module_utils/_core/x.py", "module_utils/_core/ops/x.py", "module_utils/_edge/x.py", "modules/x.py"


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        (C, "import os", "imports os"),
        (C, "import os.path", "imports os.path"),
        (C, "def f():\n    from time import sleep", "imports time.sleep"),
        (C, "import subprocess, json", "imports subprocess"),
        (C, "from datetime import datetime", "imports datetime.datetime"),
        (C, "import random", "imports random"),
        (C, "from lxml import etree", "imports lxml.etree"),
        (C, "import libvirt", "imports libvirt"),
        (C, "from ansible.errors import AnsibleError", "imports ansible.errors.AnsibleError"),
        (C, "from .._edge import host", "imports module_utils/_edge/host"),
        (C, "from .. import _pipeline", "imports module_utils/_pipeline"),
        (OPS, "from ..._edge.host import Host", "imports module_utils/_edge/host/Host"),
        (OPS, "from %smodule_utils._edge import host" % HOME, "imports module_utils/_edge/host"),
        (C, "text = open('/etc/passwd').read()", "calls open"),
        (C, "x = 1\n" * 301, "is longer than 300 lines"),
        (E, "from .._core.ops import block_rebase", "imports module_utils/_core/ops/block_rebase"),
        (E, "from .._core.ops.block_rebase import plan", "imports module_utils/_core/ops/block_rebase/plan"),
        (E, "import libvirt", "imports libvirt"),
        (E, "from lxml import etree", "imports lxml.etree"),
        (E, "from ansible.module_utils.basic import AnsibleModule", "imports ansible.module_utils.basic.AnsibleModule"),
        (E, "from .. import _pipeline", "imports module_utils/_pipeline"),
        (E, "def f(module):\n    module.fail_json(msg='x')", "uses fail_json"),
        (E, "def f(module):\n    return module.check_mode", "uses check_mode"),
        (E, "try:\n    x = 1\nexcept Exception:\n    pass", "catches broadly"),
        (E, "try:\n    x = 1\nexcept (OSError, BaseException):\n    pass", "catches broadly"),
        (E, "try:\n    x = 1\nexcept:\n    pass", "catches broadly"),
        (PIPELINE, "import libvirt", "imports libvirt"),
        (PIPELINE, "from ._core.ops import block_rebase", "imports module_utils/_core/ops/block_rebase"),
        (M, "import os", "imports os"),
        (M, "from %smodule_utils._core import chain" % HOME, "imports module_utils/_core/chain"),
        (M, "from %smodule_utils._core.ops import y" % HOME, "imports module_utils/_core/ops/y"),
        (M, "from %smodule_utils._edge.host import Host" % HOME, "imports module_utils/_edge/host/Host"),
        (M, "def main(module):\n    module.exit_json()", "uses exit_json"),
        ("filter/x.py", "from %smodule_utils._core import chain" % HOME, "imports module_utils/_core/chain"),
        ("doc_fragments/x.py", "import os", "imports os"),
        ("action/x.py", "import time", "imports time"),
        ("action/x.py", "from ansible.plugins.action import ActionBase", "imports ansible.plugins.action.ActionBase"),
        ("action/x.py", "from %smodule_utils._core import plan" % HOME, "imports module_utils/_core/plan"),
        ("action/x.py", "def run(self):\n    return self._task.check_mode", "uses check_mode"),
        ("plugin_utils/x.py", "import subprocess", "imports subprocess"),
        ("plugin_utils/x.py", "from %smodule_utils._edge import host" % HOME, "imports module_utils/_edge/host"),
        ("plugin_utils/x.py", "from %smodule_utils._core.jobs import READY" % HOME, "imports module_utils/_core/jobs/READY"),
        (C, "from . import domain_xml\nfrom lxml import etree", "imports lxml.etree"),
        (C, "assert True", "asserts"),
        (E, "def f():\n" + "    x = 1\n" * 60, "f is longer than 60 lines"),
        (C, "match x:\n    case 1:\n        pass", "not Python 3.9"),
        (C, "with (a as b, c as d):\n    pass\ntry:\n    pass\nexcept* OSError:\n    pass", "not Python 3.9"),
        (C, "from dataclasses import dataclass\n@dataclass(frozen=True, slots=True)\nclass A:\n    pass", "uses slots or kw_only"),
        (C, "from dataclasses import field\nx = field(kw_only=True)", "uses slots or kw_only"),
    ],
)
def test_the_walk_finds_what_is_planted(tmp_path, path, text, complaint):
    planted = tmp_path / path
    planted.parent.mkdir(parents=True)
    planted.write_text(text)
    (tmp_path / "modules").mkdir(exist_ok=True)
    # The rest of this little collection is as it should be.
    (tmp_path / "modules" / "good.py").write_text("from %smodule_utils import _pipeline\nfrom %smodule_utils._core.ops import good\n" % (HOME, HOME))
    reader = tmp_path / "module_utils" / "_good.py" if path == PIPELINE else tmp_path / PIPELINE
    reader.parent.mkdir(parents=True, exist_ok=True)
    reader.write_text("" if path == PIPELINE else "def run(module):\n    return module.check_mode\n")
    found = [one.split(": ", 1)[1] for one in complaints(tmp_path) if one.startswith(path + ":")]
    assert found == [complaint]


def test_a_second_reader_of_check_mode_is_found(tmp_path):
    path = tmp_path / PIPELINE
    path.parent.mkdir(parents=True)
    for times in (0, 1, 2):
        path.write_text("def run(module):\n    return [%s]\n" % ", ".join(["module.check_mode"] * times))
        assert complaints(tmp_path) == ([] if times == 1 else ["check_mode is read in %d places, not in one" % times])
