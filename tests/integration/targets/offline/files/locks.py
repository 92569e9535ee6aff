# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Nothing is done to images that anybody holds, nor to a guest that is off but not at rest. See stage.py of the target external_snapshot."""

from __future__ import annotations

from stage import FAST, IMAGES, Stage, same, true

GUEST, OTHER = "locked", "other"
LAYERS = [IMAGES + "/locked-%s.qcow2" % name for name in ("c", "b", "a", "t")]
TOP, UPPER, LOWER, TEMPLATE = LAYERS
DISK = {"name": GUEST, "disk": "vda"}
COMMIT = dict(DISK, module="block_commit", top=UPPER, base=LOWER)
PULL = dict(DISK, module="block_rebase", top=UPPER, base=TEMPLATE)
SNAPSHOT = {"module": "external_snapshot", "name": GUEST, "snapshot_name": "s"}
LAYER = {"module": "external_snapshot", "name": GUEST, "state": "absent", "disks": [{"disk": "vda", "layer": UPPER}]}
ALL = (COMMIT, PULL, SNAPSHOT, LAYER)


def begin(stage: Stage) -> None:
    if GUEST not in stage.guests:
        stage.add(GUEST, "--slots", "32", "--size", "32", "--layers", "t,a,b,c")
        stage.end(GUEST)
        for number, path in enumerate(LAYERS):
            stage.shell("qemu-io -f qcow2 -c 'write -P %d %dM 1M' %s" % (number + 1, 20 + number, path))


def held(stage: Stage) -> None:
    """By an export, for writing and for reading, by a program that looks into it, and by another guest."""
    begin(stage)
    export = f"qemu-nbd --fork --persistent %s --pid-file {FAST}/n.pid -k {FAST}/n.sock -f qcow2 %s"
    for options, image, refused in (("", UPPER, (PULL, LAYER)), ("-r", LOWER, (COMMIT,))):
        stage.shell(export % (options, image))
        for work in refused:
            stage.refused("in_use", "%s of disk vda of guest locked is in use .the process .*, qemu-nbd, has locked it" % image, **work)
        stage.shell("p=$(cat %s/n.pid); kill $p; while [ -e /proc/$p ]; do sleep 0.05; done" % FAST)
    stage.shell("(sleep 60 | qemu-io -f qcow2 %s) < /dev/null > /dev/null 2>&1 & until pgrep -x qemu-io; do sleep 0.05; done; sleep 0.2" % TOP)
    stage.refused("in_use", "qemu-io, has locked it", **SNAPSHOT)
    stage.shell("kill $(pgrep -x qemu-io)")


def shared(stage: Stage) -> None:
    """By another guest, which is on this one's second layer: off and running."""
    stage.shell(
        f"virsh dumpxml --inactive {GUEST} | sed '/<uuid>/d; s#<name>.*#<name>{OTHER}</name>#; s#{TOP}#{UPPER}#; s#{GUEST}.acks#{OTHER}.acks#'"
        f" > {FAST}/x.xml && virsh define {FAST}/x.xml"
    )
    stage.mended.append("virsh undefine " + OTHER)
    stage.refused("base_shared", "is also a layer of disk vda of guest other", module="block_commit", **DISK, top=TOP, base=UPPER)
    stage.refused("in_use", "is a layer of disk vda of guest other", **PULL)
    stage.shell("virsh start " + OTHER)
    stage.refused("in_use", "QEMU of guest other, has locked it", **SNAPSHOT)
    stage.shell("virsh destroy " + OTHER)


def not_at_rest(stage: Stage) -> None:
    """A guest whose memory is saved expects its disks as they are; bitmaps would be lost. And a task without wait cannot be done later."""
    stage.shell(f"virsh start {GUEST} && virsh managedsave {GUEST}")
    for work in ALL:
        stage.refused("saved", "Guest locked is saved with its memory", **work)
    stage.shell(f"virsh managedsave-remove {GUEST}; virsh start {GUEST}; virsh checkpoint-create-as {GUEST} c; virsh destroy {GUEST}")
    for work in ALL:
        stage.refused("checkpoints", "checkpoints of disk vda of guest locked, whose bitmaps", **work)
    stage.shell(f"virsh start {GUEST}; virsh checkpoint-delete {GUEST} c; virsh destroy {GUEST}")
    for work in (COMMIT, PULL, LAYER):
        stage.refused("offline_waits", "is done by this very task", **work, wait=False)
    stage.cold_start(GUEST)
    stage.end(GUEST)


def spelled_out(stage: Stage) -> None:
    """A definition that names the whole chain has to agree with the headers, and is put right."""
    chain = "".join('<backingStore type="file"><format type="qcow2"/><source file="%s"/>' % path for path in LAYERS[1:])
    chain += "<backingStore/>" + "</backingStore>" * len(LAYERS[1:])
    stage.shell(
        f"virsh dumpxml --inactive {GUEST} | sed '/<backingStore/d; /<.backingStore/d; s#<target dev=#{chain}&#' > {FAST}/x.xml && virsh define {FAST}/x.xml"
    )
    same(stage.paths(GUEST, now=False)["vda"], LAYERS, "the definition")
    content = stage.seen(GUEST)
    stage.shell("qemu-img rebase -u -b %s -F qcow2 %s" % (LOWER, TOP))
    for work in ALL:
        stage.refused("chain_differs", "%s on %s on %s.*headers say %s on %s" % (TOP, UPPER, LOWER, TOP, LOWER), **work)
    stage.shell("qemu-img rebase -u -b %s -F qcow2 %s" % (UPPER, TOP))
    stage.done(**COMMIT, wanted={"vda": [TOP, LOWER, TEMPLATE]})
    same((stage.paths(GUEST, now=False)["vda"], stage.seen(GUEST)), ([TOP, LOWER, TEMPLATE], content), "the definition and the content")
    overlay = TOP.replace(".qcow2", ".s")
    stage.done(**SNAPSHOT, wanted={"vda": [overlay, TOP, LOWER, TEMPLATE]})
    stage.done(**dict(PULL, top=TOP), wanted={"vda": [overlay, TOP, TEMPLATE]})
    stage.done(**dict(SNAPSHOT, state="absent"), merge="forward", wanted={"vda": [overlay, TEMPLATE]})
    same((stage.headers(GUEST)["vda"], stage.seen(GUEST)), ([overlay, TEMPLATE], content), "the chain and the content")
    stage.cold_start(GUEST)
    same(stage.paths(GUEST)["vda"], [overlay, TEMPLATE], "the chain of the running guest")
    stage.end(GUEST)


def two_runs(stage: Stage) -> None:
    """Of two runs at once one does it, and the other is told why it does not."""
    bare = [FAST + "/top.qcow2", FAST + "/base.qcow2"]
    stage.shell(
        "qemu-img create -q -f qcow2 %s 32M && qemu-img create -q -f qcow2 -b %s -F qcow2 %s && qemu-io -c 'write -P 9 0 16M' %s"
        % (bare[1], bare[1], bare[0], bare[0])
    )
    content = stage.content(bare[0])
    run = {"module": "block_commit", "args": {"images": bare[:1], "format": "qcow2", "base": bare[1], "bandwidth": "16MiB"}}
    results = [one["result"] for one in stage.ask("race", runs=[run, run])["answers"]]
    codes = sorted(one.get("code", "done") for one in results)
    changed = sorted(one["changed"] for one in results)
    # On a busy machine the second one may begin when the first is at its end.
    right = codes in (["done", "in_use"], ["done", "moved"]) or (codes, changed) == (["done", "done"], [False, True])
    true(right, "one has done it", {"results": results})
    same(stage.content(*bare), content * 2, "the contents")


STORIES = [held, shared, not_at_rest, spelled_out, two_runs]
