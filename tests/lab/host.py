# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lab hosts: making, entering and removing them. A lab host's whole state is one directory below $LAB_BASE."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import init

CLEAN_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C"}
PACKAGES = {
    "unshare": "util-linux", "nsenter": "util-linux", "setpriv": "util-linux", "mount": "mount", "ip": "iproute2",
    "libvirtd": "libvirt-daemon-system", "virsh": "libvirt-clients", "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils", "qemu-io": "qemu-utils", "as": "binutils", "ld": "binutils",
}
OUTSIDE = ("unshare", "nsenter", "as", "ld")
ENTER = """\
#!/bin/sh
# Run a command inside the lab host {name}. It dies with this process, so killing this process kills it.
if [ "$(readlink /proc/{pid}/ns/mnt)" != '{mnt}' ]; then
    echo 'lab host {name} is not running, or this is not root' >&2
    exit 2
fi
LIBVIRT_DEFAULT_URI=qemu:///system
export LIBVIRT_DEFAULT_URI
exec nsenter --target {pid} --mount --pid --net --uts --ipc --root --wd -- setpriv --pdeathsig KILL \\
    /bin/sh -c 'cd "$0" 2>/dev/null || cd /; exec "$@"' "$PWD" "$@"
"""
PYTHON = """\
#!/bin/sh
# The target Python of the lab host {name}, for ansible_python_interpreter.
exec {enter} /usr/bin/python3 "$@"
"""
UP_SECONDS = 30
DAEMON_SECONDS = 30
PIDFILE = "/run/libvirtd.pid"


class LabError(Exception):
    """Something the caller can act on, in one sentence."""


def base() -> Path:
    """Return the directory that holds every lab of this checkout."""
    chosen = os.environ.get("LAB_BASE")
    return Path(chosen).resolve() if chosen else Path(__file__).resolve().parents[2] / "build" / "lab"


def root() -> str:
    """Return the root of the system that a new lab host runs; empty for the machine's own."""
    chosen = os.environ.get("LAB_ROOT")
    return str(Path(chosen).resolve()).rstrip("/") if chosen else ""


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if there is none or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def wait_for(check, seconds: float, pause: float = 0.02):
    """Call check until it returns something true, and return that; None after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        result = check()
        if result or time.monotonic() > deadline:
            return result or None
        time.sleep(pause)


@dataclass(frozen=True)
class Lab:
    """One lab host, up or not."""

    state: Path

    @classmethod
    def named(cls, name: str) -> Lab:
        """Return the lab of that name; it need not exist."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", name):
            raise LabError(f"'{name}' is no name for a lab: use up to 40 small letters, digits and dashes")
        return cls(base() / name)

    @classmethod
    def all(cls) -> list[Lab]:
        """Return every lab with a state directory."""
        return [cls(path.parent) for path in sorted(base().glob(f"*/{init.RECORD}"))]

    @property
    def name(self) -> str:
        return self.state.name

    @property
    def enter(self) -> str:
        """The script that runs a command inside."""
        return str(self.state / "enter")

    @property
    def pid(self) -> int | None:
        """The pid of the lab's init, if that very process still runs."""
        try:
            record = json.loads((self.state / init.RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return record["pid"] if record and start_time(record["pid"]) == record["start_time"] else None

    def inside(self, path: str) -> Path:
        """Return where an absolute path of the lab host can be read from outside."""
        if os.geteuid():
            raise LabError("entering a lab host needs root: run this through sudo")
        if self.pid is None:
            raise LabError(f"lab host {self.name} is not running; start it with: lab up {self.name}")
        return Path(f"/proc/{self.pid}/root{path}")

    def run(self, *command: str) -> str:
        """Run a command inside and return what it printed; LabError with its message if it fails."""
        done = subprocess.run([self.enter, *command], capture_output=True, text=True, check=False,
                              stdin=subprocess.DEVNULL, env=CLEAN_ENV, cwd="/")
        if done.returncode:
            raise LabError(f"{' '.join(command[:3])} failed in lab host {self.name}: {done.stderr.strip()}")
        return done.stdout

    def virsh(self, *args: str) -> str:
        """Run virsh against the lab host's libvirtd."""
        return self.run("virsh", "-q", *args).strip()


@contextlib.contextmanager
def locked(lab: Lab):
    """Hold the lab's state directory, made if need be, against other lab commands."""
    while True:
        lab.state.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(lab.state, os.O_RDONLY)
            fcntl.flock(fd, fcntl.LOCK_EX)
            # A `down` that held the lock before us has removed this very directory.
            if os.path.exists(lab.state) and os.path.samestat(os.fstat(fd), os.stat(lab.state)):
                break
            os.close(fd)
    try:
        yield
    finally:
        os.close(fd)


def check_machine(lab: Lab) -> None:
    """Say in one sentence what this machine lacks for a lab host."""
    if os.geteuid():
        raise LabError("a lab host needs root: run this through sudo")
    inside = ":".join(f"{root()}{path}" for path in CLEAN_ENV["PATH"].split(":"))
    missing = [tool for tool in PACKAGES if not shutil.which(tool, path=CLEAN_ENV["PATH"] if tool in OUTSIDE else inside)]
    if missing:
        packages = sorted({PACKAGES[tool] for tool in missing})
        raise LabError(f"not found: {', '.join(missing)}; install the packages: {' '.join(packages)}")
    needed = [*init.REPLACED, "/srv", "/proc/self"]
    if root():
        needed = [f"{root()}{path}" if path.startswith(init.BORROWED) else path for path in (*needed, *init.BORROWED)]
    absent = [path for path in needed if not os.path.exists(path)]
    if absent:
        raise LabError(f"this machine lacks {', '.join(absent)}")
    if any(lab.state.is_relative_to(path) for path in (*init.REPLACED, *(init.BORROWED if root() else ()))):
        raise LabError(f"{lab.state} would be hidden inside the lab host: set LAB_BASE to another directory")


def up(lab: Lab) -> str:
    """Start the lab host and its libvirtd unless they run; return what was done."""
    check_machine(lab)
    with locked(lab):
        if lab.pid is not None and os.path.exists(lab.enter):
            daemon_start(lab)
            return "is up already"
        wipe(lab)
        (lab.state / init.RECORD).write_text("{}", encoding="utf-8")
        for name in ("images", "log", "guests"):
            (lab.state / name).mkdir()
        pid = spawn(lab)
        script(lab.state / "python", PYTHON.format(name=lab.name, enter=shlex.quote(lab.enter)))
        script(lab.state / "enter", ENTER.format(name=lab.name, pid=pid, mnt=os.readlink(f"/proc/{pid}/ns/mnt")))
        daemon_start(lab)
        return "is up"


def script(path: Path, text: str) -> None:
    """Write an executable file."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def spawn(lab: Lab) -> int:
    """Start the lab's init in new namespaces and return its pid once the host is built."""
    log = lab.state / "log" / "init.log"
    with log.open("wb") as errors:
        child = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child",
             "--propagation", "unchanged", sys.executable, "-EsB", init.__file__, str(lab.state), *filter(None, [root()])],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=True, cwd="/", env=CLEAN_ENV)
    with child.stdout:
        words = child.stdout.readline().split()
    if words[:1] != ["ready"]:
        child.wait()
        reason = log.read_text(encoding="utf-8").strip().splitlines() or ["no message"]
        raise LabError(f"lab host {lab.name} did not start: {reason[-1]} (all of it: {log})")
    return int(words[1])


def down(lab: Lab) -> None:
    """End everything inside the lab host and remove its state, whatever it was like."""
    if os.geteuid():
        raise LabError("removing a lab host needs root: run this through sudo")
    if not lab.state.exists():
        return
    with locked(lab):
        wipe(lab)
        lab.state.rmdir()
    with contextlib.suppress(OSError):
        lab.state.parent.rmdir()


def wipe(lab: Lab) -> None:
    """Kill the lab's init if it runs, wait for its namespaces to end, and empty the state directory."""
    marker = lab.state / init.RECORD
    entries = [path for path in lab.state.iterdir() if path != marker]
    if entries and not marker.exists():
        raise LabError(f"{lab.state} is not the state of a lab host: nothing in it was touched")
    pid = lab.pid
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        if not wait_for(lambda: start_time(pid) is None, UP_SECONDS):
            raise LabError(f"process {pid} of lab host {lab.name} does not end")
    for path in entries:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    marker.unlink(missing_ok=True)


def daemon_pid(lab: Lab) -> int | None:
    """Return the pid of the lab's libvirtd, as seen inside, if it runs."""
    try:
        pid = int(lab.inside(PIDFILE).read_text(encoding="utf-8"))
        name = lab.inside(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return pid if name == "libvirtd" else None


def daemon_start(lab: Lab) -> None:
    """Start the lab's libvirtd unless it runs, and wait until it lists its guests."""
    if daemon_pid(lab) is None:
        lab.run("libvirtd", "--daemon", "--pid-file", PIDFILE)
    failures = []

    def answers() -> bool:
        try:
            lab.virsh("list")
        except LabError as error:
            failures.append(error)
            return False
        return True

    if not wait_for(answers, DAEMON_SECONDS):
        raise LabError(f"{failures[-1]}; see {lab.state}/log/libvirtd.log")


def daemon_end(lab: Lab, signame: str) -> None:
    """Send the lab's libvirtd TERM or KILL and wait until it is gone. Its guests run on."""
    pid = daemon_pid(lab)
    if pid is None:
        return
    lab.run("kill", f"-{signame}", str(pid))
    if not wait_for(lambda: daemon_pid(lab) != pid, DAEMON_SECONDS):
        raise LabError(f"libvirtd of lab host {lab.name} does not end")
