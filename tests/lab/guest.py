# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tiny guests of a lab host: a boot sector or a small Linux, a chain of images for each disk, and a persistent domain."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import ext4
import linux
from host import CLEAN_ENV, Lab, LabError, wait_for
from ring import SECTOR, Ring, boot_sector, fill_digest, parse

MIB = 1 << 20
IMAGES = "/var/lib/libvirt/images"
TARGETS = ("vda", "vdb", "vdc", "vdd")
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
FACTS_SECTOR = 1
START_SECONDS = 30
DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='KiB'>{memory}</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type>{boot}</os>
  {features}
  <on_reboot>destroy</on_reboot>
  <devices>
{disks}
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'><source path={acks} append='on'/><target port='0'/></serial>{devices}
  </devices>
</domain>
"""
BARE = {"memory": 2048, "boot": "", "features": "", "devices": ""}
# The firmware offers the guest only disks that have a place in the boot order.
DISK = """\
    <disk type='file' device='disk'>
      <driver name='qemu' type='{format}'/>
      <source file={path}/><target dev='{target}' bus='virtio'/>
      <boot order='{order}'/>
    </disk>"""


def record(lab: Lab, name: str) -> dict:
    """Return the facts that `add` wrote down about a guest."""
    path = lab.state / "guests" / f"{name}.json"
    if not path.exists():
        raise LabError(f"lab host {lab.name} has no guest '{name}'")
    return json.loads(path.read_text(encoding="utf-8"))


def acknowledged(lab: Lab, facts: dict) -> list[int]:
    """Return the sequence numbers that a guest has acknowledged so far."""
    try:
        return parse(lab.inside(facts["acks"]).read_bytes())
    except FileNotFoundError:
        return []


def wait_acks(lab: Lab, facts: dict, more: int, seconds: float) -> int:
    """Wait for that many further acknowledgements; return how many there are in all."""
    first = len(acknowledged(lab, facts))
    wait_for(lambda: len(acknowledged(lab, facts)) >= first + more, seconds)
    now = len(acknowledged(lab, facts))
    if now < first + more:
        raise LabError(f"guest '{facts['name']}' acknowledged {now - first} writes in {seconds:g} s, not {more}")
    return now


def add(lab: Lab, options) -> dict:
    """Make a guest's images, define it, start it and wait for its first writes; return its facts."""
    if (lab.state / "guests" / f"{options.guest}.json").exists():
        raise LabError(f"lab host {lab.name} has a guest '{options.guest}' already")
    lab.inside("/")
    layers = layer_names(options)
    templates = [template_facts(lab, path) for path in options.template or []]
    if templates and len(templates) != options.disks:
        raise LabError(f"{options.disks} disks need as many --template, not {len(templates)}")
    slots = templates[0]["slots"] if templates else options.slots
    if any(facts["slots"] != slots for facts in templates):
        raise LabError("the templates differ in their slots")
    if any(facts["linux"] != options.linux for facts in templates):
        raise LabError("a Linux guest needs --template of a Linux guest, and the other one of the other")
    ring = Ring(slots, options.disks)
    machine = linux.machine(lab, options, slots) if options.linux else BARE
    facts = {"name": options.guest, "slots": slots, "acks": f"{IMAGES}/{options.guest}.acks", "linux": options.linux,
             "disks": []}
    made: list[str] = [linux.console(options.guest)] if options.linux else []
    lab.run("mkdir", "-p", "--", options.dir)
    try:
        for number in range(options.disks):
            template = (options.template[number], templates[number]) if templates else None
            facts["disks"].append(make_disk(lab, options, ring, number, template, layers, made))
        if not options.linux:
            boot = boot_sector(assembled(lab), ring, options.delay)
            write_sector(lab, facts["disks"][0]["chain"][0], facts["disks"][0]["format"], 0, boot)
        launch(lab, options, facts, machine)
    except BaseException:
        with contextlib.suppress(LabError):
            lab.run("rm", "-f", "--", facts["acks"], *made)
        raise
    facts["made"] = made
    (lab.state / "guests" / f"{options.guest}.json").write_text(json.dumps(facts), encoding="utf-8")
    return facts


def launch(lab: Lab, options, facts: dict, machine: dict) -> None:
    """Define and start a guest as its options say, and see every disk written once and the agent answer."""
    disks = "\n".join(DISK.format(**disk, path=quoteattr(disk["chain"][0]), order=order)
                      for order, disk in enumerate(facts["disks"], 1))
    xml = DOMAIN.format(name=escape(facts["name"]), disks=disks, acks=quoteattr(facts["acks"]), **machine)
    with scratch(lab, xml.encode()) as path:
        if not options.transient:
            lab.virsh("define", path)
        try:
            if not options.start:
                return
            if options.transient:
                lab.virsh("create", path)
            else:
                lab.virsh("start", facts["name"])
            if facts["slots"]:
                wait_acks(lab, facts, len(facts["disks"]), linux.START_SECONDS if options.linux else START_SECONDS)
            if options.linux and options.agent == "runs":
                linux.wait_agent(lab, facts["name"])
        except BaseException:
            undefine(lab, facts["name"])
            raise


def remove(lab: Lab, name: str) -> None:
    """End a guest and delete the images that `add` made for it, unless another guest was made on them."""
    facts = record(lab, name)
    undefine(lab, name)
    path = lab.state / "guests" / f"{name}.json"
    path.unlink()
    others = [json.loads(other.read_text(encoding="utf-8")) for other in path.parent.glob("*.json")]
    used = {image for other in others for disk in other["disks"] for image in disk["chain"]}
    lab.run("rm", "-f", "--", facts["acks"], *(image for image in facts["made"] if image not in used))


def undefine(lab: Lab, name: str) -> None:
    """End a guest and forget it, also if it is half gone."""
    if name in lab.virsh("list", "--name").split():
        lab.virsh("destroy", name)
    if name in lab.virsh("list", "--all", "--name").split():
        lab.virsh("undefine", name, "--managed-save", "--snapshots-metadata", "--checkpoints-metadata")


def layer_names(options) -> list[str]:
    """Return the names of the layers to make, base first."""
    if not re.fullmatch(NAME, options.guest):
        raise LabError(f"'{options.guest}' is no name for a guest: use letters, digits, dots, dashes and underscores")
    names = (options.layers or ("current1" if options.template else "template,current1")).split(",")
    if len(set(names)) < len(names) or not all(re.fullmatch(NAME, name) for name in names):
        raise LabError(f"--layers {options.layers}: use different names, of letters, digits, dots, dashes, underscores")
    if not options.dir.startswith("/"):
        raise LabError(f"--dir {options.dir} is no absolute path")
    return names


def make_disk(lab: Lab, options, ring: Ring, number: int, template, names: list[str], made: list[str]) -> dict:
    """Make one disk's chain; `template` is an existing base and its facts, or None for a base of its own."""
    target = TARGETS[number]
    suffix = f"-{target}" if number else ""
    chain: list[tuple[str, str]] = []
    if template:
        path, content = template
        chain.append((path, content["format"]))
    for name in names:
        image_format = "qcow2" if chain else options.base_format
        path = f"{options.dir}/{options.guest}-{name}{suffix}.{image_format}"
        if os.path.lexists(lab.inside(path)):
            raise LabError(f"{path} exists already in lab host {lab.name}")
        made.append(path)
        if chain:
            below, below_format = chain[-1]
            lab.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", below_format, path)
        else:
            content = make_base(lab, path, image_format, ring, options)
        chain.append((path, image_format))
    return {"target": target, "format": chain[-1][1], "chain": [path for path, dummy in reversed(chain)],
            "fill": content["fill"], "fill_sha256": content["fill_sha256"]}


def make_base(lab: Lab, path: str, image_format: str, ring: Ring, options) -> dict:
    """Make an image that holds nothing but its facts and the incompressible fill behind the ring."""
    fill = options.fill * MIB
    need = ring.end + fill + (ext4.OVERHEAD if options.linux else 0)
    if need > options.size * MIB:
        raise LabError(f"{ring.slots} slots and {options.fill} MiB of fill need {-(-need // MIB)} MiB, "
                       f"the disk has {options.size}")
    with tempfile.TemporaryDirectory(dir=lab.state, prefix="base-") as work:
        raw = Path(work) / "raw"
        with raw.open("w+b") as file:
            file.truncate(ring.end + fill)
            file.seek(ring.end)
            for dummy in range(options.fill):
                file.write(os.urandom(MIB))
            content = {"slots": ring.slots, "fill": fill, "fill_sha256": fill_digest(file, ring.end, fill), "linux": options.linux}
        if options.linux:
            raw = ext4.wrap(raw, options.size * MIB)
        with raw.open("r+b") as file:
            file.truncate(options.size * MIB)
            # ext4 leaves the first KiB alone.
            file.seek(FACTS_SECTOR * SECTOR)
            file.write(json.dumps(content).encode())
        lab.run("qemu-img", "convert", "-f", "raw", "-O", image_format, str(raw), path)
    return content


def template_facts(lab: Lab, path: str) -> dict:
    """Return the facts that `make_base` wrote into an image, and the image's format."""
    if not path.startswith("/") or not lab.inside(path).is_file():
        raise LabError(f"--template {path} is no absolute path of a file in lab host {lab.name}")
    image_format = format_of(path)
    with tempfile.NamedTemporaryFile(dir=lab.state, prefix="facts-") as sector:
        lab.run("qemu-img", "dd", "-U", "-f", image_format, "-O", "raw", f"bs={SECTOR}", f"count={FACTS_SECTOR + 1}",
                f"if={path}", f"of={sector.name}")
        content = Path(sector.name).read_bytes()[FACTS_SECTOR * SECTOR:].rstrip(b"\0")
    try:
        return {**json.loads(content), "format": image_format}
    except ValueError:
        raise LabError(f"--template {path} was not made by `lab guest add`") from None


def format_of(path: str) -> str:
    """Return the format that an image's name stands for; nothing is ever probed."""
    known = {".qcow2": "qcow2", ".raw": "raw", ".img": "raw"}
    suffix = Path(path).suffix
    if suffix not in known:
        raise LabError(f"the name of {path} does not tell its format; say it")
    return known[suffix]


def write_sector(lab: Lab, path: str, image_format: str, number: int, data: bytes) -> None:
    """Write one sector of an image that no guest uses."""
    with scratch(lab, data) as source:
        lab.run("qemu-io", "-f", image_format, "-c", f"write -q -s {source} {number * SECTOR} {SECTOR}", path)


@contextlib.contextmanager
def scratch(lab: Lab, data: bytes):
    """Hold data in a file that the lab host sees under the same path."""
    with tempfile.NamedTemporaryFile(dir=lab.state, prefix="tmp-") as file:
        file.write(data)
        file.flush()
        yield file.name


def assembled(lab: Lab) -> bytes:
    """Return the boot sector, made from its source at the lab's first use."""
    binary = lab.state / "bootwriter.bin"
    if not binary.exists():
        source = Path(__file__).resolve().parent / "guest" / "bootwriter.S"
        with tempfile.TemporaryDirectory(dir=lab.state) as work:
            link = ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary"]
            subprocess.run(["as", "--32", "-o", f"{work}/o", str(source)], check=True, env=CLEAN_ENV)
            subprocess.run([*link, "-o", f"{work}/bin", f"{work}/o"], check=True, env=CLEAN_ENV)
            os.replace(f"{work}/bin", binary)
    return binary.read_bytes()
