# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting for a block job, by events and by looking; a lost daemon is waited for, since QEMU's job goes on without it."""

from __future__ import annotations

import contextlib
from typing import Optional

from .._core import jobs
from .._core.errors import CallFailed, JobFailed, LiveStorageError, Moved, TimedOut, Unavailable
from .._core.model import Job, Selection

RECONNECT_SECONDS = 60.0  # how long a lost daemon is waited for while a job runs
GRACE_SECONDS = 2.0  # how long a job's event may come after a poll no longer saw the job


class Waits:
    """The WAIT step of a Host: it uses the host's connection, clock and looks."""

    def _do_wait(self, handle, target, detail) -> None:
        """Wait for READY or the end of a job, by events and by polling. Clears the record when the job is over.

        Raises TimedOut past the deadline (the job goes on, or was ended, as ``on_timeout`` says) and JobFailed.
        """
        self._own_again(handle, target, detail.get("creates"))
        deadline = self._clock() + detail["timeout"]
        state, job = jobs.RUNNING, None
        watch = jobs.Convergence(detail["stall_window"]) if detail.get("stall_window") else None
        while not jobs.arrived(state, detail["until"]):
            if self._clock() >= deadline:
                self._timed_out(handle, target, detail, job)
            pause = min(detail["poll_interval"], max(0.0, deadline - self._clock()))
            word = self._connection.events.word(self._uuid, target, pause)
            if word is None:
                handle, word, seen = self._poll(handle, target, detail, deadline, job)
                job = seen or job
                if watch is not None and seen is not None and word == "progress" and watch.stalls(self._clock(), seen.cur, seen.end, seen.bandwidth):
                    self._stalled(handle, target, detail, watch)
            state = jobs.advance(state, word)
        if state == jobs.VANISHED:
            state = self._last_word(target, state)
        if state != jobs.READY:
            self._started.discard(target)  # it is over: what runs there from now on is somebody else's
        if state != jobs.READY and state != jobs.GUEST_GONE:
            with contextlib.suppress(Unavailable):  # how the job ended matters more; a note that stays is taken away by the next run
                self._connection.clear_record(handle, target)
        if state in (jobs.FAILED, jobs.CANCELED, jobs.GUEST_GONE):
            raise self._job_failed(handle.name(), target, detail["job"], state, job)

    def _poll(self, handle, target: str, detail, deadline: float, last: Optional[Job]):
        """(handle, word, job): what is seen now, the job None where it is not; a broken connection is opened again, since QEMU's job goes on without it."""
        try:
            domain = self._now(handle)
            if not domain.active:
                return handle, "stopped", None
        except Moved:
            return handle, "stopped", None
        except (Unavailable, CallFailed) as error:
            if error.code == "permission":
                raise
            if self._connection.alive:  # the look failed (a lock was held, QEMU did not answer), the job did not
                return handle, "progress", None
            self._come_back(handle.name(), target, detail, deadline, last)
            found = self._connection.handle(Selection(uuid=self._uuid))
            return (handle, "stopped", None) if found is None else (found, "progress", None)
        disk = domain.disk(target)
        if disk is None or (disk.job is None and disk.mirror is None):
            return handle, "gone", None
        ready = disk.mirror is not None and disk.mirror.ready == "yes"
        return handle, "ready" if ready else "progress", disk.job

    def _come_back(self, name: str, target: str, detail, deadline: float, last: Optional[Job]) -> None:
        """Open the connection again. Raises TimedOut: what cannot be reached cannot be ended, so the job is left to QEMU."""
        try:
            self._reopen(deadline)
        except Unavailable as error:
            message = "The daemon went away while the %s job on disk %s of guest %s was running, and the job goes on in QEMU: "
            advice = "start the daemon and run the same task again to go on waiting."
            raise TimedOut("connection_lost", message % (detail["job"], target, name) + advice, True, last_job=last) from error

    def _reopen(self, deadline: Optional[float] = None) -> None:
        """Open a lost connection again. Raises Unavailable after a minute, or at ``deadline``; later calls of the same run do not wait once more."""
        until = self._clock() + (0.0 if self._away else RECONNECT_SECONDS)
        try:
            self._connection.reopen(until if deadline is None else min(deadline, until))
            self._away = False
        except Unavailable:
            self._away = True
            raise

    def _last_word(self, target: str, state: str) -> str:
        until = self._clock() + GRACE_SECONDS
        while state == jobs.VANISHED and self._clock() < until:
            word = self._connection.events.word(self._uuid, target, GRACE_SECONDS / 10)
            state = jobs.advance(state, word) if word else state
        return state

    def _timed_out(self, handle, target: str, detail, job: Optional[Job]) -> None:
        who = "The %s job on disk %s of guest %s was not %s %s" % (
            detail["job"],
            target,
            handle.name(),
            detail["until"],
            "in time" if detail.get("rest") else "after %g seconds" % detail["timeout"],
        )
        who += self._behind.get(target, "")
        if detail["on_timeout"] == "abort":
            self._started.add(target)  # adopted, and now asked to be ended
            try:
                self._undo_job(handle, target, detail)
            except (CallFailed, Unavailable) as error:
                message = "%s and could not be ended, so it goes on (%s): look at the guest, then run the same task again." % (who, error)
                raise TimedOut("timeout", message, True, last_job=job) from error
            raise TimedOut("timeout", "%s and was ended, as on_timeout asks." % who, False, last_job=job)
        raise TimedOut("timeout", "%s and goes on, as on_timeout asks: run the same task again to go on waiting." % who, True, last_job=job)

    def _job_failed(self, name: str, target: str, kind: str, state: str, job: Optional[Job]) -> LiveStorageError:
        reasons = {
            jobs.FAILED: ("job_failed", "ended with an error of QEMU, as a full or broken storage gives: see the log of the guest"),
            jobs.CANCELED: ("job_canceled", "was ended by somebody else"),
            jobs.GUEST_GONE: ("guest_stopped", "ended because the guest stopped"),
        }
        code, reason = reasons[state]
        return JobFailed(code, "The %s job on disk %s of guest %s %s." % (kind, target, name, reason), last_job=job)

    def _stalled(self, handle, target: str, detail, watch: jobs.Convergence) -> None:
        """The guest writes faster than the copy: make it wait for the copy where that is wanted and possible, else say so, once."""
        if target in self._behind:
            return
        words = "the bytes that remain have not become fewer for %g seconds, because the guest writes faster than the copy" % detail["stall_window"]
        advice = "use synchronous_writes, or lift bandwidth"
        if detail.get("converge"):
            try:
                self._connection.write_through(handle, target)
                self._behind[target] = ""
                done = "QEMU now completes each write of the guest on both sides (converge)"
                self.notes.append("Disk %s of guest %s: %s, so that %s." % (target, handle.name(), words, done))
                return
            except (CallFailed, Unavailable) as error:
                advice = "converge needs QEMU 8.2 or later (%s): %s" % (str(error).rstrip("."), advice)
        self._behind[target] = " (%s: %s)" % (words, advice)
        self.notes.append("Disk %s of guest %s: %s: %s." % (target, handle.name(), words, advice))
        watch.again(self._clock())

    def _undo_wait(self, handle, target, detail) -> None:
        """Where the job of an earlier phase of the same run failed, what it had created goes, too."""
        if detail.get("creates") and self._now(handle).disk(target).job is None:
            self._remove_created(handle, target, detail["creates"])
            self._connection.clear_record(handle, target)
