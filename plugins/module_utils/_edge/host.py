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
import stat
import time
from dataclasses import replace
from typing import Callable, Dict, Iterable, List, Optional, Tuple

from .._core import jobs
from .._core.chain import Chain
from .._core.domain_xml import snapshot_xml
from .._core.errors import CallFailed, JobFailed, LiveStorageError, Moved, TimedOut, Unavailable
from .._core.model import ACTIVE_COMMIT, Domain, File, Image, Job, Needs, Observed, Selection, Use
from .._core.plan import Step
from . import qemu_img
from .libvirt_host import Connection, is_local

UNDO_SECONDS = 600.0  # how long an undo waits for a merge back
RECONNECT_SECONDS = 60.0  # how long a lost daemon is waited for while a job runs
GRACE_SECONDS = 2.0  # how long a job's event may come after a poll no longer saw the job
PIVOT_TRIES = 3
DEEPEST = 200  # libvirt's own limit for a chain


class Host:
    """One hypervisor. ``run_command`` is AnsibleModule's; ``clock`` and ``sleep`` are the time module's, passed in for tests."""

    def __init__(self, uri: str, with_events: bool, run_command: Callable, clock=time.monotonic, sleep=time.sleep):
        self._connection = Connection(uri, with_events)
        self._run_command = run_command
        self._clock, self._sleep = clock, sleep
        self._local = is_local(uri)
        self._uuid: Optional[str] = None

    def close(self) -> None:
        self._connection.close()

    # READ

    def observe(self, needs: Needs) -> Observed:
        """One look at everything that ``needs`` names."""
        self._reach()
        selection = self._pinned(needs.selection)
        handles = self._connection.select(selection)
        read = [self._connection.read(one, needs.config, True, needs.capacities) for one in handles]
        domains = tuple(one for one in read if one is not None and selection.state in (None, one.state))
        if needs.selection.single and domains:
            self._uuid = domains[0].uuid
        libvirt, qemu = self._connection.versions()
        return Observed(
            domains,
            files=self._files(needs, domains),
            images=self._images(needs),
            snapshots=tuple(self._connection.snapshots(handles[0])) if needs.snapshots and domains else (),
            local=self._local,
            libvirt=libvirt,
            qemu=qemu,
            **self._uses(needs),
        )

    def _reach(self) -> None:
        """A connection that broke is opened again. Raises Unavailable."""
        if not self._connection.alive:
            self._connection.reopen(self._clock() + RECONNECT_SECONDS)

    def _pinned(self, selection: Selection) -> Selection:
        """After the first look a guest is looked up by its uuid: its name may be given to another."""
        return Selection(uuid=self._uuid) if self._uuid and selection.single else selection

    def _files(self, needs: Needs, domains: Tuple[Domain, ...]) -> Dict[str, File]:
        paths = list(needs.paths)
        if needs.paths_of is not None and domains:
            paths += needs.paths_of(domains[0])
        return {path: read_file(path) for path in paths} if self._local else {}

    def _images(self, needs: Needs) -> Dict[str, Image]:
        if not self._local:
            return {}
        read = ((path, qemu_img.read_image(self._run_command, path, format)) for path, format in needs.images)
        return {path: image for path, image in read if image is not None}

    def _uses(self, needs: Needs) -> dict:
        """Every layer of every guest, live and at its next start; what XML leaves open is read from the headers."""
        if not needs.uses:
            return {}
        uses: List[Use] = []
        unread: List[str] = []
        for handle in self._connection.select(Selection()):
            domain = self._connection.read(handle, True, False)
            for disk in (domain.disks + domain.config) if domain is not None else ():
                chains = [disk.chain] + ([disk.mirror.chain] if disk.mirror else [])
                for chain in chains:
                    places, problem = self._places(chain)
                    uses += [Use(place, domain.name, domain.uuid, disk.target) for place in places]
                    unread += [problem] if problem else []
        return {"uses": tuple(dict.fromkeys(uses)), "unread": tuple(dict.fromkeys(unread))}

    def _places(self, chain: Chain) -> tuple:
        """The places of a chain, its links resolved, and the image whose header could not be read (or None)."""
        places = list(chain.places)
        problem = None
        if chain.layers and chain.ends is None:
            below, problem = self._below(chain)
            places += [("path", path) for path in below]
        real = [("path", os.path.realpath(place[1])) for place in places if place[0] == "path" and self._local]
        return list(dict.fromkeys(places + real)), problem

    def _below(self, chain: Chain) -> Tuple[List[str], Optional[str]]:
        """The paths that the headers name below a chain whose end libvirt does not know."""
        layer = chain.layers[-1]
        path, format = layer.path, layer.format
        found: List[str] = []
        while format != "raw":
            if not self._local or path is None or format is None:
                return found, str(layer) if path is None else path
            if not os.path.exists(path):
                return found, None  # nothing can depend on what an image that is gone would name
            image = qemu_img.read_image(self._run_command, path, format)
            if image is None or (image.backing and image.backing_path is None):
                return found, path
            if not image.backing:
                return found, None
            path, format = image.backing_path, image.backing_format
            if path in found or len(found) > DEEPEST:
                return found, path
            found.append(path)
        return found, None

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
        """Merge each overlay that became active back into the layer below it, then remove the files that were created."""
        for disk, overlay in detail["overlays"]:
            chain = self._now(handle).disk(disk).chain
            if chain.active.place == overlay.place and len(chain) > 1:
                self._merge_back(handle, disk, "%s[%d]" % (disk, chain[1].index))
        ours = {(disk, overlay.path) for disk, overlay in detail["overlays"]}
        for one in self._connection.snapshots(handle) if detail["metadata"] else ():
            if one.name == detail["name"] and ours & set(one.files):
                self._connection.forget_snapshot(handle, one.name)
        used = {place for disk in self._now(handle).disks for place in disk.chain.places}
        for path in detail["creates"]:
            if ("path", path) not in used and os.path.exists(path):
                os.unlink(path)

    def _merge_back(self, handle, disk: str, base: str) -> None:
        if self._now(handle).disk(disk).mirror is None:
            self._connection.commit(handle, disk, None, base, 0, True, False)
        waiting = {"job": ACTIVE_COMMIT, "until": jobs.READY, "timeout": UNDO_SECONDS, "poll_interval": 0.5, "on_timeout": "abort"}
        self._do_wait(handle, disk, waiting)
        self._do_pivot(handle, disk, waiting)

    def _do_pull(self, handle, target, detail) -> None:
        self._begin(handle, detail["record"])
        self._connection.pull(handle, target, detail["base"], detail["bandwidth"], detail["keep_relative"])

    def _do_commit(self, handle, target, detail) -> None:
        self._begin(handle, detail["record"])
        active = detail["job"] == ACTIVE_COMMIT
        self._connection.commit(handle, target, detail["top"], detail["base"], detail["bandwidth"], active, detail["keep_relative"])

    def _begin(self, handle, record) -> None:
        """The intent is written down before the call, so that a run after a killed one knows the job again."""
        self._connection.events.forget()
        if record is not None:
            self._connection.write_record(handle, record)

    def _undo_job(self, handle, target, detail) -> None:
        disk = self._now(handle).disk(target)
        if disk is not None and (disk.job is not None or disk.mirror is not None):
            self._connection.abort(handle, target)
        self._connection.clear_record(handle, target)

    _undo_pull = _undo_commit = _undo_job

    def _do_pivot(self, handle, target, detail) -> None:
        """A pivot that fails leaves the mirror as it was, so it is tried again, a stated number of times."""
        for attempt in range(PIVOT_TRIES):
            try:
                self._connection.pivot(handle, target)
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
        except (Unavailable, CallFailed):
            if self._connection.alive:
                raise
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
            self._undo_job(handle, target, detail)
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


def read_file(path: str) -> File:
    """The facts of a path on this host."""
    parent = os.path.dirname(path)
    base = File(path, False, parent=_kind(parent), free=_free(parent), real=os.path.realpath(path))
    try:
        facts = os.stat(path)
    except OSError:
        return replace(base, exists=os.path.lexists(path), kind="other" if os.path.lexists(path) else None)
    return replace(base, exists=True, kind=_kind(path), size=facts.st_size, device=facts.st_dev, inode=facts.st_ino)


def _kind(path: str) -> Optional[str]:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    kinds: Iterable = ((stat.S_ISREG, "file"), (stat.S_ISBLK, "block"), (stat.S_ISDIR, "dir"))
    return next((word for test, word in kinds if test(mode)), "other")


def _free(path: str) -> int:
    try:
        facts = os.statvfs(path)
    except OSError:
        return 0
    return facts.f_bavail * facts.f_frsize
