# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host: look at it, do a step, undo a step. It translates and never decides.

``do`` and ``undo`` take the steps of ``_core/plan.py``. ``undo`` may be called for a step that was only half done, or twice,
and removes no file that this run did not create.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Callable, Dict, List, Optional, Set, Tuple

from .._core import jobs
from .._core.domain_xml import snapshot_xml
from .._core.errors import Busy, CallFailed, JobFailed, LiveStorageError, Moved, TimedOut, Unavailable
from .._core.headers import Probes, measured, wanted
from .._core.host_facts import File, Image
from .._core.model import ACTIVE_COMMIT, Domain, Job, Needs, Observed, Selection, processes_of, same_disks, unmentioned
from .._core.plan import Step
from .files import read_file
from .images import Images
from .libvirt_host import Connection, surely_local
from .processes import qemu_processes
from .qemu_img import PATIENT_SECONDS, SECONDS, read_image
from .uses import all_uses

UNDO_SECONDS = 600.0  # how long an undo waits for a merge back
RECONNECT_SECONDS = 60.0  # how long a lost daemon is waited for while a job runs
GRACE_SECONDS = 2.0  # how long a job's event may come after a poll no longer saw the job
PIVOT_TRIES = 3
LOOKS, FEW = 3, 10  # how often as many guests are looked at again that change under the look
OTHERS_SECONDS = 2.0  # how long an info module reads the images of guests that it was not asked about


class Host:
    """One hypervisor. ``clock`` and ``sleep`` are the time module's, passed in for tests."""

    def __init__(self, uri: str, with_events: bool, clock=time.monotonic, sleep=time.sleep):
        self._uri, self._with_events = uri, with_events
        self._opened: Optional[Connection] = None
        self._clock, self._sleep = clock, sleep
        self._uuid: Optional[str] = None
        self._paths: Dict[str, None] = {}  # of the first look: a later chain may no longer name them
        self._started: Set[str] = set()  # the disks with a job that this run may end

    @property
    def _connection(self) -> Connection:
        """Opened when it is first needed: images that belong to no guest are read without libvirt."""
        if self._opened is None:
            self._opened = Connection(self._uri, self._with_events)
        return self._opened

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    # READ

    def observe(self, needs: Needs) -> Observed:
        """One look at everything that ``needs`` names.

        Where it is compared with files and processes (uses of an info module), the guests are read once more at the end; a few
        that changed meanwhile are looked at again, and those that keep changing are named in ``moved``.
        """
        seen = self._look(needs)
        for dummy in range(LOOKS - 1):
            if not seen.moved or len(seen.domains) > FEW:
                break
            seen = self._look(needs)
        return seen

    def _look(self, needs: Needs) -> Observed:
        selection = self._pinned(needs.selection)
        local = not needs.guests and surely_local(self._uri)
        if not local:
            self._reach()
            local = self._connection.local
        handles = self._connection.select(selection) if needs.guests else []
        silent: List[str] = []
        read = [(handle, self._read(handle, needs, silent)) for handle in handles]
        kept = [(handle, one) for handle, one in read if one is not None and selection.state in (None, one.state)]
        domains = tuple(one for dummy, one in kept)
        if needs.selection.single and domains:
            self._uuid = domains[0].uuid
        images = Images(local, None if local else self._connection.volume_xml, SECONDS if needs.tolerant else PATIENT_SECONDS)
        troubles: List[str] = []
        processes = qemu_processes() if needs.processes and local else ()
        running = processes_of(domains, processes)
        strangers = [(path, None) for domain in domains for process in running.get(domain.uuid, ()) for path in unmentioned(domain, process)]
        # Elsewhere each image is a call over the network: there only a validation asks about what libvirt knows already.
        named = wanted(domains, only_open=not local and not needs.uses) if needs.headers else []
        guessed = [path for path, dummy in list(needs.bare) + strangers]
        probes = images.read(list(needs.bare) + named + strangers, needs.headers, guessed) if needs.headers else {}
        # Other guests' slow or hostile images must not keep a mere look at one guest waiting.
        deadline = self._clock() + OTHERS_SECONDS if needs.tolerant else None
        uses, unread = all_uses(self._connection, images, deadline) if needs.uses else ((), ())
        return Observed(
            domains,
            files=self._files(needs, domains) if local else {},
            images=self._images(needs) if local else {},
            uses=uses,
            unread=unread,
            snapshots=tuple(self._connection.snapshots(handles[0])) if needs.snapshots and domains else (),
            silent=tuple(silent),
            local=local,
            probes=probes,
            sizes=self._sizes(needs, kept, probes, troubles),
            shots=self._shots(needs, kept, troubles),
            qemu=self._views(needs, kept, troubles),
            processes=processes,
            moved=self._moved(needs, kept) if needs.uses and needs.tolerant else (),
            troubles=tuple(troubles),
        )

    def _moved(self, needs: Needs, kept: list) -> Tuple[str, ...]:
        """The guests that have other disks by now than when they were read."""
        again = [(domain, self._connection.read(handle, needs.config, False)) for handle, domain in kept]
        return tuple(domain.uuid for domain, now in again if now is None or not same_disks(domain, now))

    def _sizes(self, needs: Needs, kept: list, probes: Probes, troubles: List[str]) -> dict:
        """Of running guests with an image that was not measured already; what is off has no statistics."""
        running = [handle for handle, domain in kept if domain.active and not measured(domain, probes)]
        if not needs.sizes or not running:
            return {}
        try:
            return self._connection.sizes(running)
        except (CallFailed, Unavailable) as error:
            self._told(error, troubles)
            return {}

    def _shots(self, needs: Needs, kept: list, troubles: List[str]) -> dict:
        return self._of_each(kept if needs.shots else [], "snapshots", troubles)

    def _views(self, needs: Needs, kept: list, troubles: List[str]) -> dict:
        running = [pair for pair in kept if pair[1].active]
        return self._of_each(running if needs.qemu else [], "qemu_view", troubles)

    def _of_each(self, kept: list, question: str, troubles: List[str]) -> dict:
        """An answer for each guest, by uuid; a guest that gives none is a trouble, and not the end."""
        found = {}
        for handle, domain in kept:
            try:
                found[domain.uuid] = getattr(self._connection, question)(handle)
            except (CallFailed, Unavailable) as error:
                self._told(error, troubles)
        return found

    def _told(self, error: LiveStorageError, troubles: List[str]) -> None:
        if not self._connection.alive:
            raise error
        troubles.append(str(error))

    def _read(self, handle, needs: Needs, silent: List[str]) -> Optional[Domain]:
        try:
            return self._connection.read(handle, needs.config, True, needs.capacities, needs.processes)
        except (CallFailed, Unavailable):
            if not needs.tolerant or not self._connection.alive:
                raise
            silent.append(handle.name())
            return self._connection.read(handle, needs.config, False, False, needs.processes)

    def _reach(self) -> None:
        """A connection that broke is opened again. Raises Unavailable."""
        if not self._connection.alive:
            self._connection.reopen(self._clock() + RECONNECT_SECONDS)

    def _pinned(self, selection: Selection) -> Selection:
        """After the first look a guest is looked up by its uuid: its name may be given to another."""
        return Selection(uuid=self._uuid) if self._uuid and selection.single else selection

    def _files(self, needs: Needs, domains: Tuple[Domain, ...]) -> Dict[str, File]:
        self._paths.update(dict.fromkeys(needs.paths))
        if needs.paths_of is not None and domains:
            self._paths.update(dict.fromkeys(needs.paths_of(domains[0])))
        return {path: read_file(path) for path in self._paths}

    def _images(self, needs: Needs) -> Dict[str, Image]:
        read = ((path, read_image(path, format)) for path, format in needs.images)
        return {path: image for path, image in read if image is not None}

    # DO

    def do(self, step: Step) -> None:
        """Carry out one step. Raises the errors of ``_core/errors.py``; a vanished job is left to the verification."""
        getattr(self, "_do_" + step.action)(self._handle(), step.disk, step.detail)

    def undo(self, step: Step) -> None:
        """Take one step back, as far as it was done."""
        action = getattr(self, "_undo_" + step.action, None)
        if action is None:
            return
        self._reach()
        handle = self._connection.handle(Selection(uuid=self._uuid))
        if handle is not None and self._now(handle).active:
            action(handle, step.disk, step.detail)

    def _handle(self):
        handle = self._connection.handle(Selection(uuid=self._uuid))
        if handle is None:
            raise Moved("guest_gone", "The guest %s is not there any more." % self._uuid)
        return handle

    def _now(self, handle) -> Domain:
        domain = self._connection.read(handle, False)
        if domain is None:
            raise Moved("guest_gone", "The guest %s is not there any more." % self._uuid)
        return domain

    def _do_snapshot(self, handle, target, detail) -> None:
        xml = snapshot_xml(detail["name"], detail["overlays"], detail["others"])
        self._connection.snapshot(handle, xml, detail["metadata"], detail["reuse_existing"])

    def _undo_snapshot(self, handle, target, detail) -> None:
        """Merge each overlay that became active back into the layer below it, then remove the files that were created.

        Where libvirt refused the snapshot there is nothing to remove: it takes its own files away, and a file of that name
        that is there nevertheless is somebody else's.
        """
        merged = []
        for disk, overlay in detail["overlays"]:
            chain = self._now(handle).disk(disk).chain
            if chain.active.place == overlay.place and len(chain) > 1:
                self._merge_back(handle, disk, "%s[%d]" % (disk, chain[1].index))
                merged.append((disk, overlay.path))
        for one in self._connection.snapshots(handle) if detail["metadata"] else ():
            if one.name == detail["name"] and set(merged) & set(one.files):
                self._connection.forget_snapshot(handle, one.name)
        used = {place for disk in self._now(handle).disks for place in disk.chain.places}
        for dummy, path in merged:
            if path in detail["creates"] and ("path", path) not in used:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def _merge_back(self, handle, disk: str, base: str) -> None:
        if disk not in self._started:
            self._no_job(handle, disk)
            self._connection.commit(handle, disk, None, base, 0, True, False)
            self._started.add(disk)
        waiting = {"job": ACTIVE_COMMIT, "until": jobs.READY, "timeout": UNDO_SECONDS, "poll_interval": 0.5, "on_timeout": "abort"}
        self._do_wait(handle, disk, waiting)
        self._do_pivot(handle, disk, waiting)

    def _do_pull(self, handle, target, detail) -> None:
        arguments = (detail["base"], detail["bandwidth"], detail["keep_relative"])
        self._start(handle, target, detail["record"], lambda: self._connection.pull(handle, target, *arguments))

    def _do_commit(self, handle, target, detail) -> None:
        arguments = (detail["top"], detail["base"], detail["bandwidth"], detail["job"] == ACTIVE_COMMIT, detail["keep_relative"])
        self._start(handle, target, detail["record"], lambda: self._connection.commit(handle, target, *arguments))

    def _start(self, handle, target: str, record, call: Callable) -> None:
        """Start a job. The intent is written down before, so that a run after a killed one knows the job again.

        A call that was refused has started nothing: what runs on the disk then is somebody else's, and the note goes.
        """
        self._no_job(handle, target)
        self._connection.events.forget()
        if record is not None:
            self._connection.write_record(handle, record)
        self._started.add(target)
        try:
            call()
        except (CallFailed, Busy):
            self._started.discard(target)
            if record is not None:
                with contextlib.suppress(LiveStorageError):  # the first error is the one reported
                    self._connection.clear_record(handle, target)
            raise

    def _no_job(self, handle, target: str) -> None:
        """Raises Busy if a job came to the disk after the plan was made."""
        disk = self._now(handle).disk(target)
        if disk is not None and (disk.job is not None or disk.mirror is not None):
            raise Busy("foreign_job", "A job that this task did not start came to disk %s of guest %s: let it end, then run again." % (target, handle.name()))

    def _undo_job(self, handle, target, detail) -> None:
        if target not in self._started:
            return
        disk = self._now(handle).disk(target)
        if disk is not None and disk.job is not None:
            self._connection.abort(handle, target)
        self._connection.clear_record(handle, target)
        self._started.discard(target)

    _undo_pull = _undo_commit = _undo_job

    def _do_pivot(self, handle, target, detail) -> None:
        """A pivot that fails leaves the mirror as it was, so it is tried again, a stated number of times."""
        for attempt in range(PIVOT_TRIES):
            try:
                self._connection.pivot(handle, target)
                self._started.discard(target)
                return
            except CallFailed:
                mirror = self._now(handle).disk(target).mirror
                if attempt == PIVOT_TRIES - 1 or mirror is None or mirror.ready != "yes":
                    raise
                self._sleep(0.5)

    def _do_delete(self, handle, target, detail) -> None:
        """Remove a file, if it still is the one that was looked at."""
        path = detail["path"]
        now = read_file(path)
        if not now.exists:
            return
        if (now.device, now.inode) != (detail["device"], detail["inode"]):
            raise Moved("file_changed", "The file %s is not the one that was looked at before: it was left alone." % path)
        try:
            os.unlink(path)
        except OSError as error:
            raise CallFailed("not_removed", "The file %s cannot be removed (%s)." % (path, error.strerror)) from error

    def _do_forget(self, handle, target, detail) -> None:
        self._connection.clear_record(handle, target)

    # WAIT

    def _do_wait(self, handle, target, detail) -> None:
        """Wait for READY or the end of a job, by events and by polling. Clears the record when the job is over.

        Raises TimedOut past the deadline (the job goes on, or was ended, as ``on_timeout`` says) and JobFailed.
        """
        deadline = self._clock() + detail["timeout"]
        state, job = jobs.RUNNING, None
        while not jobs.arrived(state, detail["until"]):
            if self._clock() >= deadline:
                self._timed_out(handle, target, detail, job)
            pause = min(detail["poll_interval"], max(0.0, deadline - self._clock()))
            word = self._connection.events.word(self._uuid, target, pause)
            if word is None:
                handle, word, job = self._poll(handle, target, detail, deadline, job)
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
        """(handle, word, job): what is seen now; a broken connection is opened again, since QEMU's job goes on without it."""
        try:
            domain = self._now(handle)
            if not domain.active:
                return handle, "stopped", last
        except Moved:
            return handle, "stopped", last
        except (Unavailable, CallFailed) as error:
            if error.code == "permission":
                raise
            if self._connection.alive:  # the look failed (a lock was held, QEMU did not answer), the job did not
                return handle, "progress", last
            self._come_back(handle.name(), target, detail, deadline, last)
            found = self._connection.handle(Selection(uuid=self._uuid))
            return (handle, "stopped", last) if found is None else (found, "progress", last)
        disk = domain.disk(target)
        if disk is None or (disk.job is None and disk.mirror is None):
            return handle, "gone", last
        ready = disk.mirror is not None and disk.mirror.ready == "yes"
        return handle, "ready" if ready else "progress", disk.job or last

    def _come_back(self, name: str, target: str, detail, deadline: float, last: Optional[Job]) -> None:
        """Open the connection again. Raises TimedOut: what cannot be reached cannot be ended, so the job is left to QEMU."""
        try:
            self._connection.reopen(min(deadline, self._clock() + RECONNECT_SECONDS))
        except Unavailable as error:
            message = "The daemon went away while the %s job on disk %s of guest %s was running, and the job goes on in QEMU: "
            advice = "start the daemon and run the same task again to go on waiting."
            raise TimedOut("connection_lost", message % (detail["job"], target, name) + advice, True, last_job=last) from error

    def _last_word(self, target: str, state: str) -> str:
        until = self._clock() + GRACE_SECONDS
        while state == jobs.VANISHED and self._clock() < until:
            word = self._connection.events.word(self._uuid, target, GRACE_SECONDS / 10)
            state = jobs.advance(state, word) if word else state
        return state

    def _timed_out(self, handle, target: str, detail, job: Optional[Job]) -> None:
        who = "The %s job on disk %s of guest %s was not %s after %g seconds" % (
            detail["job"],
            target,
            handle.name(),
            detail["until"],
            detail["timeout"],
        )
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
