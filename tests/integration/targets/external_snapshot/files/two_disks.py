# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A snapshot of two disks is deleted, vda forward and vdb backward, and something happens to the second one. See stage.py.

Whatever it is, the word about the first disk is true, nothing is lost, and the next run finishes. The guest has one more snapshot below it,
and while it is off one above it, too: both stay as good as they were, for libvirt as well.
"""

from __future__ import annotations

from functools import partial

from stage import FAST, IMAGES, Stage, chains, outcome, same, true

GUEST = "two"
SMALL = "/srv/small"
DISKS = [{"disk": "vda", "merge": "forward"}, {"disk": "vdb", "merge": "backward"}]
DELETION = {"name": GUEST, "snapshot_name": "one", "state": "absent", "disks": DISKS}
LOWEST = {
    "vda": [IMAGES + "/two-current1.qcow2", IMAGES + "/two-template.qcow2"],
    "vdb": [IMAGES + "/two-current1-vdb.qcow2", IMAGES + "/two-template-vdb.qcow2"],
}
LAYERS = {
    "below": {"vda": FAST + "/a0.qcow2"},
    "one": {"vda": FAST + "/a1.qcow2", "vdb": FAST + "/b1.qcow2"},
    "above": {"vda": FAST + "/a2.qcow2", "vdb": FAST + "/b2.qcow2"},
}


def begin(stage: Stage, off: bool, second: dict) -> dict:
    """The chains before, with something to merge in each. ``second``: where vdb's overlay of the lowest snapshot is."""
    if GUEST not in stage.guests:
        stage.add(GUEST, "--disks", "2", "--slots", "32", "--size", "32")
    found = {disk: list(paths) for disk, paths in LOWEST.items()}
    for name in ("below", "one") + (("above",) if off else ()):
        places = {disk: {"path": path} for disk, path in LAYERS[name].items()}
        places.setdefault("vdb", second)
        stage.call("external_snapshot", name=GUEST, snapshot_name=name, disks=[dict(place, disk=disk) for disk, place in places.items()])
        for disk in found:
            found[disk].insert(0, places[disk]["path"])
        if name != "above":
            stage.poke(GUEST, 0, "8M 6M")
            stage.poke(GUEST, 1, "8M 6M" if name == "one" else "8M 64k")
    if off:
        stage.end(GUEST)
    same(stage.headers(GUEST), found, "the chains before")
    return found


def afterwards(before: dict) -> dict:
    return {"vda": [path for path in before["vda"] if path != LAYERS["below"]["vda"]], "vdb": [path for path in before["vdb"] if path != LAYERS["one"]["vdb"]]}


def judge(stage: Stage, result: dict, before: dict) -> None:
    """Is what is said of each disk true?"""
    said = outcome(result)
    for disk, chain in stage.headers(GUEST).items():
        true(chain in (before[disk], afterwards(before)[disk]), "%s is as before or done" % disk, result)
        same(said[disk] == "done", chain == afterwards(before)[disk], "%s is done" % disk, result)
        same(said[disk] == "as_before", chain == before[disk], "%s is as before" % disk, result)
    same(result["rolled_back"], stage.headers(GUEST) == before, "it is as it was before", result)
    same(result["changed"], stage.headers(GUEST) != before, "it is changed", result)


def finish(stage: Stage, before: dict, content: list, off: bool) -> None:
    """The next run finishes, the one after it has nothing to do, and the other snapshots are still right."""
    after = afterwards(before)
    result = stage.call("external_snapshot", **DELETION)
    true(result.get("changed") and not result.get("failed"), "the next run finishes", result)
    same(outcome(result), {"vda": "done", "vdb": "done"}, "what it says of the disks", result)
    same(stage.headers(GUEST), after, "the headers")
    result = stage.call("external_snapshot", **DELETION)
    true(result.get("changed") is False and not result.get("failed"), "the run after that has nothing to do", result)
    shots = stage.shots(GUEST)
    below = {disk: chain[0] for disk, chain in LOWEST.items()}
    wanted = {"below": ({"vda": LAYERS["one"]["vda"], "vdb": after["vdb"][-3]}, below)}
    if off:
        same(stage.seen(GUEST), content, "the contents")
        wanted["above"] = (LAYERS["above"], {"vda": LAYERS["one"]["vda"], "vdb": after["vdb"][-3]})
    same(shots, wanted, "the snapshots that libvirt keeps")
    same(stage.noted(GUEST), [], "our note")
    if off:
        stage.shell("virsh snapshot-delete %s above" % GUEST)
        same(stage.seen(GUEST), content, "the contents")
        stage.shell("virsh start %s" % GUEST)
    stage.shell("virsh snapshot-delete %s below" % GUEST)
    same(stage.headers(GUEST), LOWEST, "what libvirt has merged")
    stage.cold_start(GUEST)


def trouble(stage: Stage, off: bool, code: str | None, second: dict | None = None, fault: dict | None = None, mend: str = "true", still: str = "") -> None:
    """A run into trouble, then the rest. ``code``: how it fails, None: it is killed. ``still``: how a run fails until it is mended."""
    before = begin(stage, off, second or {"path": SMALL + "/b0.qcow2"})
    content = stage.seen(GUEST) if off else []
    result = stage.call("external_snapshot", fault=fault, **DELETION)
    if code is None:
        same(list(result), ["warnings"], "it was killed")
    else:
        same(result.get("code"), code, "it fails", result)
        judge(stage, result, before)
    if off:
        same(stage.seen(GUEST), content, "the contents in between")
    if still:
        stage.refused(still, "two", "external_snapshot", **DELETION)
    stage.shell(mend)
    finish(stage, before, content, off)


def no_trouble(stage: Stage, off: bool) -> None:
    stage.small(SMALL, "64m")
    before = begin(stage, off, {"path": SMALL + "/b0.qcow2"})
    content = stage.seen(GUEST) if off else []
    preview = stage.call("external_snapshot", True, **DELETION)
    same(chains(preview), afterwards(before), "the prediction", preview)
    same(stage.headers(GUEST), before, "the chains after the preview")
    finish(stage, before, content, off)


def full(stage: Stage, off: bool) -> None:
    stage.small(SMALL, "4m")
    trouble(stage, off, "not_merged" if off else "job_failed", mend="mount -o remount,size=64m " + SMALL)


def full_device(stage: Stage) -> None:
    device = stage.device("4M")
    mend = "truncate -s 64M %s/loop.img && losetup -c %s" % (FAST, device)
    trouble(stage, False, "job_failed", {"path": device, "type": "block"}, mend=mend)


def foreign_job(stage: Stage) -> None:
    stage.small(SMALL, "64m")
    start = "virsh blockcopy two vdb /srv/fast/copy.qcow2 --transient-job --bandwidth 1"
    trouble(stage, False, "foreign_job", fault={"before": ["commit", "vdb"], "shell": start}, mend="virsh blockjob two vdb --abort", still="foreign_job")


def read_only(stage: Stage) -> None:
    stage.small(SMALL, "64m")
    fault = {"before": ["commit", "vdb"], "shell": "mount -o remount,ro " + SMALL}
    trouble(stage, False, "libvirt_error", fault=fault, mend="mount -o remount,rw " + SMALL, still="protected")


def daemon_killed(stage: Stage, off: bool) -> None:
    stage.small(SMALL, "64m")
    trouble(stage, off, "connection_lost", fault={"before": ["merge" if off else "commit", "vdb"], "kill": {"daemon": "KILL"}, "away": 0.5})


def killed(stage: Stage, off: bool) -> None:
    stage.small(SMALL, "64m")
    trouble(stage, off, None, fault={"before": ["merge" if off else "commit", "vdb"], "kill": {"module": "KILL"}})


def killed_before_the_pivot(stage: Stage) -> None:
    stage.small(SMALL, "64m")
    trouble(stage, False, None, fault={"before": ["pivot", "vdb"], "kill": {"module": "KILL"}})


def told(story, off: bool):
    found = partial(story, off=off)
    found.__name__ = "%s, %s" % (story.__name__, "off" if off else "live")
    return found


BOTH = (no_trouble, full, daemon_killed, killed)
STORIES = [told(story, off) for story in BOTH for off in (False, True)] + [full_device, foreign_job, read_only, killed_before_the_pivot]
