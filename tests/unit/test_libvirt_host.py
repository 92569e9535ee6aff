# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Calls into libvirt: those that never return, which no healthy lab can show quickly, and what drivers do not have."""

from __future__ import annotations

import threading
import time

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Busy, CallFailed, Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import Sizes
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Selection
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
