# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What says that a file is not to be written to, whoever could."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import types

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import files
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.files import read_file


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o200, 0o464, 0o444, 0o400, 0])
def test_a_mode_that_lets_nobody_write(tmp_path, mode):
    path, link = tmp_path / "image", tmp_path / "link"
    path.write_text("x")
    link.symlink_to(path)
    path.chmod(mode)
    reason = "its mode %04o lets nobody write to it" % mode if mode in (0o444, 0o400, 0) else None
    assert read_file(str(path)).protected == read_file(str(link)).protected == reason


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (0x80000, None),
        (0x80010, "it is immutable (chattr +i)"),
        (0x20, "it can only be appended to (chattr +a)"),
        (0x30, "it is immutable (chattr +i)"),
        (None, None),
    ],
)
def test_the_attributes_of_chattr(tmp_path, monkeypatch, flags, reason):
    path = tmp_path / "image"
    path.write_text("x")
    before = len(os.listdir("/proc/self/fd"))

    def answer(descriptor, request, into):
        assert os.path.samestat(os.fstat(descriptor), os.stat(path)) and request == files.GET_FLAGS
        if flags is None:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")  # as on many network file systems
        struct.pack_into("=I", into, 0, flags)

    monkeypatch.setattr(files.fcntl, "ioctl", answer)
    assert read_file(str(path)).protected == reason and len(os.listdir("/proc/self/fd")) == before


def test_a_file_system_that_is_mounted_read_only(tmp_path, monkeypatch):
    """Its own, which with a file that is mounted by itself is not that of its directory."""
    path, real = tmp_path / "image", os.statvfs
    path.write_text("x")

    def statvfs(name):
        found = real(name)
        return types.SimpleNamespace(f_bavail=3, f_frsize=512, f_flag=found.f_flag | os.ST_RDONLY if name == str(path) else found.f_flag & ~os.ST_RDONLY)

    monkeypatch.setattr(files.os, "statvfs", statvfs)
    assert (read_file(str(path)).protected, read_file(str(path)).free) == ("its file system is mounted read-only", 1536)
    path.chmod(0o444)
    assert read_file(str(path)).protected == "its file system is mounted read-only"


@pytest.mark.parametrize(("said", "reason"), [("0\n", None), ("1\n", "the host has set the block device read-only"), (None, None)])
def test_a_block_device_that_is_set_read_only(tmp_path, monkeypatch, said, reason):
    monkeypatch.setattr(files, "BLOCK_READ_ONLY", str(tmp_path / "%d:%d"))
    if said is not None:
        (tmp_path / "7:3").write_text(said)
    device = types.SimpleNamespace(st_mode=stat.S_IFBLK | 0o440, st_rdev=os.makedev(7, 3))
    assert files._protected("/dev/loop3", device) == reason


def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError(arguments)

    os.mkfifo(tmp_path / "fifo", 0o444)
    monkeypatch.setattr(files.os, "open", refuse)
    assert [read_file(str(path)).protected for path in (tmp_path / "fifo", tmp_path, "/dev/null", tmp_path / "none")] == [None] * 4


def test_storage_that_takes_holes(tmp_path):
    assert files.takes_holes(str(tmp_path / "image")) is True
    assert list(tmp_path.iterdir()) == []  # tried on a file without a name


@pytest.mark.parametrize(("number", "expected"), [(errno.EOPNOTSUPP, False), (errno.EIO, None)])
def test_storage_that_does_not(tmp_path, monkeypatch, number, expected):
    def refuse(*arguments):
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(files, "_FALLOCATE", refuse)
    assert files.takes_holes(str(tmp_path / "image")) is expected


def test_storage_that_only_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_FALLOCATE", lambda *arguments: 0)
    assert files.takes_holes(str(tmp_path / "image")) is False


def test_storage_that_cannot_be_tried(tmp_path, monkeypatch):
    assert files.takes_holes(str(tmp_path / "missing" / "image")) is None
    monkeypatch.setattr(files, "_kind", lambda path: "block")
    assert files.takes_holes("/dev/vg/data") is False
