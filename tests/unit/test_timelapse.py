# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Operations filmed on a real libvirt, stage by stage: what the very same request has to do at each of them.

timelapse/<story>/<stage>.xml is the guest's live XML, .inactive.xml its next start (none: the guest is off), .job what
virsh said of the job on vda. Only timelapse/capture writes them, but for those of stale-pivot. story.json says what is to be read and planned,
what is below the images that a guest that is off names (``chains``), and which backing file an image that may be removed has in its header.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from lxml import etree

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import parse_domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import LiveStorageError, VerifyFailed
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.headers import chains_of, wanted, whole
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import Process, Versions
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import File, Image, Observed, Use
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.pivot import doubtful
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.qmp import parse_view
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.verify import mismatches, same_as_before
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.write_xml import on_image
from ansible_collections.livestorage.libvirt.tests.unit.storage import Storage
from ansible_collections.livestorage.libvirt.tests.unit.support import HERE, headers_of, load, operation, params_for, read_through, staged, written

STORIES = sorted(path.parent for path in (HERE / "timelapse").glob("*/story.json"))
STAGES = [(folder, stage) for folder in STORIES for stage in load(folder / "story.json")["stages"]]
REQUESTS = [(folder, stage, name) for folder, stage in STAGES for name in stage["plans"]]


def names(values):
    return ["-".join(part.name if hasattr(part, "name") else part["stage"] if isinstance(part, dict) else part for part in value) for value in values]


def look(folder, stage: str, needs, removes: bool) -> Observed:
    """One stage as a host shows it. Layers are files, and so is whatever a request wants to remove."""
    domain, snapshots = staged(folder, stage)
    storage = Storage((domain,), headers_of({"chains": load(folder / "story.json").get("chains", ())}))
    probes = read_through(storage, list(needs.bare) + wanted((domain,))) if needs.headers else {}
    if needs.offline:
        domain = whole(domain, probes, needs.headers, lambda written_, told: False)
    paths = list(needs.paths) + (list(needs.paths_of(domain)) if needs.paths_of else [])
    chains = [chain for disk in domain.disks for chain in chains_of(disk)]
    kept = {layer.path for chain in chains for layer in chain.layers} | (set(needs.paths) if removes else set())
    processes, view = asked(folder, stage, domain) if needs.doubts else ((), None)
    files = {path: File(path, path in kept, "file" if path in kept else None, 4096, 1, 7, path, "dir") for path in paths}
    uses = tuple(Use(place, domain.name, domain.uuid, disk.target) for disk in domain.disks for place in disk.chain.places)
    headers = load(folder / "story.json").get("headers", {})
    images = {path: Image(path, "qcow2", 4096, 4096, headers[path], headers[path], "qcow2") for path, dummy in needs.images if path in headers}
    return Observed(
        (domain,),
        files,
        images,
        uses=uses,
        snapshots=snapshots,
        probes=probes,
        processes=processes,
        qemu={domain.uuid: view} if view is not None else {},
        versions=Versions((9, 0, 0), (7, 2, 22)),
    )


def asked(folder, stage: str, domain) -> tuple:
    """(QEMU's process, its answers), where they were captured, too: they are asked for where there is a doubt."""
    files, answers = (folder / ("%s.%s" % (stage, kind)) for kind in ("fds", "qemu.json"))
    held = [line.split() for line in files.read_text(encoding="utf-8").splitlines()] if files.exists() else None
    processes = (Process(4711, domain.name, domain.uuid, tuple((path, mode != "O_RDONLY") for dummy, mode, path in held)),) if held is not None else ()
    if not answers.exists() or not doubtful(domain, processes):
        return processes, None
    told = {command: json.dumps(answer) for command, answer in load(answers).items()}
    return processes, parse_view(told["query-named-block-nodes"], told["query-block-jobs"], told["query-block"])


def plan_of(folder, stage: str, name: str):
    """(Plan or error, the look) of a request of the story."""
    told = load(folder / "story.json")["requests"][name]
    planner = operation(told["op"])
    domain = staged(folder, stage)[0]
    request = planner.request(params_for_request(folder, name, domain))
    try:
        seen = look(folder, stage, request.needs, "delete_dropped" in told["params"])
        return planner.plan(request, seen), seen
    except LiveStorageError as error:
        return error, None


@pytest.mark.parametrize(("folder", "stage"), STAGES, ids=names(STAGES))
def test_every_stage_is_read(folder, stage):
    domain = staged(folder, stage["stage"])[0]
    chains = {disk.target: written(disk.chain) for disk in domain.disks}
    assert chains.pop("vda") == stage["chain"]
    assert all(chains.values()) if "drives" not in stage else chains == stage["drives"]
    assert domain.active == (folder / (stage["stage"] + ".inactive.xml")).exists()


@pytest.mark.parametrize(("folder", "stage", "name"), REQUESTS, ids=names(REQUESTS))
def test_the_same_request_does_what_remains(folder, stage, name):
    plan, seen = plan_of(folder, stage["stage"], name)
    expected = stage["plans"][name]
    if isinstance(expected, str):
        assert isinstance(plan, LiveStorageError) and plan.code == expected, plan
        return
    assert not isinstance(plan, Exception), repr(plan)
    assert [step.action for step in plan.steps] == expected
    assert plan.before == seen.domains
    goal = load(folder / "story.json")["requests"][name].get("verified_by")
    reality = staged(folder, goal)[0] if goal is not None and stage["stage"] <= goal else None
    if reality is not None and reality.active == plan.before[0].active:
        check_against_reality(plan, reality)


@pytest.mark.parametrize("stage", ["1-stale", "2-silent", "3-silent-flat"])
@pytest.mark.parametrize("name", ["copy to p938-27", "end"])
def test_a_guest_that_was_lost_is_protected_once(stage, name):
    """QEMU's own image and format go into the definition, whatever was asked for; then the same request finds nothing left to do, and says so."""
    folder = HERE / "timelapse" / "stale-pivot"
    plan, seen = plan_of(folder, stage, name)
    image = asked(folder, stage, seen.domain)[1].devices[0][2]
    layer = plan.steps[0].detail["to"]
    assert (layer.path, layer.format) == (image, "qcow2") and plan.failing[0] == "stale_pivot" and image in plan.stands
    domain = replace(seen.domain, config=parse_domain(on_image(config_of(folder, stage), "vda", layer), False).disks)
    assert mismatches(plan, (domain,)) == [] and mismatches(plan, (seen.domain,)) != []
    wanted_again = operation(load(folder / "story.json")["requests"][name]["op"])
    request = wanted_again.request(params_for_request(folder, name, domain))
    with pytest.raises(VerifyFailed) as caught:
        wanted_again.plan(request, replace(seen, domains=(domain,)))
    assert caught.value.code == "stale_pivot" and caught.value.facts["changed"] is False and image in str(caught.value)


def config_of(folder, stage: str) -> str:
    return (folder / (stage + ".inactive.xml")).read_text(encoding="utf-8")


def params_for_request(folder, name: str, domain) -> dict:
    told = load(folder / "story.json")["requests"][name]
    return params_for(told["op"], dict(told["params"], name=domain.name))


def check_against_reality(plan, goal) -> None:
    """The prediction is the stage that libvirt really came to, next start included; before and after differ if there is work."""
    assert mismatches(plan, (goal,)) == []
    if {"snapshot", "pull", "commit", "wait", "pivot"} & {step.action for step in plan.steps}:
        assert mismatches(plan, plan.before) != []
        assert same_as_before(plan, (goal,)) != []


def test_every_film_is_told():
    """No captured stage without a story, and each of our planners that changes something has one."""
    films = {path for path in (HERE / "timelapse").rglob("*.xml") if path.name.count(".") == 1}
    assert films == {folder / (stage["stage"] + ".xml") for folder, stage in STAGES}
    planned = {request["op"] for folder in STORIES for request in load(folder / "story.json")["requests"].values()}
    assert planned == {"block_commit", "block_copy", "block_job", "block_rebase", "external_snapshot"}


def test_an_address_stands_where_libvirt_puts_it():
    """9.0 writes the identity of the active layer on its <source>, and that of a backing layer on its <backingStore>."""
    text = (HERE / "timelapse" / "pull" / "2-overlay.xml").read_text(encoding="utf-8")
    disk = etree.fromstring(text).find("devices/disk")
    assert disk.find("source").get("index") == "3" and disk.find("backingStore").get("index") == "1"
    found = parse_domain(text, True).disk("vda")
    assert [found.address(depth) for depth in range(3)] == ["vda[3]", "vda[1]", "vda[2]"]
