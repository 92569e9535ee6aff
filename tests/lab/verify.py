# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare a guest's disks with what it has acknowledged, as qemu-img and the image headers have them."""

from __future__ import annotations

import contextlib
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass

import guest as guests
from host import Lab, LabError
from ring import Acks, Findings, Ring, digest, examine, fill_digest

ALIVE_SECONDS = 15
TRIES = 3


@dataclass(frozen=True)
class View:
    """What one verification looks at: the guest's acknowledgements and an image for each disk number."""

    acks: tuple[int, ...]
    images: tuple[tuple[int, str, str], ...]


@dataclass(frozen=True)
class Verdict:
    """What became of the acknowledged writes."""

    acks: Acks
    findings: dict[int, Findings]

    @property
    def lost(self) -> int:
        return self.acks.taken_back + sum(found.lost for found in self.findings.values())

    @property
    def torn(self) -> int:
        return sum(found.torn for found in self.findings.values())

    @property
    def sound(self) -> bool:
        """Whether there was something to verify and all of it is right."""
        damaged = any(found.damage for found in self.findings.values())
        return self.acks.count > 0 and not (self.lost or self.torn or damaged)


def verify(lab: Lab, name: str, image: str | None, disk: str | None, expect_loss: bool) -> bool:
    """Print what became of a guest's acknowledged writes; return whether that is as expected."""
    facts = guests.record(lab, name)
    targets = [entry["target"] for entry in facts["disks"]]
    if disk and disk not in targets:
        raise LabError(f"guest '{name}' has no disk '{disk}', only {', '.join(targets)}")
    if image and not disk and len(targets) > 1:
        raise LabError(f"guest '{name}' has {len(targets)} disks: say with --disk which of them --image stands for")
    if not facts["slots"]:
        raise LabError(f"guest '{name}' never writes: there is nothing to verify")
    chosen = [targets.index(disk)] if disk else list(range(len(targets)))
    with paused(lab, name) as running:
        view, verdict = compare(lab, facts, chosen, image)
    report(targets, view, verdict)
    alive = not running or writes_on(lab, facts)
    print(f"{verdict.acks.count} writes acknowledged, {verdict.lost} lost")
    return verdict.acks.count > 0 and verdict.lost > 0 if expect_loss else verdict.sound and alive


def writes_on(lab: Lab, facts: dict) -> bool:
    """Say whether the guest acknowledges a further write after it was resumed."""
    try:
        guests.wait_acks(lab, facts, 1, ALIVE_SECONDS)
    except LabError as error:
        print(error)
        return False
    return True


@contextlib.contextmanager
def paused(lab: Lab, name: str):
    """Suspend a running guest, which makes QEMU flush its disks, and let it go on afterwards; yields whether it ran."""
    running = name in lab.virsh("list", "--state-running", "--name").split()
    if running:
        lab.virsh("suspend", name)
    try:
        yield running
    finally:
        if running:
            lab.virsh("resume", name)


def compare(lab: Lab, facts: dict, chosen: list[int], image: str | None) -> tuple[View, Verdict]:
    """Read acknowledgements, then images; again if a block job or somebody's resume changed either in between."""
    ring = Ring(facts["slots"], len(facts["disks"]))
    for dummy in range(TRIES):
        view = look(lab, facts, chosen, image)
        acks = digest(list(view.acks), ring)
        findings = {number: check(lab, facts, number, path, fmt, acks) for number, path, fmt in view.images}
        if look(lab, facts, chosen, image) == view:
            return view, Verdict(acks, findings)
    raise LabError(f"guest '{facts['name']}' does not keep still: somebody resumes it or changes its disks")


def look(lab: Lab, facts: dict, chosen: list[int], image: str | None) -> View:
    """Return the acknowledgements so far and the images to read."""
    if image:
        path, dummy, image_format = image.partition(",")
        images = [(chosen[0], path, image_format or guests.format_of(path))]
    else:
        active = active_images(lab, facts["name"])
        images = [(number, *active[facts["disks"][number]["target"]]) for number in chosen]
    return View(tuple(guests.acknowledged(lab, facts)), tuple(images))


def active_images(lab: Lab, name: str) -> dict[str, tuple[str, str]]:
    """Return path and format of each disk's active layer; from the persistent XML if the guest is off."""
    images = {}
    for disk in ET.fromstring(lab.virsh("dumpxml", name)).iterfind("devices/disk"):
        source = disk.find("source")
        path = source.get("file") or source.get("dev") if source is not None else None
        if path is None:
            raise LabError(f"a disk of guest '{name}' has no local file: say with --image and --disk what to read")
        images[disk.find("target").get("dev")] = (path, disk.find("driver").get("type"))
    return images


def check(lab: Lab, facts: dict, number: int, path: str, image_format: str, acks: Acks) -> Findings:
    """Read one disk through its image headers and compare it."""
    ring = Ring(facts["slots"], len(facts["disks"]))
    disk = facts["disks"][number]
    with tempfile.NamedTemporaryFile(dir=lab.state, prefix="verify-") as raw:
        lab.run("qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", path, raw.name)
        with open(raw.name, "rb") as content:
            findings = examine(content, number, ring, acks)
            if fill_digest(content, ring.end, disk["fill"]) != disk["fill_sha256"]:
                findings.damage.append("the fill of the base image has changed")
    return findings


def report(targets: list[str], view: View, verdict: Verdict) -> None:
    """Print a line for each disk, and one for what they have in common."""
    for number, path, image_format in view.images:
        found = verdict.findings[number]
        print(f"{targets[number]} {path} ({image_format}): "
              f"{found.present} slots right, {found.lost} lost, {found.torn} torn")
        for damage in found.damage:
            print(f"{targets[number]}: {damage}")
    if verdict.acks.taken_back:
        print(f"the guest started from older data: {verdict.acks.taken_back} of its writes were undone")
    print(f"{verdict.torn} torn")
