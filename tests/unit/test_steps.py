# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps of a copy and of block_job, done and undone: whose job is ended, and whose file is removed."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Busy, CallFailed, JobFailed, Moved, PivotLost, Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import QemuView
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain, Job, Mirror, Record
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.plan import Step
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import steps as edge
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.steps import BACKUP_SECONDS
from ansible_collections.livestorage.libvirt.tests.unit.fake_connection import Timeline, host_on, with_disk

NO, GONE = CallFailed("libvirt_error", "No."), Unavailable("connection_lost", "The connection broke.")
OLD, BASE = file_layer("/old", "qcow2", 3), file_layer("/base", "qcow2", 1)
BEFORE = Domain("vm1", "u1", True, disks=(Disk("vda", Chain((OLD, BASE), True)), Disk("vdb", Chain((BASE,), True))))
OFF = replace(BEFORE, active=False, state="shutdown")
RECORD = Record("vda", "copy", "/new", "3,1")


@pytest.fixture(name="path")
def _path(tmp_path):
    """The destination, which somebody has made by now."""
    found = tmp_path / "new"
    found.write_text("x")
    return str(found)


def copies(path, ready=None, job=True):
    """The guest while its disk is copied there."""
    mirror = Mirror("copy", ready, Chain((file_layer(path, "qcow2", 9),), True))
    return with_disk(BEFORE, job=Job("copy", 1, 2) if job else None, mirror=mirror)


def copy(path, creates=True, pool=None, below=None):
    detail = {"to": file_layer(path, "qcow2"), "below": below, "shallow": below is not None, "params": {"bandwidth": 7}, "flags": ("TRANSIENT_JOB",)}
    return Step("copy", "vda", dict(detail, record=RECORD, creates=path if creates else None, pool=pool))


def words(timeline) -> list:
    return [call if isinstance(call, str) else call[0] for call in timeline.calls]


def started(timeline, path):
    """The call makes the file and starts the job."""

    def act(world):
        world.states = [(0, copies(path))]

    timeline.effects["copy"] = act
    return timeline


def test_a_copy_is_noted_and_started(monkeypatch, path):
    timeline = Timeline([(0, BEFORE)])
    host = host_on(monkeypatch, timeline)
    noted = []
    monkeypatch.setattr(timeline, "write_record", lambda handle, record: noted.append(vars(record)), raising=False)
    host.do(copy(path))
    assert timeline.calls[0] == "forget" and words(timeline) == ["forget", "copy"]
    dummy, target, xml, params, flags = timeline.calls[1]
    assert (target, params, flags) == ("vda", {"bandwidth": 7}, ("TRANSIENT_JOB",))
    assert path in xml and "backingStore" not in xml
    assert noted == [dict(vars(RECORD), since=1795219200)]


def test_what_is_below_is_spelled_out(monkeypatch, path):
    timeline = Timeline([(0, BEFORE)])
    host_on(monkeypatch, timeline).do(copy(path, below=Chain((BASE,), True)))
    assert '<source file="/base"/>' in timeline.calls[-1][2] and "index" not in timeline.calls[-1][2]


@pytest.mark.parametrize("refused", [False, True])
def test_a_pool_sees_the_volume_that_the_copy_made(monkeypatch, path, refused):
    """That it cannot look is no reason to fail."""
    timeline = Timeline([(0, BEFORE)])
    timeline.refusals["refresh_pool"] = [NO] if refused else []
    host_on(monkeypatch, timeline).do(copy(path, pool="fast"))
    assert timeline.calls[-1] == ("refresh_pool", "fast")


@pytest.mark.parametrize("error", [NO, Busy("foreign_job", "No.")])
def test_a_refused_copy_has_made_nothing(monkeypatch, path, error):
    """A file of that name that is there nevertheless is somebody else's, and so is a job."""
    timeline = Timeline([(0, BEFORE)])
    timeline.refusals["copy"] = [error]
    host = host_on(monkeypatch, timeline)
    with pytest.raises(type(error)):
        host.do(copy(path))
    assert words(timeline)[-1] == "clear_record"
    timeline.states = [(0, copies("/another"))]
    host.undo(copy(path))
    assert "abort" not in timeline.calls and os.path.exists(path)


@pytest.mark.parametrize("state", [with_disk(BEFORE, job=Job("pull")), copies("/new"), copies("/new", "pivot", job=False)])
def test_a_job_or_a_mirror_that_came_first_is_left_alone(monkeypatch, path, state):
    timeline = Timeline([(0, state)])
    host = host_on(monkeypatch, timeline)
    with pytest.raises(Busy):
        host.do(copy(path))
    host.undo(copy(path))
    assert timeline.calls == [] and os.path.exists(path)


@pytest.mark.parametrize(
    "chain", [Chain((file_layer("/overlay", "qcow2", 7), OLD, BASE), True), Chain((OLD,), True), Chain((replace(OLD, index=8), BASE), True)]
)
def test_a_chain_that_changed_while_the_destination_was_made(monkeypatch, path, chain):
    """As by a snapshot: what was made holds what the layers between held then."""
    timeline = Timeline([(0, with_disk(BEFORE, chain=chain))])
    host = host_on(monkeypatch, timeline)
    with pytest.raises(Moved, match="changed after it was looked at"):
        host.do(copy(path))
    assert timeline.calls == []


@pytest.mark.parametrize("happened", [True, False])
def test_a_start_that_brought_no_answer_is_ended_and_its_file_removed(monkeypatch, path, happened):
    """Nobody else can have started it: the disk was free, and the intent was written down before."""
    timeline = Timeline([(0, BEFORE)])
    timeline.refusals["copy"] = [GONE]
    host = host_on(monkeypatch, timeline)
    with pytest.raises(Unavailable):
        host.do(copy(path))
    timeline.states = [(0, copies(path) if happened else BEFORE)]
    timeline.effects["abort"] = lambda world: setattr(world, "states", [(0, BEFORE)])
    host.undo(copy(path))
    assert words(timeline).count("abort") == happened and "clear_record" in timeline.calls and not os.path.exists(path)


@pytest.mark.parametrize("creates", [True, False])
@pytest.mark.parametrize("pool", [None, "fast"])
def test_undoing_a_copy(monkeypatch, path, creates, pool):
    """Its job is ended first; only a file that this run created goes."""
    timeline = started(Timeline([(0, BEFORE)]), path)
    host = host_on(monkeypatch, timeline)
    step = copy(path, creates, pool)
    host.do(step)
    timeline.calls.clear()

    def abort(world):
        assert os.path.exists(path)
        world.states = [(0, BEFORE)]

    timeline.effects["abort"] = abort
    for dummy in range(2):  # twice: the second time nothing is left to do
        host.undo(step)
    assert words(timeline)[:2] == ["abort", "clear_record"] and words(timeline).count("abort") == 1
    assert os.path.exists(path) == (not creates) and (("refresh_pool", "fast") in timeline.calls) == (creates and pool is not None)


def test_a_copy_of_another_run_is_not_undone(monkeypatch, path):
    timeline = Timeline([(0, copies(path))])
    host_on(monkeypatch, timeline).undo(copy(path))
    assert timeline.calls == [] and os.path.exists(path)


@pytest.mark.parametrize("state", ["mirror", "chain"])
def test_a_destination_that_the_guest_has_stays(monkeypatch, path, state):
    """The mirror is still there after the abort, or the disk lives there."""
    timeline = started(Timeline([(0, BEFORE)]), path)
    host = host_on(monkeypatch, timeline)
    host.do(copy(path))
    left = copies(path, "pivot", job=False) if state == "mirror" else with_disk(BEFORE, chain=Chain((file_layer(path, "qcow2", 9),), True))
    timeline.states = [(0, left)]
    with pytest.raises(CallFailed, match="left alone") as caught:
        host.undo(copy(path))
    assert caught.value.code == "in_use" and os.path.exists(path)


@pytest.mark.parametrize("guest", [BEFORE, OFF, None], ids=["running", "off", "gone"])
def test_a_file_that_any_qemu_holds_stays(monkeypatch, path, guest):
    """Also where libvirt has lost the guest: its QEMU may write there."""
    timeline = started(Timeline([(0, BEFORE)]), path)
    host = host_on(monkeypatch, timeline, held=True)
    host.do(copy(path))
    timeline.states = [(0, guest)]
    with pytest.raises(CallFailed, match="holds the file %s open: it was left alone" % path):
        host.undo(copy(path))
    assert os.path.exists(path)


@pytest.mark.parametrize("guest", [OFF, None], ids=["off", "gone"])
def test_the_file_of_a_guest_that_stopped_goes(monkeypatch, path, guest):
    timeline = started(Timeline([(0, BEFORE)]), path)
    host = host_on(monkeypatch, timeline)
    host.do(copy(path))
    timeline.states = [(0, guest)]
    host.undo(copy(path))
    assert not os.path.exists(path)


@pytest.mark.parametrize("guest", [OFF, None], ids=["off", "gone"])
def test_nor_is_a_strangers_file_removed_then(monkeypatch, path, guest):
    timeline = Timeline([(0, BEFORE)])
    timeline.refusals["copy"] = [NO]
    host = host_on(monkeypatch, timeline)
    with pytest.raises(CallFailed):
        host.do(copy(path))
    timeline.states = [(0, guest)]
    for step in (copy(path), Step("create", "vda", {"creates": path, "pool": "p"}), Step("prepare", "vda", {"creates": path})):
        host.undo(step)
    assert os.path.exists(path)


# What is made before a copy

CREATE = {"pool": "fast", "volume": "v", "capacity": 1 << 20, "format": "qcow2", "options": {"cluster_size": 65536}, "backing": None}


@pytest.mark.parametrize("refused", [True, False])
def test_a_volume(monkeypatch, path, refused):
    timeline = Timeline([(0, BEFORE)])
    timeline.refusals["create_volume"] = [NO] if refused else []
    host, step = host_on(monkeypatch, timeline), Step("create", "vda", dict(CREATE, creates=path))
    if refused:
        with pytest.raises(CallFailed):
            host.do(step)
    else:
        host.do(step)
    assert timeline.calls[0][:2] == ("create_volume", "fast") and "<clusterSize" in timeline.calls[0][2]
    host.undo(step)
    # Refused: a volume of that name is somebody else's.
    assert os.path.exists(path) == refused and (("refresh_pool", "fast") in timeline.calls) == (not refused)


@pytest.mark.parametrize("error", [None, CallFailed("not_prepared", "No.")])
def test_a_destination_on_its_backing(monkeypatch, path, error):
    """Also half of it is removed."""
    made = []
    os.unlink(path)

    def make(*arguments):
        made.append(arguments)
        if error is not None:
            raise error

    monkeypatch.setattr(edge, "make_overlay", make)
    host = host_on(monkeypatch, Timeline([(0, BEFORE)]))
    step = Step("prepare", "vda", {"path": path, "format": "qcow2", "size": 7, "above": OLD, "below": BASE, "creates": path, "timeout": 5})
    if error is None:
        host.do(step)
    else:
        with pytest.raises(CallFailed):
            host.do(step)
    assert made == [(path, "qcow2", 7, OLD, BASE, 5)] and os.path.exists(path)
    host.undo(step)
    assert not os.path.exists(path)


def test_what_came_to_the_destination_after_the_look_is_not_overwritten(monkeypatch, path):
    made = []
    monkeypatch.setattr(edge, "make_overlay", lambda *arguments: made.append(arguments))
    host = host_on(monkeypatch, Timeline([(0, BEFORE)]))
    step = Step("prepare", "vda", {"path": path, "format": "qcow2", "size": 7, "above": OLD, "below": BASE, "creates": path, "timeout": 5})
    with pytest.raises(Moved):
        host.do(step)
    host.undo(step)
    assert made == [] and os.path.exists(path)


def test_a_volume_that_was_made_on_another_host_is_not_removed_from_this_one(monkeypatch, path):
    timeline = Timeline([(0, BEFORE)])
    monkeypatch.setattr(timeline, "local", False, raising=False)
    host = host_on(monkeypatch, timeline)
    step = Step("create", "vda", dict(CREATE, creates=path))
    host.do(step)
    with pytest.raises(CallFailed):
        host.undo(step)
    assert os.path.exists(path)


def test_the_file_that_the_definition_of_a_stopped_guest_names_is_not_removed(monkeypatch, path):
    """Somebody else pivoted, and the guest was shut off before it was looked at again."""
    timeline = started(Timeline([(0, BEFORE)]), path)
    host = host_on(monkeypatch, timeline)
    host.do(copy(path))
    timeline.states = [(0, replace(OFF, disks=(Disk("vda", Chain((file_layer(path, "qcow2"),), True)),)))]
    with pytest.raises(CallFailed):
        host.undo(copy(path))
    assert os.path.exists(path)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_what_an_earlier_phase_created_is_discarded(monkeypatch, path, held, same):
    facts = os.stat(path)
    step = Step("discard", "vda", {"path": path, "device": facts.st_dev, "inode": facts.st_ino + (0 if same else 1)})
    host = host_on(monkeypatch, Timeline([(0, BEFORE)]), held=held)
    if held and same:
        with pytest.raises(CallFailed):
            host.do(step)
    else:
        host.do(step)
    assert os.path.exists(path) == (held or not same)


@pytest.mark.parametrize(("job", "removed"), [(True, False), (False, True)])
def test_the_wait_of_a_later_phase_undoes_the_first_ones_file(monkeypatch, path, job, removed):
    """Where the job is over; a job that goes on (it was left on purpose) keeps its destination."""
    timeline = Timeline([(0, copies(path) if job else BEFORE)])
    host_on(monkeypatch, timeline).undo(Step("wait", "vda", {"creates": path}))
    assert os.path.exists(path) == (not removed) and ("clear_record" in timeline.calls) == removed


def test_a_wait_that_knows_of_no_file_undoes_nothing(monkeypatch, path):
    timeline = Timeline([(0, BEFORE)])
    host_on(monkeypatch, timeline).undo(Step("wait", "vda", {"creates": None}))
    assert timeline.calls == [] and os.path.exists(path)


# block_job


def test_ending_a_job(monkeypatch):
    timeline = Timeline([(0, copies("/new"))])
    host_on(monkeypatch, timeline).do(Step("abort", "vda", {"job": "copy", "later": True}))
    assert timeline.calls == ["abort", "clear_record"]


@pytest.mark.parametrize(("ends", "later", "seconds", "error"), [(3, False, 3, None), (3, True, 0, None), (1000, False, BACKUP_SECONDS, "not_ended")])
def test_ending_a_backup(monkeypatch, ends, later, seconds, error):
    """libvirt does not wait for its end; that of one on another disk of the guest is the same backup's."""
    backup = replace(BEFORE, disks=(BEFORE.disks[0], replace(BEFORE.disks[1], job=Job("backup"))))
    timeline = Timeline([(0, backup), (ends, BEFORE)])
    host, step = host_on(monkeypatch, timeline), Step("abort", "vda", {"job": "backup", "later": later})
    if error is None:
        host.do(step)
    else:
        with pytest.raises(CallFailed) as caught:
            host.do(step)
        assert caught.value.code == error
    assert timeline.calls[0] == "abort_backup" and timeline.now == pytest.approx(seconds, abs=0.25)


def test_a_speed_limit_and_back(monkeypatch):
    timeline = Timeline([(0, copies("/new"))])
    host, step = host_on(monkeypatch, timeline), Step("speed", "vda", {"job": "copy", "bandwidth": 5, "before": 9})
    host.undo(step)
    assert timeline.calls == []  # nothing was changed yet
    host.do(step)
    host.undo(step)
    assert timeline.calls == [("set_speed", "vda", 5), ("set_speed", "vda", 9)]


def test_a_speed_limit_of_a_job_that_is_over_is_not_put_back(monkeypatch):
    timeline = Timeline([(0, copies("/new"))])
    host, step = host_on(monkeypatch, timeline), Step("speed", "vda", {"job": "copy", "bandwidth": 5, "before": 9})
    host.do(step)
    timeline.states = [(0, BEFORE)]
    host.undo(step)
    assert timeline.calls == [("set_speed", "vda", 5)]


def test_a_refused_speed_limit_is_not_put_back(monkeypatch):
    timeline = Timeline([(0, copies("/new"))])
    timeline.refusals["set_speed"] = [NO]
    host, step = host_on(monkeypatch, timeline), Step("speed", "vda", {"job": "copy", "bandwidth": 5, "before": 9})
    with pytest.raises(CallFailed):
        host.do(step)
    host.undo(step)
    assert timeline.calls == [("set_speed", "vda", 5)]


def test_definitions(monkeypatch):
    timeline, new = Timeline([(0, BEFORE)]), file_layer("/new", "qcow2")
    host = host_on(monkeypatch, timeline)
    host.do(Step("define", "vda"))
    host.do(Step("protect", "vda", {"to": new}))
    for step in (Step("define", "vda"), Step("protect", "vda", {"to": new})):
        host.undo(step)
    assert timeline.calls == [("define_as_running", "vda"), ("define_image", "vda", new)]
    host.do(Step("define", "vda", {"known": (new,)}))
    assert timeline.calls[2:] == [("define_as_running", "vda", (new,))]


def test_a_failed_wait_owns_no_job_any_more(monkeypatch, path):
    """What runs on the disk after ours has failed is somebody else's; the file is still ours."""
    timeline = started(Timeline([(0, BEFORE)], [(1, "failed", "vda")]), path)
    host = host_on(monkeypatch, timeline)
    host.do(copy(path))
    with pytest.raises(JobFailed):
        host.do(Step("wait", "vda", {"job": "copy", "until": "ready", "timeout": 9, "poll_interval": 1, "on_timeout": "leave"}))
    timeline.states = [(0, with_disk(BEFORE, job=Job("pull")))]
    host.undo(copy(path))
    assert "abort" not in timeline.calls and not os.path.exists(path)


@pytest.mark.parametrize("action", ["define", "protect", "forget"])
@pytest.mark.parametrize(("errors", "fails"), [([GONE], False), ([GONE, GONE], True), ([NO], True), ([Unavailable("no_answer", "No.")], True)])
def test_what_can_be_done_twice_is_done_again_after_a_lost_connection(monkeypatch, action, errors, fails):
    """As to a daemon that died right after a pivot; once, and for nothing else."""
    timeline = Timeline([(0, BEFORE)])
    call = {"define": "define_as_running", "protect": "define_image", "forget": "clear_record"}[action]
    timeline.refusals[call] = list(errors)
    host, step = host_on(monkeypatch, timeline), Step(action, "vda", {"to": file_layer("/new", "qcow2")})
    if fails:
        with pytest.raises(type(errors[-1])):
            host.do(step)
    else:
        host.do(step)
    again = errors[0] is GONE
    assert words(timeline) == ([call, "reopen", call] if again else [call])


@pytest.mark.parametrize("action", ["copy", "abort", "speed", "create"])
def test_what_cannot_is_not(monkeypatch, path, action):
    timeline = Timeline([(0, BEFORE)])
    call = {"copy": "copy", "abort": "abort", "speed": "set_speed", "create": "create_volume"}[action]
    timeline.refusals[call] = [GONE]
    detail = {"job": "copy", "later": False, "bandwidth": 1, "before": 0} if action != "create" else dict(CREATE, creates=path)
    with pytest.raises(Unavailable):
        host_on(monkeypatch, timeline).do(copy(path) if action == "copy" else Step(action, "vda", detail))
    assert words(timeline).count(call) == 1 and "reopen" not in words(timeline)


def test_a_file_that_somebody_put_in_the_place_of_ours_stays(monkeypatch, path):
    timeline = started(Timeline([(0, BEFORE)]), path)
    timeline.effects["abort"] = lambda world: setattr(world, "states", [(0, BEFORE)])
    host = host_on(monkeypatch, timeline)
    host.do(copy(path))
    os.rename(path, path + ".away")
    with open(path, "w", encoding="utf-8") as file:
        file.write("somebody else's")
    with pytest.raises(Moved, match="not the one that this run created"):
        host.undo(copy(path))
    assert os.path.exists(path) and "abort" in timeline.calls


@pytest.mark.parametrize("guest", [OFF, None], ids=["off", "gone"])
def test_a_guest_that_stopped_in_its_pivot_keeps_both_images(monkeypatch, path, guest):
    """What it wrote last may be in either."""
    timeline = started(Timeline([(0, BEFORE)]), path)

    def pivot(handle, target):
        timeline.states = [(0, guest)]
        raise GONE

    timeline.pivot = pivot
    host = host_on(monkeypatch, timeline)
    host.do(copy(path))
    with pytest.raises(PivotLost):
        host.do(Step("pivot", "vda", {"to": file_layer(path, "qcow2")}))
    host.undo(copy(path))
    assert os.path.exists(path)


@pytest.mark.parametrize(("begun", "ended"), [(True, True), (False, False)])
@pytest.mark.parametrize("node", ["libvirt-3-format", "libvirt-9-format", None])
def test_a_pivot_of_a_later_phase_ends_the_copy_that_the_first_one_began(monkeypatch, path, node, begun, ended):
    """As the whole run would; an adopted copy is left as it was. The file and the note stay unless QEMU says that it is on the old image."""
    timeline = Timeline([(0, copies(path, "yes"))])
    timeline.refusals["pivot"] = [NO] * 9
    timeline.effects["abort"] = lambda world: setattr(world, "states", [(0, with_disk(BEFORE, alias="virtio-disk0"))])
    if node is None:
        timeline.refusals["qemu_view"] = [GONE] * 9
    else:
        timeline.answers["qemu_view"] = QemuView(devices=(("/machine/peripheral/virtio-disk0/virtio-backend", node, "/old" if "3" in node else path),))
    host = host_on(monkeypatch, timeline)
    step = Step("pivot", "vda", dict({"to": file_layer(path, "qcow2")}, **({"begun": True, "creates": path} if begun else {})))
    with pytest.raises(CallFailed):
        host.do(step)
    sure = node == "libvirt-3-format"
    if ended and not sure:
        with pytest.raises(CallFailed):
            host.undo(step)
    else:
        host.undo(step)
    assert ("abort" in timeline.calls) == ended and os.path.exists(path) == (not ended or not sure)
    assert ("clear_record" in timeline.calls) == (ended and sure)
