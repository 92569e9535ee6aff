# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inside the lab host: runs modules as the fault matrix does, and reads how a guest stands without them.

A request is a line of JSON on stdin, its answer a line of JSON on stdout.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET

import inside  # of the fault matrix, which is on PYTHONPATH
import libvirt
import libvirt_qemu

FOLDERS = ("/var/lib/libvirt/images", "/srv/fast")
NOTES = "metadata/{https://livestorage.github.io/libvirt/snapshots/1}snapshots/{*}snapshot"
JOB_NOTES = "https://livestorage.github.io/libvirt/job/"


def disks_of(root) -> dict:
    return {disk.find("target").get("dev"): disk for disk in root.iterfind("devices/disk")}


def spelled(element) -> dict:
    """The layers that an XML names, the format of the first, and whether it says that there are no others."""
    paths, driver = [], element.find("driver")
    while element is not None and element.find("source") is not None:
        paths.append(element.find("source").get("file"))
        element = element.find("backingStore")
    return {"paths": paths, "ends": element is not None, "format": driver.get("type") if driver is not None else None}


def headers(path: str, image_format: str) -> list[str]:
    done = subprocess.run(
        ["qemu-img", "info", "-U", "-f", image_format, "--backing-chain", "--output", "json", path], capture_output=True, text=True, check=True
    )
    return [one["filename"] for one in json.loads(done.stdout)]


def opened(domain) -> dict:
    """What QEMU has open, by the target of the disk."""
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, inside.QUERY, 0))["return"]
    found = {}
    for one in answer:
        image, paths = one["inserted"]["image"], []
        while image is not None:
            paths.append(inside.named(image["filename"]))
            image = image.get("backing-image")
        number = int(one["qdev"].split("/")[-2].removeprefix("virtio-disk"))
        found["vd" + "abcd"[number]] = paths
    return found


def shots(domain, root) -> dict:
    """The snapshots by name: what libvirt keeps, and what our note has of those that it does not keep. {disk: [overlay, base]}"""
    found = {}
    for note in root.iterfind(NOTES):
        if note.get("tracked") != "yes":
            disks = {disk.get("name"): [disk.get("overlay"), disk.get("state")] for disk in note.iterfind("{*}disk") if disk.get("overlay")}
            found[note.get("name")] = {"tracked": False, "disks": disks}
    for snapshot in domain.listAllSnapshots():
        told = ET.fromstring(snapshot.getXMLDesc())
        bases = {target: disk.find("source").get("file") for target, disk in disks_of(told.find("domain")).items()}
        disks = {
            disk.get("name"): [disk.find("source").get("file"), bases.get(disk.get("name"))]
            for disk in told.iterfind("disks/disk")
            if disk.get("snapshot") == "external"
        }
        found[snapshot.getName()] = {"tracked": True, "disks": disks}
    return found


def look(request: dict) -> dict:
    """How a guest stands. ``xml`` is compared, and never read."""
    connection = libvirt.open("qemu:///system")
    domain = connection.lookupByName(request["guest"])
    active = bool(domain.isActive())
    texts = [domain.XMLDesc(flags) for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE)]
    roots = [ET.fromstring(text) for text in texts]
    now, then = (disks_of(root) for root in roots)
    qemu = opened(domain) if active else {}
    disks = {}
    for target, disk in now.items():
        first = spelled(disk)
        disks[target] = {
            "live": first["paths"] if active else None,
            "next": spelled(then[target]),
            "qemu": qemu.get(target),
            "headers": headers(first["paths"][0], first["format"]),
            "format": first["format"],
            "quiet": disk.find("mirror") is None and not (active and domain.blockJobInfo(target)),
        }
    names = sorted(path for folder in FOLDERS for path in glob.glob("%s/%s-*" % (folder, glob.escape(request["guest"]))))
    return {
        "active": active,
        "paused": active and domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED,
        "disks": disks,
        "shots": shots(domain, roots[1]),
        "files": names,
        "job_notes": any(element.tag.startswith("{%s" % JOB_NOTES) for element in roots[0].iter()),
        "xml": texts + [snapshot.getXMLDesc() for snapshot in domain.listAllSnapshots()],
    }


@contextlib.contextmanager
def content(path: str, image_format: str):
    with tempfile.TemporaryDirectory(dir="/srv/fast") as work:
        raw = work + "/raw"
        subprocess.run(["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", path, raw], check=True, capture_output=True)
        with open(raw, "rb") as file:
            yield file


def hashes(request: dict) -> dict:
    """SHA-256 of what a guest would see of each image; of one that cannot be read, why."""
    found = {}
    for path, image_format in request["images"]:
        try:
            with content(path, image_format) as file:
                found[path] = hashlib.sha256(file.read()).hexdigest()
        except subprocess.CalledProcessError as error:
            found[path] = error.stderr.decode()
    return {"hashes": found}


def cells(request: dict) -> dict:
    """The bytes that stand in the cells of an image, each of which is to be of one byte value: -1 where it is not."""
    found = []
    with content(*request["image"]) as file:
        file.seek(request["first"])
        for dummy in range(request["count"]):
            data = file.read(request["size"])
            found.append(data[0] if data and data == data[:1] * request["size"] else -1)
    return {"cells": found}


def write(request: dict) -> dict:
    """Bytes into the disks of a guest: through its QEMU, or into the image of one that is off."""
    domain = libvirt.open("qemu:///system").lookupByName(request["guest"])
    for number, path, image_format, words in request["writes"]:
        if domain.isActive():
            for word in (words, "flush"):
                command = 'qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "%s"' % (number, word)
                said = libvirt_qemu.qemuMonitorCommand(domain, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
                if "error" in said.lower():
                    raise RuntimeError(said)
        else:
            subprocess.run(["qemu-io", "-f", image_format, "-c", words, path], check=True, stdout=subprocess.DEVNULL)
    return {}


def define(request: dict) -> dict:
    """Let the definition name the first layer of each chain only, or all of the running guest."""
    connection = libvirt.open("qemu:///system")
    domain = connection.lookupByName(request["guest"])
    root = ET.fromstring(domain.XMLDesc(0 if request["how"] == "all" else libvirt.VIR_DOMAIN_XML_INACTIVE))
    if request["how"] == "first":
        for disk in root.iterfind("devices/disk"):
            for below in disk.findall("backingStore"):
                disk.remove(below)
    connection.defineXML(ET.tostring(root, encoding="unicode"))
    return {}


def forked(call):
    """That call in a process of its own, which may connect: the modules' runs are forks of one that has not."""

    def made(request: dict) -> dict:
        with tempfile.TemporaryFile() as out:
            pid = os.fork()
            if not pid:
                try:
                    libvirt.registerErrorHandler(lambda *dummy: None, None)
                    answer = call(request)
                except BaseException as error:
                    answer = {"error": "%s: %s" % (type(error).__name__, error)}
                out.write(json.dumps(answer).encode())
                out.flush()
                os._exit(0)
            os.waitpid(pid, 0)
            out.seek(0)
            return json.loads(out.read())

    return made


def main() -> None:
    for name in ("block_copy", "block_commit", "block_rebase", "external_snapshot"):
        importlib.import_module(inside.MODULES + name)
    orders = {"run": inside.run, "shell": inside.shell, **{call.__name__: forked(call) for call in (look, hashes, cells, write, define)}}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = orders[request["do"]](request)
        except Exception as error:
            answer = {"error": "%s: %s" % (type(error).__name__, error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
