# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting for a job: every fault that the tools before us met, on a timeline instead of a libvirt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import CallFailed, JobFailed, TimedOut, Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain, Job, Mirror
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.plan import Step
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.waits import GRACE_SECONDS, RECONNECT_SECONDS
from ansible_collections.livestorage.libvirt.tests.unit.fake_connection import Timeline, host_on, with_disk

CHAIN = Chain((file_layer("/a", "qcow2", 1), file_layer("/b", "qcow2", 2)), True)
IDLE = Domain("vm1", "u1", True, disks=(Disk("vda", CHAIN), Disk("vdb", CHAIN)))
RUNS = with_disk(IDLE, job=Job("pull", 1, 2))
OFF = replace(IDLE, active=False, state="shutdown")


ALL_DONE = Job("active-commit", 2, 2)


def mirrored(ready, job=ALL_DONE):
    return with_disk(IDLE, job=job, mirror=Mirror("active-commit", ready, Chain(CHAIN.layers[1:], True)))


COPIES, READY = mirrored(None), mirrored("yes")


def wait(monkeypatch, timeline, until="completed", timeout=100, interval=1.0, on_timeout="leave"):
    """Wait on that timeline; the error that was raised, or None."""
    detail = {
        "job": "pull" if until == "completed" else "active-commit",
        "until": until,
        "timeout": timeout,
        "poll_interval": interval,
        "on_timeout": on_timeout,
    }
    try:
        host_on(monkeypatch, timeline).do(Step("wait", "vda", detail))
    except (JobFailed, CallFailed, Unavailable) as error:
        return error
    return None


def events(*found):
    return [(second, word, "vda") for second, word in found]


@pytest.mark.parametrize(
    ("until", "timeline", "code", "ends"),
    [
        pytest.param("completed", Timeline([(0, RUNS)], events((3.2, "completed"))), None, 3.2, id="an-event-is-heard-at-once"),
        pytest.param("completed", Timeline([(0, IDLE)], events((0, "completed"))), None, 0, id="done-before-the-wait-began"),
        pytest.param("completed", Timeline([(0, RUNS), (3.2, IDLE)]), None, 4 + GRACE_SECONDS, id="missed-event"),
        pytest.param("completed", Timeline([(0, RUNS), (3.2, IDLE)], events((4.5, "completed"))), None, 4.5, id="late-completed"),
        pytest.param("completed", Timeline([(0, RUNS), (3.2, IDLE)], events((4.5, "failed"))), "job_failed", 4.5, id="late-failed"),
        pytest.param("completed", Timeline([(0, RUNS), (3.2, IDLE)], [(4.5, "stopped", None)]), "guest_stopped", 4.5, id="late-stopped"),
        pytest.param("completed", Timeline([(0, RUNS)], events((2, "failed"))), "job_failed", 2, id="failed"),
        pytest.param("completed", Timeline([(0, RUNS)], events((2, "canceled"))), "job_canceled", 2, id="canceled-may-have-completed"),
        pytest.param("completed", Timeline([(0, COPIES)], events((1, "ready"), (2, "ready"), (3, "completed"))), None, 3, id="ready-is-not-the-end"),
        pytest.param("ready", Timeline([(0, COPIES)], events((2, "ready"))), None, 2, id="ready"),
        pytest.param("ready", Timeline([(0, COPIES)], events((2, "ready"), (2, "ready"))), None, 2, id="ready-twice"),
        pytest.param("ready", Timeline([(0, COPIES), (2.5, READY)]), None, 3, id="missed-ready"),
        pytest.param("ready", Timeline([(0, READY)]), None, 1, id="ready-before-the-wait-began"),
        pytest.param("ready", Timeline([(0, COPIES)]), "timeout", 100, id="all-bytes-done-is-not-ready"),
        pytest.param("ready", Timeline([(0, mirrored("abort"))]), "timeout", 100, id="aborting-is-not-ready"),
        pytest.param("ready", Timeline([(0, mirrored("pivot", job=None))]), "timeout", 100, id="a-stale-mirror-is-not-ready"),
        pytest.param("ready", Timeline([(0, COPIES), (2, IDLE)]), None, 2 + GRACE_SECONDS, id="a-mirror-that-vanished"),
        pytest.param("completed", Timeline([(0, RUNS), (2, OFF)], [(2, "stopped", None)]), "guest_stopped", 2, id="guest-stopped"),
        pytest.param("completed", Timeline([(0, RUNS), (2.5, OFF)]), "guest_stopped", 3, id="guest-stopped-unheard"),
        pytest.param("completed", Timeline([(0, RUNS), (2.5, None)]), "guest_stopped", 3, id="transient-guest-gone"),
        pytest.param("completed", Timeline([(0, RUNS), (2.5, replace(IDLE, disks=()))]), None, 3 + GRACE_SECONDS, id="disk-gone"),
        pytest.param(
            "completed",
            Timeline([(0, RUNS)], [(1, "completed", "vdb"), (1, "failed", "vdb"), (5.5, "completed", "vda")]),
            None,
            5.5,
            id="another-disk's-events",
        ),
        pytest.param(
            "completed", Timeline([(0, RUNS)], [(second, "ready", "vdb") for second in range(200)]), "timeout", 100, id="another-disk's-noise-moves-no-deadline"
        ),
        pytest.param("completed", Timeline([(0, RUNS)], events((20, "completed")), down=(2.5, 9)), None, 20, id="daemon-lost-and-back"),
        pytest.param(
            "completed",
            Timeline([(0, RUNS), (5, IDLE)], events((5, "completed")), down=(2.5, 9)),
            None,
            10 + GRACE_SECONDS,
            id="done-while-the-daemon-was-away",
        ),
        pytest.param("ready", Timeline([(0, COPIES), (5, READY)], events((5, "ready")), down=(2.5, 9)), None, 10, id="ready-while-the-daemon-was-away"),
        pytest.param("completed", Timeline([(0, RUNS), (5, None)], down=(2.5, 9)), "guest_stopped", 9, id="guest-gone-while-the-daemon-was-away"),
        pytest.param("completed", Timeline([(0, RUNS)], down=(2.5, 1000)), "connection_lost", 3 + RECONNECT_SECONDS, id="daemon-lost-for-good"),
        pytest.param("completed", Timeline([(0, RUNS), (2, CallFailed("libvirt_error", "No."))]), "timeout", 100, id="a-look-that-fails-is-not-the-job's-end"),
        pytest.param("completed", Timeline([(0, RUNS), (2, Unavailable("permission", "No."))]), "permission", 2, id="a-permission-taken-away"),
    ],
)
def test_wait(monkeypatch, until, timeline, code, ends):
    error = wait(monkeypatch, timeline, until)
    assert (error and error.code) == code
    assert ends <= timeline.now <= ends + 1.0 + 1e-6 if code != "timeout" else timeline.now == pytest.approx(ends)
    assert "abort" not in timeline.calls


@pytest.mark.parametrize(
    ("until", "timeline", "cleared"),
    [
        ("completed", Timeline([(0, RUNS)], events((1, "completed"))), True),
        ("completed", Timeline([(0, RUNS)], events((1, "failed"))), True),
        ("completed", Timeline([(0, RUNS)], events((1, "canceled"))), True),
        ("completed", Timeline([(0, RUNS), (2, IDLE)]), True),
        ("completed", Timeline([(0, RUNS)], [(1, "stopped", None)]), False),
        ("completed", Timeline([(0, RUNS)]), False),
        ("ready", Timeline([(0, COPIES)], events((1, "ready"))), False),
    ],
    ids=["completed", "failed", "canceled", "vanished", "stopped", "left", "ready"],
)
def test_the_note_goes_with_the_job(monkeypatch, until, timeline, cleared):
    wait(monkeypatch, timeline, until)
    assert ("clear_record" in timeline.calls) == cleared


@pytest.mark.parametrize("interval", [0.01, 1.0, 7.0, 1000.0])
@pytest.mark.parametrize("timeout", [0.5, 10, 33.3])
def test_the_deadline_is_kept(monkeypatch, interval, timeout):
    timeline = Timeline([(0, RUNS)])
    error = wait(monkeypatch, timeline, timeout=timeout, interval=interval)
    assert isinstance(error, TimedOut) and error.keep and timeline.now == pytest.approx(timeout)


def test_the_deadline_holds_while_the_daemon_is_away(monkeypatch):
    timeline = Timeline([(0, RUNS)], down=(2.5, 1000))
    error = wait(monkeypatch, timeline, timeout=5)
    assert error.code == "connection_lost" and error.keep and timeline.now == pytest.approx(5)


def test_left_at_the_deadline(monkeypatch):
    """The job goes on, and nothing may undo it."""
    timeline = Timeline([(0, RUNS)])
    error = wait(monkeypatch, timeline, timeout=5)
    assert error.keep and timeline.calls == [] and error.facts["last_job"] == Job("pull", 1, 2)
    assert (
        str(error)
        == "The pull job on disk vda of guest vm1 was not completed after 5 seconds and goes on, as on_timeout asks: run the same task again to go on waiting."
    )


def test_not_to_be_ended_at_the_deadline(monkeypatch):
    """QEMU hangs: what cannot be ended is left, and nobody may believe that it is gone."""
    timeline = Timeline([(0, RUNS)])
    timeline.refusals["abort"] = [Unavailable("no_answer", "No answer.")]
    error = wait(monkeypatch, timeline, timeout=5, on_timeout="abort")
    assert error.code == "timeout" and error.keep and "could not be ended, so it goes on (No answer.)" in str(error)


def test_ended_at_the_deadline(monkeypatch):
    timeline = Timeline([(0, RUNS)])
    error = wait(monkeypatch, timeline, timeout=5, on_timeout="abort")
    assert not error.keep and timeline.calls == ["abort", "clear_record"]
    assert str(error) == "The pull job on disk vda of guest vm1 was not completed after 5 seconds and was ended, as on_timeout asks."


def test_nothing_is_ended_that_is_over_at_the_deadline(monkeypatch):
    timeline = Timeline([(0, RUNS), (5, IDLE)])
    error = wait(monkeypatch, timeline, timeout=5, on_timeout="abort", interval=5)
    assert "abort" not in timeline.calls and (error is None or error.code == "timeout")


@pytest.mark.parametrize(("word", "says"), [("failed", "ended with an error of QEMU"), ("canceled", "was ended by somebody else")])
def test_the_message_and_the_last_job(monkeypatch, word, says):
    error = wait(monkeypatch, Timeline([(0, RUNS)], events((3, word))))
    assert str(error).startswith("The pull job on disk vda of guest vm1 " + says) and str(error).endswith(".")
    assert error.facts["last_job"] == Job("pull", 1, 2) and not error.keep


def test_an_error_of_a_job_is_not_hidden_by_the_note(monkeypatch):
    """The daemon goes away between the job's end and the removal of its note."""
    timeline = Timeline([(0, RUNS)], events((3, "failed")))
    timeline.refusals["clear_record"] = [Unavailable("connection", "The connection broke.")]
    assert wait(monkeypatch, timeline).code == "job_failed"


# A copy that does not catch up with its guest

MiB = 1 << 20


def copying(*looks):
    """States in which a copy has done so much of so much, in MiB, from a second on."""
    mirror = Mirror("copy", None, Chain((file_layer("/new", "qcow2", 9),), True))
    return [(second, with_disk(IDLE, job=Job("copy", cur * MiB, end * MiB), mirror=mirror)) for second, cur, end in looks]


def watched(monkeypatch, timeline, timeout=100, **more):
    """(the host, the error or None) of a wait that watches the copy, with a window of 10 seconds."""
    host = host_on(monkeypatch, timeline)
    detail = {"job": "copy", "until": "ready", "timeout": timeout, "poll_interval": 1.0, "on_timeout": "leave", "stall_window": 10, "converge": False}
    try:
        host.do(Step("wait", "vda", dict(detail, **more)))
    except JobFailed as error:
        return host, error
    return host, None


STALLS = "the bytes that remain have not become fewer for 10 seconds, because the guest writes faster than the copy"
ADVICE = "use synchronous_writes, or lift bandwidth"


def test_a_copy_that_does_not_catch_up_is_told_once(monkeypatch):
    timeline = Timeline(copying((0, 0, 100), (5, 50, 150), (50, 60, 160)))
    host, error = watched(monkeypatch, timeline)
    assert host.notes == ["Disk vda of guest vm1: %s: %s." % (STALLS, ADVICE)] and timeline.calls == []
    assert error.code == "timeout" and "(%s: %s)" % (STALLS, ADVICE) in str(error)


def test_a_copy_that_catches_up_is_not_complained_about(monkeypatch):
    timeline = Timeline(copying(*((second * 5, second, 100) for second in range(21))), events((99, "ready")))
    host, error = watched(monkeypatch, timeline)
    assert (host.notes, error) == ([], None)


def test_other_jobs_are_not_watched(monkeypatch):
    """A pull and a commit are not raced by the guest."""
    timeline = Timeline([(0, RUNS)])
    host = host_on(monkeypatch, timeline)
    with pytest.raises(TimedOut):
        host.do(Step("wait", "vda", {"job": "pull", "until": "completed", "timeout": 100, "poll_interval": 1.0, "on_timeout": "leave"}))
    assert host.notes == []


def test_a_guest_is_made_to_wait_for_its_copy(monkeypatch):
    timeline = Timeline(copying((0, 0, 100), (50, 99, 100)), events((70, "ready")))
    host, error = watched(monkeypatch, timeline, converge=True)
    assert error is None and timeline.calls == ["write_through"]
    assert host.notes == ["Disk vda of guest vm1: %s, so that QEMU now completes each write of the guest on both sides (converge)." % STALLS]


def test_a_timeout_in_spite_of_that_does_not_advise_it(monkeypatch):
    timeline = Timeline(copying((0, 0, 100)))
    error = watched(monkeypatch, timeline, converge=True)[1]
    assert timeline.calls == ["write_through"] and error.code == "timeout" and "synchronous_writes" not in str(error)


@pytest.mark.parametrize("error", [CallFailed("qemu_error", "QEMU refused it."), Unavailable("qmp", "QEMU has no copy.")])
def test_an_older_qemu_cannot_be_switched(monkeypatch, error):
    timeline = Timeline(copying((0, 0, 100)))
    timeline.refusals["write_through"] = [error] * 9
    host, failed = watched(monkeypatch, timeline, converge=True)
    words = "converge needs QEMU 8.2 or later (%s): %s" % (str(error).rstrip("."), ADVICE)
    assert timeline.calls == ["write_through"] and host.notes == ["Disk vda of guest vm1: %s: %s." % (STALLS, words)] and words in str(failed)


def test_the_daemons_absence_is_no_stall(monkeypatch):
    """What was not looked at has not stood still: the copy goes on in QEMU meanwhile, and is judged by the next look."""
    timeline = Timeline(copying((0, 0, 100), (9, 90, 100)), events((25, "ready")), down=(5.5, 15))
    host, error = watched(monkeypatch, timeline)
    assert (host.notes, error) == ([], None)
