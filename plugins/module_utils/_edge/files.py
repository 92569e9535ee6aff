# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What this host says of a path."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from typing import Iterable, Optional

from .._core.model import File


def read_file(path: str) -> File:
    """The facts of a path on this host."""
    parent = os.path.dirname(path)
    base = File(path, False, parent=_kind(parent), real=os.path.realpath(path))
    try:
        free = os.statvfs(parent)
        base = replace(base, free=free.f_bavail * free.f_frsize)
    except OSError:
        pass
    try:
        facts = os.stat(path)
    except OSError:
        return replace(base, exists=os.path.lexists(path), kind="other" if os.path.lexists(path) else None)
    kind = _kind(path)
    return replace(base, exists=True, claimed=kind == "block" and _claimed(path), kind=kind, size=facts.st_size, device=facts.st_dev, inode=facts.st_ino)


def _claimed(path: str) -> bool:
    """Does the host use the block device, as a mounted file system, LVM, RAID or swap does? QEMU itself claims none."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _kind(path: str) -> Optional[str]:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    kinds: Iterable = ((stat.S_ISREG, "file"), (stat.S_ISBLK, "block"), (stat.S_ISDIR, "dir"))
    return next((word for test, word in kinds if test(mode)), "other")
