# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first process of a lab host: makes the host's private directories, then reaps orphans until it is killed.

It runs as PID 1 of fresh pid, mount, net, uts and ipc namespaces; when it ends, the kernel ends everything in them.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

LIBVIRTD_CONF = """\
host_uuid = "{uuid}"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_filters = "3:object"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""
# stdio_handler: acknowledgements must be in their file before the guest goes on; virtlogd would also cut it at 2 MiB.
QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
remember_owner = 0
stdio_handler = "file"
"""
EMPTIED = ("/run", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt")
REPLACED = (*EMPTIED, "/var/log/libvirt")
# What a host has from LAB_ROOT. All else is the machine's, so that a path means the same file inside and outside.
BORROWED = ("/usr", "/etc", "/var")
RECORD = "init.json"
WATCH_SECONDS = 2
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000


def record(state: Path) -> int:
    """Write down which process we are, as the namespace of the caller counts, and return that pid."""
    pid = int(os.readlink("/proc/self"))
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    (state / "init.new").write_text(json.dumps({"pid": pid, "start_time": int(fields[19])}), encoding="utf-8")
    (state / "init.new").replace(state / RECORD)
    return pid


def make_private() -> None:
    """Let no mount of ours be seen outside.

    `mount --make-rprivate /` cannot do it in a chroot whose root is a plain directory. So step out to the root of our
    own mount namespace, which setns(2) does even to the namespace that one is in, and back.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/", os.O_PATH)
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    if libc.setns(namespace, CLONE_NEWNS) or libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "cannot make the mounts private")
    os.fchdir(here)
    os.chroot(".")
    os.close(here)
    os.close(namespace)


def mount(*args: str) -> None:
    """Run mount(8); its own message is the one to read."""
    subprocess.run(["mount", *args], check=True)


def tmpfs(path: str, mode: str = "755", size: str = "50%") -> None:
    """Cover a directory with an empty file system."""
    mount("-t", "tmpfs", "-o", f"mode={mode},size={size}", "tmpfs", path)


def mountpoint_in_srv(name: str) -> str:
    """Return /srv/NAME as an empty directory, with the rest of /srv as it was and nothing written to the disk."""
    real = os.open("/srv", os.O_PATH | os.O_DIRECTORY)
    entries = [entry for entry in os.scandir("/srv") if entry.name != name and not entry.is_symlink()]
    tmpfs("/srv", size="1M")
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            os.mkdir(entry.path)
        else:
            Path(entry.path).touch()
        mount("--no-canonicalize", "--rbind", f"/proc/{os.getpid()}/fd/{real}/{entry.name}", entry.path)
    os.close(real)
    os.mkdir(f"/srv/{name}")
    return f"/srv/{name}"


def hide_kvm(state: Path) -> None:
    """Make libvirt see that there is no KVM.

    Where /dev/kvm opens but does not work, libvirt 9.0 distrusts its cached capabilities and probes QEMU again, for
    several seconds, in every call. On a read-only mount of a plain file access(2) says no, even to root.
    """
    if os.path.exists("/dev/kvm"):
        (state / "no-kvm").touch()
        mount("--bind", "-o", "ro", str(state / "no-kvm"), "/dev/kvm")


def borrow(root: str) -> None:
    """Take another system's programs and settings, to be a host of its release."""
    for path in BORROWED:
        mount("--bind", f"{root}{path}", path)


def build(state: Path) -> None:
    """Give this mount namespace the file systems of a libvirt host."""
    mount("-t", "proc", "proc", "/proc")
    # The network devices in it are those of the namespace that mounts it. Not allowed in every container, and optional.
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=False)
    for path in EMPTIED:
        tmpfs(path)
    os.mkdir("/run/lock")
    os.chmod("/run/lock", 0o1777)
    Path("/etc/libvirt/libvirtd.conf").write_text(LIBVIRTD_CONF.format(uuid=uuid.uuid4()), encoding="utf-8")
    Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF, encoding="utf-8")
    os.mkdir("/var/lib/libvirt/images")
    mount("--bind", str(state / "images"), "/var/lib/libvirt/images")
    mount("--bind", str(state / "log"), "/var/log/libvirt")
    tmpfs(mountpoint_in_srv("fast"), size="1G")
    hide_kvm(state)
    socket.sethostname(state.name)
    # libvirtd looks its own name up, and there is no name server to ask: without this every start waits for 5 s.
    (state / "hosts").write_text(f"127.0.0.1 localhost {state.name}\n::1 localhost\n", encoding="utf-8")
    mount("--bind", str(state / "hosts"), "/etc/hosts")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def reap(state: Path) -> None:
    """Wait for children as they die; return on SIGTERM, or when the state directory has been deleted under us."""
    watched = {signal.SIGCHLD, signal.SIGTERM}
    while state.exists():
        got = signal.sigtimedwait(watched, WATCH_SECONDS)
        if got and got.si_signo == signal.SIGTERM:
            return
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


def main(state: Path, root: str = "") -> None:
    """Build the host, say "ready" and our pid as the caller sees it, and stay."""
    pid = record(state)
    make_private()
    if root:
        borrow(root)
    build(state)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    print("ready", pid, flush=True)
    os.dup2(2, 1)
    reap(state)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
