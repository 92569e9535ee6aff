# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every benchmark needs: a module as a process, rounds of things done alternately, and how they are told."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[5]
PYTHON = "/usr/bin/python3"
# As Ansible runs a module, without its controller. CLOCK_MONOTONIC is one clock for all processes, so the moment when the
# result is ready can be told from outside.
MODULE = """
import runpy, sys, time
from ansible.module_utils import basic
basic._ANSIBLE_ARGS = sys.argv[2].encode()
basic._ANSIBLE_PROFILE = "legacy"
exit_json = basic.AnsibleModule.exit_json

def ready(self, **result):
    sys.stderr.write("ready %.6f\\n" % time.monotonic())
    exit_json(self, **result)

basic.AnsibleModule.exit_json = ready
runpy.run_module("ansible_collections.livestorage.libvirt.plugins.modules." + sys.argv[1], run_name="__main__")
"""
MIB = 1024


def module_command(module: str, **arguments) -> tuple[str, ...]:
    return (PYTHON, "-c", MODULE, module, json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))


def module_environment(ansible: str, scratch: Path) -> dict[str, str]:
    """An environment in which the module finds the collection and this ansible-core, and no other package of the controller."""
    (scratch / "ansible").symlink_to(ansible)
    return dict(os.environ, PYTHONPATH=f"{scratch}:{TREE}", PYTHONDONTWRITEBYTECODE="1")


@dataclass(frozen=True)
class Run:
    """A process that succeeded: its seconds, those until its module called exit_json, and what it used with its children.

    ``processor`` is in seconds, over all of them; ``memory`` is the peak of the largest single one, resident, in KiB.
    """

    seconds: float
    ready: float | None
    processor: float
    memory: int
    output: Path


def measured(command: tuple[str, ...], environment: dict[str, str], output: Path) -> Run:
    """Run a command with its output in a file, so that nobody has to read while the clock runs. Ends the benchmark if it fails.

    Linux counts what this process holds as memory of each child: the reading of large results is for a process of its own.
    """
    errors = output.with_suffix(".err")
    with output.open("wb") as out, errors.open("wb") as err:
        start = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        dummy, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    told = errors.read_text()
    if process.returncode:
        raise SystemExit(f"{called(command)} failed: {told[-2000:]}{head(output)}")
    ready = re.search(r"^ready ([\d.]+)$", told, re.M)
    return Run(seconds, float(ready[1]) - start if ready else None, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, output)


def called(command: tuple[str, ...]) -> str:
    """A command line for a message, without programs that stand in it."""
    return " ".join(word for word in command if "\n" not in word)[:200]


def head(output: Path) -> str:
    with output.open(errors="replace") as file:
        return file.read(2000)


def rounds(calls: dict[str, Callable[[], Run]], count: int) -> dict[str, list[Run]]:
    """Every call once in each round, every second round backwards."""
    runs: dict[str, list[Run]] = {name: [] for name in calls}
    for number in range(count):
        for name in list(calls) if number % 2 else reversed(calls):
            runs[name].append(calls[name]())
    return runs


def seconds(runs: list[Run]) -> list[float]:
    return [run.seconds for run in runs]


def report(title: str, ours: list[float], reference: list[float]) -> None:
    """One line: medians in seconds, and the ratio with its spread over the pairs."""
    ratios = sorted(one / other for one, other in zip(ours, reference))
    print(
        f"{title}: ratio {statistics.median(ours) / statistics.median(reference):.2f} of medians over {len(ours)} pairs "
        f"(pairs {ratios[0]:.2f} to {ratios[-1]:.2f}; {statistics.median(ours):.3f} s to {statistics.median(reference):.3f} s)",
        flush=True,
    )


def report_memory(title: str, ours: float, reference: float) -> None:
    print(f"{title}: ratio {ours / reference:.2f} ({ours / MIB:.0f} MiB to {reference / MIB:.0f} MiB)", flush=True)


def verdict(value: float, most: float) -> str:
    """Whether an aim is met, as it is printed. A benchmark never fails by it."""
    return f"{value:.2f} (aim: at most {most}; {'met' if value <= most else 'MISSED'})"
