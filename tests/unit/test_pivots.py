# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The pivot whose call brings no answer, on a timeline: what is done, what is said, and what is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, Layer, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Busy, CallFailed, JobFailed, Moved, PivotLost, Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import Process, QemuView
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain, Job, Mirror
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.plan import Step
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.pivots import PIVOT_TRIES
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.waits import RECONNECT_SECONDS
from ansible_collections.livestorage.libvirt.tests.unit.fake_connection import Timeline, host_on, with_disk

OLD, BASE, NEW = file_layer("/old", "qcow2", 3), file_layer("/base", "qcow2", 1), file_layer("/new", "qcow2", 9)
GONE = Unavailable("connection_lost", "The connection to libvirt broke.")
SILENT = Unavailable("no_answer", "QEMU gave no answer.")
NO, BUSY = CallFailed("libvirt_error", "No."), Busy("foreign_job", "Not ready for pivot yet.")
BEFORE = Domain("vm1", "u1", True, disks=(Disk("vda", Chain((OLD, BASE), True), alias="virtio-disk0"),))
PIVOTED = with_disk(BEFORE, chain=Chain((NEW,), True))
OFF = replace(BEFORE, active=False, state="shutdown", disks=(Disk("vda", Chain((replace(OLD, index=None),), None)),))
PROCESS = Process(4711, "vm1", "u1", (("/new", True),))
STEP = Step("pivot", "vda", {"to": NEW, "keep_note": True})


def mirrored(ready, job=True):
    return with_disk(BEFORE, job=Job("copy", 5, 5, ready=ready == "yes") if job else None, mirror=Mirror("copy", ready, Chain((NEW,), True)))


def view(node, file):
    return QemuView(devices=(("/machine/peripheral/virtio-disk0/virtio-backend", node, file),))


READY, STALE = mirrored("yes"), mirrored("pivot", job=False)
ON_OLD, ON_NEW = view("libvirt-3-format", "/old"), view("libvirt-9-format", "/new")


def lost(after, seen=None, errors=(GONE,)):
    """A timeline on which the pivot's call is answered by those errors, and the guest is as ``after`` from then on."""
    timeline = Timeline([(0, READY)])

    def pivot(handle, target):
        timeline.calls.append("pivot")
        timeline.states = after if isinstance(after, list) else [(0, after)]
        error = pending.pop(0) if pending else None
        if error is not None:
            raise error

    pending = list(errors)
    timeline.pivot = pivot
    timeline.answers["qemu_view"] = seen
    return timeline


def run(monkeypatch, timeline, step=STEP, **facts):
    """(the host, the error or None) of a pivot on that timeline."""
    host = host_on(monkeypatch, timeline, **facts)
    host._started.add("vda")
    host._copied.add("vda")
    try:
        host.do(step)
    except (Unavailable, CallFailed, Busy, JobFailed) as error:
        return host, error
    return host, None


@pytest.mark.parametrize("error", [GONE, SILENT])
def test_it_happened_and_nobody_said_so(monkeypatch, error):
    timeline = lost(PIVOTED, errors=[error])
    host, found = run(monkeypatch, timeline)
    assert found is None and timeline.calls.count("pivot") == 1 and "define_image" not in str(timeline.calls)
    assert ("reopen" in timeline.calls) == (error is GONE)
    assert host._started == host._copied == set()


@pytest.mark.parametrize("keep", [True, False])
def test_the_note_stays_where_later_steps_need_it(monkeypatch, keep):
    timeline = lost(PIVOTED)
    run(monkeypatch, timeline, Step("pivot", "vda", {"to": NEW, "keep_note": keep}))
    assert ("clear_record" in timeline.calls) == (not keep)


@pytest.mark.parametrize(("errors", "tries", "code"), [([GONE], 2, None), ([GONE, GONE], 3, None), ([GONE] * 3, 3, "connection_lost"), ([GONE, NO], 3, None)])
def test_a_job_that_is_still_there_is_pivoted_again(monkeypatch, errors, tries, code):
    timeline = lost(READY, errors=errors)
    host, found = run(monkeypatch, timeline)
    assert (found and found.code) == code and timeline.calls.count("pivot") == tries
    assert ("vda" in host._started) == (code is not None)  # what is still there may be ended


def test_it_did_not_happen(monkeypatch):
    """QEMU says that it is on the old image: the error is the call's, and what was started may be undone."""
    host, found = run(monkeypatch, lost(BEFORE, ON_OLD))
    assert found is GONE and not found.keep and found.stands is None and host._started == {"vda"}


NOT_KNOWN = "whether QEMU writes to /new or to the old image is not known"


@pytest.mark.parametrize(
    ("after", "seen", "facts", "code", "says", "stands"),
    [
        (STALE, ON_NEW, {}, "stale_pivot", "QEMU writes to /new, and libvirt has the old image", "QEMU writes to /new, which libvirt does not know"),
        (BEFORE, ON_NEW, {}, "stale_pivot", "The next start has /new now", "QEMU writes to /new, which libvirt does not know"),
        (
            OFF,
            None,
            {"processes": [PROCESS], "monitor": ON_NEW},
            "stale_pivot",
            "process 4711 with SIGTERM",
            "QEMU writes to /new, which libvirt does not know",
        ),
        (OFF, None, {"processes": [PROCESS], "monitor": ON_OLD}, "pivot_lost", "do not restart the guest", NOT_KNOWN),
        (OFF, None, {"processes": [PROCESS]}, "pivot_lost", "do not restart the guest", NOT_KNOWN),
        (OFF, None, {}, "guest_stopped", "compare both before it is started", NOT_KNOWN),
        (OFF, None, {"processes": [replace(PROCESS, uuid="another")], "monitor": ON_NEW}, "guest_stopped", "compare both", NOT_KNOWN),
        (None, None, {}, "guest_stopped", "compare both", NOT_KNOWN),
        (None, None, {"processes": [PROCESS], "monitor": ON_NEW}, "pivot_lost", "do not restart the guest", NOT_KNOWN),
        (STALE, QemuView(), {}, "pivot_lost", "do not restart the guest", NOT_KNOWN),
        (BEFORE, view("libvirt-7-format", "/strange"), {}, "pivot_lost", "do not restart the guest", NOT_KNOWN),
    ],
)
def test_lost(monkeypatch, after, seen, facts, code, says, stands):
    """Nothing is undone and no note goes; only where QEMU is on the new image, the next start is given that."""
    timeline = lost(after, seen)
    host, found = run(monkeypatch, timeline, **facts)
    assert isinstance(found, PivotLost) and (found.code, found.keep, found.stands) == (code, True, stands)
    assert says in str(found) and "/new" in str(found) and "vda" in str(found) and str(found).endswith(".")
    assert (("define_image", "vda", NEW) in timeline.calls) == (code == "stale_pivot")
    assert not {"abort", "clear_record"} & {call for call in timeline.calls if isinstance(call, str)} and timeline.calls.count("pivot") == 1
    assert host._started == {"vda"}


@pytest.mark.parametrize("error", [NO, GONE, Moved("disk_gone", "The guest vm1 has no disk vda in its definition any more.")])
def test_a_next_start_that_cannot_be_made_safe_is_told(monkeypatch, error):
    timeline = lost(STALE, ON_NEW)
    timeline.refusals["define_image"] = [error]
    found = run(monkeypatch, timeline)[1]
    assert found.code == "stale_pivot" and "The next start would have the old image" in str(found) and "define /new before the guest is stopped" in str(found)


def test_a_daemon_that_does_not_come_back(monkeypatch):
    timeline = lost(STALE, ON_NEW)
    timeline.down = (0, 1000)
    monkeypatch.setattr(timeline, "read", lambda *arguments: READY)
    found = run(monkeypatch, timeline)[1]
    assert (found.code, found.stands) == ("pivot_lost", NOT_KNOWN) and "did not come back" in str(found)
    assert timeline.now == pytest.approx(RECONNECT_SECONDS) and ("define_image", "vda", NEW) not in timeline.calls


@pytest.mark.parametrize("trouble", [NO, SILENT])
@pytest.mark.parametrize("where", ["read", "qemu_view"])
def test_a_guest_that_cannot_be_looked_at(monkeypatch, trouble, where):
    timeline = lost(trouble if where == "read" else STALE, ON_NEW)
    timeline.refusals["qemu_view"] = [trouble] if where == "qemu_view" else []
    found = run(monkeypatch, timeline)[1]
    assert (found.code, found.keep, found.stands) == ("pivot_lost", True, NOT_KNOWN) and "cannot be looked at (%s)" % trouble in str(found)
    assert ("define_image", "vda", NEW) not in timeline.calls


def test_a_refusal_after_a_lost_call_is_no_answer_to_it(monkeypatch):
    """The lost call did it between the look and the second try, which found no job any more."""
    timeline = lost([(0, READY), (0.4, STALE)], ON_NEW, errors=[GONE, NO])
    found = run(monkeypatch, timeline)[1]
    assert isinstance(found, PivotLost) and found.code == "stale_pivot" and ("define_image", "vda", NEW) in timeline.calls


@pytest.mark.parametrize(
    ("states", "seen", "code", "ends"),
    [
        # QEMU finishes what is in flight: the mirror says pivot, and its job is there.
        ([(0, mirrored("pivot")), (7, PIVOTED)], None, None, 7),
        ([(0, mirrored("pivot")), (7, STALE)], ON_NEW, "stale_pivot", 7),
        ([(0, mirrored("pivot")), (7, BEFORE)], ON_OLD, "connection_lost", 7),
        ([(0, mirrored("pivot"))], ON_OLD, "pivot_lost", RECONNECT_SECONDS),
    ],
)
def test_a_pivot_that_is_going_on_is_waited_for(monkeypatch, states, seen, code, ends):
    timeline = lost(states, seen)
    found = run(monkeypatch, timeline)[1]
    assert (found and found.code) == code and timeline.now == pytest.approx(ends, abs=0.5) and timeline.calls.count("pivot") == 1


def test_a_permission_is_no_loss(monkeypatch):
    denied = Unavailable("permission", "No.")
    timeline = lost(READY, errors=[denied] * 3)
    assert run(monkeypatch, timeline)[1] is denied and timeline.calls == ["pivot"]


@pytest.mark.parametrize("error", [NO, BUSY])
@pytest.mark.parametrize(
    ("ready", "refused", "tries", "fails"),
    [("yes", 1, 2, False), ("yes", PIVOT_TRIES - 1, PIVOT_TRIES, False), ("yes", 99, PIVOT_TRIES, True), (None, 99, 1, True), ("abort", 99, 1, True)],
)
def test_a_refused_pivot(monkeypatch, error, ready, refused, tries, fails):
    """Busy is what libvirt calls a job that is not ready. Nobody has to be asked: the call has had its answer."""
    timeline = lost(mirrored(ready), errors=[error] * refused)
    found = run(monkeypatch, timeline)[1]
    assert (found is error) == fails and timeline.calls == ["pivot"] * tries


# The destination, just before


@pytest.mark.parametrize(
    ("holds", "guards", "local", "layer", "refused"),
    [
        (False, True, True, NEW, True),
        (True, True, True, NEW, False),
        (None, True, True, NEW, False),  # it cannot be seen
        (False, False, True, NEW, False),
        (False, True, False, NEW, False),
        (False, True, True, Layer("network", (("name", "x"), ("protocol", "nbd")), "raw"), False),
    ],
)
def test_a_destination_that_was_removed_or_replaced(monkeypatch, holds, guards, local, layer, refused):
    timeline = Timeline([(0, READY)])
    timeline.local = local
    host, found = run(monkeypatch, timeline, Step("pivot", "vda", {"to": layer, "guards": guards}), holds=holds)
    assert (found is not None) == refused and ("pivot" in timeline.calls) == (not refused)
    if refused:
        assert isinstance(found, JobFailed) and found.code == "dest_lost" and not found.keep and "/new" in str(found) and host._started == {"vda"}


def test_a_destination_that_goes_between_two_tries(monkeypatch):
    timeline = lost(READY, errors=[NO, NO])
    looks = [True, False]
    host = host_on(monkeypatch, timeline)
    monkeypatch.setattr("ansible_collections.livestorage.libvirt.plugins.module_utils._edge.pivots.holds_path", lambda uuid, path: looks.pop(0))
    with pytest.raises(JobFailed):
        host.do(Step("pivot", "vda", {"to": NEW, "guards": True}))
    assert timeline.calls == ["pivot"]
