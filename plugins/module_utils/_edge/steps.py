# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Doing and undoing the steps of a plan."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Callable, Optional

from .._core import jobs
from .._core.chain import normal_path
from .._core.errors import Busy, CallFailed, LiveStorageError, Moved, Unavailable
from .._core.headers import chains_of
from .._core.model import ACTIVE_COMMIT, BACKUP, Domain, Selection
from .._core.pivot import agrees
from .._core.plan import (
    ADOPT,
    CONVERT,
    COPY,
    CREATE,
    DEFINE,
    FORGET,
    FREEZE,
    METADATA,
    NOTE,
    OVERLAY,
    PREPARE,
    PROTECT,
    REBASE,
    REDEFINE,
    RESAVE,
    RETELL,
    SAVE,
    SNAPSHOT,
    WAIT,
    Step,
)
from .._core.snapshot_xml import snapshot_xml
from .._core.write_xml import copy_xml, volume_xml
from .files import read_file
from .image_work import overlay as make_overlay
from .processes import held_open, holds_path

REPEATABLE = (DEFINE, PROTECT, FORGET)
UNDO_SECONDS = 600.0  # how long an undo waits for a merge back
OFFLINE = (OVERLAY, REDEFINE, RETELL, METADATA, CONVERT, ADOPT, NOTE, SAVE, RESAVE)  # what is undone also while the guest is off
BACKUP_SECONDS = 60.0  # how long the end of a backup is waited for


class Steps:
    """The steps of a Host, which gives the connection and the looks. ``undo`` removes no file that this run did not create."""

    _saving = False  # does libvirt write the memory of a guest for a call of ours that nobody waits for any more?

    def do(self, step: Step) -> None:
        """Carry out one step. Raises the errors of ``_core/errors.py``; a vanished job is left to the verification.

        What can be done twice is done again after the connection was lost, as to a daemon that died right after a pivot.
        """
        action = getattr(self, "_do_" + step.action)
        try:
            action(self._handle() if self._uuid is not None else None, step.disk, step.detail)
        except Unavailable as error:
            if step.action not in REPEATABLE or error.code != "connection_lost":
                raise
            self._reopen()
            action(self._handle(), step.disk, step.detail)

    def undo(self, step: Step) -> None:
        """Take one step back, as far as it was done."""
        action = getattr(self, "_undo_" + step.action, None)
        if action is None:
            return
        if self._uuid is None or step.action == REBASE:  # which needs no libvirt: of no guest, or one that cannot start, as its images are locked
            action(None, step.disk, step.detail)
            return
        self._reach()
        handle = self._connection.handle(Selection(uuid=self._uuid))
        if step.action == FREEZE:  # the guest hangs: nothing is waited for before
            domain = None if handle is None else self._connection.read(handle, False, False)
            if domain is not None and domain.active:
                action(handle, step.disk, step.detail)
            return
        if step.action in (SNAPSHOT, SAVE) and self._saving and handle is not None:
            with contextlib.suppress(LiveStorageError):  # it may have ended by itself; any look waits for its end
                self._connection.abort_backup(handle)
        self._connection.settle()
        if step.action == SNAPSHOT and step.detail.get("offline"):
            self._undo_idle_snapshot(handle, step)
        elif step.action in OFFLINE or (handle is not None and self._now(handle).active):
            action(handle, step.disk, step.detail)
        elif self._created_by(step) and step.disk not in self._pivoting:  # else it may hold what the guest wrote last
            if handle is not None:  # somebody else may have pivoted: then the definition names it
                self._remove_created(handle, step.disk, step.detail["creates"])
            else:
                self._remove_unheld(step.detail["creates"])

    def _created_by(self, step: Step) -> bool:
        """Has this run, or an earlier phase of it, created the file of that step?"""
        path = step.detail.get("creates") if step.action in (WAIT, COPY, CREATE, PREPARE) else None
        own = {WAIT: True, COPY: step.disk in self._copied, CREATE: path in self._made, PREPARE: path in self._made}
        return bool(path) and own.get(step.action, False)

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
        memory = detail.get("memory")
        xml = snapshot_xml(detail["name"], detail["overlays"], detail["others"], detail.get("description"), memory)
        self._saving = bool(memory)
        try:
            self._connection.snapshot(handle, xml, detail["metadata"], detail["reuse_existing"], detail["timeout"] if memory else None)
            self._saving = False
        except (CallFailed, Busy):
            self._saving = False
            raise

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
        memory = detail.get("memory")
        if merged and memory and self._connection.local:  # libvirt takes it away itself where the snapshot failed
            with contextlib.suppress(FileNotFoundError):
                os.unlink(memory)
        for dummy, path in merged:
            if path in detail["creates"] and ("path", path) not in used:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def _merge_back(self, handle, disk: str, base: str) -> None:
        if disk not in self._started:
            self._no_job(handle, disk)
            self._connection.commit(handle, disk, None, base, 0, True, False)
            self._started.add(disk)
        to = self._now(handle).disk(disk).chain[1]
        waiting = {"to": to, "job": ACTIVE_COMMIT, "until": jobs.READY, "timeout": UNDO_SECONDS, "poll_interval": 0.5, "on_timeout": "abort"}
        self._do_wait(handle, disk, waiting)
        self._do_pivot(handle, disk, waiting)

    def _do_pull(self, handle, target, detail) -> None:
        arguments = (detail["base"], detail["bandwidth"], detail["keep_relative"])
        self._start(handle, target, detail["record"], lambda: self._connection.pull(handle, target, *arguments))

    def _do_commit(self, handle, target, detail) -> None:
        arguments = (detail["top"], detail["base"], detail["bandwidth"], detail["job"] == ACTIVE_COMMIT, detail["keep_relative"])
        self._written.add(target)
        try:
            self._start(handle, target, detail["record"], lambda: self._connection.commit(handle, target, *arguments))
        except (CallFailed, Busy, Moved):
            self._written.discard(target)
            raise

    def _start(self, handle, target: str, record, call: Callable) -> None:
        """Start a job. The intent is written down before, so that a run after a killed one knows the job again.

        A call that was refused has started nothing: what runs on the disk then is somebody else's, and the note goes.
        """
        self._no_job(handle, target)
        self._as_planned(handle, target, record)
        self._connection.events.forget()
        if record is not None:
            self._connection.write_record(handle, replace(record, since=int(self._now_of_day())))
        self._started.add(target)
        self._copied.add(target)
        try:
            call()
        except (CallFailed, Busy):
            self._started.discard(target)
            self._copied.discard(target)
            if record is not None:
                with contextlib.suppress(LiveStorageError):  # the first error is the one reported
                    self._connection.clear_record(handle, target)
            raise

    def _no_job(self, handle, target: str) -> None:
        """Raises Busy if a job came to the disk after the plan was made."""
        disk = self._now(handle).disk(target)
        if disk is not None and (disk.job is not None or disk.mirror is not None):
            raise Busy("foreign_job", "A job that this task did not start came to disk %s of guest %s: let it end, then run again." % (target, handle.name()))

    def _as_planned(self, handle, target: str, record) -> None:
        """Raises Moved where the chain changed since the plan was made, as by a snapshot while a destination was prepared."""
        disk = self._now(handle).disk(target)
        if record is not None and (disk is None or disk.indexes != record.indexes):
            raise Moved("moved", "The chain of disk %s of guest %s changed after it was looked at: run the task again." % (target, handle.name()))

    def _undo_job(self, handle, target, detail) -> None:
        if target not in self._started:
            return
        disk = self._now(handle).disk(target)
        if disk is not None and disk.job is not None and disk.job.type == BACKUP:
            self._connection.abort_backup(handle)
            self._backup_over(handle)
        elif disk is not None and disk.job is not None:
            self._connection.abort(handle, target)
        self._clear_note(handle, target, target in self._pivoting)
        self._started.discard(target)

    _undo_pull = _undo_commit = _undo_job

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

    def _do_copy(self, handle, target, detail) -> None:
        arguments = (copy_xml(detail["to"], detail["below"]), detail["params"], detail["flags"])
        self._start(handle, target, detail["record"], lambda: self._connection.copy(handle, target, *arguments))
        self._own(detail["creates"])
        self._refresh(detail.get("pool"))

    def _own(self, path: Optional[str]) -> None:
        """Remember the file that this run has just created: what somebody puts in its place is not removed."""
        if path is not None and self._here:
            now = read_file(path)
            self._owned[path] = (now.device, now.inode)

    def _own_again(self, handle, target: str, path: Optional[str]) -> None:
        """The same for a file that an earlier phase of this run created, which QEMU has open as long as the job runs."""
        if path is None or path in self._owned or not self._connection.local:
            return
        self._own(path)
        if holds_path(self._uuid, path) is False and self._now(handle).disk(target).job is not None:
            self._owned[path] = None

    def _refresh(self, pool: Optional[str]) -> None:
        """Let libvirt see a volume that did not come from its pool. That it cannot is no reason to fail."""
        if pool is not None:
            with contextlib.suppress(LiveStorageError):
                self._connection.refresh_pool(pool)

    def _undo_copy(self, handle, target, detail) -> None:
        """End the copy, then remove the file that it created: a copy that was refused has created none."""
        if target not in self._copied and target not in self._started:
            return
        self._undo_job(handle, target, detail)
        sure = self._clear_note(handle, target, target in self._pivoting)
        if detail["creates"] and not sure:
            message = "QEMU does not say that it writes disk %s of guest %s to the old image: the file %s was left alone."
            raise CallFailed("in_use", message % (target, handle.name(), detail["creates"]))
        if detail["creates"]:
            self._remove_created(handle, target, detail["creates"])
            self._refresh(detail.get("pool"))

    def _do_create(self, handle, target, detail) -> None:
        self._connection.create_volume(detail["pool"], volume_xml(detail["volume"], detail["capacity"], detail["format"], detail["options"], detail["backing"]))
        self._made.add(detail["creates"])

    def _undo_create(self, handle, target, detail) -> None:
        if detail["creates"] in self._made:
            self._remove_created(handle, target, detail["creates"])
            self._refresh(detail["pool"])

    def _do_prepare(self, handle, target, detail) -> None:
        """Make the destination on its new base, holding what the layers between hold: only where it differs from the base."""
        if detail["creates"]:
            self._claim(detail["creates"])
        make_overlay(detail["path"], detail["format"], detail["size"], detail["above"], detail["below"], detail["timeout"])

    def _claim(self, path: str) -> None:
        """Make the file, so that what somebody puts there at that moment is neither overwritten now nor removed later."""
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            raise Moved("exists", "The destination %s came to be after it was looked at: it was left alone, look at it and run again." % path) from None
        except OSError as error:
            raise CallFailed("not_prepared", "The image %s could not be made (%s): nothing of the guest was changed." % (path, error.strerror)) from error
        self._made.add(path)
        self._own(path)

    def _undo_prepare(self, handle, target, detail) -> None:
        if detail["creates"] and detail["creates"] in self._made:
            self._remove_created(handle, target, detail["creates"])

    def _remove_created(self, handle, target: str, path: str) -> None:
        """Remove a file that this run created for a copy, if nothing of the guest uses it.  Raises CallFailed where QEMU holds it."""
        disk = self._now(handle).disk(target)
        used = {place for chain in ([] if disk is None else chains_of(disk)) for place in chain.places}
        if ("path", normal_path(path)) in used:
            raise CallFailed("in_use", "The file %s is in use by disk %s of guest %s: it was left alone." % (path, target, handle.name()))
        self._remove_unheld(path)

    def _remove_unheld(self, path: str) -> None:
        if not self._here:  # a file of that name on this host is another one
            raise CallFailed("remote_files", "The file %s was created on the guest's host and cannot be removed from here: remove it there." % path)
        if held_open(path):
            raise CallFailed("in_use", "A QEMU process holds the file %s open: it was left alone." % path)
        now = read_file(path)
        if now.exists and self._owned.get(path, (now.device, now.inode)) != (now.device, now.inode):
            raise Moved("file_changed", "The file %s is not the one that this run created: it was left alone." % path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def _do_discard(self, handle, target, detail) -> None:
        """Remove what an earlier phase of the same run created, if it still is that file and nobody holds it."""
        now = read_file(detail["path"])
        if now.exists and (now.device, now.inode) == (detail["device"], detail["inode"]):
            self._remove_unheld(detail["path"])

    def _do_abort(self, handle, target, detail) -> None:
        if detail["job"] == BACKUP:
            self._connection.abort_backup(handle)
            if not detail["later"]:
                self._backup_over(handle)
        else:
            self._connection.abort(handle, target, detail["later"])
        if not (detail.get("unseen") and detail["later"]):  # its end is not seen by this run
            self._clear_note(handle, target, detail.get("unseen", False))

    def _clear_note(self, handle, target: str, doubt: bool) -> bool:
        """Take the note away. In ``doubt`` (the job may have pivoted) only where QEMU says that it has not: nothing else may tell the next run of it.

        Is it sure that the guest is on the image that libvirt has?
        """
        if doubt:
            try:
                if agrees(self._now(handle).disk(target), self._connection.qemu_view(handle)) is not True:
                    return False
            except (CallFailed, Unavailable):
                return False
        self._connection.clear_record(handle, target)
        return True

    def _backup_over(self, handle) -> None:
        """Wait for what libvirt does not wait for: QEMU first finishes what it is reading and writing."""
        until = self._clock() + BACKUP_SECONDS
        while any(disk.job is not None and disk.job.type == BACKUP for disk in self._now(handle).disks):
            if self._clock() >= until:
                raise CallFailed("not_ended", "The backup of guest %s is being ended, but has not ended in %g seconds." % (handle.name(), BACKUP_SECONDS))
            self._sleep(0.2)

    def _do_speed(self, handle, target, detail) -> None:
        self._connection.set_speed(handle, target, detail["bandwidth"])
        self._slower[target] = detail["before"]

    def _undo_speed(self, handle, target, detail) -> None:
        if target in self._slower and self._now(handle).disk(target).job is not None:
            self._connection.set_speed(handle, target, self._slower[target])

    def _do_forget(self, handle, target, detail) -> None:
        self._connection.clear_record(handle, target)
