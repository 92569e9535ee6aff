# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random sequences of snapshots, pulls, commits and copies on a lab host that is up: what check mode predicts has to come true."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import ansible
import steps
from story import Failed, Sequence
from world import World

LONG, SHORT, SHRINK = (60, 16), (4, 10), 12
FATES = ("done", "unneeded", "refused", "skipped")


def shrunk(world: World, told: list, failure: Failed, tries: int, verbose: bool) -> tuple[list, Failed]:
    """A shorter sequence that goes wrong as well: steps are left out from the end to the beginning."""
    number = len(told) - 2
    while number > 0 and tries:
        tries -= 1
        shorter = told[:number] + told[number + 1 :]
        try:
            Sequence(world, shorter, verbose).run()
        except Failed as error:
            told, failure = shorter[: error.position + 1], error
            number = min(number, len(told) - 1)
        number -= 1
    return told, failure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", required=True, help="the name of the lab host")
    parser.add_argument("--sequences", type=int, metavar="N", help="how many (%d)" % LONG[0])
    parser.add_argument("--steps", type=int, metavar="N", help="of each, beside making its guest (%d)" % LONG[1])
    parser.add_argument("--short", action="store_true", help="what the integration tests take: %d sequences of %d steps, and no shorter ones of those" % SHORT)
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)), help="as it was printed; by default another one each time")
    parser.add_argument("--only", type=int, metavar="N", help="the sequence of that number alone")
    parser.add_argument("--given", metavar="JSON", help="this list of steps, as a failure prints it, and no random ones")
    parser.add_argument("--shrink", type=int, metavar="N", help="tries to make a failing sequence shorter (%d)" % SHRINK)
    parser.add_argument("--verbose", action="store_true", help="print each step")
    options = parser.parse_args()
    short = SHORT if options.short else LONG
    options.sequences, options.steps = options.sequences or short[0], options.steps or short[1]
    options.shrink = (0 if options.short else SHRINK) if options.shrink is None else options.shrink
    return options


def main() -> int:
    options, total = arguments(), []
    if options.given:
        chosen = [("given", json.loads(options.given))]
    else:
        numbers = [options.only] if options.only is not None else range(options.sequences)
        chosen = [(number, steps.sequence("%s:%d" % (options.seed, number), options.steps)) for number in numbers]
        print("seed %s, %d sequences of %d steps" % (options.seed, len(chosen), options.steps), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        world = World(options.lab, os.path.dirname(ansible.__file__), Path(scratch))
        try:
            failed = sum(not passed(world, name, told, options, total) for name, told in chosen)
            world.remove()
        finally:
            world.close()
    print(summary(total))
    print("property: %d sequences, %d wrong" % (len(chosen), failed))
    return 1 if failed else 0


def passed(world: World, name: object, told: list, options: argparse.Namespace, total: list) -> bool:
    begun, sequence = time.monotonic(), Sequence(world, told, options.verbose)
    try:
        sequence.run()
    except Failed as error:
        print("WRONG: sequence %s (--seed %s --only %s --steps %d): %s" % (name, options.seed, name, options.steps, error), flush=True)
        told, error = shrunk(world, told[: error.position + 1], error, options.shrink, options.verbose)
        print("That is, after %d steps: %s" % (len(error.lines), error))
        print("\n".join("  %d %s" % pair for pair in enumerate(error.lines)))
        print("--given %r" % json.dumps(told), flush=True)
        return False
    total += sequence.fates
    ends = [fate for what, dummy, fate, code in sequence.fates if what != "guest"]
    print("sequence %s: %s, 0 lost, %.1f s" % (name, ", ".join("%d %s" % (ends.count(fate), fate) for fate in FATES), time.monotonic() - begun), flush=True)
    return True


def summary(total: list) -> str:
    """How often each kind of step ended how."""
    lines = []
    for key in sorted({(what, running) for what, running, dummy, code in total}):
        ends = [" ".join(one[2:]).strip() for one in total if one[:2] == key]
        lines.append("%s, %s: %s" % (key[0], "running" if key[1] else "off", ", ".join("%d %s" % (ends.count(end), end) for end in sorted(set(ends)))))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
