# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What several tests share: where things are, the modules' argument specs, guests from XML, and how a chain is written."""

from __future__ import annotations

import functools
import importlib
import json
from dataclasses import replace
from pathlib import Path

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.apparmor import Confinement
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.backups import Backup, Checkpoint, Ended, Kept, Part, Point
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import mentioned, parse_domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.headers import bare_guest, below, stores, wanted, whole, with_stores
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import (
    NOT_ASKED,
    File,
    Image,
    Node,
    Probe,
    Process,
    QemuView,
    Sizes,
    Versions,
    Volume,
)
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Job, Observed, Snapshot, Use
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.pivot import doubtful
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.snapshot_xml import parse_snapshot
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
    """A chain for reading: each layer as "index place (format)", with the data file that libvirt knows of, and what is known of the end."""
    lines = ["%s %s (%s%s)" % ("-" if layer.index is None else layer.index, layer, layer.format, told_data(layer)) for layer in chain.layers]
    return lines + [{True: "end", None: "unknown"}[chain.ends]] if lines else []


def told_data(layer) -> str:
    """The data file that libvirt's XML names, or is to name."""
    return "" if layer.told_store is None else ", data in %s" % layer.told_store


def texts(folder, facts: dict) -> tuple:
    """The live and the inactive XML of a guest of a case, in both of which ``replace`` changes what it finds."""
    both = [(folder / facts[name]).read_text(encoding="utf-8") if facts.get(name) else None for name in ("xml", "config")]
    for old, new in facts.get("replace", {}).items():
        if not any(old in text for text in both if text):
            raise ValueError("%s is not in %s" % (old, facts["xml"]))
        both = [text and text.replace(old, new) for text in both]
    return tuple(both)


def guest(case: dict, folder: Path, facts: dict):
    """One guest of a case: ``xml`` and ``config`` name files, ``replace`` changes their text, ``job`` is by disk.

    ``noted`` is what our note in its metadata says, ``agent`` the state of its agent's channel, ``saved``: it has a managed save image.
    """

    xml, config = texts(folder, facts)
    found = parse_domain(xml, facts.get("active", True), facts.get("state", "running"), facts.get("persistent", True), config)
    found = replace(found, mentioned=mentioned(xml), saved=facts.get("saved", False), agent=facts.get("agent", found.agent))
    found = replace(found, noted=tuple(map(snapshot_of, facts.get("noted", ()))) or found.noted)
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
    everybody = tuple(guest(case, folder, facts) for facts in case["guests"])
    domains = tuple(one for one in everybody if needs.guests and _selected(one, needs.selection))
    local = case.get("local", True)
    snapshots = tuple(map(snapshot_of, case.get("snapshots", ()))) if needs.snapshots and domains else ()
    shots = {one.uuid: tuple(map(snapshot_of, case.get("snapshots", ()))) for one in domains[:1]} if needs.shots else {}
    named = _of_snapshots(needs, domains, (*snapshots, *(one for several in shots.values() for one in several)))
    volume = Volume(*needs.volume, **case["volume"]) if needs.volume is not None else None
    storage = Storage(everybody, headers_of(case))
    paths = list(needs.paths) + named
    if needs.headers and local:
        probes = _probes(storage, domains, needs, volume, named)
    else:
        probes = {key: Probe(*key, problem="remote") for key in needs.bare if needs.headers}
    if needs.stores:
        domains = tuple(with_stores(one, probes) for one in domains)
        paths += [path for path, dummy in stores(probes.values())]
    if needs.offline:
        domains = tuple(whole(one, probes, needs.headers, functools.partial(_alike, case)) for one in domains) + _alone(needs, probes)
    if needs.paths_of is not None:
        paths += [path for domain in (domains if needs.as_guests else domains[:1]) for path in needs.paths_of(domain)]
    if needs.paths_with is not None:
        paths += [path for domain in domains for path in needs.paths_with(domain, shots.get(domain.uuid, ()))]
    images = {path: Image(path, format, **case["images"][path]) for path, format in needs.images if path in case.get("images", {})}
    images.update(_images_of(needs, domains, storage))
    if needs.stores:
        paths += [image.data_path for image in images.values() if image.data_path]
    if not needs.capacities:
        domains = tuple(replace(one, disks=tuple(replace(disk, capacity=None) for disk in one.disks)) for one in domains)
    processes = tuple(process_of(one) for one in case.get("processes", ())) if needs.doubts and local else ()
    if volume is not None and volume.path is not None:
        paths.append(volume.path)
    return Observed(
        domains,
        files=_files(case, everybody, storage, paths) if local else {},
        images=images if local else {},
        uses=_uses(case, everybody, storage) if needs.uses else (),
        unread=tuple(case.get("unread", ())) if needs.uses else (),
        snapshots=snapshots,
        local=local,
        probes=probes,
        sizes=_sizes(case, domains) if needs.sizes else {},
        qemu=_views(case, domains, processes) if needs.doubts else {},
        processes=processes,
        troubles=tuple(case.get("troubles", ())),
        bitmaps=tuple(map(tuple, case.get("bitmaps", ()))) if needs.bitmaps and not needs.shots and domains else (),
        shots=shots,
        checkpoints={uuid: (("monday", tuple(map(tuple, case.get("bitmaps", ())))),) for uuid in shots} if needs.bitmaps else {},
        volume=volume,
        measured=case.get("measured") if needs.measure is not None and domains and needs.measure(domains[0]) is not None and local else None,
        holds=case.get("holds") if needs.prepared is not None and domains and needs.prepared(domains[0]) and local else None,
        held=_held(case, domains) if needs.offline and local else {},
        same=_same(case, needs, domains) if local else {},
        confinement=_confined(case, domains) if needs.confinement and local else {},
        versions=Versions(tuple(case.get("libvirt", (9, 0, 0))), (7, 2, 22)) if needs.versions and needs.guests else NOT_ASKED,
        takes_holes={path: case.get("takes_holes", {}).get(path) for one in domains for path in needs.holes_at(one)} if needs.holes_at and local else {},
        runner=tuple(case["runner"]) if "runner" in case and needs.runner and needs.guests else None,
        texts={one.uuid: _migratable(case, folder) for one in domains if one.active} if needs.texts and case.get("migratable", True) else {},
        kept={one.uuid: kept_of(case, one, needs.kept) for one in domains[:1]} if needs.kept is not None else {},
    )


def _images_of(needs, domains, storage) -> dict:
    """The headers at paths that follow from the guest, as they are in the table."""
    asked = [key for domain in domains for key in needs.images_of(domain)] if needs.images_of is not None else []
    found = ((path, storage.probe_all([(path, format)])[path, format].image) for path, format in asked)
    return {path: image for path, image in found if image is not None}


def _migratable(case: dict, folder: Path) -> tuple:
    """The XML for a migration of the first guest; ``secrets``: it has some that libvirt leaves out."""
    return (*texts(folder, case["guests"][0]), case.get("secrets", False))


def kept_of(case: dict, domain, asked) -> Kept:
    """``kept`` of a case: its ``checkpoints`` (the bytes by disk, null for a broken bitmap), the backup that is ``running``, how the ``last`` one
    ended, and what is ``needed`` by each disk."""
    told = case.get("kept", {})
    running = told.get("running")
    sized = domain.active and running is None and asked.dirty
    points, parent = [], None
    for facts in told.get("checkpoints", ()):
        disks = tuple(Point(target, facts["name"], size if sized else None) for target, size in facts["disks"].items())
        points.append(Checkpoint(facts["name"], disks, facts.get("parent", parent), facts.get("created", 1795219200), facts.get("description"), sized))
        parent = facts["name"]
    measured = [target for target, dummy, dummy2 in asked.measure(domain)] if asked.measure is not None else []
    needed = {target: size for target, size in told.get("needed", {}).items() if target in measured}
    last = Ended(**told["last"]) if "last" in told and running is None else None
    return Kept(tuple(points), None if running is None else backup_of(running), last, needed)


def backup_of(facts: dict) -> Backup:
    """A backup of a case: ``disks`` as the module takes them, and ``scratch`` for the path in a pull."""
    parts = []
    for one in facts["disks"]:
        path, kind = one.get("path") or one.get("scratch"), one.get("type", "file")
        place = Layer(kind, (("dev" if kind == "block" else "file", path),), one.get("format", "qcow2"))
        parts.append(Part(one["disk"], place, one.get("since"), one.get("export"), one.get("bitmap")))
    return Backup(facts.get("mode", "push"), tuple(parts), tuple(sorted(facts.get("server", {}).items())))


def _selected(domain, selection) -> bool:
    return not selection.single or domain.name == selection.name or domain.uuid == selection.uuid


def snapshot_of(facts: dict) -> Snapshot:
    """A snapshot of a case: pairs are lists there."""

    def pairs(value):
        return tuple(map(pairs, value)) if isinstance(value, list) else value

    return Snapshot(**{name: pairs(value) for name, value in facts.items()})


def headers_of(case: dict) -> dict:
    """``headers`` of a case, and what its ``chains`` come to: each is a list of "path format" or "path format block", active first, as the headers tell it."""
    found: dict = {}
    for chain in case.get("chains", ()):
        layers = [one.split() for one in chain]
        for number, (path, format_, *kind) in enumerate(layers):
            below_it = layers[number + 1] if number + 1 < len(layers) else (None, None)
            found[path] = {"format": format_, "kind": kind[0] if kind else "file", "image": {"backing": below_it[0], "backing_format": below_it[1]}}
    for path, facts in case.get("headers", {}).items():
        known = found.get(path)
        found[path] = facts if known is None or facts is None else dict(known, **dict(facts, image=dict(known["image"], **facts.get("image", {}))))
    return found


def _of_snapshots(needs, domains, snapshots) -> list:
    noted = [shot for domain in domains[:1] for shot in domain.noted]
    return [path for shot in [*snapshots, *noted] for path in shot.paths] if needs.of_snapshots else []


def _alone(needs, probes) -> tuple:
    """The images that were asked for by themselves."""
    return tuple(bare_guest(path, format_, probes, needs.headers) for path, format_ in needs.bare) if needs.as_guests else ()


def _sizes(case: dict, domains) -> dict:
    """``sizes``: what libvirt's statistics say a layer shows, in bytes, by address (vda[2])."""
    pairs = [(address.rstrip("]").partition("["), size) for address, size in case.get("sizes", {}).items()]
    return {(domain.uuid, disk, int(index)): Sizes(size) for domain in domains if domain.active for (disk, dummy, index), size in pairs}


def _held(case: dict, domains) -> dict:
    """``held``: why an image cannot be locked, by path, as [for writing, for reading]."""
    paths = {layer.path for domain in domains if not domain.active for disk in domain.disks for layer in disk.chain.images() if layer.path}
    told = {path: case.get("held", {}).get(path, (None, None)) for path in paths}
    return {(path, writes): reasons[0] if writes else reasons[1] for path, reasons in told.items() for writes in (True, False)}


def _alike(case: dict, chain, dummy) -> bool:
    """``same``, by the path of the active layer: whether the chain of a definition shows what that of the headers does."""
    return case.get("same", {}).get(chain[0].path, False)


def _same(case: dict, needs, domains) -> dict:
    """``same``, by disk or image: whether the chains that are compared show the same; each only if it is asked for."""
    asked = [(domain, target) for domain in domains for target, *dummy in needs.agree(domain)] if needs.agree is not None else []
    return {(domain.uuid, target): case["same"][target] for domain, target in asked if target in case.get("same", {})}


def _confined(case: dict, domains) -> dict:
    """``confinement`` is what AppArmor's profile of a guest says, by the guest's name: its ``rules``, and its ``mode`` if it is not enforced."""
    found = {}
    for domain in domains:
        facts, profile = case.get("confinement", {}).get(domain.name), "libvirt-" + domain.uuid
        if facts is not None and domain.active:
            found[domain.uuid] = Confinement("apparmor", profile, facts.get("mode", "enforce"), ("profile %s {" % profile, *facts["rules"], "}"))
    return found


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


def _probes(storage, domains, needs, volume, named) -> dict:
    """What the headers say (see ``case_host.Storage``): as the XML, unless ``headers`` or ``chains`` say otherwise."""
    asked = list(needs.bare) + ([(volume.path, needs.volume_format or volume.format)] if volume is not None and volume.exists else [])
    asked += [(path, None) for path in dict.fromkeys(named)]
    return read_through(storage, asked + wanted(domains), {path for path, dummy in asked})


def read_through(storage, todo: list, guessed=()) -> dict:
    """The probes of images, of what their headers name, and so on."""
    known, found = {path for path, dummy in todo}, {}
    while todo:
        found.update(storage.probe_all(todo, known, guessed))
        todo = [key for key in map(below, found.values()) if key is not None and key not in found]
    found.update(storage.probe_all([key for key in stores(found.values()) if key not in found]))
    return found


def _files(case: dict, domains, storage, paths) -> dict:
    """A layer of a guest, and what the headers name, is a file that exists, and any other path is free, unless the case says otherwise."""
    layers = {layer.path for domain in domains for disk in domain.disks for layer in disk.chain.layers}
    found = {}
    for path in paths:
        kind = storage.table[path]["kind"] if path in storage.table and "link" not in storage.table[path] else "file"
        exists = path in storage.table or path in layers
        facts = dict({"exists": exists, "parent": "dir", "real": path}, **case.get("files", {}).get(path, {}))
        if facts["exists"]:
            facts = dict({"kind": kind, "size": 4096, "device": 1, "inode": 100 + len(found)}, **facts)
        found[path] = File(path, **facts)
    return found


def _uses(case: dict, domains, storage) -> tuple:
    """Every layer of every guest of the case; those of guests that are off down to the end that the headers tell."""
    probes = storage.probe_all(list(storage.table_keys()))
    own = tuple(
        Use(place, domain.name, domain.uuid, disk.target)
        for domain in (whole(with_stores(one, probes), probes, 200, functools.partial(_alike, case)) for one in domains)
        for disk in domain.disks + domain.config
        for chain in [disk.chain] + ([disk.mirror.chain] if disk.mirror else [])
        for place in [image.place for image in chain.images()]
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
