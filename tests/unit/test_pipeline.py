# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one path of every module, with a host whose faults are written down.

A scenario is a plan and what each call to the host does; the test compares the calls in their order and the result.
"""

from __future__ import annotations

import os
import signal
import sys
import types
from dataclasses import dataclass, field, replace

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils import _pipeline
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import (
    CallFailed,
    FindingsMet,
    JobFailed,
    PivotLost,
    Refused,
    TimedOut,
    Unavailable,
)
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import QemuView
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain, File, Job, Needs, Observed, Selection, Snapshot, Use
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.plan import Plan, Step

A, B, C = file_layer("/a", "qcow2"), file_layer("/b", "qcow2"), file_layer("/c", "qcow2")
CHANGED = {"changed", "domains", "steps", "spoils", "rolled_back", "job", "diff"}


def guest(*layers, job=None):
    return Domain("vm1", "u1", True, disks=(Disk("vda", Chain(layers, True), job=job, alias="virtio-disk0"),))


BEFORE, AFTER, OTHER, RUNNING = guest(A, B, C), guest(A, C), guest(B, C), guest(A, B, C, job=Job("pull", 1, 2))
WAIT = Step("wait", "vda", {"job": "pull", "until": "completed"})
START = Step("pull", "vda", {"base": "vda[3]"})
REMOVE_B, REMOVE_D = (Step("delete", "vda", {"path": path}) for path in ("/b", "/d"))
OVERLAY = Step("snapshot", None, {"overlays": (("vda", A),)})
PULL = Plan((BEFORE,), (AFTER,), (START, WAIT, REMOVE_B), fence=1, spoils=("/c",), warnings=("Mind the snapshot.",))
SNAPSHOT = Plan((AFTER,), (BEFORE,), (OVERLAY,))
REMOVALS = Plan((BEFORE,), (BEFORE,), (REMOVE_B, REMOVE_D), fence=0)
LOOSE = Plan((BEFORE,), (AFTER,), (START,), settles=False)
NOTE = Plan((BEFORE,), (BEFORE,), (Step("forget", "vda"),))
FAILED = JobFailed("job_failed", "The job failed.", last_job=Job("pull", 3, 4))
CALL = CallFailed("libvirt_error", "libvirt could not do it.")


class Exit(Exception):
    """What AnsibleModule's exit_json and fail_json do to the run."""

    def __init__(self, failed, result):
        super().__init__(failed)
        self.failed, self.result = failed, result


@dataclass
class World:
    """The guest as it is, the calls so far, and what the next calls of each name do."""

    now: Domain = BEFORE
    scripts: dict = field(default_factory=dict)
    calls: list = field(default_factory=list)
    files: tuple = ("/b", "/d")
    notes: list = field(default_factory=list)
    writes: str | None = None  # the image that QEMU says it writes to, where it is asked
    asked: list = field(default_factory=list)
    bare: list = field(default_factory=list)  # the images by themselves that were looked at, with the names that they go by
    facts: dict = field(default_factory=dict)  # what the host measures

    def call(self, name: str) -> None:
        self.calls.append(name)
        script = self.scripts.get(name)
        for act in [script.pop(0)] if isinstance(script, list) and script else [script] if callable(script) else []:
            act(self)


def becomes(domain, error=None):
    """The guest is that from now on, and the call raises the error (if any)."""

    def act(world):
        world.now = domain
        if error is not None:
            raise error

    return act


def removes(path, error=None):
    def act(world):
        world.files = tuple(one for one in world.files if one != path)
        if error is not None:
            raise error

    return act


def fails(error):
    def act(world):
        raise error

    return act


def killed(number=signal.SIGTERM, domain=None):
    def act(world):
        world.now = domain or world.now
        os.kill(os.getpid(), number)

    return act


def nothing(world):
    pass


class FakeHost:
    world = None
    quiesced = None

    def __init__(self, uri, with_events):
        self.notes, self.facts = self.world.notes, self.world.facts
        self.world.call("open")
        assert uri == "test:///default"

    def observe(self, needs):
        self.world.call("look")
        self.world.asked.append(needs.qemu)
        self.world.bare += [(key, needs.names) for key in needs.bare]
        files = {path: File(path, path in self.world.files) for path in ("/b", "/d")}
        told = self.world.writes if needs.qemu else None
        qemu = {"u1": QemuView(devices=(("/machine/peripheral/virtio-disk0/x", "node", told),))} if told else {}
        return Observed((self.world.now,), files=files, qemu=qemu)

    def do(self, step):
        self.world.call(step.action)

    def undo(self, step):
        self.world.call("undo " + step.action)

    def settle(self):
        self.world.call("settle")

    def close(self):
        self.world.call("close")


class FakeModule:
    run_command = None

    def __init__(self, check_mode=False):
        self.check_mode, self.params, self.warnings = check_mode, {"uri": "test:///default"}, []

    def warn(self, text):
        self.warnings.append(text)

    def exit_json(self, **result):
        raise Exit(False, result)

    def fail_json(self, **result):
        raise Exit(True, result)


def operation(plan, changes=True, met=None, images=False, per_disk=False, **needs):
    """A planner that always gives that plan, or raises it. ``met``: what its report raises, ``needs``: what it has to see."""

    def request(params):
        if isinstance(plan, Refused) and plan.code == "early":
            raise plan
        return types.SimpleNamespace(needs=Needs(Selection(name="vm1"), **needs))

    def planned(wanted, seen):
        if isinstance(plan, Exception):
            raise plan
        return plan(seen) if callable(plan) else plan

    def report(wanted, seen):
        if met is not None:
            raise met
        return {"changed": False, "domains": [seen.domain.name], "images": []}

    words = {"CHANGES": changes, "IMAGES": images, "PER_DISK": per_disk, "NOTHING": {"domains": [], "images": []}}
    return types.SimpleNamespace(request=request, plan=planned, report=report, **words)


@pytest.fixture(name="go")
def _go(monkeypatch):
    """Run the pipeline over a world; (failed, result, warnings)."""
    # What starts the tests may ignore signals (nohup, a shell's background jobs), and what is ignored stays ignored.
    kept = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    monkeypatch.setattr(_pipeline, "Host", FakeHost)
    monkeypatch.setattr(_pipeline, "PACKAGES", ())

    def go(world, plan, check_mode=False, **more):
        monkeypatch.setattr(FakeHost, "world", world)
        module = FakeModule(check_mode)
        with pytest.raises(Exit) as ended:
            _pipeline.run(module, operation(plan, **more))
        return ended.value.failed, ended.value.result, module.warnings

    yield go
    for number, handler in kept.items():
        signal.signal(number, handler)


def calls(text: str) -> list:
    """open, two looks, the steps, close: all but the steps is the same in every run that acts."""
    return ["open", "look", "look"] + [one.strip() for one in text.split(",")] + ["close"]


GOOD = {"pull": becomes(RUNNING), "wait": becomes(AFTER), "delete": removes("/b")}


@pytest.mark.parametrize(
    ("plan", "world", "expected", "result"),
    [
        pytest.param(PULL, World(scripts=GOOD), "pull, wait, look, delete", {"changed": True, "spoils": ["/c"]}, id="success"),
        pytest.param(SNAPSHOT, World(AFTER, {"snapshot": becomes(BEFORE)}), "snapshot, look", {"changed": True}, id="no-fence"),
        pytest.param(LOOSE, World(scripts={"pull": becomes(RUNNING)}), "pull, look", {"changed": True, "job": "pull"}, id="job-left-running"),
        pytest.param(
            REMOVALS, World(scripts={"delete": [removes("/b"), removes("/d")]}), "look, delete, delete", {"changed": True}, id="removals-after-a-look"
        ),
        pytest.param(NOTE, World(), "forget, look", {"changed": False}, id="a-note-is-no-change"),
        pytest.param(
            PULL,
            World(scripts=dict(GOOD, wait=becomes(AFTER, FAILED))),
            "pull, wait, look, look, delete",
            {"changed": True, "warned": "The job failed. Yet the chain is as planned."},
            id="failed-but-done",
        ),
    ],
)
def test_success(go, plan, world, expected, result):
    failed, found, warnings = go(world, plan)
    assert world.calls == calls(expected)
    assert not failed and found["changed"] is result["changed"] and found["rolled_back"] is None
    assert found["spoils"] == result.get("spoils", list(plan.spoils)) and set(found) == CHANGED
    assert (found["job"] or {}).get("type") == result.get("job")
    assert warnings == list(plan.warnings) + ([result["warned"]] if "warned" in result else [])
    assert all(step["begun"] for step in found["steps"])


UNTOUCHED, STANDS = "The guest is as it was before.", "The guest is not as it was before: "


@pytest.mark.parametrize(
    ("plan", "world", "expected", "code", "rolled_back", "says"),
    [
        # Half a step counts as begun, and all that was begun is undone in reverse.
        pytest.param(PULL, World(scripts={"pull": fails(CALL)}), "pull, undo pull, look", "libvirt_error", True, UNTOUCHED, id="the-first-step-fails"),
        pytest.param(
            PULL,
            World(scripts={"pull": becomes(RUNNING, CALL), "undo pull": becomes(BEFORE)}),
            "pull, undo pull, look",
            "libvirt_error",
            True,
            UNTOUCHED,
            id="half-a-step-is-undone",
        ),
        pytest.param(
            PULL,
            World(scripts={"pull": becomes(RUNNING), "wait": becomes(BEFORE, FAILED)}),
            "pull, wait, look, look, undo wait, undo pull, look",
            "job_failed",
            True,
            UNTOUCHED,
            id="the-job-fails",
        ),
        pytest.param(
            PULL,
            World(scripts={"pull": becomes(RUNNING), "wait": fails(CALL), "undo pull": becomes(BEFORE)}),
            "pull, wait, look, undo wait, undo pull, look",
            "libvirt_error",
            True,
            UNTOUCHED,
            id="the-fence-step-fails-and-did-not-happen",
        ),
        # The fence step raised, but it happened: nothing may be undone, and only a job's own error is forgiven.
        pytest.param(
            PULL,
            World(scripts=dict(GOOD, wait=becomes(AFTER, CALL))),
            "pull, wait, look, look",
            "libvirt_error",
            False,
            STANDS,
            id="the-fence-step-fails-yet-happened",
        ),
        pytest.param(
            PULL, World(scripts=dict(GOOD, wait=killed(domain=AFTER))), "pull, wait, look, look", "interrupted", False, STANDS, id="interrupted-past-the-fence"
        ),
        pytest.param(
            PULL,
            World(scripts=dict(GOOD, wait=killed(), **{"undo pull": becomes(BEFORE)})),
            "pull, wait, look, undo wait, undo pull, look",
            "interrupted",
            True,
            UNTOUCHED,
            id="SIGTERM",
        ),
        pytest.param(SNAPSHOT, World(AFTER, {"snapshot": killed(signal.SIGINT)}), "snapshot, undo snapshot, look", "interrupted", True, UNTOUCHED, id="SIGINT"),
        pytest.param(SNAPSHOT, World(AFTER, {"snapshot": killed(signal.SIGHUP)}), "snapshot, undo snapshot, look", "interrupted", True, UNTOUCHED, id="SIGHUP"),
        pytest.param(
            SNAPSHOT,
            World(AFTER, {"snapshot": killed(domain=BEFORE), "undo snapshot": [lambda world: [killed()(world), becomes(AFTER)(world)]]}),
            "snapshot, undo snapshot, look",
            "interrupted",
            True,
            UNTOUCHED,
            id="an-undo-is-not-interrupted",
        ),
        pytest.param(
            PULL,
            World(scripts={"pull": becomes(RUNNING), "wait": fails(TimedOut("timeout", "Not done.", True, last_job=Job("pull")))}),
            "pull, wait, look, look, look",
            "timeout",
            False,
            STANDS + "a pull job is running on disk vda of guest vm1.",
            id="a-job-left-on-purpose",
        ),
        pytest.param(
            PULL,
            World(scripts={"pull": becomes(RUNNING), "wait": becomes(BEFORE, TimedOut("timeout", "Not done.", False))}),
            "pull, wait, look, look, undo wait, undo pull, look",
            "timeout",
            True,
            "Not done. " + UNTOUCHED,
            id="a-job-ended-on-purpose",
        ),
        # Verification: no file goes before it, and what can be undone is.
        pytest.param(
            PULL,
            World(scripts=dict(GOOD, wait=becomes(OTHER))),
            "pull, wait, look, look, undo wait, undo pull, look",
            "verify_failed",
            False,
            STANDS,
            id="another-chain",
        ),
        pytest.param(
            PULL,
            World(scripts=dict(GOOD, wait=becomes(BEFORE))),
            "pull, wait, look, look, undo wait, undo pull, look",
            "verify_failed",
            True,
            UNTOUCHED,
            id="nothing-happened",
        ),
        pytest.param(
            SNAPSHOT,
            World(AFTER, {"snapshot": becomes(OTHER), "undo snapshot": becomes(AFTER)}),
            "snapshot, look, undo snapshot, look",
            "verify_failed",
            True,
            UNTOUCHED,
            id="a-wrong-snapshot",
        ),
        pytest.param(
            LOOSE,
            World(scripts={"pull": becomes(OTHER)}),
            "pull, look, undo pull, look",
            "verify_failed",
            False,
            STANDS,
            id="not-waited-for-and-wrong",
        ),
        # What cleaning up adds is told beside the first error.
        pytest.param(
            PULL,
            World(scripts={"pull": becomes(RUNNING), "wait": fails(FAILED), "undo pull": fails(CALL)}),
            "pull, wait, look, look, undo wait, undo pull, look",
            "job_failed",
            False,
            "The job failed. " + STANDS + "a pull job is running on disk vda of guest vm1. Undoing the pull failed: libvirt could not do it.",
            id="the-undo-fails",
        ),
        pytest.param(
            SNAPSHOT,
            World(AFTER, {"snapshot": fails(CALL), "undo snapshot": fails(KeyError("x"))}),
            "snapshot, undo snapshot, look",
            "libvirt_error",
            True,
            "Undoing the snapshot failed",
            id="the-undo-breaks",
        ),
        # Past the fence nothing is undone, and what is gone is told.
        pytest.param(
            PULL, World(scripts=dict(GOOD, delete=fails(CALL))), "pull, wait, look, delete, look", "libvirt_error", False, STANDS, id="a-removal-fails"
        ),
        pytest.param(
            PULL, World(scripts=dict(GOOD, delete=killed())), "pull, wait, look, delete, look", "interrupted", False, STANDS, id="interrupted-in-a-removal"
        ),
        pytest.param(
            PULL,
            World(scripts=dict(GOOD, wait=becomes(AFTER, FAILED), delete=fails(CALL))),
            "pull, wait, look, look, delete, look",
            "libvirt_error",
            False,
            STANDS,
            id="failed-but-done-and-a-removal-fails",
        ),
        pytest.param(
            REMOVALS,
            World(scripts={"delete": [removes("/b"), fails(CALL)]}),
            "look, delete, delete, look",
            "libvirt_error",
            False,
            STANDS + "/b was removed.",
            id="the-second-removal-fails",
        ),
        pytest.param(
            REMOVALS, World(scripts={"delete": fails(CALL)}), "look, delete, look, look", "libvirt_error", True, UNTOUCHED, id="the-first-removal-fails"
        ),
        pytest.param(
            REMOVALS,
            World(scripts={"delete": [removes("/b", CALL)]}),
            "look, delete, look, look",
            "libvirt_error",
            False,
            "/b was removed",
            id="a-removal-happened-and-raised",
        ),
        # A defect of ours is an error like any other: it is cleaned up after.
        pytest.param(
            PULL, World(scripts={"pull": fails(KeyError("x"))}), "pull, undo pull, look", "unexpected", True, "Unexpected KeyError: 'x'", id="unexpected"
        ),
    ],
)
def test_failure(go, plan, world, expected, code, rolled_back, says):
    failed, found, dummy = go(world, plan)
    assert world.calls == calls(expected)
    assert failed and found["code"] == code and found["rolled_back"] is rolled_back and found["changed"] is not rolled_back
    assert says in found["msg"] and ".." not in found["msg"]
    assert set(found) - {"exception"} == CHANGED | {"msg", "code"} and ("exception" in found) == (code == "unexpected")
    begun = [step["action"] for step in found["steps"] if step["begun"]]
    assert begun == [call for call in world.calls if call in ("pull", "wait", "delete", "snapshot")]
    assert found["domains"][0]["disks"][0]["chain"][0]["path"] == str(world.now.disks[0].chain[0])


@pytest.mark.parametrize(
    ("plan", "world", "expected", "changed", "code"),
    [
        pytest.param(PULL, World(), ["look"], True, None, id="work-to-do"),
        pytest.param(replace(PULL, steps=(), after=(BEFORE,)), World(), ["look"], False, None, id="nothing-to-do"),
        pytest.param(NOTE, World(), ["look"], False, None, id="only-a-note"),
        pytest.param(REMOVALS, World(), ["look"], True, None, id="only-removals"),
        pytest.param(Refused("no_disk", "No such disk."), World(), ["look"], False, "no_disk", id="refused"),
        pytest.param(PULL, World(scripts={"look": fails(Unavailable("no_daemon", "No."))}), ["look"], False, "no_daemon", id="no-daemon"),
    ],
)
def test_check_mode_only_looks(go, plan, world, expected, changed, code):
    failed, found, dummy = go(world, plan, check_mode=True)
    assert world.calls == ["open"] + expected + ["close"]
    assert failed == (code is not None) and found.get("code") == code and found["changed"] is changed
    assert set(found) - {"msg", "code"} == CHANGED
    if not failed:
        predicted = (plan.after if changed else plan.before)[0]
        assert [layer["path"] for layer in found["domains"][0]["disks"][0]["chain"]] == [str(layer) for layer in predicted.disks[0].chain.layers]
        assert not any(step["begun"] for step in found["steps"]) and len(found["steps"]) == len(plan.steps)
        assert (found["diff"]["before"] == found["diff"]["after"]) == (plan.before == plan.after)


def test_check_mode_and_the_real_run_tell_the_same(go):
    predicted = go(World(), PULL, check_mode=True)[1]
    real = go(World(scripts=dict(GOOD)), PULL)[1]
    for found in (predicted, real):
        found["steps"] = [dict(step, begun=None) for step in found["steps"]]
    assert predicted == real


def test_an_ignored_signal_stays_ignored(go):
    """As under nohup: the terminal may close, the run goes on."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    failed, found, dummy = go(World(scripts=dict(GOOD, pull=killed(signal.SIGHUP, RUNNING))), PULL)
    assert not failed and found["changed"]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_nothing_to_do_is_one_look(go):
    world = World()
    failed, found, dummy = go(world, Plan((BEFORE,), (BEFORE,)))
    assert world.calls == ["open", "look", "close"] and not failed and found["changed"] is False and set(found) == CHANGED


@pytest.mark.parametrize(("changes_at", "code", "plans"), [((2,), None, 3), ((2, 3), None, 4), ((2, 3, 4), "moved", 4)])
def test_a_guest_that_moves_is_planned_anew(go, changes_at, code, plans):
    """What differs at the second look was not planned for: a new plan is made, a stated number of times."""
    counter = {"looks": 0, "plans": 0}

    def look(world):
        counter["looks"] += 1
        if counter["looks"] in changes_at:
            world.now = replace(world.now, uuid="u%d" % counter["looks"])

    def planned(seen):
        counter["plans"] += 1
        return Plan(seen.domains, seen.domains, (START,))

    world = World(scripts={"look": look})
    failed, found, dummy = go(world, planned)
    assert failed == (code is not None) and found.get("code") == code and counter["plans"] == plans
    assert ("pull" in world.calls) == (code is None)
    assert set(found) - {"msg", "code"} == CHANGED and found["rolled_back"] is None


def test_a_file_that_comes_between_the_looks_is_seen(go):
    world = World(scripts={"look": [nothing, removes("/b"), removes("/d"), nothing]})
    go(world, PULL)
    assert world.calls[:5] == ["open", "look", "look", "look", "look"]


@pytest.mark.parametrize(
    ("plan", "world", "code"),
    [
        (Refused("early", "An option is wrong."), World(), "early"),
        (Refused("no_disk", "No such disk."), World(), "no_disk"),
        (PULL, World(scripts={"open": fails(Unavailable("no_daemon", "No."))}), "no_daemon"),
        (PULL, World(scripts={"look": fails(ValueError("odd"))}), "unexpected"),
    ],
    ids=["request", "plan", "open", "surprise"],
)
@pytest.mark.parametrize("changes", [True, False])
def test_a_failure_before_anything_was_done(go, plan, world, code, changes):
    world = World(scripts=dict(world.scripts))
    failed, found, dummy = go(world, plan, changes=changes)
    assert failed and found["code"] == code and found["changed"] is False and found["domains"] == []
    assert set(found) - {"msg", "code", "exception"} == (CHANGED if changes else {"changed", "domains", "images"})
    assert not {"pull", "wait", "undo pull"} & set(world.calls)
    assert "open" not in world.calls or world.calls[-1] == "close" or code == "no_daemon"


@pytest.mark.parametrize("check_mode", [True, False])
def test_an_info_module_returns_its_own_report_after_one_look(go, check_mode):
    world = World()
    failed, found, warnings = go(world, Plan((BEFORE,), (BEFORE,), warnings=("Mind it.",)), check_mode, changes=False)
    assert not failed and found == {"changed": False, "domains": ["vm1"], "images": []} and warnings == ["Mind it."]
    assert world.calls == ["open", "look", "close"]


def test_findings_that_are_a_failure_come_with_the_whole_result(go):
    result = {"changed": False, "domains": ["vm1"], "images": ["/a"]}
    met = FindingsMet("findings", "The validation has 1 findings.", **result)
    failed, found, warnings = go(World(), Plan((BEFORE,), (BEFORE,), warnings=("Mind it.",)), changes=False, met=met)
    assert failed and found == dict(result, code="findings", msg="The validation has 1 findings.") and warnings == ["Mind it."]


def test_a_guest_that_cannot_be_looked_at_afterwards(go):
    world = World(scripts={"pull": fails(CALL), "look": [nothing, nothing, fails(Unavailable("connection", "Gone."))]})
    failed, found, dummy = go(world, PULL)
    assert failed and found["changed"] is True and found["rolled_back"] is None and found["code"] == "libvirt_error"
    assert "nothing is known about its chain" in found["msg"] and set(found) == CHANGED | {"msg", "code"}


def test_the_last_job_that_was_seen_is_returned(go):
    world = World(scripts={"pull": becomes(RUNNING), "wait": becomes(BEFORE, FAILED)})
    found = go(world, PULL)[1]
    assert found["job"]["cur"] == 3 and "last_job" not in found


@pytest.mark.parametrize(("missing", "package"), [("libvirt", "python3-libvirt"), ("lxml", "python3-lxml")])
def test_a_missing_library_is_named_with_its_package(monkeypatch, missing, package):
    holders = {name: types.SimpleNamespace(**{attribute: None if name == missing else object()}) for name, dummy, dummy, attribute in _pipeline.PACKAGES}
    monkeypatch.setattr(_pipeline, "PACKAGES", [(name, package_, holders[name], attribute) for name, package_, dummy, attribute in _pipeline.PACKAGES])
    with pytest.raises(Exit) as ended:
        _pipeline.run(FakeModule(), operation(PULL))
    assert ended.value.failed and ended.value.result["code"] == "missing_library"
    assert package in ended.value.result["msg"] and sys.executable in ended.value.result["msg"]


# A copy: its fence is the pivot, and what follows has to be done, whatever the pivot said

NEXT = replace(BEFORE, config=BEFORE.disks)
MOVED = replace(AFTER, config=AFTER.disks)
HALF = replace(MOVED, config=BEFORE.disks)
COPIES = replace(guest(A, B, C, job=Job("copy", 1, 2)), config=BEFORE.disks)
COPY = Step("copy", "vda", {"to": A, "shallow": False})
PIVOT = Step("pivot", "vda", {"to": A})
MOVE = Plan(
    (NEXT,),
    (MOVED,),
    (COPY, Step("wait", "vda", {"job": "copy", "until": "ready"}), PIVOT, Step("define", "vda"), REMOVE_B, Step("forget", "vda")),
    fence=2,
)
MOVES = {"copy": becomes(COPIES), "pivot": becomes(HALF), "define": becomes(MOVED), "delete": removes("/b")}


def test_a_copy(go):
    world = World(NEXT, dict(MOVES))
    failed, found, warnings = go(world, MOVE)
    assert not failed and world.calls == calls("copy, wait, pivot, define, look, delete, forget") and warnings == []
    assert all(step["begun"] for step in found["steps"]) and not any(world.asked)


def test_a_pivot_that_failed_yet_happened_is_followed_by_the_rest(go):
    """Else the next start would have the old image, although the run knows better."""
    world = World(NEXT, dict(MOVES, pivot=becomes(HALF, FAILED)))
    failed, found, warnings = go(world, MOVE)
    assert not failed and world.calls == calls("copy, wait, pivot, look, define, look, delete, forget")
    assert warnings == ["The job failed. Yet the chain is as planned."] and all(step["begun"] for step in found["steps"])


def test_a_definition_that_fails_is_past_the_fence(go):
    world = World(NEXT, dict(MOVES, define=fails(CALL)), writes="/a")
    failed, found, dummy = go(world, MOVE)
    assert failed and world.calls == calls("copy, wait, pivot, define, look") and found["rolled_back"] is False and found["code"] == "libvirt_error"
    next_start = "the persistent definition of guest vm1 gives disk vda the chain /c <- /b <- /a, where /c <- /a was expected"
    chain = "disk vda of guest vm1 has the chain /c <- /a, where /c <- /b <- /a was expected"
    assert found["msg"] == "libvirt could not do it. %s%s; %s." % (STANDS, chain, next_start)
    assert [step["action"] for step in found["steps"] if not step["begun"]] == ["delete", "forget"]


def test_a_definition_that_was_not_written_is_found(go):
    world = World(NEXT, dict(MOVES, define=nothing))
    failed, found, dummy = go(world, MOVE)
    assert failed and found["code"] == "verify_failed" and found["rolled_back"] is False and "delete" not in world.calls


LOST = PivotLost("stale_pivot", "The daemon died during the pivot.", "QEMU writes to /a, which libvirt does not know")


@pytest.mark.parametrize("now", [NEXT, COPIES, HALF], ids=["as-before", "copies", "somewhere"])
def test_a_lost_pivot_is_never_as_before(go, now):
    """Nothing is undone and nothing removed, whatever libvirt shows."""
    world = World(NEXT, dict(MOVES, copy=becomes(COPIES), pivot=becomes(now, LOST)))
    failed, found, dummy = go(world, replace(MOVE, after=(guest(C),)))
    assert failed and world.calls == calls("copy, wait, pivot, look, look, look") and not [one for one in world.calls if one.startswith("undo")]
    assert (found["code"], found["rolled_back"], found["changed"]) == ("stale_pivot", False, True)
    assert found["msg"] == "The daemon died during the pivot. The guest is not as it was before: QEMU writes to /a, which libvirt does not know."
    assert found["domains"][0]["disks"][0]["chain"] and set(found) == CHANGED | {"msg", "code"}


def test_a_lost_pivot_of_a_guest_that_cannot_be_looked_at(go):
    gone = fails(Unavailable("no_daemon", "No."))
    world = World(NEXT, dict(MOVES, pivot=fails(LOST), look=[nothing, nothing, gone, gone, gone]))
    failed, found, dummy = go(world, MOVE)
    assert failed and found["rolled_back"] is False and found["changed"] is True and found["domains"] == [] and "which libvirt does not know" in found["msg"]


@pytest.mark.parametrize(
    ("writes", "rolled_back", "says"),
    [
        ("/a", True, UNTOUCHED),
        ("/strange", False, STANDS + "QEMU writes disk vda of guest vm1 to /strange."),
        (None, False, STANDS + "QEMU could not be asked which image it writes disk vda of guest vm1 to."),
    ],
)
@pytest.mark.parametrize("action", ["pivot", "abort"])
def test_after_a_pivot_or_an_end_qemu_itself_is_asked(go, action, writes, rolled_back, says):
    """libvirt may show the old image without a job, while QEMU is on the new one."""
    step = replace(PIVOT, action=action, detail={"to": A, "job": "copy"})
    world = World(BEFORE, {action: fails(CALL)}, writes=writes)
    failed, found, dummy = go(world, Plan((BEFORE,), (AFTER,), (step,)))
    assert failed and found["rolled_back"] is rolled_back and found["changed"] is not rolled_back and found["msg"].endswith(says)
    assert world.asked == [False, False, True]


def test_qemu_is_not_asked_for_nothing(go):
    """libvirt marks the guest as tainted by it."""
    world = World(scripts={"pull": fails(CALL)}, writes="/a")
    go(world, PULL)
    assert not any(world.asked)


ENDED = Plan((RUNNING,), (BEFORE,), (Step("abort", "vda", {"job": "copy", "unseen": True}),))


@pytest.mark.parametrize(("writes", "code"), [("/a", None), ("/strange", "stale_pivot"), (None, "stale_pivot")])
@pytest.mark.parametrize("unseen", [True, False])
def test_an_end_that_came_too_late_is_found(go, writes, code, unseen):
    """The pivot had begun before, by a run that was killed with the daemon: the end was taken, and QEMU pivots all the same."""
    plan = replace(ENDED, steps=(Step("abort", "vda", {"job": "copy", "unseen": unseen}),))
    world = World(RUNNING, {"abort": becomes(BEFORE)}, writes=writes)
    failed, found, dummy = go(world, plan)
    assert failed == (code is not None and unseen) and found.get("code") == (code if unseen else None)
    assert world.asked[2] is unseen
    if failed:
        assert found["rolled_back"] is False and found["changed"] is True and "run the same task again" in found["msg"] and "undo abort" not in world.calls


def test_a_file_that_somebody_needs_by_now_stays(go, monkeypatch):
    world = World(scripts=dict(GOOD))
    look = FakeHost.observe

    def observe(host, needs):
        used = (Use(("path", "/b"), "vm9", "u9", "vdc"),) if "wait" in world.calls else ()
        return replace(look(host, needs), uses=used)

    monkeypatch.setattr(FakeHost, "observe", observe)
    failed, found, dummy = go(world, PULL)
    assert failed and found["code"] == "in_use" and "disk vdc of guest vm9 uses it" in found["msg"] and "delete" not in world.calls
    assert found["rolled_back"] is False


# Plans that can only keep a harm from growing

PROTECT = Plan((NEXT,), (NEXT,), (Step("protect", "vda", {"to": A}),), failing=("stale_pivot", "QEMU writes to /a."), stands="QEMU writes to /a")
CLEAN = Plan((BEFORE,), (BEFORE,), (Step("discard", "vda", {"path": "/b"}), Step("forget", "vda")), failing=("job_failed", "The copy ended."))


def test_a_protected_guest_is_a_failure(go):
    world = World(NEXT)
    failed, found, warnings = go(world, PROTECT)
    assert failed and world.calls == calls("protect, look, look")
    assert (found["code"], found["rolled_back"], found["changed"]) == ("stale_pivot", False, True)
    assert found["msg"] == "QEMU writes to /a. The guest is not as it was before: QEMU writes to /a."
    assert [step["begun"] for step in found["steps"]] == [True] and warnings == []


def test_a_protection_that_fails_is_the_error(go):
    failed, found, dummy = go(World(NEXT, {"protect": fails(CALL)}), PROTECT)
    assert failed and found["code"] == "libvirt_error"


def test_cleaning_up_after_an_ended_job_is_a_failure_that_leaves_the_guest_as_it_was(go):
    world = World()
    failed, found, dummy = go(world, CLEAN)
    assert failed and world.calls == calls("discard, forget, look, look")
    assert (found["code"], found["rolled_back"], found["changed"]) == ("job_failed", True, False) and found["msg"] == "The copy ended. " + UNTOUCHED


@pytest.mark.parametrize("plan", [PROTECT, CLEAN])
def test_check_mode_tells_that_it_would_fail(go, plan):
    world = World(plan.before[0])
    failed, found, warnings = go(world, plan, check_mode=True)
    assert not failed and warnings == [plan.failing[1]] and found["changed"] is True and world.calls == ["open", "look", "close"]


# What was noticed on the way


@pytest.mark.parametrize("script", [GOOD, dict(GOOD, wait=fails(FAILED), **{"undo pull": becomes(BEFORE)})], ids=["success", "failure"])
def test_notes_are_warnings(go, script):
    world = World(scripts=dict(script), notes=["The guest writes faster."])
    failed, dummy, warnings = go(world, PULL)
    assert failed == (script is not GOOD) and warnings == ["Mind the snapshot.", "The guest writes faster."]


# Work on several disks: each is done, or as it was before, whatever becomes of the next

D, E = file_layer("/d", "qcow2"), file_layer("/e", "qcow2")


def pair(one, two, job=None):
    """A guest with two disks; ``job`` runs on the second."""
    disks = (Disk("vda", Chain(one, True), alias="virtio-disk0"), Disk("vdb", Chain(two, True), job=job, alias="virtio-disk1"))
    return Domain("vm1", "u1", True, disks=disks)


NEITHER, FIRST, SECOND, BOTH = pair((A, B), (D, E)), pair((A,), (D, E)), pair((A, B), (D,)), pair((A,), (D,))
HALFWAY = pair((A,), (D, E), Job("pull", 1, 2))
STRANGE = pair((A,), (C, D, E))


def pulls(target):
    return Step("pull", target, {"base": None}), Step("wait", target, {"job": "pull", "until": "completed"})


TOLD = Step("retell", None, {"names": (), "notes": (), "moved": (), "overlays_of": ()})
FORGET = Step("disown", None, {"name": "s1"})
EACH = Plan((NEITHER,), (BOTH,), (TOLD, *pulls("vda"), *pulls("vdb"), FORGET), fences=(2, 4), spoils=("/b",))
EACH_AND_FILES = replace(EACH, steps=EACH.steps + (REMOVE_B, REMOVE_D), fences=(2, 4, 5))
WORKS = {"wait": [becomes(FIRST), becomes(BOTH)], "delete": [removes("/b"), removes("/d")]}
DONE, AS_BEFORE, OTHERWISE = "done", "as_before", "other"
RESULTS = {"disk_results", "quiesced"}


@pytest.mark.parametrize("plan", [EACH, EACH_AND_FILES], ids=["alone", "files"])
def test_every_disk_is_done(go, plan):
    world = World(NEITHER, dict(WORKS, wait=[becomes(FIRST), becomes(BOTH)], delete=[removes("/b"), removes("/d")]))
    failed, found, dummy = go(world, plan, per_disk=True)
    deletions = ", delete, delete" if plan is EACH_AND_FILES else ""
    assert not failed and world.calls == calls("retell, pull, wait, pull, wait, disown, look" + deletions)
    assert found["disk_results"] == [{"disk": "vda", "result": DONE, "msg": ""}, {"disk": "vdb", "result": DONE, "msg": ""}] and found["quiesced"] is None
    assert set(found) == CHANGED | RESULTS and found["rolled_back"] is None and found["changed"] is True
    assert [step["fence"] for step in found["steps"]] == [number in plan.fences for number in range(len(plan.steps))]


@pytest.mark.parametrize(
    ("scripts", "expected", "code", "results", "rolled_back"),
    [
        # What fails on the second disk takes nothing back of the first.
        pytest.param(
            {"pull": [nothing, fails(CALL)], "wait": [becomes(FIRST)]},
            "retell, pull, wait, pull, undo pull, look",
            "libvirt_error",
            (DONE, AS_BEFORE),
            False,
            id="the-second-job-is-refused",
        ),
        pytest.param(
            {"pull": [nothing, becomes(HALFWAY)], "wait": [becomes(FIRST), becomes(FIRST, FAILED)]},
            "retell, pull, wait, pull, wait, look, look, undo wait, undo pull, look",
            "job_failed",
            (DONE, AS_BEFORE),
            False,
            id="the-second-job-fails",
        ),
        pytest.param(
            {"pull": [nothing, becomes(HALFWAY)], "wait": [becomes(FIRST), becomes(STRANGE, FAILED)]},
            "retell, pull, wait, pull, wait, look, look, undo wait, undo pull, look",
            "job_failed",
            (DONE, OTHERWISE),
            False,
            id="the-second-disk-is-somewhere-else",
        ),
        pytest.param(
            {"pull": [nothing, killed()], "wait": [becomes(FIRST)]},
            "retell, pull, wait, pull, undo pull, look",
            "interrupted",
            (DONE, AS_BEFORE),
            False,
            id="interrupted-in-the-second-disk",
        ),
        # What fails on the first takes all back that was begun, and the second is not begun at all.
        pytest.param(
            {"pull": fails(CALL)},
            "retell, pull, undo pull, undo retell, look",
            "libvirt_error",
            (AS_BEFORE, AS_BEFORE),
            True,
            id="the-first-job-is-refused",
        ),
        pytest.param(
            {"wait": [fails(FAILED)]},
            "retell, pull, wait, look, look, undo wait, undo pull, undo retell, look",
            "job_failed",
            (AS_BEFORE, AS_BEFORE),
            True,
            id="the-first-job-fails",
        ),
        pytest.param(
            {"wait": [killed(domain=FIRST)]},
            "retell, pull, wait, look, look",
            "interrupted",
            (DONE, AS_BEFORE),
            False,
            id="interrupted-past-the-first-fence",
        ),
        # Behind both there is nothing to take back.
        pytest.param(
            dict(WORKS, disown=fails(CALL)),
            "retell, pull, wait, pull, wait, disown, undo disown, look",
            "libvirt_error",
            (DONE, DONE),
            False,
            id="libvirt-does-not-forget",
        ),
        pytest.param(
            {"wait": [becomes(FIRST), becomes(BOTH, CALL)]},
            "retell, pull, wait, pull, wait, look, look",
            "libvirt_error",
            (DONE, DONE),
            False,
            id="the-last-fence-raised-yet-happened",
        ),
    ],
)
def test_the_disks_of_a_plan_that_fails(go, scripts, expected, code, results, rolled_back):
    world = World(NEITHER, {name: list(acts) if isinstance(acts, list) else acts for name, acts in scripts.items()})
    failed, found, dummy = go(world, EACH, per_disk=True)
    assert failed and world.calls == calls(expected)
    assert (found["code"], found["rolled_back"], found["changed"]) == (code, rolled_back, not rolled_back)
    assert tuple((one["disk"], one["result"]) for one in found["disk_results"]) == tuple(zip(("vda", "vdb"), results))
    assert all(bool(one["msg"]) == (one["result"] != DONE) and one["disk"] in one["msg"] + "vdavdb" for one in found["disk_results"])
    assert set(found) == CHANGED | RESULTS | {"msg", "code"} and found["spoils"] == ["/b"]


def test_jobs_that_failed_yet_were_done_are_no_failure_on_any_disk(go):
    world = World(NEITHER, {"wait": [becomes(FIRST, FAILED), becomes(BOTH, FAILED)]})
    failed, found, warnings = go(world, EACH, per_disk=True)
    assert not failed and world.calls == calls("retell, pull, wait, look, pull, wait, look, disown, look")
    assert warnings == ["The job failed. Yet the chain is as planned."] * 2 and [one["result"] for one in found["disk_results"]] == [DONE, DONE]


def test_past_the_last_fence_of_all_nothing_is_taken_back(go):
    world = World(NEITHER, dict(WORKS, wait=[becomes(FIRST), becomes(BOTH)], delete=[removes("/b"), fails(CALL)]))
    failed, found, dummy = go(world, EACH_AND_FILES, per_disk=True)
    assert failed and world.calls == calls("retell, pull, wait, pull, wait, disown, look, delete, delete, undo delete, undo delete, look")
    assert [one["result"] for one in found["disk_results"]] == [DONE, DONE] and "/b was removed" in found["msg"] and found["rolled_back"] is False


def test_a_snapshot_that_libvirt_still_keeps_is_found(go, monkeypatch):
    look = FakeHost.observe
    monkeypatch.setattr(FakeHost, "observe", lambda host, needs: replace(look(host, needs), snapshots=(Snapshot("s1"),)))
    world = World(NEITHER, dict(WORKS, wait=[becomes(FIRST), becomes(BOTH)]))
    failed, found, dummy = go(world, EACH, per_disk=True, snapshots=True)
    assert failed and found["code"] == "verify_failed" and "libvirt still keeps the snapshot s1" in found["msg"] and found["rolled_back"] is False


def test_the_second_run_shows_the_first_disk_as_done(go):
    """It begins where the first one has come to."""
    rest = Plan((FIRST,), (BOTH,), (*pulls("vdb"), FORGET), fences=(1,), about=("vda", "vdb"))
    world = World(FIRST, {"wait": [becomes(BOTH)]})
    failed, found, dummy = go(world, rest, per_disk=True)
    assert not failed and [(one["disk"], one["result"]) for one in found["disk_results"]] == [("vda", DONE), ("vdb", DONE)]


def test_check_mode_predicts_every_disk(go):
    predicted = go(World(NEITHER), EACH, check_mode=True, per_disk=True)[1]
    real = go(World(NEITHER, dict(WORKS, wait=[becomes(FIRST), becomes(BOTH)])), EACH, per_disk=True)[1]
    for found in (predicted, real):
        found["steps"] = [dict(step, begun=None) for step in found["steps"]]
    assert predicted == real


def test_a_refusal_has_the_same_keys(go):
    failed, found, dummy = go(World(), Refused("no_disk", "No such disk."), per_disk=True, images=True)
    assert failed and set(found) == CHANGED | RESULTS | {"images", "msg", "code"}
    assert (found["disk_results"], found["quiesced"], found["images"]) == ([], None, [])


# What no QEMU has open

OFF_BEFORE, OFF_AFTER = (replace(domain, active=False, state="shutdown", config=domain.disks) for domain in (BEFORE, AFTER))
HOLD, MERGED = Step("lock", "vda", {"write": (A, B), "read": (C,)}), Step("merge", "vda", {"chain": (A, B), "below": (C,), "size": None})
DEFINED = Step("redefine", None, {"chains": (("vda", OFF_AFTER.disks[0].chain),)})
IDLE = Plan((OFF_BEFORE,), (OFF_AFTER,), (HOLD, MERGED, DEFINED, REMOVE_B), fence=2)


def test_offline_work_and_then_the_files(go):
    world = World(OFF_BEFORE, {"redefine": becomes(OFF_AFTER), "delete": removes("/b")})
    failed, found, dummy = go(world, IDLE)
    assert not failed and found["changed"] is True and world.calls == calls("lock, merge, redefine, look, delete")


@pytest.mark.parametrize(
    ("scripts", "expected"),
    [
        ({"lock": fails(CALL)}, "lock, undo lock, look"),
        ({"merge": fails(CALL)}, "lock, merge, undo merge, undo lock, look"),
        ({"merge": killed()}, "lock, merge, undo merge, undo lock, look"),
        ({"redefine": fails(CALL)}, "lock, merge, redefine, look, undo redefine, undo merge, undo lock, look"),
        ({"redefine": becomes(OFF_AFTER, CALL), "undo redefine": becomes(OFF_BEFORE)}, "lock, merge, redefine, look, look"),
        ({"redefine": nothing}, "lock, merge, redefine, look, look, undo redefine, undo merge, undo lock, look"),
    ],
    ids=["lock", "merge", "interrupted", "definition", "definition-yet-written", "definition-not-written"],
)
def test_offline_work_that_fails_is_undone_before_anything_is_removed(go, scripts, expected):
    world = World(OFF_BEFORE, dict(scripts))
    failed, found, dummy = go(world, IDLE)
    assert failed and world.calls == calls(expected) and "delete" not in world.calls
    assert found["rolled_back"] is (world.now == OFF_BEFORE)


def test_holding_images_is_no_change(go):
    failed, found, dummy = go(World(OFF_BEFORE), Plan((OFF_BEFORE,), (OFF_BEFORE,), (HOLD,)))
    assert not failed and found["changed"] is False


# Images that belong to no guest


def alone(*layers):
    return Domain("/a", "/a", False, "shutdown", False, (Disk("/a", Chain(layers, True)),), bare=True)


def test_images_by_themselves_are_looked_at_where_they_were_put(go):
    """A chain whose active layer was merged begins further down, and is still told by the name that was asked for."""
    world = World(alone(A, B), {"merge": becomes(alone(B))})
    plan = Plan((alone(A, B),), (alone(B),), (replace(HOLD, disk="/a"), replace(MERGED, disk="/a")))
    failed, found, dummy = go(world, plan, images=True, bare=(("/a", None),))
    assert not failed and found["images"] == [{"path": "/a", "chain": found["images"][0]["chain"]}] and found["domains"] == []
    assert [layer["path"] for layer in found["images"][0]["chain"]] == ["/b"]
    assert world.bare == [(("/a", None), ())] * 2 + [(("/b", "qcow2"), ("/a",))]
    assert found["diff"]["before"].startswith("image /a\n  /a (file, qcow2)") and "/a (file" not in found["diff"]["after"]


# A frozen guest

FROZEN = (Step("freeze", None, {"timeout": 5, "fallback": False}), OVERLAY, Step("thaw", None, {"timeout": 5}))
QUIET = replace(SNAPSHOT, steps=FROZEN, quiesces=True)


@pytest.mark.parametrize(
    ("scripts", "expected", "quiesced"),
    [
        ({}, "freeze, snapshot, thaw, look", True),
        ({"freeze": fails(CALL)}, "freeze, undo freeze, look", False),
        ({"snapshot": fails(CALL)}, "freeze, snapshot, undo freeze, undo snapshot, look", True),
        ({"thaw": fails(CALL)}, "freeze, snapshot, thaw, undo freeze, undo thaw, undo snapshot, look", True),
    ],
    ids=["well", "freeze", "snapshot", "thaw"],
)
def test_a_frozen_guest_is_thawed_first_whatever_happens(go, monkeypatch, scripts, expected, quiesced):
    monkeypatch.setattr(FakeHost, "quiesced", quiesced)
    world = World(AFTER, {"snapshot": becomes(BEFORE), "undo snapshot": becomes(AFTER), **scripts})
    failed, found, dummy = go(world, QUIET, per_disk=True)
    assert failed == bool(scripts) and world.calls == calls(expected) and found["quiesced"] is quiesced
    assert found["disk_results"] == [{"disk": "vda", "result": AS_BEFORE if failed else DONE, "msg": found["disk_results"][0]["msg"]}]


@pytest.mark.parametrize(("plan", "quiesced"), [(QUIET, True), (replace(SNAPSHOT, quiesces=False), False), (SNAPSHOT, None)])
def test_check_mode_tells_whether_it_would_freeze(go, plan, quiesced):
    assert go(World(AFTER), plan, check_mode=True, per_disk=True)[1]["quiesced"] is quiesced


CONVERSION = replace(PULL, facts={"method": "saved", "data_file": "/a"})
MORE = {"method": None, "pause": None, "metadata": None, "data_file": None}
PAUSED = World(scripts=dict(GOOD, pull=lambda world: world.facts.update(pause=1.5) or becomes(RUNNING)(world)))


@pytest.fixture(name="more")
def _more(go, monkeypatch):
    """As ``go``, with a planner that returns keys of its own."""
    build = operation

    def planner(*arguments, **more):
        found = build(*arguments, **more)
        found.MORE = MORE
        return found

    monkeypatch.setitem(globals(), "operation", planner)
    return go


@pytest.mark.parametrize(
    ("world", "check_mode", "expected"),
    [
        pytest.param(lambda: replace(PAUSED, scripts=dict(PAUSED.scripts), facts={}), False, {"pause": 1.5}, id="success"),
        pytest.param(World, True, {}, id="check-mode"),
        pytest.param(lambda: World(scripts={"pull": fails(CALL)}), False, {}, id="failure"),
        pytest.param(lambda: World(scripts=dict(PAUSED.scripts, wait=fails(FAILED)), facts={}), False, {"pause": 1.5}, id="late-failure"),
        pytest.param(lambda: World(scripts={"pull": killed()}), False, {}, id="interrupted"),
    ],
)
def test_the_keys_of_one_module(more, world, check_mode, expected):
    """What the plan knows and what the host has measured, also in check mode and after a failure."""
    found = more(world(), CONVERSION, check_mode)[1]
    assert {key: found[key] for key in MORE} == {**MORE, "method": "saved", "data_file": "/a", **expected}


@pytest.mark.parametrize("error", [Refused("no_guest", "No."), Refused("early", "Bad.")])
def test_the_keys_of_one_module_when_there_is_no_plan(more, error):
    failed, found = more(World(), error)[:2]
    assert failed and {key: found[key] for key in MORE} == MORE
    found["method"] = "changed"
    assert MORE["method"] is None  # the planner's own is no part of a result


def test_a_guest_that_cannot_be_looked_at_has_the_keys_too(more):
    failed, found, dummy = more(World(scripts={"look": [nothing, nothing, fails(Unavailable("connection", "Gone."))], "pull": fails(CALL)}), CONVERSION)
    assert failed and set(MORE) <= set(found)


def test_other_modules_have_none_of_them(go):
    assert not set(MORE) & set(go(World(scripts=GOOD), PULL)[1])


START_AGAIN = Plan((guest(B, C),), (AFTER,), (Step("save", "vda"), Step("restart", "vda"), Step("unnote", "vda")), fence=1)


@pytest.mark.parametrize(("now", "undone"), [(AFTER, False), (guest(B, C), True)])
def test_a_start_that_was_interrupted_is_waited_for(go, now, undone):
    """It goes on by itself: only when it is over the look tells whether the guest runs as it was planned."""
    world = World(guest(B, C), {"restart": killed(), "settle": becomes(now)})
    assert go(world, START_AGAIN)[0] and ("undo save" in world.calls) == undone
    assert world.calls.index("settle") < len(world.calls) - 1 - world.calls[::-1].index("look")
