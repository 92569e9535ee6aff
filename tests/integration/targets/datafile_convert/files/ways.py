# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every way between a raw image and a layer over it, of guests that write. See stage.py of the target external_snapshot."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

from converted import FAST, IMAGES, MODULE, NAMED, Converted, Stage, data_of, guest, same, state, true

MIB = 1 << 20


def saved(stage: Stage) -> None:
    """A guest that writes is paused for it, and a full backup of its nearly empty disk is small; then back."""
    disk = guest(stage, "writer")
    result = disk.present("saved", allow_pause=True)
    steps = [step["action"] for step in result["steps"]]
    same(steps, ["note", "metadata", "save", "lock", "adopt", "resave", "redefine", "restart", "unnote"], "the steps", result)
    warned = [warning for warning in result["warnings"] if "cannot name the data file" in warning]
    same(len(warned), 0 if stage.version() >= NAMED else 1, "the warnings about libvirts that cannot name it", result)
    same(state(stage, "writer"), "running", "the guest")
    stage.shell("virsh backup-begin writer; until virsh domjobinfo writer --completed | grep -q Completed; do sleep 0.1; done")
    full = stage.shell("ls %s/writer-current1.raw.qcow2.[0-9]*" % IMAGES)
    taken = int(stage.shell("stat -c %%b %s" % full)) * 512
    true(taken < 2 * MIB, "a full backup of 16 MiB with little in it is small: %d bytes" % taken)
    stage.shell("rm %s" % full)
    disk.whole()
    disk.absent("saved", allow_pause=True)
    disk.whole()


def offline(stage: Stage) -> None:
    """A guest that is off: its image is not written to. The layer has the owner and the mode of that."""
    disk = guest(stage, "writer")
    stage.end("writer")
    stage.shell("chown 64055:64055 %s; chmod 640 %s" % (disk.raw, disk.raw))
    before = disk.print()
    disk.present("offline")
    same((disk.print(), stage.shell("stat -c '%%a %%u:%%g' %s" % disk.meta)), (before, "640 64055:64055"), "the raw image and the layer's rights")
    stage.cold_start("writer")
    disk.whole()
    stage.end("writer")
    before = disk.print()
    disk.absent("offline")
    same(disk.print(), before, "the raw image")
    stage.cold_start("writer")
    disk.whole()


def copied(stage: Stage) -> None:
    """Live onto a new data file, without a pause; the old image stays as it is. Dropped, the new raw image is the disk."""
    disk = guest(stage, "writer")
    new = Converted(stage, "writer", FAST + "/new.raw")
    new.present("copy", dest=new.raw)
    old = disk.print()
    new.whole()
    same((stage.exists(disk.raw), disk.print()), (True, old), "the image that was left")
    new.absent("saved", allow_pause=True)
    new.whole()
    stage.clean()


def quiet(stage: Stage) -> None:
    """A paused guest is paused again, and the bytes of its image stay; one disk of two, by its path, its guest by its UUID."""
    stage.add("quiet", "--disks", "2", "--layers", "current1", "--base-format", "raw", "--slots", "16", "--size", "16")
    images = ["%s/quiet-current1%s.raw" % (IMAGES, more) for more in ("", "-vdb")]
    stage.acks(2)
    stage.shell("virsh suspend quiet")
    uuid = stage.shell("virsh domuuid quiet")
    disk = Converted(stage, "quiet", images[1], disk="vdb")
    before = disk.print().split()[0]
    result = stage.done(MODULE, uuid=uuid, disk=images[1], allow_pause=True)
    disk.said(result, "saved", disk.raw)
    disk.over()
    same((state(stage, "quiet"), disk.print().split()[0]), ("paused", before), "the guest, and the raw image")
    same(stage.paths("quiet")["vda"], images[:1], "the other disk")
    stage.again(MODULE, uuid=uuid, disk=images[1], allow_pause=True)
    result = stage.done(MODULE, uuid=uuid, disk=disk.raw, state="absent", method="saved", allow_pause=True)
    disk.said(result, "saved", None)
    disk.alone()
    same((state(stage, "quiet"), disk.print().split()[0]), ("paused", before), "the guest, and the raw image")
    stage.shell("virsh resume quiet")
    stage.guest = "quiet"
    stage.acks(4)
    stage.verified()


def inside(stage: Stage) -> None:
    """A qcow2 image that holds its data itself, live and off: its dirty bitmaps go with it."""
    stage.add("inner", "--layers", "current1", "--slots", "16", "--size", "16", "--no-start")
    old = IMAGES + "/inner-current1.qcow2"
    stage.shell("qemu-img bitmap --add %s kept" % old)
    for number, running in enumerate((False, True)):
        if running:
            stage.cold_start("inner")
        new = Converted(stage, "inner", "%s/inner%d.raw" % (FAST, number))
        stage.refused("copy_needed", "holds its data itself, .*: give the option dest", MODULE, name="inner", disk="vda", allow_pause=True)
        new.present("copy", dest=new.raw)
        if not running:
            stage.cold_start("inner")
        new.whole()
        stage.end("inner")
        same(bitmaps(stage, new.meta), ["kept"], "the bitmaps after running %s" % running)
        if not running:
            stage.shell(f"virsh dumpxml --inactive inner | sed 's#{new.meta}#{old}#; /<dataStore/,/<.dataStore/d' > {FAST}/x.xml && virsh define {FAST}/x.xml")
            stage.shell("qemu-img convert -f qcow2 -O qcow2 --bitmaps %s %s" % (new.meta, old))


def bitmaps(stage: Stage, path: str) -> list:
    found = json.loads(stage.shell("qemu-img info -U -f qcow2 --output=json %s" % path))["format-specific"]["data"]
    return [one["name"] for one in found.get("bitmaps", [])]


def alone(stage: Stage) -> None:
    """An image that belongs to no guest: not a byte and no time of it changes; the layer shows its holes as zeros, unless that is not wanted."""
    raw = FAST + "/alone.raw"
    stage.shell("truncate -s 16M %s; qemu-io -f raw -c 'write -P 5 1M 1M' -c 'write -P 6 9M 64K' %s; chmod 604 %s; chown 7:8 %s" % (raw, raw, raw, raw))
    disk = Converted(stage, "", raw)
    before = disk.print()
    thin, thick = [(MIB, MIB), (9 * MIB, MIB >> 4)], [(0, 16 * MIB)]
    for more, meta, wanted in (({}, raw + ".qcow2", thin), ({"preserve_holes": False, "cluster_size": "2MiB"}, FAST + "/m.qcow2", thick)):
        more = dict(more, path=raw, **({} if meta == disk.meta else {"metadata": meta}))
        result = stage.done(MODULE, {meta: [meta], raw: [raw]}, **more)
        same([one["chain"][0]["data_store"] and one["chain"][0]["data_store"]["path"] for one in result["images"]], [raw, None], "the data stores", result)
        same((result["method"], result["pause"], data_of(stage, meta)), ("offline", None, (raw, True)), "what it did", result)
        same((disk.print(), stage.shell("stat -c '%%a %%u:%%g' %s" % meta)), (before, "604 7:8"), "the raw image, and the layer's rights")
        found = json.loads(stage.shell("qemu-img map -f qcow2 --output=json %s" % meta))
        same([(one["start"], one["length"]) for one in found if not one["zero"]], wanted, "what it shows as data")
        stage.shell("qemu-img compare -q -f qcow2 -F raw %s %s && qemu-img check -q %s" % (meta, raw, meta))
        stage.again(MODULE, **more)
        result = stage.done(MODULE, **dict(more, state="absent"))
        same((disk.print(), stage.exists(meta)), (before, False), "the raw image and the layer", result)
        stage.again(MODULE, **dict(more, state="absent"))
    copy = {"path": raw, "dest": FAST + "/copy.raw"}
    stage.done(MODULE, **copy)
    stage.shell("cmp %s %s/copy.raw && qemu-img compare -q -f qcow2 -F raw %s/copy.raw.qcow2 %s" % (raw, FAST, FAST, raw))
    same(disk.print(), before, "the raw image")


def migrated(stage: Stage) -> None:
    """What a live migration is to be given, twice the same; the guest stays where it is, and each other way goes on from there."""
    disk = guest(stage, "writer")
    task = dict(disk.task, method="migrate_xml")
    preview = stage.call(**task, check=True)
    result = stage.call(**task)
    again = stage.again(**task)
    same((preview["changed"], result["changed"], result["method"], again["method"]), (True, True, "migrate_xml", None), "what it says", result)
    same((preview["xml"], result["xml"]), (again["xml"], again["xml"]), "the XML", result)
    for which in ("live", "persistent"):
        domain = ET.fromstring(result["xml"][which])
        source = domain.find("devices/disk/source")
        named = [one.get("file") for one in source.iterfind("dataStore/source")]
        same((domain.find("devices/disk/driver").get("type"), source.get("file")), ("qcow2", disk.meta), "the disk in the %s XML" % which)
        same(named, [disk.raw] if stage.version() >= NAMED else [], "the data store in the %s XML" % which)
    same((stage.paths("writer")["vda"], data_of(stage, disk.meta)), ([disk.raw], (disk.raw, True)), "the guest, and the layer")
    disk.present("saved", allow_pause=True)
    result = stage.call(**dict(task, state="absent"))
    same((result["changed"], result["method"]), (False, None), "the way back needs no new file", result)
    same(ET.fromstring(result["xml"]["live"]).find("devices/disk/source").get("file"), disk.raw, "the disk in the XML")
    disk.absent("saved", allow_pause=True)
    stage.call(**task)
    result = stage.call(**dict(disk.task, state="absent"))
    same((result.get("changed"), stage.exists(disk.meta)), (True, False), "a layer that was not used goes", result)
    disk.alone()
    disk.whole()


STORIES = [saved, offline, migrated, quiet, inside, alone, copied]
