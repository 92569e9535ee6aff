# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file system on a Linux guest's disk: made around the file that the guest writes, and read as the next boot would."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from host import CLEAN_ENV
from linux import require, run

RING = "ring"
# The journal, the inodes and a little room.
OVERHEAD = 8 << 20
TOOLS = dict.fromkeys(("mke2fs", "dumpe2fs", "e2fsck", "debugfs"), "e2fsprogs")
# What e2fsck answers when all is well, or is after the little that it repairs unasked, such as playing the journal.
SOUND = (0, 1)


def wrap(content: Path, size: int) -> Path:
    """Return a new image beside a file, with a file system that holds only that."""
    require(TOOLS)
    image = content.with_name("ext4")
    with tempfile.TemporaryDirectory(dir=content.parent) as top:
        content.rename(Path(top) / RING)
        run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-d", top, str(image), f"{size >> 10}k")
    return image


def unwrap(image: Path, size: int) -> tuple[Path, bool, list[str]]:
    """Return the file beside a raw image, whether its journal has to be recovered, and what is wrong with it.

    The image is repaired, so it is to be a copy. What could not be read is a file of that size without a content.
    """
    require(TOOLS)
    content = image.with_name(RING)
    header = tool("dumpe2fs", "-h", image.name, cwd=image.parent)
    recovery = any("needs_recovery" in line.split() for line in header.stdout.splitlines() if line.startswith("Filesystem features:"))
    complaints = []
    if header.returncode:
        complaints.append("there is no ext4")
    else:
        check = tool("e2fsck", "-f", "-p", image.name, cwd=image.parent)
        if check.returncode not in SOUND:
            complaints.append(f"the file system is damaged: {' '.join(check.stdout.split())}")
        tool("debugfs", "-R", f"dump /{RING} {RING}", image.name, cwd=image.parent)
    if not content.exists() or content.stat().st_size < size:
        complaints.append(f"the file system lacks the file '{RING}', or a part of it")
        with content.open("ab") as file:
            file.truncate(size)
    return content, recovery, complaints


def tool(*command: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run a command that says with its exit code what it found."""
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL, env=CLEAN_ENV, cwd=cwd)
