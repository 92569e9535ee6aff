# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can go wrong, as exceptions with a code for machines, one sentence for people, and facts.

Nothing here decides what to do about it: only the pipeline turns an error into a module's failure.
"""

from __future__ import annotations

from typing import Optional


class LiveStorageError(Exception):
    """Base of all. ``code`` is stable and documented; ``facts`` are returned with the failure.

    ``keep`` says that what was started is meant to stay (a job left running on purpose): it must not be undone.
    ``stands`` is a sentence about how the guest stands, where libvirt itself does not know it.
    """

    keep = False
    stands: Optional[str] = None

    def __init__(self, code: str, message: str, **facts):
        super().__init__(message)
        self.code = code
        self.facts = facts


class Refused(LiveStorageError):
    """The request cannot be done as asked; nothing was touched."""


class Busy(LiveStorageError):
    """Somebody else's job is in the way; it was left alone."""


class Moved(LiveStorageError):
    """The guest changed between the look and the act; nothing was touched."""


class CallFailed(LiveStorageError):
    """libvirt or QEMU answered a call with an error."""


class JobFailed(LiveStorageError):
    """A block job ended without doing its work."""


class TimedOut(JobFailed):
    """A deadline passed while a job was running."""

    def __init__(self, code: str, message: str, keep: bool, **facts):
        super().__init__(code, message, **facts)
        self.keep = keep


class PivotLost(JobFailed):
    """Nobody answered during a pivot, and QEMU does not write to the image that libvirt names, or nobody knows: nothing may be undone."""

    keep = True

    def __init__(self, code: str, message: str, stands: str, **facts):
        super().__init__(code, message, **facts)
        self.stands = stands


class VerifyFailed(LiveStorageError):
    """A fresh look contradicts the prediction."""


class Unavailable(LiveStorageError):
    """The daemon, a permission or a tool is missing."""


class FindingsMet(LiveStorageError):
    """A validation found what the task does not allow; ``facts`` are the whole result."""
