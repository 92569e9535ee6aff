# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kill libvirtd in the middle of a pivot, for real, until it comes back with what was asked for. Runs inside a lab host.

stale_pivot.py GUEST DISK DIRECTORY FORMAT OUTCOME: puts an overlay on the disk, so that its definition names a chain, copies
all of it into one image of that format, pivots, kills, and starts libvirtd again. In each outcome QEMU writes to the copy.
stale: libvirt has the overlay and a mirror with ready='pivot', and no job. silent: libvirt has the overlay, no mirror and no
job. orphan: the guest is off for libvirt. Prints old, new, pid (of QEMU) and how it came to it as JSON. After any other
outcome the guest goes on from the copy, and nothing that it wrote is lost.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET

import libvirt
import libvirt_qemu

TRIES = 80
SECONDS = 30
# As the lab starts it (tests/lab/host.py), which finds its libvirtd by this file.
PIDFILE = "/run/libvirtd.pid"
DAEMON = ["libvirtd", "--daemon", "--pid-file", PIDFILE]
# Milliseconds between the pivot (silent: its call, else its return) and the kill at the first try, and what libvirt's own
# record of the guest says after a kill that came too early. Any other outcome means that it came too late.
FIRST = {"silent": 1.5, "stale": 0.5, "orphan": 1.5}
EARLY = {"silent": ("ready='yes'",), "stale": ("ready='pivot'",), "orphan": ("ready='pivot'",)}


class Guest:
    """A guest's disk, as libvirt and QEMU have it."""

    def __init__(self, name: str, target: str):
        self.name, self.target = name, target
        self.connect()
        self.pid = self.process()

    def connect(self) -> None:
        self.connection = until(attempt(lambda: libvirt.open("qemu:///system")), "libvirtd does not answer")
        self.domain = self.connection.lookupByName(self.name)

    def process(self) -> int:
        with open("/run/libvirt/qemu/%s.pid" % self.name, encoding="ascii") as file:
            return int(file.read())

    def record(self) -> str:
        """What libvirt would find after a restart."""
        with open("/run/libvirt/qemu/%s.xml" % self.name, encoding="utf-8") as file:
            return file.read()

    def disk(self, flags: int = 0) -> ET.Element:
        disks = ET.fromstring(self.domain.XMLDesc(flags)).iterfind("devices/disk")
        return next(one for one in disks if one.find("target").get("dev") == self.target)

    def path(self, flags: int = 0) -> str:
        return self.disk(flags).find("source").get("file")

    def ready(self) -> str | None:
        mirror = self.disk().find("mirror")
        return None if mirror is None else mirror.get("ready", "no")

    def written(self) -> str:
        """The image that QEMU writes to."""
        alias = self.disk().find("alias").get("name")
        blocks = json.loads(libvirt_qemu.qemuMonitorCommand(self.domain, '{"execute": "query-block"}', 0))["return"]
        return next(one["inserted"]["file"] for one in blocks if alias in one["qdev"].split("/"))

    def look(self, old: str, new: str) -> str:
        if not self.domain.isActive():
            return "orphan" if alive(self.pid) else "off"
        if self.domain.blockJobInfo(self.target):
            return "open"
        if self.written() != new:
            return "wrong"
        live, ready = self.path(), self.ready()
        if live == old:
            return {"pivot": "stale", None: "silent"}.get(ready, "wrong")
        return "pivoted" if (live, ready) == (new, None) else "wrong"

    def outcome(self, old: str, new: str) -> str:
        """What it is like once libvirt has done all that it does after its start."""
        seen = []

        def settled() -> bool:
            with contextlib.suppress(libvirt.libvirtError):
                seen.append(self.look(old, new))
            return len(seen) > 2 and len(set(seen[-3:])) == 1

        until(settled, "guest %s does not settle" % self.name, 0.1)
        return seen[-1]

    def overlay(self, path: str) -> None:
        xml = "<domainsnapshot><disks><disk name='%s' type='file'><source file='%s'/></disk></disks></domainsnapshot>" % (self.target, path)
        self.domain.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA)

    def copy(self, path: str, image_format: str) -> None:
        xml = "<disk type='file'><source file='%s'/><driver type='%s'/></disk>" % (path, image_format)
        self.domain.blockCopy(self.target, xml, {}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
        until(lambda: self.ready() == "yes", "the copy to %s does not become ready" % path)

    def pivot_and_kill(self, at_once: bool, milliseconds: float) -> None:
        """Pivot, and kill libvirtd that long after the call began (at_once) or returned."""
        with open(PIDFILE, encoding="ascii") as file:
            daemon = int(file.read())

        def pivot() -> None:
            with contextlib.suppress(libvirt.libvirtError):
                self.domain.blockJobAbort(self.target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT | libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC)

        call = threading.Thread(target=pivot)
        call.start()
        if not at_once:
            call.join()
        time.sleep(milliseconds / 1000)
        os.kill(daemon, signal.SIGKILL)
        call.join()
        until(lambda: not alive(daemon), "libvirtd does not end")

    def go_on_from(self, path: str, image_format: str) -> None:
        """The way out of each of them: the definition first, then a cold start."""
        root = ET.fromstring(self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        disk = next(one for one in root.iterfind("devices/disk") if one.find("target").get("dev") == self.target)
        disk.find("source").set("file", path)
        disk.find("driver").set("type", image_format)
        for backing in disk.findall("backingStore"):
            disk.remove(backing)
        self.connection.defineXML(ET.tostring(root, encoding="unicode"))
        if self.domain.isActive():
            self.domain.destroy()
        elif alive(self.pid):
            os.kill(self.pid, signal.SIGTERM)
        until(lambda: not alive(self.pid), "QEMU does not end")
        self.domain.create()
        self.pid = self.process()


def alive(pid: int) -> bool:
    try:
        with open("/proc/%d/stat" % pid, encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def attempt(call):
    """The call, which returns None where libvirt refuses."""

    def tried():
        with contextlib.suppress(libvirt.libvirtError):
            return call()
        return None

    return tried


def until(check, complaint: str, pause: float = 0.02):
    deadline = time.monotonic() + SECONDS
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() > deadline:
            raise SystemExit("%s within %d s" % (complaint, SECONDS))
        time.sleep(pause)


def main() -> None:
    name, target, directory, image_format, wanted = sys.argv[1:]
    libvirt.registerErrorHandler(lambda *dummy: None, None)
    guest = Guest(name, target)
    delay = FIRST[wanted]
    outcomes = collections.Counter()
    made = []
    for number in range(1, TRIES + 1):
        if not guest.path().endswith(".overlay"):
            made.append("%s/%s-%d.overlay" % (directory, wanted, number))
            guest.overlay(made[-1])
        old, new = made[-1], "%s/%s-%d.%s" % (directory, wanted, number, image_format)
        guest.copy(new, image_format)
        waited = delay * random.uniform(0.5, 1.5)
        guest.pivot_and_kill(wanted == "silent", waited)
        early = any(words in guest.record() for words in EARLY[wanted])
        subprocess.run(DAEMON, check=True)
        guest.connect()
        outcome = guest.outcome(old, new)
        outcomes[outcome] += 1
        if outcome == wanted:
            print(json.dumps({"old": old, "new": new, "pid": guest.pid, "delay": round(waited, 2), "outcomes": outcomes}))
            return
        delay = max(0.05, delay * (1.15 if early else 0.87))
        if outcome in ("off", "wrong"):
            raise SystemExit("try %d ended with a guest that is %s" % (number, outcome))
        if outcome == "open":
            guest.domain.blockJobAbort(target)
            os.unlink(new)
            continue
        if outcome != "pivoted" or guest.path(libvirt.VIR_DOMAIN_XML_INACTIVE) != new:
            guest.go_on_from(new, image_format)
        for path in made:
            os.unlink(path)
        made = [new]
    raise SystemExit("guest %s did not become %s in %d tries, but: %s" % (name, wanted, TRIES, dict(outcomes)))


if __name__ == "__main__":
    main()
