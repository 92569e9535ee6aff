# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare a guest's disks with what it has acknowledged, as qemu-img and the image headers have them."""

from __future__ import annotations

import contextlib
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import ext4
import guest as guests
from host import Lab, LabError
from ring import Acks, Findings, Ring, digest, examine, fill_digest, past

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


def verify(lab: Lab, name: str, image: str | None, disk: str | None, expect_loss: bool,
           after: int | None = None, recovery: bool | None = None) -> bool:
    """Print what became of a guest's acknowledged writes; return whether that is as expected.

    `after`: the image is of an earlier moment, but after so many writes. `recovery`: whether journals are expected to need one.
    """
    facts = guests.record(lab, name)
    targets = [entry["target"] for entry in facts["disks"]]
    refuse(facts, targets, image, disk)
    if after is not None and not image:
        raise LabError("--after wants the --image of an earlier moment")
    if recovery is not None and not facts["linux"]:
        raise LabError(f"guest '{name}' is no Linux guest: it has no journal")
    chosen = [targets.index(disk)] if disk else list(range(len(targets)))
    with paused(lab, name) as running:
        view, verdict = compare(lab, facts, chosen, image, after)
    report(targets, view, verdict)
    alive = not running or writes_on(lab, facts)
    print(f"{verdict.acks.count} writes acknowledged, {verdict.lost} lost")
    if recovery is not None and any(found.recovery != recovery for found in verdict.findings.values()):
        return False
    return verdict.acks.count > 0 and verdict.lost > 0 if expect_loss else verdict.sound and alive


def refuse(facts: dict, targets: list[str], image: str | None, disk: str | None) -> None:
    """Refuse a question about what the guest does not have."""
    name = facts["name"]
    if disk and disk not in targets:
        raise LabError(f"guest '{name}' has no disk '{disk}', only {', '.join(targets)}")
    if image and not disk and len(targets) > 1:
        raise LabError(f"guest '{name}' has {len(targets)} disks: say with --disk which of them --image stands for")
    if not facts["slots"]:
        raise LabError(f"guest '{name}' never writes: there is nothing to verify")


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


def compare(lab: Lab, facts: dict, chosen: list[int], image: str | None, after: int | None) -> tuple[View, Verdict]:
    """Read acknowledgements, then images; again if a block job or somebody's resume changed either in between."""
    for dummy in range(TRIES):
        view = look(lab, facts, chosen, image)
        findings = {}
        for number, path, image_format in view.images:
            acks, findings[number] = check(lab, facts, number, path, image_format, list(view.acks), after)
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


def check(lab: Lab, facts: dict, number: int, path: str, image_format: str, sequences: list[int],
          after: int | None) -> tuple[Acks, Findings]:
    """Read one disk through its image headers and compare it with what was acknowledged before the moment that it is of."""
    ring = Ring(facts["slots"], len(facts["disks"]))
    disk = facts["disks"][number]
    with tempfile.TemporaryDirectory(dir=lab.state, prefix="verify-") as work:
        raw, recovery, damage = Path(work) / "raw", None, []
        lab.run("qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", path, str(raw))
        if facts["linux"]:
            raw, recovery, damage = ext4.unwrap(raw, ring.end + disk["fill"])
        with raw.open("rb") as content:
            acks = digest(sequences if after is None else past(content, number, ring, sequences, after), ring)
            findings = examine(content, number, ring, acks)
            if fill_digest(content, ring.end, disk["fill"]) != disk["fill_sha256"]:
                findings.damage.append("the fill of the base image has changed")
    findings.recovery = recovery
    findings.damage += damage
    return acks, findings


def report(targets: list[str], view: View, verdict: Verdict) -> None:
    """Print a line for each disk, and one for what they have in common."""
    for number, path, image_format in view.images:
        found = verdict.findings[number]
        print(f"{targets[number]} {path} ({image_format}): "
              f"{found.present} slots right, {found.lost} lost, {found.torn} torn")
        if found.recovery is not None:
            print(f"{targets[number]}: the journal {'has to be recovered' if found.recovery else 'is clean'}")
        for damage in found.damage:
            print(f"{targets[number]}: {damage}")
    if verdict.acks.taken_back:
        print(f"the guest started from older data: {verdict.acks.taken_back} of its writes were undone")
    print(f"{verdict.torn} torn")
