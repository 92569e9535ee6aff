# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps about snapshots beside taking one: freeze and thaw, what libvirt and our note keep of them, and libvirt's own reversion."""

from __future__ import annotations

from typing import List, Optional, Set

from .._core.errors import CallFailed, LiveStorageError, Unavailable
from .._core.plan import Step

THAWS = 3  # a frozen guest hangs, so that a thaw is tried for longer than a freeze


class Snapshots:
    """These steps of a Host, which gives the connection."""

    notes: List[str]
    quiesced: Optional[bool] = None  # whether this run has frozen the guest's file systems for its snapshot
    _frozen = False  # whether they may be frozen now
    _written: Set[str]
    _renamed: List[str]

    def _do_freeze(self, handle, target, detail) -> None:
        """Freeze the guest's file systems. An agent that gives no answer in time may freeze them later, so that it is told to thaw, too."""
        self._frozen = True
        begun = self._clock()
        try:
            self._connection.freeze(handle, detail["timeout"])
            self.quiesced = True
        except (CallFailed, Unavailable) as error:
            self.quiesced = False
            late = self._clock() - begun >= detail["timeout"] - 1  # then the agent may do it yet, before it hears of a thaw
            trouble = self._thawed(handle, detail["timeout"], late)
            doubt = "" if trouble is None else " Whether they are frozen now is not known, as the thaw failed, too (%s)." % str(trouble).rstrip(".")
            message = "The file systems of guest %s could not be frozen (%s).%s" % (handle.name(), str(error).rstrip("."), doubt)
            if not detail["fallback"]:
                raise CallFailed("not_frozen", message + " Nothing else was done: mend the guest agent, or set quiesce_fallback.") from error
            self.notes.append(message + " The snapshot is not quiesced.")

    def _undo_freeze(self, handle, target, detail) -> None:
        if self._frozen:
            self._do_thaw(handle, target, detail)

    def _do_thaw(self, handle, target, detail) -> None:
        """Thaw, whatever became of the freeze. Raises CallFailed (code not_thawed) where the guest may hang from now on."""
        if not self._frozen:
            return
        trouble = self._thawed(handle, detail["timeout"], True)
        if trouble is not None and self.quiesced is not False:  # None: the freeze was interrupted
            message = "The file systems of guest %s are frozen and could not be thawed (%s): its programs hang until virsh domfsthaw %s succeeds."
            raise CallFailed("not_thawed", message % (handle.name(), str(trouble).rstrip("."), handle.name())) from trouble

    def _thawed(self, handle, seconds: float, patiently: bool) -> Optional[LiveStorageError]:
        """None once the thaw succeeded, else the last error. ``patiently``: tried again and again, THAWS times as long as one may take."""
        until = self._clock() + THAWS * seconds
        while True:
            try:
                self._connection.thaw(handle, seconds)
            except (CallFailed, Unavailable) as error:
                if not patiently or self._clock() >= until:
                    return error
                self._sleep(1.0)
                continue
            self._frozen = False
            return None

    def _do_retell(self, handle, target, detail) -> None:
        """Let what libvirt keeps of snapshots, and our own note, name the layers that are there now. Done again, it changes nothing more."""
        overlays = dict(detail["overlays_of"])
        for name in detail["names"]:
            self._renamed += self._connection.redefine_snapshot(handle, name, detail["moved"], overlays)
        if detail["notes"] is not None:
            self._connection.write_noted(handle, detail["notes"])

    def _undo_retell(self, handle, target, detail) -> None:
        """A note stays that tells of what was written into the image of a snapshot."""
        before = detail.get("before")
        while self._renamed and before is not None:
            self._connection.redefine_again(handle, self._renamed.pop())
        if detail["notes"] is not None and before is not None and not (self._written and any(shot.spoiled for shot in detail["notes"])):
            self._connection.write_noted(handle, before)

    def _do_disown(self, handle, target, detail) -> None:
        self._connection.forget_snapshot(handle, detail["name"])

    def _do_revert(self, handle, target, detail) -> None:
        self._connection.revert(handle, detail["name"])

    def _undo_idle_snapshot(self, handle, step: Step) -> None:
        """Take a snapshot of a guest that is off back: its overlays are empty, and their creation is undone after this."""
        if handle is None:
            return
        if step.detail["metadata"]:
            self._connection.forget_snapshot(handle, step.detail["name"])
        self._connection.define_chains(handle, dict(step.detail["back"]))
