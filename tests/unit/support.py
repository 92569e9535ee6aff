# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What several tests share: where things are, the modules' argument specs, guests from XML, and how a chain is written."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import parse_domain, parse_snapshot
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import File, Image, Job, Observed, Snapshot, Use

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COLLECTION = "ansible_collections.livestorage.libvirt.plugins"
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
SCHEMAS = Path("/usr/share/libvirt/schemas")


class _Declared(Exception):
    """Carries a module's declaration out of its main()."""


def declaration(name: str) -> dict:
    """The keyword arguments that a module gives to AnsibleModule."""
    module = importlib.import_module("%s.modules.%s" % (COLLECTION, name))

    def declare(**arguments):
        raise _Declared(arguments)

    original, module.AnsibleModule = module.AnsibleModule, declare
    try:
        module.main()
    except _Declared as declared:
        return declared.args[0]
    finally:
        module.AnsibleModule = original
    raise TypeError("%s never constructed its AnsibleModule" % name)


def operation(name: str):
    """The planner of that name."""
    return importlib.import_module("%s.module_utils._core.ops.%s" % (COLLECTION, name))


def filled(params: dict, spec: dict) -> dict:
    """Parameters with the defaults that AnsibleModule adds, suboptions included. An option that does not exist is a KeyError."""
    unknown = set(params) - set(spec)
    if unknown:
        raise KeyError("no such options: %s" % sorted(unknown))
    return {name: _filled(params.get(name, option.get("default")), option) for name, option in spec.items()}


def _filled(value, option: dict):
    if value is None or "options" not in option:
        return value
    return [filled(one, option["options"]) for one in value]


def params_for(name: str, params: dict) -> dict:
    """The full parameters of a module, for a guest named vm1 unless a case says otherwise."""
    spec = declaration(name)["argument_spec"]
    named = {"name", "uuid", "names", "filter", "state"} & set(params) or name == "disk_chain_info"
    return filled(params if named else dict(params, name="vm1"), spec)


def written(chain) -> list:
    """A chain for reading: each layer as "index place (format)", and what is known of the end."""
    lines = ["%s %s (%s)" % ("-" if layer.index is None else layer.index, layer, layer.format) for layer in chain.layers]
    return lines + [{True: "end", None: "unknown"}[chain.ends]] if lines else []


def guest(case: dict, folder: Path, facts: dict):
    """One guest of a case: ``xml`` and ``config`` name files, ``replace`` changes their text, ``job`` is by disk."""

    def text(name):
        found = (folder / name).read_text(encoding="utf-8")
        for old, new in facts.get("replace", {}).items():
            if old not in found and old not in (folder / facts["xml"]).read_text(encoding="utf-8"):
                raise ValueError("%s is not in %s" % (old, name))
            found = found.replace(old, new)
        return found

    config = facts.get("config")
    found = parse_domain(
        text(facts["xml"]), facts.get("active", True), facts.get("state", "running"), facts.get("persistent", True), text(config) if config else None
    )
    jobs, sizes = case.get("jobs", {}), case.get("capacities", {})
    unknown = (set(jobs) | set(sizes)) - {disk.target for disk in found.disks}
    if unknown:
        raise ValueError("no such disks: %s" % sorted(unknown))
    disks = tuple(replace(disk, job=Job(**jobs[disk.target]) if disk.target in jobs else None, capacity=sizes.get(disk.target)) for disk in found.disks)
    return replace(found, disks=disks)


def observed(case: dict, needs, folder: Path) -> Observed:
    """What a host would show of a case: only that which ``needs`` names."""
    domains = tuple(guest(case, folder, facts) for facts in case["guests"])
    local = case.get("local", True)
    paths = list(needs.paths)
    if needs.paths_of is not None and domains:
        paths += needs.paths_of(domains[0])
    images = {path: Image(path, format, **case["images"][path]) for path, format in needs.images if path in case.get("images", {})}
    snapshots = tuple(Snapshot(one["name"], tuple(map(tuple, one["files"]))) for one in case.get("snapshots", ()))
    if not needs.capacities:
        domains = tuple(replace(one, disks=tuple(replace(disk, capacity=None) for disk in one.disks)) for one in domains)
    return Observed(
        domains,
        files=_files(case, domains, paths) if local else {},
        images=images if local else {},
        uses=_uses(case, domains) if needs.uses else (),
        unread=tuple(case.get("unread", ())) if needs.uses else (),
        snapshots=snapshots if needs.snapshots else (),
        local=local,
    )


def _files(case: dict, domains, paths) -> dict:
    """A layer of a guest is a file that exists, and any other path is free, unless the case says otherwise."""
    layers = {layer.path for domain in domains for disk in domain.disks for layer in disk.chain.layers}
    found = {}
    for path in paths:
        facts = dict({"exists": path in layers, "parent": "dir", "real": path}, **case.get("files", {}).get(path, {}))
        if facts["exists"]:
            facts = dict({"kind": "file", "size": 4096, "device": 1, "inode": 100 + len(found)}, **facts)
        found[path] = File(path, **facts)
    return found


def _uses(case: dict, domains) -> tuple:
    own = tuple(
        Use(place, domain.name, domain.uuid, disk.target)
        for domain in domains
        for disk in domain.disks + domain.config
        for chain in [disk.chain] + ([disk.mirror.chain] if disk.mirror else [])
        for place in chain.places
    )
    others = tuple(Use(("path", path), name, "uuid of " + name, disk) for name, disk, path in case.get("uses", ()))
    return tuple(dict.fromkeys(own + others))


def staged(folder: Path, stage: str):
    """A guest as it was filmed at one stage of a story, its jobs and its snapshots."""
    inactive, job, shot = (folder / ("%s.%s" % (stage, kind)) for kind in ("inactive.xml", "job", "snapshot.xml"))
    running = inactive.exists()
    domain = parse_domain(
        (folder / (stage + ".xml")).read_text(encoding="utf-8"),
        running,
        "running" if running else "shutdown",
        True,
        inactive.read_text(encoding="utf-8") if running else None,
    )
    if job.exists():
        found = _job(job.read_text(encoding="utf-8"))
        domain = replace(domain, disks=tuple(_with_job(disk, found) for disk in domain.disks))
    return domain, (parse_snapshot(shot.read_text(encoding="utf-8")),) if shot.exists() else ()


def _with_job(disk, job: Job):
    if disk.target != "vda":
        return disk
    return replace(disk, job=replace(job, ready=disk.mirror is not None and disk.mirror.ready == "yes"))


def _job(text: str) -> Job:
    """The lines of ``virsh blockjob --raw``."""
    facts = dict(line.strip().split("=", 1) for line in text.splitlines() if line.strip())
    words = {"Block Pull": "pull", "Block Copy": "copy", "Block Commit": "commit", "Active Block Commit": "active-commit"}
    return Job(words[facts["type"]], int(facts["cur"]), int(facts["end"]), int(facts["bandwidth"]))


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
