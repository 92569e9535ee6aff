# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""block_copy by numbers: beside virsh and qemu-img, and what each way of moving a disk writes.

The guest is idle, its disk one full qcow2 image of random data, in memory: there all that is around the copy weighs most, and the
same copy on a disk that others use took from 0.8 s to 8.7 s. Every copy is to a new file, to which the guest pivots; the old one is
removed and the machine synced before the next one, off the clock. What is told:

- The *operation inside the module*: from the moment when its options are parsed and its libraries imported, to the moment when
  its result is complete. That is the connection, both looks, the copy, the pivot, the definition of the next start, and the look
  that verifies it all. The reference is the whole process `virsh blockcopy --wait --pivot`, which does the copy and the pivot.
- The *whole process* of the module, with the start of Python and its imports, to the same reference.
- From *READY to the pivot*: QEMU's own time of its event, to the call of libvirt that pivots, in the module. And for both, to the
  moment when QEMU's job leaves that state, by the times of QEMU's events alone.
- What is *around QEMU's copy*: the operation less the time of QEMU's job until it was ready, in both. The job itself is the same
  for both.
- *Throughput*: the disk's size by the operation, beside qemu-img convert with the same cache mode, flushed at its end. It has no
  guest to keep running, so it is a bound, and not a rival.
- *Bytes written*: what the kernel says that QEMU caused to be written to the storage (write_bytes in /proc/PID/io), and what the new
  file takes. Here the disk is on a real file system, since what goes to memory is not counted.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from measure import MODULE, PYTHON, measured, report, verdict

LAB = Path(__file__).resolve().parents[1] / "lab" / "lab"
IMAGES = "/var/lib/libvirt/images"
GUEST = "copied"
RATIO = 1.0
MIB = 1 << 20
STEADY = ("-t", "writeback", "-T", "writeback")
SPY = """
import sys, time
from ansible_collections.livestorage.libvirt.plugins.module_utils import _pipeline
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.host import Host
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.libvirt_host import Connection

def told(before, call, clock=time.monotonic, after=None):
    def instead(*arguments):
        start = clock()
        if before:
            sys.stderr.write("%s %.6f\\n" % (before, start))
        found = call(*arguments)
        if after:
            sys.stderr.write("spent %.6f %s\\n" % (clock() - start, after(*arguments)))
        return found
    return instead

_pipeline.run = told("begun", _pipeline.run)
Connection.pivot = told("pivot", Connection.pivot, time.time)
Host.observe = told(None, Host.observe, after=lambda host, needs: "look")
Host.do = told(None, Host.do, after=lambda host, step: step.action)
"""
TIMED = """
import subprocess, sys, time
start = time.monotonic()
subprocess.run(sys.argv[1:], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print(time.monotonic() - start)
"""


@dataclass(frozen=True)
class Copy:
    """One copy of ours or of virsh: seconds of the operation and of the process, and QEMU's times of its job's states."""

    operation: float
    process: float
    states: dict[str, float]
    pivot: float | None = None
    spent: list[tuple[str, float]] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds from READY until QEMU's job left that state."""
        return self.states["waiting"] - self.states["ready"]

    @property
    def copied(self) -> float:
        """Seconds that QEMU's job took to become ready."""
        return self.states["ready"] - self.states["created"]


class Copies:
    """The guest that is moved, on a lab host. ``bench`` runs commands there."""

    def __init__(self, bench, scratch: Path, size: int, folder: str):
        self.bench, self.scratch, self.size, self.folder = bench, scratch, size, folder
        self.count = 0
        self.events = Path(f"{scratch}/events")

    @contextmanager
    def guest(self, fill: int) -> Iterator[None]:
        """The guest with so many MiB of data in its template, and QEMU's events about its jobs in a file."""
        add = [LAB, "guest", "bench", "add", GUEST, "--slots", "0", "--size", str(self.size), "--fill", str(fill)]
        subprocess.run(add, check=True, stdout=subprocess.DEVNULL)
        watch = ["stdbuf", "-oL", "virsh", "qemu-monitor-event", GUEST, "--event", "JOB_STATUS_CHANGE", "--loop"]
        with self.events.open("wb") as output:
            watcher = subprocess.Popen([self.bench.enter, *watch], stdin=subprocess.DEVNULL, stdout=output)
        try:
            yield
        finally:
            watcher.kill()
            watcher.wait()
            last = self.source()
            subprocess.run([LAB, "guest", "bench", "remove", GUEST], check=True)
            self.bench.run("rm", "-f", last)

    def source(self) -> str:
        """The path of the active layer."""
        return self.bench.run("virsh", "domblklist", GUEST).split()[-1]

    def fresh(self) -> str:
        self.count += 1
        return f"{self.folder}/{GUEST}-copy{self.count}.qcow2"

    def settled(self, *unused: str) -> None:
        """Remove files that are not used any more, and let nothing be left to write."""
        if unused:
            self.bench.run("rm", "-f", *unused)
        os.sync()

    def ours(self, dest: str, **options) -> Copy:
        seen = len(self._told())
        arguments = dict(options, name=GUEST, disk="vda", dest={"path": dest, "format": "qcow2"})
        called = json.dumps({"ANSIBLE_MODULE_ARGS": arguments})
        run = measured((self.bench.enter, PYTHON, "-c", SPY + MODULE, "block_copy", called), self.bench.environment, self.scratch / "output")
        if not json.loads(run.output.read_text())["changed"]:
            raise SystemExit("block_copy had nothing to do")
        told = run.output.with_suffix(".err").read_text()
        words = {word: float(at) for word, at in re.findall(r"^(begun|ready|pivot) ([\d.]+)$", told, re.M)}
        spent = [(word, float(seconds)) for seconds, word in re.findall(r"^spent ([\d.]+) (\S+)$", told, re.M)]
        return Copy(words["ready"] - words["begun"], run.seconds, self._states(seen), words.get("pivot"), spent)

    def virsh(self, dest: str) -> Copy:
        seen = len(self._told())
        copy = ["blockcopy", GUEST, "vda", dest, "--format", "qcow2", "--transient-job", "--wait", "--pivot"]
        taken = float(self.bench.run(PYTHON, "-c", TIMED, "virsh", *copy))
        return Copy(taken, taken, self._states(seen))

    def convert(self, dest: str) -> float:
        return float(self.bench.run(PYTHON, "-c", TIMED, "qemu-img", "convert", "-U", *STEADY, "-f", "qcow2", "-O", "qcow2", self.source(), dest))

    def written(self) -> int:
        """What the guest's QEMU has caused to be written so far, in bytes."""
        return int(self.bench.run("sh", "-c", f"grep ^write_bytes /proc/$(cat /run/libvirt/qemu/{GUEST}.pid)/io").split()[-1])

    def taken(self, path: str) -> int:
        return 512 * int(self.bench.run("stat", "-c", "%b", path))

    def _told(self) -> list[tuple[str, float]]:
        """The states of QEMU's jobs that copy, with their times. (QEMU also has one that creates the file.)"""
        found = re.findall(r"^event JOB_STATUS_CHANGE at ([\d.]+) [^{]*({.*})$", self.events.read_text(), re.M)
        jobs = [(json.loads(facts), float(at)) for at, facts in found]
        return [(facts["status"], at) for facts, at in jobs if facts["id"].startswith("copy-")]

    def _states(self, seen: int) -> dict[str, float]:
        """When QEMU's job first came to each of its states. Its last event may be written down after the end of the operation."""
        until = time.monotonic() + 10
        while "null" not in dict(self._told()[seen:]):
            if time.monotonic() > until:
                raise SystemExit(f"QEMU told no end of the copy, but {self._told()[seen:]}")
            time.sleep(0.05)
        return dict(reversed(self._told()[seen:]))  # the first time of each


def bench_copies(bench, scratch: Path, pairs: int, large_pairs: int, large: int) -> None:
    against(Copies(bench, scratch, 64, "/srv/fast"), pairs, "in memory")
    folder, where = roomy(bench, large)
    against(Copies(bench, scratch, large, folder), large_pairs, where)
    amounts(Copies(bench, scratch, 512, IMAGES))


def roomy(bench, size: int) -> tuple[str, str]:
    """Where two images of so many MiB have room: a file system in memory, or the machine's disk where there is not enough of that."""
    free = int(re.search(r"^MemAvailable: +(\d+)", Path("/proc/meminfo").read_text(), re.M)[1]) // 1024
    if free < 4 * size:
        return IMAGES, "on disk"
    bench.run("sh", "-c", f"mkdir -p /run/large && mount -t tmpfs -o size={3 * size}M large /run/large")
    return "/run/large", "in memory"


def against(copies: Copies, pairs: int, where: str) -> None:
    """block_copy, virsh blockcopy --wait --pivot and qemu-img convert, alternately, of the same image."""
    ours, reference, converted = [], [], []
    with copies.guest(copies.size - 2):
        copies.ours(copies.fresh())  # one layer from here on, and all code is compiled

        def moved(call, found: list) -> None:
            old = copies.source()
            copies.settled()
            found.append(call(copies.fresh()))
            copies.settled(old)

        def convert() -> None:
            dest = copies.fresh()
            copies.settled()
            converted.append(copies.convert(dest))
            copies.settled(dest)

        calls = [lambda: moved(copies.ours, ours), lambda: moved(copies.virsh, reference), convert]
        for number in range(pairs):
            for position in range(len(calls)):  # none always follows the same other one
                calls[(number + position * (1 + number % 2)) % len(calls)]()
    title = f"{copies.size} MiB {where}"
    inside, theirs = [one.operation for one in ours], [one.operation for one in reference]
    report(f"block_copy inside the module / virsh blockcopy --wait --pivot, {title}", inside, theirs)
    print(f"  ratio of medians {verdict(statistics.median(inside) / statistics.median(theirs), RATIO)}", flush=True)
    report("  the whole process", [one.process for one in ours], theirs)
    words = ["%s %.0f ms" % (word, 1000 * one) for word, one in phases(ours)]
    print(f"  of {1000 * statistics.median(inside):.0f} ms: {', '.join(words)}", flush=True)
    call = statistics.median(one.pivot - one.states["ready"] for one in ours)
    left, other = (statistics.median(one.left for one in copied) for copied in (ours, reference))
    print(f"  from READY to the pivot call {1000 * call:.1f} ms; until QEMU leaves READY {1000 * left:.1f} ms, virsh {1000 * other:.1f} ms", flush=True)
    report("  QEMU's copy alone", [one.copied for one in ours], [one.copied for one in reference])
    report("  around QEMU's copy", [one.operation - one.copied for one in ours], [one.operation - one.copied for one in reference])
    rates = [copies.size / statistics.median(found) for found in (inside, theirs, converted)]
    print("  throughput: %.0f MiB/s, virsh %.0f MiB/s, qemu-img convert %.0f MiB/s" % tuple(rates), flush=True)


def phases(copies: list[Copy]) -> list[tuple[str, float]]:
    """The median seconds of each look and step, in their order."""
    names = [word for word, dummy in copies[0].spent]
    columns = zip(*([seconds for dummy, seconds in one.spent] for one in copies if [word for word, dummy in one.spent] == names))
    return [(name, statistics.median(column)) for name, column in zip(names, columns)]


def amounts(copies: Copies) -> None:
    """What three ways of moving a disk write whose overlay holds 5 % of what its template holds."""
    template = int(copies.size * 0.9)
    overlay = template * 5 // 100
    device = "/machine/peripheral/virtio-disk0/virtio-backend"

    def overlaid() -> str:
        dest = copies.fresh()
        copies.bench.module("external_snapshot", name=GUEST, metadata=False, disks=[{"disk": "vda", "path": dest}])
        copies.bench.module("block_rebase", name=GUEST, disk="vda", base=f"{IMAGES}/{GUEST}-template.qcow2")
        return dest

    def mirrored(**options) -> str:
        dest = copies.fresh()
        copies.ours(dest, **options)
        return dest

    print(f"Bytes written for a disk whose overlay has {overlay} MiB, 5 % of the {template} MiB of its template:", flush=True)
    with copies.guest(template):
        copies.bench.run("virsh", "qemu-monitor-command", GUEST, "--hmp", f'qemu-io -d {device} "write -P 0x5a 8M {overlay}M"')
        ways = {"overlay (snapshot and pull)": overlaid, "mirror (shallow copy)": lambda: mirrored(shallow=True), "full copy": mirrored}
        for name, move in ways.items():
            old = copies.source()
            copies.settled()
            before = copies.written()
            dest = move()
            copies.settled(old)
            print(f"  {name}: {(copies.written() - before) / MIB:.1f} MiB, the new file takes {copies.taken(dest) / MIB:.1f} MiB", flush=True)
