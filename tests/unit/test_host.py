# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Steps and their undoing: what is done to libvirt and to files, also half-way, also twice."""

from __future__ import annotations

import os
import types
from dataclasses import replace

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.check_disk import Evidence, disk_findings
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Busy, CallFailed, JobFailed, Moved, PivotLost, Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain, Job, Mirror, Needs, Record, Selection, Snapshot
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.plan import Step
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import host as edge
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.host import read_file
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.libvirt_events import Events
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.libvirt_host import is_local
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.pivots import PIVOT_TRIES
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.qemu_img import info_command
from ansible_collections.livestorage.libvirt.tests.unit.fake_connection import Timeline, host_on, with_disk

NO = CallFailed("libvirt_error", "No.")
BASE = file_layer("/base", "qcow2", 1)
BEFORE = Domain("vm1", "u1", True, disks=(Disk("vda", Chain((BASE,), True)),))
RECORD = Record("vda", "pull", "", "1")
PULL = Step("pull", "vda", {"base": None, "bandwidth": 7, "keep_relative": False, "record": RECORD})
ACTIVE = Step("commit", "vda", {"job": "active-commit", "top": None, "base": "vda[1]", "bandwidth": 0, "keep_relative": True, "record": None})


COMMITS = Job("active-commit")


def mirrored(ready, job=COMMITS):
    return with_disk(BEFORE, job=job, mirror=Mirror("active-commit", ready, Chain((BASE,), True)))


@pytest.mark.parametrize(
    ("step", "calls"),
    [
        (PULL, ["forget", "write_record", ("pull", "vda", None, 7, False)]),
        (ACTIVE, ["forget", ("commit", "vda", None, "vda[1]", 0, True, True)]),
        (Step("forget", "vda"), ["clear_record"]),
    ],
)
def test_the_intent_is_written_down_before_the_call(monkeypatch, step, calls):
    timeline = Timeline([(0, BEFORE)])
    host_on(monkeypatch, timeline).do(step)
    assert timeline.calls == calls


def test_a_guest_that_is_gone_is_not_worked_on(monkeypatch):
    timeline = Timeline([(0, None)])
    with pytest.raises(Moved) as caught:
        host_on(monkeypatch, timeline).do(PULL)
    assert caught.value.code == "guest_gone" and timeline.calls == []
    host_on(monkeypatch, timeline).undo(PULL)
    assert timeline.calls == []


@pytest.mark.parametrize(
    ("ready", "refused", "tries", "error"),
    [
        ("yes", 0, 1, None),
        ("yes", 1, 2, None),
        ("yes", PIVOT_TRIES - 1, PIVOT_TRIES, None),
        ("yes", 99, PIVOT_TRIES, NO),
        (None, 99, 1, NO),
        ("pivot", 99, 1, PivotLost),  # somebody else's pivot, which does not end
    ],
)
def test_a_pivot_is_tried_a_stated_number_of_times(monkeypatch, ready, refused, tries, error):
    timeline = Timeline([(0, mirrored(ready))])
    timeline.refusals["pivot"] = [NO] * refused
    host = host_on(monkeypatch, timeline)
    pivot = Step("pivot", "vda", {"to": file_layer("/copy", "qcow2", 2)})
    if error is None:
        host.do(pivot)
    else:
        with pytest.raises(PivotLost if error is PivotLost else CallFailed):
            host.do(pivot)
    assert [call for call in timeline.calls if call != "qemu_view"] == ["pivot"] * tries + ([] if error else ["clear_record"])


@pytest.mark.parametrize(
    ("state", "calls"),
    [
        (with_disk(BEFORE, job=Job("pull")), ["abort", "clear_record"]),
        (mirrored("yes"), ["abort", "clear_record"]),
        (mirrored("pivot", job=None), ["clear_record"]),
        (BEFORE, ["clear_record"]),
        (Domain("vm1", "u1", False, "shutdown"), []),
        (None, []),
    ],
    ids=["running", "mirror", "stale-mirror", "over", "off", "gone"],
)
def test_undoing_a_job(monkeypatch, state, calls):
    timeline = Timeline([(0, state)])
    host = host_on(monkeypatch, timeline)
    for step in (PULL, ACTIVE):
        host._started.add("vda")
        timeline.calls.clear()
        host.undo(step)
        assert timeline.calls == calls


@pytest.mark.parametrize("error", [CallFailed("libvirt_error", "No."), Busy("foreign_job", "No.")])
def test_a_refused_start_owns_no_job(monkeypatch, error):
    """What runs on the disk then is somebody else's: it is not ended, and the note that was left is taken away."""
    timeline = Timeline([(0, BEFORE)])
    timeline.refusals["pull"] = [error]
    host = host_on(monkeypatch, timeline)
    with pytest.raises(type(error)):
        host.do(PULL)
    timeline.states = [(0, with_disk(BEFORE, job=Job("pull")))]
    host.undo(PULL)
    assert "abort" not in timeline.calls and timeline.calls[-1] == "clear_record"


def test_a_job_that_came_first_is_left_alone(monkeypatch):
    timeline = Timeline([(0, with_disk(BEFORE, job=Job("pull")))])
    host = host_on(monkeypatch, timeline)
    with pytest.raises(Busy):
        host.do(PULL)
    host.undo(PULL)
    assert timeline.calls == []


def test_a_job_that_follows_ours_is_left_alone(monkeypatch):
    """Ours is over, whatever came of it; what runs on the disk afterwards is somebody else's."""
    timeline = Timeline([(0, BEFORE)], [(1, "canceled", "vda")])
    host = host_on(monkeypatch, timeline)
    host.do(PULL)
    with pytest.raises(JobFailed):
        host.do(Step("wait", "vda", {"job": "pull", "until": "completed", "timeout": 9, "poll_interval": 1, "on_timeout": "leave"}))
    timeline.states = [(0, with_disk(BEFORE, job=Job("copy")))]
    host.undo(PULL)
    assert "abort" not in timeline.calls


def test_a_foreign_mirror_is_not_pivoted_by_an_undo(monkeypatch):
    top = file_layer("/top", "qcow2", 2)
    timeline = Timeline([(0, with_disk(mirrored("yes"), chain=Chain((top, BASE), True)))])
    host = host_on(monkeypatch, timeline)
    with pytest.raises(Busy):
        host.undo(snapshot(("vda", top), creates=()))
    assert "pivot" not in timeline.calls


@pytest.mark.parametrize("action", ["wait", "pivot", "delete", "forget"])
def test_what_has_no_way_back_is_left(monkeypatch, action):
    timeline = Timeline([(0, BEFORE)])
    host_on(monkeypatch, timeline).undo(Step(action, "vda", {"path": "/x"}))
    assert timeline.calls == []


def test_undo_after_the_daemon_came_back(monkeypatch):
    timeline = Timeline([(0, with_disk(BEFORE, job=Job("pull")))], alive=False)
    timeline.broken = True
    host = host_on(monkeypatch, timeline)
    host._started.add("vda")
    host.undo(PULL)
    assert timeline.calls == ["reopen", "abort", "clear_record"]


def snapshot(*overlays, creates, metadata=False):
    return Step("snapshot", None, {"name": "s", "overlays": overlays, "others": (), "metadata": metadata, "reuse_existing": False, "creates": creates})


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "refused"])
@pytest.mark.parametrize("made", [True, False], ids=["files", "no-files"])
@pytest.mark.parametrize("metadata", [True, False])
def test_undoing_a_snapshot(monkeypatch, tmp_path, taken, made, metadata):
    """Overlays that became active are merged back; only files that this run made are removed, and only then."""
    paths = [str(tmp_path / name) for name in ("mine", "theirs")]
    for path in paths if made else ():
        open(path, "w", encoding="utf-8").close()
    overlays = tuple(("vd" + letter, file_layer(path, "qcow2", 5 + place)) for place, (letter, path) in enumerate(zip("ab", paths)))
    before = Domain(
        "vm1",
        "u1",
        True,
        disks=tuple(Disk(target, Chain((file_layer("/base" + target, "qcow2", place),), True)) for place, target in enumerate(("vda", "vdb"), 1)),
    )
    now = before
    if taken:
        for place, (target, layer) in enumerate(overlays):
            chain = Chain((layer,) + now.disks[place].chain.layers, True)
            now = Domain("vm1", "u1", True, disks=tuple(Disk(disk.target, chain) if disk.target == target else disk for disk in now.disks))
    timeline = Timeline([(0, now)])

    def commit(world):
        world.queue = [(world.now, "ready", world.calls[-1][1])]

    def pivot(world):
        assert not made or os.path.exists(paths[0])
        target = [call for call in world.calls if call[0] == "commit"][-1][1]
        state = world.states[-1][1]
        disks = tuple(Disk(disk.target, Chain(disk.chain.layers[-1:], True)) if disk.target == target else disk for disk in state.disks)
        world.states = [(0, Domain("vm1", "u1", True, disks=disks))]

    timeline.effects = {"commit": commit, "pivot": pivot}
    host = host_on(monkeypatch, timeline)
    step = snapshot(*overlays, creates=(paths[0],), metadata=metadata)
    # A snapshot of that name that is not ours stays where the call was refused.
    files = tuple((disk, layer.path) for disk, layer in overlays) if taken else (("vda", "/other"),)
    timeline.tracked = (Snapshot(step.detail["name"], files),)
    for dummy in range(2):  # twice: the second time nothing is left to do
        host.undo(step)
    commits = [call for call in timeline.calls if call[0] == "commit"]
    assert commits == ([("commit", "vda", None, "vda[1]", 0, True, False), ("commit", "vdb", None, "vdb[2]", 0, True, False)] if taken else [])
    assert ("forget_snapshot" in timeline.calls) == (metadata and taken)
    assert timeline.states[-1][1] == before
    # Where the snapshot was refused, a file of that name is somebody else's.
    assert os.path.exists(paths[0]) == (made and not taken) and os.path.exists(paths[1]) == made


def test_a_merge_back_that_fails_leaves_the_overlay(monkeypatch, tmp_path):
    path = str(tmp_path / "mine")
    open(path, "w", encoding="utf-8").close()
    overlay = file_layer(path, "qcow2", 5)
    timeline = Timeline([(0, Domain("vm1", "u1", True, disks=(Disk("vda", Chain((overlay, BASE), True)),)))])
    timeline.refusals["commit"] = [NO]
    with pytest.raises(CallFailed):
        host_on(monkeypatch, timeline).undo(snapshot(("vda", overlay), creates=(path,)))
    assert os.path.exists(path)


def test_an_overlay_that_somebody_built_upon_stays(monkeypatch, tmp_path):
    path = str(tmp_path / "mine")
    open(path, "w", encoding="utf-8").close()
    overlay, newer = file_layer(path, "qcow2", 5), file_layer("/newer", "qcow2", 6)
    timeline = Timeline([(0, Domain("vm1", "u1", True, disks=(Disk("vda", Chain((newer, overlay, BASE), True)),)))])
    host_on(monkeypatch, timeline).undo(snapshot(("vda", overlay), creates=(path,)))
    assert timeline.calls == [] and os.path.exists(path)


def removal(path, **other):
    facts = os.stat(path)
    return Step("delete", "vda", dict({"path": str(path), "device": facts.st_dev, "inode": facts.st_ino}, **other))


def test_a_file_is_removed_only_if_it_is_the_one_that_was_seen(monkeypatch, tmp_path):
    host, path = host_on(monkeypatch, Timeline([(0, BEFORE)])), tmp_path / "old"
    path.write_text("x")
    for other in ({"inode": 1}, {"device": 1}):
        with pytest.raises(Moved, match="left alone") as caught:
            host.do(removal(path, **other))
        assert caught.value.code == "file_changed" and path.exists()
    step = removal(path)
    host.do(step)
    host.do(step)
    assert not path.exists()


def test_a_file_that_cannot_be_removed(monkeypatch, tmp_path):
    host, path = host_on(monkeypatch, Timeline([(0, BEFORE)])), tmp_path / "old"
    path.mkdir()
    with pytest.raises(CallFailed, match="cannot be removed") as caught:
        host.do(removal(path))
    assert caught.value.code == "not_removed"


def test_the_facts_of_a_path(tmp_path):
    file, link, broken = tmp_path / "file", tmp_path / "link", tmp_path / "broken"
    file.write_text("12345")
    link.symlink_to(file)
    broken.symlink_to(tmp_path / "nowhere")
    one = read_file(str(file))
    assert (one.exists, one.kind, one.size, one.parent, one.real) == (True, "file", 5, "dir", str(file))
    assert (one.device, one.inode) == (os.stat(file).st_dev, os.stat(file).st_ino)
    assert read_file(str(link)).real == str(file) and read_file(str(link)).inode == one.inode
    # A link to nowhere is in the way of a new file, but it is no file.
    assert (read_file(str(broken)).exists, read_file(str(broken)).kind) == (True, "other")
    absent = read_file(str(tmp_path / "no" / "file"))
    assert (absent.exists, absent.kind, absent.parent) == (False, None, None)
    assert read_file(str(file / "below")).parent == "file"
    assert read_file(str(tmp_path)).kind == "dir" and read_file("/dev/null").kind == "other"


@pytest.mark.parametrize(
    ("uri", "local"),
    [
        ("qemu:///system", True),
        ("qemu:///session", True),
        ("qemu+unix:///system", True),
        ("qemu+ssh://h/system", False),
        ("qemu+ssh://root@h:22/system?no_verify=1", False),
        ("qemu+tcp://127.0.0.1/system", False),
        ("qemu+ext:///system?command=x", False),
        ("qemu+ssh:///system", False),
    ],
)
def test_local_uris(uri, local):
    assert is_local(uri) == local


def test_a_header_is_read_with_its_format_and_nothing_else():
    command = info_command(7, "qcow2")
    assert command[:2] == ["qemu-img", "info"] and command[-2:] == ["--", "/proc/self/fd/7"]
    assert "-U" in command and command[command.index("-f") + 1] == "qcow2" and "--backing-chain" not in command


class Binding:
    """As much of the libvirt binding as events need."""

    VIR_DOMAIN_EVENT_STOPPED, VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, VIR_DOMAIN_EVENT_ID_LIFECYCLE = 5, 16, 0

    def __init__(self):
        self.callbacks = {}

    def setKeepAlive(self, interval, count):
        self.alive = (interval, count)

    def domainEventRegisterAny(self, domain, kind, callback, opaque):
        self.callbacks[kind] = callback


def test_events_become_words():
    binding = Binding()
    events = Events(binding, binding)
    one, other = (types.SimpleNamespace(UUIDString=lambda uuid=uuid: uuid) for uuid in ("u1", "u2"))
    job, life = binding.callbacks[16], binding.callbacks[0]
    for status in range(4):
        job(None, one, "vda", 1, status, None)
    job(None, one, "vda", 1, 99, None)  # a status of a libvirt to come says nothing
    assert [events.word("u1", "vda", 0) for dummy in range(5)] == ["completed", "failed", "canceled", "ready", None]
    job(None, one, "vdb", 1, 0, None)
    job(None, other, "vda", 1, 0, None)
    life(None, other, 5, 0, None)
    life(None, one, 4, 0, None)
    assert [events.word("u1", "vda", 0) for dummy in range(4)] == [None] * 4
    life(None, one, 5, 0, None)
    assert events.word("u1", "vda", 0) == "stopped"
    job(None, one, "vda", 1, 0, None)
    events.forget()
    assert events.word("u1", "vda", 0) is None and binding.alive[0] > 0


def test_images_of_no_guest_are_read_without_libvirt(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise Unavailable("no_daemon", "libvirt does not answer.")

    monkeypatch.setattr(edge, "Connection", refuse)
    path = tmp_path / "x"
    path.write_bytes(bytes(1024))
    bare = Needs(Selection(), guests=False, headers=5, bare=((str(path), "raw"),))
    host = edge.Host("qemu:///system", False)
    assert host.observe(bare).probes[str(path), "raw"].virtual == 1024
    host.close()  # nothing was opened
    for uri, needs in (("qemu:///system", Needs(Selection())), ("qemu+ssh://there/system", bare), ("an-alias", bare)):
        with pytest.raises(Unavailable):
            edge.Host(uri, False).observe(needs)


class Restless:
    """A libvirt whose guest has another chain at each of its first ``changes`` looks."""

    local, alive = True, True

    def __init__(self, changes):
        self.changes, self.looks = changes, 0

    def __call__(self, uri, with_events):
        return self

    def select(self, selection):
        return ["handle"]

    def read(self, handle, with_config, *more):
        self.looks += 1
        chain = Chain((file_layer("/gone/%d" % min(self.looks, self.changes), "raw"),), True)
        return Domain("vm1", "u1", True, disks=(Disk("vda", chain),))

    def snapshots(self, handle):
        return ()

    def sizes(self, handles):
        return {}


LOOK = Needs(Selection(name="vm1"), tolerant=True, uses=True, headers=5)


@pytest.mark.parametrize(("changes", "moved"), [(1, ()), (4, ()), (99, ("u1",))])
def test_a_guest_that_changes_under_the_look_is_looked_at_again(monkeypatch, changes, moved):
    """Of each look the first and the last reading are compared; the one between finds who uses what."""
    restless = Restless(changes)
    monkeypatch.setattr(edge, "Connection", restless)
    seen = edge.Host("qemu:///system", False).observe(LOOK)
    assert seen.moved == moved and restless.looks == {1: 3, 4: 6, 99: 9}[changes]


def test_nothing_is_said_of_a_guest_that_keeps_changing(monkeypatch):
    monkeypatch.setattr(edge, "Connection", Restless(99))
    seen = edge.Host("qemu:///system", False).observe(LOOK)
    found = disk_findings(seen.domain, seen.domain.disks[0], Evidence(seen, 200))
    assert [(one.code, one.actual) for one in found] == [("unknown", "moved")] and "look again" in found[0].message
    calm = replace(seen, moved=())
    assert [one.code for one in disk_findings(calm.domain, calm.domain.disks[0], Evidence(calm, 200))] == ["missing_file"]
