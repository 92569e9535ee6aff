# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One look of a whole host: what is asked for what need, how often, and what happens where a part gives no answer."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.apparmor import Confinement
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import CallFailed, Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import QemuView, Sizes
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Job, Needs, Selection
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import host as edge
from ansible_collections.livestorage.libvirt.tests.unit.case_host import CaseHost
from ansible_collections.livestorage.libvirt.tests.unit.fake_libvirt import NO_DOMAIN, LibvirtError
from ansible_collections.livestorage.libvirt.tests.unit.support import HERE

CASES = HERE / "cases"
UUID, OTHER = "11111111-2222-4333-8444-555555555555", "22222222-2222-4333-8444-555555555555"
A, M, T, B = "/srv/vm1/active.qcow2", "/srv/vm1/middle.qcow2", "/srv/template.qcow2", "/dev/vg/data"
VM1 = {"xml": "vm1.xml", "config": "vm1.inactive.xml", "snapshots": [{"name": "s", "files": [["vda", "/s"]]}], "sizes": {"vda[3]": [9, 8]}}
VM2 = dict(VM1, replace={"<name>vm1</name>": "<name>vm2</name>", UUID: OTHER})
OFF = {"xml": "vm1.inactive.xml", "active": False, "state": "shutdown", "replace": {"<name>vm1</name>": "<name>vm3</name>", UUID: "u3"}}
ANSWERS = {"query-named-block-nodes": [], "query-block-jobs": [], "query-block": []}
ALL = Needs(Selection(), tolerant=True, headers=200, sizes=True, uses=True, shots=True, qemu=True, processes=True)
PROCESS = {"pid": 7, "name": "vm1", "uuid": UUID, "files": [[A, True], ["/strange", True], ["/read", False]]}


@pytest.fixture(name="host")
def _host(monkeypatch):
    def host(*guests, **case):
        return CaseHost(monkeypatch, dict({"guests": [dict(guest, qemu=ANSWERS) for guest in guests]}, **case), CASES)

    return host


def test_all_there_is(host):
    host = host(VM1, VM2, OFF, processes=[PROCESS])
    seen = host.observe(ALL)
    assert [domain.name for domain in seen.domains] == ["vm1", "vm2", "vm3"] and seen.local and seen.troubles == seen.silent == ()
    assert {path for path, dummy in seen.probes} == {A, M, T, B, "/strange"}
    assert set(seen.shots) == {UUID, OTHER, "u3"} and seen.shots[UUID][0].files == (("vda", "/s"),) and seen.shots["u3"] == ()
    assert set(seen.qemu) == {UUID, OTHER}  # a guest that is off has no QEMU to ask
    assert [process.pid for process in seen.processes] == [7]
    assert {use.guest for use in seen.uses} == {"vm1", "vm2", "vm3"} and seen.unread == ()


DATA = {A: {"image": {"data": "/srv/data.raw"}}, "/srv/data.raw": {"format": "raw"}}


@pytest.mark.parametrize("stores", [True, False])
def test_a_data_file_that_only_a_header_names(host, stores):
    """It is a file of the guest: QEMU is not asked why it holds it open, and it is looked at as a file, and never moved by itself."""
    host = host(VM1, files=DATA, processes=[dict(PROCESS, files=[[A, True], ["/srv/data.raw", True]])])
    seen = host.observe(Needs(Selection(name="vm1"), tolerant=True, headers=200, uses=True, doubts=True, stores=stores))
    told = [disk.chain[0].store for disk in (seen.domain.disk("vda"), seen.domain.config_disk("vda"))]
    assert [store and (store.path, store.known_from) for store in told] == ([("/srv/data.raw", "header")] * 2 if stores else [None, None])
    assert ("/srv/data.raw" in seen.files) == stores and (UUID in seen.qemu) == (not stores) and seen.moved == ()
    assert {(use.guest, use.writes) for use in seen.uses if use.place == ("path", "/srv/data.raw")} == {("vm1", True)}


def test_nothing_more_than_was_asked_for(host):
    host = host(dict(VM1, replace={"<livestorage:job": "<livestorage:other"}), processes=[PROCESS])  # a note would be a reason to look twice
    seen = host.observe(Needs(Selection(), config=False))
    assert (seen.probes, seen.sizes, seen.shots, seen.qemu, seen.processes, seen.uses) == ({}, {}, {}, {}, (), ())
    assert seen.domains[0].config == () and seen.domains[0].mentioned == frozenset() and host.storage.asked == []
    assert host.guests[0].calls.count("XMLDesc") == 1 and host.libvirt.commands == [] and "domainListGetStats" not in host.libvirt.hypervisor.calls


DOUBTS = Needs(Selection(), doubts=True)
NOTED = dict(VM1, replace={"job/1/none' disk='none' type='' layers='' indexes=''": "job/1/vda' disk='vda' type='copy' layers='/new' indexes='3,1,2'"})


@pytest.mark.parametrize(
    ("guest", "files", "asked"),
    [
        (VM1, [[A, True]], False),
        (VM1, [], False),
        (VM1, [["/strange", True]], True),
        (VM1, [["/strange", False]], False),
        (NOTED, [[A, True]], True),
        (dict(NOTED, jobs={"vda": {"type": "copy"}}), [[A, True]], False),
    ],
)
def test_qemu_is_asked_where_there_is_a_doubt(host, guest, files, asked):
    """libvirt marks the guest as tainted by it: never for nothing, and never a guest beside it."""
    host = host(guest, VM2, processes=[dict(PROCESS, files=files)])
    seen = host.observe(DOUBTS)
    assert set(seen.qemu) == ({UUID} if asked else set()) and bool(host.libvirt.commands) == asked
    assert [process.pid for process in seen.processes] == [7] and seen.probes == {}


@pytest.mark.parametrize("answers", [True, False])
def test_the_qemu_of_a_lost_guest_is_asked_at_its_own_monitor(host, monkeypatch, answers):
    view = QemuView(devices=(("/machine/x", "libvirt-9-format", "/new"),))
    asked = []

    def monitor(pid):
        asked.append(pid)
        return view if answers and pid == 8 else None

    monkeypatch.setattr(edge, "ask_monitor", monitor)
    one, two = dict(PROCESS, name="vm3", uuid="u3"), dict(PROCESS, pid=8, name="vm3", uuid="u3")
    host = host(OFF, VM2, processes=[one, two, dict(PROCESS, pid=9, name="vm3", uuid="another")])
    seen = host.observe(DOUBTS)
    assert asked == [7, 8] and seen.qemu == ({"u3": view} if answers else {}) and host.libvirt.commands == []


def test_a_qemu_that_gives_no_answer_is_told(host):
    host = host(NOTED)
    host.guests[0].errors["qemuMonitorCommand"] = LibvirtError(38, "no monitor")
    seen = host.observe(DOUBTS)
    assert seen.qemu == {} and len(seen.troubles) == 1 and "no monitor" in seen.troubles[0]


LABELLED = {
    "</domain>": "%s</domain>"
    % "".join(
        "<seclabel type='dynamic' model='%s' relabel='yes'><label>%s</label></seclabel>" % pair
        for pair in (("dac", "+64055:+64055"), ("apparmor", "libvirt-1"))
    )
}


@pytest.mark.parametrize(
    ("guests", "facts", "asks", "read"),
    [
        ([dict(VM1, replace=LABELLED), VM2, dict(OFF, replace={**OFF["replace"], **LABELLED})], {}, True, [UUID]),
        ([dict(VM1, replace=LABELLED)], {}, False, []),
        ([VM1], {}, True, []),
        ([dict(VM1, replace=LABELLED)], {"local": False}, True, []),  # there the policy is another one
    ],
)
def test_the_confinement_is_read_of_running_guests_with_a_profile(host, monkeypatch, guests, facts, asks, read):
    asked = []

    def confined(*arguments):
        asked.append(arguments)
        return Confinement(*arguments)

    monkeypatch.setattr(edge, "confinement", confined)
    seen = host(*guests, **facts).observe(Needs(Selection(), config=False, confinement=asks))
    assert seen.confinement == {uuid: Confinement("apparmor", "libvirt-1") for uuid in read}
    assert asked == [("apparmor", "libvirt-1")] * len(read)


def test_what_is_measured_is_measured_once(host, monkeypatch):
    """It may take long, and a task looks at least twice."""
    asked = []
    monkeypatch.setattr(edge, "measure", lambda *arguments: asked.append(arguments) or 7)
    host = host(VM1)
    looking = edge.Host("qemu:///system", False)
    needs = Needs(Selection(name="vm1"), measure=lambda domain: (domain.disks[0].chain.layers[:1], "qcow2"))
    assert [looking.observe(needs).measured for dummy in range(3)] == [7] * 3 and len(asked) == 1
    assert looking.observe(replace(needs, measure=lambda domain: None)).measured is None and looking.observe(Needs(Selection(name="vm1"))).measured is None
    assert len(asked) == 1
    looking.close()


def test_a_prepared_image_is_looked_at_once_and_only_while_it_is_as_it_was_prepared(host, monkeypatch):
    asked = []
    monkeypatch.setattr(edge, "holds_data", lambda *arguments: asked.append(arguments) or True)
    host = host(VM1)
    looking = edge.Host("qemu:///system", False)
    needs = Needs(Selection(name="vm1"), bare=(("/new", "qcow2"), ("/base", "raw")), prepared=lambda domain: False)
    assert looking.observe(needs).holds is None and asked == []
    needs = replace(needs, prepared=lambda domain: True)
    assert [looking.observe(needs).holds for dummy in range(2)] == [True] * 2 and asked == [("/new", "qcow2")]
    looking.close()


def test_a_job_that_cannot_be_looked_at_again_is_told_as_it_was(host, monkeypatch):
    host = host(dict(VM1, jobs={"vda": {"type": "pull", "cur": 1, "end": 2}}))

    def sleep(seconds):
        host.guests[0].errors["blockJobInfo"] = LibvirtError(38, "no lock")

    monkeypatch.setattr(host, "sleep", sleep)
    seen = host.observe(Needs(Selection(name="vm1"), config=False, sample=1.0))
    assert seen.rates == {(UUID, "vda"): (Job("pull", 1, 2), None)}


def test_no_guest_is_looked_at_for_images_alone(host):
    host = host(VM1, files={"/x": {"image": {"backing": "/y", "backing_format": "qcow2"}}, "/y": {}})
    seen = host.observe(replace(ALL, guests=False, bare=(("/x", None),), uses=False))
    assert seen.domains == () and {path for path, dummy in seen.probes} == {"/x", "/y"}
    assert host.guests[0].calls == [] and seen.probes["/x", None].format == "qcow2"


@pytest.mark.parametrize("path", [T, "/srv/link.qcow2"])
def test_one_image_of_many_guests_is_read_once(host, path):
    host = host(VM1, VM2, OFF, files={"/srv/link.qcow2": {"link": T}})
    host.observe(ALL)
    assert len(host.storage.asked) == len(set(host.storage.asked))


def test_only_a_path_that_no_xml_names_has_its_format_guessed(host):
    """Of libvirt's images the format is libvirt's word, and of a stranger nobody says one."""
    host = host(dict(VM1, replace={"<driver name='qemu' type='qcow2'/>\n      ": ""}), processes=[PROCESS], files={"/strange": {"format": "qcow2"}})
    seen = host.observe(ALL)
    assert seen.probes[A, None].problem == "format_unknown" and seen.probes["/strange", None].format == "qcow2"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # The header of every layer is known: nobody has to be asked.
        ({}, {}),
        ({M: None}, {(UUID, "vda", 3): Sizes(9, 8, None)}),
    ],
)
def test_statistics_are_read_where_headers_do_not_tell(host, files, expected):
    host = host(VM1, OFF, files=files)
    assert host.observe(ALL).sizes == expected
    assert host.libvirt.hypervisor.calls.count("domainListGetStats") == bool(expected)


def test_a_guest_whose_jobs_cannot_be_read_is_told_without_them(host):
    host = host(dict(VM1, silent=True), VM2, processes=[dict(PROCESS, files=[[A, True]])])
    seen = host.observe(ALL)
    assert seen.silent == ("vm1",) and [domain.name for domain in seen.domains] == ["vm1", "vm2"]
    assert A in seen.domains[0].mentioned and (A, None) not in seen.probes
    with pytest.raises(CallFailed):
        host.observe(replace(ALL, tolerant=False))


def test_a_part_that_gives_no_answer_is_a_warning_and_not_the_end(host):
    host = host(VM1, VM2, files={M: None})
    one, other = host.guests
    one.errors["listAllSnapshots"] = LibvirtError(38, "no snapshots")
    other.errors["qemuMonitorCommand"] = LibvirtError(38, "no monitor")
    host.libvirt.hypervisor.errors["domainListGetStats"] = LibvirtError(38, "no statistics")
    seen = host.observe(ALL)
    assert set(seen.shots) == {OTHER} and set(seen.qemu) == {UUID} and seen.sizes == {}
    assert len(seen.troubles) == 3
    for part in ("no snapshots", "no monitor", "no statistics"):
        assert any(part in trouble for trouble in seen.troubles)


@pytest.mark.parametrize("call", ["listAllSnapshots", "qemuMonitorCommand"])
def test_a_connection_that_breaks_is_the_end(host, call, monkeypatch):
    host = host(VM1)

    def broken(handle, *arguments):
        host.libvirt.hypervisor.alive = False
        raise LibvirtError(38, "broken")

    if call == "listAllSnapshots":
        monkeypatch.setattr(host.guests[0], call, broken.__get__(host.guests[0]))
    else:
        monkeypatch.setattr(host.libvirt, call, broken)
    with pytest.raises(Unavailable) as caught:
        host.observe(ALL)
    assert caught.value.code == "connection_lost"


def test_a_guest_that_vanishes_is_left_out(host):
    host = host(VM1, VM2)
    host.guests[0].errors["state"] = LibvirtError(NO_DOMAIN)
    seen = host.observe(ALL)
    assert [domain.name for domain in seen.domains] == ["vm2"] and set(seen.shots) == {OTHER} == set(seen.qemu)


@pytest.mark.parametrize(("state", "names"), [("running", ["vm1"]), ("shutdown", ["vm3"]), ("paused", [])])
def test_guests_of_a_state(host, state, names):
    seen = host(VM1, OFF).observe(replace(ALL, selection=Selection(state=state)))
    assert [domain.name for domain in seen.domains] == names
    # Who else uses an image does not depend on who was asked for.
    assert {use.guest for use in seen.uses} == {"vm1", "vm3"}


# Another host

VOLUME = "<volume type='file'><capacity>9</capacity><target><format type='qcow2'/></target></volume>"


@pytest.mark.parametrize(("uses", "asked"), [(True, 4), (False, 0)])
def test_on_another_host_volumes_are_asked_where_libvirt_leaves_something_open(host, uses, asked):
    host = host(VM1, local=False, processes=[PROCESS], volumes={A: VOLUME})
    seen = host.observe(replace(ALL, uses=uses, config=False))
    assert not seen.local and seen.processes == () and host.storage.asked == [] and seen.files == {}
    assert host.libvirt.hypervisor.calls.count("storageVolLookupByPath") == asked
    assert seen.sizes == {(UUID, "vda", 3): Sizes(9, 8, None)}


def test_on_another_host_an_open_end_is_asked_for(host):
    host = host(OFF, local=False, volumes={A: VOLUME})
    seen = host.observe(replace(ALL, uses=False))
    assert seen.probes[A, "qcow2"].image is not None and seen.probes[B, "raw"].problem == "remote"


# What is judged as before a change, of every guest

JUDGED = Needs(Selection(), tolerant=True, offline=True, headers=200, uses=True, shots=True, of_snapshots=True, bitmaps=True)
NOTED_OFF = dict(OFF, noted=[{"name": "n", "files": [["vda", "/noted"]], "tracked": False}], checkpoints={"monday": [["vda", "monday"]]})


def test_the_files_the_snapshots_and_the_checkpoints_of_every_guest(host):
    asked = []

    def with_shots(domain, shots):
        asked.append((domain.name, [shot.name for shot in shots]))
        return ["/with/" + domain.name]

    needs = replace(JUDGED, paths_of=lambda domain: ["/of/" + domain.name], paths_with=with_shots)
    host = host(VM1, NOTED_OFF)
    seen = host.observe(needs)
    assert asked == [("vm1", ["s"]), ("vm3", [])]
    assert set(seen.files) == {"/of/vm1", "/of/vm3", "/with/vm1", "/with/vm3", "/s", "/noted"}
    assert seen.checkpoints == {UUID: (), "u3": (("monday", (("vda", "monday"),)),)} and seen.bitmaps == () == seen.snapshots
    assert seen.probes["/noted", None].problem == "missing" and seen.unanswered == {}


def test_an_image_that_a_snapshot_and_a_chain_name_is_read_once(host):
    shot = {"name": "s", "files": [["vda", A]], "bases": [["vda", M]]}
    host = host(dict(VM1, snapshots=[shot]), dict(NOTED_OFF, snapshots=[shot]))
    seen = host.observe(JUDGED)
    assert (A, None) not in seen.probes and sorted(path for path, dummy in host.storage.asked if path in (A, M)) == [A, M]


def test_what_a_guest_does_not_answer_is_told_of_it(host):
    host = host(dict(VM1, silent=True), VM2)
    host.guests[1].errors["listAllCheckpoints"] = LibvirtError(38, "no lock")
    seen = host.observe(JUDGED)
    assert {key: code for key, (code, dummy) in seen.unanswered.items()} == {(UUID, "job"): "libvirt_error", (OTHER, "checkpoints"): "libvirt_error"}
    assert seen.unanswered[OTHER, "checkpoints"][1] in seen.troubles and "acquire state change lock" in seen.unanswered[UUID, "job"][1]


@pytest.mark.parametrize(("needs", "waits"), [(ALL, edge.OTHERS_SECONDS), (JUDGED, None), (replace(JUDGED, tolerant=False), None)])
def test_how_long_the_images_of_others_are_waited_for(host, monkeypatch, needs, waits):
    """What is judged as before a change needs all of them."""
    asked = []
    monkeypatch.setattr(edge, "all_uses", lambda connection, images, deadline: asked.append(deadline) or ((), ()))
    host = host(VM1)
    host.observe(needs)
    assert asked == [None if waits is None else host.clock() + waits]


def test_files_on_dead_storage_are_given_up_where_guests_are_only_looked_at(host, monkeypatch):
    release = threading.Event()
    host = host(OFF)
    read, asked = edge.read_file, []

    def hangs(path, *more):
        asked.append(path)
        return release.wait() if path.startswith("/dead/") else read(path)

    monkeypatch.setattr(edge, "read_file", hangs)
    monkeypatch.setattr(edge, "in_use", lambda path, writes: release.wait() if path == A else None)
    monkeypatch.setattr(edge, "PATH_SECONDS", 0.2)
    seen = host.observe(replace(JUDGED, paths=("/dead/1", "/dead/2", T)))
    release.set()
    assert set(seen.files) == {T} and asked.count("/dead/1") == 1 and "/dead/2" not in asked
    assert seen.held[A, True] == seen.held[A, False] == edge.NO_ANSWER and seen.held[B, True] is None
    assert [trouble for trouble in seen.troubles if "gave no answer" in trouble] == [
        "The storage at %s gave no answer in time: nothing is known of the files there." % folder for folder in ("/dead", "/srv/vm1")
    ]
