# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What this host says of a path."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from typing import Iterable, Optional

from .._core.model import File


def read_file(path: str) -> File:
    """The facts of a path on this host."""
    parent = os.path.dirname(path)
    base = File(path, False, parent=_kind(parent), real=os.path.realpath(path))
    try:
        facts = os.stat(path)
    except OSError:
        return replace(base, exists=os.path.lexists(path), kind="other" if os.path.lexists(path) else None)
    return replace(base, exists=True, kind=_kind(path), size=facts.st_size, device=facts.st_dev, inode=facts.st_ino)


def _kind(path: str) -> Optional[str]:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    kinds: Iterable = ((stat.S_ISREG, "file"), (stat.S_ISBLK, "block"), (stat.S_ISDIR, "dir"))
    return next((word for test, word in kinds if test(mode)), "other")
