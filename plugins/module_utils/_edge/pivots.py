# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The pivot, the one call whose loss can leave QEMU on another image than libvirt names (see ``_core/pivot.py``)."""

from __future__ import annotations

import contextlib
from typing import Optional, Tuple

from .._core import pivot
from .._core.chain import Layer
from .._core.errors import Busy, CallFailed, JobFailed, LiveStorageError, Moved, PivotLost, Unavailable
from .._core.host_facts import Process, QemuView
from .._core.model import Domain, Selection
from .processes import ask_monitor, holds_path, qemu_processes
from .waits import RECONNECT_SECONDS

PIVOT_TRIES = 3


class Pivots:
    """The PIVOT, DEFINE and PROTECT steps of a Host."""

    def _do_pivot(self, handle, target, detail) -> None:
        """A pivot that fails leaves the mirror as it was, so it is tried again, a stated number of times.

        Raises PivotLost where nobody answered and the guest cannot be shown to be as before or as planned.
        """
        if detail.get("begun"):
            self._started.add(target)
            self._copied.add(target)
            self._own_again(handle, target, detail["creates"])
        lost: Optional[Unavailable] = None
        for attempt in range(PIVOT_TRIES):
            if attempt:
                self._sleep(0.5)
            self._still_there(handle, target, detail)
            self._pivoting.add(target)
            try:
                self._connection.pivot(handle, target)
                break
            except (CallFailed, Busy, Unavailable) as error:  # Busy is what libvirt calls a job that is not ready
                if isinstance(error, Unavailable):
                    lost = error
                handle, word = self._after_error(handle, target, detail, lost, error)
                if word == pivot.PIVOTED:
                    break
                if word != pivot.OPEN or attempt == PIVOT_TRIES - 1:
                    raise
        self._started.discard(target)
        self._copied.discard(target)
        if not detail.get("keep_note"):
            self._connection.clear_record(handle, target)

    def _undo_pivot(self, handle, target, detail) -> None:
        """A copy that an earlier phase of the same run has begun is ended, as it would be if this run had."""
        if detail.get("begun"):
            self._undo_copy(handle, target, detail)

    def _after_error(self, handle, target: str, detail, lost: Optional[Unavailable], error: LiveStorageError) -> tuple:
        """(handle, word) after a pivot that brought no success: pivoted, open (it may be tried again), or not_pivoted.

        A call that brought no answer may have done it, also where it is a later one that was refused; so may one whose guest stopped.
        """
        if lost is not None and lost.code == "permission":
            return handle, pivot.NOT_PIVOTED
        if lost is None:
            with contextlib.suppress(Moved):
                disk = self._now(handle).disk(target)
                if disk is not None and disk.mirror is not None and disk.mirror.ready != "pivot":
                    return handle, pivot.OPEN if disk.mirror.ready == "yes" else pivot.NOT_PIVOTED
        return self._after_loss(handle.name(), target, detail, lost or error)

    def _still_there(self, handle, target: str, detail) -> None:
        """Raises JobFailed (code dest_lost) where the destination's path is not the file that QEMU writes to: it was removed or replaced."""
        layer = detail["to"]
        if not detail.get("guards") or layer.path is None or not self._connection.local:
            return
        if holds_path(self._uuid, layer.path) is False:
            raise JobFailed(
                "dest_lost",
                "The destination %s of disk %s of guest %s is not the file that QEMU writes to any more, it was removed or replaced meanwhile: "
                "a pivot would leave the guest on a file without a name, leave the destination alone while a copy runs." % (layer, target, handle.name()),
            )

    def _after_loss(self, name: str, target: str, detail, error: LiveStorageError) -> tuple:
        """(handle, word) after a pivot whose call brought no answer: pivoted, open or not_pivoted. Raises PivotLost for all else."""
        layer = detail["to"]
        where = "disk %s of guest %s" % (target, name)
        unknown = "whether QEMU writes to %s or to the old image is not known" % layer
        try:
            if error.code == "connection_lost" or not self._connection.alive:  # isAlive() may not know it yet
                self._reopen()
        except Unavailable as trouble:
            message = "The daemon went away during the pivot of %s to %s and did not come back: do not restart the guest, start the daemon and "
            raise PivotLost("pivot_lost", message % (where, layer) + "run the same task again.", unknown) from trouble
        try:
            handle, processes, word = self._settled(target, layer)
        except (CallFailed, Unavailable) as trouble:
            message = "The pivot of %s to %s got no answer, and the guest cannot be looked at (%s): do not restart it, run the same task again."
            raise PivotLost("pivot_lost", message % (where, layer, trouble), unknown) from trouble
        if word in (pivot.STALE, pivot.ORPHANED):
            advice = self._protected(handle, target, layer, word, processes)
            message = "The daemon died during the pivot of %s: QEMU writes to %s, and libvirt has the old image as its source. %s"
            raise PivotLost("stale_pivot", message % (where, layer, advice), "QEMU writes to %s, which libvirt does not know" % layer) from error
        if word == pivot.GONE:
            message = "Guest %s stopped during the pivot of its disk %s: its newest writes are in %s or in the old image, compare both before it is started."
            raise PivotLost("guest_stopped", message % (name, target, layer), unknown) from error
        if word == pivot.UNKNOWN:
            message = "The pivot of %s to %s got no answer, and which image QEMU writes to is not known: do not restart the guest, run the same task again."
            raise PivotLost("pivot_lost", message % (where, layer), unknown) from error
        return handle, word

    def _settled(self, target: str, layer: Layer) -> tuple:
        """(handle, processes, word): what has become of the pivot; one that is still going on (as with a speed limit) is waited for."""
        until = self._clock() + RECONNECT_SECONDS
        while True:
            handle, domain, view, processes = self._whole_view()
            word = pivot.outcome(domain, target, layer, view, processes)
            disk = domain.disk(target) if domain is not None else None
            if word != pivot.OPEN or disk is None or disk.mirror is None or disk.mirror.ready != "pivot":
                return handle, processes, word
            if self._clock() >= until:
                return handle, processes, pivot.UNKNOWN
            self._sleep(0.5)

    def _whole_view(self) -> Tuple[object, Optional[Domain], Optional[QemuView], Tuple[Process, ...]]:
        """The guest, QEMU's own answer where there is a doubt about it, and its processes."""
        handle = self._connection.handle(Selection(uuid=self._uuid))
        processes = tuple(one for one in qemu_processes() if one.uuid == self._uuid) if self._connection.local else ()
        domain = None if handle is None else self._connection.read(handle, True)
        if domain is not None and domain.active:
            return handle, domain, self._connection.qemu_view(handle), processes
        view = next((found for found in (ask_monitor(one.pid) for one in processes) if found is not None), None)
        return handle, domain, view, processes

    def _protected(self, handle, target: str, layer: Layer, word: str, processes: Tuple[Process, ...]) -> str:
        """Let the next start have the image that QEMU writes to; what is to be done then."""
        try:
            self._connection.define_image(handle, target, layer)
        except (CallFailed, Unavailable, Moved) as trouble:
            if trouble.code == "transient":
                return "The guest is transient: whoever starts it next has to give it %s." % layer
            message = "The next start would have the old image, because the definition could not be changed (%s): define %s before the guest is stopped."
            return message % (str(trouble).rstrip("."), layer)
        return pivot.way_out(layer, processes[0].pid if word == pivot.ORPHANED and processes else None)

    def _do_define(self, handle, target, detail) -> None:
        self._connection.define_as_running(handle, target, *([detail["known"]] if "known" in detail else []))

    def _do_protect(self, handle, target, detail) -> None:
        self._connection.define_image(handle, target, detail["to"])
