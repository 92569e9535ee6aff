# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Calls into libvirt: those that never return, which no healthy lab can show quickly, and what drivers do not have."""

from __future__ import annotations

import json
import threading
import time
import types

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import CONVERSION_URI, NOTED_URI, RECORD_URI
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Busy, CallFailed, Moved, Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import Sizes, Versions, Volume
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Record, Selection, Snapshot
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.notes import Conversion
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.snapshot_xml import under
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import libvirt_host
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.libvirt_host import Connection
from ansible_collections.livestorage.libvirt.tests.unit.fake_libvirt import NO_DOMAIN, NO_SUPPORT, OPERATION_INVALID, Binding, Guest, Hypervisor, LibvirtError
from ansible_collections.livestorage.libvirt.tests.unit.support import HERE

CASES = HERE / "cases"
VM1, INACTIVE = ((CASES / name).read_text(encoding="utf-8") for name in ("vm1.xml", "vm1.inactive.xml"))
UUID = "11111111-2222-4333-8444-555555555555"


@pytest.fixture(name="hypervisor")
def _hypervisor():
    return Hypervisor([Guest(VM1, INACTIVE)])


@pytest.fixture
def binding(monkeypatch, hypervisor):
    found = Binding(hypervisor)
    monkeypatch.setattr(libvirt_host, "libvirt", found)
    monkeypatch.setattr(libvirt_host, "libvirt_qemu", found)
    return found


@pytest.fixture(name="connection")
def _connection(binding):
    return Connection("qemu:///system", False)


def test_a_call_that_never_returns_is_left_alone_and_the_next_is_answered(connection, monkeypatch):
    monkeypatch.setattr(libvirt_host, "CALL_SECONDS", 0.1)
    release = threading.Event()
    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        connection._bounded(release.wait)
    assert caught.value.code == "no_answer" and time.monotonic() - started < 5
    assert connection._bounded(max, 1, 2) == 2
    # Nor does the late answer come to another question.
    release.set()
    assert [connection._bounded(max, number, 0) for number in range(1, 5)] == [1, 2, 3, 4]


def test_many_calls_are_answered_by_one_thread(connection):
    workers = {connection._bounded(threading.get_ident) for dummy in range(50)}
    assert len(workers) == 1 and threading.get_ident() not in workers


def test_a_connection_that_never_opens(binding, monkeypatch):
    monkeypatch.setattr(libvirt_host, "CALL_SECONDS", 0.1)
    release = threading.Event()
    monkeypatch.setattr(binding, "open", lambda uri: release.wait())
    with pytest.raises(Unavailable) as caught:
        Connection("qemu:///system", False)
    release.set()
    assert caught.value.code == "no_answer"


@pytest.mark.parametrize(
    ("code", "text", "kind", "expected"),
    [
        (1, "Something.", CallFailed, "libvirt_error"),
        (83, "disk 'vda' already in active block job", Busy, "foreign_job"),
        (84, "disk 'vda' already in active block job", Busy, "foreign_job"),
        (84, "not supported", CallFailed, "libvirt_error"),
        (29, "read only", Unavailable, "permission"),
    ],
)
def test_what_an_error_means(connection, code, text, kind, expected):
    def refuse():
        raise LibvirtError(code, text)

    with pytest.raises(kind) as caught, connection.calling("pull"):
        connection._bounded(refuse)
    assert caught.value.code == expected


def test_an_error_of_the_binding_itself_is_raised_where_it_was_asked(connection):
    """The binding checks its arguments: an int that is too big is an OverflowError."""
    for kind in (TypeError, ValueError, OverflowError):
        with pytest.raises(kind):
            connection._bounded(_raise, kind)
    assert connection._bounded(max, 1, 2) == 2


def _raise(kind):
    raise kind("No.")


def handle_of(connection):
    return connection.select(Selection(name="vm1"))[0]


def test_a_driver_without_block_jobs_is_asked_once(connection, hypervisor):
    guest = hypervisor.guests[0]
    guest.errors["blockJobInfo"] = LibvirtError(NO_SUPPORT)
    for dummy in range(3):
        domain = connection.read(handle_of(connection), False)
        assert domain.disk("vda").job is None
    assert guest.calls.count("blockJobInfo") == 1


@pytest.mark.parametrize("code", [OPERATION_INVALID, NO_DOMAIN])
def test_a_guest_that_stopped_meanwhile_has_no_job_and_the_next_is_asked(connection, hypervisor, code):
    guest = hypervisor.guests[0]
    guest.errors["blockJobInfo"] = LibvirtError(code)
    assert connection.read(handle_of(connection), False).disk("vda").job is None
    guest.errors.clear()
    guest.jobs["vda"] = {"type": "pull"}
    assert connection.read(handle_of(connection), False).disk("vda").job.type == "pull"


def test_sizes_of_all_guests_are_one_call(connection, hypervisor):
    """Physical is what the storage holds of a running guest's image; a statistic that is missing is not known."""
    guest = hypervisor.guests[0]
    guest.sizes = {("vda", 3): (1 << 30, 1 << 20), ("vda", 1): (1 << 30, None), ("hdc", None): (None, None)}
    hypervisor.guests.append(Guest(VM1.replace("vm1", "vm2").replace(UUID, "u2")))
    handles = connection.select(Selection())
    found = connection.sizes(handles)
    assert found == {
        (UUID, "vda", 3): Sizes(1 << 30, 1 << 20, None),
        (UUID, "vda", 1): Sizes(1 << 30, None, None),
        (UUID, "hdc", None): Sizes(None, None, None),
    }
    assert hypervisor.calls.count("domainListGetStats") == 1


def test_a_driver_without_statistics_knows_no_sizes(connection, hypervisor):
    hypervisor.errors["domainListGetStats"] = LibvirtError(NO_SUPPORT)
    assert connection.sizes(connection.select(Selection())) == {}
    hypervisor.errors["domainListGetStats"] = LibvirtError(38)
    with pytest.raises(CallFailed):
        connection.sizes(connection.select(Selection()))


def test_only_reading_commands_are_asked_of_qemu(connection, hypervisor, binding):
    node = {"node-name": "libvirt-1-format", "drv": "qcow2", "file": "/a", "ro": False}
    device = {"qdev": "/machine/peripheral/virtio-disk0/virtio-backend", "device": "", "inserted": node}
    hypervisor.guests[0].qemu = {"query-named-block-nodes": [node], "query-block-jobs": [{"type": "mirror"}], "query-block": [device, {"device": "cd"}]}
    view = connection.qemu_view(handle_of(connection))
    assert binding.commands == ["query-named-block-nodes", "query-block-jobs", "query-block"]
    assert [one.name for one in view.nodes] == ["libvirt-1-format"] and view.jobs == ({"type": "mirror"},)
    assert view.devices == (("/machine/peripheral/virtio-disk0/virtio-backend", "libvirt-1-format", "/a"),)


def test_a_monitor_that_says_no(connection, hypervisor):
    hypervisor.guests[0].errors["qemuMonitorCommand"] = LibvirtError(1, "no")
    with pytest.raises(CallFailed, match="ask QEMU about the storage of guest vm1"):
        connection.qemu_view(handle_of(connection))


def test_a_volume_by_its_path(connection, hypervisor):
    hypervisor.volumes["/srv/a"] = "<volume/>"
    assert connection.volume_xml("/srv/a") == "<volume/>"
    assert connection.volume_xml("/srv/b") is None


def test_a_volume_is_looked_up_once(connection, hypervisor):
    hypervisor.pools["p"] = {"v": "/srv/p/v"}
    for dummy in range(3):
        assert connection.volume_path("p", "v") == "/srv/p/v"
        assert connection.volume_path("p", "gone") is None
        assert connection.volume_path("none", "v") is None
    assert hypervisor.calls.count("storagePoolLookupByName") == 3


def test_a_disk_that_is_a_volume_has_its_path(connection, hypervisor):
    guest = hypervisor.guests[0]
    for name in ("xml", "config"):
        text = getattr(guest, name).replace("type='file' device='disk'", "type='volume' device='disk'")
        setattr(guest, name, text.replace("<source file='/srv/vm1/active.qcow2'", "<source pool='p' volume='v'"))
    hypervisor.pools["p"] = {"v": "/srv/p/v"}
    domain = connection.read(handle_of(connection), True)
    assert (domain.disk("vda").chain[0].path, domain.config_disk("vda").chain[0].path) == ("/srv/p/v", "/srv/p/v")
    assert domain.disk("vda").chain[0].name == "p/v"


def test_what_a_guest_mentions_is_only_read_where_it_is_asked_for(connection):
    assert connection.read(handle_of(connection), False).mentioned == frozenset()
    found = connection.read(handle_of(connection), False, with_paths=True).mentioned
    assert {"/srv/vm1/active.qcow2", "/srv/vm1/middle.qcow2", "/srv/template.qcow2", "/dev/vg/data"} <= found


def test_a_guest_that_is_gone_is_no_guest(connection, hypervisor):
    hypervisor.guests[0].errors["XMLDesc"] = LibvirtError(NO_DOMAIN)
    assert connection.read(handle_of(connection), True) is None
    hypervisor.guests[0].errors["XMLDesc"] = LibvirtError(38)
    with pytest.raises(CallFailed):
        connection.read(handle_of(connection), True)


# Calls that change something: what libvirt is given, bit by bit


class Recorder(Guest):
    """A guest that notes every other call with what it was given, and refuses those in ``errors``."""

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append((name, *arguments))
            if name in self.errors:
                raise self.errors[name]
            return

        return call


BITS = {
    "VIR_DOMAIN_BLOCK_COPY_SHALLOW": 1,
    "VIR_DOMAIN_BLOCK_COPY_REUSE_EXT": 2,
    "VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB": 4,
    "VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES": 8,
    "VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES": 1,
    "VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC": 1,
    "VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT": 2,
    "VIR_DOMAIN_XML_SECURE": 1,
}


@pytest.fixture(name="recorder")
def _recorder(binding, hypervisor, monkeypatch):
    """(connection, handle) to a guest that notes its calls."""
    for name, bit in BITS.items():
        monkeypatch.setattr(binding, name, bit, raising=False)
    guest = Recorder(VM1, INACTIVE)
    hypervisor.guests = [guest]
    return Connection("qemu:///system", False), guest


def calls_of(guest) -> list:
    return [call for call in guest.calls if isinstance(call, tuple)]


@pytest.mark.parametrize(
    ("flags", "bits"),
    [((), 0), (("SHALLOW", "REUSE_EXT"), 3), (("TRANSIENT_JOB",), 4), (("SHALLOW", "REUSE_EXT", "TRANSIENT_JOB", "SYNCHRONOUS_WRITES"), 15)],
)
def test_a_copy(recorder, flags, bits):
    connection, guest = recorder
    connection.copy(guest, "vda", "<disk/>", {"bandwidth": 7, "buf-size": 9}, flags)
    assert calls_of(guest) == [("blockCopy", "vda", "<disk/>", {"bandwidth": 7, "buf-size": 9}, bits)]


def test_an_option_that_the_binding_does_not_know_is_no_bit(recorder):
    connection, guest = recorder
    with pytest.raises(CallFailed, match="does not know VIR_DOMAIN_BLOCK_COPY_NONSENSE: update it"):
        connection.copy(guest, "vda", "<disk/>", {}, ("NONSENSE",))
    assert calls_of(guest) == []


def test_a_speed_is_in_bytes(recorder):
    connection, guest = recorder
    connection.set_speed(guest, "vda", 5)
    assert calls_of(guest) == [("blockJobSetSpeed", "vda", 5, 1)]


@pytest.mark.parametrize(("call", "flags"), [(lambda one: one.abort, 0), (lambda one: lambda *a: one.abort(*a, True), 1), (lambda one: one.pivot, 2)])
@pytest.mark.parametrize(("code", "fails"), [(None, ()), (8, (2,)), (1, (0, 1, 2))])
def test_the_end_of_a_job(recorder, call, flags, code, fails):
    """That it is gone already is no error for an abort, and one for a pivot."""
    connection, guest = recorder
    if code is not None:
        guest.errors["blockJobAbort"] = LibvirtError(code)
    if flags in fails:
        with pytest.raises(CallFailed):
            call(connection)(guest, "vda")
    else:
        call(connection)(guest, "vda")
    assert calls_of(guest) == [("blockJobAbort", "vda", flags)]


def test_the_end_of_a_backup(recorder):
    connection, guest = recorder
    connection.abort_backup(guest)
    assert calls_of(guest) == [("abortJob",)]


@pytest.mark.parametrize(
    ("domain", "alive", "code"), [(7, True, "connection_lost"), (10, False, "connection_lost"), (10, True, "libvirt_error")], ids=["rpc", "dead", "alive"]
)
def test_a_connection_that_broke_under_a_call(recorder, hypervisor, domain, alive, code):
    """libvirt 9.0 may call it alive for a moment: an error of its RPC says more."""
    connection, guest = recorder
    guest.errors["blockJobAbort"] = LibvirtError(38, "End of file while reading data", domain)
    hypervisor.alive = alive
    with pytest.raises((Unavailable, CallFailed)) as caught:
        connection.pivot(guest, "vda")
    assert caught.value.code == code


def defined(monkeypatch, hypervisor) -> list:
    found: list = []
    monkeypatch.setattr(hypervisor, "defineXML", found.append, raising=False)
    return found


@pytest.fixture
def secrets(monkeypatch, recorder):
    """The XML is asked for with its secrets: a definition without them would lose them."""
    asked = []

    def describe(flags):
        asked.append(flags)
        return recorder[1].config if flags & 2 else recorder[1].xml

    monkeypatch.setattr(recorder[1], "XMLDesc", describe, raising=False)
    return asked


def test_a_definition_is_only_written_where_it_changes(recorder, hypervisor, monkeypatch, secrets):
    connection, guest = recorder
    found, old = defined(monkeypatch, hypervisor), guest.config
    connection.define_as_running(guest, "vda")
    assert found == [] and secrets == [1, 3]  # it says less of the same
    guest.config = old.replace("/srv/vm1/active.qcow2", "/srv/vm1/old.qcow2")
    connection.define_as_running(guest, "vda")
    assert len(found) == 1 and "/srv/vm1/active.qcow2" in found[0] and "/srv/template.qcow2" in found[0] and "/srv/vm1/old.qcow2" not in found[0]
    guest.config = old
    connection.define_image(guest, "vda", file_layer("/srv/new", "raw"))
    assert len(found) == 2 and "/srv/new" in found[1] and "/srv/vm1/active.qcow2" not in found[1] and secrets == [1, 3, 1, 3, 3]


def test_a_definition_that_is_refused(recorder, hypervisor, monkeypatch, secrets):
    connection, guest = recorder

    def refuse(xml):
        raise LibvirtError(67, "unsupported configuration")

    monkeypatch.setattr(hypervisor, "defineXML", refuse, raising=False)
    with pytest.raises(CallFailed, match="change disk vda in the definition of guest vm1"):
        connection.define_image(guest, "vda", file_layer("/srv/new", "raw"))


COPY_JOB = [{"type": "mirror", "device": "copy-vda-libvirt-3-format"}]


@pytest.mark.parametrize("answer", ['{"return": {}}', '{"error": {"class": "CommandNotFound", "desc": "not found"}}'])
def test_a_copy_is_switched_to_write_through(connection, hypervisor, binding, monkeypatch, answer):
    texts, ask = [], binding.qemuMonitorCommand

    def noted(handle, text, flags):
        texts.append(json.loads(text))
        return ask(handle, text, flags)

    monkeypatch.setattr(binding, "qemuMonitorCommand", noted)
    hypervisor.guests[0].qemu = {"query-block-jobs": COPY_JOB, "block-job-change": answer}
    if "error" in answer:
        with pytest.raises(CallFailed, match="refused to change the copy of disk vda of guest vm1: not found"):
            connection.write_through(handle_of(connection), "vda")
    else:
        connection.write_through(handle_of(connection), "vda")
    assert texts[-1] == {"execute": "block-job-change", "arguments": {"id": "copy-vda-libvirt-3-format", "type": "mirror", "copy-mode": "write-blocking"}}


def test_no_other_job_is_switched(connection, hypervisor, binding):
    hypervisor.guests[0].qemu = {"query-block-jobs": [{"type": "mirror", "device": "copy-vdb-libvirt-3-format"}]}
    with pytest.raises(Unavailable):
        connection.write_through(handle_of(connection), "vda")
    assert binding.commands == ["query-block-jobs"]


def test_versions(connection, hypervisor):
    hypervisor.getLibVersion, hypervisor.getVersion = lambda: 9000000, lambda: 7002022
    assert connection.versions() == Versions((9, 0, 0), (7, 2, 22))
    hypervisor.getLibVersion = lambda: 12002001
    assert connection.versions().libvirt == (12, 2, 1)


@pytest.mark.parametrize(("code", "found"), [(None, [("vda", "monday"), ("vdb", "monday")]), (NO_SUPPORT, []), (1, None)])
def test_the_bitmaps_of_checkpoints(recorder, monkeypatch, code, found):
    connection, guest = recorder
    xml = "<domaincheckpoint><name>monday</name><disks><disk name='vda' checkpoint='bitmap' bitmap='monday'/><disk name='vdb' checkpoint='bitmap' "
    xml += "bitmap='monday'/><disk name='vdc' checkpoint='no'/></disks></domaincheckpoint>"
    monkeypatch.setattr(libvirt_host.libvirt, "VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN", 2, raising=False)

    def checkpoints(flags):
        if code is not None:
            raise LibvirtError(code)
        return [types.SimpleNamespace(getXMLDesc=lambda flags: xml, getName=lambda: "first")]

    monkeypatch.setattr(guest, "listAllCheckpoints", checkpoints, raising=False)
    if found is None:
        with pytest.raises(CallFailed, match="list the checkpoints of guest vm1"):
            connection.bitmaps(guest)
    else:
        assert list(connection.bitmaps(guest)) == found
        assert connection.checkpoints(guest) == (("first", tuple(found)),) * bool(found)


class Pool:
    """A storage pool with volumes by name."""

    def __init__(self, kind="dir", path="/srv/pool", active=True, volumes=None):
        self.kind, self.path, self.active, self.volumes, self.calls = kind, path, active, volumes or {}, []

    def XMLDesc(self, flags):
        return "<pool type='%s'>%s</pool>" % (self.kind, "<target><path>%s</path></target>" % self.path if self.path else "")

    def isActive(self):
        return self.active

    def storageVolLookupByName(self, name):
        if name not in self.volumes:
            raise LibvirtError(50, "Storage volume not found")
        return types.SimpleNamespace(XMLDesc=lambda flags: self.volumes[name])

    def createXML(self, xml, flags):
        self.calls.append((xml, flags))

    def refresh(self, flags):
        self.calls.append("refresh")


VOLUME = "<volume type='%s'><name>v</name><capacity unit='bytes'>4096</capacity><target><path>%s</path><format type='qcow2'/></target></volume>"


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (Pool(volumes={"v": VOLUME % ("file", "/srv/pool/v")}), Volume("p", "v", "/srv/pool/v", "file", True, "qcow2", 4096)),
        (Pool("logical", "/dev/vg", volumes={"v": VOLUME % ("block", "/dev/vg/v")}), Volume("p", "v", "/dev/vg/v", "block", True, "qcow2", 4096)),
        (Pool(), Volume("p", "v", "/srv/pool/v")),
        (Pool("netfs", "/mnt"), Volume("p", "v", "/mnt/v")),
        (
            Pool("logical", "/dev/vg"),
            Volume("p", "v", problem="Storage volume not found, and a pool of type logical has no files that a copy could create"),
        ),
        (Pool("rbd", None), Volume("p", "v", problem="Storage volume not found, and a pool of type rbd has no files that a copy could create")),
        (Pool(active=False), Volume("p", "v", problem="the pool is not active, start it first")),
        (LibvirtError(49, "Storage pool not found."), Volume("p", "v", problem="Storage pool not found")),
    ],
)
def test_a_volume_as_a_destination(connection, hypervisor, monkeypatch, pool, expected):
    def lookup(name):
        assert name == "p"
        if isinstance(pool, Exception):
            raise pool
        return pool

    monkeypatch.setattr(hypervisor, "storagePoolLookupByName", lookup)
    assert connection.volume("p", "v") == expected


def test_a_volume_is_created_and_seen(connection, hypervisor, monkeypatch):
    pool = Pool()
    monkeypatch.setattr(hypervisor, "storagePoolLookupByName", lambda name: pool)
    connection.create_volume("p", "<volume/>")
    connection.refresh_pool("p")
    assert pool.calls == [("<volume/>", 0), "refresh"]


def test_a_capacity_is_what_the_guest_sees(recorder, monkeypatch):
    connection, guest = recorder
    monkeypatch.setattr(guest, "blockInfo", lambda target: [{"vda": 5, "vdb": 6}[target], 1, 1], raising=False)
    domain = connection.read(guest, False, with_capacities=True)
    assert [disk.capacity for disk in domain.disks] == [5, 6, None]  # nobody asks an empty drive


def test_a_note_is_written_for_the_running_guest_only(recorder, monkeypatch):
    connection, guest = recorder
    for name, value in (("VIR_DOMAIN_METADATA_ELEMENT", 2), ("VIR_DOMAIN_AFFECT_LIVE", 1)):
        monkeypatch.setattr(libvirt_host.libvirt, name, value, raising=False)
    connection.write_record(guest, Record("vda", "copy", "/new", "1", since=7))
    connection.clear_record(guest, "vda")
    (one, other), uri = calls_of(guest), RECORD_URI % "vda"
    assert one[:2] == ("setMetadata", 2) and 'layers="/new"' in one[2] and one[3:] == ("livestorage", uri, 1)
    assert other == ("setMetadata", 2, None, "livestorage", uri, 1)
    guest.errors["setMetadata"] = LibvirtError(80, "metadata not found")
    connection.clear_record(guest, "vda")
    with pytest.raises(CallFailed):
        connection.write_record(guest, Record("vda", "copy", "/new", "1"))


# Snapshots

SNAPSHOT_BITS = {
    "VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE": 1,
    "VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT": 2,
    "VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA": 4,
    "VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY": 16,
    "VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT": 32,
    "VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC": 128,
    "VIR_DOMAIN_SNAPSHOT_CREATE_LIVE": 256,
    "VIR_DOMAIN_SNAPSHOT_XML_SECURE": 1,
    "VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY": 2,
    "VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING": 1,
    "VIR_DOMAIN_METADATA_ELEMENT": 2,
    "VIR_DOMAIN_AFFECT_LIVE": 1,
    "VIR_DOMAIN_AFFECT_CONFIG": 2,
    "VIR_ERR_NO_DOMAIN_METADATA": 80,
}
KEPT = "<domainsnapshot><name>%s</name><disks><disk name='vda' snapshot='external' type='file'><source file='/o'/></disk></disks></domainsnapshot>"


class Kept:
    """A snapshot that libvirt keeps metadata of."""

    def __init__(self, guest, name, current=False):
        self.guest, self.name, self.current, self.children = guest, name, current, []

    def getName(self):
        return self.name

    def isCurrent(self):
        return int(self.current)

    def getXMLDesc(self, flags):
        self.guest.calls.append(("getXMLDesc", self.name, flags))
        return KEPT % self.name

    def listAllChildren(self, flags):
        return self.children

    def delete(self, flags):
        self.guest.calls.append(("delete", self.name, flags))


@pytest.fixture(name="kept")
def _kept(recorder, binding, monkeypatch):
    """(connection, handle) to a guest with the snapshots s1 and s2, which is the current one."""
    connection, guest = recorder
    for name, bit in SNAPSHOT_BITS.items():
        monkeypatch.setattr(binding, name, bit, raising=False)
    shots = [Kept(guest, "s1"), Kept(guest, "s2", True)]
    monkeypatch.setattr(guest, "listAllSnapshots", lambda flags: shots)
    return connection, guest


@pytest.mark.parametrize(
    ("metadata", "reuse", "memory", "bits"), [(True, False, None, 144), (False, False, None, 148), (True, True, None, 176), (True, False, 600, 384)]
)
def test_a_snapshot(kept, monkeypatch, metadata, reuse, memory, bits):
    """In one transaction; of the disks alone, or with the memory while the guest goes on, which has its own deadline."""
    connection, guest = kept
    seconds, bounded = [], connection._bounded
    monkeypatch.setattr(connection, "_bounded", lambda call, *arguments, **more: seconds.append(more.get("seconds")) or bounded(call, *arguments, **more))
    connection.snapshot(guest, "<domainsnapshot/>", metadata, reuse, memory)
    assert calls_of(guest) == [("snapshotCreateXML", "<domainsnapshot/>", bits)]
    assert seconds == [memory or libvirt_host.CALL_SECONDS]


def test_what_libvirt_keeps_of_snapshots(kept):
    connection, guest = kept
    assert [(shot.name, shot.current, shot.files) for shot in connection.snapshots(guest)] == [("s1", False, (("vda", "/o"),)), ("s2", True, (("vda", "/o"),))]


def test_a_snapshot_is_forgotten_by_its_name_and_its_files_stay(kept):
    connection, guest = kept
    connection.forget_snapshot(guest, "s2")
    assert calls_of(guest) == [("getXMLDesc", "s2", 0), ("delete", "s2", 2)]
    connection.forget_snapshot(guest, "s3")  # it is gone
    assert len(calls_of(guest)) == 2


def test_what_comes_after_a_snapshot_is_put_below_its_parent_before_it_is_forgotten(kept, monkeypatch):
    """libvirt (9.0) would let it stand for another image. Its secrets are kept."""
    connection, guest = kept
    first, second = guest.listAllSnapshots(0)
    monkeypatch.setattr(first, "children", [second])
    connection.forget_snapshot(guest, "s1")
    assert calls_of(guest) == [("getXMLDesc", "s1", 0), ("getXMLDesc", "s2", 1), ("snapshotCreateXML", under(KEPT % "s2", None), 1), ("delete", "s1", 2)]


@pytest.mark.parametrize(("overlays", "bits"), [({}, 1), ({"vda": file_layer("/new", "qcow2")}, 3)])
def test_a_snapshot_is_redefined_with_its_secrets(kept, overlays, bits):
    """Without them they would be lost. One that was reverted to is the current one from then on."""
    connection, guest = kept
    moved = () if overlays else (("vda", "/o", file_layer("/new", "qcow2")),)
    assert connection.redefine_snapshot(guest, "s1", moved, overlays) == [KEPT % "s1"]
    (asked, (call, xml, flags)) = calls_of(guest)
    assert asked == ("getXMLDesc", "s1", 1) and (call, flags) == ("snapshotCreateXML", bits) and "/new" in xml and "/o" not in xml
    connection.redefine_again(guest, KEPT % "s1")
    assert calls_of(guest)[-1] == ("snapshotCreateXML", KEPT % "s1", 1)


@pytest.mark.parametrize("name", ["s1", "s3"])
def test_a_snapshot_of_which_nothing_has_moved_is_left_alone(kept, name):
    connection, guest = kept
    assert connection.redefine_snapshot(guest, name, (("vda", "/elsewhere", file_layer("/new", "qcow2")),), {}) == []
    assert "snapshotCreateXML" not in [call[0] for call in calls_of(guest)]


def test_a_redefinition_that_is_refused(kept):
    connection, guest = kept
    guest.errors["snapshotCreateXML"] = LibvirtError(27, "missing state")
    with pytest.raises(CallFailed, match="put right the snapshot s1 of guest vm1: missing state"):
        connection.redefine_snapshot(guest, "s1", (("vda", "/o", file_layer("/new", "qcow2")),), {})
    with pytest.raises(CallFailed, match="put back a snapshot of guest vm1"):
        connection.redefine_again(guest, "<domainsnapshot/>")


def test_a_reversion_lets_the_guest_run(kept):
    connection, guest = kept
    connection.revert(guest, "s1")
    assert calls_of(guest) == [("snapshotLookupByName", "s1"), ("revertToSnapshot", None, 1)]
    guest.errors["revertToSnapshot"] = LibvirtError(84, "revert to external snapshot not supported yet")
    with pytest.raises(CallFailed, match="revert guest vm1 to its snapshot s1: revert to external"):
        connection.revert(guest, "s1")


@pytest.mark.parametrize(("word", "call"), [("freeze", "fsFreeze"), ("thaw", "fsThaw")])
@pytest.mark.parametrize("old", [False, True])
def test_the_agent_has_a_deadline(kept, monkeypatch, word, call, old):
    """libvirt's own where it has one, and ours a little later."""
    connection, guest = kept
    if old:
        guest.errors["agentSetResponseTimeout"] = LibvirtError(NO_SUPPORT)
    seconds, bounded = [], connection._bounded
    monkeypatch.setattr(connection, "_bounded", lambda call, *arguments, **more: seconds.append(more.get("seconds")) or bounded(call, *arguments, **more))
    getattr(connection, word)(guest, 7.5)
    assert calls_of(guest) == [("agentSetResponseTimeout", 7, 0), (call,)] and seconds == [None, 12.5]
    guest.errors[call] = LibvirtError(86, "Guest agent is not responding: QEMU guest agent is not connected")
    with pytest.raises(CallFailed, match="could not %s the file systems of guest vm1: Guest agent is not responding" % word):
        getattr(connection, word)(guest, 0.2)
    assert ("agentSetResponseTimeout", 1, 0) in calls_of(guest)


SHOTS = (Snapshot("s1", (("vda", "/o"),), (("vda", "/a"),), tracked=False),)


@pytest.mark.parametrize(("active", "persistent", "bits"), [(True, True, 3), (True, False, 1), (False, True, 2)])
def test_our_note_is_for_now_and_for_the_next_start(kept, active, persistent, bits):
    connection, guest = kept
    guest.active, guest.persistent = active, persistent
    connection.write_noted(guest, iter(SHOTS))
    (call, kind, xml, prefix, uri, flags) = calls_of(guest)[0]
    assert (call, kind, prefix, uri, flags) == ("setMetadata", 2, "livestorage", NOTED_URI, bits) and "/o" in xml and "s1" in xml


@pytest.mark.parametrize(("code", "shots", "fails"), [(None, (), False), (80, (), False), (80, SHOTS, True), (1, (), True)])
def test_a_note_about_nothing_is_taken_away(kept, code, shots, fails):
    """That there was none is no error."""
    connection, guest = kept
    if code is not None:
        guest.errors["setMetadata"] = LibvirtError(code)
    if fails:
        with pytest.raises(CallFailed, match="note the snapshots of guest vm1"):
            connection.write_noted(guest, shots)
    else:
        connection.write_noted(guest, shots)
    assert [call[2] is None for call in calls_of(guest)] == [not shots]


@pytest.mark.parametrize(("active", "persistent", "saved", "expected"), [(False, True, True, True), (False, True, False, False), (True, True, True, False)])
def test_a_managed_save_image_is_asked_for_of_what_is_off(recorder, active, persistent, saved, expected):
    connection, guest = recorder
    guest.active, guest.persistent, guest.saved = active, persistent, saved
    assert connection.read(guest, False).saved is expected


def test_the_transient_have_no_definition(recorder, hypervisor, monkeypatch, secrets):
    """To define one would make it persistent."""
    connection, guest = recorder
    found, guest.persistent = defined(monkeypatch, hypervisor), False
    with pytest.raises(Moved, match="is transient"):
        connection.define_chains(guest, {"vda": Chain((file_layer("/new", "qcow2"),))})
    assert found == []


SAVED = {"VIR_DOMAIN_SAVE_IMAGE_XML_SECURE": 1, "VIR_DOMAIN_METADATA_ELEMENT": 2, "VIR_DOMAIN_AFFECT_CONFIG": 2, "VIR_DOMAIN_XML_MIGRATABLE": 8}
OVER = {"vda": Chain((file_layer("/srv/new.qcow2", "qcow2"),), None)}


@pytest.fixture(name="saving")
def _saving(recorder, binding, monkeypatch):
    for name, bit in dict(SAVED, VIR_ERR_NO_DOMAIN_METADATA=80).items():
        monkeypatch.setattr(binding, name, bit, raising=False)
    return recorder


def test_a_guest_is_saved_and_started(saving):
    connection, guest = saving
    connection.save(guest, 9)
    guest.saved = True
    assert connection.saved(guest) is True
    connection.start(guest, 9)
    guest.saved = False
    assert connection.saved(guest) is False
    assert calls_of(guest) == [("managedSave", 0), ("create",)]


@pytest.mark.parametrize(("call", "method", "words"), [("save", "managedSave", "save guest vm1"), ("start", "create", "start guest vm1")])
def test_a_save_or_a_start_that_fails_or_is_slow(saving, monkeypatch, call, method, words):
    """They have a time of their own: a guest with much memory takes longer than any other call."""
    connection, guest = saving
    guest.errors[method] = LibvirtError(1)
    with pytest.raises(CallFailed, match=words):
        getattr(connection, call)(guest, 9)
    monkeypatch.setattr(libvirt_host, "CALL_SECONDS", 0.01)
    monkeypatch.setattr(guest, method, lambda *dummy: time.sleep(0.2), raising=False)
    getattr(connection, call)(guest, 9)
    with pytest.raises(Unavailable) as caught:
        getattr(connection, call)(guest, 0.02)
    assert caught.value.code == "no_answer"


def test_what_a_guest_was_saved_with_is_changed_with_its_secrets(saving, monkeypatch):
    connection, guest = saving
    asked = []
    monkeypatch.setattr(guest, "managedSaveGetXMLDesc", lambda flags: asked.append(flags) or VM1, raising=False)
    assert connection.resave(guest, OVER) == VM1 and asked == [1]
    ((call, xml, flags),) = calls_of(guest)
    assert (call, flags) == ("managedSaveDefineXML", 0) and "/srv/new.qcow2" in xml and "/srv/vm1/active.qcow2" not in xml and "/dev/vg/data" in xml
    monkeypatch.setattr(guest, "managedSaveGetXMLDesc", lambda flags: xml, raising=False)
    assert connection.resave(guest, OVER) is None and len(calls_of(guest)) == 1  # it is so already
    connection.resave_again(guest, "<domain/>")
    assert calls_of(guest)[1:] == [("managedSaveDefineXML", "<domain/>", 0)]
    guest.errors["managedSaveDefineXML"] = LibvirtError(1)
    with pytest.raises(CallFailed, match="change what guest vm1 was saved with"):
        connection.resave_again(guest, "<domain/>")


def test_the_note_of_a_conversion_is_for_the_next_start(saving):
    connection, guest = saving
    connection.note_conversion(guest, "vda", Conversion("vda", "/m", "/d", "present", True))
    ((call, kind, xml, prefix, uri, flags),) = calls_of(guest)
    assert (call, kind, prefix, uri, flags) == ("setMetadata", 2, "livestorage", CONVERSION_URI % "vda", 2)
    assert xml == '<datafile disk="vda" metadata="/m" data="/d" state="present" ran="yes"/>'


@pytest.mark.parametrize(("code", "note", "fails"), [(None, False, False), (80, False, False), (80, True, True), (1, False, True)])
def test_the_note_of_a_conversion_is_taken_away(saving, code, note, fails):
    """That there was none is no error."""
    connection, guest = saving
    if code is not None:
        guest.errors["setMetadata"] = LibvirtError(code)
    told = Conversion("vda", "/m", "/d", "absent") if note else None
    if fails:
        with pytest.raises(CallFailed, match="note the conversion of disk vda in the definition of guest vm1"):
            connection.note_conversion(guest, "vda", told)
    else:
        connection.note_conversion(guest, "vda", told)
    assert [call[2] is None for call in calls_of(guest)] == [not note]


@pytest.mark.parametrize(("secret", "expected"), [((), False), ((9,), True), ((3,), True)])
def test_the_xml_for_a_migration(saving, monkeypatch, secret, expected):
    """``secret``: with which flags libvirt tells more. What is returned has no secrets."""
    connection, guest = saving
    monkeypatch.setattr(guest, "XMLDesc", lambda flags: "%d%s" % (flags & ~1, " secret" if flags in secret else ""))
    assert connection.texts(guest) == ("8", "2", expected)


def test_as_whom_a_qemu_runs(saving, hypervisor, monkeypatch):
    connection, dummy = saving
    label = "<model>dac</model><doi>0</doi><baselabel type='kvm'>+64055:+108</baselabel>"
    monkeypatch.setattr(hypervisor, "getCapabilities", lambda: "<capabilities><host><secmodel>%s</secmodel></host></capabilities>" % label, raising=False)
    assert connection.runner() == (64055, 108)
