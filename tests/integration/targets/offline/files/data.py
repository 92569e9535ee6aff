# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A qcow2 layer that keeps its data in a raw image, under a guest that writes, and under one that is off. See stage.py of the target external_snapshot.

What is made over a raw image shows the same as that image at any time, so that its bytes tell whether a merge went through its layer.
"""

from __future__ import annotations

from stage import FAST, IMAGES, Stage, chains, same, true

GUEST, OTHER = "split", "thief"
META, RAW = "%s/%s.qcow2" % (FAST, GUEST), "%s/%s.raw" % (FAST, GUEST)


def split(stage: Stage, source: str) -> None:
    """The guest, which is off, on a new layer over a raw image with what it had."""
    dummy = FAST + "/dummy.raw"
    stage.shell(
        f"qemu-img convert -f qcow2 -O raw {source} {RAW} && size=$(stat -c %s {RAW}) && truncate -s $size {dummy} && "
        f"qemu-img create -q -f qcow2 -o data_file={dummy},data_file_raw=on {META} $size && "
        f"qemu-img amend -f qcow2 -o data_file={RAW} {META} && rm {dummy} && "
        f"virsh dumpxml --inactive {GUEST} | sed 's#{source}#{META}#' > {FAST}/xml && virsh define {FAST}/xml && rm {FAST}/xml"
    )


def agrees(stage: Stage) -> None:
    """Does the raw image by itself show what the layer shows? (The guest is off.)"""
    told = stage.shell(f"qemu-img compare -f qcow2 -F raw {META} {RAW}; qemu-img check -q -f qcow2 {META} && echo sound")
    same(told.splitlines(), ["Images are identical.", "sound"], "the raw image is what the layer shows")


def begin(stage: Stage) -> None:
    stage.add(GUEST, "--slots", "32", "--size", "16")
    stage.end(GUEST)
    split(stage, IMAGES + "/split-current1.qcow2")


def taken(stage: Stage) -> None:
    """Nobody else's work touches a data file, also where only a header names it: it is in use as its layer is."""
    stage.add(OTHER, "--slots", "0", "--size", "16")
    stage.guest = OTHER
    dest = {"path": RAW, "format": "raw"}
    stage.refused("in_use", "is a layer of disk vda of guest split", "block_copy", name=OTHER, disk="vda", dest=dest, reuse_existing=True)
    stage.refused("in_use", "layer of disk vda of guest split", "external_snapshot", images=[RAW], format="raw", snapshot_name="s")
    stage.shell("virsh destroy %s; virsh attach-disk %s %s vdb --config --subdriver raw" % (OTHER, OTHER, RAW))
    stage.shell("qemu-img create -q -f qcow2 -b %s -F qcow2 %s/up.qcow2 && qemu-io -c 'write -P 1 0 64k' %s/up.qcow2" % (META, FAST, FAST))
    stage.refused("in_use|base_shared", "guest (split|thief)", "block_commit", images=[FAST + "/up.qcow2"], format="qcow2")
    stage.shell("virsh undefine %s; rm %s/up.qcow2" % (OTHER, FAST))
    stage.guests.discard(OTHER)
    stage.guest = GUEST


def overlaid(stage: Stage, path: str) -> None:
    """A new overlay, into which the guest has written if it runs."""
    result = stage.call("external_snapshot", name=GUEST, metadata=False, disks=[{"disk": "vda", "path": path}])
    true(result.get("changed") and not result.get("failed"), "the overlay is made", result)
    if "running" in stage.shell("virsh domstate %s" % GUEST):
        stage.acks(2)


def live(stage: Stage) -> None:
    """Overlays on the layer of a guest that writes are merged into it, and nothing is lost."""
    begin(stage)
    taken(stage)
    stage.cold_start(GUEST)
    one, two = FAST + "/one.qcow2", FAST + "/two.qcow2"
    overlaid(stage, two)
    stage.shell("qemu-img create -q -f qcow2 -b %s -F qcow2 %s 16M" % (META, one))
    dest = {"path": one, "format": "qcow2"}
    result = stage.call("block_copy", name=GUEST, disk="vda", dest=dest, shallow=True, reuse_existing=True, delete_source=True)
    same(chains(result), {"vda": [one, META]}, "a copy of the overlay stands on the same layer", result)
    stage.acks(2)
    result = stage.done("block_commit", {"vda": [META]}, name=GUEST, disk="vda", top=one, base=META, delete_merged=True)
    store = result["domains"][0]["disks"][0]["chain"][0]["data_store"]
    same((store["path"], store["raw"], store["relative"], stage.exists(one)), (RAW, True, False, False), "the layer has its data file", result)
    stage.cold_start(GUEST)
    overlaid(stage, one)
    overlaid(stage, two)
    result = stage.call("block_commit", name=GUEST, disk="vda", top=one, base=META, delete_merged=True)
    same(chains(result), {"vda": [two, META]}, "the middle is merged", result)
    stage.verified()
    result = stage.call("block_rebase", name=GUEST, disk="vda", delete_dropped=[META])
    same((chains(result), stage.exists(META), stage.exists(RAW)), ({"vda": [two]}, False, False), "the layer went with its data file", result)
    stage.cold_start(GUEST)
    stage.end(GUEST)
    split(stage, two)
    agrees(stage)
    stage.shell("virsh start %s" % GUEST)
    copied = IMAGES + "/split-copied.qcow2"
    result = stage.call("block_copy", name=GUEST, disk="vda", dest={"path": copied, "format": "qcow2"}, delete_source=True)
    removed = [step["does"] for step in result["steps"] if step["action"] == "delete"]
    same(removed, ["remove %s" % META, "remove %s, the data file of %s" % (RAW, META)], "both are removed", result)
    same((stage.exists(META), stage.exists(RAW)), (False, False), "both are gone")
    stage.verified()
    stage.cold_start(GUEST)


def off(stage: Stage) -> None:
    """The same with qemu-img, whose work goes through the layer, too."""
    stage.end(GUEST)
    split(stage, IMAGES + "/split-copied.qcow2")
    content = stage.content(META)
    one = FAST + "/one.qcow2"
    overlaid(stage, one)
    stage.shell("virsh start %s" % GUEST)
    stage.end(GUEST)
    written = stage.content(one)
    true(written != content, "the guest has written")
    result = stage.done("block_commit", {"vda": [META]}, name=GUEST, disk="vda", top=one, base=META, delete_merged=True)
    same(stage.content(META), written, "the layer shows what was merged into it", result)
    agrees(stage)
    stage.cold_start(GUEST)
    stage.end(GUEST)
    overlaid(stage, one)
    written = stage.content(one)
    result = stage.call("block_rebase", name=GUEST, disk="vda", delete_dropped=[META])
    same((chains(result), stage.content(one), stage.exists(META), stage.exists(RAW)), ({"vda": [one]}, written, False, False), "all is in the overlay", result)
    stage.cold_start(GUEST)


STORIES = [live, off]
