# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU processes of this host, whether libvirt knows them or not: read from /proc, so that nothing is asked of the guests.

Only of a guest that libvirt has lost is QEMU asked directly, by its own monitor, which has no other client then.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from typing import IO, Iterator, List, Optional, Tuple

from .._core.errors import Unavailable
from .._core.host_facts import Process, QemuView
from .._core.qmp import parse_view

MONITOR_SECONDS = 3.0
QUESTIONS = ("query-named-block-nodes", "query-block-jobs", "query-block")

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


def holds_path(uuid: str, path: str) -> Optional[bool]:
    """Has the QEMU of a guest the very file open that is at a path now? None where this user may not see it, or no process is found."""
    own = [process for process in qemu_processes() if process.uuid == uuid]
    if not own or any(process.hidden for process in own):
        return None
    return any(_has_open(str(process.pid), path) for process in own)


def held_open(path: str) -> bool:
    """Has any QEMU process the very file open that is at a path now?"""
    return any(_has_open(str(process.pid), path) for process in qemu_processes())


def _has_open(pid: str, path: str) -> bool:
    """By device and inode, since a name in /proc stays with a file that was replaced; a block device by its number."""
    try:
        wanted = os.stat(path)
        numbers = os.listdir("/proc/%s/fd" % pid)
    except OSError:
        return False
    for number in numbers:
        with contextlib.suppress(OSError):
            facts = os.stat("/proc/%s/fd/%s" % (pid, number))
            if (facts.st_dev, facts.st_ino) == (wanted.st_dev, wanted.st_ino) or (facts.st_rdev and facts.st_rdev == wanted.st_rdev):
                return True
    return False


def ask_monitor(pid: int) -> Optional[QemuView]:
    """What a QEMU says of its storage at its own monitor; None where there is no such socket, or nobody answers within a few seconds."""
    for path in _sockets(pid):
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as monitor:
                monitor.settimeout(MONITOR_SECONDS)
                monitor.connect(path)
                with monitor.makefile("rw", encoding="utf-8") as lines:
                    if "QMP" not in json.loads(lines.readline()):
                        continue
                    _answer(lines, "qmp_capabilities")
                    return parse_view(*(_answer(lines, question) for question in QUESTIONS))
        except (OSError, ValueError, Unavailable):
            continue
    return None


def _answer(lines: IO, question: str) -> str:
    """The answer, without the events that come between."""
    lines.write(json.dumps({"execute": question}) + "\n")
    lines.flush()
    while True:
        line = lines.readline()
        if not line or "return" in json.loads(line) or "error" in json.loads(line):
            return line


def _sockets(pid: int) -> List[str]:
    """The named sockets of a process that are called monitor, as libvirt calls QEMU's."""
    own = set()
    try:
        for number in os.listdir("/proc/%d/fd" % pid):
            with contextlib.suppress(OSError):
                own.add(os.readlink("/proc/%d/fd/%s" % (pid, number)))
        with open("/proc/%d/net/unix" % pid, encoding="utf-8", errors="replace") as file:
            rows = [line.split(None, 7) for line in file]
    except OSError:
        return []
    paths = [row[7].strip() for row in rows if len(row) == 8 and "socket:[%s]" % row[6] in own]
    return sorted({path for path in paths if path.startswith("/") and "monitor" in os.path.basename(path)})
