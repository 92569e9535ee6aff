# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What this host says of a path."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from dataclasses import replace
from typing import Iterable, Optional

from .._core.model import File

# FS_IOC_GETFLAGS of linux/fs.h; POWER numbers its ioctls in another way.
GET_FLAGS = (0x40000000 if os.uname().machine.startswith("ppc") else 0x80000000) | struct.calcsize("l") << 16 | 0x6601
IMMUTABLE, APPEND_ONLY = 0x10, 0x20
KEEP_SIZE, PUNCH_HOLE, HOLE = 1, 2, 4096  # of linux/falloc.h, and bytes
_LIBC = ctypes.CDLL(None, use_errno=True)
_FALLOCATE = getattr(_LIBC, "fallocate64", None) or _LIBC.fallocate  # musl has the latter alone, and that is the same
_FALLOCATE.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
BLOCK_READ_ONLY = "/sys/dev/block/%d:%d/ro"


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
    found = replace(base, exists=True, claimed=kind == "block" and _claimed(path), kind=kind, size=facts.st_size, device=facts.st_dev, inode=facts.st_ino)
    found = replace(found, owner=facts.st_uid, group=facts.st_gid, mode=stat.S_IMODE(facts.st_mode))
    return replace(found, protected=_protected(path, facts))


def takes_holes(path: str) -> Optional[bool]:
    """Does what is punched out of a file at that path read as zeros? Tried on a file without a name in its directory; None where that cannot be tried.

    Of a block device nobody knows: what it discards may still be read afterwards.
    """
    if _kind(path) == "block":
        return False
    try:
        descriptor = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        os.write(descriptor, b"1" * HOLE)
        if _FALLOCATE(descriptor, KEEP_SIZE | PUNCH_HOLE, 0, HOLE) != 0:
            return False if ctypes.get_errno() == errno.EOPNOTSUPP else None
        return os.pread(descriptor, HOLE, 0) == bytes(HOLE)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _protected(path: str, facts: os.stat_result) -> Optional[str]:
    """Why nobody is to write to an image; root could often do it nevertheless."""
    if stat.S_ISBLK(facts.st_mode):
        return "the host has set the block device read-only" if _read_only_device(facts.st_rdev) else None
    if not stat.S_ISREG(facts.st_mode):
        return None
    flags = _flags(path)
    reasons = (
        (_on_read_only(path), "its file system is mounted read-only"),
        (flags & IMMUTABLE, "it is immutable (chattr +i)"),
        (flags & APPEND_ONLY, "it can only be appended to (chattr +a)"),
        (not facts.st_mode & 0o222, "its mode %04o lets nobody write to it" % stat.S_IMODE(facts.st_mode)),
    )
    return next((why for wrong, why in reasons if wrong), None)


def _on_read_only(path: str) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _flags(path: str) -> int:
    """The attributes of chattr; none where the file system has none, or they may not be read."""
    answer = bytearray(struct.calcsize("l"))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            # By now it may be something else, of which an ioctl means something else.
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                fcntl.ioctl(descriptor, GET_FLAGS, answer)
        finally:
            os.close(descriptor)
    except OSError:
        return 0
    return struct.unpack_from("=I", answer)[0]


def _read_only_device(number: int) -> bool:
    try:
        with open(BLOCK_READ_ONLY % (os.major(number), os.minor(number)), encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


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
