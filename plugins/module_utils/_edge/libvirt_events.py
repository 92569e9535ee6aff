# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's events, as a queue of words that ``_core/jobs.py`` understands.

The event loop has to be registered before the connection is opened, and the callbacks before a job is started: a small
job ends before the next call. BLOCK_JOB_2 names the disk (BLOCK_JOB names a path, which a pivot changes), and LIFECYCLE
is needed because no block-job event comes when the guest is destroyed or QEMU is killed.
"""

from __future__ import annotations

import queue
import threading

_JOB_WORDS = ("completed", "failed", "canceled", "ready")
_started = threading.Event()


def start_loop(libvirt) -> None:
    """Register libvirt's own event loop and run it in a thread; once a process."""
    if _started.is_set():
        return
    _started.set()
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run, args=(libvirt,), name="libvirt-events", daemon=True).start()


def _run(libvirt) -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


class Events:
    """The words about the jobs of every guest of one connection."""

    def __init__(self, libvirt, connection):
        self._queue: queue.Queue = queue.Queue()
        self._stopped = libvirt.VIR_DOMAIN_EVENT_STOPPED
        # Not answered: the daemon is asked for a sign of life, so that a dead connection is noticed while waiting.
        try:
            connection.setKeepAlive(5, 3)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:  # a driver without a daemon
                raise
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, self._block_job, None)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None)

    def _block_job(self, connection, domain, disk, kind, status, opaque) -> None:
        if status < len(_JOB_WORDS):
            self._queue.put((domain.UUIDString(), disk, _JOB_WORDS[status]))

    def _lifecycle(self, connection, domain, event, detail, opaque) -> None:
        if event == self._stopped:
            self._queue.put((domain.UUIDString(), None, "stopped"))

    def word(self, uuid: str, disk: str, seconds: float):
        """The next word about that disk's job (or its guest), or None when there was none within so many seconds."""
        try:
            about, target, word = self._queue.get(timeout=seconds)
        except queue.Empty:
            return None
        return word if about == uuid and target in (disk, None) else None

    def forget(self) -> None:
        """Drop what was heard so far: it is about an earlier job."""
        while not self._queue.empty():
            self._queue.get_nowait()
