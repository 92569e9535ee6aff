# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""stage.py LAB STORY...: tells stories, each a Python file with functions in STORIES, on a lab host that is up. Any that is not true ends it.

The modules run in a process inside of the lab, which starts nothing anew for each (tests/faults does it in the same way): a run takes a
tenth of what a task takes. What they say is held against the domain's XML, the images' headers and contents, and libvirt's snapshots.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import ansible
import scene  # of tests/faults, which is on PYTHONPATH
from host import Lab

HERE = Path(__file__).resolve().parent
IMAGES, FAST = "/var/lib/libvirt/images", "/srv/fast"
NOTE = "{https://livestorage.github.io/libvirt/snapshots/1}"


class Stage(scene.Scene):
    """A lab host, modules in it, and other readers of what became of its guests. A guest is called by its name in every call."""

    def __init__(self, lab: str, scratch: Path):
        self.lab = Lab.named(lab)
        (scratch / "ansible").symlink_to(os.path.dirname(ansible.__file__))
        paths = [scratch, scene.TREE, scene.HERE]
        environment = dict(os.environ, PYTHONPATH=":".join(map(str, paths)), PYTHONDONTWRITEBYTECODE="1")
        command = [self.lab.enter, scene.PYTHON, str(HERE / "within.py")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.serial = itertools.count(1)
        self.guest, self.guests, self.mended = "", set(), []

    def add(self, name: str, *options: str) -> str:
        """A guest, which writes unless its options say otherwise."""
        subprocess.run([scene.LAB, "guest", self.lab.name, "add", name, *options], check=True, stdout=subprocess.DEVNULL)
        self.guest = name
        self.guests.add(name)
        return name

    def small(self, path: str, size: str) -> None:
        """A file system that is full soon."""
        self.shell("mkdir -p %s && mount -t tmpfs -o size=%s tmpfs %s" % (path, size, path))
        self.mended.append("umount %s" % path)

    def device(self, size: str) -> str:
        """A loop device: these belong to the whole machine."""
        device = self.shell("truncate -s %s %s/loop.img && losetup -f --show %s/loop.img" % (size, FAST, FAST))
        self.mended.append("losetup -d %s" % device)
        return device

    def tidy(self) -> None:
        """Take away what a story has set up. Its guests stay for the next one, on images that are not in /srv/fast."""
        while self.mended:
            self.shell(self.mended.pop())
        self.shell("rm -rf %s/*" % FAST)

    def clean(self) -> None:
        while self.guests:
            name = self.guests.pop()
            subprocess.run([scene.LAB, "guest", self.lab.name, "remove", name], check=True)
            self.shell("rm -f %s/%s[-.]*" % (IMAGES, name))
        self.tidy()

    def end(self, guest: str) -> None:
        """Switch a guest off once it has written a little more."""
        self.acks(2)
        self.shell("virsh destroy %s" % guest)

    # Modules

    def call(self, module: str, check: bool = False, fault: dict | None = None, **arguments) -> dict:
        """What a module says; empty where it was killed."""
        fault = dict(fault, guest=self.guest) if fault else None
        answer = self.ask("run", module=module, args=dict(arguments, _ansible_check_mode=check), fault=fault)
        if fault and answer["result"]:
            true(answer["struck"], "the moment came", answer["result"])
        result = answer["result"] or {}
        result["warnings"] = [warning if isinstance(warning, str) else warning["event"]["msg"] for warning in result.get("warnings", [])]
        return result

    def done(self, module: str, wanted: dict | None = None, **arguments) -> dict:
        """Preview, do, preview again, do again. ``wanted``: the chains that come out, as {disk: [path, ...]}, active layer first."""
        guest = arguments.get("name")
        before = self.standing(guest)
        preview = self.call(module, True, **arguments)
        true(preview.get("changed") and not preview.get("failed"), "the preview changes something", preview)
        same(self.standing(guest), before, "the preview changed nothing", preview)
        result = self.call(module, **arguments)
        true(result.get("changed") and not result.get("failed") and result["rolled_back"] is None, "it succeeds", result)
        same(chains(result), chains(preview), "it is what was predicted", result)
        same([one["does"] for one in result["steps"]], [one["does"] for one in preview["steps"]], "the steps are those that were told", result)
        true(all(one["result"] == "done" for one in result.get("disk_results", [])), "all disks are done", result)
        if wanted is not None:
            same({disk: chains(result)[disk] for disk in wanted}, wanted, "it is the chain that was wanted", result)
        for disk, chain in self.headers(guest).items() if guest else ():
            same(chain, chains(result)[disk], "the headers of %s say the same" % disk, result)
        self.again(module, **arguments)
        return result

    def again(self, module: str, **arguments) -> dict:
        """There is nothing left to do, and nothing is done."""
        before = self.standing(arguments.get("name"))
        for check in (True, False):
            result = self.call(module, check, **arguments)
            true(result.get("changed") is False and not result.get("failed") and result["steps"] == [], "nothing is left to do", result)
        same(self.standing(arguments.get("name")), before, "nothing was changed", result)
        return result

    def refused(self, code: str, says: str, module: str, **arguments) -> None:
        """In check mode and for real, and nothing is changed."""
        before = self.standing(arguments.get("name"))
        for check in (True, False):
            result = self.call(module, check, **arguments)
            true(
                result.get("failed") and re.fullmatch(code, result.get("code", "")) and re.search(says, result["msg"]),
                "it is refused with %s, %s" % (code, says),
                result,
            )
            true(result["changed"] is False and result["steps"] == [] and result["rolled_back"] is None, "nothing was begun", result)
        same(self.standing(arguments.get("name")), before, "nothing was changed", result)

    # Other readers

    def standing(self, guest: str | None) -> list:
        """What must not change: XML, snapshots, and files, those in which no guest writes to the last bit."""
        runs = self.shell("virsh list --name").strip()
        files = self.shell("ls %s %s %s | grep -v -e '[.]acks' -e ^total" % ("-1" if runs else "-lin --time-style=full-iso", IMAGES, FAST))
        if guest is None:
            return [files]
        xml = self.shell("virsh dumpxml %s; virsh dumpxml --inactive %s; virsh snapshot-list %s --tree" % (guest, guest, guest))
        return [files, re.sub(r"\n *<metadata/>", "", xml)]

    def version(self) -> tuple:
        """libvirt's own."""
        return tuple(map(int, self.shell("virsh version --daemon | sed -n 's/^Using library: libvirt //p'").split(".")))

    def paths(self, guest: str, now: bool = True) -> dict:
        """{disk: [path, ...]} as far as the XML names them; of the next start unless ``now``."""
        root = ET.fromstring(self.shell("virsh dumpxml %s %s" % ("" if now else "--inactive", guest)))
        return {disk.find("target").get("dev"): spelled(disk) for disk in root.iterfind("devices/disk")}

    def headers(self, guest: str) -> dict:
        """{disk: [path, ...]} by the images' own headers."""
        return {disk: self.below(found[0]) for disk, found in self.paths(guest).items() if found[0].startswith("/")}

    def below(self, path: str) -> list:
        device = path.startswith("/dev/") and self.shell("head -c 3 %s | tr -cd A-Z" % path) != "QFI"
        format = "raw" if path.endswith(".raw") or device else "qcow2"
        told = self.shell("qemu-img info -U --backing-chain -f %s --output json %s" % (format, path))
        return [plain(one["filename"]) for one in json.loads(told)]

    def shots(self, guest: str) -> dict:
        """What libvirt keeps, as {name: ({disk: overlay}, {disk: what is below it})}."""
        found = {}
        for name in self.shell("virsh snapshot-list %s --name" % guest).split():
            root = ET.fromstring(self.shell("virsh snapshot-dumpxml %s %s" % (guest, name)))
            overlays = {disk.get("name"): place(disk.find("source")) for disk in root.iterfind("disks/disk[@snapshot='external']")}
            disks = {disk.find("target").get("dev"): place(disk.find("source")) for disk in root.iterfind("domain/devices/disk")}
            found[name] = (overlays, {disk: path for disk, path in disks.items() if disk in overlays})
        return found

    def noted(self, guest: str) -> list:
        """The names of the snapshots in our note."""
        root = ET.fromstring(self.shell("virsh dumpxml --inactive %s" % guest))
        return [one.get("name") for one in root.iterfind("metadata/%ssnapshots/%ssnapshot" % (NOTE, NOTE))]

    def content(self, *paths: str) -> list:
        """The SHA-256 of what a guest would see of each image."""
        convert = f"qemu-img convert -U -f qcow2 -O raw %s {FAST}/content && sha256sum < {FAST}/content && rm {FAST}/content"
        return [self.shell(convert % path) for path in paths]

    def seen(self, guest: str) -> list:
        """The same of each disk of a guest that is off."""
        return self.content(*(found[0] for found in self.paths(guest).values()))

    def poke(self, guest: str, disk: int, what: str) -> None:
        """Write bytes, as qemu-io takes them, as if the running guest had done it."""
        hmp = 'qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "%%s"' % disk
        for words in ("write -P 0x5a %s" % what, "flush"):
            self.shell("virsh qemu-monitor-command %s --hmp '%s'" % (guest, hmp % words))

    def cold_start(self, guest: str) -> None:
        """End the guest if it runs, and start it: every write is there, and it goes on."""
        self.guest = guest
        self.shell("virsh destroy %s; virsh start %s" % (guest, guest))
        self.acks(1)
        self.verified()


def chains(result: dict) -> dict:
    """{disk: [path, ...]}, of a guest or of images by themselves."""
    found = {one["path"]: one["chain"] for one in result.get("images", [])}
    found.update({disk["disk"]: disk["chain"] for domain in result["domains"] for disk in domain["disks"]})
    return {name: [layer["path"] or layer["name"] for layer in chain] for name, chain in found.items()}


def outcome(result: dict) -> dict:
    """{disk: how far it is}."""
    return {one["disk"]: one["result"] for one in result["disk_results"]}


def spelled(element) -> list:
    found = []
    while element is not None and element.find("source") is not None:
        found.append(place(element.find("source")))
        element = element.find("backingStore")
    return found


def place(source) -> str:
    return source.get("file") or source.get("dev") or source.get("name")


def plain(name: str) -> str:
    options = json.loads(name[len("json:") :]) if name.startswith("json:") else {"filename": name}
    while "filename" not in options:
        options = options["file"]
    return options["filename"].rpartition("/")[2] if "://" in options["filename"] else options["filename"]


def true(holds, claim: str, result: dict | None = None) -> None:
    if not holds:
        kept = {key: value for key, value in (result or {}).items() if key not in ("domains", "diff", "invocation")}
        raise scene.Wrong("not true: %s. Said: %s" % (claim, json.dumps(kept, indent=1)))


def same(one, two, claim: str, result: dict | None = None) -> None:
    true(one == two, "%s: %s and %s" % (claim, one, two), result)


def tell(stage: Stage, path: str) -> None:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for story in module.STORIES:
        begun = time.monotonic()
        try:
            story(stage)
        except scene.Wrong as error:
            raise scene.Wrong("%s: %s" % (story.__name__, error)) from error
        stage.tidy()
        print("%s: %s" % (story.__name__, scene.spent(begun)), flush=True)
    stage.clean()


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        stage = Stage(sys.argv[1], Path(scratch))
        try:
            for path in sys.argv[2:]:
                tell(stage, path)
        except scene.Wrong as error:
            print("WRONG in %s" % error, flush=True)
            return 1
        finally:
            with contextlib.suppress(scene.Wrong):
                stage.clean()
            stage.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
