# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qemu-img: one command line, and one runner with limits, for as many images as are asked for.

Images are hostile input, and this runs as root. So: the path is looked at through a descriptor that opens nothing
(O_PATH), only a regular file or a block device goes on, and qemu-img is given that very descriptor: nobody can swap the
file in between. Each image is read alone (never its chain in one call, which would open what the header names), with a
stated format, without waiting for a lock, and under limits of time, memory and processor.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import shutil
import stat
import time
from dataclasses import replace
from typing import IO, Collection, Dict, List, Mapping, Optional, Tuple

from .._core.errors import Unavailable
from .._core.headers import Key
from .._core.host_facts import Image, Probe
from .._core.image_info import MAGIC_BYTES, SAFE_FORMATS, magic_format, parse_image
from .patience import GivenUp, Patience

SECONDS = 3.0  # for a whole chain, from its first image down, where it is only looked at
PATIENT_SECONDS = 30.0  # the same where something is to be changed: better late than not
MEMORY = 1 << 30
_TOO_LATE = "the storage gave no answer in time for its whole chain"
OUTPUT = 64 << 20  # thousands of internal snapshots are some megabytes of JSON
LIMITS = (
    (resource.RLIMIT_CPU, int(SECONDS) + 1),
    (resource.RLIMIT_AS, MEMORY),
    (resource.RLIMIT_FSIZE, OUTPUT),
    (resource.RLIMIT_CORE, 0),
)
AT_ONCE = max(2, os.cpu_count() or 2)
BATCH = 200  # images whose descriptors are held at a time; a process may often have no more than 1,024
PACKAGES = "qemu-utils (Debian) or qemu-img (EL)"


def info_command(descriptor: int, format: str) -> List[str]:
    """The argument list that reads one header. ``-U``: a running guest holds the image's lock."""
    return ["qemu-img", "info", "-U", "-f", format, "--output=json", "--", _name(descriptor)]


def _name(descriptor: int) -> str:
    """A name of what a descriptor is, for this process and for a child that inherits it."""
    return "/proc/self/fd/%d" % descriptor


def read_image(path: str, format: str) -> Optional[Image]:
    """The header of the image at ``path``, or None where there is no such image of that format.

    A raw image has none: it is what its length says. Raises Unavailable (code qemu_img) without qemu-img or past its limits.
    """
    probe = probe_all({(path, format): PATIENT_SECONDS})[path, format]
    if probe.problem == "timeout":
        raise Unavailable("qemu_img", "qemu-img gave no answer about %s within %g seconds: check the storage." % (path, PATIENT_SECONDS))
    if format == "raw" and probe.problem is None:
        return Image(path, "raw", probe.physical or 0, probe.allocated or 0)
    return probe.image


def probe_all(keys: Mapping[Key, float], named: Collection[str] = (), guessed: Collection[str] = (), deadline: Optional[float] = None) -> Dict[Key, Probe]:
    """What is found of every (path, format), with the seconds that may be spent on it; none is begun after ``deadline`` (monotonic).

    ``named``: paths of which libvirt or the user says that they are images; of these the first bytes are looked at as well.
    ``guessed``: those of them whose format may be taken from there, where nobody says it. Any other path without a format is
    not opened: a guest may have written what would be found there. Raises Unavailable (code qemu_img) where an image is to be
    read and qemu-img is not installed.
    """
    todo, known = list(keys.items()), (frozenset(named), frozenset(guessed))
    probes: Dict[Key, Probe] = {}
    for start in range(0, len(todo), BATCH):
        probes.update(_probe_some(todo[start : start + BATCH], *known, deadline))
    return probes


def _probe_some(keys: List[Tuple[Key, float]], named: Collection[str], guessed: Collection[str], deadline: Optional[float]) -> Dict[Key, Probe]:
    probes, waiting = {}, []
    patience, dead = Patience((OSError,)), set()
    with contextlib.ExitStack() as opened:
        for key, seconds in keys:
            folder = os.path.dirname(key[0])
            probe, descriptor = Probe(*key, problem="timeout", detail=_TOO_LATE), None
            if folder not in dead:
                try:
                    probe, descriptor = patience.call(max(0.1, seconds), _looked_at, key, key[0] in named, key[0] in guessed, opened)
                except GivenUp:  # one look for each folder of a dead storage
                    dead.add(folder)
            probes[key] = probe
            if descriptor is not None and probe.problem is None and probe.format != "raw":
                waiting.append((key, probe, descriptor, seconds))
        if waiting:
            require_tool(waiting[0][0][0])
            probes.update(asyncio.run(_read_all(waiting, deadline)))
    return probes


def require_tool(path: str) -> None:
    if shutil.which("qemu-img") is None:
        raise Unavailable("qemu_img", "qemu-img is needed to read the header of %s and is not installed here: install %s." % (path, PACKAGES))


def _looked_at(key: Key, named: bool, guessed: bool, opened: contextlib.ExitStack) -> Tuple[Probe, Optional[int]]:
    """What the file system says, and the descriptor of a regular file or block device."""
    path, format = key
    probe = Probe(path, format, real=path)
    try:
        probe = replace(probe, real=os.path.realpath(path))
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        opened.callback(os.close, descriptor)
        facts = os.fstat(descriptor)
    except PermissionError as error:
        return replace(probe, problem="permission", detail=error.strerror), None
    except ValueError:  # a zero byte
        return replace(probe, problem="missing", detail="no possible name"), None
    except OSError as error:  # a name that leads nowhere, as with a circle of links or a directory that is gone
        return replace(probe, problem="missing", detail=error.strerror), None
    kind = "file" if stat.S_ISREG(facts.st_mode) else "block" if stat.S_ISBLK(facts.st_mode) else None
    if kind is None:
        return replace(probe, problem="not_a_file", detail=_kind(facts.st_mode)), None
    block = kind == "block"
    probe = replace(
        probe,
        kind=kind,
        physical=_device_size(facts.st_rdev) if block else facts.st_size,
        allocated=None if block else facts.st_blocks * 512,
        mode=stat.S_IMODE(facts.st_mode),
        identity=(0, facts.st_rdev) if block else (facts.st_dev, facts.st_ino),
    )
    if (named or format != "raw") and not os.access(_name(descriptor), os.R_OK, effective_ids=True):
        return replace(probe, problem="permission", detail=os.strerror(errno.EACCES)), None
    if named:
        probe = replace(probe, magic=_magic(descriptor))
    if format is None:
        probe = replace(probe, format=probe.magic) if probe.magic and guessed else replace(probe, problem="format_unknown")
    if probe.problem is None and probe.format != "raw" and probe.format not in SAFE_FORMATS:
        probe = replace(probe, problem="unsafe", detail="images of format %s are not opened" % probe.format)
    return probe, descriptor


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISCHR, "a character device"), (stat.S_ISSOCK, "a socket"))
    return next((word for test, word in kinds if test(mode)), "no file")


def _device_size(device: int) -> Optional[int]:
    """The length of a block device in bytes, without opening it."""
    try:
        with open("/sys/dev/block/%d:%d/size" % (os.major(device), os.minor(device)), encoding="ascii") as file:
            return int(file.read()) * 512
    except (OSError, ValueError):
        return None


def _magic(descriptor: int) -> Optional[str]:
    try:
        reading = os.open(_name(descriptor), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return magic_format(os.pread(reading, MAGIC_BYTES, 0))
    except OSError:
        return None
    finally:
        os.close(reading)


async def _read_all(waiting: list, deadline: Optional[float]) -> Dict[Key, Probe]:
    turn = asyncio.Semaphore(AT_ONCE)
    read = await asyncio.gather(*(_read(turn, deadline, *one[1:]) for one in waiting))
    return dict(zip((one[0] for one in waiting), read))


async def _read(turn: asyncio.Semaphore, deadline: Optional[float], probe: Probe, descriptor: int, seconds: float) -> Probe:
    async with turn:
        start = time.monotonic()
        if deadline is not None and start >= deadline:
            return replace(probe, problem="timeout", detail="the time for the images of other guests is over")
        # Files, not pipes: what never ends, as on dead storage, must not hold the event loop's ends open.
        with memory() as output, memory() as errors:
            code = await _ended(info_command(descriptor, probe.format or "raw"), descriptor, output, errors, max(0.1, seconds))
            told, wrong = written(output), written(errors)
    if code is None:
        return replace(probe, problem="timeout", detail=_TOO_LATE)
    probe = replace(probe, seconds=time.monotonic() - start)
    if code != 0:
        return replace(probe, problem="unreadable", detail=_reason(wrong, descriptor))
    try:
        return replace(probe, image=parse_image(probe.path, told))
    except Unavailable as error:
        return replace(probe, problem="unreadable", detail=str(error))


async def _ended(command: List[str], descriptor: int, output: IO, errors: IO, seconds: float) -> Optional[int]:
    """The exit code of a command under the limits, None where it was given up after so many seconds."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        pass_fds=(descriptor,),
        # Under the limit of memory, threads with an arena each could not be made.
        env=dict(os.environ, LC_ALL="C", MALLOC_ARENA_MAX="1"),
    )
    _limit(process.pid)
    try:
        return await asyncio.wait_for(process.wait(), seconds)
    except asyncio.TimeoutError:
        with contextlib.suppress(ProcessLookupError, asyncio.TimeoutError):
            process.kill()
            await asyncio.wait_for(process.wait(), 0.5)  # no longer: one that hangs on dead storage does not die
        return None


def memory() -> IO:
    """A file that needs no disk: one that is full must not keep us from looking."""
    return os.fdopen(os.memfd_create("qemu-img", os.MFD_CLOEXEC), "w+b")


def written(file: IO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _limit(pid: int) -> None:
    """Limit a process that has just been started: cheaper than a prlimit command before each of hundreds."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        for kind, most in LIMITS:
            hard = resource.prlimit(pid, kind)[1]  # what an administrator has set lower stays
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.prlimit(pid, kind, (most, most))


def _reason(errors: str, descriptor: int) -> str:
    """qemu-img's own words without the name that it was given."""
    lines = errors.strip().splitlines() or ["it was ended by its limits"]
    return lines[-1].replace("qemu-img: ", "").replace("Could not open '%s': " % _name(descriptor), "")
