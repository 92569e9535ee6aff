# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qemu-img: argument lists, and one runner with limits.

Headers are hostile input: an image is read alone (never its whole chain in one call), with a stated format, read-only,
without waiting for a lock, and under limits of time, memory and processor.
"""

from __future__ import annotations

import os
import shutil
import stat
from typing import Callable, List, Optional

from .._core.errors import Unavailable
from .._core.image_info import parse_image
from .._core.model import Image

SECONDS = 30
MEMORY = 1 << 30
LIMITS = ["timeout", "--kill-after=5", str(SECONDS), "prlimit", "--cpu=%d" % SECONDS, "--as=%d" % MEMORY, "--"]
TIMED_OUT = (124, 137)  # of coreutils' timeout


def info_command(path: str, format: str) -> List[str]:
    """The argument list that reads one header. ``-U``: a running guest holds the image's lock."""
    return ["qemu-img", "info", "-U", "-f", format, "--output=json", "--", path]


def read_image(run_command: Callable, path: str, format: str) -> Optional[Image]:
    """The header of the image at ``path``, or None where there is no such image of that format.

    ``run_command`` is AnsibleModule's. Only regular files and block devices are opened. Raises Unavailable (code qemu_img)
    without qemu-img or past its limits.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        return None
    output = run(run_command, info_command(os.path.abspath(path), format), path)
    return None if output is None else parse_image(path, output)


def run(run_command: Callable, command: List[str], about: str) -> Optional[str]:
    """Standard output of a qemu-img command, None when it failed. Raises Unavailable (code qemu_img)."""
    for tool, package in (("qemu-img", "qemu-utils (Debian) or qemu-img (EL)"), ("prlimit", "util-linux"), ("timeout", "coreutils")):
        if shutil.which(tool) is None:
            raise Unavailable("qemu_img", "%s is needed to read the header of %s and is not installed here: install %s." % (tool, about, package))
    code, output, dummy = run_command(LIMITS + command, environ_update={"LC_ALL": "C"}, handle_exceptions=False)
    if code in TIMED_OUT:
        raise Unavailable("qemu_img", "qemu-img gave no answer about %s within %d seconds: check the storage." % (about, SECONDS))
    return output if code == 0 else None
