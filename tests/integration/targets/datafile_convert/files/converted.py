# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A raw disk of a guest, the layer over it, and what is true of both, by other readers than the module. See stage.py of the target external_snapshot."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from stage import FAST, IMAGES, Stage, chains, same, true

MODULE = "datafile_convert"
NAMED = (10, 10, 0)  # the libvirt whose XML names data files
URI = "https://livestorage.github.io/libvirt/datafile/1/"


@dataclass
class Converted:
    """A disk of a guest on ``raw``, with or without the layer ``meta`` over it."""

    stage: Stage
    guest: str
    raw: str
    disk: str = "vda"
    meta: str = ""

    def __post_init__(self):
        self.meta = self.meta or self.raw + ".qcow2"

    @property
    def task(self) -> dict:
        return {"module": MODULE, "name": self.guest, "disk": self.disk}

    def present(self, method: str, **more) -> dict:
        result = self.stage.done(**dict(self.task, **more), wanted={self.disk: [self.meta]})
        self.said(result, method, self.raw)
        self.over(method)
        return result

    def absent(self, method: str, **more) -> dict:
        result = self.stage.done(**dict(self.task, state="absent", **more), wanted={self.disk: [self.raw]})
        self.said(result, method, None)
        self.alone()
        return result

    def said(self, result: dict, method: str, data: str | None) -> None:
        same((result["method"], result["metadata"], result["data_file"]), (method, self.meta, self.raw), "what it says it did", result)
        true((result["pause"] is not None and 0 < result["pause"] < 30) == (method == "saved"), "the pause is told where there was one", result)
        disk = next(one for one in result["domains"][0]["disks"] if one["disk"] == self.disk)
        found = disk["chain"][0]["data_store"]
        same(found and (found["path"], found["raw"]), data and (data, True), "the data store of the result", result)

    def over(self, method: str = "") -> None:
        """libvirt has the layer, now and at the next start, and the layer has the raw image. Nothing else is left.

        A copy lets it forget the data file until the next start.
        """
        active = bool(self.stage.shell("virsh list --name | grep -x %s || true" % self.guest))
        for now in (True, False):
            same(self.stage.paths(self.guest, now)[self.disk], [self.meta], "the XML, %s" % ("live" if now else "next start"))
            named = self.stage.version() >= NAMED and not (now and active and method == "copy")
            same(self.stores(now), [self.raw] if named else [], "the data store in the XML")
        same(data_of(self.stage, self.meta), (self.raw, True), "the header")
        self.tidy()

    def alone(self) -> None:
        """libvirt has the raw image alone, and there is no layer any more."""
        for now in (True, False):
            same((self.stage.paths(self.guest, now)[self.disk], self.stores(now)), ([self.raw], []), "the XML")
        true(not self.stage.exists(self.meta), "the layer is gone")
        self.tidy()

    def tidy(self) -> None:
        """No note, no memory that is kept, no file that was half made."""
        same(self.stage.shell("virsh dumpxml --inactive %s | grep -c %s || true" % (self.guest, URI)), "0", "the notes")
        same(self.stage.shell("virsh list --all --name --with-managed-save"), "", "the guests that are saved")
        true(not self.stage.exists(self.meta + ".adopting"), "the file that it was made over is gone")

    def stores(self, now: bool) -> list:
        root = ET.fromstring(self.stage.shell("virsh dumpxml %s %s" % ("" if now else "--inactive", self.guest)))
        disk = next(one for one in root.iterfind("devices/disk") if one.find("target").get("dev") == self.disk)
        return [one.get("file") or one.get("dev") for one in disk.iterfind("source/dataStore/source")]

    def whole(self) -> None:
        """What the guest sees and the raw image alone are the same, and after a cold boot every write is there, those of before included."""
        self.stage.guest = self.guest
        self.stage.end(self.guest)
        if self.stage.exists(self.meta):
            self.stage.shell("qemu-img compare -q -f qcow2 -F raw %s %s" % (self.meta, self.raw))
        self.stage.cold_start(self.guest)

    def print(self) -> str:
        """What must not change of a quiet raw image: its content, its times but that of its last reading, its place and its owner."""
        return self.stage.shell("sha256sum %s; stat -c '%%i %%y %%s %%b %%a %%u:%%g' %s" % (self.raw, self.raw))


def guest(stage: Stage, name: str, *options: str) -> Converted:
    """A guest on one raw image of 16 MiB that is nearly empty."""
    if name not in stage.guests:
        stage.add(name, "--layers", "current1", "--base-format", "raw", "--slots", "16", "--size", "16", *options)
    stage.guest = name
    return Converted(stage, name, "%s/%s-current1.raw" % (IMAGES, name))


def data_of(stage: Stage, path: str) -> tuple:
    """(the data file, whether it is raw) by the header of an image."""
    found = json.loads(stage.shell("qemu-img info -U -f qcow2 --output=json %s" % path))["format-specific"]["data"]
    return found.get("data-file"), found.get("data-file-raw", False)


def state(stage: Stage, name: str) -> str:
    return stage.shell("virsh domstate %s" % name)


__all__ = ["FAST", "IMAGES", "MODULE", "NAMED", "Converted", "Stage", "chains", "data_of", "guest", "same", "state", "true"]
