# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which image QEMU writes to: every combination of what libvirt, QEMU and the processes say after a pivot that was cut off."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core import pivot
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, Layer, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import Node, Process, QemuView
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain, Job, Mirror, Record

OLD, NEW, BASE = file_layer("/old", "qcow2", 3), file_layer("/new", "qcow2", 9), file_layer("/base", "qcow2", 1)
NBD = Layer("network", (("name", "x"), ("protocol", "nbd")), "raw", 9, hosts=((("name", "h"), ("port", "10809")),))
DEVICE = "/machine/peripheral/virtio-disk0/virtio-backend"
COPY = Mirror("copy", "pivot", Chain((NEW,), True))


def guest(active=OLD, *, running=True, mirror=None, job=None, record=None, alias="virtio-disk0", mentioned=()):
    disk = Disk("vda", Chain((active, BASE), True), alias=alias, mirror=mirror, job=job)
    return Domain("vm1", "u1", running, "running" if running else "shutdown", disks=(disk,), records=record or (), mentioned=frozenset(mentioned))


def view(node, file, *nodes, device=DEVICE):
    return QemuView(nodes, devices=((device, node, file),))


ON_OLD, ON_NEW = view("libvirt-3-format", "/old"), view("libvirt-9-format", "/new")
PROCESS = Process(7, "vm1", "u1", (("/old", True),))


def outcome(domain, seen=None, processes=(), to=NEW):
    return pivot.outcome(domain, "vda", to, seen, processes)


@pytest.mark.parametrize(
    ("domain", "seen", "processes", "expected"),
    [
        # libvirt knows of the pivot: nobody has to be asked.
        (guest(NEW), None, (PROCESS,), "pivoted"),
        (guest(NEW), ON_NEW, (), "pivoted"),
        (guest(NEW, mirror=COPY), None, (), "pivoted"),
        # The job is there.
        (guest(mirror=replace(COPY, ready="yes"), job=Job("copy")), None, (PROCESS,), "open"),
        (guest(mirror=COPY, job=Job("copy")), ON_NEW, (PROCESS,), "open"),
        # It is gone: only QEMU knows.
        (guest(mirror=COPY), ON_NEW, (PROCESS,), "stale"),
        (guest(), ON_NEW, (PROCESS,), "stale"),
        (guest(mirror=COPY), ON_OLD, (PROCESS,), "not_pivoted"),
        (guest(), ON_OLD, (), "not_pivoted"),
        (guest(), view("libvirt-7-filter", "/old"), (), "not_pivoted"),
        (guest(mirror=COPY), view("libvirt-9-format", 'json:{"driver": "qcow2"}'), (), "stale"),
        (guest(), view("libvirt-9-format", 'json:{"driver": "qcow2"}'), (), "unknown"),
        (guest(), view("strange", 'json:{"driver": "qcow2"}'), (), "unknown"),
        (guest(), view("libvirt-4-format", "/strange"), (), "unknown"),
        (guest(), view("libvirt-3-format", "/old", device="/machine/peripheral/another/virtio-backend"), (), "unknown"),
        (guest(alias=None), ON_OLD, (), "unknown"),
        (guest(), view("", ""), (), "unknown"),
        (guest(), QemuView(), (), "unknown"),
        (guest(), None, (PROCESS,), "unknown"),
        (guest(mirror=COPY), None, (PROCESS,), "unknown"),
        # The guest is off for libvirt, or not there at all.
        (guest(running=False), None, (), "gone"),
        (guest(running=False), ON_NEW, (PROCESS,), "orphaned"),
        (guest(running=False), ON_OLD, (PROCESS,), "unknown"),
        (guest(running=False), None, (PROCESS,), "unknown"),
        (None, None, (), "gone"),
        (None, ON_NEW, (PROCESS,), "unknown"),
        # The disk was unplugged, or ejected.
        (replace(guest(), disks=()), ON_NEW, (PROCESS,), "unknown"),
        (replace(guest(), disks=(Disk("vda", Chain()),)), ON_NEW, (PROCESS,), "unknown"),
    ],
)
def test_outcome(domain, seen, processes, expected):
    assert outcome(domain, seen, processes) == expected


def test_what_nobody_said_is_never_taken_for_an_answer():
    """Whatever else is so: without QEMU's word about this disk, a job that is gone is neither pivoted nor not."""
    mirrors, records = (None, COPY, replace(COPY, ready=None)), ((), (Record("vda", "copy", "/new", "3,1"),))
    nothing = (None, QemuView(), view("libvirt-9-format", "/new", device="another"), view("libvirt-9-format", ""))
    for mirror, record, seen, processes in itertools.product(mirrors, records, nothing, ((), (PROCESS,))):
        assert outcome(guest(mirror=mirror, record=record), seen, processes) == "unknown"


@pytest.mark.parametrize(
    ("file", "expected"),
    [("nbd://h:10809/x", "stale"), ("nbd://h:10809/x/", "stale"), ("nbd://h:10809/y", "unknown"), ("/new", "unknown")],
)
def test_a_network_source_by_its_name(file, expected):
    assert outcome(guest(), view("libvirt-4-format", file), to=NBD) == expected


@pytest.mark.parametrize("file", ["/new", "//new", "/x/../new"])
def test_a_path_is_a_place(file):
    assert outcome(guest(), view("strange", file)) == "stale" and outcome(guest(running=False), view("strange", file), (PROCESS,)) == "orphaned"


@pytest.mark.parametrize(
    ("disk", "seen", "expected"),
    [
        (guest().disks[0], ON_NEW, "/new"),
        (guest().disks[0], ON_OLD, None),
        (guest().disks[0], view("libvirt-33-format", "/old"), None),  # a filter above it, by its file
        (guest().disks[0], view("libvirt-3-format", "/new"), None),  # by its node
        (guest(job=Job("copy")).disks[0], ON_NEW, None),
        (guest(mirror=COPY).disks[0], ON_NEW, "/new"),
        (guest(alias=None).disks[0], ON_NEW, None),
        (guest(alias="virtio-disk").disks[0], ON_NEW, None),
        (guest().disks[0], None, None),
        (guest().disks[0], view("strange", "json:{}"), None),
        (guest().disks[0], view("libvirt-9-format", "json:{}"), "json:{}"),
        (guest(NBD).disks[0], view("libvirt-9-format", "nbd://h:10809/x"), None),
        (guest(NBD).disks[0], view("libvirt-4-format", "nbd://h:10809/x"), None),
        (guest(NBD).disks[0], ON_OLD, "/old"),
        (Disk("vda", Chain(), alias="virtio-disk0"), ON_NEW, None),
    ],
)
def test_stray(disk, seen, expected):
    assert pivot.stray(disk, seen) == expected


COPY_NOTE, OTHER_NOTE = Record("vda", "copy", "/new", "3,1"), Record("vda", "pull", "/base", "3,1")
COMMIT_NOTE = Record("vda", "active-commit", "/old /base", "3,1")


@pytest.mark.parametrize(
    ("domain", "processes", "expected"),
    [
        (guest(mentioned=("/old",)), (PROCESS,), False),
        (guest(), (), False),
        (guest(), (PROCESS,), True),  # it writes to a file that libvirt names nowhere
        (guest(mentioned=("/old",)), (replace(PROCESS, files=(("/old", True), ("/strange", False))),), False),
        (guest(mentioned=("/old",)), (replace(PROCESS, files=(("/var/lib/libvirt/qemu/ram/1-vm1/pc.ram", True),)),), False),
        (guest(mentioned=("/old",)), (Process(8, "vm1", "another", (("/strange", True),)),), False),
        (guest(mirror=COPY), (), True),
        (guest(mirror=COPY, job=Job("copy")), (), False),
        (guest(record=(COPY_NOTE,)), (), True),
        (guest(record=(COPY_NOTE,), job=Job("copy")), (), False),
        (guest(NEW, record=(COPY_NOTE,)), (), False),  # it has got to its end
        (guest(record=(OTHER_NOTE,)), (), False),
        (guest(record=(COMMIT_NOTE,)), (), True),
        (guest(BASE, record=(COMMIT_NOTE,)), (), False),
        (guest(running=False), (PROCESS,), True),
        (guest(running=False), (Process(8, "vm1", "another", (("/old", True),)),), False),
        (guest(running=False), (), False),
    ],
)
def test_doubtful(domain, processes, expected):
    assert pivot.doubtful(domain, processes) is expected


FORMAT, FILE = Node("libvirt-9-format", "qcow2", "/new", False), Node("libvirt-9-storage", "file", "/new", False)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ((FORMAT, FILE), file_layer("/new", "qcow2")),
        ((replace(FORMAT, driver="raw"), FILE), file_layer("/new", "raw")),
        ((FORMAT, replace(FILE, driver="host_device")), Layer("block", (("dev", "/new"),), "qcow2")),
        ((replace(FORMAT, driver="vmdk"), FILE), None),
        ((replace(FORMAT, driver="throttle"), FILE), None),
        ((FORMAT,), None),
        ((FILE,), None),
        ((FORMAT, FILE, replace(FILE, name="x", driver="host_device")), None),
        ((), None),
    ],
)
def test_image_of(nodes, expected):
    """Only what QEMU says plainly, and of formats that are known, is put into a definition."""
    assert pivot.image_of("libvirt-9-format", "/new", QemuView(nodes)) == expected


def test_only_a_path_becomes_an_image():
    for file in ("nbd://h/x", "json:{}", ""):
        assert pivot.image_of("libvirt-9-format", file, QemuView((replace(FORMAT, file=file), replace(FILE, file=file)))) is None


def test_the_processes_of_each_guest():
    one, two, namesake = PROCESS, Process(8, "vm2", "u2"), Process(9, "vm1", "u9")
    domains = (guest(), replace(guest(), name="vm2", uuid="u2"), replace(guest(), name="vm3", uuid="u3"))
    assert pivot.processes_of(domains, (one, two, namesake)) == {"u1": (one, namesake), "u2": (two,), "u3": ()}
    assert pivot.processes_of(domains, ()) == {}


def test_the_way_out_names_what_must_not_be_done():
    assert "take no snapshot" in pivot.way_out(NEW) and "/new" in pivot.way_out(NEW)
    assert "process 7 with SIGTERM (never SIGKILL)" in pivot.way_out(NEW, 7)
