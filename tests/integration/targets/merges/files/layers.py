# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs inside the lab, and knows nothing of the collection: makes chains of five layers, and reads chains and what is in them.

layers.py grow GUEST...             four overlays on each disk; every layer gets writes of the guest, and data of its own behind them
layers.py bare NAME...              chains of the same kind that belong to no guest
layers.py define GUEST=HOW...       what the definition names of a chain: first (the active layer only) or all (down to the terminator)
layers.py look GUEST... PATH:N...   each chain by libvirt's live XML, by the definition of the next start, by the headers, and by QEMU
layers.py hash GUEST... PATH:N...   the SHA-256 of what a guest would see of each disk and image
layers.py data GUEST... PATH:N...   fails unless the data that the layers got is there, as their order has it

PATH:N is an image with the data of the disk number N. grow and bare print the chains, as {guest: {disk: [path, ...]}} with the active
layer first. The data: 32 cells, of which the layer number n (0 is the deepest) has written those whose number has the bit n. So every set
of layers has a cell that only they wrote.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET

import libvirt
import libvirt_qemu

LAYERS = 5
CELLS, CELL, FIRST = 32, 64 << 10, 4 << 20
SIZE = FIRST + CELLS * CELL
HOME = "/srv/fast"
TARGETS = ("vda", "vdb", "vdc", "vdd")
SECONDS = 30


def pattern(number, layer):
    """The byte that a layer of the disk of that number has."""
    return number * LAYERS + layer + 1


def writes(number, layer):
    """The layer's own data, as qemu-io writes it."""
    runs = [(cell, 1 << layer) for cell in range(CELLS) if cell >> layer & 1 and not cell % (1 << layer)]
    return ["write -P %d %d %d" % (pattern(number, layer), FIRST + cell * CELL, length * CELL) for cell, length in runs]


def grow(connection, names):
    guests = [connection.lookupByName(name) for name in names]
    chains = {name: {target: [path] for target, path in sources(guest).items()} for name, guest in zip(names, guests)}
    for layer in range(LAYERS):
        for guest in guests:
            if layer:
                overlay(guest, layer, chains[guest.name()])
            for number in range(len(TARGETS)):
                for words in writes(number, layer) + ["flush"]:
                    command = 'qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "%s"' % (number, words)
                    libvirt_qemu.qemuMonitorCommand(guest, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
        wait_acks(names)
    print(json.dumps(chains))


def overlay(guest, layer, chains):
    disks = ""
    for target in TARGETS:
        path = "%s/%s-%s-l%d.qcow2" % (HOME, guest.name(), target, layer)
        chains[target].insert(0, path)
        disks += "<disk name='%s' snapshot='external'><source file='%s'/></disk>" % (target, path)
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    guest.snapshotCreateXML("<domainsnapshot><disks>%s</disks></domainsnapshot>" % disks, flags)


def wait_acks(names):
    """Until each guest has written to each disk once more. An acknowledgement has ten bytes."""
    files = ["/var/lib/libvirt/images/%s.acks" % name for name in names]
    least = {file: os.path.getsize(file) + 10 * (len(TARGETS) + 1) for file in files}
    deadline = time.monotonic() + SECONDS
    while any(os.path.getsize(file) < size for file, size in least.items()):
        if time.monotonic() > deadline:
            sys.exit("the guests do not write")
        time.sleep(0.05)


def bare(names):
    found = {}
    for number, name in enumerate(names):
        paths = []
        for layer in range(LAYERS):
            path = "%s/bare-%s-l%d.%s" % (HOME, name, layer, "qcow2" if layer else "raw")
            below = ["-b", paths[0], "-F", kind(paths[0])] if paths else []
            run("qemu-img", "create", "-q", "-f", kind(path), *below, path, str(SIZE))
            run("qemu-io", "-f", kind(path), *[word for words in writes(number, layer) for word in ("-c", words)], path)
            paths.insert(0, path)
        found[name] = paths
    print(json.dumps({"bare": found}))


def define(connection, words):
    """libvirt itself spells a chain out in part, once a running guest got an overlay."""
    for word in words:
        name, dummy, how = word.partition("=")
        guest = connection.lookupByName(name)
        root = ET.fromstring(guest.XMLDesc(0 if how == "all" else libvirt.VIR_DOMAIN_XML_INACTIVE))
        for disk in root.iterfind("devices/disk") if how == "first" else ():
            for below in disk.findall("backingStore"):
                disk.remove(below)
        connection.defineXML(ET.tostring(root, encoding="unicode"))


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


# Readers


def kind(path):
    return "raw" if path.endswith(".raw") else "qcow2"


def disks_of(xml):
    return {disk.find("target").get("dev"): disk for disk in ET.fromstring(xml).iterfind("devices/disk")}


def spelled(element):
    """The layers that an XML names, and whether it says that there are no others."""
    paths = []
    while element is not None and element.find("source") is not None:
        paths.append(element.find("source").get("file"))
        element = element.find("backingStore")
    return {"paths": paths, "ends": element is not None}


def sources(guest):
    return {target: spelled(disk)["paths"][0] for target, disk in disks_of(guest.XMLDesc()).items()}


def headers(path):
    told = json.loads(run("qemu-img", "info", "-U", "--backing-chain", "-f", kind(path), "--output", "json", path))
    return [one["filename"] for one in told]


def by_qemu(guest):
    """What QEMU has open, by the number of the disk."""
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(guest, '{"execute": "query-block"}', 0))["return"]
    found = {}
    for one in answer:
        image = one["inserted"]["image"]
        paths = []
        while image is not None:
            paths.append(plain(image["filename"]))
            image = image.get("backing-image")
        found[one["qdev"].split("/")[-2]] = paths
    return found


def plain(name):
    if not name.startswith("json:"):
        return name
    options = json.loads(name[len("json:") :])
    while "filename" not in options:
        options = options["file"]
    return options["filename"]


def look(connection, words):
    found = {}
    for word in words:
        if word.startswith("/"):
            path = word.partition(":")[0]
            found.setdefault("bare", {})[path] = {"headers": headers(path)}
            continue
        guest = connection.lookupByName(word)
        active = bool(guest.isActive())
        now, then = disks_of(guest.XMLDesc()), disks_of(guest.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        open_now = by_qemu(guest) if active else {}
        found[word] = {
            target: {
                "live": spelled(now[target])["paths"] if active else None,
                "next": spelled(then[target]),
                "headers": headers(spelled(then[target])["paths"][0]),
                "qemu": open_now.get("virtio-disk%d" % number),
                "quiet": now[target].find("mirror") is None and not (active and guest.blockJobInfo(target)),
            }
            for number, target in enumerate(TARGETS)
        }
    print(json.dumps(found))


@contextlib.contextmanager
def content(path):
    """All that a guest would see of an image, as an open file."""
    with tempfile.TemporaryDirectory(dir=HOME) as work:
        raw = work + "/raw"
        run("qemu-img", "convert", "-f", kind(path), "-O", "raw", path, raw)
        with open(raw, "rb") as file:
            yield file


def images(connection, words):
    """(path, number of the disk) of every disk of each guest, and of each image by itself."""
    for word in words:
        name, dummy, number = word.partition(":")
        if name.startswith("/"):
            yield name, int(number)
        else:
            yield from ((path, TARGETS.index(target)) for target, path in sources(connection.lookupByName(name)).items())


def hashes(connection, words):
    for path, dummy in images(connection, words):
        with content(path) as file:
            print(hashlib.sha256(file.read()).hexdigest())


def data(connection, words):
    wrong = [line for path, number in images(connection, words) for line in checked(path, number)]
    sys.exit("\n".join(wrong) or None)


def checked(path, number):
    wrong = []
    with content(path) as file:
        file.seek(FIRST)
        for cell in range(CELLS):
            wanted = bytes([pattern(number, cell.bit_length() - 1) if cell else 0])
            if file.read(CELL) != wanted * CELL:
                wrong.append("%s: cell %s is not what the highest layer wrote there" % (path, format(cell, "05b")))
    return wrong


what, arguments = sys.argv[1], sys.argv[2:]
if what == "bare":
    bare(arguments)
else:
    {"grow": grow, "define": define, "look": look, "hash": hashes, "data": data}[what](libvirt.open("qemu:///system"), arguments)
