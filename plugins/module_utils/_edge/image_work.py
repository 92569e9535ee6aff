# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What qemu-img does with images beside reading their headers: measure what a copy takes, and make an overlay before a copy.

The images are given with their whole chain as libvirt has it, so that no name in a header is followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
from typing import IO, Any, Dict, List, Optional, Sequence

from .._core.chain import Layer
from .._core.errors import CallFailed
from .qemu_img import memory, require_tool, written

MEASURE_SECONDS = 30.0  # it reads the tables of the images, and no data


def measure(layers: Sequence[Layer], format: str) -> Optional[int]:
    """The bytes that an image of that format needs for what the layers (active first) hold, its bitmaps included.

    None where that cannot be found out, as with storage that is slow or an image of a kind that qemu-img does not read.
    """
    if any(layer.path is None or layer.format is None or layer.facts.slices for layer in layers):
        return None
    facts = _told(["qemu-img", "measure", "-U", "--output=json", "-O", format, "json:" + json.dumps(_described(layers))], layers[0].path or "")
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
    found = _told(["qemu-img", "map", "-U", "--output=json", "json:" + json.dumps(_described([layer]))], path)
    try:
        return any(part.get("present", part["data"]) for part in found)  # zeros of its own are present, too (QEMU 6.1)
    except (KeyError, TypeError, AttributeError):
        return None


def _told(command: List[str], path: str) -> Any:
    """What qemu-img says in JSON, None where it says nothing in time."""
    require_tool(path)
    with memory() as output, memory() as errors:
        if asyncio.run(_carried_out(command, errors, MEASURE_SECONDS, output)) != 0:
            return None
        try:
            return json.loads(written(output))
        except ValueError:
            return None


def _described(layers: Sequence[Layer]) -> Dict[str, Any]:
    """The layers as QEMU's options, with nothing below the last one."""
    layer = layers[0]
    driver = "host_device" if layer.type == "block" else "file"
    found: Dict[str, Any] = {"driver": layer.format, "file": {"driver": driver, "filename": layer.path}}
    if layer.format != "raw":
        found["backing"] = _described(layers[1:]) if len(layers) > 1 else None
    return found


def overlay(path: str, format: str, size: int, above: Layer, below: Layer, seconds: float) -> None:
    """Make an image of ``size`` bytes on ``below`` that shows what ``above``, an image on it that nobody writes to, shows: it holds the difference.

    By create on ``above`` and a safe rebase to ``below``, which copies what differs. Raises CallFailed (code not_prepared).
    """
    require_tool(path)
    create = ["qemu-img", "create", "-q", "-f", format, "-b", above.path or "", "-F", above.format or "", "--", path, str(size)]
    rebase = ["qemu-img", "rebase", "-q", "-f", format, "-b", below.path or "", "-F", below.format or "", "--", path]
    for command in (create, rebase):
        with memory() as errors:
            code = asyncio.run(_carried_out(command, errors, seconds))
            told = written(errors).strip().replace("qemu-img: ", "")
        if code != 0:
            reason = "no end after %g seconds" % seconds if code is None else told or "qemu-img ended with %s" % code
            raise CallFailed("not_prepared", "The image %s could not be made on %s (%s): nothing of the guest was changed." % (path, below, reason))


async def _carried_out(command: List[str], errors: IO, seconds: float, output: Optional[IO] = None) -> Optional[int]:
    """The exit code of a command that may copy for hours, None where it was ended after so many seconds."""
    environment = dict(os.environ, LC_ALL="C")
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output if output is not None else asyncio.subprocess.DEVNULL,
        stderr=errors,
        env=environment,
    )
    try:
        return await asyncio.wait_for(process.wait(), seconds)
    except asyncio.TimeoutError:
        return None
    finally:
        if process.returncode is None:  # also when this run is interrupted: what it writes is removed next
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
