# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can die or fail when half of a copy is done, and when it is ready: the module's word, a second run, and a cold start."""

from __future__ import annotations

from scene import Move, Scene, Tally

SIZE = ("--size", "16", "--slots", "64", "--fill", "6")
# Slow enough to be half done for a while; QEMU's mirror takes steps of its buffer.
SLOW = {"bandwidth": "4MiB", "buf_size": "256KiB"}
MOMENTS = ("half", "before_pivot")
# What happens, and the code that the module has to fail with: None where it has to end well, "" where it is killed.
FAULTS = {
    "the module is killed": ({"kill": {"module": "KILL"}}, {}, ""),
    "the module is interrupted": ({"kill": {"module": "TERM"}}, {}, "interrupted"),
    "the daemon dies and comes back": ({"kill": {"daemon": "KILL"}, "away": 0.3}, {}, None),
    "the daemon stays away": ({"kill": {"daemon": "KILL"}}, {"patience": 1.5}, "pivot_lost connection_lost"),
    "both die": ({"kill": {"daemon": "KILL", "module": "KILL"}}, {}, ""),
    "QEMU dies": ({"kill": {"qemu": "KILL"}}, {}, "guest_stopped"),
    "the guest is destroyed": ({"first": "virsh destroy halved"}, {}, "guest_stopped"),
}
SHORT = [("both die", "before_pivot"), ("the daemon stays away", "before_pivot"), ("QEMU dies", "half")]


def everything(scene: Scene, tally: Tally, tries: int, wanted=()) -> None:
    """``tries``: 0 for all of it, else the short form."""
    scene.fresh_guest("halved", *SIZE)
    pairs = SHORT if tries else [(name, moment) for name in FAULTS for moment in MOMENTS]
    attempts = [(lambda name=name, moment=moment: struck(scene, name, moment)) for name, moment in pairs]
    attempts += [lambda: full(scene), lambda: raced(scene)] + ([] if tries else [lambda: server_gone(scene)])
    for attempt in attempts:
        tally.add(scene.caught(tally, attempt, "halved", *SIZE))


def struck(scene: Scene, name: str, moment: str) -> str:
    fault, more, code = FAULTS[name]
    old = scene.facts()["live"]
    move = Move("vda", old, scene.path("qcow2"))
    task = {"disk": "vda", "dest": {"path": move.new, "format": "qcow2"}, "poll_interval": 0.1}
    first = scene.run("block_copy", fault=dict(fault, when=moment), more=more, **dict(task, **(SLOW if moment == "half" else {})))
    facts = scene.facts()
    result = first["result"]
    said = "nothing" if result is None else "all is well" if not result.get("failed") else "%s, rolled_back %s" % (result["code"], result["rolled_back"])
    print("%s (%s): %s, in %.1f s" % (name, moment, said, first["seconds"]), flush=True)
    if code == "":
        goes_on = result is None and first["status"] == -9 and facts["job"] and facts["live"] == old
        scene.true(goes_on, "it was killed, and the copy goes on", result, facts, move)
    elif code is None:
        scene.judge(result, facts, move)
        scene.true(not result.get("failed"), "it ends well", result, facts, move)
    else:
        scene.true(bool(result.get("failed")) and result["code"] in code.split(), "the code is one of %s" % code, result, facts, move)
        scene.judge(result, facts, move)
    # What is interrupted while it pivots may have done so.
    scene.true(code != "interrupted" or moment != "half" or result["rolled_back"], "it has cleaned up", result, facts, move)
    if not facts["active"]:
        scene.verified()
        scene.shell("virsh start %s" % scene.guest)
    second = scene.run("block_copy", **task)["result"]
    facts = scene.facts()
    if second.get("failed") and second["code"] == "exists" and result["code"] == "guest_stopped" and moment == "before_pivot":
        # It was kept: the guest may have written to it last.
        scene.shell("rm %s" % move.new)
        second = scene.run("block_copy", **task)["result"]
        facts = scene.facts()
    scene.judge(second, facts, move)
    scene.true(not second.get("failed"), "a second run ends well", second, facts, move)
    steps = [step["action"] for step in second["steps"]]
    goes_on = code is None or code in ("", "pivot_lost connection_lost")
    scene.true(not goes_on or "copy" not in steps, "it adopts what goes on", dict(second, msg=steps), facts, move)
    scene.cold_start(facts)
    third = scene.run("block_copy", **task)["result"]
    scene.true(not third.get("failed") and not third["changed"], "a run after the cold start has nothing to do", third, scene.facts(), move)
    scene.tidy(old)
    return name


def failing(scene: Scene, move: Move, task: dict, first: str, mended: str) -> None:
    """The storage of the destination fails in the middle."""
    result = scene.run("block_copy", fault={"when": "half", "first": first}, **dict(task, **SLOW))["result"]
    facts = scene.facts()
    scene.true(bool(result.get("failed")) and result["code"] == "job_failed" and result["rolled_back"], "it fails, as before", result, facts, move)
    scene.judge(result, facts, move)
    scene.verified()
    scene.shell(mended)


def full(scene: Scene) -> str:
    """A file system that others fill."""
    old = scene.facts()["live"]
    scene.shell("mkdir -p /srv/fast/small && mount -t tmpfs -o size=12M tmpfs /srv/fast/small")
    move = Move("vda", old, "/srv/fast/small/copy.qcow2")
    task = {"disk": "vda", "dest": {"path": move.new, "format": "qcow2"}, "poll_interval": 0.1}
    fill = "dd if=/dev/zero of=/srv/fast/small/filler bs=64k count=1000 2>/dev/null || true"
    try:
        failing(scene, move, task, fill, "rm /srv/fast/small/filler")
        second = scene.run("block_copy", **task)["result"]
        facts = scene.facts()
        scene.judge(second, facts, move)
        scene.true(not second.get("failed"), "a second run ends well", second, facts, move)
        scene.verified()
        back = Move("vda", move.new, scene.path("qcow2"))
        scene.judge(scene.run("block_copy", disk="vda", dest={"path": back.new, "format": "qcow2"}, delete_source=True)["result"], scene.facts(), back)
    finally:
        scene.shell("umount -l /srv/fast/small")
    scene.tidy(old)
    return "the storage is full"


def server_gone(scene: Scene) -> str:
    """An NBD server that dies, and its successor."""
    old = scene.facts()["live"]
    image, port = scene.path("raw"), 20000 + next(scene.serial)
    pidfile = image + ".pid"
    serve = "qemu-nbd --fork --persistent --shared 8 --port %d --export-name x --pid-file %s -f raw %s >/dev/null 2>&1" % (port, pidfile, image)
    scene.shell("truncate -s 16M %s && %s" % (image, serve))
    move = Move("vda", old, "nbd://127.0.0.1:%d/x" % port, creates=False)
    task = {"disk": "vda", "dest": {"protocol": "nbd", "name": "x", "host": [{"name": "127.0.0.1", "port": port}], "format": "raw"}, "poll_interval": 0.1}
    failing(scene, move, task, "kill -KILL $(cat %s)" % pidfile, serve)
    second = scene.run("block_copy", **task)["result"]
    facts = scene.facts()
    scene.judge(second, facts, move)
    scene.true(not second.get("failed"), "a second run ends well", second, facts, move)
    scene.verified(move.new + ",raw")
    back = Move("vda", move.new, scene.path("qcow2"))
    scene.judge(scene.run("block_copy", disk="vda", dest={"path": back.new, "format": "qcow2"})["result"], scene.facts(), back)
    scene.shell("kill $(cat %s); rm -f %s" % (pidfile, image))
    scene.tidy(old)
    return "the server dies"


def raced(scene: Scene) -> str:
    """Two runs to the same destination at the same moment: one copy."""
    old = scene.facts()["live"]
    move = Move("vda", old, scene.path("qcow2"))
    arguments = dict(SLOW, name=scene.guest, disk="vda", dest={"path": move.new, "format": "qcow2"}, poll_interval=0.1)
    answers = scene.ask("race", runs=[{"module": "block_copy", "args": arguments}] * 2)["answers"]
    results, facts = [one["result"] for one in answers], scene.facts()
    said = [one.get("code", "all is well") for one in results]
    print("two at once: %s" % said, flush=True)
    begun = [one for one in results if any(step["action"] == "copy" and step["begun"] for step in one["steps"]) and not one.get("failed")]
    scene.true(any(not one.get("failed") for one in results), "one of them ends well", results[0], facts, move)
    scene.true(len(begun) == 1, "there is one copy", results[0], facts, move)
    for one in results:
        if one.get("failed"):
            scene.true(one["code"] in ("foreign_job", "moved", "exists", "in_use"), "the other is told why", one, facts, move)
        else:
            scene.judge(one, facts, move)
    scene.verified()
    scene.tidy(old)
    return "two at once"
