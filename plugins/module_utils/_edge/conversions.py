# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Doing and undoing the steps between a raw image and a qcow2 layer over it (``handle`` is None where the image belongs to no guest).

A guest that was running is saved with its memory meanwhile. Whatever fails, it is started again with what it was saved with at first.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Optional, Set, Tuple

from .._core.errors import CallFailed, Moved
from .datafile import checked, compared, convert, create, differs, mark_holes, stand_over
from .image_locks import Locks
from .offline import follow

CREATE_SECONDS = 600.0  # its tables, however big the disk
START_SECONDS = 600.0  # a start that reads the memory of a guest
SETTLE_SECONDS = 10.0  # a daemon that has just begun to look at its guests


class Conversions:
    """These steps of a Host, which gives the connection and the looks."""

    _locks: Locks
    _made: Set[str]
    facts: Dict[str, Any]
    _saving = False
    _resaved: Optional[str] = None  # what the guest was saved with, before this run changed it
    _stopped_at: Optional[float] = None
    _owners: Dict[str, Tuple[int, int]]

    def _do_note(self, handle, target, detail) -> None:
        self._connection.note_conversion(handle, target, detail["note"])

    def _undo_note(self, handle, target, detail) -> None:
        """An older note stays that another run has left: what it tells of is still to be done."""
        self._connection.note_conversion(handle, target, detail["before"])

    def _do_unnote(self, handle, target, detail) -> None:
        self._connection.note_conversion(handle, target, None)

    def _do_metadata(self, handle, target, detail) -> None:
        """Make the layer over a file that is nobody's. Nobody but the owner of the raw image may read what it will hold."""
        for path in detail["creates"]:
            self._claim(path)
        reason = create(detail["path"], detail["over"], detail["size"], detail["cluster_size"], CREATE_SECONDS)
        for path in detail["creates"]:
            reason = reason or follow(path, detail["mode_of"])
        if reason is not None:
            raise CallFailed("not_prepared", "The layer %s could not be made (%s): nothing of the disk was changed." % (detail["path"], reason))

    def _undo_metadata(self, handle, target, detail) -> None:
        """Unless the guest uses the layer by now."""
        for path in [path for path in detail["creates"] if path in self._made]:
            if handle is not None:
                self._remove_created(handle, target, path)
            else:
                self._remove_unheld(path)
            self._made.discard(path)

    def _do_adopt(self, handle, target, detail) -> None:
        """Let the layer stand over the raw image, which this process holds, and prove that both show the same."""
        path, raw, size, seconds = detail["path"], detail["raw"], detail["size"], detail["timeout"]
        reason = mark_holes(path, raw.path, size, detail["cluster_size"], seconds) if detail["holes"] else None
        reason = reason or stand_over(path, raw.path, CREATE_SECONDS)
        if reason is None:
            self._remove_unheld(detail["over"])
            reason = None if detail.get("live") else differs(path, raw, size) or checked(path, raw, seconds)
        if reason is None and detail["compare"]:
            reason = compared(path, raw, seconds)
        if reason is not None:
            raise CallFailed("not_adopted", "%s could not be put over %s (%s): that image was not written to." % (path, raw, reason))
        if detail["owner"] is not None:
            self._give(raw.path, detail["owner"])

    def _undo_adopt(self, handle, target, detail) -> None:
        path = detail["raw"].path
        if path in self._owners and not (handle is not None and self._now(handle).active):
            self._give(path, self._owners[path])
            del self._owners[path]

    def _give(self, path: str, owner: Tuple[int, int]) -> None:
        """libvirt before 10.10 does not know that a guest has a data file, and lets its QEMU open only what it knows."""
        facts = os.stat(path)
        if (facts.st_uid, facts.st_gid) == owner:
            return
        try:
            os.chown(path, *owner)
        except OSError as error:
            message = "The owner of %s cannot be set to %d:%d, as whom QEMU runs (%s): set it by hand."
            raise CallFailed("not_adopted", message % (path, owner[0], owner[1], error.strerror)) from error
        self._owners[path] = (facts.st_uid, facts.st_gid)

    def _do_prove(self, handle, target, detail) -> None:
        reason = differs(detail["path"], detail["raw"], detail["size"])
        if reason is not None:
            message = "%s cannot be taken off %s (%s): copy the disk to a raw image with block_copy instead."
            raise CallFailed("differs", message % (detail["path"], detail["raw"], reason))

    def _do_drop(self, handle, target, detail) -> None:
        self._do_discard(handle, target, detail)

    def _do_convert(self, handle, target, detail) -> None:
        for path in detail["creates"]:
            self._claim(path)
        reason = convert(detail["source"], detail["path"], detail["over"], detail["cluster_size"], detail["timeout"], self._locks.descriptors)
        for path in detail["creates"]:
            reason = reason or follow(path, detail["mode_of"])
        if reason is not None:
            raise CallFailed("not_prepared", "%s could not be copied to %s (%s): nothing of the disk was changed." % (detail["source"], detail["path"], reason))
        if detail["owner"] is not None:
            self._give(detail["over"], detail["owner"])

    _undo_convert = _undo_metadata

    def _do_save(self, handle, target, detail) -> None:
        """The pause begins here, unless an earlier run has saved the guest."""
        if detail.get("already"):
            return
        self._stopped_at, self._saving = self._clock(), True
        try:
            self._connection.save(handle, detail["timeout"])
            self._saving = False
        except CallFailed:
            self._saving = False
            raise
        if self._now(handle).active or not self._connection.saved(handle):
            raise Moved("moved", "Guest %s was started again while it was saved, or stopped by itself: run the task again." % handle.name())

    def _undo_save(self, handle, target, detail) -> None:
        """Only from its memory: a guest that somebody shut down meanwhile is not started."""
        self._locks.release()
        if handle is not None and self._connection.saved(handle):
            if not self._now(handle).active:
                self._connection.start(handle, START_SECONDS)
            elif self._saving:  # a daemon that died while it saved leaves a part of that behind, and the guest runs on
                self._connection.drop_saved(handle)
        self._measure_pause()

    def _do_resave(self, handle, target, detail) -> None:
        before = self._connection.resave(handle, dict(detail["chains"]))
        self._resaved = None if detail.get("stays") else before

    def _undo_resave(self, handle, target, detail) -> None:
        if self._resaved is not None and handle is not None and self._connection.saved(handle):
            self._connection.resave_again(handle, self._resaved)
            self._resaved = None

    def _do_restart(self, handle, target, detail) -> None:
        """The pause ends here. QEMU needs the images that this process holds."""
        self._locks.release()
        self._connection.start(handle, START_SECONDS)
        self._measure_pause()

    def _settle_start(self) -> None:
        """Wait until a start has come to its end or is undone: the memory of a guest is kept until then.

        Where the daemon died meanwhile, the next one ends the half-started QEMU. One that runs on must not be started from that memory once more.
        """
        self._reach()
        handle, until = self._handle(), self._clock() + SETTLE_SECONDS
        while self._now(handle).active and self._connection.saved(handle):
            if self._clock() >= until:
                self._connection.drop_saved(handle)
                return
            self._sleep(0.2)

    def _measure_pause(self) -> None:
        if self._stopped_at is not None:
            self.facts["pause"] = round(self._clock() - self._stopped_at, 3)
            self._stopped_at = None
