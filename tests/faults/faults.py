# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fault matrix, on a lab host that is up. Every try is judged: what the modules say has to be true, and nothing may be lost."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import ansible
import matrix
import window
from scene import Scene, Tally, Wrong, spent

# A part, its tries in the long and in the short form, and the outcomes for which the long form goes on until each was met.
PARTS = {
    "window": (window.copies, 120, 8, window.WANTED),
    "commit": (window.commits, 12, 2, ()),
    "interruptions": (window.interruptions, 20, 2, ()),
    "deaths": (window.deaths, 20, 2, ()),
    "drain": (window.drains, 12, 2, ()),
    "matrix": (matrix.everything, 0, 1, ()),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", required=True, help="the name of the lab host")
    parser.add_argument("--tries", type=int, help="at most so many tries of each part")
    parser.add_argument("--short", action="store_true", help="what the integration tests take")
    parser.add_argument("--to-the-end", action="store_true", help="all tries, whatever was met")
    parser.add_argument("parts", nargs="*", metavar="PART", help="%s; all of them unless named" % ", ".join(PARTS))
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error("no such part: %s" % ", ".join(unknown))
    failed, begun = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        scene = Scene(options.lab, os.path.dirname(ansible.__file__), Path(scratch))
        try:
            for name in options.parts or PARTS:
                failed += part(scene, name, options)
            scene.remove_guest()
        finally:
            scene.close()
    print("faults: %d wrong, %s" % (failed, spent(begun)))
    return 1 if failed else 0


def part(scene: Scene, name: str, options: argparse.Namespace) -> int:
    """How many of its tries went wrong, which is told with the outcomes."""
    call, long, short, wanted = PARTS[name]
    wanted = () if options.short or options.to_the_end else wanted
    tally, begun = Tally(), time.monotonic()
    try:
        call(scene, tally, options.tries or (short if options.short else long), wanted)
        missing = [kind for kind in wanted if kind not in tally.kinds]
        if missing:
            raise Wrong("not met: %s" % ", ".join(missing))
    except Wrong as error:
        tally.wrong.append(str(error))
        print("WRONG: %s" % error, flush=True)
    print("%s: %s, %s" % (name, tally, spent(begun)), flush=True)
    return len(tally.wrong)


if __name__ == "__main__":
    sys.exit(main())
