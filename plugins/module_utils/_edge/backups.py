# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Checkpoints and backups: a look at them, and doing and undoing their steps.

libvirt removes what a failed or ended push has written, but not the checkpoint that was created with it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Any, Dict, List, Optional, Set

from .._core.backup_xml import backup_xml, checkpoint_xml
from .._core.backups import Asked, Ended, Kept
from .._core.errors import Busy, CallFailed, JobFailed, LiveStorageError, Moved, Unavailable, VerifyFailed
from .._core.model import BACKUP, Disk, Domain, Job, Needs, Selection
from .image_work import failure, measure
from .qemu_img import read_image, require_tool

HEADER_SECONDS = 60.0  # to write a name into a header
MISSING_BITMAP = "not found in backing chain"  # libvirt's words, as it has no code for it


class Backups:
    """These steps of a Host, which gives the connection and the looks."""

    facts: Dict[str, Any]
    _copied: Set[str]
    _ended: Optional[Ended] = None  # how the backup ended that was waited for
    _pointed: Optional[Set[str]] = None  # the checkpoints that this run has created

    # READ

    def _kept(self, needs: Needs, kept: list, local: bool, troubles) -> Dict[str, Kept]:
        """What each guest has of checkpoints and backups; a guest that gives no answer is a trouble of an info module, and the end of another."""
        found = {}
        for handle, domain in kept:
            try:
                found[domain.uuid] = self._kept_of(needs.kept, handle, domain, local)
            except (CallFailed, Unavailable) as error:
                if not needs.tolerant:
                    raise
                self._told(error, troubles)
                troubles.of_guests[domain.uuid, "kept"] = (error.code, str(error))
        return found

    def _kept_of(self, asked: Asked, handle, domain: Domain, local: bool) -> Kept:
        running = self._connection.backup(handle) if domain.active else None
        dirty = asked.dirty and domain.active and running is None  # QEMU is busy with a backup, and slow to answer
        points = tuple(self._connection.points(handle, dirty))
        last = self._connection.last_backup(handle) if running is None else None
        return Kept(points, running, last, self._needed(asked, domain) if local and running is None else {})

    def _needed(self, asked: Asked, domain: Domain) -> Dict[str, int]:
        """Measured at the first look only, as it may take long."""
        found = {}
        for target, layers, format_ in asked.measure(domain) if asked.measure is not None else ():
            key = (layers, format_)
            if key not in self._measured:
                self._measured[key] = measure(layers, format_)
            size = self._measured[key]
            if size is not None:
                found[target] = size
        return found

    # CHECKPOINTS

    def _do_checkpoint(self, handle, target, detail) -> None:
        for one in detail["targets"]:
            self._no_strange_job(handle, one)
        self._pointed = {detail["name"]}
        try:
            self._connection.create_checkpoint(handle, checkpoint_xml(detail["name"], detail["targets"], detail["others"], detail["description"]))
        except (CallFailed, Busy):
            self._pointed = None
            raise

    def _no_strange_job(self, handle, target: str) -> None:
        disk = self._now(handle).disk(target)
        if disk is not None and disk.job is not None and disk.job.type != BACKUP:
            self._no_job(handle, target)

    def _undo_checkpoint(self, handle, target, detail) -> None:
        if self._pointed and detail["name"] in self._pointed:
            self._connection.delete_checkpoint(handle, detail["name"], False)

    def _do_uncheck(self, handle, target, detail) -> None:
        try:
            self._connection.delete_checkpoint(handle, detail["name"], detail["metadata_only"])
        except CallFailed as error:
            if MISSING_BITMAP not in str(error):
                raise
            message = "The checkpoint %s of guest %s has no bitmap any more (%s): set metadata_only, so that libvirt forgets it."
            raise CallFailed("bitmap_missing", message % (detail["name"], detail["guest"], str(error).rstrip("."))) from error

    # BACKUPS

    def _do_begin(self, handle, target, detail) -> None:
        """Begin a backup. The intent is written down before, so that a run after a killed one knows it again."""
        backup, creation = detail["backup"], detail["creation"]
        for one in backup.targets:
            self._no_job(handle, one)
        for record in detail["records"]:
            self._as_planned(handle, record.disk, record)
        self._connection.events.forget()
        for record in detail["records"]:
            self._connection.write_record(handle, replace(record, since=int(self._now_of_day())))
        point = None if creation is None else checkpoint_xml(creation["name"], creation["targets"], creation["others"])
        self._copied.update(backup.targets)
        try:
            self._connection.begin_backup(handle, backup_xml(backup, detail["others"]), point)
        except (CallFailed, Busy):
            self._copied.difference_update(backup.targets)
            self._forget_all(handle, detail)
            raise
        for path in detail["creates"]:
            self._own(path)

    def _forget_all(self, handle, detail) -> None:
        for record in detail["records"]:
            with contextlib.suppress(LiveStorageError):  # the first error is the one reported
                self._connection.clear_record(handle, record.disk)

    def _undo_begin(self, handle, target, detail) -> None:
        """End the backup, and take away what libvirt leaves of it."""
        targets = detail["backup"].targets
        if not self._copied.issuperset(targets):
            return
        if self._connection.backup(handle) is not None:
            self._connection.abort_backup(handle)
            self._backup_over(handle)
        self._clean(handle, targets[0], detail)
        self._forget_all(handle, detail)
        self._copied.difference_update(targets)

    def _clean(self, handle, target: str, detail) -> None:
        for path in detail["creates"]:
            if os.path.lexists(path):
                self._remove_created(handle, target, path)
        names = [one.name for one in self._connection.points(handle, False)]
        if detail["checkpoint"] in names:
            self._connection.delete_checkpoint(handle, detail["checkpoint"], False)

    def _do_await(self, handle, target, detail) -> None:
        """Wait for the end of a push, by events and by looking. Raises TimedOut past the deadline, and JobFailed."""
        first = detail["targets"][0]
        for path in detail["creates"]:
            self._own_again(handle, first, path)
        deadline = self._clock() + detail["timeout"]
        job: Optional[Job] = None
        while True:
            handle, over, seen = self._backup_poll(handle, detail, deadline, job)
            job = seen or job
            if over:
                break
            if self._clock() >= deadline:
                self._timed_out(handle, self._at_work(handle, detail["targets"]), detail, job)
            self._connection.events.word(self._uuid, first, min(detail["poll_interval"], max(0.0, deadline - self._clock())))
        self._ended = self._connection.last_backup(handle)
        if self._ended is not None and not self._ended.success:
            reason = (self._ended.message or "as with full or broken storage, or by somebody else").rstrip(".")
            words = "The backup of disk %s of guest %s ended without its work (%s)."
            raise JobFailed("job_failed", words % (", ".join(detail["targets"]), handle.name(), reason), last_job=job)

    def _at_work(self, handle, targets) -> str:
        """A disk of a backup that is not done yet: by that it can be ended."""
        disks = (self._now(handle).disk(target) for target in targets)
        return next((disk.target for disk in disks if disk is not None and disk.job is not None), targets[0])

    def _backup_poll(self, handle, detail, deadline: float, last: Optional[Job]):
        """(handle, is it over, the job). A broken connection is opened again, since QEMU's job goes on. Raises JobFailed where the guest has stopped."""
        try:
            domain = self._now(handle)
            if domain.active:
                job = _whole(domain, detail["targets"])
                return handle, self._connection.backup(handle) is None, job
        except Moved:
            pass
        except (Unavailable, CallFailed) as error:
            if error.code == "permission":
                raise
            if self._connection.alive:  # the look failed, the backup did not
                return handle, False, None
            self._come_back(handle.name(), detail["targets"][0], detail, deadline, last)
            found = self._connection.handle(Selection(uuid=self._uuid))
            if found is not None:
                return found, False, None
        words = "The backup of disk %s of guest %s ended because the guest stopped: libvirt has removed what it had written."
        raise JobFailed("guest_stopped", words % (", ".join(detail["targets"]), handle.name()), last_job=last)

    def _undo_await(self, handle, target, detail) -> None:
        """Where the backup of an earlier phase of the same run, or of an earlier run, is over, what was created for it goes, too. One that runs, goes on."""
        if self._connection.backup(handle) is not None:
            return
        self._clean(handle, detail["targets"][0], detail)
        for one in detail["targets"]:
            self._connection.clear_record(handle, one)

    def _do_back(self, handle, target, detail) -> None:
        """Let the header of an incremental backup name the earlier one: libvirt writes the image of the running guest there."""
        require_tool(detail["path"])
        backing = ["-b", detail["backing"], "-F", detail["backing_format"]] if detail["backing"] else ["-b", ""]
        reason = failure(["qemu-img", "rebase", "-q", "-u", "-f", detail["format"], *backing, "--", detail["path"]], HEADER_SECONDS)
        if reason is not None:
            raise CallFailed("not_rebased", "%s could not be put on %s (%s)." % (detail["path"], detail["backing"] or "nothing", reason))

    def _do_inspect(self, handle, target, detail) -> None:
        """See that every target is a whole image by its header, and how large it has become. Raises VerifyFailed."""
        found: List[Dict[str, Any]] = []
        told = {disk["disk"]: disk for disk in detail["backup"]["disks"]}
        for disk, path, kind, format_, size, backing in detail["images"]:
            image = read_image(path, format_)
            wrong = _wrong(image, kind, format_, size, backing)
            if wrong is not None:
                raise VerifyFailed("verify_failed", "The target %s of the backup of disk %s is not what it should be: %s." % (path, disk, wrong))
            more = {"virtual_size": image.virtual_size, "actual_size": image.actual_size}
            found.append(dict(told[disk], **more, backing=image.backing_path, backing_format=image.backing_format))
        total = {"bytes": self._ended.total} if self._ended is not None else {}
        self.facts["backup"] = dict(detail["backup"], disks=found, **total)


def _wrong(image, kind: str, format_: str, size: Optional[int], backing: Optional[str]) -> Optional[str]:
    """What is wrong with a target, in words."""
    if image is None:
        return "it cannot be read as %s" % format_
    if size is not None and (image.virtual_size < size if kind == "block" and format_ == "raw" else image.virtual_size != size):
        return "it has %d bytes, and the disk has %d" % (image.virtual_size, size)
    if format_ != "raw" and image.backing_path != backing:
        return "it stands on %s" % (image.backing or "nothing")
    return None


def _whole(domain: Domain, targets) -> Optional[Job]:
    """The jobs of all disks of a backup as one. One that is done is not told any more."""
    disks: List[Disk] = [disk for disk in domain.disks if disk.target in targets]
    jobs = [disk.job for disk in disks if disk.job is not None]
    return Job(BACKUP, sum(job.cur for job in jobs), sum(job.end for job in jobs)) if jobs else None
