# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile images, and a witness of whoever falls for them.

    hostile.py build DIR SECRET     write the images into DIR; SECRET is the file of the host that some of them name
    hostile.py watch DIR SECRET     leave a witness behind that sees every open and every connection
    hostile.py seen DIR             print what the witness has seen since the last call, as a JSON list
    hostile.py end DIR              end the witness

The witness holds the FIFO open itself: so a reader's open succeeds, and the kernel tells about it, where it would hang
otherwise. `mute` is a FIFO that nobody holds: to open it is to hang.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path

PORT = 10809
DEEP = 1000
CLUSTER = 4096
SLOW = 10
SNAPSHOTS = 65536
SIZE = 1 << 20
HEADER = 104
BACKING_FORMAT, DATA_FILE = 0xE2792ACA, 0x44415441
DATA_FILE_BIT = 1 << 2
IN_ACCESS, IN_OPEN = 0x1, 0x20
EVENT = struct.Struct("iIII")


def qcow2(empty: bytes, backing: str = "", backing_format: str = "", data_file: str = "") -> bytes:
    """An image with a header that qemu-img would not write; `empty` is one that it wrote."""
    (incompatible,) = struct.unpack_from(">Q", empty, 72)
    extensions = b""
    for kind, text in ((BACKING_FORMAT, backing_format), (DATA_FILE, data_file)):
        data = os.fsencode(text)
        if data:
            extensions += struct.pack(">II", kind, len(data)) + data + b"\0" * (-len(data) % 8)
    extensions += struct.pack(">II", 0, 0)
    name = os.fsencode(backing)
    head = bytearray(empty[:HEADER] + extensions)
    struct.pack_into(">QI", head, 8, len(head) if name else 0, len(name))
    struct.pack_into(">Q", head, 72, incompatible | (DATA_FILE_BIT if data_file else 0))
    struct.pack_into(">I", head, 100, HEADER)
    head += name
    if len(head) > CLUSTER:
        raise ValueError(f"a header of {len(head)} bytes does not fit into a cluster")
    return bytes(head).ljust(CLUSTER, b"\0") + empty[CLUSTER:]


def slow(image: bytes) -> bytes:
    """The image with so many internal snapshots that it takes seconds to open it."""
    table = bytearray()
    for number in range(SNAPSHOTS):
        name = b"%d" % number
        entry = struct.pack(">QIHHIIQIIQQQ", 0, 0, len(name), 0, 0, 0, 0, 0, 24, 0, SIZE, 0) + name
        table += entry + b"\0" * (-len(entry) % 8)
    head = bytearray(image.ljust(-(-len(image) // CLUSTER) * CLUSTER, b"\0"))
    struct.pack_into(">IQ", head, 60, SNAPSHOTS, len(head))
    return bytes(head + table)


def build(folder: Path, secret: Path) -> None:
    """Write all images."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    secret.write_text("root:SECRET:19000:0:99999:7:::\n", encoding="utf-8")
    secret.chmod(0o600)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", folder / "empty.qcow2", str(SIZE)], check=True)
    empty = (folder / "empty.qcow2").read_bytes()

    def image(name: str, backing: str = "", backing_format: str = "", data_file: str = "") -> None:
        (folder / name).write_bytes(qcow2(empty, backing, backing_format, data_file))

    os.mkfifo(folder / "fifo")
    os.mkfifo(folder / "mute")
    os.mknod(folder / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (folder / "link-a").symlink_to("link-b")
    (folder / "link-b").symlink_to("link-a")

    host = json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(secret)}})
    image("json-file.qcow2", "json:" + host)
    image("nbd.qcow2", f"nbd://127.0.0.1:{PORT}/x", "raw")
    server = {"driver": "nbd", "server": {"type": "inet", "host": "127.0.0.1", "port": str(PORT)}}
    image("json-nbd.qcow2", "json:" + json.dumps(server))
    image("unix-nbd.qcow2", f"nbd+unix:///x?socket={folder}/nbd.sock", "raw")
    for name in ("fifo", "mute", "zero"):
        image(f"{name}-backing.qcow2", str(folder / name), "raw")
    image("link-backing.qcow2", str(folder / "link-a"), "qcow2")
    image("self.qcow2", str(folder / "self.qcow2"), "qcow2")
    image("loop-a.qcow2", "loop-b.qcow2", "qcow2")
    image("loop-b.qcow2", "loop-a.qcow2", "qcow2")
    for depth in range(DEEP):
        below = f"deep-{depth + 1:04}.qcow2" if depth + 1 < DEEP else ""
        image(f"deep-{depth:04}.qcow2", below, "qcow2" if below else "")
    table = slow(empty)
    for depth in range(SLOW):
        below = f"slow-{depth + 1}.qcow2" if depth + 1 < SLOW else ""
        head = bytearray(qcow2(empty, below, "qcow2" if below else ""))
        head[60:72] = table[60:72]
        (folder / f"slow-{depth}.qcow2").write_bytes(head[:CLUSTER] + table[CLUSTER:])
    (folder / "truncated.qcow2").write_bytes(empty[:72])
    image("data-file.qcow2", data_file=str(secret))
    image("data-nbd.qcow2", data_file=f"nbd://127.0.0.1:{PORT}/x")

    image("header-on-raw.raw", str(secret), "qcow2")
    os.truncate(folder / "header-on-raw.raw", SIZE)
    (folder / "descriptor.vmdk").write_text(
        f'# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW {SIZE // 512} FLAT "{secret}" 0\n',
        encoding="utf-8",
    )
    image("vmdk-backing.qcow2", str(folder / "descriptor.vmdk"), "vmdk")
    image("no-format.qcow2", str(folder / "header-on-raw.raw"))
    image("bytes.qcow2", os.fsdecode(b"/no\xff\n\x1b[31m<&where"), "qcow2")


class Witness:
    """Watches the baits."""

    def __init__(self, folder: Path, secret: Path) -> None:
        self.seen: set[str] = set()
        self.folder = folder
        # Before the watches: this open is ours.
        self.fifo = os.open(folder / "fifo", os.O_RDWR)
        libc = ctypes.CDLL(None, use_errno=True)
        self.inotify = libc.inotify_init1(os.O_NONBLOCK)
        self.names = {}
        baits = {"secret": secret, "fifo": folder / "fifo", "mute": folder / "mute", "zero": folder / "zero", "bottom": folder / f"deep-{DEEP - 1:04}.qcow2"}
        for name, path in baits.items():
            watch = libc.inotify_add_watch(self.inotify, os.fsencode(path), IN_OPEN | IN_ACCESS)
            if watch < 0:
                raise OSError(ctypes.get_errno(), "cannot watch", str(path))
            self.names[watch] = name
        self.servers = {"tcp": listening(socket.AF_INET, ("127.0.0.1", PORT)), "unix": listening(socket.AF_UNIX, str(folder / "nbd.sock"))}
        self.control = listening(socket.AF_UNIX, str(folder / "control.sock"))

    def look(self) -> None:
        """Take all that the kernel has to tell now."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data, place = os.read(self.inotify, 1 << 16), 0
                while place < len(data):
                    watch, _mask, _cookie, length = EVENT.unpack_from(data, place)
                    self.seen.add(self.names.get(watch, "overflow"))
                    place += EVENT.size + length
        for name, server in self.servers.items():
            with contextlib.suppress(BlockingIOError):
                while True:
                    server.accept()[0].close()
                    self.seen.add(name)

    def serve(self) -> None:
        """Look, and answer, until told to end."""
        poll = select.poll()
        for source in (self.inotify, self.control, *self.servers.values()):
            poll.register(source, select.POLLIN)
        while True:
            poll.poll()
            self.look()
            with contextlib.suppress(BlockingIOError):
                asker = self.control.accept()[0]
                with asker:
                    word = asker.recv(16)
                    # What happened before the question is in the kernel's queues by now.
                    self.look()
                    asker.sendall(json.dumps(sorted(self.seen)).encode())
                    self.seen.clear()
                if word == b"end":
                    return


def listening(family: int, address) -> socket.socket:
    """A server's socket that never blocks."""
    server = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(address)
    server.listen(64)
    server.setblocking(False)
    return server


def watch(folder: Path, secret: Path) -> None:
    """Leave a witness behind."""
    witness = Witness(folder, secret)
    if os.fork():
        return
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    witness.serve()


def ask(folder: Path, word: str) -> str:
    """What the witness has seen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        asker.connect(str(folder / "control.sock"))
        asker.sendall(word.encode())
        return asker.recv(1 << 16).decode()


def main() -> None:
    """Do what the first word says."""
    word, folder, *rest = sys.argv[1:]
    if word in ("build", "watch"):
        {"build": build, "watch": watch}[word](Path(folder), Path(rest[0]))
    else:
        print(ask(Path(folder), word))


if __name__ == "__main__":
    main()
