# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs modules inside a lab host, lets things die at a stated moment of theirs, and reads how the guest stands without them.

A request is a line of JSON on stdin, its answer a line of JSON on stdout. Every run is a fork of this process, which has imported all
and connected to nothing: a run takes as long as the module does.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET

import libvirt
import libvirt_qemu
from ansible.module_utils import basic

from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import host, pivots, waits

MODULES = "ansible_collections.livestorage.libvirt.plugins.modules."
# As the lab starts it (tests/lab/host.py), which finds its libvirtd by this file.
PIDFILE = "/run/libvirtd.pid"
DAEMON = ["libvirtd", "--daemon", "--pid-file", PIDFILE]
SECONDS = 30
PIVOT = libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
QUERY = '{"execute": "query-block"}'


def alive(pid: int) -> bool:
    try:
        with open("/proc/%d/stat" % pid, encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(check, complaint: str, pause: float = 0.02):
    deadline = time.monotonic() + SECONDS
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError("%s within %d s" % (complaint, SECONDS))
        time.sleep(pause)


def daemon_pid() -> int:
    """The running daemon, or 0."""
    with contextlib.suppress(FileNotFoundError, ValueError), open(PIDFILE, encoding="ascii") as file:
        pid = int(file.read())
        return pid if alive(pid) else 0
    return 0


def start_daemon() -> None:
    """Start it unless it runs. The one that was killed may hold the lock on the file for a moment longer."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    until(lambda: daemon_pid() or not subprocess.run(DAEMON, check=False, **quiet).returncode, "libvirtd does not start", 0.1)


def qemu_pids(guest: str) -> list[int]:
    """By the command line, which stays whatever libvirt knows."""
    found = []
    for entry in glob.glob("/proc/[0-9]*"):
        with contextlib.suppress(OSError), open(entry + "/cmdline", "rb") as file:
            words = file.read().split(b"\0")
            if any(word.startswith(b"guest=%s," % guest.encode()) for word in words) and alive(int(entry[6:])):
                found.append(int(entry[6:]))
    return found


class Fault:
    """What is to happen at one moment of a run.

    ``when``: before_pivot (the call is about to be made), pivot (``delay`` seconds after it was begun), or half (half of the job is done).
    ``kill``: the signals that the daemon, qemu and the module get. ``away``: seconds until the daemon is started again, None: not by this.
    ``first`` is a command that is run before that.
    """

    def __init__(self, spec: dict):
        self.spec = spec
        self.struck = threading.Event()
        self.thread: threading.Thread | None = None
        self.pids = {"daemon": daemon_pid(), "qemu": next(iter(qemu_pids(spec["guest"])), 0), "module": os.getpid()}

    def arm(self) -> None:
        original = libvirt.virDomain.blockJobAbort
        poll = waits.Waits._poll

        def abort(domain, disk, flags=0):
            if flags & PIVOT and not self.struck.is_set():
                if self.spec["when"] == "before_pivot":
                    self.strike()
                elif self.spec["when"] == "pivot":
                    self.struck.set()
                    self.thread = threading.Thread(target=self.strike, args=(self.spec["delay"],))
                    self.thread.start()
            return original(domain, disk, flags)

        def polled(own, *arguments):
            found = poll(own, *arguments)
            job = found[2]
            if self.spec["when"] == "half" and job is not None and job.cur * 2 >= job.end > 0 and not self.struck.is_set():
                self.strike()
            return found

        libvirt.virDomain.blockJobAbort = abort
        waits.Waits._poll = polled

    def strike(self, delay: float = 0.0) -> None:
        self.struck.set()
        time.sleep(delay)
        if self.spec.get("first"):
            subprocess.run(self.spec["first"], check=True, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        kill = self.spec.get("kill", {})
        for victim in [one for one in ("daemon", "qemu", "module") if one in kill]:
            os.kill(self.pids[victim], getattr(signal, "SIG" + kill[victim]))
        if "daemon" in kill and self.spec.get("away") is not None:
            if threading.current_thread() is self.thread:
                self.revive()
            else:
                self.thread = threading.Thread(target=self.revive)
                self.thread.start()

    def revive(self) -> None:
        until(lambda: not alive(self.pids["daemon"]), "libvirtd does not end")
        time.sleep(self.spec["away"])
        start_daemon()


class Run:
    """A module with its arguments and its fault, in a fork of its own. ``patience``: how long it waits for a lost daemon."""

    def __init__(self, request: dict):
        self.module = importlib.import_module(MODULES + request["module"])
        self.files = contextlib.ExitStack()
        self.out, self.side = (self.files.enter_context(os.fdopen(os.memfd_create(name), "wb+")) for name in ("out", "side"))
        self.begun = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            child(self.module, request, self.out, self.side)

    def answer(self) -> dict:
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        found = {"status": status, "seconds": round(time.monotonic() - self.begun, 2), "result": None, "words": [], "struck": None}
        with self.files:
            self.side.seek(0)
            found.update(json.loads(self.side.read() or "{}"))
            self.out.seek(0)
            text = self.out.read().decode()
        with contextlib.suppress(ValueError):
            found["result"] = json.loads(text)
        if found["result"] is None and status >= 0:
            raise RuntimeError("the module ended with %d and said: %s" % (status, text))
        return found


def run(request: dict) -> dict:
    """The daemon is up when this returns."""
    daemon = daemon_pid()
    answer = Run(request).answer()
    if "daemon" in ((request.get("fault") or {}).get("kill") or {}) and answer["struck"] is not False:
        until(lambda: not alive(daemon), "libvirtd does not end")
    start_daemon()
    return answer


def race(request: dict) -> dict:
    """Several at once."""
    return {"answers": [one.answer() for one in [Run(each) for each in request["runs"]]]}


def child(module, request: dict, out, side) -> None:
    """Never returns."""
    code = 99
    try:
        os.dup2(out.fileno(), 1)
        basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": request["args"]}).encode()
        basic._ANSIBLE_PROFILE = "legacy"
        if request.get("patience"):
            for one in (host, pivots, waits):
                one.RECONNECT_SECONDS = request["patience"]
        words: list = []
        outcome = pivots.pivot.outcome

        def told(domain, target, to, view, processes):
            word = outcome(domain, target, to, view, processes)
            config = domain.config_disk(target) if domain is not None else None
            words.append([word, config is not None and config.chain.places[:1] == (to.place,)])
            return word

        pivots.pivot.outcome = told
        fault = Fault(request["fault"]) if request.get("fault") else None
        if fault:
            fault.arm()
        try:
            module.main()
        except SystemExit as end:
            code = end.code or 0
        if fault and fault.thread:
            fault.thread.join()
        side.write(json.dumps({"words": words, "struck": fault.struck.is_set() if fault else None}).encode())
        side.flush()
        sys.stdout.flush()
    except BaseException as error:
        print("inside: %r" % error, file=sys.stderr, flush=True)
    finally:
        os._exit(code)


# How the guest stands, by other means than the module's


def named(file: str) -> str:
    """The path in what QEMU calls a file; one whose backing was given to it is inside of a json: name."""
    if not file.startswith("json:"):
        return file
    inner = json.loads(file[len("json:") :])
    while "filename" not in inner:
        inner = inner["file"]
    return inner["filename"]


def written(answer: str, number: int) -> str | None:
    """The image that QEMU writes to on the guest's disk of that number."""
    device = "/virtio-disk%d/" % number
    blocks = json.loads(answer)["return"]
    return next((named(one["inserted"]["file"]) for one in blocks if device in one["qdev"] and one.get("inserted")), None)


def by_socket(guest: str) -> str:
    """query-block at the monitor of a guest that libvirt has lost."""
    for path in glob.glob("/var/lib/libvirt/qemu/domain-*-%s/monitor.sock" % guest):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(5)
            monitor.connect(path)
            with monitor.makefile("rw") as lines:
                lines.readline()
                for command in ('{"execute": "qmp_capabilities"}', QUERY):
                    lines.write(command + "\n")
                    lines.flush()
                    answer = lines.readline()
                    while "event" in json.loads(answer):
                        answer = lines.readline()
                return answer
    raise OSError("the monitor of %s does not answer" % guest)


def look(guest: str, target: str) -> dict:
    connection = libvirt.open("qemu:///system")
    domain = connection.lookupByName(guest)
    active = bool(domain.isActive())
    number = ord(target[-1]) - ord("a")

    def disk(flags):
        disks = ET.fromstring(domain.XMLDesc(flags)).iterfind("devices/disk")
        return next(one for one in disks if one.find("target").get("dev") == target)

    def path(one):
        source = one.find("source")
        if source.find("host") is not None:
            return "%s://%s:%s/%s" % (source.get("protocol"), source.find("host").get("name"), source.find("host").get("port"), source.get("name"))
        return source.get("file") or source.get("dev")

    live, config = disk(0), disk(libvirt.VIR_DOMAIN_XML_INACTIVE)
    mirror = live.find("mirror")
    pids = qemu_pids(guest)
    job = domain.blockJobInfo(target) if active else {}
    answer = libvirt_qemu.qemuMonitorCommand(domain, QUERY, 0) if active else by_socket(guest) if pids else None
    return {
        "active": active,
        "pids": pids,
        "live": path(live),
        "config": path(config),
        "mirror": None if mirror is None else mirror.get("ready") or "no",
        "job": bool(job),
        "written": written(answer, number) if answer else None,
    }


def facts(request: dict) -> dict:
    """How the guest stands once libvirt has done all that it does after its start. In a fork, which may connect."""
    seen: list[dict] = []

    def settled() -> bool:
        with contextlib.suppress(libvirt.libvirtError, OSError):
            seen.append(look(request["guest"], request["disk"]))
        return len(seen) > 1 and seen[-1] == seen[-2]

    with tempfile.TemporaryFile() as out:
        pid = os.fork()
        if not pid:
            try:
                libvirt.registerErrorHandler(lambda *dummy: None, None)
                until(settled, "guest %s does not settle" % request["guest"], 0.1)
                out.write(json.dumps(seen[-1]).encode())
                out.flush()
            except BaseException as error:
                print("inside: %r" % error, file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        os.waitpid(pid, 0)
        out.seek(0)
        return json.loads(out.read())


def shell(request: dict) -> dict:
    """A command in this lab host."""
    done = subprocess.run(request["command"], shell=True, executable="/bin/bash", capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return {"status": done.returncode, "out": done.stdout.strip(), "err": done.stderr.strip()}


def exists(request: dict) -> dict:
    return {"exists": [path for path in request["paths"] if os.path.lexists(path)]}


def main() -> None:
    for name in ("block_copy", "block_commit", "block_job"):
        importlib.import_module(MODULES + name)
    orders = {"run": run, "race": race, "facts": facts, "shell": shell, "exists": exists}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = orders[request["do"]](request)
        except Exception as error:
            answer = {"error": "%s: %s" % (type(error).__name__, error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
