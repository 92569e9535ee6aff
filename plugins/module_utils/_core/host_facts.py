# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host says of files, images and QEMU processes, as values.

The law: each is what was found at one moment, with the reason where something was not found; nothing here is a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

SECTOR = 512  # QEMU rounds the length of a raw image up to it


@dataclass(frozen=True)
class File:
    """What the host says of a path. ``size`` in bytes; ``kind`` is file, block, dir or other, ``parent`` that of its directory.

    ``device`` and ``inode`` tell two files of one name apart; ``real`` is the path with its links resolved. ``free`` is what its file
    system has left, in bytes, None where that is not known. ``claimed``: a block device that the host itself uses, as one that is mounted.
    ``protected`` is why its owner does not want it written to, whoever could; None where nothing says so. ``owner`` and ``group`` are numbers,
    ``mode`` the permission bits.
    """

    path: str
    exists: bool
    kind: Optional[str] = None
    size: int = 0
    device: int = 0
    inode: int = 0
    real: str = ""
    parent: Optional[str] = None
    free: Optional[int] = None
    claimed: bool = False
    protected: Optional[str] = None
    owner: int = 0
    group: int = 0
    mode: int = 0


@dataclass(frozen=True)
class Image:
    """What an image's own header says (qemu-img). Sizes in bytes; ``backing`` and ``data`` as written, the paths resolved.

    ``data`` is a qcow2 image's data file, ``data_raw`` whether that file alone is what the guest sees. ``bitmaps`` are the persistent
    dirty bitmaps of a qcow2 image, as (name, granularity in bytes), ``snapshots`` the names of its internal snapshots. ``broken_bitmaps`` are
    marked as in use: where nobody has the image open, they are inconsistent.
    """

    path: str
    format: str
    virtual_size: int
    actual_size: int
    backing: Optional[str] = None
    backing_path: Optional[str] = None
    backing_format: Optional[str] = None
    data: Optional[str] = None
    data_path: Optional[str] = None
    data_raw: Optional[bool] = None
    bitmaps: Tuple[Tuple[str, int], ...] = ()
    snapshots: Tuple[str, ...] = ()
    broken_bitmaps: Tuple[str, ...] = ()

    @property
    def data_relative(self) -> bool:
        """Is the data file named without its directory? QEMU looks for it in its own then, whichever that is."""
        return self.data is not None and self.data_path is not None and not self.data.startswith(("/", "file:/"))


@dataclass(frozen=True)
class Probe:
    """What was found where a chain has an image of that path.

    ``kind`` is file or block, or None where the path leads to neither. ``problem`` is why the header is not known (None: it is,
    or a raw image has none): missing, not_a_file, permission, unreadable, unsafe, timeout, format_unknown or remote;
    ``detail`` says more. ``magic`` is the format of which the first bytes are, if they were looked at. ``physical`` is the
    length, ``allocated`` what the storage holds of it, in bytes; ``mode`` the permission bits; ``real`` the path without links;
    ``seconds`` what it took to read the header.
    """

    path: str
    format: Optional[str] = None
    kind: Optional[str] = None
    image: Optional[Image] = None
    problem: Optional[str] = None
    detail: str = ""
    magic: Optional[str] = None
    physical: Optional[int] = None
    allocated: Optional[int] = None
    mode: int = 0
    identity: Optional[Tuple[int, int]] = None
    real: str = ""
    seconds: float = 0.0

    @property
    def virtual(self) -> Optional[int]:
        """What a guest sees of the image, in bytes."""
        if self.image is not None:
            return self.image.virtual_size
        return None if self.format != "raw" or self.physical is None else -(-self.physical // SECTOR) * SECTOR


@dataclass(frozen=True)
class Sizes:
    """What libvirt's statistics say of one layer, in bytes; None is not known."""

    virtual: Optional[int] = None
    allocated: Optional[int] = None
    physical: Optional[int] = None


@dataclass(frozen=True)
class Process:
    """A QEMU process of this host: ``files`` are the paths that it holds open, True for those that it may write to.

    ``hidden``: this user may not see them.
    """

    pid: int
    name: str
    uuid: str
    files: Tuple[Tuple[str, bool], ...] = ()
    hidden: bool = False

    def writes(self, path: str) -> bool:
        return (path, True) in self.files

    def holds(self, path: str) -> bool:
        return any(path == one for one, dummy in self.files)


@dataclass(frozen=True)
class Node:
    """A block node as QEMU reports it. ``file`` is a path, or a name without what may be secret in it."""

    name: str
    driver: str
    file: str
    readonly: bool


@dataclass(frozen=True)
class QemuView:
    """What QEMU itself says of a guest's storage: its nodes, its jobs as it writes them, and (qdev, node, file) of its devices."""

    nodes: Tuple[Node, ...] = ()
    jobs: Tuple[Dict[str, Any], ...] = ()
    devices: Tuple[Tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Volume:
    """A storage volume that was asked for. ``path`` is where it is or, in a pool of directories, would be; ``problem`` says why there is none.

    ``kind`` is file, block or network, ``format`` and ``capacity`` (bytes) what libvirt says of one that ``exists``.
    """

    pool: str
    name: str
    path: Optional[str] = None
    kind: str = "file"
    exists: bool = False
    format: Optional[str] = None
    capacity: int = 0
    problem: Optional[str] = None


@dataclass(frozen=True)
class Versions:
    """Of the libvirt daemon and the hypervisor, as (major, minor, micro); None where they were not asked for."""

    libvirt: Optional[Tuple[int, int, int]] = None
    qemu: Optional[Tuple[int, int, int]] = None


NOT_ASKED = Versions()
