# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A module is killed in the middle of qemu-img's work on a guest that is off. See stage.py of the target external_snapshot.

Nobody opens the images as long as qemu-img goes on. What the guest would see stays the same all the time, and the next run does the rest.
"""

from __future__ import annotations

from functools import partial

from stage import FAST, IMAGES, Stage, same, true

GUEST = "killed"
LOWEST = [IMAGES + "/killed-current1.qcow2", IMAGES + "/killed-template.qcow2"]
TOP, MIDDLE = FAST + "/top.qcow2", FAST + "/middle.qcow2"
MIB = 1 << 20
# What takes long enough to be hit: each layer has bytes of its own, and the two kinds of work move those of one layer.
LAYERS = ((MIDDLE, LOWEST[0], "16M 32M"), (TOP, MIDDLE, "24M 4M"))
COMMIT = {"module": "block_commit", "name": GUEST, "disk": "vda", "top": MIDDLE, "base": LOWEST[0]}
PULL = {"module": "block_rebase", "name": GUEST, "disk": "vda", "base": LOWEST[0]}
HALF = {"commit": [LOWEST[0], 12 * MIB], "pull": [TOP, 12 * MIB]}
WORK = {"commit": COMMIT, "pull": PULL}


def begin(stage: Stage) -> list:
    """A guest that is off, with two more layers. What it would see."""
    if GUEST not in stage.guests:
        stage.add(GUEST, "--slots", "32", "--size", "64")
    stage.end(GUEST)
    for path, below, what in LAYERS:
        write = "qemu-io -c 'write -P %d %s' %s" % (next(stage.serial), what, path)
        stage.shell("qemu-img create -q -f qcow2 -b %s -F qcow2 %s && %s" % (below, path, write))
    stage.shell(f"virsh dumpxml --inactive {GUEST} | sed 's#{LOWEST[0]}#{TOP}#' > {FAST}/x.xml && virsh define {FAST}/x.xml && rm {FAST}/x.xml")
    same(stage.headers(GUEST)["vda"], [TOP, MIDDLE] + LOWEST, "the chain")
    return stage.seen(GUEST)


def rest(stage: Stage, work: str, content: list, left: bool = True) -> None:
    """The next run does what is left, and the guest is whole. Then all is merged, for the next story."""
    same(stage.seen(GUEST), content, "the content after the kill")
    result = stage.call(**WORK[work])
    same((result.get("changed"), result.get("failed")), (left, None), "the next run does the rest", result)
    after = [TOP] + LOWEST
    same((stage.headers(GUEST)["vda"], stage.seen(GUEST)), (after, content), "the chain and the content", result)
    stage.again(**WORK[work])
    stage.cold_start(GUEST)
    same(stage.paths(GUEST)["vda"], after, "the chain of the running guest")
    stage.done("block_commit", name=GUEST, disk="vda", top=TOP, base=LOWEST[0])


def goes_on(stage: Stage, work: str) -> None:
    """qemu-img outlives the module, and keeps the images locked until it ends."""
    content = begin(stage)
    result = stage.call(fault={"work": HALF[work], "kill": {"module": "KILL"}}, **WORK[work])
    same(list(result), ["warnings"], "it was killed")
    worker = stage.shell("pgrep -x qemu-img")
    true("Failed to get" in stage.shell("virsh start %s 2>&1; true" % GUEST), "libvirt cannot start the guest meanwhile")
    stage.refused("in_use", "the process %s, qemu-img, has locked it" % worker, **WORK[work])
    same(stage.seen(GUEST), content, "the content in between")
    stage.shell("kill -CONT %s; while [ -e /proc/%s ]; do sleep 0.05; done" % (worker, worker))
    rest(stage, work, content, left=work == "commit")  # a pull is done with the last that qemu-img does


def ends(stage: Stage, work: str) -> None:
    """qemu-img is killed as well, as when the host dies."""
    content = begin(stage)
    result = stage.call(fault={"work": HALF[work], "kill": {"module": "KILL"}, "ends": True}, **WORK[work])
    same((list(result), stage.headers(GUEST)["vda"]), (["warnings"], [TOP, MIDDLE] + LOWEST), "it was killed, and the chain")
    rest(stage, work, content)


def started(stage: Stage) -> None:
    """Somebody starts the guest then. The next run does it live."""
    begin(stage)
    stage.call(fault={"work": HALF["commit"], "kill": {"module": "KILL"}, "ends": True}, **COMMIT)
    stage.cold_start(GUEST)
    stage.done(**COMMIT, wanted={"vda": [TOP] + LOWEST})
    stage.done("block_commit", name=GUEST, disk="vda", top=TOP, base=LOWEST[0])
    stage.cold_start(GUEST)


def interrupted(stage: Stage, work: str) -> None:
    """The module is told to end: it ends qemu-img, and says how the guest stands."""
    content = begin(stage)
    result = stage.call(fault={"work": HALF[work], "kill": {"module": "TERM"}}, **WORK[work])
    same((result.get("code"), result.get("rolled_back"), result.get("changed")), ("interrupted", True, False), "what it says", result)
    workers = stage.shell("pgrep -x -r D,R,S,T qemu-img; true")
    same((stage.headers(GUEST)["vda"], workers), ([TOP, MIDDLE] + LOWEST, ""), "the chain, and who works on it", result)
    rest(stage, work, content)


def told(story, work: str):
    found = partial(story, work=work)
    found.__name__ = "%s, %s" % (story.__name__, work)
    return found


STORIES = [
    told(goes_on, "commit"),
    told(goes_on, "pull"),
    told(ends, "commit"),
    told(ends, "pull"),
    started,
    told(interrupted, "commit"),
    told(interrupted, "pull"),
]
