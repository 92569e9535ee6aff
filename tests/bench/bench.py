# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Benchmarks as ratios: each of ours beside a named reference, in pairs, in the same run.

Times of a shared machine say little; the ratio of two things done alternately says how much our path adds. Printed are
the medians, the ratio of the medians and the spread of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

TREE = Path(__file__).resolve().parents[5]
LAB = Path(__file__).resolve().parents[1] / "lab" / "lab"
MODULE = """
import json, runpy, sys
from ansible.module_utils import basic
basic._ANSIBLE_ARGS = sys.argv[2].encode()
basic._ANSIBLE_PROFILE = "legacy"
runpy.run_module("ansible_collections.livestorage.libvirt.plugins.modules." + sys.argv[1], run_name="__main__")
"""
REFERENCE = """
import libvirt
connection = libvirt.open("qemu:///system")
print(sum(len(domain.XMLDesc(0)) for domain in connection.listAllDomains(0)))
"""


class Bench:
    """Commands inside the lab host, timed from outside."""

    def __init__(self, state: Path, ansible: str, scratch: Path):
        self.enter = str(state / "enter")
        (scratch / "ansible").symlink_to(ansible)
        self.environment = dict(os.environ, PYTHONPATH=f"{scratch}:{TREE}", PYTHONDONTWRITEBYTECODE="1")
        # The modules' code is compiled once, as it is for a program that is installed.
        subprocess.run([self.enter, "/usr/bin/python3", "-m", "compileall", "-q", str(TREE)], check=True)

    def run(self, *command: str) -> str:
        done = subprocess.run([self.enter, *command], env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command[:3])} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def module(self, module: str, **arguments) -> dict:
        text = json.dumps({"ANSIBLE_MODULE_ARGS": arguments})
        return json.loads(self.run("/usr/bin/python3", "-c", MODULE, module, text))

    def timed(self, call) -> float:
        start = time.monotonic()
        call()
        return time.monotonic() - start


def report(title: str, ours: list[float], reference: list[float]) -> None:
    """One line: medians in seconds, and the ratio with its spread over the pairs."""
    ratios = sorted(one / other for one, other in zip(ours, reference))
    print(
        f"{title}: ratio {statistics.median(ours) / statistics.median(reference):.2f} of medians over {len(ours)} pairs "
        f"(pairs {ratios[0]:.2f} to {ratios[-1]:.2f}; {statistics.median(ours):.3f} s to {statistics.median(reference):.3f} s)",
        flush=True,
    )


def pull(bench: Bench, pairs: int) -> None:
    """block_rebase against `virsh blockpull --wait`: the same 8 MiB from one overlay into the next, down to the template."""
    subprocess.run([LAB, "guest", "bench", "add", "pull", "--slots", "0"], check=True, stdout=subprocess.DEVNULL)
    template = "/var/lib/libvirt/images/pull-template.qcow2"
    device = "/machine/peripheral/virtio-disk0/virtio-backend"
    bench.run("virsh", "qemu-monitor-command", "pull", "--hmp", f'qemu-io -d {device} "write -P 0x5a 32M 8M"')
    count = 0

    def overlay() -> None:
        nonlocal count
        count += 1
        spec = f"vda,file=/srv/fast/overlay{count}.qcow2"
        bench.run("virsh", "snapshot-create-as", "pull", "--disk-only", "--atomic", "--no-metadata", "--diskspec", spec)

    def ours() -> None:
        result = bench.module("block_rebase", name="pull", disk="vda", base=template)
        if not result["changed"]:
            raise SystemExit("block_rebase had nothing to do")

    def reference() -> None:
        bench.run("virsh", "blockpull", "pull", "vda", "--base", template, "--wait")

    times: dict = {ours: [], reference: []}
    for number in range(pairs):
        for call in (ours, reference) if number % 2 else (reference, ours):
            overlay()
            times[call].append(bench.timed(call))
    report("block_rebase / virsh blockpull --wait, 8 MiB", times[ours], times[reference])


def info(bench: Bench, guests: int, pairs: int) -> None:
    """disk_chain_info over running guests against a process that only fetches the same XML documents."""
    subprocess.run([LAB, "guest", "bench", "add", "g0", "--slots", "0"], check=True, stdout=subprocess.DEVNULL)
    template = "/var/lib/libvirt/images/g0-template.qcow2"
    for number in range(1, guests):
        command = [LAB, "guest", "bench", "add", f"g{number}", "--template", template]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def ours() -> None:
        found = len(bench.module("disk_chain_info")["domains"])
        if found < guests:
            raise SystemExit(f"disk_chain_info saw {found} guests of {guests}")

    def reference() -> None:
        bench.run("/usr/bin/python3", "-c", REFERENCE)

    times: dict = {ours: [], reference: []}
    for number in range(pairs):
        for call in (ours, reference) if number % 2 else (reference, ours):
            times[call].append(bench.timed(call))
    memory = {call: peak(call) for call in (ours, reference)}
    report(f"disk_chain_info / only fetching the XML, {guests} guests", times[ours], times[reference])
    print(f"peak memory of the same: ratio {memory[ours] / memory[reference]:.2f} ({memory[ours]} KiB to {memory[reference]} KiB)")


def peak(call) -> int:
    """Peak resident memory in KiB of what `call` runs, measured in a process of its own."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        call()
        os.write(writer, str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss).encode())
        os._exit(0)
    os.close(writer)
    os.wait()
    return int(os.read(reader, 32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ansible", required=True, help="the directory of the package ansible (ansible-core)")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--guests", type=int, default=40)
    options = parser.parse_args()
    if options.pairs < 7:
        parser.error("a median wants at least 7 pairs")
    state = Path(os.environ["LAB_BASE"]) / "bench"
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(state, options.ansible, Path(scratch))
        pull(bench, options.pairs)
        info(bench, options.guests, options.pairs)


if __name__ == "__main__":
    main()
