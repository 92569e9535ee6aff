# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU's own locks on images, held by this process: as long as they are held no QEMU opens what is being changed.

QEMU's rule (block/file-posix.c): who uses the permission p holds a shared lock on byte 100 + p, who does not share p with others one
on byte 200 + p; all of them are shared locks, so that taking one never fails, and a conflict is found by asking for an exclusive one.
They belong to the open file (OFD locks): a child that inherits it keeps them when this process is killed.

What a writer asks for is what QEMU asks for, and more: it also refuses while somebody reads who would tolerate a writer, as an export for
a backup does. It does not forbid such readers later: `qemu-img info -U`, with which the result is verified, is one of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import stat
import struct
import time
from typing import Dict, Iterable, Iterator, Optional, Tuple

from .._core.errors import Busy, CallFailed, LiveStorageError, Unavailable
from .processes import qemu_processes

USED, UNSHARED = 100, 200
CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE = range(4)
PERMISSIONS = {False: (CONSISTENT_READ,), True: (CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE)}
EXCLUSIVE = (WRITE, RESIZE)  # what neither a reader nor a writer shares
# Who only looks, as qemu-img info does, is gone soon, and so is another run that asks at the same moment.
PATIENCE, LOOK = 1.0, 0.3
_NO_LOCKS = (errno.ENOLCK, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_FLOCK = struct.Struct("hhqqi")

Identity = Tuple[int, int]


class Locks:
    """The images that this process holds, until ``release``."""

    def __init__(self) -> None:
        self._held: Dict[Identity, Tuple[int, bool]] = {}

    @property
    def descriptors(self) -> Tuple[int, ...]:
        """For a child to inherit: so the images stay locked until it ends, whatever becomes of this process."""
        return tuple(descriptor for descriptor, dummy in self._held.values())

    def take(self, path: str, writes: bool) -> None:
        """Hold an image. Raises Busy (code in_use), CallFailed (image_missing, not_an_image) and Unavailable (permission, no_lock)."""
        with contextlib.ExitStack() as opened:
            descriptor = _opened(path, writes)
            opened.callback(os.close, descriptor)
            identity = _identity(os.fstat(descriptor))
            own = self._held.get(identity)
            if own is not None and own[1] >= writes:
                return
            if own is not None:  # it would meet its own
                os.close(self._held.pop(identity)[0])
            _lock(descriptor, path, writes)
            opened.pop_all()
            self._held[identity] = (descriptor, writes)

    def release(self) -> None:
        while self._held:
            os.close(self._held.popitem()[1][0])


def in_use(path: str, writes: bool) -> Optional[str]:
    """Why an image cannot be locked now, as a few words; None where it can, or is not there, or this very process has it. Nothing is taken."""
    try:
        descriptor = _opened(path, False)
    except (CallFailed, Unavailable) as error:
        return None if isinstance(error, CallFailed) else error.facts["reason"]
    try:
        if writes and not os.access(path, os.W_OK, effective_ids=True):
            return "this user may not write to it"
        if _settled(descriptor, writes, LOOK):
            return None
        holders = dict(_holders(_identity(os.fstat(descriptor))))
        return None if os.getpid() in holders else _named(holders)
    except OSError as error:
        return _no_lock(path, error).facts["reason"]
    finally:
        os.close(descriptor)


def _opened(path: str, writes: bool) -> int:
    try:
        descriptor = os.open(path, (os.O_RDWR if writes else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            doing = "write to" if writes else "read"
            reason = "this user may not %s it" % doing
            raise Unavailable("permission", "This user may not %s the image %s (%s): use become." % (doing, path, error.strerror), reason=reason) from error
        raise CallFailed("image_missing", "The image %s cannot be opened (%s): look at it and run again." % (path, error.strerror)) from error
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(descriptor)
        raise CallFailed("not_an_image", "%s is neither a file nor a block device: correct the path." % path)
    return descriptor


def _identity(facts: os.stat_result) -> Identity:
    return (0, facts.st_rdev) if stat.S_ISBLK(facts.st_mode) else (facts.st_dev, facts.st_ino)


def _lock(descriptor: int, path: str, writes: bool) -> None:
    """Ask first: a lock that is taken and given back would make a running guest's own job fail in between."""
    until = time.monotonic() + PATIENCE
    try:
        while _settled(descriptor, writes, until - time.monotonic()):
            _apply(descriptor, writes, fcntl.F_RDLCK)
            if _free(descriptor, writes):
                return
            _apply(descriptor, writes, fcntl.F_UNLCK)  # another one asked at the same moment: who comes back first has it
            time.sleep(random.uniform(0, 0.1))
    except OSError as error:
        raise _no_lock(path, error) from error
    holders = dict(_holders(_identity(os.fstat(descriptor))))
    raise Busy("in_use", "The image %s is in use (%s): let that end, then run this task again." % (path, _named(holders)))


def _settled(descriptor: int, writes: bool, seconds: float) -> bool:
    """Is the image free, or is it within so many seconds?"""
    until = time.monotonic() + seconds
    while not _free(descriptor, writes):
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)
    return True


def _free(descriptor: int, writes: bool) -> bool:
    asked = [UNSHARED + permission for permission in PERMISSIONS[writes]] + [USED + permission for permission in EXCLUSIVE]
    asked += [USED + CONSISTENT_READ] if writes else []
    return all(_kind_at(descriptor, place) == fcntl.F_UNLCK for place in asked)


def _kind_at(descriptor: int, place: int) -> int:
    return _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)))[0]


def _apply(descriptor: int, writes: bool, kind: int) -> None:
    for place in [USED + permission for permission in PERMISSIONS[writes]] + [UNSHARED + permission for permission in EXCLUSIVE]:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))


def _no_lock(path: str, error: OSError) -> LiveStorageError:
    if error.errno in (errno.EACCES, errno.EAGAIN):
        return Busy("in_use", "The image %s is in use (%s): let that end, then run this task again." % (path, error.strerror), reason=error.strerror)
    if error.errno not in _NO_LOCKS:
        return CallFailed("image_unreadable", "The image %s cannot be locked (%s): check its storage." % (path, error.strerror), reason=error.strerror)
    message = "The file system of %s keeps no locks (%s), so nobody can know whether a QEMU has it open: mount it with locks." % (path, error.strerror)
    return Unavailable("no_lock", message, reason="its file system keeps no locks")


def _named(holders: Dict[int, str]) -> str:
    """The process that has locked an image, in words. Another host or another user's process is not seen."""
    if not holders:
        return "somebody whom this user cannot see has locked it"
    guests = {process.pid: process.name for process in qemu_processes()}
    pid = next((pid for pid in holders if pid in guests), min(holders))
    return "the process %d, %s, has locked it" % (pid, "QEMU of guest %s" % guests[pid] if pid in guests else holders[pid])


def _holders(identity: Identity) -> Iterator[Tuple[int, str]]:
    """(pid, command) of who holds a lock on a file: a lock of an open file has no owner, but its descriptors show it."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            if _holds(pid, identity, os.listdir("/proc/%s/fd" % pid)):
                with open("/proc/%s/comm" % pid, encoding="utf-8", errors="replace") as file:
                    yield int(pid), file.read().strip()


def _holds(pid: str, identity: Identity, numbers: Iterable[str]) -> bool:
    for number in numbers:
        with contextlib.suppress(OSError):
            if _identity(os.stat("/proc/%s/fd/%s" % (pid, number))) != identity:
                continue
            with open("/proc/%s/fdinfo/%s" % (pid, number), encoding="ascii", errors="replace") as file:
                if any(line.startswith("lock:") for line in file):
                    return True
    return False
