# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is refused: in check mode and for real, with its sentence; no byte and no time of the raw image changes, and no file is made.

See stage.py of the target external_snapshot.
"""

from __future__ import annotations

from converted import FAST, IMAGES, MODULE, Converted, Stage, guest, same

RAW, META = IMAGES + "/still-current1.raw", IMAGES + "/still-current1.raw.qcow2"
OTHER = FAST + "/other.raw"
DISK = "disk vda of guest still"


class Kept:
    """A guest that never writes, on a raw image of which nothing must change."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.disk = guest(stage, "still", "--no-start", "--slots", "0")
        stage.shell("virsh destroy still || true; qemu-io -f raw -c 'write -P 3 8M 1M' %s" % RAW)
        self.definition = stage.shell("virsh dumpxml --inactive still")

    def refused(self, code: str, says: str, **arguments) -> None:
        before = self.disk.print()
        whole = {} if "path" in arguments or "uuid" in arguments else {"name": "still", "disk": "vda"}
        self.stage.refused(code, says, MODULE, **dict(whole, **arguments))
        same(self.disk.print(), before, "the raw image after %s" % code)

    def defined(self, expression: str) -> None:
        """The definition as sed changes it."""
        self.stage.shell('virsh dumpxml --inactive still | sed "%s" > %s/x.xml && virsh define %s/x.xml && rm %s/x.xml' % (expression, FAST, FAST, FAST))

    def again(self) -> None:
        """The definition of the beginning."""
        self.stage.shell("cat > %s/x.xml <<'END'\n%s\nEND\nvirsh define %s/x.xml && rm %s/x.xml" % (FAST, self.definition, FAST, FAST))

    def during(self, begin: str, end: str, code: str, says: str, **arguments) -> None:
        self.stage.shell(begin)
        self.refused(code, says, **arguments)
        self.stage.shell(end)


def asked(stage: Stage) -> None:
    """What is wrong in itself, or with the state of the guest."""
    kept = Kept(stage)
    for option, more in (("metadata", {}), ("dest", {}), ("path", {"path": "x.raw"})):
        arguments = more or {option: "x.raw"}
        kept.refused("not_absolute", "The option %s is x.raw, a relative path, which .*: give an absolute path[.]$" % option, **arguments)
    kept.refused("dest_needed", "The option dest is for the method copy and the state present, .*: leave it out[.]$", state="absent", dest=OTHER)
    kept.refused("dest_needed", "The option dest is for the method copy", method="offline", dest=OTHER)
    kept.refused("dest_needed", "The method copy needs the option dest: name the new data file[.]$", method="copy")
    kept.refused("bad_method", "The state absent copies nothing: choose another method, or ", method="copy", state="absent")
    for method in ("saved", "migrate_xml"):
        kept.refused(
            "bad_method", "The method %s is for a running guest, and path is .*: name the guest, or leave it out[.]$" % method, method=method, path=RAW
        )
        kept.refused("bad_method", "^Guest still is off, and the method %s is for one that is not: start it, or leave method out[.]$" % method, method=method)
    for size in ("256", "96KiB"):
        kept.refused("bad_cluster_size", "The option cluster_size is %s: give a power of two from 512 bytes to 2MiB[.]$" % size, cluster_size=size)
    kept.refused("no_disk", "Guest still has no disk vdz", disk="vdz")
    kept.refused("image_missing", "^The image %s is not there: correct the path[.]$" % OTHER, path=OTHER)
    stage.shell("printf '#!/bin/sh\\nexec virt-ssh-helper qemu:///system\\n' > %s/far; chmod 755 %s/far" % (FAST, FAST))
    kept.refused(
        "remote_files", "^The conversion of %s needs its files: run this task on the guest's host[.]$" % DISK, uri="qemu+ext:///system?command=%s/far" % FAST
    )
    stage.shell("rm %s/far" % FAST)


def places(stage: Stage) -> None:
    """Nothing is made over anything, nor where there is no room or no directory."""
    kept = Kept(stage)
    exists = "^The path %s%s for " + DISK + " exists already, and nothing is written over a file: .*, or choose another path with metadata[.]$"
    for more in ("", ".adopting"):
        path = META + more
        for begin in ("echo x > %s", "touch %s", "ln -s /nowhere %s", "mkdir %s") if not more else ("touch %s",):
            kept.during(begin % path, "rm -r %s" % path, "exists", exists % (META, more))
        path = OTHER + ".qcow2" + more
        kept.during("truncate -s 1M %s; touch %s" % (OTHER, path), "rm %s %s" % (path, OTHER), "exists", "^The path %s for the image " % path, path=OTHER)
    kept.refused("no_parent", "^The path /srv/none/m for %s is in /srv/none, which is not a directory: create it first[.]$" % DISK, metadata="/srv/none/m")
    kept.refused("no_parent", "is in %s, which is not a directory" % RAW, metadata=RAW + "/m")
    kept.refused("exists|in_use", "^The (path|destination) %s for %s is " % (RAW, DISK), metadata=RAW)
    kept.refused("exists", "^The new files for %s have the same path: choose other ones[.]$" % DISK, metadata=OTHER, dest=OTHER)
    kept.during("touch %s" % OTHER, "rm %s" % OTHER, "exists", "^The path %s for %s exists already" % (OTHER, DISK), dest=OTHER)
    stage.small("/srv/small", "128K")
    no_room = "^The %s /srv/small/%s for %s needs [0-9]+ bytes, and its file system has [0-9]+ left: make room"
    kept.refused("no_space", no_room % ("layer", "m", DISK), metadata="/srv/small/m")
    kept.refused("no_space", no_room % ("data file", "d", DISK), dest="/srv/small/d", metadata=FAST + "/m")


def shapes(stage: Stage) -> None:
    """Disks that no data file can serve, or whose guest is not at rest, while the guest is off."""
    kept = Kept(stage)
    source = "<source file='%s'" % RAW
    kind = "^Disk vda of guest still %s: a conversion is not possible, choose another disk[.]$"
    for tag, reason in (("shareable", "is shareable, so other guests .*"), ("readonly", "is read-only"), ("transient", "is transient")):
        kept.defined("s#<target dev='vda'.*#&<%s/>#" % tag)
        kept.refused("disk_kind", kind % reason)
        kept.again()
    kept.defined("s#device='disk'#device='cdrom'#; s#<target dev='vda' bus='virtio'/>#<target dev='hda' bus='ide'/>#; /<address type='pci'.*0x02/d")
    kept.refused("disk_kind", "^Disk hda of guest still is a cdrom: a conversion is not possible", disk="hda")
    kept.again()
    kept.defined(
        "s#type='file' device='disk'#type='network' device='disk'#; s#%s/>#<source protocol='nbd' name='x'><host name='127.0.0.1' port='1'/></source>#" % source
    )
    kept.refused("disk_kind", "^The layer nbd:.* of %s is neither a file nor a block device, which no data file can be: choose another disk[.]$" % DISK)
    kept.again()
    kept.defined("s#%s/>#%s><slices><slice type='storage' offset='0' size='4096'/></slices></source>#" % (source, source))
    kept.refused("disk_kind", "^The layer %s of %s is a slice of its image, which " % (RAW, DISK))
    kept.again()
    kept.defined("s#name='qemu' type='raw'#name='qemu' type='vdi'#")
    kept.refused("unread", "^Nobody knows who else needs %s, because the chain below %s cannot be read: mend that first[.]$" % (DISK, RAW))
    kept.again()
    stage.shell("qemu-img create -q -f qcow2 -b %s -F raw %s/over.qcow2" % (RAW, FAST))
    kept.defined("s#%s#%s/over.qcow2#; s#type='raw'#type='qcow2'#" % (RAW, FAST))
    kept.refused("backing_file", "^%s/over.qcow2 of %s is qcow2 on %s, and only a raw image .*: merge or flatten its chain first[.]$" % (FAST, DISK, RAW))
    kept.refused("backing_file", "is on %s, and only a raw or qcow2 image that stands alone is copied" % RAW, dest=OTHER)
    kept.refused("no_data_file", "^%s/over.qcow2 of %s has no data file, it holds its data itself: copy " % (FAST, DISK), state="absent")
    kept.again()
    stage.shell("virsh start still; virsh managedsave still")
    kept.refused("saved", "^Guest still is saved with its memory [(]managed save[)], which expects its disks as they are: start it, or drop ")
    stage.shell("virsh managedsave-remove still")
    stage.shell("truncate -s 1000 %s/odd.raw; cp %s %s/o.raw" % (FAST, RAW, FAST))
    for size in (0, 1000):
        stage.shell("truncate -s %d %s/odd.raw" % (size, FAST))
        kept.refused(
            "size", "odd.raw of .*has %d bytes, which is no multiple of 512, so .*: grow it with qemu-img resize first[.]$" % size, path=FAST + "/odd.raw"
        )


def device(stage: Stage) -> None:
    """A block device cannot follow all discards; without them it becomes a data file as a file does."""
    kept = Kept(stage)
    path = stage.device("16M")
    stage.shell("qemu-io -f raw -c 'write -P 4 2M 1M' %s" % path)
    content = stage.shell("sha256sum < %s" % path)
    kept.defined("s#<disk type='file'#<disk type='block'#; s#<source file='%s'#<source dev='%s'#; s#type='raw'/>#type='raw' discard='unmap'/>#" % (RAW, path))
    says = "^Disk vda of guest still has discard='unmap', and what is discarded at %s may still be read there, .*: set discard='ignore' in "
    kept.refused("discard", says % path, metadata=FAST + "/m")
    kept.defined("s# discard='unmap'##")
    task = dict(kept.disk.task, metadata=FAST + "/m")
    stage.done(**task, wanted={"vda": [FAST + "/m"]})
    same(stage.shell("qemu-img compare -q -f qcow2 -F raw %s/m %s && sha256sum < %s" % (FAST, path, path)), content, "the device")
    stage.shell("virsh start still; virsh destroy still")
    stage.done(**dict(kept.disk.task, state="absent"))
    same((stage.paths("still")["vda"], stage.shell("sha256sum < %s" % path), stage.exists(FAST + "/m")), ([path], content, False), "the way back")
    kept.again()


def layers(stage: Stage) -> None:
    """A layer that may not be dropped, and one that is not the disk's."""
    kept = Kept(stage)
    data = FAST + "/d.raw"
    layer = Converted(stage, "still", data)
    off = "qemu-img create -q -f qcow2 -o data_file=%s %s 16M" % (data, layer.meta)
    stage.shell(off)
    for state in ("present", "absent"):
        kept.refused("not_raw", "^%s of the image %s has a data file that is not raw" % (layer.meta, layer.meta), state=state, path=data)
    kept.defined("s#%s#%s#; s#type='raw'#type='qcow2'#" % (RAW, layer.meta))
    for state in ("present", "absent"):
        kept.refused("not_raw", "has a data file that is not raw [(]data_file_raw is off, .*: copy the disk with block_copy[.]$", state=state)
    stage.shell("rm %s %s; %s" % (data, layer.meta, off.replace("data_file=", "data_file_raw=on,data_file=")))
    kept.refused("not_over", "^The layer of %s is %s: correct the option metadata, or leave it out[.]$" % (DISK, layer.meta), state="absent", metadata=META)
    kept.refused("converted", "^The layer %s over the data file %s is on disk vda of guest still already: " % (layer.meta, data), metadata=META)
    stage.shell("truncate -s 17M %s" % data)
    for state in ("present", "absent"):
        kept.refused("size", "shows 16777216 bytes, and its data file %s has 17825792: they have to be equal, " % data, state=state)
    stage.shell("truncate -s 16M %s; qemu-img create -q -f qcow2 -b %s -F qcow2 %s/over.qcow2" % (data, layer.meta, FAST))
    kept.defined("s#%s#%s/over.qcow2#; s#type='raw'#type='qcow2'#; /<dataStore/,/<.dataStore/d" % (layer.meta, FAST))
    kept.refused("no_data_file|backing_file", "over.qcow2 of %s " % DISK, state="absent")
    kept.again()
    kept.refused(
        "not_over", "^%s is no layer over %s of %s: leave the option metadata out, or name " % (layer.meta, RAW, DISK), state="absent", metadata=layer.meta
    )


def stale(stage: Stage) -> None:
    """A layer over a raw image that was used without it meanwhile is not taken up again, nor believed, nor dropped."""
    kept = Kept(stage)
    stage.shell("cp %s %s/old.raw" % (RAW, FAST))
    stage.call(**kept.disk.task)
    kept.again()
    stage.shell("qemu-io -f raw -c 'write -P 9 4M 1M' %s" % RAW)
    kept.refused("exists", "an old layer over a raw image that was used without it is of no use any more")
    kept.defined("s#%s#%s#; s#type='raw'#type='qcow2'#" % (RAW, META))
    differs = (
        "^%s of .* does not show what its data file %s holds, which was used without it, .*: find out which of both is right[.] If that is the data file, "
    )
    for state in ("present", "absent"):
        kept.refused("differs", differs % (META, RAW), state=state)
    kept.again()
    stage.shell("rm %s" % META)
    bare = {"path": FAST + "/old.raw", "metadata": FAST + "/old.qcow2"}
    stage.call(MODULE, **bare)
    stage.shell("qemu-io -f raw -c 'write -P 9 4M 1M' %s/old.raw" % FAST)
    for state in ("present", "absent"):
        kept.refused("differs", differs % (bare["metadata"], bare["path"]), state=state, **bare)


def elsewhere(stage: Stage) -> None:
    """Who has the image open, or needs it as well."""
    kept = Kept(stage)
    wait = "until pgrep -x qemu-io; do sleep 0.05; done; sleep 0.2"
    held = "(sleep 60 | qemu-io -f raw %s %s) < /dev/null > /dev/null 2>&1 & " + wait
    held_by = "is in use [(]the process [0-9]+, qemu-io, has locked it[)]: let that end, then run this task again[.]$"
    for read in ("", "-r"):
        stage.shell(held % (read, RAW))
        kept.refused("in_use", held_by)
        stage.shell("cp %s %s/o.raw" % (RAW, FAST))
        stage.shell("kill $(pgrep -x qemu-io)")
    stage.shell(held % ("", FAST + "/o.raw"))
    kept.refused("in_use", held_by, path=FAST + "/o.raw")
    kept.refused("in_use", held_by, path=FAST + "/o.raw", dest=FAST + "/p.raw")
    stage.shell("kill $(pgrep -x qemu-io)")
    stage.shell(
        f"virsh dumpxml --inactive still | sed '/<uuid>/d; s#<name>.*#<name>twin</name>#; s#still.acks#twin.acks#' > {FAST}/x.xml && virsh define {FAST}/x.xml"
    )
    stage.mended.append("virsh undefine twin")
    for running in (False, True):
        kept.refused("in_use", "^%s of %s is a layer of disk vda of guest twin, too: leave it alone[.]$" % (RAW, DISK))
        kept.refused("in_use", "^The image %s is a layer of disk vda of guest (twin|still): name that guest instead of the image[.]$" % RAW, path=RAW)
        stage.shell("virsh destroy twin" if running else "virsh start twin")
    kept.refused("in_use", "is a layer of disk vda of guest", metadata=RAW)


def running(stage: Stage) -> None:
    """A guest that runs: nobody has allowed its pause, or something of it would not outlive it."""
    kept = Kept(stage)
    stage.shell("virsh start still")
    pause = (
        "^For the conversion of disk vda of guest still its guest has to be paused: 2 MiB of memory are .* Set allow_pause, or shut the guest down first%s[.]$"
    )
    for method in ("auto", "saved"):
        kept.refused("pause", pause % ", or give dest, to copy it without a pause", method=method)
    kept.refused(
        "bad_method", "^Guest still is running, and the method offline is for one that is not: shut it down, or leave method out[.]$", method="offline"
    )
    go = {"allow_pause": True}
    overlay = f"virsh snapshot-create-as still s --disk-only --diskspec vda,file={FAST}/s.qcow2 && virsh blockcommit still vda --active --pivot --wait"
    says = "^Guest still has snapshots [(]s[)], which name %s as it is now, and a reversion would bring that back: delete them first[.]$" % RAW
    kept.during(overlay, f"virsh snapshot-delete still s --metadata; rm {FAST}/s.qcow2", "snapshots", says, **go)
    copy = f"virsh blockcopy still vda --dest {FAST}/c.raw --format raw --transient-job && sleep 0.5"
    kept.during(copy, f"virsh blockjob still vda --abort; rm -f {FAST}/c.raw", "foreign_job", "still vda|vda of guest still", **go)
    kept.defined("s#%s#%s/o.raw#" % (RAW, FAST))
    kept.refused("config_differs", "^At its next start, disk vda of guest still would have %s/o.raw, while it has %s now: define " % (FAST, RAW), **go)
    kept.again()
    stage.shell("virsh dumpxml still > %s/t.xml; virsh undefine still" % FAST)
    kept.refused("transient", "^Guest still is transient, so that its conversion would end with it: define it first [(]virsh define[)][.]$", **go)
    stage.shell("virsh define %s/t.xml; virsh destroy still" % FAST)
    kept.again()
    stage.done(**kept.disk.task)
    stage.shell("virsh start still")
    kept.refused("pause", pause % "", state="absent")
    stage.shell("virsh checkpoint-create-as still c")
    says = "^There are checkpoints of %s, whose bitmaps would say nothing true of it any more: delete them first, and make a full backup afterwards[.]$" % DISK
    kept.refused("checkpoints", says, state="absent", **go)
    stage.shell("virsh checkpoint-delete still c; virsh destroy still")
    stage.done(**dict(kept.disk.task, state="absent"))
    stage.again(**dict(kept.disk.task, state="absent"))


STORIES = [asked, places, shapes, device, layers, stale, elsewhere, running]
