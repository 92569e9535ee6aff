# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""disk_chain_info by numbers: thousands of guests, and hundreds of images that belong to no guest.

The guests are of libvirt's test driver: one disk with a chain of five layers each and little else, since whatever else
stood in their XML would have to be parsed by the reference, too, and would hide what we add. The reference is one bare
process that fetches the same XML and parses it with lxml, one document after the other, and keeps none. For images it is
a loop of the shell that calls qemu-img for one after the other.

Two costs are told, because each alone would flatter:

- The *whole process*, divided by the number. It is what a user waits for, but of few guests it is the start of the
  interpreter and of Ansible, so it falls with the number of guests whatever we do. And the test driver loads all its
  guests inside the process, ours and the reference's, which takes longer than all that the reference does itself; a real
  daemon has done that long before, but has to be asked over a socket for each guest.
- Each *further* one, in processor time: what the process and its children used, less what the same process used for one guest
  (or image) alone, over the same configuration and in the same round, divided by the number of the others. Neither the start
  nor the loading is in it, and growth is judged by it. It is a small difference where the guests are few, which a shared
  machine's clock would drown; so it is processor time, there are more rounds of those, and the middle half of the rounds is
  printed. A ratio to a cost that does not stand out from zero is a question mark.

What the module spends in Ansible's exit_json, copying and writing a result that is complete, is part of both, and told
apart as well.
"""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from measure import PYTHON, Run, measured, module_command, report, report_memory, rounds, seconds, verdict

LAYERS = 5
GROWTH, RATIO = 1.3, 1.5
SIZES = [10, 100, 1000, 5000]
SMALL, MIDDLE = 100, 1000  # growth is told from there to the largest; the default sources are tried there
BARE = """
import sys
import libvirt
from lxml import etree
connection = libvirt.open(sys.argv[1])
flags, names = [int(flag) for flag in sys.argv[2].split(",")], sys.argv[3:]
found = [connection.lookupByName(name) for name in names] or connection.listAllDomains(0)
print(sum(etree.fromstring(domain.XMLDesc(flag)).tag == "domain" for domain in found for flag in flags))
"""
LIVE, INACTIVE = "0", "2"  # VIR_DOMAIN_XML_INACTIVE
LOOP = 'for path in "$@"; do qemu-img info -U -f qcow2 --output=json "$path" || exit; done'
COUNT = """
import json, sys
with open(sys.argv[1]) as file:
    found = json.load(file)
guests, images = found["domains"], found["images"]
layers = [layer for one in [disk for guest in guests for disk in guest["disks"]] + images for layer in one["chain"]]
print(len(guests), len(images), len(layers), sum(layer["virtual_size"] is not None for layer in layers))
"""


@dataclass(frozen=True)
class Series:
    """The rounds over ``count`` guests or images, and in each of them a run over one alone."""

    count: int
    ours: list[Run]
    reference: list[Run]
    ours_one: list[Run]
    reference_one: list[Run]

    @property
    def ours_further(self) -> list[float]:
        return self._further(self.ours, self.ours_one)

    @property
    def reference_further(self) -> list[float]:
        return self._further(self.reference, self.reference_one)

    def _further(self, runs: list[Run], alone: list[Run]) -> list[float]:
        return [(run.processor - one.processor) / (self.count - 1) for run, one in zip(runs, alone)]


class Chains:
    """The processes that are compared. ``enter``: the command that enters a lab host, or nothing."""

    def __init__(self, environment: dict[str, str], scratch: Path, enter: tuple[str, ...] = ()):
        self.environment, self.scratch, self.enter = environment, scratch, enter

    def series(self, count: int, number: int, ours: Callable[[bool], Run], reference: Callable[[bool], Run]) -> Series:
        """``ours`` and ``reference`` are called with whether they are to look at one alone."""
        calls = {
            "ours": lambda: ours(False),
            "reference": lambda: reference(False),
            "ours_one": lambda: ours(True),
            "reference_one": lambda: reference(True),
        }
        return Series(count, **rounds(calls, number))

    def fleet(self, guests: int, number: int, sources: list[str] | None, flags: tuple[str, ...]) -> Series:
        """disk_chain_info of all guests against the bare process that fetches the documents of ``flags`` for each."""
        uri = f"test://{self._configuration(guests)}"
        asked = {} if sources is None else {"sources": sources}

        def ours(alone: bool) -> Run:
            one = {"name": guest_name(0)} if alone else {}
            run = self._run(*module_command("disk_chain_info", uri=uri, **asked, **one))
            wanted = 1 if alone else guests
            self._check(run, guests=wanted, images=0, layers=LAYERS * wanted)
            return run

        def reference(alone: bool) -> Run:
            run = self._run(PYTHON, "-c", BARE, uri, ",".join(flags), *([guest_name(0)] if alone else []))
            documents = len(flags) * (1 if alone else guests)
            if int(run.output.read_text()) != documents:
                raise SystemExit(f"the reference saw {run.output.read_text().strip()} XML documents of {documents}")
            return run

        return self.series(guests, number, ours, reference)

    def images(self, count: int, number: int) -> Series:
        """disk_chain_info of images against a loop of qemu-img. It asks libvirt whether files can be read, so it is run in the lab."""
        paths = [str(self._image(position)) for position in range(count)]

        def ours(alone: bool) -> Run:
            wanted = paths[:1] if alone else paths
            run = self._run(*module_command("disk_chain_info", images=wanted, format="qcow2"))
            self._check(run, guests=0, images=len(wanted), layers=len(wanted), known=len(wanted))
            return run

        def reference(alone: bool) -> Run:
            wanted = paths[:1] if alone else paths
            run = self._run("/bin/sh", "-c", LOOP, "sh", *wanted)
            found = run.output.read_text().splitlines().count("}")
            if found != len(wanted):
                raise SystemExit(f"the reference read {found} images of {len(wanted)}")
            return run

        return self.series(count, number, ours, reference)

    def _run(self, *command: str) -> Run:
        return measured((*self.enter, *command), self.environment, self.scratch / "output")

    def _check(self, run: Run, **wanted: int) -> None:
        found = subprocess.run([PYTHON, "-c", COUNT, str(run.output)], capture_output=True, text=True, check=True).stdout
        seen = dict(zip(("guests", "images", "layers", "known"), map(int, found.split())))
        if any(seen[what] != number for what, number in wanted.items()):
            raise SystemExit(f"disk_chain_info saw {seen} where it has to see {wanted}")

    def _configuration(self, guests: int) -> Path:
        path = self.scratch / f"guests{guests}.xml"
        if not path.exists():
            path.write_text(f"<node>{''.join(map(guest_xml, range(guests)))}</node>")
        return path

    def _image(self, position: int) -> Path:
        path = self.scratch / f"image{position}.qcow2"
        if not path.exists():
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "64M"], check=True)
        return path


def guest_name(number: int) -> str:
    return f"guest{number:05}"


def guest_xml(number: int) -> str:
    def source(layer: int) -> str:
        return f"<source file='/srv/images/{guest_name(number)}/layer{layer}.qcow2'/>"

    below = "<backingStore/>"
    for layer in range(LAYERS - 1):
        below = f"<backingStore type='file'><format type='qcow2'/>{source(layer)}{below}</backingStore>"
    return (
        f"<domain type='test'><name>{guest_name(number)}</name><uuid>5eed0000-0000-4000-8000-{number:012}</uuid>"
        "<memory>1024</memory><vcpu>1</vcpu><os><type arch='x86_64'>hvm</type></os><devices><disk type='file' device='disk'>"
        f"<driver name='qemu' type='qcow2'/>{source(LAYERS - 1)}{below}<target dev='vda' bus='virtio'/></disk></devices></domain>"
    )


def table(what: str, all_series: list[Series]) -> None:
    """Milliseconds for each guest or image, a line for each size."""
    print(f"{'':>7} | {'whole process, ms a ' + what:^26} | each further {what}, ms of processor time (middle half of the rounds)")
    print(f"{what + 's':>7} | {'ours':>8} {'reference':>10} {'ratio':>6} | {'ours':>23} {'reference':>23} {'ratio':>6} {'rounds':>7}")
    for one in all_series:
        ours, reference = (statistics.median(seconds(runs)) for runs in (one.ours, one.reference))
        print(
            f"{one.count:>7} | {1000 * ours / one.count:8.3f} {1000 * reference / one.count:10.3f} {ours / reference:6.2f} | "
            f"{spread(one.ours_further):>23} {spread(one.reference_further):>23} {quotient(one.ours_further, one.reference_further):>6} "
            f"{len(one.ours):>7}",
            flush=True,
        )


def spread(values: list[float]) -> str:
    low, middle, high = (1000 * value for value in statistics.quantiles(values, n=4))
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def quotient(values: list[float], others: list[float]) -> str:
    """The medians' ratio, where the lower one stands out from zero."""
    if statistics.quantiles(others, n=4)[0] <= 0:
        return "?"
    return f"{statistics.median(values) / statistics.median(others):.2f}"


def growth(what: str, small: Series, large: Series) -> None:
    """The cost of each further one at ``large`` by that at ``small``."""
    ours = verdict(statistics.median(large.ours_further) / statistics.median(small.ours_further), GROWTH)
    reference = quotient(large.reference_further, small.reference_further)
    print(f"growth of the cost of each further {what} from {small.count} to {large.count}: {ours}; the reference's own is {reference}", flush=True)


def summary(title: str, one: Series) -> None:
    """The ratio of the whole processes, the part of it that is not Ansible's output, and what else they used."""
    report(title, seconds(one.ours), seconds(one.reference))
    ready = statistics.median(run.ready for run in one.ours if run.ready is not None)
    ours, reference = (statistics.median(seconds(runs)) for runs in (one.ours, one.reference))
    print(
        f"  until the result is complete: ratio {ready / reference:.2f} ({ready:.3f} s); the other {ours - ready:.3f} s are "
        "Ansible's exit_json and the end of the process"
    )
    ours, reference = (statistics.median(run.processor for run in runs) for runs in (one.ours, one.reference))
    print(f"  processor time: ratio {ours / reference:.2f} ({ours:.3f} s to {reference:.3f} s)")
    report_memory("  peak memory", *(statistics.median(run.memory for run in runs) for runs in (one.ours, one.reference)))


def bench_fleets(chains: Chains, sizes: list[int], pairs: int) -> None:
    """Guests of the test driver. Needs neither the lab nor root."""
    small, large = min(sizes, key=lambda size: abs(size - SMALL)), max(sizes)
    found = {guests: chains.fleet(guests, pairs * (5 if guests <= 100 else 1), ["live"], (LIVE,)) for guests in sorted(sizes)}
    print(f"\ndisk_chain_info with sources [live] / fetching and parsing the same XML, chains of {LAYERS}")
    table("guest", list(found.values()))
    growth("guest", found[small], found[large])
    one = found[large]
    summary(f"whole process, {large} guests", one)
    print(f"  ratio of the whole processes: {verdict(statistics.median(seconds(one.ours)) / statistics.median(seconds(one.reference)), RATIO)}")
    middle = min(sizes, key=lambda size: abs(size - MIDDLE))
    both = chains.fleet(middle, pairs, None, (LIVE, INACTIVE))
    print("\nthe same with the default sources, two XML documents for each guest in both (no header is read: these are no guests of this host)")
    table("guest", [both])
    summary(f"whole process, {middle} guests", both)


def bench_images(chains: Chains, count: int, pairs: int) -> None:
    few = max(2, count // 10)
    found = [chains.images(few, pairs), chains.images(count, pairs)]
    print(f"\ndisk_chain_info with images / a serial loop of qemu-img info, on {os.cpu_count()} processors")
    table("image", found)
    growth("image", *found)
    summary(f"whole process, {count} images", found[-1])
