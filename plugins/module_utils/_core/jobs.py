# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The life of a block job, as one table.

The law: READY opens the pivot, and nothing else does (never cur == end). A job that is gone without a word has
*vanished*: that is neither success nor failure until the chain has been read again. An end stays an end.
What libvirt calls CANCELED may have completed inside QEMU just before, so it too is judged by the chain.
"""

from __future__ import annotations

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
