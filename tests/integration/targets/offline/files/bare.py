# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that belong to no guest. See stage.py of the target external_snapshot."""

from __future__ import annotations

from stage import FAST, IMAGES, Stage, chains, same, true

TOP, UPPER, LOWER, BASE = CHAIN = ["%s/%s.qcow2" % (FAST, name) for name in ("d", "c", "b", "a")]
GUEST = "owner"


def begin(stage: Stage, *relative: str) -> list:
    """A chain of four, each with bytes of its own. ``relative``: those whose header names the one below without its folder."""
    for number, (path, below) in enumerate(zip(reversed(CHAIN), [None, *reversed(CHAIN)])):
        name = below if below is None or path not in relative else below.rpartition("/")[2]
        options = "%s 16M" % path if name is None else "-b %s -F qcow2 %s" % (name, path)
        stage.shell(f"cd {FAST} && qemu-img create -q -f qcow2 {options} && qemu-io -c 'write -P {number + 1} {2 * number}M 3M' {path}")
    return stage.content(TOP)


def image(*paths: str, **more) -> dict:
    return dict(more, images=list(paths), format="qcow2")


def merged(stage: Stage) -> None:
    """A layer in the middle, then the pull of another, then all that is left, and a snapshot: with their files, and the same when run again."""
    content = begin(stage, TOP, UPPER)
    stage.done("block_commit", {TOP: [TOP, LOWER, BASE]}, **image(TOP, top=UPPER, base=LOWER, keep_relative=True, delete_merged=True))
    name = stage.shell("qemu-img info -f qcow2 %s | sed -n 's/^backing file: //p'" % TOP)
    same((stage.below(TOP), stage.content(TOP), stage.exists(UPPER), name.split()[0]), ([TOP, LOWER, BASE], content, False, "b.qcow2"), "the chain")
    stage.done("block_rebase", {TOP: [TOP, BASE]}, **image(TOP, base=BASE, delete_dropped=[LOWER]))
    same((stage.below(TOP), stage.content(TOP), stage.exists(LOWER)), ([TOP, BASE], content, False), "the chain")
    stage.done("external_snapshot", {TOP: [FAST + "/d.night", TOP, BASE]}, **image(TOP, snapshot_name="night"))
    same((stage.below(FAST + "/d.night"), stage.content(FAST + "/d.night")), ([FAST + "/d.night", TOP, BASE], content), "the chain")
    stage.shell("rm %s/d.night" % FAST)
    stage.done("block_commit", {TOP: [BASE]}, **image(TOP))
    same(stage.content(TOP, BASE), content * 2, "the contents")
    result = stage.call("block_commit", **image(TOP, base=BASE, delete_merged=True))
    same((result.get("changed"), stage.exists(TOP), stage.content(BASE)), (True, False, content), "the file that is left goes", result)
    stage.again("block_commit", **image(TOP, base=BASE, delete_merged=True))
    stage.refused("image_missing", "is not there", "block_commit", **image(TOP))


def several(stage: Stage) -> None:
    """Two at once; a base that is too small grows if that is asked for."""
    content = begin(stage)
    copies = ["%s/%d.qcow2" % (FAST, number) for number in (1, 2)]
    for path in copies:
        stage.shell(f"cp {BASE} {path}.base; qemu-img create -q -f qcow2 -b {path}.base -F qcow2 {path} 24M; qemu-io -c 'write -P 7 20M 1M' {path}")
    stage.refused("base_smaller", "has 16777216 bytes, and .* above it has 25165824", "block_commit", **image(*copies))
    wanted = stage.content(*copies)
    result = stage.done("block_commit", {path: [path + ".base"] for path in copies}, **image(*copies, resize_base=True))
    same(stage.content(*[path + ".base" for path in copies]), wanted, "the contents", result)
    result = stage.call("block_commit", **image(*copies, resize_base=True, delete_merged=True))
    same([path for path in copies if stage.exists(path)], [], "the files")
    result = stage.call("block_rebase", True, **image(TOP, top=UPPER))
    same((chains(result), stage.content(TOP)), ({TOP: [TOP, UPPER]}, content), "what a pull into the middle would do", result)


def owned(stage: Stage) -> None:
    """Those of a guest, running or off, are only touched by the name of the guest. A clone on them may leave them, and not write into them."""
    stage.add(GUEST, "--slots", "32", "--size", "16")
    active, clone = IMAGES + "/owner-current1.qcow2", FAST + "/clone.qcow2"
    for state in ("running", "off"):
        if state == "off":
            stage.end(GUEST)
        stage.refused("in_use|base_shared", "owner", "block_commit", **image(active))
        stage.refused("in_use", "owner", "block_rebase", **image(active))
        stage.refused("in_use", "owner", "external_snapshot", **image(active, snapshot_name="s"))
    stage.shell("qemu-img create -q -f qcow2 -b %s -F qcow2 %s && qemu-io -c 'write -P 1 12M 64k' %s" % (active, clone, clone))
    content = stage.content(clone, active)
    stage.refused("base_shared", "is also a layer of disk vda of guest owner", "block_commit", **image(clone))
    stage.done("block_rebase", {clone: [clone]}, **image(clone))
    same(stage.content(clone, active), content, "the contents")
    true(stage.below(clone) == [clone], "it stands alone")
    stage.cold_start(GUEST)


STORIES = [merged, several, owned]
