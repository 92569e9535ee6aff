# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The work of a module in three parts, on the controller: start its job, watch that, let the module finish.

The law: the module decides and verifies, and everything here could be left out. No connection is held while the job runs, and one
that breaks ends nothing: QEMU's job goes on, and is looked for again until the time is over.
"""

from __future__ import annotations

import os
import time

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

INFO = "livestorage.libvirt.block_job_info"
GUEST = ("uri", "name", "guest", "domain", "uuid", "disk")
DELETES = ("delete_source", "delete_dropped", "delete_merged")
WINDOW = 60.0  # as the module's own default for stall_window
STEP = 16 * 2**20  # what QEMU's mirror does at once, in bytes
FIRST, SLOWEST = 1.0, 5.0  # seconds from one look to the next: soon for a small job, seldom for a long one
LOST_LOOKS = 60  # looks that may fail in a row before the module has the last word

display = Display()


class Watched(ActionBase):
    """An action whose module has the options wait, progress and phase, and returns the running job."""

    _supports_async = True
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        arguments = self._task.args
        quiet = self._task.check_mode or not _yes(arguments, "wait") or not _yes(arguments, "progress") or arguments.get("phase", "whole") != "whole"
        quiet = quiet or not self.watchable(arguments)
        if self._task.async_val or quiet:
            return dict(result, **self._execute_module(task_vars=task_vars, wrap_async=self._task.async_val))
        return dict(result, **self._watched(task_vars))

    def watchable(self, arguments: dict) -> bool:
        """Does this task wait for a job at all?"""
        return True

    def finished(self, first: dict) -> bool:
        """Has the first call done what is left of a job that was over before?"""
        return False

    def jobs_of(self, found: list) -> list:
        """What is to be watched of the jobs that were found."""
        return found

    def subject(self) -> str:
        """The disk, or the disks, that the job is on."""
        return str(self._task.args.get("disk"))

    def _watched(self, task_vars) -> dict:
        begun = time.monotonic()
        first = self._execute_module(module_args=dict(self._task.args, phase="start"), task_vars=task_vars)
        if first.get("failed") or first.get("unreachable") or first.get("skipped"):
            return first
        if not any(domain["active"] for domain in first.get("domains", [])):
            return first  # what no QEMU has open is merged by the first call
        if first.get("job"):
            self._watch(first, begun, task_vars)
        elif self.finished(first) or (not first.get("changed") and not any(self._task.args.get(name) for name in DELETES)):
            return first  # all is as asked
        # What is left of the time; a moment at least, since a job may have become ready just now.
        left = max(1, int(_seconds(self._task.args) - (time.monotonic() - begun)))
        phase = "finish" if any(step["begun"] for step in first.get("steps", [])) else "adopt"
        last = self._execute_module(module_args=dict(self._task.args, phase=phase, wait_timeout=left), task_vars=task_vars)
        return _whole(first, last)

    def _watch(self, first: dict, begun: float, task_vars) -> None:
        """Look at the job until it is over, ready, or no longer to be waited for."""
        arguments = {key: value for key, value in self._task.args.items() if key in GUEST}
        parent = os.getppid()
        watch, lost, pause = Watch(_number(self._task.args.get("stall_window", WINDOW))), 0, FIRST
        self._say(first["job"], watch.told(first["job"], time.monotonic()), task_vars)
        while time.monotonic() - begun < _seconds(self._task.args) and not first["job"].get("ready"):
            time.sleep(pause)
            if os.getppid() != parent:  # the play was killed, and this worker of it lives on
                raise AnsibleError("The play is gone, and the job on disk %s goes on: run it again to finish the work." % self.subject())
            pause = min(SLOWEST, pause * 1.5)
            found = self._look(arguments, task_vars)
            if found is None:
                lost += 1
                display.warning("The job on disk %s cannot be looked at now; it goes on without that." % self.subject())
                if lost >= LOST_LOOKS:
                    return
                continue
            lost = 0
            if not found or found[0]["type"] != first["job"]["type"]:
                return
            self._say(found[0], watch.told(found[0], time.monotonic()), task_vars)
            if found[0]["ready"] or (watch.stalls and _yes(self._task.args, "converge", False)):
                return

    def _look(self, arguments: dict, task_vars):
        """The jobs of the disk, or None where they could not be read, as with a connection or a daemon that is gone for now."""
        try:
            found = self._execute_module(module_name=INFO, module_args=dict(arguments, interval=0), task_vars=task_vars)
        except AnsibleConnectionFailure:
            return None
        return None if found.get("failed") or found.get("unreachable") else self.jobs_of(found["jobs"])

    def _say(self, job: dict, words: str, task_vars) -> None:
        if getattr(self._task, "no_log", False):
            return
        guest = next((self._task.args[name] for name in ("name", "guest", "domain", "uuid") if self._task.args.get(name)), None)
        host = (task_vars or {}).get("inventory_hostname", "localhost")
        # Not stdout: callbacks that write JSON have that for themselves, and into a pipe it is written in blocks.
        display.display("%s: %s of %s %s: %s" % (host, job["type"], guest, self.subject(), words), stderr=True)


class Watch:
    """What can be told of a job from one look to the next, on a clock in seconds."""

    def __init__(self, window: float):
        self._window, self._last, self._least, self._since = window, None, None, 0.0
        self.stalls = False

    def told(self, job: dict, now: float) -> str:
        """One line about a job; ``stalls`` is then whether its remaining bytes have not become fewer for the window."""
        left = max(0, job["end"] - job["cur"])
        if self._least is None or left < self._least:
            self._least, self._since = left, now
        self.stalls = now - self._since >= max(self._window, 2.0 * STEP / job["bandwidth"] if job["bandwidth"] else 0.0)
        words = ["%5.1f %%" % job["percent"], "does not catch up with the guest" if self.stalls and not job["ready"] else ""]
        if self._last is not None and now > self._last[0]:
            rate = max(0.0, (job["cur"] - self._last[1]) / (now - self._last[0]))
            words.append("%.1f MiB/s" % (rate / 2**20))
            words.append("ETA %s" % clock(left / rate) if rate and not job["ready"] else "")
        words.append("ready" if job["ready"] else "")
        self._last = (now, job["cur"])
        return ", ".join(word for word in words if word)


def clock(seconds: float) -> str:
    """H:MM:SS."""
    whole = int(seconds)
    return "%d:%02d:%02d" % (whole // 3600, whole // 60 % 60, whole % 60)


def _yes(arguments: dict, name: str, default: bool = True) -> bool:
    return boolean(arguments.get(name, default), strict=False)


def _number(value) -> float:
    try:
        return float(value or 0)
    except (TypeError, ValueError):
        return 0.0  # the module says what is wrong with it


def _seconds(arguments: dict) -> float:
    return _number(arguments.get("wait_timeout", 86400)) or 86400.0


def _whole(first: dict, last: dict) -> dict:
    """One result for both calls: what the last one says, changed if either changed anything, from the first one's beginning."""
    warnings = list(first.get("warnings", []))
    warnings += [warning for warning in last.get("warnings", []) if warning not in warnings]
    spoils = list(dict.fromkeys(first.get("spoils", []) + last.get("spoils", [])))
    last = dict(last, **({"warnings": warnings} if warnings else {}), **({"spoils": spoils} if spoils else {}))
    if last.get("failed") or last.get("unreachable"):
        return last
    result = dict(last, changed=bool(first.get("changed") or last.get("changed")))
    if "diff" in first and "diff" in last:
        diff = {"before": first["diff"]["before"], "after": last["diff"]["after"]}
        # A job of an earlier run that was watched to its end leaves nothing for the last call to change.
        result.update(diff=diff, changed=result["changed"] or diff["before"] != diff["after"])
    begun = [step for step in first.get("steps", []) if step["begun"]]
    result["steps"] = begun + last.get("steps", [])
    return result
