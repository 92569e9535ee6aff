# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugins, with a module that is only a script of answers, and a clock that moves by itself when somebody sleeps."""

from __future__ import annotations

import importlib
import types

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

from ansible_collections.livestorage.libvirt.plugins.plugin_utils import progress
from ansible_collections.livestorage.libvirt.tests.unit.support import COLLECTION, MODULES, ROOT, declaration

ACTIONS = sorted(path.stem for path in (ROOT / "plugins" / "action").glob("*.py"))
MiB = 1 << 20
ARGUMENTS = {"name": "vm1", "disk": "vda", "dest": {"path": "/new"}}
CHAINS = {"before": "old\n", "after": "old\n"}


def job(cur=10, end=100, ready=False, type="copy", bandwidth=0):
    percent = round(100.0 * cur / end, 1) if end else 0.0
    return {"type": type, "cur": cur * MiB, "end": end * MiB, "percent": percent, "ready": ready, "bandwidth": bandwidth}


def step(action, begun=True):
    return {"action": action, "begun": begun}


ON, OFF = {"name": "vm1", "active": True}, {"name": "vm1", "active": False}
STARTED = {"changed": True, "job": job(), "steps": [step("copy")], "diff": CHAINS, "domains": [ON]}
DONE = {"changed": True, "job": None, "steps": [step("wait"), step("pivot")], "diff": {"before": "old\n", "after": "new\n"}, "domains": ["after"]}
FAILED = {"failed": True, "changed": False, "code": "job_failed", "msg": "The copy job ended.", "rolled_back": True}
NOTHING = {"changed": False, "job": None, "steps": [], "diff": CHAINS, "domains": [ON]}


class World:
    """The controller: what was run with which arguments, what was shown, and what the time is."""

    def __init__(self, *answers, endless=None):
        self.answers, self.endless = list(answers), endless  # what is answered to each run, and to all looks
        self.runs, self.shown, self.warned, self.now, self.begun = [], [], [], 0.0, []

    # time
    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    # Display
    def display(self, text, stderr):
        assert stderr  # stdout is for the callbacks
        self.shown.append(text)

    def warning(self, text):
        self.warned.append(text)

    def execute(self, module_name=None, module_args=None, task_vars=None, wrap_async=False):
        self.runs.append((module_name, module_args, wrap_async))
        self.begun.append(self.now)
        answer = self.endless if module_name and self.endless is not None else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def phases(self):
        """The runs as words: whole, start, finish, or look."""
        return ["look" if name else arguments["phase"] if arguments else "whole" for name, arguments, dummy in self.runs]


@pytest.fixture(name="go")
def _go(monkeypatch):
    """Run an action of this collection over a world; its result."""

    def go(world, arguments=None, name="block_copy", check_mode=False, async_val=0, task_vars=None):
        monkeypatch.setattr(progress, "time", world)
        monkeypatch.setattr(progress, "display", world)
        monkeypatch.setattr(ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
        action = object.__new__(importlib.import_module("%s.action.%s" % (COLLECTION, name)).ActionModule)
        action._task = types.SimpleNamespace(args=ARGUMENTS if arguments is None else arguments, check_mode=check_mode, async_val=async_val)
        action._execute_module = world.execute
        return action.run(None, {"inventory_hostname": "kvm1"} if task_vars is None else task_vars)

    return go


def looked(*jobs):
    """The answer of block_job_info."""
    return {"changed": False, "jobs": [dict(one, name="vm1", disk="vda") for one in jobs]}


def test_every_module_that_waits_has_an_action():
    """And no other: an action without a module would never be found missing."""
    waits = [name for name in MODULES if "phase" in declaration(name)["argument_spec"]]
    assert waits == ACTIONS and set(ACTIONS) == {"block_backup", "block_commit", "block_copy", "block_job", "block_rebase"}


@pytest.mark.parametrize("name", ACTIONS)
def test_the_action_knows_the_modules_options(name):
    """What it passes on to block_job_info exists there, and the defaults that it takes for granted are the module's."""
    spec, info = declaration(name)["argument_spec"], declaration("block_job_info")["argument_spec"]
    aliases = {alias for option in info.values() for alias in option.get("aliases", ())}
    assert set(progress.GUEST) <= set(info) | aliases and "interval" in info
    assert (spec["wait"]["default"], spec["progress"]["default"], spec["phase"]["default"]) == (True, True, "whole")
    assert spec["wait_timeout"]["default"] == progress._seconds({})
    assert "stall_window" not in spec or spec["stall_window"]["default"] == progress.WINDOW
    assert {option for option in spec if option.startswith("delete_")} <= set(progress.DELETES)


@pytest.mark.parametrize("name", ACTIONS)
def test_start_look_finish(go, name):
    kind = "backup" if name == "block_backup" else "copy"
    looks = [looked(job(40, type=kind)), looked(job(100, ready=kind == "copy", type=kind))] + [looked()] * (kind == "backup")
    world = World(dict(STARTED, job=job(type=kind)), *looks, DONE)
    arguments = dict(ARGUMENTS, state="pivoted") if name == "block_job" else ARGUMENTS
    result = go(world, arguments, name)
    assert world.phases == ["start", "look", "look", *(["look"] * (kind == "backup")), "finish"]  # what is never ready is looked at until it is gone
    assert world.runs[0][1] == dict(arguments, phase="start")
    assert world.runs[1] == (progress.INFO, {"name": "vm1", "disk": "vda", "interval": 0}, False)
    assert result == {
        "changed": True,
        "job": None,
        "steps": [step("copy"), step("wait"), step("pivot")],
        "diff": {"before": "old\n", "after": "new\n"},
        "domains": ["after"],
    }
    assert world.warned == [] and len(world.shown) == 3


@pytest.mark.parametrize(
    ("arguments", "facts", "name"),
    [
        ({"wait": False}, {}, "block_copy"),
        ({"wait": "no"}, {}, "block_copy"),
        ({"progress": False}, {}, "block_copy"),
        ({"progress": "false"}, {}, "block_rebase"),
        ({"phase": "start"}, {}, "block_copy"),
        ({"phase": "finish"}, {}, "block_copy"),
        ({}, {"check_mode": True}, "block_copy"),
        ({}, {"async_val": 60}, "block_copy"),
        ({"state": "absent"}, {}, "block_job"),
        ({"state": "throttled", "bandwidth": "1MiB"}, {}, "block_job"),
    ],
)
def test_quiet(go, arguments, facts, name):
    """The module alone does the whole work, and nothing is shown."""
    world = World(DONE)
    result = go(world, dict(ARGUMENTS, **arguments), name, **facts)
    assert world.runs == [(None, None, facts.get("async_val", 0))] and world.shown == [] and result == DONE


@pytest.mark.parametrize("arguments", [{"wait": True}, {"wait": "yes"}, {"progress": "on"}, {"phase": "whole"}])
def test_not_quiet(go, arguments):
    world = World(STARTED, looked(), DONE)
    go(world, dict(ARGUMENTS, **arguments))
    assert world.phases == ["start", "look", "finish"]


@pytest.mark.parametrize("first", [FAILED, {"unreachable": True}, {"skipped": True}, NOTHING])
def test_nothing_to_watch_nor_to_finish(go, first):
    world = World(first)
    assert go(world) == first and world.phases == ["start"] and world.shown == []


@pytest.mark.parametrize("domains", [[OFF], []], ids=["off", "images"])
@pytest.mark.parametrize("option", ["disk", *progress.DELETES])
def test_what_no_qemu_has_open_is_done_by_the_first_run(go, domains, option):
    """A guest that is off, or images of no guest: there is no job, and their files are removed by the same run."""
    first = dict(STARTED, job=None, domains=domains, steps=[step("merge"), step("delete")])
    world = World(first)
    assert go(world, dict(ARGUMENTS, **{option: ["/old"]}), "block_commit") == first
    assert world.phases == ["start"] and world.shown == [] and world.warned == []


@pytest.mark.parametrize("option", progress.DELETES)
def test_what_may_be_left_to_remove_is_looked_after(go, option):
    """All is as asked, but for the file that an earlier run left."""
    world = World(NOTHING, dict(DONE, steps=[step("delete")]))
    result = go(world, dict(ARGUMENTS, **{option: ["/old"]}))
    assert world.phases == ["start", "adopt"] and result["changed"] is True and result["steps"] == [step("delete")] and world.shown == []


def test_a_job_that_was_over_at_once_is_finished(go):
    world = World(dict(STARTED, job=None), dict(DONE, changed=False, steps=[step("forget")]))
    result = go(world)
    assert world.phases == ["start", "finish"] and result["changed"] is True and result["steps"] == [step("copy"), step("forget")] and world.shown == []


def test_a_job_that_is_ready_at_once_is_not_looked_at(go):
    world = World(dict(STARTED, changed=False, job=job(100, ready=True)), DONE)
    go(world)
    assert world.phases == ["start", "finish"] and world.shown == ["kvm1: copy of vm1 vda: 100.0 %, ready"] and world.now == 0


def test_an_adopted_job_is_watched(go):
    world = World(dict(STARTED, changed=False, steps=[step("wait", False)]), looked(job(100, ready=True)), DONE)
    result = go(world)
    assert world.phases == ["start", "look", "adopt"] and result["steps"] == [step("wait"), step("pivot")]


@pytest.mark.parametrize("over", [looked(), looked(job(type="pull"))], ids=["gone", "another"])
def test_a_job_that_fails_between_two_looks_is_the_modules_to_judge(go, over):
    world = World(STARTED, over, FAILED)
    result = go(world)
    assert world.phases == ["start", "look", "finish"] and result["failed"] and result["msg"] == "The copy job ended." and result["rolled_back"] is True


@pytest.mark.parametrize("lost", [AnsibleConnectionFailure("Connection refused"), {"unreachable": True, "msg": "ssh"}, {"failed": True, "code": "no_daemon"}])
def test_a_look_that_fails_ends_nothing(go, lost):
    world = World(STARTED, lost, lost, looked(job(50)), looked(), DONE)
    result = go(world)
    assert world.phases == ["start", "look", "look", "look", "look", "finish"] and result["changed"] and not result.get("failed")
    assert len(world.warned) == 2 and "goes on without that" in world.warned[0]


def test_looks_that_fail_for_too_long_leave_it_to_the_module(go):
    lost = AnsibleConnectionFailure("Connection refused")
    world = World(STARTED, *[lost] * progress.LOST_LOOKS, DONE)
    go(world)
    assert world.phases == ["start"] + ["look"] * progress.LOST_LOOKS + ["finish"] and len(world.shown) == 1


def test_a_success_between_counts_anew(go):
    lost = AnsibleConnectionFailure("Connection refused")
    few = [lost] * (progress.LOST_LOOKS - 1)
    world = World(STARTED, *few, looked(job(20)), *few, looked(), DONE)
    go(world)
    assert world.phases.count("look") == 2 * progress.LOST_LOOKS


@pytest.mark.parametrize("which", ["start", "finish"])
def test_a_host_that_is_gone_for_the_module_is_unreachable(go, which):
    """The job goes on in QEMU, and the next run adopts it."""
    lost = AnsibleConnectionFailure("Connection refused")
    with pytest.raises(AnsibleConnectionFailure):
        go(World(lost) if which == "start" else World(STARTED, looked(), lost))


@pytest.mark.parametrize(
    ("timeout", "left"), [(None, 86400 - 3), (60, 57), ("60", 57), (4, 1), (2, 1), (0.5, 1)], ids=["default", "int", "text", "little", "none", "less"]
)
def test_the_module_has_what_is_left_of_the_time(go, timeout, left):
    arguments = dict(ARGUMENTS) if timeout is None else dict(ARGUMENTS, wait_timeout=timeout)
    world = World(STARTED, looked(job(20)), looked(), DONE)
    go(world, arguments)
    phase, given = world.phases[-1], world.runs[-1][1]["wait_timeout"]
    assert phase == "finish" and left - 1 <= given <= left and isinstance(given, int) and given >= 1
    assert world.runs[0][1].get("wait_timeout") == timeout  # the module has to see what is wrong with it


def test_nothing_is_looked_at_after_the_time_is_over(go):
    world = World(STARTED, FAILED, endless=looked(job(20)))
    assert go(world, dict(ARGUMENTS, wait_timeout=30)) == FAILED
    assert 30 <= world.now <= 30 + progress.SLOWEST and world.phases[-1] == "finish" and world.phases.count("look") > 5


def test_soon_at_first_and_seldom_later(go):
    world = World(STARTED, *[looked(job(10 + number)) for number in range(20)], looked(), DONE)
    go(world)
    looks = [begun for begun, phase in zip(world.begun, world.phases) if phase == "look"]
    pauses = [later - earlier for earlier, later in zip([0.0] + looks, looks)]
    assert pauses[0] == progress.FIRST and pauses == sorted(pauses) and pauses[-1] == progress.SLOWEST


def test_the_lines(go):
    """Percent, rate and the time that is left; who and where it is."""
    world = World(STARTED, looked(job(20)), looked(job(20)), looked(job(99)), looked(job(100, ready=True)), DONE)
    go(world, task_vars={})
    assert world.shown == [
        "localhost: copy of vm1 vda:  10.0 %",
        "localhost: copy of vm1 vda:  20.0 %, 10.0 MiB/s, ETA 0:00:08",
        "localhost: copy of vm1 vda:  20.0 %, 0.0 MiB/s",
        "localhost: copy of vm1 vda:  99.0 %, 35.1 MiB/s, ETA 0:00:00",
        "localhost: copy of vm1 vda: 100.0 %, 0.3 MiB/s, ready",
    ]


@pytest.mark.parametrize("name", ["name", "guest", "domain", "uuid"])
def test_the_guest_by_any_of_its_names(go, name):
    world = World(STARTED, looked(), DONE)
    go(world, {name: "it", "disk": "/a", "uri": "qemu:///session", "bandwidth": "1MiB"})
    assert world.runs[1][1] == {name: "it", "disk": "/a", "uri": "qemu:///session", "interval": 0}
    assert world.shown[0].startswith("kvm1: copy of it /a: ")


@pytest.mark.parametrize("converge", [True, False, None])
def test_a_copy_that_does_not_catch_up(go, converge):
    """It is told; only where the guest is to be made to wait for it, the module has to come back to do that."""
    arguments = dict(ARGUMENTS, stall_window=8) if converge is None else dict(ARGUMENTS, stall_window=8, converge=converge)
    world = World(STARTED, *[looked(job(10 + number, 100 + number)) for number in range(9)], looked(), DONE)
    go(world, arguments)
    told = ["does not catch up with the guest" in line for line in world.shown]
    assert any(told) and not told[0] and world.phases.count("look") == (len(told) - 1 if converge else 10)
    assert world.phases[-1] == "finish" and told[-1]


def test_warnings_of_both_runs_once_each(go):
    world = World(dict(STARTED, warnings=["Mind it.", "One."]), looked(), dict(DONE, warnings=["Mind it.", "Two."]))
    assert go(world)["warnings"] == ["Mind it.", "One.", "Two."]


@pytest.mark.parametrize(("first", "last", "changed"), [(True, False, True), (False, True, True), (False, False, False)])
def test_changed_is_what_either_run_changed(go, first, last, changed):
    same = {"before": "a", "after": "a"}
    assert go(World(dict(STARTED, changed=first, diff=same), looked(), dict(DONE, changed=last, diff=same)))["changed"] is changed


def test_a_job_that_was_watched_to_its_end_has_changed_the_chain(go):
    """An adopted pull ends between two looks: neither run of the module changes anything, and yet the chain is another."""
    first = dict(STARTED, changed=False, steps=[], diff={"before": "b", "after": "b"})
    result = go(World(first, looked(), dict(DONE, changed=False, diff={"before": "a", "after": "a"})))
    assert result["changed"] is True and result["diff"] == {"before": "b", "after": "a"}


@pytest.mark.parametrize("seconds", [0, 59.9, 60, 3599, 3600, 90061])
def test_a_clock(seconds):
    hours, minutes, rest = (int(part) for part in progress.clock(seconds).split(":"))
    assert hours * 3600 + minutes * 60 + rest == int(seconds) and minutes < 60 and rest < 60


# The stall, as the module judges it


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([(0, 10, 100), (30, 20, 100), (60, 30, 100), (90, 40, 100)], [False] * 4),
        ([(0, 10, 100), (59, 10, 100), (60, 10, 100)], [False, False, True]),
        ([(0, 10, 100), (60, 50, 140), (61, 50, 139)], [False, True, False]),
    ],
)
def test_watch(looks, expected):
    watch = progress.Watch(60.0)
    found = []
    for now, cur, end in looks:
        watch.told(job(cur, end), now)
        found.append(watch.stalls)
    assert found == expected


def test_a_ready_job_is_never_said_to_fall_behind():
    watch = progress.Watch(1.0)
    watch.told(job(100, 100, ready=True), 0.0)
    assert "catch up" not in watch.told(job(100, 100, ready=True), 99.0)


@pytest.mark.parametrize(("bandwidth", "stalls"), [(0, True), (MiB, False)])
def test_a_limited_copy_has_the_time_for_two_of_its_steps(bandwidth, stalls):
    watch = progress.Watch(10.0)
    for now in (0.0, 20.0):
        watch.told(job(bandwidth=bandwidth), now)
    assert watch.stalls is stalls


def test_a_worker_whose_play_is_gone_finishes_nothing(go, monkeypatch):
    """Killed with SIGKILL, a play leaves its worker behind, which would pivot unseen while the next run adopts the job."""
    parents = [1000, 1000, 1]
    monkeypatch.setattr(progress.os, "getppid", lambda: parents.pop(0) if parents else 1)
    world = World(STARTED, looked(job(40)), endless=looked(job(50)))
    with pytest.raises(AnsibleError, match="The play is gone, and the job on disk vda goes on"):
        go(world)
    assert world.phases == ["start", "look"]


BACKUP = {"name": "vm1", "disks": [{"disk": "vda", "path": "/a"}, {"disk": "vdb", "path": "/b"}]}


def test_a_backup_is_watched_over_all_its_disks(go):
    begun = dict(STARTED, job=job(type="backup"), steps=[step("begin")])
    world = World(begun, looked(job(30, 100, type="backup"), job(10, 300, type="backup"), job(1, 2, type="copy")), looked(job(2, 4, type="copy")), DONE)
    go(world, BACKUP, "block_backup")
    assert world.phases == ["start", "look", "look", "finish"] and world.runs[1][1] == {"name": "vm1", "interval": 0}
    assert [line.split(", ")[0] for line in world.shown] == ["kvm1: backup of vm1 vda+vdb:  10.0 %", "kvm1: backup of vm1 vda+vdb:  10.0 %"]
    assert world.runs[-1][1]["phase"] == "finish"


def test_a_backup_that_was_over_is_finished_by_the_first_call(go):
    first = dict(NOTHING, changed=True, steps=[step("back"), step("inspect"), step("forget")])
    world = World(first)
    assert go(world, BACKUP, "block_backup") == first and world.phases == ["start"]


@pytest.mark.parametrize("arguments", [{"state": "absent"}, {"mode": "pull"}])
def test_what_is_not_waited_for_is_one_call(go, arguments):
    world = World(NOTHING)
    go(world, dict(BACKUP, **arguments), "block_backup")
    assert world.phases == ["whole"]
