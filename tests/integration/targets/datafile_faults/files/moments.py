# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A conversion is killed, or told to end, at a step of it. See stage.py of the target external_snapshot.

Told to end, it lets the guest run again on the disk that it had, and leaves nothing. Killed, the next run does the rest, whether it wants the same or the
opposite, and before that anybody may start the guest by hand. Every write is there all the time. With LONG in the environment: at each step.
"""

from __future__ import annotations

import os
from functools import partial

from converted import Converted, Stage, guest, same, state, true

NAME = "hit"
STEPS = {
    ("saved", "present"): "note metadata save lock adopt resave redefine restart unnote",
    ("saved", "absent"): "note save lock prove redefine resave restart delete unnote",
    ("offline", "present"): "note metadata lock adopt redefine unnote",
    ("offline", "absent"): "note lock prove redefine delete unnote",
}
# What is inside of the steps metadata and adopt: functions of conversions.
PARTS = ("create", "follow", "mark_holes", "stand_over", "differs", "checked")
CALLS = {"saving": "managedSave", "starting": "create"}  # in the middle of what libvirt does for save and restart
WHOLE = ("redefine", "resave")  # the steps over several disks
# What comes after the fence; a layer over an image of a guest that is off can be taken away again.
DONE = {("saved", "present"): ("unnote",), ("saved", "absent"): ("delete", "unnote"), ("offline", "present"): (), ("offline", "absent"): ("delete", "unnote")}
OTHER = {"present": "absent", "absent": "present"}
# In an order in which most find the guest as the one before has left it.
SHORT = [
    ("saved", "present", "saving", "same"),
    ("saved", "absent", "resave", "booted"),
    ("saved", "present", "restart", "opposite"),
    ("saved", "present", "saving"),
    ("saved", "present", "redefine", "started"),
    ("offline", "absent", "delete", "opposite"),
    ("saved", "absent", "restart"),
    ("offline", "present", "differs"),
]
LONG = bool(os.environ.get("LONG"))


def ready(stage: Stage, method: str, wanted: str) -> Converted:
    """The guest in the other state than the one that is wanted, running or off as the method needs it."""
    disk = guest(stage, NAME)
    running = state(stage, NAME) != "shut off"
    was = "present" if stage.exists(disk.meta) else "absent"
    if was == wanted:
        result = stage.call(**task(disk, OTHER[wanted]))
        true(result.get("changed") and not result.get("failed"), "it is brought there", result)
    disk.alone() if wanted == "present" else disk.over()
    if running != (method == "saved"):
        stage.end(NAME) if running else stage.cold_start(NAME)
    if method == "saved":
        stage.acks(1)
    return disk


def task(disk: Converted, wanted: str) -> dict:
    return dict(disk.task, state=wanted, allow_pause=True)


def fault(step: str, signal: str) -> dict:
    moment = {"call": ["conversions", step]} if step in PARTS else {"before": [step, None if step in WHOLE else "vda"]}
    moment = {"call": ["domain", CALLS[step]], "delay": 0.1} if step in CALLS else moment
    return dict(moment, kill={"module": signal})


def killed(stage: Stage, method: str, wanted: str, step: str, then: str) -> None:
    disk = ready(stage, method, wanted)
    result = stage.call(fault=fault(step, "KILL"), **task(disk, wanted))
    same(list(result), ["warnings"], "it was killed")
    if then in ("started", "booted"):
        by_hand(stage, disk, then)
    final = OTHER[wanted] if then == "opposite" else wanted
    ran = method == "saved" or then in ("started", "booted")
    result = stage.call(**task(disk, final))
    true(not result.get("failed"), "the next run ends well", result)
    disk.over() if final == "present" else disk.alone()
    same(state(stage, NAME), "running" if ran else "shut off", "the guest after the next run", result)
    stage.again(**task(disk, final))
    settled(stage, disk)


def by_hand(stage: Stage, disk: Converted, then: str) -> None:
    """Somebody starts the guest, from its memory where that was saved; ``booted``: and switches it off and on again."""
    if state(stage, NAME) == "shut off":
        stage.shell("virsh start %s" % NAME)
    stage.acks(2)
    stage.verified()
    if then == "booted":
        stage.end(NAME)
        stage.cold_start(NAME)
        stage.acks(2)
        stage.verified()


def settled(stage: Stage, disk: Converted) -> None:
    """Nothing is lost, now and after a cold boot, and the layer shows what the raw image holds."""
    if state(stage, NAME) == "shut off":
        stage.cold_start(NAME)
    disk.whole()


def ended(stage: Stage, method: str, wanted: str, step: str) -> None:
    disk = ready(stage, method, wanted)
    result = stage.call(fault=fault(step, "TERM"), **task(disk, wanted))
    over = step in DONE[method, wanted] or (step == "starting" and result["changed"])  # a start that goes on may have come to its end
    same((result.get("code"), result["rolled_back"], result["changed"]), ("interrupted", not over, over), "what it says", result)
    same(state(stage, NAME), "running" if method == "saved" else "shut off", "the guest", result)
    if not over:
        true("The guest is as it was before." in result["msg"], "it says so", result)
        disk.alone() if wanted == "present" else disk.over()
    else:
        true("The guest is not as it was before" in result["msg"], "it says so", result)
        stage.call(**task(disk, wanted))
        disk.over() if wanted == "present" else disk.alone()
    settled(stage, disk)


def twice(stage: Stage) -> None:
    """The run that goes on after a killed one is told to end: the guest does not stay saved."""
    for wanted, step in (("present", "redefine"), ("absent", "redefine"), ("present", "lock"), ("absent", "prove")):
        disk = ready(stage, "saved", wanted)
        stage.call(fault=fault(step, "KILL"), **task(disk, wanted))
        same(state(stage, NAME), "shut off", "the guest is saved")
        result = stage.call(fault=fault("restart", "TERM"), **task(disk, wanted))
        same((result.get("code"), state(stage, NAME)), ("interrupted", "running"), "what it says, and the guest", result)
        same(stage.paths(NAME), {"vda": [disk.raw if wanted == "present" else disk.meta]}, "the disk of the guest", result)
        result = stage.call(**task(disk, OTHER[wanted]))
        true(not result.get("failed"), "the next run ends well", result)
        disk.alone() if wanted == "present" else disk.over()
        settled(stage, disk)


def told(story, *arguments):
    found = partial(story, method=arguments[0], wanted=arguments[1], step=arguments[2], **({"then": arguments[3]} if len(arguments) > 3 else {}))
    found.__name__ = "%s, %s" % (story.__name__, ", ".join(arguments))
    return found


def every() -> list:
    """Each step, and each part of one, with each thing that may follow."""
    moments = [(method, wanted, step) for (method, wanted), steps in STEPS.items() for step in steps.split()]
    moments += [(method, "present", part) for method in ("saved", "offline") for part in PARTS]
    moments += [("saved", wanted, call) for wanted in ("present", "absent") for call in CALLS]
    return [told(killed, *one, then) for one in moments for then in ("same", "opposite", "started", "booted")] + [told(ended, *one) for one in moments]


STORIES = [*every(), twice] if LONG else [told(killed if len(one) > 3 else ended, *one) for one in SHORT]
