# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who remembers a snapshot, and where its overlays are. See stage.py.

libvirt keeps its metadata, or a note in the guest's own metadata does, or nobody, since somebody else made the overlay.
"""

from __future__ import annotations

from stage import FAST, IMAGES, Stage, same

GUEST = "kind"
VDA, VDB = IMAGES + "/kind-current1.qcow2", IMAGES + "/kind-current1-vdb.qcow2"
BELOW, BELOW_VDB = IMAGES + "/kind-template.qcow2", IMAGES + "/kind-template-vdb.qcow2"
SNAPSHOT = {"module": "external_snapshot", "name": GUEST}
PORT = 10811


def overlay(disk: str, name: str, **more) -> dict:
    return dict(more, disk=disk, path=at(name))


def at(name: str) -> str:
    return "%s/kind-%s.qcow2" % (IMAGES, name)


def on_delete(stage: Stage) -> None:
    """Without libvirt's metadata, a note remembers the disks and how each is to be merged; with it, a note remembers the latter."""
    stage.add(GUEST, "--disks", "2", "--slots", "32", "--size", "32")
    disks = [overlay("vda", "a"), overlay("vdb", "b", on_delete="backward")]
    stage.done(**SNAPSHOT, wanted={"vda": [at("a"), VDA, BELOW]}, snapshot_name="night", metadata=False, on_delete="forward", disks=disks)
    same((stage.shots(GUEST), stage.noted(GUEST)), ({}, ["night"]), "who remembers it")
    refusals = [
        ("name_taken", "night", {"snapshot_name": "night", "metadata": False, "disks": [overlay("vda", "c")]}),
        ("name_taken", "night", {"snapshot_name": "night", "disks": [overlay("vda", "c")]}),
        ("snapshot_needs", "night", {"state": "absent", "disks": [{"disk": "vda", "layer": at("a")}]}),
    ]
    for code, says, arguments in refusals:
        stage.refused(code, says, **SNAPSHOT, **arguments)
    for number in (0, 1):
        stage.poke(GUEST, number, "8M 1M")
    result = stage.done(**SNAPSHOT, wanted={"vda": [at("a"), BELOW], "vdb": [VDB, BELOW_VDB]}, snapshot_name="night", state="absent", delete_files=True)
    same(result["spoils"], [VDB], "what it spoils", result)
    same((stage.noted(GUEST), stage.exists(VDA), stage.exists(at("b")), stage.exists(VDB)), ([], False, False, True), "what is left")
    day = {"snapshot_name": "day", "description": "by day & night\nuntil noon"}
    stage.done(**SNAPSHOT, on_delete="forward", disks=[overlay("vdb", "c")], **day)
    told = stage.shell("virsh snapshot-dumpxml %s day | grep -A1 '<description>'" % GUEST)
    same((told, stage.noted(GUEST)), ("<description>by day &amp; night\nuntil noon</description>", ["day"]), "what is remembered")
    stage.done(**SNAPSHOT, wanted={"vdb": [VDB, BELOW_VDB]}, snapshot_name="day", state="absent", merge="backward")
    same((stage.shots(GUEST), stage.noted(GUEST), stage.exists(at("c"))), ({}, [], True), "what is left")
    stage.cold_start(GUEST)


def by_others(stage: Stage) -> None:
    """An overlay that nobody remembers is named by disk and layer."""
    below = [at("a"), BELOW]
    stage.call(**SNAPSHOT, metadata=False, disks=[overlay("vda", "d")])
    stage.shell("virsh snapshot-create-as %s --disk-only --no-metadata --diskspec vda,file=%s --diskspec vdb,snapshot=no" % (GUEST, at("e")))
    same((stage.noted(GUEST), stage.shots(GUEST)), ([], {}), "nobody remembers them")
    stage.call(**SNAPSHOT, snapshot_name="kept", disks=[overlay("vda", "f")])
    refusals = [
        ("name_or_layer", "leave one out", {"snapshot_name": "kept", "disks": [{"disk": "vda", "layer": at("e")}]}),
        ("snapshot_needs", "kept", {"disks": [{"disk": "vda", "layer": at("f")}]}),
        ("nothing_below", "Nothing lies below", {"disks": [{"disk": "vda", "layer": BELOW}]}),
        ("offline_only", "merge to backward", {"disks": [{"disk": "vda", "layer": at("e"), "merge": "forward"}]}),
        ("no_name", "needs a snapshot_name, or disks", {"disks": [{"disk": "vda"}]}),
        ("delete_needs_wait", "needs wait", {"snapshot_name": "kept", "delete_files": True, "wait": False}),
        ("no_disk", "has no disk vdx", {"snapshot_name": "kept", "disks": [{"disk": "vdx", "merge": "forward"}]}),
        ("not_in_snapshot", "has no disk vdb", {"snapshot_name": "kept", "disks": [{"disk": "vdb", "merge": "forward"}]}),
    ]
    for code, says, arguments in refusals:
        stage.refused(code, says, **SNAPSHOT, state="absent", **arguments)
    stage.poke(GUEST, 0, "9M 64k")
    wanted = {"vda": [at("f"), at("d")] + below}
    stage.done(**SNAPSHOT, wanted=wanted, state="absent", disks=[{"disk": "vda", "layer": at("e")}], delete_files=True)
    same(stage.exists(at("e")), False, "the file")
    same(stage.shots(GUEST)["kept"], ({"vda": at("f")}, {"vda": at("d")}), "what libvirt keeps of the other one")
    stage.done(**SNAPSHOT, state="absent", snapshot_name="kept", merge="forward")
    result = stage.call(**SNAPSHOT, state="absent", disks=[{"disk": "vda", "layer": at("f")}], merge="forward")  # one layer more each time
    same((result.get("failed"), stage.headers(GUEST)["vda"]), (None, [at("f")] + below[1:]), "the chain", result)
    stage.cold_start(GUEST)


def devices(stage: Stage) -> None:
    """Overlays on a block device and on the network, both tracked and noted, in the middle of the chain and on top."""
    before = stage.headers(GUEST)["vda"]
    device = stage.device("48M")
    stage.shell(
        f"truncate -s 48M {FAST}/n.raw && qemu-nbd --fork --persistent --shared=4 --pid-file={FAST}/n.pid -b 127.0.0.1 -p {PORT} -x one -f raw {FAST}/n.raw"
    )
    stage.mended.append("kill $(cat %s/n.pid)" % FAST)
    network = {"disk": "vda", "protocol": "nbd", "name": "one", "host": [{"name": "127.0.0.1", "port": PORT}]}
    stage.done(**SNAPSHOT, wanted={"vda": [device] + before}, snapshot_name="onto-device", disks=[{"disk": "vda", "path": device, "type": "block"}])
    stage.poke(GUEST, 0, "10M 64k")
    stage.done(**SNAPSHOT, wanted={"vda": ["one", device] + before}, snapshot_name="onto-network", disks=[network])
    stage.poke(GUEST, 0, "11M 64k")
    stage.done(**SNAPSHOT, wanted={"vda": [at("g"), "one", device] + before}, snapshot_name="noted", metadata=False, disks=[overlay("vda", "g")])
    stage.poke(GUEST, 0, "12M 64k")
    stage.refused("snapshot_needs", "Snapshot noted", module="block_commit", name=GUEST, disk="vda")
    stage.done(**SNAPSHOT, wanted={"vda": [at("g"), device] + before}, snapshot_name="onto-network", state="absent")
    same(stage.shots(GUEST), {"onto-device": ({"vda": device}, {"vda": before[0]})}, "what libvirt keeps")
    again = dict(network, on_delete="forward")
    stage.done(**SNAPSHOT, wanted={"vda": ["one", at("g"), device] + before}, snapshot_name="noted-on-network", metadata=False, disks=[again])
    same(sorted(stage.noted(GUEST)), ["noted", "noted-on-network"], "our note")
    stage.poke(GUEST, 0, "13M 64k")
    stage.done(**SNAPSHOT, wanted={"vda": ["one", device] + before}, snapshot_name="noted-on-network", state="absent")
    stage.done(**SNAPSHOT, wanted={"vda": [device] + before}, snapshot_name="noted", state="absent")
    stage.done(**SNAPSHOT, wanted={"vda": before}, snapshot_name="onto-device", state="absent")
    same((stage.shots(GUEST), stage.noted(GUEST)), ({}, []), "who remembers them")
    stage.cold_start(GUEST)


def memory(stage: Stage) -> None:
    """The memory of a running guest goes to a file, and goes with the snapshot."""
    before, path = stage.headers(GUEST)["vda"], FAST + "/memory"
    with_memory = {"snapshot_name": "all", "memory": path, "disks": [overlay("vda", "h")]}
    refusals = [
        ("memory", "needs metadata", dict(with_memory, metadata=False)),
        ("memory", "goes without quiesce", dict(with_memory, quiesce=True)),
        ("no_parent", "/srv/nowhere", dict(with_memory, memory="/srv/nowhere/memory")),
        ("not_absolute", "relative path", dict(with_memory, memory="memory")),
        ("no_agent", "no channel for a guest agent", {"snapshot_name": "all", "quiesce": True}),
        ("no_metadata", "description needs metadata", {"snapshot_name": "all", "metadata": False, "description": "all"}),
    ]
    for code, says, arguments in refusals:
        stage.refused(code, says, **SNAPSHOT, **arguments)
    stage.done(**SNAPSHOT, wanted={"vda": [at("h")] + before}, **with_memory)
    same(stage.shell("stat -c %%a %s; virsh domstate %s" % (path, GUEST)).split(), ["600", "running"], "the file, and the guest")
    same(
        stage.shell("virsh snapshot-dumpxml %s all | grep -o 'memory snapshot.*'" % GUEST),
        "memory snapshot='external' file='%s'/>" % path,
        "what libvirt keeps",
    )
    stage.refused("exists", "exists already", **SNAPSHOT, snapshot_name="more", memory=path)
    stage.end(GUEST)
    stage.refused("memory", "only libvirt 9.9 or later", **SNAPSHOT, snapshot_name="all", state="reverted")
    stage.refused("memory", "has no memory", **SNAPSHOT, snapshot_name="more", memory=path + "2")
    stage.refused("offline_kind", "has to be a file", **SNAPSHOT, snapshot_name="more", disks=[{"disk": "vda", "path": stage.device("48M"), "type": "block"}])
    stage.shell("virsh start %s" % GUEST)
    stage.done(**SNAPSHOT, wanted={"vda": before}, snapshot_name="all", state="absent", delete_files=True)
    same((stage.exists(path), stage.exists(at("h"))), (False, False), "the files")
    stage.cold_start(GUEST)


STORIES = [on_delete, by_others, devices, memory]
