# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU runs as a user of its own, and nobody else may read the images. See stage.py of the target external_snapshot."""

from __future__ import annotations

import subprocess

import scene
from converted import FAST, NAMED, Converted, Stage, guest, same, true

CONF = "/etc/libvirt/qemu.conf"
OWN = 's/^user.*/user = "libvirt-qemu"/; s/^group.*/group = "libvirt-qemu"/; s/^remember_owner.*/remember_owner = 1/; $ a dynamic_ownership = 1'


def daemon_with(stage: Stage, change: str) -> None:
    stage.shell("%s; chmod 755 /srv/fast" % change)
    subprocess.run([scene.LAB, "daemon", stage.lab.name, "restart"], check=True, stdout=subprocess.DEVNULL)


def own_user(stage: Stage) -> None:
    """Each way ends with a guest that can open its images, now and at its next start, and with images that only it can read."""
    daemon_with(stage, "cp %s %s.kept; sed -i '%s' %s" % (CONF, CONF, OWN, CONF))
    try:
        ways(stage)
    finally:
        stage.shell("virsh destroy own || true")
        daemon_with(stage, "mv %s.kept %s" % (CONF, CONF))


def ways(stage: Stage) -> None:
    disk = guest(stage, "own", "--no-start")
    qemu = stage.shell("id -u libvirt-qemu")
    stage.shell("chmod 600 %s" % disk.raw)
    stage.cold_start("own")
    result = disk.present("saved", allow_pause=True)
    warned = [warning for warning in result["warnings"] if "It is given to the user %s, as whom QEMU runs, and stays so." % qemu in warning]
    same(len(warned), 0 if stage.version() >= NAMED else 1, "the warnings about its owner", result)
    opened(stage, disk, qemu)
    stage.end("own")
    disk.absent("offline")
    stage.shell("chown 0:0 %s" % disk.raw)
    disk.present("offline")
    stage.cold_start("own")
    opened(stage, disk, qemu)
    disk.absent("saved", allow_pause=True)
    new = Converted(stage, "own", FAST + "/own.raw")
    new.present("copy", dest=new.raw)
    opened(stage, new, qemu)
    new.whole()
    stage.end("own")
    stage.shell("chown 0:0 %s" % new.raw)
    new.absent("offline")
    off = Converted(stage, "own", FAST + "/off.raw")
    off.present("copy", dest=off.raw)
    stage.cold_start("own")
    opened(stage, off, qemu)


def opened(stage: Stage, disk: Converted, qemu: str) -> None:
    """The running QEMU owns both, and nobody else may read them."""
    same(stage.shell("stat -c '%%a %%u' %s %s" % (disk.raw, disk.meta)).split("\n"), ["600 " + qemu] * 2, "the mode and the owner of both files")
    running = stage.shell("ps -o user:32= -C qemu-system-x86_64 | sort -u")
    true("libvirt-qemu" in running or qemu in running, "QEMU runs as its own user: %s" % running)


STORIES = [own_user]
