# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirtd killed in the pivot, a varied time after the call, again and again. Each time the module's word has to be true, a second
run has to lead on, and a cold start must lose nothing."""

from __future__ import annotations

import random

from scene import Move, Scene, Tally, Wrong

# Tells QEMU what libvirt's pivot tells it.
COMPLETE = """virsh qemu-monitor-command drained "$(printf '{"execute": "job-complete", "arguments": {"id": "%s"}}' \
    $(virsh qemu-monitor-command drained '{"execute": "query-jobs"}' | grep -o 'copy-vda[^"]*'))" """
LONGEST = 0.008  # seconds from the call to the kill
WANTED = ("stale", "silent", "orphan")
BUSY = ("--size", "8", "--slots", "64", "--delay", "0")
DRAINED = ("--size", "16", "--slots", "64")
SIZE = ("--size", "8", "--slots", "64")


def copies(scene: Scene, tally: Tally, tries: int, wanted=()) -> None:
    """At most so many tries, until each of the wanted kinds was met."""
    scene.fresh_guest("copied", *SIZE)
    for number in range(tries):
        if wanted and all(kind in tally.kinds for kind in wanted):
            break
        tally.add(scene.caught(tally, lambda number=number: copied(scene, number, random.uniform(0, LONGEST)), "copied", *SIZE))


def copied(scene: Scene, number: int, delay: float) -> str:
    """One copy: of everything to qcow2, to raw, or of an overlay alone, so that the definition names a chain."""
    shallow, image_format = number % 3 == 2, "raw" if number % 3 == 1 else "qcow2"
    garbage = [scene.facts()["live"]]
    if shallow:
        overlay = scene.path("qcow2")
        scene.shell("virsh snapshot-create-as %s --disk-only --atomic --no-metadata --diskspec vda,file=%s" % (scene.guest, overlay))
        garbage = [overlay]
    move = Move("vda", garbage[-1], scene.path(image_format))
    task = {"disk": "vda", "dest": {"path": move.new, "format": image_format}, "shallow": shallow}
    kind = tried(scene, move, "block_copy", task, delay)
    scene.shell("rm -f " + " ".join(path for path in garbage if path.startswith("/srv/fast/")))
    return kind


def commits(scene: Scene, tally: Tally, tries: int, wanted=()) -> None:
    """The same of an active commit, which pivots back to its base."""
    scene.fresh_guest("committed", *SIZE)
    for dummy in range(tries):
        tally.add(scene.caught(tally, lambda: committed(scene), "committed", *SIZE))


def committed(scene: Scene) -> str:
    base, overlay = scene.facts()["live"], scene.path("qcow2")
    scene.shell("virsh snapshot-create-as %s --disk-only --atomic --no-metadata --diskspec vda,file=%s" % (scene.guest, overlay))
    move = Move("vda", overlay, base, creates=False)
    kind = tried(scene, move, "block_commit", {"disk": "vda", "top": overlay, "base": base}, random.uniform(0, LONGEST))
    scene.shell("rm -f %s" % overlay)
    return kind


def tried(scene: Scene, move: Move, module: str, task: dict, delay: float) -> str:
    """What the daemon's death so long after the call made of the pivot. Raises Wrong."""
    away = random.choice((0.0, 0.0, 0.3))
    kind = "?"
    # Every fourth time the module dies with it: then the second run is the first that speaks.
    kill = {"daemon": "KILL", "module": "KILL"} if random.random() < 0.25 else {"daemon": "KILL"}
    try:
        phase = "whole"
        if random.random() < 0.5:  # as the action plugin does it
            phase = "finish"
            started = scene.run(module, phase="start", **task)["result"]
            scene.true(bool(started.get("job")), "the phase start leaves a job", started, scene.facts(move.disk), move)
        first = scene.run(module, fault={"when": "pivot", "delay": delay, "kill": kill, "away": away}, phase=phase, **task)
        result, facts = first["result"], scene.facts(move.disk)
        kind = scene.kind(first, facts, move)
        if result is not None:
            scene.judge(result, facts, move)
        follow(scene, move, module, task, kind)
    except Wrong as error:
        raise Wrong("%s after %.2f ms (%s): %s" % (module, delay * 1000, kind, error)) from error
    said = "killed, too" if result is None else "all is well" if not result.get("failed") else "%s, rolled_back %s" % (result["code"], result["rolled_back"])
    print("%s: killed %.2f ms after the pivot: %s, the module: %s, in %.1f s" % (module, delay * 1000, kind, said, first["seconds"]), flush=True)
    return kind


def follow(scene: Scene, move: Move, module: str, task: dict, kind: str) -> None:
    """A second run, a cold start as it says, and a third run, which has nothing to do."""
    second = scene.run(module, **task)["result"]
    facts = scene.facts(move.disk)
    scene.judge(second, facts, move)
    scene.true(not second.get("failed") or kind in WANTED, "a second run cannot end well", second, facts, move)
    scene.cold_start(facts)
    third = scene.run(module, **task)["result"]
    facts = scene.facts(move.disk)
    scene.judge(third, facts, move)
    scene.true(not third.get("failed") and not third["changed"], "a run after the cold start has nothing to do", third, facts, move)


def deaths(scene: Scene, tally: Tally, tries: int, wanted=()) -> None:
    """QEMU itself killed there: what the guest wrote last is in one of the images, and that one stays."""
    scene.fresh_guest("killed", *BUSY)
    for dummy in range(tries):
        tally.add(scene.caught(tally, lambda: death(scene), "killed", *BUSY))


def death(scene: Scene) -> str:
    delay = random.uniform(0, LONGEST)
    old = scene.facts()["live"]
    move = Move("vda", old, scene.path("qcow2"))
    task = {"disk": "vda", "dest": {"path": move.new, "format": "qcow2"}}
    result = scene.run("block_copy", fault={"when": "pivot", "delay": delay, "kill": {"qemu": "KILL"}}, **task)["result"]
    facts = scene.facts()
    told = bool(result.get("failed")) and result["code"] in ("guest_stopped", "verify_failed") and not result["rolled_back"]
    scene.true(told, "it says that the guest stopped", result, facts, move)
    scene.judge(result, facts, move)
    where = scene.remains(move, "qcow2")
    print("QEMU killed %.2f ms after the pivot: %s, the writes are in the %s image" % (delay * 1000, result["code"], where), flush=True)
    if where == "new":
        scene.fresh_guest("killed", *BUSY)
        return "only the new image has all writes"
    scene.shell("virsh start killed")
    again = scene.run("block_copy", **task)["result"]
    if again.get("failed") and again["code"] == "exists":  # it was kept, since it might have held what was written last
        scene.shell("rm %s" % move.new)
        again = scene.run("block_copy", **task)["result"]
    facts = scene.facts()
    scene.judge(again, facts, move)
    scene.true(not again.get("failed"), "a second run ends well", again, facts, move)
    scene.cold_start(facts)
    scene.tidy(old)
    return "started again"


def drains(scene: Scene, tally: Tally, tries: int, wanted=()) -> None:
    """A pivot that QEMU was told of, and the daemon died before it wrote that down: QEMU copies on, and pivots when it is done.

    Every second time the module dies with it, and the next run is to end the copy: it cannot, and has to say so.
    """
    scene.fresh_guest("drained", *DRAINED)
    for number in range(tries):
        tally.add(scene.caught(tally, lambda number=number: drained(scene, 2048 + 512 * (number // 2 % 6), number % 2 == 1), "drained", *DRAINED))


def drained(scene: Scene, kibibytes: int, ended: bool) -> str:
    """To an NBD server that is slow enough for the copy to go on while the daemon is started again."""
    old = scene.facts()["live"]
    image, port = scene.path("raw"), 20000 + next(scene.serial)
    scene.shell(
        "truncate -s 16M %s && qemu-nbd --fork --persistent --shared 8 --port %d --export-name x --pid-file %s.pid "
        "--object throttle-group,id=t,x-bps-write=4194304 --image-opts driver=throttle,throttle-group=t,file.driver=raw,file.file.driver=file,"
        "file.file.filename=%s >/dev/null 2>&1" % (image, port, image, image)
    )
    move = Move("vda", old, "nbd://127.0.0.1:%d/x" % port, creates=False)
    task = {"disk": "vda", "dest": {"protocol": "nbd", "name": "x", "host": [{"name": "127.0.0.1", "port": port}], "format": "raw"}}
    scene.run("block_copy", state="mirrored", **task)
    scene.shell("virsh qemu-monitor-command drained --hmp 'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend \"write -P 0x5a 8M %dk\"'" % kibibytes)
    fault = {"when": "before_pivot", "first": COMPLETE, "kill": {"daemon": "KILL"}, "away": 0}
    if ended:
        scene.run("block_copy", fault=dict(fault, kill={"daemon": "KILL", "module": "KILL"}), **task)
        answer = scene.run("block_copy", state="absent", **task)
        if answer["result"].get("failed"):  # it says that running it again protects the next start
            told = answer["result"]["code"] == "stale_pivot" and not answer["result"]["rolled_back"]
            scene.true(told, "it could not end it", answer["result"], scene.facts(), move)
            answer = scene.run("block_copy", state="absent", **task)
    else:
        answer = scene.run("block_copy", fault=fault, **task)
    result, facts = answer["result"], scene.facts()
    kind = scene.kind(answer, facts, move)
    print("%s while QEMU goes on to its pivot: %s, the module: %s" % ("ended" if ended else "pivoted", kind, result.get("code", "all is well")), flush=True)
    if ended and not result.get("failed"):
        scene.true(facts["written"] == facts["live"] == old and not facts["job"], "it says that the copy has ended", result, facts, move)
        kind = "ended"
    else:
        scene.judge(result, facts, move)
        second = scene.run("block_copy", **task)["result"]
        facts = scene.facts()
        scene.judge(second, facts, move)
        scene.cold_start(facts, move.new + ",raw")
        third = scene.run("block_copy", **task)["result"]
        facts = scene.facts()
        scene.judge(third, facts, move)
        scene.true(not third.get("failed") and not third["changed"], "a run after the cold start has nothing to do", third, facts, move)
        back = Move("vda", move.new, scene.path("qcow2"))
        scene.judge(scene.run("block_copy", disk="vda", dest={"path": back.new, "format": "qcow2"})["result"], scene.facts(), back)
        scene.tidy(old)
    scene.shell("kill $(cat %s.pid); rm -f %s" % (image, image))
    return kind


def interruptions(scene: Scene, tally: Tally, tries: int, wanted=()) -> None:
    """The module itself is told to end there: alone, and with the daemon."""
    scene.fresh_guest("stopped", *SIZE)
    for number in range(tries):
        tally.add(scene.caught(tally, lambda number=number: interrupted(scene, number % 2 == 1), "stopped", *SIZE))


def interrupted(scene: Scene, both: bool) -> str:
    old, delay = scene.facts()["live"], random.uniform(0, LONGEST)
    move = Move("vda", old, scene.path("qcow2"))
    task = {"disk": "vda", "dest": {"path": move.new, "format": "qcow2"}}
    kill = {"daemon": "KILL", "module": "TERM"} if both else {"module": "TERM"}
    answer = scene.run("block_copy", fault={"when": "pivot", "delay": delay, "kill": kill, "away": 0}, **task)
    result, facts = answer["result"], scene.facts()
    kind = "as before" if result["rolled_back"] else scene.kind(answer, facts, move) if both else "pivoted"
    who, code = "the module and the daemon" if both else "the module", result.get("code", "all is well")
    print("%s, %.2f ms after the pivot: %s, it says: %s, rolled_back %s" % (who, delay * 1000, kind, code, result["rolled_back"]), flush=True)
    scene.judge(result, facts, move)
    follow(scene, move, "block_copy", task, kind)
    if facts["live"] != old:
        scene.tidy(old)
    return kind
