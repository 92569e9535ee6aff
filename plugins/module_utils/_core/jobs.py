# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The life of a block job, as one table.

The law: READY opens the pivot, and nothing else does (never cur == end). A job that is gone without a word has
*vanished*: that is neither success nor failure until the chain has been read again. An end stays an end.
What libvirt calls CANCELED may have completed inside QEMU just before, so it too is judged by the chain.
"""

from __future__ import annotations

from typing import Optional

RUNNING, READY = "running", "ready"
COMPLETED, FAILED, CANCELED, VANISHED, GUEST_GONE = "completed", "failed", "canceled", "vanished", "guest_gone"

ENDS = frozenset([COMPLETED, FAILED, CANCELED, VANISHED, GUEST_GONE])

# What is heard (events of libvirt) or seen (a poll): the words of VIR_DOMAIN_BLOCK_JOB_*, and
# "gone" (no job and no event), "stopped" (the guest is not running any more), "progress" (a poll saw it).
_TABLE = {
    (RUNNING, "progress"): RUNNING,
    (RUNNING, "ready"): READY,
    (RUNNING, "completed"): COMPLETED,
    (RUNNING, "failed"): FAILED,
    (RUNNING, "canceled"): CANCELED,
    (RUNNING, "gone"): VANISHED,
    (RUNNING, "stopped"): GUEST_GONE,
    (READY, "progress"): READY,
    (READY, "ready"): READY,  # READY came twice under load until libvirt 7.3
    (READY, "completed"): COMPLETED,
    (READY, "failed"): FAILED,
    (READY, "canceled"): CANCELED,
    (READY, "gone"): VANISHED,
    (READY, "stopped"): GUEST_GONE,
    (VANISHED, "completed"): COMPLETED,  # the event came after the poll
    (VANISHED, "failed"): FAILED,
    (VANISHED, "canceled"): CANCELED,
    (VANISHED, "stopped"): GUEST_GONE,
}
WORDS = frozenset(word for dummy, word in _TABLE)


def advance(state: str, word: str) -> str:
    """The state after ``word``. An end that is not VANISHED keeps whatever comes later; an unknown word is a ValueError."""
    if word not in WORDS:
        raise ValueError("unknown word about a job: %s" % word)
    return _TABLE.get((state, word), state)


def arrived(state: str, until: str) -> bool:
    """Is the wait over? ``until`` is READY or COMPLETED; every end is an arrival, too."""
    return state == until or state in ENDS


class Convergence:
    """Does a copy catch up with its guest? Judged by the bytes that remain (end - cur): QEMU adds to ``end`` what the guest writes anew.

    Not while they fall: it stalls when they were not fewer than ever before for ``window`` seconds. A guest that writes faster than
    the copy keeps them where they are. QEMU's mirror takes steps of up to 16 MiB, so that a limited one is given the time for two.
    """

    STEP = 16 * 1024 * 1024

    def __init__(self, window: float):
        self.window = window
        self._least: Optional[int] = None
        self._since = 0.0

    def stalls(self, now: float, cur: int, end: int, bandwidth: int = 0) -> bool:
        """``now`` in seconds of any clock that only goes forward; ``bandwidth`` in bytes per second, 0: no limit."""
        remaining = max(0, end - cur)
        if self._least is None or remaining < self._least:
            self._least, self._since = remaining, now
        return now - self._since >= max(self.window, 2.0 * self.STEP / bandwidth if bandwidth else 0.0)

    def again(self, now: float) -> None:
        """Give it another window."""
        self._since = now
