# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab host with one guest that writes, and the process inside of it that runs modules and reads what became of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import subprocess
from pathlib import Path

import cli  # the lab's own, which is on PYTHONPATH
import guest as guests
import host
import verify

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[4]
PYTHON = "/usr/bin/python3"
NAME, OTHER = "p1", "other1"
SIZE, SLOTS, FILL = 4, 16, 1  # MiB, chunks, MiB
CELL, FIRST = 32 << 10, 3 << 20  # the cells are behind the ring and the fill
OTHER_XML = """<domain type='qemu'><name>%s</name><memory unit='KiB'>2048</memory><os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices>%s</devices></domain>"""
OTHER_DISK = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/><target dev='%s' bus='virtio'/></disk>"


class Wrong(Exception):
    """A prediction, a module's word, or the data is not right."""


class World:
    def __init__(self, lab: str, ansible: str, scratch: Path):
        self.lab = host.Lab.named(lab)
        (scratch / "ansible").symlink_to(ansible)
        paths = [str(scratch), str(TREE), str(HERE.parent / "faults")]
        environment = dict(os.environ, PYTHONPATH=":".join(paths), PYTHONDONTWRITEBYTECODE="1")
        self.process = subprocess.Popen(
            [self.lab.enter, PYTHON, str(HERE / "reader.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def ask(self, do: str, **request) -> dict:
        self.process.stdin.write(json.dumps(dict(request, do=do)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process inside has ended"}
        if "error" in answer:
            raise Wrong("%s: %s" % (do, answer["error"]))
        return answer

    def shell(self, command: str) -> str:
        answer = self.ask("shell", command=command)
        if answer["status"]:
            raise Wrong("%s: %s" % (command, answer["err"]))
        return answer["out"]

    # The guest

    def make(self, setup: dict) -> frozenset:
        """A fresh guest; the images that another guest needs, too."""
        self.remove()
        layers = ",".join("l%d" % number for number in range(setup["layers"]))
        words = "guest %s add %s --size %d --slots %d --fill %d --delay 1" % (self.lab.name, NAME, SIZE, SLOTS, FILL)
        words += " --disks %d --layers %s --base-format %s" % (setup["disks"], layers, setup["base"])
        made = guests.add(self.lab, cli.parser().parse_args(words.split()))
        bases = [disk["chain"][-1] for disk in made["disks"]] if setup["shared"] else []
        if bases:
            self._other(bases, setup["base"])
        if setup["define"] != "as it is":
            self.ask("define", guest=NAME, how=setup["define"])
        if not setup["running"]:
            self.shell("virsh destroy %s" % NAME)
        return frozenset(bases)

    def _other(self, bases: list, image_format: str) -> None:
        """A guest that is off, with overlays on the same bases."""
        disks = ""
        for base, target in zip(bases, guests.TARGETS):
            path = "%s/%s-%s.qcow2" % (guests.IMAGES, OTHER, target)
            self.shell("qemu-img create -q -f qcow2 -b %s -F %s %s" % (base, image_format, path))
            disks += OTHER_DISK % (path, target)
        self.shell("virsh define /dev/stdin <<< %s" % shlex.quote(OTHER_XML % (OTHER, disks)))

    def remove(self) -> None:
        host.daemon_start(self.lab)
        with contextlib.suppress(host.LabError):
            guests.remove(self.lab, NAME)
        self.shell("virsh undefine %s >/dev/null 2>&1; rm -rf /srv/fast/* %s/%s-*" % (OTHER, guests.IMAGES, OTHER))
        self.shell("rm -f %s/%s[-.]*" % (guests.IMAGES, NAME))

    def restart_daemon(self) -> None:
        host.daemon_end(self.lab, "KILL")
        host.daemon_start(self.lab)

    def run(self, module: str, args: dict, check: bool = False) -> dict:
        answer = self.ask("run", module=module, args=dict(args, _ansible_check_mode=check))
        return answer["result"]

    def look(self) -> dict:
        return self.ask("look", guest=NAME)

    def acks(self, more: int) -> None:
        try:
            guests.wait_acks(self.lab, guests.record(self.lab, NAME), more, 30)
        except host.LabError as error:
            raise Wrong(str(error)) from error

    def log_size(self) -> int:
        """Of the guest's log of acknowledged writes, in bytes."""
        return self._log().stat().st_size

    def cut_log(self, size: int) -> None:
        """What a guest that was taken back has acknowledged later was never so."""
        os.truncate(self._log(), size)

    def _log(self) -> Path:
        return self.lab.inside(guests.record(self.lab, NAME)["acks"])

    def verified(self) -> None:
        """Every write that the guest acknowledged is there."""
        with contextlib.redirect_stdout(io.StringIO()) as told:
            sound = verify.verify(self.lab, NAME, None, None, False)
        if not sound:
            raise Wrong("the verifier: %s" % told.getvalue().replace("\n", "; "))
