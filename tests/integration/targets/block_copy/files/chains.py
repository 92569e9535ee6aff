# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""chains.py GUEST TARGET [restart]: a disk's chain three times as a line of JSON, read without the collection.

live and next are libvirt's XML now and at the next start, as [format, place] for each layer, and whether the chain has its end;
qemu is what QEMU itself has open, which shows a backing that libvirt hides from it, and which no header tells. With restart the
guest is then ended and started, from its definition or, where it has none, from what it is now, and another line follows.
"""

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET


def virsh(*arguments):
    return subprocess.run(["virsh", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def of_xml(text, target):
    disk = next(one for one in ET.fromstring(text).iterfind("devices/disk") if one.find("target").get("dev") == target)
    element, found = disk, []
    while element is not None and element.find("source") is not None:
        source = element.find("source")
        host = source.find("host")
        place = source.get("file") or source.get("dev") or "%s:%s" % (source.get("protocol"), host.get("port"))
        found.append([(disk.find("driver") if element is disk else element.find("format")).get("type"), place])
        element = element.find("backingStore")
    return {"chain": found, "ends": element is not None, "mirror": disk.find("mirror") is not None}


def of_qemu(name, target):
    alias = ET.fromstring(virsh("dumpxml", name)).find("devices/disk/target[@dev='%s']/../alias" % target).get("name")
    answer = json.loads(virsh("qemu-monitor-command", name, '{"execute": "query-block"}'))["return"]
    image = next(one for one in answer if one.get("qdev", "").split("/")[-2:-1] == [alias])["inserted"]["image"]
    found = []
    while image is not None:
        found.append([image["format"], named(image["filename"])])
        image = image.get("backing-image")
    return found


def named(filename):
    if filename.startswith("nbd://"):
        return "nbd:" + filename.split(":")[2].split("/")[0]
    if not filename.startswith("json:"):
        return filename
    options = json.loads(filename[5:])
    if "backing" in options and options["backing"] is None:
        return "hidden backing of %s" % filename
    while "file" in options:
        options = options["file"]
    return named(options["filename"]) if "filename" in options else filename


def look(name, target):
    live, then = virsh("dumpxml", name), virsh("dumpxml", "--inactive", name)
    print(json.dumps({"live": of_xml(live, target), "next": of_xml(then, target), "qemu": of_qemu(name, target)}), flush=True)
    return then


def restart(name, then):
    persistent = name in virsh("list", "--persistent", "--name").split()
    virsh("destroy", name)
    if persistent:
        virsh("start", name)
        return
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(then)
        file.flush()
        virsh("create", file.name)


guest, disk = sys.argv[1:3]
definition = look(guest, disk)
if sys.argv[3:] == ["restart"]:
    restart(guest, definition)
    look(guest, disk)
