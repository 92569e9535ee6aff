# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a play as its user does, and prints as JSON when it said what: watch.py KILL PLAYBOOK-ARGUMENTS...

With KILL not empty the play is killed with SIGKILL, it and all that it has started, as soon as a line matches that regular expression.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    pattern, arguments = sys.argv[1], sys.argv[2:]
    start = time.monotonic()
    play = subprocess.Popen(
        ["ansible-playbook", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said = []
    for line in play.stdout:
        said.append({"at": time.monotonic() - start, "line": line.rstrip("\n")})
        if pattern and re.search(pattern, line):
            end(play.pid)
    print(json.dumps({"code": play.wait(), "lines": said}))


def end(first: int) -> None:
    """Kill a process and its descendants; they are stopped first, so that none of them starts another one meanwhile."""
    known: list[int] = []
    found = [first]
    while found:
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
        known += found
        found = [pid for pid, parent in parents().items() if parent in known and pid not in known]
    for pid in known:
        os.kill(pid, signal.SIGKILL)


def parents() -> dict[int, int]:
    """The parent of each process of this machine."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        found[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


if __name__ == "__main__":
    main()
