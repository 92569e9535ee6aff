# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A qcow2 layer over a raw image that becomes, or stays, its data file: made beside the image, put over it, and proven to show the same.

The law: a raw image that is to become a data file is never opened for writing. The layer is made over another file of the same size (over the image
itself, `qemu-img create` would destroy it), what it holds is marked where no data file is written, and only then its header is changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import time
from typing import IO, Any, Dict, Iterator, List, Optional, Sequence, Tuple

from .._core.chain import Layer
from .image_work import carried_out, failure, told
from .qemu_img import memory, read_image, require_tool, written

PIECE = 1 << 30  # the most that one write of zeros takes
BLOCK = 1 << 20
RAW, QCOW2 = "raw", "qcow2"


def create(path: str, data: str, size: int, cluster_size: int, seconds: float) -> Optional[str]:
    """Make a qcow2 image whose data file is ``data``, which is written over. Why it failed, or None."""
    require_tool(path)
    options = "data_file=%s,data_file_raw=on,cluster_size=%d" % (data.replace(",", ",,"), cluster_size)
    return failure(["qemu-img", "create", "-q", "-f", QCOW2, "-o", options, "--", path, str(size)], seconds)


def mark_holes(path: str, raw: str, size: int, cluster_size: int, seconds: float) -> Optional[str]:
    """Mark as zeros what is a hole in a raw image, over a data file that nobody writes. Why it failed, or None.

    Without it everything would count as data, so that a full backup of a nearly empty disk is as big as the disk.
    """
    commands = ["write -z -u %d %d" % part for part in _pieces(holes(raw, size), cluster_size)]
    if not commands:
        return None
    # In memory, and empty: QEMU zeroes the data file, too, and punching holes into this one costs nothing. (On null-co it would write 1 TiB of zeros.)
    # A flush after each of 1,024 writes would take longer than all the rest; the layer is of no use before it is whole, and then it is flushed.
    with memory() as given, memory() as output, memory() as errors, memory() as data:
        data.truncate(size)
        lazy = {"cache": {"no-flush": True}}
        nowhere = {"driver": "file", "filename": "/proc/self/fd/%d" % data.fileno(), "discard": "unmap", "locking": "off", **lazy}
        # What is punched in one piece need not be punched once more cluster by cluster.
        whole = {"discard": "unmap", "pass-discard-request": False, **lazy}
        name = "json:" + json.dumps({"driver": QCOW2, "file": {"driver": "file", "filename": path, **lazy}, "data-file": nowhere, **whole})
        given.write("\n".join(commands + ["quit", ""]).encode())
        given.seek(0)
        code = asyncio.run(carried_out(["qemu-io", name], errors, seconds, output, (data.fileno(),), given))
        done = written(output).count("wrote ")
        if code == 0 and done == len(commands):
            return _flushed(path)
        return "qemu-io marked %d of %d holes%s" % (done, len(commands), ": " + " ".join(written(errors).split()) if written(errors).strip() else "")


def _flushed(path: str) -> Optional[str]:
    try:
        with open(path, "r+b") as file:
            os.fsync(file.fileno())
    except OSError as error:
        return "it cannot be flushed to its storage: %s" % error.strerror
    return None


def holes(raw: str, size: int) -> Iterator[Tuple[int, int]]:
    """(start, end) of the parts of an image that its file system holds nothing of. A block device has none."""
    with _reading(raw) as file:
        end = 0
        while end < size:
            start = _sought(file, end, os.SEEK_HOLE, size)
            if start >= size:
                return
            end = _sought(file, start, os.SEEK_DATA, size)
            yield start, min(end, size)


def _sought(file: IO[bytes], position: int, kind: int, size: int) -> int:
    try:
        return os.lseek(file.fileno(), position, kind)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size  # nothing of that kind until the end
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        return position if kind == os.SEEK_DATA else size  # a block device, or a file system that cannot tell: everything is data


def _pieces(parts: Iterator[Tuple[int, int]], cluster_size: int) -> Iterator[Tuple[int, int]]:
    """(start, length) of whole clusters."""
    for start, end in parts:
        first, last = -(-start // cluster_size) * cluster_size, end // cluster_size * cluster_size
        for position in range(first, last, PIECE):
            yield position, min(PIECE, last - position)


def stand_over(path: str, raw: str, seconds: float) -> Optional[str]:
    """Write into the header of a layer that ``raw`` is its data file. Its old one has to be there, and neither is written to. Why it failed, or None."""
    return failure(["qemu-img", "amend", "-q", "-f", QCOW2, "-o", "data_file=%s" % raw.replace(",", ",,"), "--", path], seconds)


def differs(path: str, raw: Layer, size: int) -> Optional[str]:
    """Why a layer does not show just what ``raw``, its data file, holds, as a few words; None where it is proven that it does.

    By the layer's own tables: each part is either data at its own place in the data file, or zeros, and then the data file reads as zeros there.
    """
    data = raw.path or ""
    image = read_image(path, QCOW2)
    if image is None:
        return "its header cannot be read"
    wrong = (
        (image.data_path != data, "its data file is %s" % (image.data or "none")),
        (not image.data_raw, "its data file alone is not what it shows (data_file_raw is off)"),
        (image.backing is not None, "it has a backing image"),
        (image.virtual_size != size or _length(data) != size, "it has %d bytes, and the raw image %d" % (image.virtual_size, _length(data))),
    )
    for so, why in wrong:
        if so:
            return why
    found = _tables(path, raw)
    if found is None:
        return "its tables cannot be read"
    return _moved(found, size) or _not_zero(found, data)


def shows(layer: Layer) -> Optional[bool]:
    """Does a layer show just what its data file holds? None where that cannot be found out."""
    path, raw = layer.path, layer.store
    found = _tables(path, raw) if path and raw is not None and raw.path else None
    try:
        return None if found is None or raw is None else (_moved(found, _length(raw.path or "")) or _not_zero(found, raw.path or "")) is None
    except OSError:
        return None


def _tables(path: str, raw: Layer) -> Optional[List[Dict[str, Any]]]:
    return told(["qemu-img", "map", "-U", "--output=json", "json:" + json.dumps(view(path, raw))], path)


def _moved(parts: List[Dict[str, Any]], size: int) -> Optional[str]:
    end = 0
    for part in parts:
        if part["start"] != end:
            return "its map has a gap at %d" % end
        end = part["start"] + part["length"]
        if part["data"] and not part["zero"] and part.get("offset") != part["start"]:
            return "what it shows at %d is elsewhere in its data file" % part["start"]
        if not part["data"] and not part["zero"]:
            return "it holds nothing at %d" % part["start"]
    return None if end == size else "its map ends at %d of %d" % (end, size)


def _not_zero(parts: List[Dict[str, Any]], data: str) -> Optional[str]:
    with _reading(data) as file:
        for part in parts:
            if part["zero"]:
                place = _first_byte(file, part["start"], part["start"] + part["length"])
                if place is not None:
                    return "it shows zeros at %d, where the raw image has data" % place
    return None


def _first_byte(file: IO[bytes], start: int, end: int) -> Optional[int]:
    """Where something else than zeros begins, within a block; None where there is nothing else."""
    while start < end:
        start = max(start, _sought(file, start, os.SEEK_DATA, end))
        if start >= end:
            return None
        block = os.pread(file.fileno(), min(BLOCK, end - start), start)
        if not block:
            return None
        if block.count(0) != len(block):
            return start
        start += len(block)
    return None


def _length(path: str) -> int:
    with _reading(path) as file:
        return os.lseek(file.fileno(), 0, os.SEEK_END)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[IO[bytes]]:
    with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
        yield file


def compared(path: str, raw: Layer, seconds: float) -> Optional[str]:
    """Read both. Why a layer does not show what its data file holds, or None."""
    reason = failure(["qemu-img", "compare", "-q", "-U", "json:" + json.dumps(view(path, raw)), "json:" + json.dumps(node(raw))], seconds)
    return None if reason is None else "qemu-img finds that they differ (%s)" % reason


def checked(path: str, raw: Layer, seconds: float) -> Optional[str]:
    """Is the layer whole in itself? Why not, or None."""
    return failure(["qemu-img", "check", "-q", "-U", "json:" + json.dumps(view(path, raw))], seconds)


def node(raw: Layer) -> Dict[str, Any]:
    """A raw image as QEMU's options. It is locked by this process, so that QEMU takes no lock itself."""
    driver = "host_device" if raw.type == "block" else "file"
    return {"driver": RAW, "file": {"driver": driver, "filename": raw.path, "locking": "off"}}


def view(path: str, raw: Layer) -> Dict[str, Any]:
    """A layer over its data file as QEMU's options: no name in its header is followed."""
    return {"driver": QCOW2, "file": {"driver": "file", "filename": path, "locking": "off"}, "data-file": node(raw)["file"], "backing": None}


def convert(source: Layer, path: str, data: str, cluster_size: int, seconds: float, locks: Sequence[int]) -> Optional[str]:
    """Copy an image that stands alone, its dirty bitmaps included, into a layer over a data file of its own, and compare. Why it failed, or None.

    ``locks`` go on as long as qemu-img does, whatever becomes of this process.
    """
    end = time.monotonic() + seconds
    image = node(source) if source.format == RAW else {"driver": source.format, "file": node(source)["file"], "backing": None}
    name = "json:" + json.dumps(image)
    options = "data_file=%s,data_file_raw=on,cluster_size=%d" % (data.replace(",", ",,"), cluster_size)
    bitmaps = ["--bitmaps"] if source.format == QCOW2 else []
    reason = failure(["qemu-img", "convert", "-q", *bitmaps, "-O", QCOW2, "-o", options, name, path], seconds, locks)
    if reason is not None:
        return reason
    shown = "json:" + json.dumps(view(path, Layer("file", (("file", data),), RAW)))
    return failure(["qemu-img", "compare", "-q", "-U", name, shown], max(1.0, end - time.monotonic()), locks)
