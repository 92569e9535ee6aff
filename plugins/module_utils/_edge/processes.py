# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU processes of this host, whether libvirt knows them or not: read from /proc, so that nothing is asked of the guests."""

from __future__ import annotations

import os
import re
from typing import Iterator, Optional, Tuple

from .._core.host_facts import Process

_NAME = re.compile(r"(?:^|,)guest=((?:[^,]|,,)*)")
_FLAGS = re.compile(r"^flags:\s*([0-7]+)", re.MULTILINE)


def qemu_processes() -> Tuple[Process, ...]:
    """Every process with a ``-uuid`` and a ``-name`` of QEMU's command line. Those of other users may hide their open files."""
    return tuple(_processes())


def _processes() -> Iterator[Process]:
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open("/proc/%s/cmdline" % entry, "rb") as file:
                words = file.read().decode(errors="replace").split("\0")
        except OSError:  # it ended meanwhile
            continue
        uuid, name = _option(words, "-uuid"), _option(words, "-name")
        if uuid is None or name is None or "qemu" not in os.path.basename(_program(entry) or words[0]):
            continue
        match = _NAME.search(name)
        guest = match.group(1) if match else name.split(",")[0]
        hidden = not os.access("/proc/%s/fd" % entry, os.R_OK, effective_ids=True)
        yield Process(int(entry), guest.replace(",,", ","), uuid, tuple(_files(entry)), hidden)


def _program(pid: str) -> Optional[str]:
    """What a process runs; None where this user may not know."""
    try:
        return os.readlink("/proc/%s/exe" % pid)
    except OSError:
        return None


def _option(words: list, option: str) -> Optional[str]:
    return words[words.index(option) + 1] if option in words[:-1] else None


def _files(pid: str) -> Iterator[Tuple[str, bool]]:
    folder = "/proc/%s/fd" % pid
    try:
        numbers = os.listdir(folder)
    except OSError:
        return
    for number in numbers:
        try:
            path = os.readlink("%s/%s" % (folder, number))
            with open("/proc/%s/fdinfo/%s" % (pid, number), encoding="ascii") as file:
                flags = _FLAGS.search(file.read())
        except OSError:
            continue
        if path.startswith("/") and not path.startswith(("/dev/null", "/dev/kvm")):
            yield path, flags is not None and int(flags.group(1), 8) & os.O_ACCMODE != os.O_RDONLY
