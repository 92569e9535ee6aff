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
import subprocess
import tempfile
import time
from pathlib import Path

from chains import SIZES, Chains, bench_fleets, bench_images
from copies import bench_copies
from datafiles import bench_datafiles
from measure import PYTHON, TREE, called, module_command, module_environment, report, report_memory

LAB = Path(__file__).resolve().parents[1] / "lab" / "lab"
PARTS = ("pull", "copy", "info", "fleets", "images", "datafile")
REFERENCE = """
import libvirt
connection = libvirt.open("qemu:///system")
print(sum(len(domain.XMLDesc(0)) for domain in connection.listAllDomains(0)))
"""


class Bench:
    """Commands inside the lab host, timed from outside."""

    def __init__(self, state: Path, environment: dict[str, str]):
        self.enter = str(state / "enter")
        self.environment = environment

    def run(self, *command: str) -> str:
        done = subprocess.run([self.enter, *command], env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{called(command)} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def module(self, module: str, **arguments) -> dict:
        return json.loads(self.run(*module_command(module, **arguments)))

    def timed(self, call) -> float:
        start = time.monotonic()
        call()
        return time.monotonic() - start


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
        found = len(bench.module("disk_chain_info", sources=["live"])["domains"])
        if found < guests:
            raise SystemExit(f"disk_chain_info saw {found} guests of {guests}")

    def reference() -> None:
        bench.run(PYTHON, "-c", REFERENCE)

    times: dict = {ours: [], reference: []}
    for number in range(pairs):
        for call in (ours, reference) if number % 2 else (reference, ours):
            times[call].append(bench.timed(call))
    memory = {call: peak(call) for call in (ours, reference)}
    report(f"disk_chain_info / only fetching the XML, {guests} guests", times[ours], times[reference])
    report_memory("  peak memory", memory[ours], memory[reference])


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
    parser.add_argument("--guests", type=int, default=40, help="running guests of the lab")
    parser.add_argument("--fleets", type=int, nargs="+", default=SIZES, help="numbers of guests of libvirt's test driver, each 2 or more")
    parser.add_argument("--images", type=int, default=500, help="images that belong to no guest")
    parser.add_argument("--large", type=int, default=2048, help="MiB of the large disk that is copied")
    parser.add_argument("--large-pairs", type=int, default=6, help="how often it is copied by each")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one (repeatable); fleets needs no lab")
    options = parser.parse_args()
    if options.pairs < 7:
        parser.error("a median wants at least 7 pairs")
    if min(options.fleets) < 2 or options.images < 2:
        parser.error("one alone is what the others are compared with: give 2 or more")
    parts = options.part or PARTS
    state = Path(os.environ.get("LAB_BASE", "")) / "bench"
    # The modules' code is compiled once, as it is for a program that is installed.
    subprocess.run([PYTHON, "-m", "compileall", "-q", str(TREE)], check=True)
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        environment = module_environment(options.ansible, scratch)
        bench = Bench(state, environment)
        if "pull" in parts:
            pull(bench, options.pairs)
        if "copy" in parts:
            bench_copies(bench, scratch, options.pairs, options.large_pairs, options.large)
        if "info" in parts:
            info(bench, options.guests, options.pairs)
        if "fleets" in parts:
            bench_fleets(Chains(environment, scratch), options.fleets, options.pairs)
        if "images" in parts:
            bench_images(Chains(environment, scratch, (bench.enter,)), options.images, options.pairs)
        if "datafile" in parts:
            bench_datafiles(bench, scratch, options.pairs)


if __name__ == "__main__":
    main()
