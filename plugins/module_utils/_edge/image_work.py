# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What qemu-img does with images beside reading their headers: measure what a copy takes, make an overlay, merge, and rebase.

The images are given with their whole chain as libvirt has it, so that no name in a header is followed. What is written to has been locked
before by this process (see ``image_locks.py``): qemu-img takes no locks of its own then, which would meet those, and inherits them instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import stat
import time
from typing import IO, Any, Dict, Iterator, List, Optional, Sequence

from .._core.chain import Layer
from .._core.errors import CallFailed
from .._core.host_facts import SECTOR
from .qemu_img import memory, read_image, require_tool, written

MEASURE_SECONDS = 30.0  # it reads the tables of the images, and no data
_DESCRIPTION = re.compile(r"json:\{.*\}")
COMPARE_SECONDS = 3600.0  # it reads what both have of their own


def measure(layers: Sequence[Layer], format: str) -> Optional[int]:
    """The bytes that an image of that format needs for what the layers (active first) hold, its bitmaps included.

    None where that cannot be found out, as with storage that is slow or an image of a kind that qemu-img does not read.
    """
    if any(layer.path is None or layer.format is None or layer.facts.slices for layer in layers):
        return None
    facts = told(["qemu-img", "measure", "-U", "--output=json", "-O", format, "json:" + json.dumps(_described(layers))], layers[0].path or "")
    try:
        return int(facts["required"]) + int(facts.get("bitmaps", 0))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def holds_data(path: str, format: str) -> Optional[bool]:
    """Has an image anything that does not come from its backing? None where that cannot be found out."""
    try:
        kind = "block" if stat.S_ISBLK(os.stat(path).st_mode) else "file"
    except OSError:
        return None
    layer = Layer(kind, (("file", path),), format)
    found = told(["qemu-img", "map", "-U", "--output=json", "json:" + json.dumps(_described([layer]))], path)
    try:
        return any(part.get("present", part["data"]) for part in found)  # zeros of its own are present, too (QEMU 6.1)
    except (KeyError, TypeError, AttributeError):
        return None


def same_data(layers: Sequence[Layer], others: Sequence[Layer]) -> Optional[bool]:
    """Do two chains (active layers first) show the same data? Without ``others``: does the first layer hold nothing of its own?

    None where that cannot be found out.
    """
    if not others:
        held = holds_data(layers[0].path or "", layers[0].format or "")
        return None if held is None else not held
    if any(layer.path is None or layer.format is None or layer.facts.slices for layer in [*layers, *others]):
        return None
    names = ["json:" + json.dumps(_described(chain)) for chain in (layers, others)]
    require_tool(layers[0].path or "")
    with memory() as errors:
        code = asyncio.run(carried_out(["qemu-img", "compare", "-U", "-q", *names], errors, COMPARE_SECONDS))
    return {0: True, 1: False}.get(code if code is not None else -1)


def told(command: List[str], path: str) -> Any:
    """What qemu-img says in JSON, None where it says nothing in time."""
    require_tool(path)
    with memory() as output, memory() as errors:
        if asyncio.run(carried_out(command, errors, MEASURE_SECONDS, output)) != 0:
            return None
        try:
            return json.loads(written(output))
        except ValueError:
            return None


def _described(layers: Sequence[Layer], locked: bool = False) -> Dict[str, Any]:
    """The layers as QEMU's options, with nothing below the last one. ``locked``: by this process, so that QEMU takes no lock itself."""
    layer = layers[0]
    driver = "host_device" if layer.type == "block" else "file"
    found: Dict[str, Any] = {"driver": layer.format, "file": {"driver": driver, "filename": layer.path}}
    if locked:
        found["file"]["locking"] = "off"
    if layer.store is not None and layer.store.path is not None:
        found["data-file"] = {"driver": "host_device" if layer.store.type == "block" else "file", "filename": layer.store.path}
        if locked:
            found["data-file"]["locking"] = "off"
    if layer.format != "raw":
        found["backing"] = _described(layers[1:], locked) if len(layers) > 1 else None
    return found


def overlay(path: str, format: str, size: int, above: Layer, below: Layer, seconds: float) -> None:
    """Make an image of ``size`` bytes on ``below`` that shows what ``above``, an image on it that nobody writes to, shows: it holds the difference.

    By create on ``above`` and a safe rebase to ``below``, which copies what differs. Raises CallFailed (code not_prepared).
    """
    require_tool(path)
    create = ["qemu-img", "create", "-q", "-f", format, "-b", above.path or "", "-F", above.format or "", "--", path, str(size)]
    rebase = ["qemu-img", "rebase", "-q", "-f", format, "-b", below.path or "", "-F", below.format or "", "--", path]
    for command in (create, rebase):
        reason = failure(command, seconds)
        if reason is not None:
            raise CallFailed("not_prepared", "The image %s could not be made on %s (%s): nothing of the guest was changed." % (path, below, reason))


def create_overlay(path: str, format: str, below: Layer, size: int, seconds: float) -> Optional[str]:
    """Make an empty image of ``size`` bytes on ``below``, which is not opened (-u). Why it failed, or None."""
    require_tool(path)
    return failure(["qemu-img", "create", "-q", "-u", "-f", format, "-b", below.path or "", "-F", below.format or "", "--", path, str(size)], seconds)


def virtual_size(layer: Layer) -> int:
    """What a guest sees of an image, in bytes. Raises CallFailed (code image_unreadable)."""
    image = read_image(layer.path or "", layer.format or "")
    if image is None:
        raise CallFailed("image_unreadable", "The image %s cannot be read as %s: look at it and run again." % (layer, layer.format))
    return -(-image.virtual_size // SECTOR) * SECTOR


class Work:
    """Long work on images that this process has locked: its seconds, the descriptors with the locks, and its limit in bytes per second (0: none).

    Each method answers None, or why it failed.
    """

    def __init__(self, seconds: float, locks: Sequence[int], rate: int = 0):
        self._seconds, self._end = seconds, time.monotonic() + seconds
        self._locks, self._rate = tuple(locks), rate

    def _done(self, command: List[str], layers: Sequence[Layer], *more: str) -> Optional[str]:
        require_tool(layers[0].path or "")
        name = "json:" + json.dumps(_described(layers, True))
        left = max(0.0, self._end - time.monotonic())
        reason = failure(["qemu-img", command[0], "-q", *command[1:], "--", name, *more], left, self._locks, self._seconds)
        return None if reason is None else _DESCRIPTION.sub(lambda dummy: str(layers[0]), reason)

    def merge(self, layers: Sequence[Layer], below: Sequence[Layer], size: Optional[int]) -> Optional[str]:
        """Write what the layers (active first) hold into the last of them, which stands on ``below``, and grow it to ``size`` bytes if it is smaller.

        One after the other from the bottom, each straight into the base: so only the base is written, a run that was cut off is simply
        done again, and no layer has to be found by its name (``commit -b`` finds none above a header with a relative name, up to QEMU 10).
        """
        base = [layers[-1], *below]
        limit = ["-r", str(self._rate)] if self._rate else []
        for number in range(len(layers) - 2, -1, -1):
            layer, lower = layers[number], layers[number + 1]
            reason = self._fitted(base, layer, lower) or self._done(["commit", "-d", *limit], [layer, *base])
            if reason is not None:
                return reason
        return self._grown(base, size) if size is not None else None

    def _fitted(self, base: Sequence[Layer], layer: Layer, lower: Layer) -> Optional[str]:
        """Where a longer layer stands on one that is shorter than the base, it shows zeros there, and nobody what the base holds."""
        wanted, shown = virtual_size(layer), virtual_size(lower)
        if lower is not base[0] and shown < min(wanted, virtual_size(base[0])):
            reason = self._done(["resize", "--shrink"], base, str(shown))
            if reason is not None:
                return reason
        return self._grown(base, wanted)

    def _grown(self, layers: Sequence[Layer], size: int) -> Optional[str]:
        return self._done(["resize"], layers, str(size)) if virtual_size(layers[0]) < size else None

    def rebase(self, layer: Layer, below: Sequence[Layer], to: Optional[Layer], rest: Sequence[Layer]) -> Optional[str]:
        """Put a layer on ``to`` (None: on nothing) so that it shows the same: what differs is copied into it, then its header is changed.

        qemu-img opens the new backing by the path that goes into the header, with locks of a reader, and follows the headers below it: these
        have to say the same as ``rest``. (It opens nothing where it finds that path in the chain that it was given.)
        """
        if to is not None:
            astray = _astray(to, rest)
            if astray is not None:
                return astray
        # QEMU (7.2) changes the header before it writes its tables, which say where the copied data is: killed in between, it would be lost.
        return self._done(["rebase", "-t", "writethrough", *_backing(to, None)], [layer, *below])

    def rename(self, layer: Layer, to: Optional[Layer], name: Optional[str]) -> Optional[str]:
        """Only write into the header of a layer that it stands on ``to``, by that name or else its path. No backing is opened."""
        return self._done(["rebase", "-u", *_backing(to, name)], [layer])


def _backing(to: Optional[Layer], name: Optional[str]) -> List[str]:
    return ["-b", ""] if to is None else ["-b", name or to.path or "", "-F", to.format or ""]


def _astray(layer: Layer, rest: Sequence[Layer]) -> Optional[str]:
    """Where the headers from a layer on down lead elsewhere than to ``rest``, in words."""
    if layer.format == "raw":
        return None
    image = read_image(layer.path or "", layer.format or "")
    if image is None:
        return "%s cannot be read as %s" % (layer, layer.format)
    if not rest:
        return None if image.backing is None else "%s has a backing image, %s" % (layer, image.backing)
    path, following = image.backing_path, rest[0]
    if path is None or os.path.realpath(path) != os.path.realpath(following.path or "") or image.backing_format != following.format:
        return "the header of %s names %s (%s) below it, and not %s (%s)" % (layer, image.backing, image.backing_format, following, following.format)
    return _astray(following, rest[1:])


def failure(command: List[str], seconds: float, locks: Sequence[int] = (), told_seconds: Optional[float] = None) -> Optional[str]:
    """Why a command failed, in one line, or None. ``told_seconds``: where more than this one command had that long."""
    with memory() as errors:
        code = asyncio.run(carried_out(command, errors, seconds, locks=locks))
        told = " ".join(written(errors).replace("qemu-img: ", "").split())
    if code == 0:
        return None
    return "no end after %g seconds" % (told_seconds or seconds) if code is None else told or "qemu-img ended with %s" % code


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals that came meanwhile count at the end. One between the start of a child and the hold on it would let that go on for nobody."""
    came: List[int] = []
    ours = [number for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT) if callable(signal.getsignal(number))]
    kept = {number: signal.signal(number, lambda number, dummy: came.append(number)) for number in ours}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        for number in came:
            os.kill(os.getpid(), number)


async def carried_out(
    command: List[str], errors: IO, seconds: float, output: Optional[IO] = None, locks: Sequence[int] = (), given: Optional[IO] = None
) -> Optional[int]:
    """The exit code of a command that may copy for hours, None where it was ended after so many seconds."""
    process = None
    try:
        with _undisturbed():
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=given if given is not None else asyncio.subprocess.DEVNULL,
                stdout=output if output is not None else asyncio.subprocess.DEVNULL,
                stderr=errors,
                env=dict(os.environ, LC_ALL="C"),
                pass_fds=tuple(locks),
            )
        return await asyncio.wait_for(process.wait(), seconds)
    except asyncio.TimeoutError:
        return None
    finally:
        if process is not None and process.returncode is None:  # also when this run is interrupted: what it writes is removed next
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
