# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A conversion fails: full disks, files that come to be, a save or a start that fails, daemons that die, a guest that ends.

See stage.py of the target external_snapshot. The guest runs again on the disk that it had, and nothing is left.
"""

from __future__ import annotations

from functools import partial

from converted import FAST, Stage, same, state, true
from moments import LONG, NAME, ready, settled, task

SAVES = "/var/lib/libvirt/qemu/save"
FULL = "head -c 1G /dev/zero > %s/filler 2>/dev/null || true"
BEFORE = " The guest is as it was before."


def failed(stage: Stage, wanted: str, code: str, says: str, fault: dict, theirs: tuple = (), **more) -> tuple:
    """The guest runs on the disk that it had; the disk and what the module said."""
    disk = ready(stage, "saved", wanted)
    disk.meta = more.get("metadata", disk.meta)
    result = stage.call(fault=fault, **dict(task(disk, wanted), **more))
    said = (result.get("code"), result["rolled_back"], result["changed"], state(stage, NAME))
    same(said, (code, True, False, "running"), "what it says, and the guest", result)
    true(says in result["msg"] and result["msg"].endswith(BEFORE), "it says %s" % says, result)
    for path in theirs:
        same(stage.shell("cat %s && rm %s" % (path, path)), "other", "somebody else's file")
    disk.alone() if wanted == "present" else disk.over()
    return disk, result


def full(stage: Stage) -> None:
    """No room for the layer, though there was some when it was planned."""
    stage.small("/srv/small", "1M")
    says = "The layer /srv/small/m could not be made ("
    moment = {"before": ["metadata", "vda"], "shell": FULL % "/srv/small"}
    _disk, result = failed(stage, "present", "not_prepared", says, moment, metadata="/srv/small/m")
    same((result["pause"], stage.shell("ls /srv/small")), (None, "filler"), "nobody was stopped, and what is left", result)
    stage.acks(1)
    stage.verified()


def appears(stage: Stage) -> None:
    """Somebody else's file at one of the paths is left alone."""
    for more in ("", ".adopting") if LONG else ("",):
        path = FAST + "/m" + more
        says = "The destination %s came to be after it was looked at: it was left alone, look at it and run again." % path
        failed(stage, "present", "exists", says, {"before": ["metadata", "vda"], "shell": "echo other > %s" % path}, (path,), metadata=FAST + "/m")


def unsaved(stage: Stage) -> None:
    """There is no room for the memory: the guest was only stopped for as long as libvirt tried."""
    stage.small(SAVES, "64K")
    for wanted in ("present", "absent") if LONG else ("present",):
        disk, result = failed(stage, wanted, "libvirt_error", "libvirt could not save guest hit: ", {"before": ["save", "vda"], "shell": FULL % SAVES})
        true("No space left on device" in result["msg"], "it says why", result)
        if wanted == "present":
            stage.shell("umount %s" % SAVES)
            stage.call(**task(disk, "present"))
            stage.shell("mount -t tmpfs -o size=64K tmpfs %s" % SAVES)
    stage.shell("umount %s" % stage.mended.pop().split()[-1])
    settled(stage, disk)


def unstarted(stage: Stage) -> None:
    """Somebody holds the layer when the guest is to be started with it: it is started without it."""
    holds = "(sleep 3 | qemu-io -f raw %s) < /dev/null > /dev/null 2>&1 & until pgrep -x qemu-io; do sleep 0.05; done; sleep 0.2"
    disk = ready(stage, "saved", "present")
    failed(stage, "present", "libvirt_error", "libvirt could not start guest hit: ", {"before": ["restart", "vda"], "shell": holds % disk.meta})
    settled(stage, disk)


def replaced(stage: Stage) -> None:
    """A directory is where the layer was: the guest is started without it, and what is somebody else's is not removed."""
    disk = ready(stage, "saved", "present")
    moment = {"before": ["restart", "vda"], "shell": "rm %s; mkdir %s" % (disk.meta, disk.meta)}
    result = stage.call(fault=moment, **task(disk, "present"))
    same((result.get("code"), state(stage, NAME), stage.paths(NAME)["vda"]), ("libvirt_error", "running", [disk.raw]), "the guest", result)
    stage.shell("rmdir %s" % disk.meta)
    disk.alone()
    settled(stage, disk)


def helped(stage: Stage) -> None:
    """Somebody starts the guest as soon as it is saved."""
    disk, dummy = failed(stage, "present", "in_use", "", {"before": ["lock", "vda"], "shell": "virsh start %s" % NAME})
    settled(stage, disk)


def locked(stage: Stage) -> None:
    """Nobody starts the guest while its image is held."""
    disk = ready(stage, "saved", "present")
    result = stage.call(fault={"before": ["resave", None], "shell": "virsh start %s && exit 1; true" % NAME}, **task(disk, "present"))
    true(result.get("changed") and not result.get("failed"), "it could not be started, and all ends well", result)
    disk.over()
    settled(stage, disk)


def destroyed(stage: Stage) -> None:
    """Somebody ends the guest: it stays off, on the disk that it had."""
    disk = ready(stage, "saved", "present")
    for step, shell in (("save", "virsh destroy %s"), ("lock", "virsh managedsave-remove %s"))[: 2 if LONG else 1]:
        result = stage.call(fault={"before": [step, "vda"], "shell": shell % NAME}, **task(disk, "present"))
        same((result.get("failed"), result["rolled_back"], state(stage, NAME)), (True, False, "shut off"), "what it says, and the guest", result)
        true("The guest is not as it was before: guest hit is shutdown" in result["msg"], "it says how the guest stands", result)
        disk.alone()
        stage.cold_start(NAME)


def daemon_dies(stage: Stage, call: str, delay: float) -> None:
    """It comes back: the guest runs, and all is as before or as asked."""
    disk = ready(stage, "saved", "present")
    result = stage.call(fault={"call": ["domain", call], "delay": delay, "kill": {"daemon": "KILL"}, "away": 0.3}, **task(disk, "present"))
    same(state(stage, NAME), "running", "the guest", result)
    if result.get("failed"):
        same((result["code"], result["rolled_back"], result["changed"]), ("connection_lost", True, False), "what it says", result)
        disk.alone()
    else:
        disk.over()
    settled(stage, disk)


def dies(call: str, delay: float):
    found = partial(daemon_dies, call=call, delay=delay)
    found.__name__ = "daemon dies %g s after %s" % (delay, call)
    return found


STORIES = [full, appears, unsaved, unstarted, locked, destroyed] + ([replaced, helped] if LONG else [])
# What libvirt 9.0 leaves of a start that its daemon died in depends on the moment, and it may hang on it: nothing for every run.
STORIES += [dies(call, delay) for call in ("managedSave", "create") for delay in (0.02, 0.1, 0.3)] if LONG else [dies("managedSave", 0.1)]
