# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest is taken back to a snapshot, and what it wrote before that is there, and nothing else. Or it keeps what it wrote. See stage.py."""

from __future__ import annotations

import re

from stage import IMAGES, Stage, chains, outcome, same, true

GUEST = "back"
LOWEST = {
    "vda": [IMAGES + "/back-current1.qcow2", IMAGES + "/back-template.qcow2"],
    "vdb": [IMAGES + "/back-current1-vdb.qcow2", IMAGES + "/back-template-vdb.qcow2"],
}
BASES = [chain[0] for chain in LOWEST.values()]
SNAPSHOT = {"module": "external_snapshot", "name": GUEST}


def on(name: str) -> dict:
    """The chains with the overlays that a snapshot has by default, or that a reversion makes."""
    return {disk: [re.sub("[.]qcow2$", "." + name, chain[0])] + chain for disk, chain in LOWEST.items()}


def overlays(name: str) -> list:
    return [chain[0] for chain in on(name).values()]


def taken(stage: Stage, **snapshot) -> None:
    """Take a snapshot, and remember what the guest had acknowledged until then."""
    running = stage.shell("virsh domstate %s" % GUEST) == "running"
    if running:
        stage.acks(2)
        stage.shell("virsh suspend %s" % GUEST)
    stage.shell(f"cp {IMAGES}/{GUEST}.acks {IMAGES}/{GUEST}.then")
    stage.done(**SNAPSHOT, wanted=on(snapshot["snapshot_name"]), **snapshot)
    if running:
        stage.shell("virsh resume %s" % GUEST)
        stage.acks(2)


def forget(stage: Stage) -> None:
    """What the guest, which is off, has acknowledged since then does not count: its data went back."""
    stage.shell(f"cat {IMAGES}/{GUEST}.then > {IMAGES}/{GUEST}.acks")


def patched(stage: Stage) -> None:
    """Snapshot, write, go back: all that was acknowledged before the snapshot is there, and nothing of what came later."""
    stage.add(GUEST, "--disks", "2", "--slots", "32", "--size", "32")
    taken(stage, snapshot_name="patch")
    content = stage.content(*BASES)
    stage.poke(GUEST, 0, "8M 1M")
    stage.shell("virsh destroy %s" % GUEST)
    true(all(one != two for one, two in zip(stage.seen(GUEST), content)), "it has written")
    stage.refused("no_snapshot", "its snapshots are patch", **SNAPSHOT, snapshot_name="other", state="reverted")
    result = stage.done(**SNAPSHOT, wanted=on("patch-1"), snapshot_name="patch", state="reverted")
    same((stage.seen(GUEST), stage.content(*BASES)), (content, content), "the contents")
    true(all(any(path in warning for warning in result["warnings"]) and stage.exists(path) for path in overlays("patch")), "what is left is named", result)
    modes = stage.shell("stat -c '%%a %%u %%g' %s" % " ".join(BASES + overlays("patch-1"))).splitlines()
    same(modes[:2], modes[2:], "the access rights of the new overlays")
    same(
        stage.shots(GUEST)["patch"],
        ({disk: chain[0] for disk, chain in on("patch-1").items()}, {disk: chain[0] for disk, chain in LOWEST.items()}),
        "what libvirt keeps",
    )
    forget(stage)
    stage.cold_start(GUEST)


def patched_again(stage: Stage) -> None:
    """One can go back again, and leave nothing behind. The merge keeps what was written since."""
    stage.end(GUEST)
    content = stage.content(*BASES)
    stage.done(**SNAPSHOT, wanted=on("patch-2"), snapshot_name="patch", state="reverted", delete_files=True)
    same((stage.seen(GUEST), [path for path in overlays("patch-1") if stage.exists(path)]), (content, []), "the contents, and what is left")
    forget(stage)
    stage.shell("virsh start %s" % GUEST)
    stage.end(GUEST)
    patch = stage.seen(GUEST)
    true(all(one != two for one, two in zip(patch, content)), "it has written")
    stage.done(**SNAPSHOT, wanted=LOWEST, snapshot_name="patch", state="absent", delete_files=True)
    same((stage.seen(GUEST), stage.content(*BASES), stage.shots(GUEST), stage.noted(GUEST)), (patch, patch, {}, []), "the contents, and who remembers it")
    same([path for path in overlays("patch-2") if stage.exists(path)], [], "what is left")
    stage.shell("rm %s" % " ".join(overlays("patch")))
    stage.cold_start(GUEST)


def taken_off(stage: Stage) -> None:
    """The same with a snapshot that was taken while the guest was off, and that only a note remembers."""
    stage.end(GUEST)
    stage.shell("chown libvirt-qemu:kvm %s; chmod 640 %s; chmod 600 %s" % (BASES[0], BASES[0], BASES[1]))
    content = stage.seen(GUEST)
    taken(stage, snapshot_name="cold", metadata=False, on_delete="forward")
    same((stage.noted(GUEST), stage.shots(GUEST), stage.seen(GUEST)), (["cold"], {}, content), "who remembers it, and the contents")
    modes = stage.shell("stat -c '%%a %%U:%%G' %s" % " ".join(overlays("cold"))).splitlines()
    same(modes, ["640 libvirt-qemu:kvm", "600 root:root"], "the access rights of the overlays")
    stage.again(**SNAPSHOT, snapshot_name="cold", state="reverted")
    stage.cold_start(GUEST)
    stage.end(GUEST)
    stage.done(**SNAPSHOT, wanted=on("cold-1"), snapshot_name="cold", state="reverted", delete_files=True)
    same(stage.seen(GUEST), content, "the contents")
    forget(stage)
    stage.shell("virsh start %s" % GUEST)
    stage.end(GUEST)
    written = stage.seen(GUEST)
    result = stage.done(**SNAPSHOT, snapshot_name="cold", state="absent", merge="backward")
    same((chains(result), stage.seen(GUEST), stage.noted(GUEST)), (LOWEST, written, []), "the merged disks", result)
    stage.cold_start(GUEST)


def with_children(stage: Stage) -> None:
    """Another snapshot on top of the one that is gone back to stays as it was, and is in the way of whatever would harm it."""
    taken(stage, snapshot_name="first")
    stage.call(**SNAPSHOT, snapshot_name="second")
    stage.end(GUEST)
    second = stage.content(*overlays("first"))
    stage.refused("snapshot_needs", "second", **SNAPSHOT, snapshot_name="first", state="reverted", delete_files=True)
    result = stage.done(**SNAPSHOT, wanted=on("first-1"), snapshot_name="first", state="reverted")
    same(sorted(stage.shots(GUEST)), ["first", "second"], "the snapshots", result)
    stage.refused("not_in_chain", "second", **SNAPSHOT, snapshot_name="second", state="reverted")
    for merge in ("backward", "forward"):
        stage.refused("snapshot_needs", "second", **SNAPSHOT, snapshot_name="first", state="absent", merge=merge, delete_files=True)
    stage.refused("snapshot_needs", "first|second", "block_commit", name=GUEST, disk="vda")
    forget(stage)
    stage.cold_start(GUEST)
    for merge in ("backward", "forward"):
        stage.refused("snapshot_needs", "second", **SNAPSHOT, snapshot_name="first", state="absent", merge=merge, delete_files=True)
    same(stage.content(*overlays("first")), second, "what the other one stands for")
    stage.done(**SNAPSHOT, wanted=on("first-1"), snapshot_name="second", state="absent")
    stage.done(**SNAPSHOT, wanted=LOWEST, snapshot_name="first", state="absent")
    same((stage.shots(GUEST), stage.noted(GUEST)), ({}, []), "the snapshots")
    stage.shell("rm %s" % " ".join(overlays("first") + overlays("first-1") + overlays("second")))
    stage.cold_start(GUEST)


def half_deleted(stage: Stage) -> None:
    """A snapshot whose deletion was begun holds its moment no more, so that nobody goes back to it."""
    stage.call(**SNAPSHOT, snapshot_name="half")
    for number in (0, 1):
        stage.poke(GUEST, number, "8M 64k")
    stage.call(fault={"before": ["commit", "vdb"], "kill": {"module": "KILL"}}, **SNAPSHOT, snapshot_name="half", state="absent")
    stage.end(GUEST)
    same((stage.headers(GUEST)["vda"], stage.headers(GUEST)["vdb"]), (LOWEST["vda"], on("half")["vdb"]), "the chains")
    stage.refused("partly_deleted", "half", **SNAPSHOT, snapshot_name="half", state="reverted")
    content = stage.seen(GUEST)
    result = stage.call(**SNAPSHOT, snapshot_name="half", state="absent", delete_files=True)
    same((outcome(result), stage.headers(GUEST), stage.seen(GUEST)), ({"vda": "done", "vdb": "done"}, LOWEST, content), "the next run finishes", result)
    same([path for path in overlays("half") if stage.exists(path)], [], "what is left")
    stage.cold_start(GUEST)


def running(stage: Stage) -> None:
    """A guest that runs is libvirt's to take back, and not that of libvirt before 9.9."""
    taken(stage, snapshot_name="live")
    content = stage.content(*BASES)
    if stage.version() < (9, 9):
        stage.refused("running", "only libvirt 9.9 or later reverts", **SNAPSHOT, snapshot_name="live", state="reverted")
    else:
        result = stage.call(**SNAPSHOT, snapshot_name="live", state="reverted")
        same((result.get("changed"), result.get("failed"), set(outcome(result).values())), (True, None, {"done"}), "libvirt does it", result)
        found = stage.headers(GUEST)
        same((found, {disk: chain[1:] for disk, chain in found.items()}), (chains(result), LOWEST), "the chains", result)
    stage.shell("virsh destroy %s" % GUEST)
    stage.done(**SNAPSHOT, wanted=on("live-1"), snapshot_name="live", state="reverted", delete_files=True)
    same((stage.seen(GUEST), stage.content(*BASES)), (content, content), "the contents")
    stage.done(**SNAPSHOT, wanted=LOWEST, snapshot_name="live", state="absent", delete_files=True)
    forget(stage)
    stage.cold_start(GUEST)


STORIES = [patched, patched_again, taken_off, with_children, half_deleted, running]
