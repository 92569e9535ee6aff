# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Operations filmed on a real libvirt, stage by stage: what the very same request has to do at each of them.

timelapse/<story>/<stage>.xml is the guest's live XML, .inactive.xml its next start (none: the guest is off), .job what
virsh said of the job on vda. Only timelapse/capture writes them, but for those of stale-pivot. story.json says what is to be read and planned, and which
backing file an image that may be removed has in its header.
"""

from __future__ import annotations

import pytest
from lxml import etree

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import parse_domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import LiveStorageError
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import File, Image, Observed, Use
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.verify import mismatches, same_as_before
from ansible_collections.livestorage.libvirt.tests.unit.support import HERE, load, operation, params_for, staged, written

STORIES = sorted(path.parent for path in (HERE / "timelapse").glob("*/story.json"))
STAGES = [(folder, stage) for folder in STORIES for stage in load(folder / "story.json")["stages"]]
REQUESTS = [(folder, stage, name) for folder, stage in STAGES for name in stage["plans"]]


def names(values):
    return ["-".join(part.name if hasattr(part, "name") else part["stage"] if isinstance(part, dict) else part for part in value) for value in values]


def look(folder, stage: str, needs, removes: bool) -> Observed:
    """One stage as a host shows it. Layers are files, and so is whatever a request wants to remove."""
    domain, snapshots = staged(folder, stage)
    paths = list(needs.paths) + (list(needs.paths_of(domain)) if needs.paths_of else [])
    kept = {layer.path for disk in domain.disks for layer in disk.chain.layers} | (set(needs.paths) if removes else set())
    files = {path: File(path, path in kept, "file" if path in kept else None, 4096, 1, 7, path, "dir") for path in paths}
    uses = tuple(Use(place, domain.name, domain.uuid, disk.target) for disk in domain.disks for place in disk.chain.places)
    headers = load(folder / "story.json").get("headers", {})
    images = {path: Image(path, "qcow2", 4096, 4096, headers[path], headers[path], "qcow2") for path, dummy in needs.images if path in headers}
    return Observed((domain,), files, images, uses=uses, snapshots=snapshots)


def plan_of(folder, stage: str, name: str):
    """(Plan or error, the look) of a request of the story."""
    asked = load(folder / "story.json")["requests"][name]
    planner = operation(asked["op"])
    domain = staged(folder, stage)[0]
    request = planner.request(params_for(asked["op"], dict(asked["params"], name=domain.name)))
    try:
        seen = look(folder, stage, request.needs, "delete_dropped" in asked["params"])
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
    if goal is not None and stage["stage"] <= goal:
        check_against_reality(plan, staged(folder, goal)[0])


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
    assert planned == {"block_commit", "block_rebase", "external_snapshot"}


def test_an_address_stands_where_libvirt_puts_it():
    """9.0 writes the identity of the active layer on its <source>, and that of a backing layer on its <backingStore>."""
    text = (HERE / "timelapse" / "pull" / "2-overlay.xml").read_text(encoding="utf-8")
    disk = etree.fromstring(text).find("devices/disk")
    assert disk.find("source").get("index") == "3" and disk.find("backingStore").get("index") == "1"
    found = parse_domain(text, True).disk("vda")
    assert [found.address(depth) for depth in range(3)] == ["vda[3]", "vda[1]", "vda[2]"]
