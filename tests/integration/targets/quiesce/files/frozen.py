# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots with the file systems at rest, of a Linux guest with its agent, and of guests without one. See stage.py of the target external_snapshot.

The agent takes FREEZE seconds before it freezes, and answers nobody meanwhile: who gives it less time sees it hang.
"""

from __future__ import annotations

import json
import time

import verify  # the lab's own
from stage import FAST, IMAGES, Stage, same, true

GUEST, PLAIN = "frozen", "plain"
FREEZE = 2
LOWEST = IMAGES + "/frozen-current1.qcow2"
SNAPSHOT = {"module": "external_snapshot", "name": GUEST}
CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"


def frozen(stage: Stage) -> str:
    """What the agent says."""
    return json.loads(stage.shell("virsh qemu-agent-command %s '{\"execute\": \"guest-fsfreeze-status\"}'" % GUEST))["return"]


def writes(stage: Stage) -> None:
    """It is not frozen, and writes."""
    same(frozen(stage), "thawed", "the file systems")
    stage.acks(2)


def acknowledged(stage: Stage) -> int:
    stage.acks(2)
    return len(verify.guests.acknowledged(stage.lab, verify.guests.record(stage.lab, GUEST)))


def holds(stage: Stage, image: str, after: int, recovery: bool) -> None:
    """All that was acknowledged before is in the image, and its journal has to be recovered or not."""
    true(verify.verify(stage.lab, GUEST, image + ",qcow2", None, False, after, recovery), "%s is %s" % (image, "torn off" if recovery else "at rest"))


def at_rest(stage: Stage) -> None:
    """Without a freeze the journal has to be recovered, with one it has not."""
    stage.add(GUEST, "--linux", "--slots", "32", "--freeze-takes", str(FREEZE))
    before = acknowledged(stage)
    result = stage.call(**SNAPSHOT, snapshot_name="torn")
    same(result.get("quiesced", 0), None, "quiesced", result)
    holds(stage, LOWEST, before, True)
    before = acknowledged(stage)
    result = stage.done(**SNAPSHOT, snapshot_name="rest", quiesce=True)
    same([step["action"] for step in result["steps"]], ["freeze", "snapshot", "thaw"], "the steps", result)
    same(result["quiesced"], True, "quiesced", result)
    holds(stage, LOWEST.replace(".qcow2", ".torn"), before, False)
    writes(stage)


def snapshot_fails(stage: Stage) -> None:
    """The guest is thawed, whatever becomes of the snapshot."""
    stage.small("/srv/small", "64k")
    before = stage.standing(GUEST)
    result = stage.call(**SNAPSHOT, snapshot_name="full", quiesce=True, disks=[{"disk": "vda", "path": "/srv/small/o.qcow2"}])
    same((result.get("code"), result["rolled_back"], result["changed"]), ("libvirt_error", True, False), "what it says", result)
    writes(stage)
    result = stage.call(fault={"before": ["snapshot", None], "kill": {"module": "TERM"}}, **SNAPSHOT, snapshot_name="late", quiesce=True)
    same((result.get("code"), result["rolled_back"], result["changed"]), ("interrupted", True, False), "what it says", result)
    writes(stage)
    result = stage.call(fault={"before": ["snapshot", None], "kill": {"module": "KILL"}}, **SNAPSHOT, snapshot_name="late", quiesce=True)
    same((list(result), frozen(stage)), (["warnings"], "frozen"), "it was killed, and nobody thaws the guest")
    result = stage.call(**SNAPSHOT, snapshot_name="late", quiesce=True)
    same((result.get("code"), result["rolled_back"], result["changed"]), ("not_frozen", True, False), "the next run cannot freeze it, and thaws it", result)
    writes(stage)
    same(stage.standing(GUEST), before, "the guest")


def agent_hangs(stage: Stage) -> None:
    """It gets no more time than it was given, and what it froze too late is thawed."""
    before, begun = stage.standing(GUEST), time.monotonic()
    result = stage.call(**SNAPSHOT, snapshot_name="hangs", quiesce=True, quiesce_timeout=1)
    true(time.monotonic() - begun < 10, "it kept to its deadline", result)
    same((result.get("code"), result["rolled_back"], result["quiesced"]), ("not_frozen", True, False), "what it says", result)
    same(stage.standing(GUEST), before, "the guest")
    writes(stage)
    result = stage.call(**SNAPSHOT, snapshot_name="hangs", quiesce=True, quiesce_timeout=1, quiesce_fallback=True)
    same((result.get("changed"), result.get("failed"), result["quiesced"]), (True, None, False), "what it says", result)
    true(any("not quiesced" in warning for warning in result["warnings"]), "it warns", result)
    writes(stage)
    stage.verified()


def no_agent(stage: Stage) -> None:
    """Without one it is refused, or done with a warning where that is allowed. Nothing of a guest that is off has to be frozen."""
    stage.add(PLAIN, "--slots", "32", "--size", "16")
    plain = {"module": "external_snapshot", "name": PLAIN, "quiesce": True}
    for number, reason in enumerate(("it has no channel for a guest agent", "its guest agent is not connected", "it is paused")):
        if number == 1:
            stage.shell(f'virsh destroy {PLAIN}; echo "{CHANNEL}" > {FAST}/c.xml && virsh attach-device {PLAIN} {FAST}/c.xml --config && virsh start {PLAIN}')
        if number == 2:
            stage.shell("virsh suspend %s" % PLAIN)
        stage.refused("no_agent", reason, **plain, snapshot_name="s%d" % number)
        result = stage.done(**plain, snapshot_name="s%d" % number, quiesce_fallback=True)
        same(result["quiesced"], False, "quiesced", result)
        true(any("not quiesced, because %s" % reason in warning for warning in result["warnings"]), "it warns", result)
    stage.shell("virsh destroy %s" % PLAIN)
    result = stage.done(**plain, snapshot_name="off")
    same((result["quiesced"], result["warnings"]), (None, []), "quiesced", result)
    stage.cold_start(PLAIN)


STORIES = [at_rest, snapshot_fails, agent_hangs, no_agent]
