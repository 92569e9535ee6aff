# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What several tests share: where things are, the modules' argument specs, guests from XML, and how a chain is written."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import mentioned, parse_domain, parse_snapshot
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.headers import below, wanted
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import NOT_ASKED, File, Image, Node, Process, QemuView, Versions, Volume
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Job, Observed, Snapshot, Use
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.pivot import doubtful
from ansible_collections.livestorage.libvirt.tests.unit.storage import GiB, Storage

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
    return filled(value, option["options"]) if option["type"] == "dict" else [filled(one, option["options"]) for one in value]


def params_for(name: str, params: dict) -> dict:
    """The full parameters of a module, for a guest named vm1 unless a case says otherwise."""
    spec = declaration(name)["argument_spec"]
    named = {"name", "uuid"} & set(params) or not operation(name).CHANGES
    return filled(params if named else dict(params, name="vm1"), spec)


def written(chain) -> list:
    """A chain for reading: each layer as "index place (format)", and what is known of the end."""
    lines = ["%s %s (%s)" % ("-" if layer.index is None else layer.index, layer, layer.format) for layer in chain.layers]
    return lines + [{True: "end", None: "unknown"}[chain.ends]] if lines else []


def texts(folder, facts: dict) -> tuple:
    """The live and the inactive XML of a guest of a case, in both of which ``replace`` changes what it finds."""
    both = [(folder / facts[name]).read_text(encoding="utf-8") if facts.get(name) else None for name in ("xml", "config")]
    for old, new in facts.get("replace", {}).items():
        if not any(old in text for text in both if text):
            raise ValueError("%s is not in %s" % (old, facts["xml"]))
        both = [text and text.replace(old, new) for text in both]
    return tuple(both)


def guest(case: dict, folder: Path, facts: dict):
    """One guest of a case: ``xml`` and ``config`` name files, ``replace`` changes their text, ``job`` is by disk."""

    xml, config = texts(folder, facts)
    found = parse_domain(xml, facts.get("active", True), facts.get("state", "running"), facts.get("persistent", True), config)
    found = replace(found, mentioned=mentioned(xml))
    jobs, sizes = case.get("jobs", {}), case.get("capacities", {})
    unknown = (set(jobs) | set(sizes)) - {disk.target for disk in found.disks}
    if unknown:
        raise ValueError("no such disks: %s" % sorted(unknown))
    disks = (replace(disk, job=_running(disk, jobs.get(disk.target))) for disk in found.disks)
    return replace(found, disks=tuple(replace(disk, capacity=sizes.get(disk.target, GiB)) if disk.chain.layers else disk for disk in disks))


def _running(disk, facts):
    """As the edge makes a job: whether it is ready stands in the mirror."""
    return None if facts is None else Job(**dict(facts, ready=disk.mirror is not None and disk.mirror.ready == "yes"))


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
    processes = tuple(process_of(one) for one in case.get("processes", ())) if needs.doubts and local else ()
    volume = Volume(*needs.volume, **case["volume"]) if needs.volume is not None else None
    if volume is not None and volume.path is not None:
        paths.append(volume.path)
    return Observed(
        domains,
        files=_files(case, domains, paths) if local else {},
        images=images if local else {},
        uses=_uses(case, domains) if needs.uses else (),
        unread=tuple(case.get("unread", ())) if needs.uses else (),
        snapshots=snapshots if needs.snapshots else (),
        local=local,
        probes=_probes(case, domains, needs, volume) if needs.headers and local else {},
        qemu=_views(case, domains, processes) if needs.doubts else {},
        processes=processes,
        troubles=tuple(case.get("troubles", ())),
        bitmaps=tuple(map(tuple, case.get("bitmaps", ()))) if needs.bitmaps else (),
        volume=volume,
        measured=case.get("measured") if needs.measure is not None and domains and needs.measure(domains[0]) is not None and local else None,
        holds=case.get("holds") if needs.prepared is not None and domains and needs.prepared(domains[0]) and local else None,
        versions=Versions(tuple(case.get("libvirt", (9, 0, 0))), (7, 2, 22)) if needs.versions else NOT_ASKED,
    )


def process_of(facts: dict) -> Process:
    """A QEMU process of a case."""
    return Process(facts["pid"], facts["name"], facts["uuid"], tuple((path, writes) for path, writes in facts["files"]), facts.get("hidden", False))


def _views(case: dict, domains, processes) -> dict:
    """QEMU is only asked about guests of which there is a doubt. ``qemu`` is what it would say, by the guest's name: ``devices`` as
    [device, node, file], and ``nodes`` as [node, driver, file]."""
    told = case.get("qemu", {})
    doubts = [domain for domain in domains if doubtful(domain, processes) and domain.name in told]
    return {
        domain.uuid: QemuView(
            tuple(Node(name, driver, file, False) for name, driver, file in told[domain.name].get("nodes", ())),
            devices=tuple(map(tuple, told[domain.name]["devices"])),
        )
        for domain in doubts
    }


def _probes(case: dict, domains, needs, volume) -> dict:
    """What the headers say (see ``case_host.Storage``): as the XML, unless ``headers`` says otherwise."""
    storage = Storage(domains, case.get("headers", {}))
    todo = list(needs.bare) + ([(volume.path, needs.volume_format or volume.format)] if volume is not None and volume.exists else []) + wanted(domains)
    named, found = {path for path, dummy in todo}, {}
    while todo:
        found.update(storage.probe_all(todo, named))
        todo = [key for key in map(below, found.values()) if key is not None and key not in found]
    return found


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
    others += tuple(Use(("path", path), name, "uuid of " + name, disk, writes=True) for name, disk, path in case.get("writes", ()))
    return tuple(dict.fromkeys(own + others))


def staged(folder: Path, stage: str):
    """A guest as it was filmed at one stage of a story, its jobs and its snapshots."""
    inactive, job, shot = (folder / ("%s.%s" % (stage, kind)) for kind in ("inactive.xml", "job", "snapshot.xml"))
    running = inactive.exists()
    xml = (folder / (stage + ".xml")).read_text(encoding="utf-8")
    config = inactive.read_text(encoding="utf-8") if running else None
    domain = replace(parse_domain(xml, running, "running" if running else "shutdown", True, config), mentioned=mentioned(xml))
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
