# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps about snapshots beside the overlays: freeze and thaw, what is written down, libvirt's own reversion, and the way back."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Busy, CallFailed, Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain, Snapshot
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.plan import Step
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.snapshots import THAWS
from ansible_collections.livestorage.libvirt.tests.unit.fake_connection import Timeline, host_on

NO, SILENT = CallFailed("libvirt_error", "The agent says no."), Unavailable("no_answer", "The agent gave no answer.")
A, B, OVER = file_layer("/a", "qcow2", 3), file_layer("/b", "qcow2", 1), file_layer("/over", "qcow2", 5)
BEFORE = Domain("vm1", "u1", True, disks=(Disk("vda", Chain((A, B), True)),))
AFTER = replace(BEFORE, disks=(Disk("vda", Chain((OVER, A, B), True)),))
OFF = replace(BEFORE, active=False, state="shutdown")
SECONDS = 5
TOLD = ("freeze", "thaw", "forget_snapshot", "redefine_snapshot", "redefine_again", "write_noted", "revert", "define_chains", "snapshot")


class Calls(Timeline):
    """A timeline that tells each of these calls with what it was given, and how long each call lasts (``lasts``, in seconds)."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.lasts, self.told = {}, []

    def __getattr__(self, name):
        if name not in TOLD:
            return super().__getattr__(name)

        def call(handle, *arguments):
            self.told.append((name, *arguments))
            self.now += self.lasts.get(name, 0)
            refusal = self.refusals[name].pop(0) if self.refusals.get(name) else None
            if refusal is not None:
                raise refusal
            if name in self.effects:
                self.effects[name](self)
            return self.answers.get(name)

        return call

    @property
    def names(self) -> list:
        return [name for name, *dummy in self.told]


def freeze(fallback=False):
    return Step("freeze", None, {"timeout": SECONDS, "fallback": fallback})


THAW = Step("thaw", None, {"timeout": SECONDS})


@pytest.fixture(name="world")
def _world(monkeypatch):
    """(what libvirt is told, the host)."""
    timeline = Calls([(0, BEFORE)])
    return timeline, host_on(monkeypatch, timeline)


def test_frozen_and_thawed(world):
    timeline, host = world
    assert host.quiesced is None
    host.do(freeze())
    assert host.quiesced is True
    host.do(THAW)
    assert timeline.told == [("freeze", SECONDS), ("thaw", SECONDS)] and host.quiesced is True and host.notes == []
    for step in (THAW, freeze()):  # what comes after a failure: nothing is frozen any more
        host.undo(step)
    assert timeline.names == ["freeze", "thaw"]


def test_without_a_freeze_nothing_is_thawed(world):
    """Another one may have frozen them for a reason of its own."""
    timeline, host = world
    host.do(THAW)
    host.undo(THAW)
    host.undo(freeze())
    assert timeline.told == []


@pytest.mark.parametrize("error", [NO, SILENT])
def test_a_freeze_that_fails_is_followed_by_a_thaw(world, error):
    """An agent that has frozen one file system of two says no all the same, and one that gave no answer may do it yet."""
    timeline, host = world
    timeline.refusals["freeze"] = [error]
    with pytest.raises(CallFailed) as caught:
        host.do(freeze())
    assert timeline.names == ["freeze", "thaw"] and caught.value.code == "not_frozen" and host.quiesced is False
    assert str(caught.value) == (
        "The file systems of guest vm1 could not be frozen (%s). Nothing else was done: mend the guest agent, or set quiesce_fallback." % str(error)[:-1]
    )
    host.undo(freeze())
    assert timeline.names == ["freeze", "thaw"]


def test_the_fallback_goes_on_and_says_so(world):
    timeline, host = world
    timeline.refusals["freeze"] = [NO]
    host.do(freeze(fallback=True))
    assert host.quiesced is False and host.notes == ["The file systems of guest vm1 could not be frozen (The agent says no). The snapshot is not quiesced."]
    host.do(THAW)
    assert timeline.names == ["freeze", "thaw"]


@pytest.mark.parametrize(("lasts", "thaws"), [(0, 1), (SECONDS, 1 + THAWS * SECONDS)])
def test_an_agent_that_was_late_to_freeze_is_told_to_thaw_for_longer(world, lasts, thaws):
    """One that says no at once has frozen nothing that a second thaw would help with."""
    timeline, host = world
    timeline.lasts, timeline.refusals = {"freeze": lasts}, {"freeze": [SILENT], "thaw": [SILENT] * 99}
    with pytest.raises(CallFailed) as caught:
        host.do(freeze())
    assert "Whether they are frozen now is not known, as the thaw failed, too (The agent gave no answer). Nothing else" in str(caught.value)
    assert timeline.names.count("thaw") == thaws
    assert timeline.now == lasts + (THAWS * SECONDS if lasts else 0)


def test_a_thaw_is_tried_until_it_works(world):
    timeline, host = world
    timeline.refusals["thaw"] = [SILENT, NO, SILENT]
    host.do(freeze())
    host.do(THAW)
    assert timeline.names == ["freeze"] + ["thaw"] * 4 and host.quiesced is True


def test_a_guest_that_stays_frozen_is_told_loudly(world):
    timeline, host = world
    timeline.refusals["thaw"] = [NO] * 99
    host.do(freeze())
    with pytest.raises(CallFailed) as caught:
        host.do(THAW)
    assert caught.value.code == "not_thawed" and timeline.now == THAWS * SECONDS
    expected = "The file systems of guest vm1 are frozen and could not be thawed (The agent says no): its programs hang until virsh domfsthaw vm1 succeeds."
    assert str(caught.value) == expected
    timeline.refusals["thaw"] = []
    host.undo(THAW)  # there is none: the undo of the freeze thaws
    host.undo(freeze())
    host.undo(freeze())
    assert timeline.names[-2:] == ["thaw", "thaw"] and timeline.names.count("thaw") == THAWS * SECONDS + 2


def test_after_a_failed_freeze_a_failed_thaw_is_no_new_failure(world):
    """The fallback has said already that the freeze failed; the snapshot is taken."""
    timeline, host = world
    timeline.refusals = {"freeze": [NO], "thaw": [NO] * 99}
    host.do(freeze(fallback=True))
    host.do(THAW)
    assert host.quiesced is False and len(host.notes) == 1 and "not known" in host.notes[0]


def test_an_interrupted_freeze_is_thawed(world, monkeypatch):
    """Nobody knows what became of it: a thaw that fails is then a failure, too."""
    timeline, host = world
    timeline.effects["freeze"] = lambda world: (dummy for dummy in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        host.do(freeze())
    assert host.quiesced is None
    timeline.refusals["thaw"] = [NO] * 99
    with pytest.raises(CallFailed, match="could not be thawed"):
        host.undo(freeze())


@pytest.mark.parametrize("guest", [OFF, None], ids=["off", "gone"])
def test_a_guest_that_has_stopped_needs_no_thaw(world, guest):
    timeline, host = world
    host.do(freeze())
    timeline.states = [(0, guest)]
    host.undo(freeze())
    assert timeline.names == ["freeze"]


# What is written down

OLD_NOTE, NEW_NOTE = (Snapshot("s0", (("vda", "/a"),), tracked=False),), (Snapshot("s0", (("vda", "/over"),), tracked=False),)
MOVED = (("vda", "/a", OVER),)


def retell(names=("s1", "s2"), notes=NEW_NOTE, before=OLD_NOTE, overlays=(("vda", OVER),)):
    return Step("retell", None, {"names": names, "moved": MOVED, "overlays_of": overlays, "notes": notes, "before": before})


def test_every_snapshot_is_put_right_and_then_the_note(world):
    timeline, host = world
    timeline.answers["redefine_snapshot"] = ["<before/>"]
    host.do(retell())
    calls = [("redefine_snapshot", name, MOVED, {"vda": OVER}) for name in ("s1", "s2")]
    assert timeline.told == calls + [("write_noted", NEW_NOTE)]


def test_no_note_is_not_an_empty_one(world):
    timeline, host = world
    timeline.answers["redefine_snapshot"] = []
    host.do(retell(notes=None))
    assert timeline.names == ["redefine_snapshot"] * 2
    host.do(retell(names=(), notes=()))
    assert timeline.told[-1] == ("write_noted", ())


def test_it_is_taken_back_in_reverse(world):
    timeline, host = world
    befores = iter((["<one/>"], ["<two/>"]))
    timeline.effects["redefine_snapshot"] = lambda world: world.answers.update(redefine_snapshot=next(befores))
    host.do(retell())
    for dummy in range(2):
        host.undo(retell())
    assert timeline.told[3:] == [("redefine_again", "<two/>"), ("redefine_again", "<one/>"), ("write_noted", OLD_NOTE), ("write_noted", OLD_NOTE)]


def test_half_of_it_is_taken_back(world):
    timeline, host = world
    timeline.answers["redefine_snapshot"] = ["<one/>"]
    timeline.refusals["redefine_snapshot"] = [None, NO]
    with pytest.raises(CallFailed):
        host.do(retell())
    host.undo(retell())
    assert timeline.told[2:] == [("redefine_again", "<one/>"), ("write_noted", OLD_NOTE)]


def test_what_tells_what_is_so_is_not_taken_back(world):
    """After a merge there is no way back: the new places stay written down."""
    timeline, host = world
    timeline.answers["redefine_snapshot"] = ["<one/>"]
    host.do(retell(before=None))
    host.undo(retell(before=None))
    assert timeline.names == ["redefine_snapshot"] * 2 + ["write_noted"]


@pytest.mark.parametrize("written", [False, True])
def test_a_note_of_a_spoiled_moment_stays_once_something_was_written_there(world, written):
    timeline, host = world
    spoiled = (Snapshot("s1", (("vda", "/over"),), (("vda", "/a"),), spoiled=(("vda", "/a"),)),)
    step = retell(names=(), notes=spoiled, before=())
    host.do(step)
    if written:
        host._written.add("vda")
    host.undo(step)
    assert timeline.told == [("write_noted", spoiled)] + [("write_noted", ())] * (not written)


def test_libvirt_forgets_and_reverts(world):
    timeline, host = world
    host.do(Step("disown", None, {"name": "s1"}))
    host.do(Step("revert", None, {"name": "s1"}))
    for action in ("disown", "revert"):  # neither has a way back
        host.undo(Step(action, None, {"name": "s1"}))
    assert timeline.told == [("forget_snapshot", "s1"), ("revert", "s1")]


# Taking one back


def snapshot(path="/over", **more):
    detail = {"name": "s1", "description": "Before.", "memory": None, "timeout": 60, "overlays": (("vda", file_layer(path, "qcow2", 5)),), "others": ("vdb",)}
    back = (("vda", Chain((A, B), True)),)
    detail.update(metadata=True, offline=False, reuse_existing=False, creates=(path,), back=back)
    return Step("snapshot", None, dict(detail, **more))


@pytest.mark.parametrize("metadata", [True, False])
def test_a_snapshot_of_a_guest_that_is_off_is_forgotten_and_its_definition_put_back(world, metadata):
    """The overlays are empty: what made them takes them away after this."""
    timeline, host = world
    timeline.states = [(0, OFF)]
    step = snapshot(offline=True)
    host.undo(replace(step, detail=dict(step.detail, metadata=metadata)))
    forgotten = [("forget_snapshot", "s1")] if metadata else []
    assert timeline.told == forgotten + [("define_chains", {"vda": Chain((A, B), True)})]


def test_of_a_guest_that_is_gone_nothing_is_put_back(world):
    timeline, host = world
    timeline.states = [(0, None)]
    host.undo(snapshot(offline=True))
    assert timeline.told == []


@pytest.mark.parametrize(("memory", "seconds"), [(None, None), ("/mem", 60)])
def test_a_memory_has_its_own_deadline(world, memory, seconds):
    timeline, host = world
    step = snapshot()
    host.do(replace(step, detail=dict(step.detail, memory=memory)))
    dummy, xml, metadata, reuse, deadline = timeline.told[0]
    assert (metadata, reuse, deadline) == (True, False, seconds) and "<description>Before.</description>" in xml
    assert ('<memory snapshot="external" file="/mem"/>' in xml) == bool(memory)


@pytest.mark.parametrize("error", [NO, Busy("foreign_job", "No."), SILENT, None])
def test_a_memory_that_is_still_written_is_ended_before_it_is_taken_back(world, error):
    """Where the call came back, it is over. Where nobody knows, any look would wait for its end."""
    timeline, host = world
    timeline.refusals["snapshot"] = [error] if error else []
    if error is None:
        timeline.effects["snapshot"] = lambda world: (dummy for dummy in ()).throw(KeyboardInterrupt)
    step = snapshot()
    step = replace(step, detail=dict(step.detail, memory="/mem"))
    with pytest.raises((CallFailed, Busy, Unavailable, KeyboardInterrupt)):
        host.do(step)
    host.undo(step)
    assert ("abort_backup" in timeline.calls) == (error in (SILENT, None))


@pytest.mark.parametrize("local", [True, False])
def test_the_file_of_a_memory_goes_with_its_overlays(monkeypatch, tmp_path, local):
    """But not one of that name here, where the guest is on another host."""
    path, memory = str(tmp_path / "over"), str(tmp_path / "mem")
    for one in (path, memory):
        open(one, "w", encoding="utf-8").close()
    overlay = file_layer(path, "qcow2", 5)
    timeline = Timeline([(0, replace(BEFORE, disks=(Disk("vda", Chain((overlay, A, B), True)),)))])
    timeline.local = local

    def pivot(world):
        world.states = [(0, BEFORE)]

    timeline.effects = {"commit": lambda world: setattr(world, "queue", [(world.now, "ready", "vda")]), "pivot": pivot}
    step = snapshot(path)
    step = replace(step, detail=dict(step.detail, metadata=False, memory=memory, creates=(path,) if local else ()))
    host_on(monkeypatch, timeline).undo(step)
    assert os.path.exists(memory) == os.path.exists(path) == (not local)


def test_a_memory_without_overlays_is_left_to_libvirt(monkeypatch, tmp_path):
    """It takes its own file away; one that is there nevertheless is somebody else's."""
    memory = str(tmp_path / "mem")
    open(memory, "w", encoding="utf-8").close()
    step = snapshot()
    host_on(monkeypatch, Timeline([(0, BEFORE)])).undo(replace(step, detail=dict(step.detail, metadata=False, memory=memory)))
    assert os.path.exists(memory)


# Definitions of several disks


def test_each_definition_of_a_run_is_put_back_by_itself(world):
    """A second one that was refused does not take the first one back."""
    timeline, host = world
    timeline.states = [(0, OFF)]
    again = []
    timeline.define_again = lambda handle, before, after: again.append((before, after))
    first, second = (Step("redefine", None, {"chains": ((target, Chain((A,), True)),)}) for target in ("vda", "vdb"))
    timeline.answers["define_chains"] = ("zero", "one")
    host.do(first)
    timeline.refusals["define_chains"] = [NO]
    with pytest.raises(CallFailed):
        host.do(second)
    host.undo(second)
    assert again == []
    timeline.answers["define_chains"] = ("one", "two")
    host.do(second)
    for step in (second, first, first):
        host.undo(step)
    assert again == [("one", "two"), ("zero", "one")]
