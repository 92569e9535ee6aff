# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""datafile_convert by numbers: what it takes and writes whatever the size of the disk, and how long it stops a guest.

- *An image by itself*, sparse, with 64 MiB of random data: the whole process of the module, the bytes that the new layer takes, and what
  the kernel says that the module and qemu-img caused to be written to the storage. 1 TiB has clusters of 2 MiB, by the module's own rule.
- Beside it, for the smallest one, `qemu-img convert` to a qcow2 image with a data file of its own, which is the other way to the same end.
- *The pause* of a running guest whose memory is full of random bytes, as the module measures it, beside `virsh managedsave` and `virsh start`
  of the same guest: what libvirt takes anyway to write the memory and to read it again.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import time
from pathlib import Path

from measure import PYTHON, called, measured, module_command, report

LAB = Path(__file__).resolve().parents[1] / "lab" / "lab"
SIZES = (1, 64, 1024)  # GiB
MEMORIES = (64, 256, 1024)  # MiB
IMAGES = "/var/lib/libvirt/images"
GUEST = "paused"
GIB, MIB = 1 << 30, 1 << 20
DATA = 64 * MIB
MOST = 0.01  # of the size, in bytes written
LAYER = f"{IMAGES}/bench.raw.qcow2"
RAW = f"{IMAGES}/bench.raw"


class Datafiles:
    """``bench`` runs commands on the lab host."""

    def __init__(self, bench, scratch: Path):
        self.bench, self.scratch = bench, scratch

    def convert(self, **options) -> tuple[float, int, dict]:
        """The seconds of the module's process, the bytes that it caused to be written, and its result."""
        before = written()
        command = (self.bench.enter, *module_command("datafile_convert", **options))
        run = measured(command, self.bench.environment, self.scratch / "output")
        os.sync()
        result = json.loads(run.output.read_text())
        if not result["changed"]:
            raise SystemExit(f"{called(command)} had nothing to do")
        return run.seconds, written() - before, result

    def there_and_back(self) -> tuple[float, float, int]:
        """(seconds, seconds of the way back, bytes of the layer)."""
        seconds, dummy, result = self.convert(path=RAW)
        taken = 512 * int(self.bench.run("stat", "-c", "%b", result["metadata"]))
        back = self.convert(path=RAW, state="absent")[0]
        return seconds, back, taken

    def qemu_img(self) -> float:
        start = time.monotonic()
        options = f"data_file={IMAGES}/copy.raw,data_file_raw=on"
        self.bench.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", options, RAW, f"{IMAGES}/copy.qcow2")
        seconds = time.monotonic() - start
        self.bench.run("rm", f"{IMAGES}/copy.raw", f"{IMAGES}/copy.qcow2")
        return seconds

    def image(self, size: int) -> None:
        self.bench.run("rm", "-f", RAW)
        self.bench.run("truncate", "-s", str(size), RAW)
        self.bench.run("dd", "if=/dev/urandom", f"of={RAW}", "bs=1M", f"count={DATA // MIB}", "seek=100", "conv=notrunc,fsync", "status=none")


def written() -> int:
    """What went to the machine's disks so far, in bytes: other work of the machine is in it, too."""
    parts = [line.split() for line in Path("/proc/diskstats").read_text().splitlines()]
    return 512 * sum(int(part[9]) for part in parts if re.fullmatch(r"[shv]d[a-z]+|nvme\d+n\d+", part[2]))


def bench_datafiles(bench, scratch: Path, pairs: int) -> None:
    work = Datafiles(bench, scratch)
    for gib in SIZES:
        images(work, gib, pairs)
    for memory in MEMORIES:
        pauses(work, memory, max(3, pairs // 2))


def images(work: Datafiles, gib: int, pairs: int) -> None:
    size = gib * GIB
    work.image(size)
    work.there_and_back()  # all code is compiled, and the image in memory
    ours, back, reference, taken = [], [], [], 0
    for number in range(pairs if gib == SIZES[0] else 3):
        for step in (0, 1) if number % 2 else (1, 0):
            if step:
                seconds, other, taken = work.there_and_back()
                ours.append(seconds)
                back.append(other)
            elif gib == SIZES[0]:
                reference.append(work.qemu_img())
    title = f"datafile_convert of a sparse raw image of {gib} GiB"
    if reference:
        report(f"{title} / qemu-img convert to a new data file", ours, reference)
    print(f"{title}: {statistics.median(ours):.2f} s, back {statistics.median(back):.2f} s", flush=True)
    share = taken / size
    word = "met" if share < MOST else "MISSED"
    print(f"  the layer takes {taken / MIB:.2f} MiB, {100 * share:.4f} % of the size (aim below {100 * MOST:g} %: {word})", flush=True)


def pauses(work: Datafiles, memory: int, pairs: int) -> None:
    """Of a guest with so many MiB of memory, all of them full."""
    add = [LAB, "guest", "bench", "add", GUEST, "--layers", "current1", "--base-format", "raw", "--slots", "0", "--no-start"]
    subprocess.run(add, check=True, stdout=subprocess.DEVNULL)
    try:
        shared = "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>"
        edit = f"s#<memory unit='KiB'>.*#<memory unit='MiB'>{memory}</memory>{shared}#; /<currentMemory/d"
        work.bench.run("sh", "-c", f"virsh dumpxml {GUEST} | sed \"{edit}\" > /tmp/{GUEST}.xml && virsh define /tmp/{GUEST}.xml && virsh start {GUEST}")
        ours, theirs = [], []
        for number in range(pairs):
            for step in (0, 1) if number % 2 else (1, 0):
                fill(work, memory)
                if step:
                    ours.append(work.convert(name=GUEST, disk="vda", allow_pause=True)[2]["pause"])
                    fill(work, memory)
                    ours.append(work.convert(name=GUEST, disk="vda", allow_pause=True, state="absent")[2]["pause"])
                else:
                    start = time.monotonic()
                    work.bench.run("virsh", "managedsave", GUEST)
                    work.bench.run("virsh", "start", GUEST)
                    theirs.append(time.monotonic() - start)
        report(f"pause of a guest with {memory} MiB of memory / virsh managedsave and start", ours, theirs)
    finally:
        subprocess.run([LAB, "guest", "bench", "remove", GUEST], check=True)


FILL = """
import os, sys
path = sys.argv[1]
size = os.path.getsize(path)
with open(path, "r+b", buffering=0) as file:
    for place in range(4 << 20, size, 1 << 20):
        os.pwrite(file.fileno(), os.urandom(min(1 << 20, size - place)), place)
"""


def fill(work: Datafiles, memory: int) -> None:
    """Random bytes in all of the guest's memory but its first 4 MiB, where its own program is."""
    pid = work.bench.run("cat", f"/run/libvirt/qemu/{GUEST}.pid").strip()
    links = work.bench.run("sh", "-c", f"ls -l /proc/{pid}/fd | grep -o '[0-9]* -> .*/ram/.*' || true").split()
    maps = work.bench.run("sh", "-c", f"grep -m1 '/ram/' /proc/{pid}/maps").split()
    path = f"/proc/{pid}/map_files/{maps[0]}" if not links else f"/proc/{pid}/fd/{links[0]}"
    work.bench.run(PYTHON, "-c", FILL, path)
