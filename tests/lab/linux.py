# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel and the initrd of Linux guests, made of Debian's packages when the first such guest is asked for."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from host import CLEAN_ENV, Lab, LabError, base, wait_for

SUITE = "bookworm"
KERNEL = "linux-image-cloud-amd64"
PACKAGES = ("busybox-static", "qemu-guest-agent", "libc6", "libglib2.0-0", "libnuma1", "libpcre2-8-0", "libudev1", "liburing2")
SOURCE = """\
Types: deb
URIs: http://deb.debian.org/debian
Suites: {suite}
Components: main
Architectures: amd64
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
TOOLS = {"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg", "as": "binutils", "ld": "binutils", "readelf": "binutils"}
# File systems and what they need are built in.
MODULES = ("virtio_pci", "virtio_blk", "virtio_console")
PROGRAMS = ("bin/busybox", "usr/sbin/qemu-ga")
LOADER = "lib64/ld-linux-x86-64.so.2"
LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
SCRIPTS = {"init": "init", "freeze-hook": "freeze-hook"}
FOLDERS = ("bin", "dev", "disks", "lib", "lib64", "modules", "proc", "run", "sys", "tmp", "usr", "usr/sbin")
AGENTS = ("runs", "stopped", "none")
START_SECONDS = 90
MEMORY = 128 << 10
BOOT = """
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd>
    <cmdline>console=ttyS1 quiet panic=-1 nokaslr mitigations=off {words}</cmdline>
  """
DEVICES = """
    <serial type='file'><source path={console} append='on'/><target port='1'/></serial>"""
CHANNEL = """
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"""
GUEST = Path(__file__).resolve().parent / "guest"


def cache() -> Path:
    """Return where packages, kernel and initrd are kept, for all lab hosts below $LAB_BASE."""
    chosen = os.environ.get("LAB_CACHE")
    return Path(chosen).resolve() if chosen else base().with_name(f"{base().name}-linux")


def console(name: str) -> str:
    """Return where a guest's console goes to."""
    return f"/var/lib/libvirt/images/{name}.console"


def machine(lab: Lab, options, slots: int) -> dict:
    """Return what a Linux guest's domain has and a bare one has not."""
    kernel, initrd = boot_files(lab)
    words = {"slots": slots, "delay": options.delay, "agent": options.agent, "freeze_seconds": options.freeze_takes}
    return {"memory": MEMORY, "features": "<features><acpi/></features>",
            "boot": BOOT.format(kernel=escape(kernel), initrd=escape(initrd), words=" ".join(f"{key}={value}" for key, value in words.items())),
            "devices": DEVICES.format(console=quoteattr(console(options.guest))) + (CHANNEL if options.agent != "none" else "")}


def wait_agent(lab: Lab, name: str) -> None:
    """Wait until the guest's agent answers."""
    failures = []

    def answers() -> bool:
        try:
            lab.virsh("qemu-agent-command", name, '{"execute": "guest-ping"}')
        except LabError as error:
            failures.append(error)
            return False
        return True

    if not wait_for(answers, START_SECONDS, 0.2):
        raise LabError(f"the agent of guest '{name}' does not answer: {failures[-1]}")


def boot_files(lab: Lab) -> tuple[str, str]:
    """Return kernel and initrd as the lab host sees them."""
    kept = lab.state / "linux"
    if not kept.exists():
        made = build(cache())
        with tempfile.TemporaryDirectory(dir=lab.state, prefix="linux-") as work:
            new = Path(work) / "new"
            new.mkdir()
            for path in made:
                shutil.copy(path, new)
            # Another guest may be the first one at the same time.
            with contextlib.suppress(FileExistsError, OSError):
                new.rename(kept)
    return str(kept / "vmlinuz"), str(kept / "initrd")


def build(where: Path) -> tuple[Path, Path]:
    """Make kernel and initrd, unless they are made already, and return them."""
    require(TOOLS)
    where.mkdir(parents=True, exist_ok=True)
    packages, kernel, initrd, stamp = (where / name for name in ("packages", "vmlinuz", "initrd", "stamp"))
    with open(where / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = recipe()
        if not stamp.exists() or stamp.read_text(encoding="ascii") != wanted:
            stamp.unlink(missing_ok=True)
            # A file whose name says what was fetched.
            names = packages / " ".join((SUITE, KERNEL, *PACKAGES))
            if not names.exists():
                shutil.rmtree(packages, ignore_errors=True)
                fetch(packages)
                names.touch()
            with tempfile.TemporaryDirectory(dir=where) as work:
                pack(packages, Path(work), kernel, initrd)
            stamp.write_text(wanted, encoding="ascii")
    return kernel, initrd


def require(tools: dict[str, str]) -> None:
    """Say in one sentence what this machine lacks for a Linux guest."""
    missing = [tool for tool in tools if not shutil.which(tool, path=CLEAN_ENV["PATH"])]
    if missing:
        packages = sorted({tools[tool] for tool in missing})
        raise LabError(f"not found: {', '.join(missing)}; a Linux guest needs the packages: {' '.join(packages)}")


def recipe() -> str:
    """Return the digest of all that the initrd is made of, but for Debian's packages."""
    digest = hashlib.sha256()
    for path in (Path(__file__).resolve(), *sorted(GUEST.iterdir())):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run(*command: str, cwd: Path | None = None) -> str:
    """Run a command of this machine and return what it printed; LabError with its message if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=CLEAN_ENV, cwd=cwd)
    if done.returncode:
        raise LabError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def fetch(packages: Path) -> None:
    """Download the packages through apt, with its signatures, but with lists of our own, which the machine's apt never sees."""
    with tempfile.TemporaryDirectory(dir=packages.parent) as work:
        for name in ("state/lists/partial", "cache/archives/partial", "parts", "debs"):
            (Path(work) / name).mkdir(parents=True)
        (Path(work) / "parts" / "debian.sources").write_text(SOURCE.format(suite=SUITE), encoding="ascii")
        (Path(work) / "status").touch()
        options = {"Acquire::Retries": "3", "APT::Update::Error-Mode": "any", "APT::Sandbox::User": "", "APT::Architecture": "amd64",
                   "Acquire::Languages": "none", "Dir::Etc::SourceList": "/dev/null", "Dir::Etc::SourceParts": f"{work}/parts",
                   "Dir::State": f"{work}/state", "Dir::State::status": f"{work}/status", "Dir::Cache": f"{work}/cache"}
        given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        run("apt-get", "-qq", *given, "update")
        kernel = re.search(r"Depends: (linux-image-\S+)", run("apt-cache", *given, "depends", KERNEL))
        if not kernel:
            raise LabError(f"the package {KERNEL} of {SUITE} depends on no kernel")
        run("apt-get", "-qq", *given, "download", kernel[1], *PACKAGES, cwd=Path(work) / "debs")
        (Path(work) / "debs").rename(packages)


def pack(packages: Path, work: Path, kernel: Path, initrd: Path) -> None:
    """Take the kernel out of the packages, and make an initrd of what else is needed of them."""
    root = work / "root"
    for package in sorted(packages.glob("*.deb")):
        run("dpkg-deb", "-x", str(package), str(root))
    entries = dict.fromkeys(FOLDERS, (stat.S_IFDIR | 0o755, b""))
    for number, module in enumerate(modules(root)):
        entries[f"modules/{number:02}-{module.name}"] = (stat.S_IFREG | 0o644, module.read_bytes())
    for name, source in binaries(root).items():
        entries[name] = (stat.S_IFREG | 0o755, source.read_bytes())
    entries["bin/filewriter"] = (stat.S_IFREG | 0o755, writer(work))
    for name, source in SCRIPTS.items():
        entries[name] = (stat.S_IFREG | 0o755, (GUEST / source).read_bytes())
    # The kernel's first process finds #!/bin/sh before busybox has installed itself.
    entries["bin/sh"] = (stat.S_IFLNK | 0o777, b"busybox")
    (work / "initrd").write_bytes(cpio(entries))
    (work / "initrd").replace(initrd)
    next(root.glob("boot/vmlinuz-*")).replace(kernel)


def modules(root: Path) -> list[Path]:
    """Return the kernel modules that a guest loads, each after those that it depends on."""
    known = {path.stem.replace("-", "_"): path for path in root.glob("lib/modules/*/kernel/**/*.ko")}
    order: list[Path] = []

    def add(name: str) -> None:
        if known[name] not in order:
            depends = re.search(rb"\0depends=([^\0]*)\0", known[name].read_bytes())
            for other in filter(None, depends[1].decode().split(",")):
                add(other)
            order.append(known[name])

    for name in MODULES:
        add(name)
    return order


def binaries(root: Path) -> dict[str, Path]:
    """Return the programs and, from their headers, the libraries that they are linked with, by their place in the initrd."""
    found = {name: root / name for name in PROGRAMS}
    queue = list(found.values())
    while queue:
        for library in re.findall(r"\(NEEDED\)\s+Shared library: \[(\S+)\]", run("readelf", "-d", str(queue.pop()))):
            source = next(root / folder / library for folder in LIBRARIES if (root / folder / library).exists())
            name = LOADER if library == Path(LOADER).name else f"lib/{library}"
            if name not in found:
                found[name] = source
                queue.append(source)
    return found


def writer(work: Path) -> bytes:
    """Return the assembled writer."""
    run("as", "--64", "-o", str(work / "writer.o"), str(GUEST / "filewriter.S"))
    run("ld", "--strip-all", "-o", str(work / "writer"), str(work / "writer.o"))
    return (work / "writer").read_bytes()


def cpio(entries: dict[str, tuple[int, bytes]]) -> bytes:
    """Return an archive as the kernel unpacks it. It stays uncompressed: an emulated processor takes longer than the disk."""
    parts = []
    for number, (name, (mode, data)) in enumerate([*entries.items(), ("TRAILER!!!", (0, b""))], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        parts += [header, bytes(-len(header) % 4), data, bytes(-len(data) % 4)]
    return b"".join(parts)
