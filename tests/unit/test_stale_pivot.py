# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A daemon that was killed during a pivot, as it was captured from a real libvirt and a real QEMU (timelapse/stale-pivot).

QEMU writes to the new image. What libvirt shows differs by the moment of the kill, and so does what can be found without
asking QEMU, with asking it, and with the open files of its process only.
"""

from __future__ import annotations

import json

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import disk_chain_info
from ansible_collections.livestorage.libvirt.tests.unit.case_host import CaseHost
from ansible_collections.livestorage.libvirt.tests.unit.support import HERE, params_for

FOLDER = HERE / "timelapse" / "stale-pivot"
IMAGES = "/var/lib/libvirt/images/sp1-"
SIZE = 64 << 20
NEW = {"1-stale": "p938-27", "2-silent": "p938-3", "3-silent-flat": "p938-30", "4-orphan": "p938-1", "5-config": "p938-57"}
OLD = {"1-stale": "p938-26", "2-silent": "current1", "3-silent-flat": "p938-26", "4-orphan": "current1", "5-config": "p938-56"}
UUID = "76fd81f1-51c5-458f-8e3e-38236d600324"


def image(stage, names):
    return "%s%s.qcow2" % (IMAGES, names[stage])


def process(stage) -> dict:
    """QEMU's process with the files that it held."""
    lines = (line.split() for line in (FOLDER / (stage + ".fds")).read_text(encoding="utf-8").splitlines())
    return {"pid": 4711, "name": "sp1", "uuid": UUID, "files": [[path, mode != "O_RDONLY"] for dummy, mode, path in lines]}


def look(monkeypatch, stage, *, qemu=False, processes=True, headers=None, **replaced):
    """(findings on vda, the whole result) of a validation of that stage."""
    guest = {"xml": stage + ".xml", **replaced}
    if stage == "4-orphan":
        guest.update(active=False, state="shutdown")
    else:
        guest["config"] = stage + ".inactive.xml"
    if (FOLDER / (stage + ".qemu.json")).exists():
        answers = json.loads((FOLDER / (stage + ".qemu.json")).read_text(encoding="utf-8"))
        guest["qemu"] = {command: json.dumps(answer) for command, answer in answers.items()}
    files = {image(stage, NEW): {"image": {"virtual_size": SIZE}}, IMAGES + "template.qcow2": {"image": {"virtual_size": SIZE}}}
    files[image(stage, OLD)] = {"image": {"virtual_size": SIZE}}
    if OLD[stage] == "current1":
        files[image(stage, OLD)]["image"].update(backing=IMAGES + "template.qcow2", backing_format="qcow2")
    files[IMAGES + "acks"] = {"format": "raw", "physical": 999}
    case = {"guests": [guest], "files": {**files, **(headers or {})}, "processes": [process(stage)] if processes else []}
    host = CaseHost(monkeypatch, case, FOLDER)
    request = disk_chain_info.request(params_for("disk_chain_info", {"name": "sp1", "validate": True, "qemu_nodes": qemu}))
    seen = host.observe(request.needs)
    assert seen.troubles == ()
    disk_chain_info.plan(request, seen)
    result = disk_chain_info.report(request, seen)
    assert host.libvirt.commands == (["query-named-block-nodes", "query-block-jobs", "query-block"] if qemu and stage != "4-orphan" else [])
    return result["domains"][0]["disks"][0]["findings"], result


def codes(findings) -> list:
    return [(one["code"], one["severity"]) for one in findings]


STALE, PERHAPS = ("stale_pivot", "critical"), ("stale_pivot", "warning")


@pytest.mark.parametrize(
    ("stage", "qemu", "processes", "expected"),
    [
        # libvirt 9.0 leaves the mirror in the middle of its pivot: the XML alone tells.
        ("1-stale", False, False, [STALE]),
        ("1-stale", False, True, [STALE]),
        ("1-stale", True, True, [STALE]),
        ("1-stale", True, False, [STALE]),
        # Nothing in libvirt tells: QEMU does, or else the files that its process holds.
        ("2-silent", False, False, []),
        ("2-silent", False, True, [PERHAPS]),
        ("2-silent", True, True, [STALE]),
        ("2-silent", True, False, [STALE]),
        ("3-silent-flat", False, False, []),
        ("3-silent-flat", False, True, [PERHAPS]),
        ("3-silent-flat", True, False, [STALE]),
        # The guest is off for libvirt, its QEMU is not.
        ("4-orphan", False, True, [("orphaned_guest", "critical")]),
        ("4-orphan", True, True, [("orphaned_guest", "critical")]),
        ("4-orphan", False, False, []),
        # Only the next start is wrong: QEMU and libvirt agree.
        ("5-config", False, True, [("config_differs", "warning")]),
        ("5-config", True, True, [("config_differs", "warning")]),
    ],
)
def test_what_is_found(monkeypatch, stage, qemu, processes, expected):
    findings, dummy = look(monkeypatch, stage, qemu=qemu, processes=processes)
    assert codes(findings) == expected


@pytest.mark.parametrize(("stage", "qemu"), [("1-stale", False), ("1-stale", True), ("2-silent", True), ("3-silent-flat", True)])
def test_both_images_and_the_way_out_are_told(monkeypatch, stage, qemu):
    """Source, format, no backingStore: else the next start boots the old image, or puts the new one on the old one's backing."""
    finding = look(monkeypatch, stage, qemu=qemu)[0][0]
    assert (finding["expected"], finding["actual"]) == (image(stage, OLD), image(stage, NEW))
    assert finding["layer"] == ("vda[3]" if stage == "1-stale" else "vda[1]")
    for word in (
        "disk vda of guest sp1 to %s" % image(stage, NEW),
        "the source %s" % image(stage, NEW),
        "the format qcow2",
        "no backingStore",
        "take no snapshot",
        "virsh define",
    ):
        assert word in finding["message"]
    assert ("QEMU itself says so" in finding["message"]) == qemu
    assert ("ask QEMU itself with qemu_nodes" in finding["message"]) == (not qemu)


def test_the_process_alone_is_no_proof(monkeypatch):
    finding = look(monkeypatch, "2-silent")[0][0]
    assert finding["severity"] == "warning" and "may write" in finding["message"] and "process 4711" in finding["message"]
    assert "ask QEMU itself with qemu_nodes" in finding["message"] and "virsh define" not in finding["message"]
    sure = look(monkeypatch, "2-silent", qemu=True)[0][0]
    assert sure["severity"] == "critical" and "may write" not in sure["message"]


def test_the_orphans_process_and_the_image_that_it_writes_to_are_told(monkeypatch):
    finding = look(monkeypatch, "4-orphan")[0][0]
    assert (finding["actual"], finding["layer"]) == (4711, image("4-orphan", OLD))
    for word in ("process 4711", "disk vda", image("4-orphan", NEW), "format qcow2", "no backingStore", "SIGTERM", "remove no file"):
        assert word in finding["message"]


def test_qemus_view_is_returned(monkeypatch):
    result = look(monkeypatch, "1-stale", qemu=True)[1]["domains"][0]
    assert {one["node_name"]: one["file"] for one in result["qemu"]["nodes"]} == {
        "libvirt-%d-%s" % (number, kind): image("1-stale", names) for number, names in ((3, OLD), (4, NEW)) for kind in ("format", "storage")
    }
    assert [one["file"] for one in result["qemu"]["devices"]] == [image("1-stale", NEW)] and result["qemu"]["jobs"] == []
    disk = result["disks"][0]
    assert (disk["chain"][0]["node_name"], disk["mirror"]["chain"][0]["node_name"]) == ("libvirt-3-format", "libvirt-4-format")
    assert (disk["mirror"]["ready"], disk["job"]) == ("pivot", None)


# Near misses: the same guest, a little healthier.


@pytest.mark.parametrize("qemu", [True, False])
def test_a_pivot_with_its_job_is_under_way(monkeypatch, qemu):
    assert codes(look(monkeypatch, "1-stale", qemu=qemu, jobs={"vda": {"type": "copy", "cur": 1, "end": 1}})[0]) == []


def test_a_guest_whose_jobs_cannot_be_read_may_have_one(monkeypatch):
    assert codes(look(monkeypatch, "1-stale", silent=True)[0]) == []


def test_a_healthy_guest_that_qemu_was_asked_about(monkeypatch):
    findings, dummy = look(monkeypatch, "5-config", qemu=True, replace={"sp1-p938-56": "sp1-p938-57"})
    assert codes(findings) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"image": {"virtual_size": SIZE + 512}},
        {"format": "raw", "physical": 4096},
        {"problem": "permission"},
        None,
    ],
    ids=["another-size", "a-log", "hidden", "gone"],
)
def test_another_file_of_the_process_is_not_the_disk(monkeypatch, headers):
    assert codes(look(monkeypatch, "2-silent", headers={image("2-silent", NEW): headers})[0]) == []


def test_a_link_to_the_disk_is_the_disk(monkeypatch):
    """The process holds what the link leads to."""
    new = image("2-silent", NEW)
    linked = {image("2-silent", OLD): {"link": new}, new: {"image": {"virtual_size": SIZE, "backing": IMAGES + "template.qcow2", "backing_format": "qcow2"}}}
    assert codes(look(monkeypatch, "2-silent", headers=linked)[0]) == []
