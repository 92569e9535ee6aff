# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps of checkpoints and backups on a libvirt that is only a timeline, libvirt's XML of both, and what is said after a run."""

from __future__ import annotations

import os
import types
from dataclasses import replace

import pytest
from lxml import etree

from ansible_collections.livestorage.libvirt.plugins.module_utils._core import backup_xml as xml
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.backup_checks import kept_lines, left_over, unmet
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.backups import Backup, Checkpoint, Ended, Kept, Part, Point, same_backup
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, Layer, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import CallFailed, JobFailed, Moved, TimedOut, VerifyFailed
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import File, Image
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain, Job, Observed, Record
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.plan import Plan, Step
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import backups as edge
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import libvirt_host
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.patience import Patience
from ansible_collections.livestorage.libvirt.tests.unit.fake_connection import Timeline, host_on
from ansible_collections.livestorage.libvirt.tests.unit.fake_libvirt import LibvirtError
from ansible_collections.livestorage.libvirt.tests.unit.support import SCHEMAS

RUNNING = Job("backup", 1, 4)
A, B = Disk("vda", Chain((file_layer("/a", "qcow2", 3),), True)), Disk("vdb", Chain((file_layer("/b", "qcow2", 4),), True))
IDLE = Domain("vm1", "u1", True, disks=(A, B))
BUSY = replace(IDLE, disks=(A, replace(B, job=RUNNING)))
OFF = replace(IDLE, active=False, state="shutdown")
PUSH = Backup("push", (Part("vda", file_layer("/t/a", "qcow2"), "monday"), Part("vdb", Layer("block", (("dev", "/dev/x"),), "raw"))))
PULL = Backup("pull", (Part("vda", file_layer("/t/s", "qcow2"), "monday", "vda", "backup-vda"),), (("socket", "/run/s"), ("transport", "unix")))
NO = CallFailed("libvirt_error", "libvirt could not do it.")
TOLD = ("begin_backup", "create_checkpoint", "delete_checkpoint")


class Backups(Timeline):
    """``runs``: the seconds between which a backup runs; ``last``: how it ended; ``names`` the checkpoints."""

    def __init__(self, *arguments, runs=(0, 0), last=None, names=(), **more):
        super().__init__(*arguments, **more)
        self.runs, self.last, self.names, self.told = runs, last, list(names), []

    def backup(self, handle):
        self.read(handle, False)  # it is not there to be asked, either
        return PUSH if self.runs[0] <= self.now < self.runs[1] else None

    def last_backup(self, handle):
        return self.last

    def points(self, handle, dirty):
        return [Checkpoint(name) for name in self.names]

    def abort_backup(self, handle):
        self.calls.append("abort_backup")
        self.runs = (0, 0)
        self.states = [(0, IDLE)]

    def __getattr__(self, name):
        if name not in TOLD:
            return super().__getattr__(name)

        def call(handle, *arguments):
            self.told.append((name, *arguments))
            refusal = self.refusals[name].pop(0) if self.refusals.get(name) else None
            if refusal is not None:
                raise refusal
            if name == "delete_checkpoint":
                self.names.remove(arguments[0])
            if name == "begin_backup":
                self.runs = (0, 5)
                self.names += ["tuesday"]

        return call


def begin(path="/t/a", **more):
    records = tuple(Record(disk, "backup", place, index) for disk, place, index in (("vda", path, "3"), ("vdb", "/dev/x", "4")))
    creation = {"name": "tuesday", "targets": ("vda", "vdb"), "others": (), "description": None}
    detail = {"backup": PUSH, "others": ("hdc",), "creation": creation, "records": records, "guest": "vm1", "creates": (path,), "checkpoint": "tuesday"}
    return Step("begin", None, dict(detail, **more))


def wait(path="/t/a", **more):
    detail = {"timeout": 60, "poll_interval": 1, "on_timeout": "leave", "job": "backup", "until": "completed", "targets": ("vda", "vdb")}
    return Step("await", None, dict(detail, creates=(path,), checkpoint="tuesday", **more))


def test_a_backup_is_noted_and_begun(monkeypatch):
    timeline = Backups([(0, IDLE)])
    host_on(monkeypatch, timeline).do(begin())
    assert timeline.calls == ["forget", "write_record", "write_record"]  # what was heard of an earlier job is forgotten
    name, sent, point = timeline.told[0]
    assert name == "begin_backup" and xml.parse_backup(sent) == PUSH and "name=\"hdc\" backup=\"no\"" in sent
    assert xml.parse_points(point).targets == ("vda", "vdb")


def test_the_notes_go_where_libvirt_refuses(monkeypatch):
    timeline = Backups([(0, IDLE)])
    timeline.refusals["begin_backup"] = [NO]
    host = host_on(monkeypatch, timeline)
    with pytest.raises(CallFailed):
        host.do(begin())
    assert [call for call in timeline.calls if call in ("write_record", "clear_record")] == ["write_record"] * 2 + ["clear_record"] * 2
    host.undo(begin())  # nothing was begun: what is there is somebody else's
    assert "abort_backup" not in timeline.calls and [name for name, *dummy in timeline.told] == ["begin_backup"]


def test_a_chain_that_has_changed_is_not_backed_up(monkeypatch):
    timeline = Backups([(0, replace(IDLE, disks=(A,)))])
    with pytest.raises(Moved):
        host_on(monkeypatch, timeline).do(begin())
    assert timeline.told == []


def test_an_undo_ends_it_and_leaves_nothing(monkeypatch, tmp_path):
    path = str(tmp_path / "a")
    timeline = Backups([(0, IDLE)])
    host = host_on(monkeypatch, timeline)
    host.do(begin(path))
    (tmp_path / "a").write_text("x")
    host._owned.clear()
    host.undo(begin(path))
    assert "abort_backup" in timeline.calls and timeline.calls.count("clear_record") == 2
    assert timeline.told[1:] == [("delete_checkpoint", "tuesday", False)] and not os.path.exists(path)


def test_a_file_that_came_instead_is_left_alone(monkeypatch, tmp_path):
    (tmp_path / "a").write_text("ours")
    path = str(tmp_path / "a")
    host = host_on(monkeypatch, Backups([(0, IDLE)]))
    host.do(begin(path))
    (tmp_path / "other").write_text("not ours")
    os.replace(tmp_path / "other", path)
    with pytest.raises(Moved) as caught:
        host.undo(begin(path))
    assert caught.value.code == "file_changed" and (tmp_path / "a").read_text() == "not ours"


def test_the_end_is_libvirts_word(monkeypatch):
    timeline = Backups([(0, BUSY), (3, IDLE)], runs=(0, 4), last=Ended(True, 77))
    host = host_on(monkeypatch, timeline)
    host.do(wait())
    assert 4 <= timeline.now < 6 and host._ended.total == 77  # not when the jobs are gone, but when libvirt is done with it


@pytest.mark.parametrize(
    ("timeline", "code", "says", "second"),
    [
        (Backups([(0, BUSY), (3, IDLE)], runs=(0, 3), last=Ended(False, 0, "No space left on device")), "job_failed", "No space left on device", 3),
        (Backups([(0, BUSY), (3, IDLE)], runs=(0, 3), last=Ended(False)), "job_failed", "as with full or broken storage", 3),
        (Backups([(0, BUSY), (2, OFF)], runs=(0, 9)), "guest_stopped", "because the guest stopped", 2),
        (Backups([(0, BUSY), (2, None)], runs=(0, 9)), "guest_stopped", "because the guest stopped", 2),
    ],
    ids=["no-space", "no-reason", "off", "gone"],
)
def test_a_failure_is_told(monkeypatch, timeline, code, says, second):
    host = host_on(monkeypatch, timeline)
    with pytest.raises(JobFailed) as caught:
        host.do(wait())
    assert caught.value.code == code and says in str(caught.value) and "disk vda, vdb of guest vm1" in str(caught.value)
    assert second <= timeline.now <= second + 1 and not caught.value.keep


def test_a_daemon_that_comes_back_is_asked_again(monkeypatch):
    timeline = Backups([(0, BUSY), (30, IDLE)], runs=(0, 30), last=Ended(True, 5), down=(2, 20))
    host_on(monkeypatch, timeline).do(wait())
    assert "reopen" in timeline.calls and timeline.now >= 30


@pytest.mark.parametrize(("on_timeout", "keep"), [("leave", True), ("abort", False)])
def test_the_time_is_over(monkeypatch, on_timeout, keep):
    timeline = Backups([(0, BUSY)], runs=(0, 1000))
    with pytest.raises(TimedOut) as caught:
        host_on(monkeypatch, timeline).do(wait(timeout=10, on_timeout=on_timeout))
    assert caught.value.keep is keep and "disk vdb of guest vm1" in str(caught.value)  # vda is done
    assert ("abort_backup" in timeline.calls) is not keep and caught.value.facts["last_job"] == RUNNING


def test_what_an_earlier_phase_created_goes_only_when_its_backup_is_over(monkeypatch, tmp_path):
    (tmp_path / "a").write_text("x")
    path = str(tmp_path / "a")
    timeline = Backups([(0, BUSY)], runs=(0, 10), names=["tuesday"])
    host = host_on(monkeypatch, timeline)
    host.undo(wait(path))
    assert os.path.exists(path) and timeline.names == ["tuesday"]
    timeline.now = 11
    host.undo(wait(path))
    assert not os.path.exists(path) and timeline.names == [] and timeline.calls.count("clear_record") == 2


@pytest.mark.parametrize(
    ("refusal", "code"),
    [(CallFailed("libvirt_error", "bitmap 'c' not found in backing chain of 'vda'."), "bitmap_missing"), (NO, "libvirt_error")],
    ids=["no-bitmap", "another-reason"],
)
def test_a_checkpoint_that_cannot_be_deleted(monkeypatch, refusal, code):
    timeline = Backups([(0, IDLE)], names=["c"])
    timeline.refusals["delete_checkpoint"] = [refusal]
    with pytest.raises(CallFailed) as caught:
        host_on(monkeypatch, timeline).do(Step("uncheck", None, {"name": "c", "metadata_only": False, "guest": "vm1"}))
    assert caught.value.code == code


def test_a_checkpoint_of_this_run_is_taken_back(monkeypatch):
    step = Step("checkpoint", None, {"name": "c", "targets": ("vda",), "others": ("vdb",), "description": "d"})
    timeline = Backups([(0, IDLE)])
    host = host_on(monkeypatch, timeline)
    timeline.refusals["create_checkpoint"] = [NO]
    with pytest.raises(CallFailed):
        host.do(step)
    host.undo(step)
    assert [name for name, *dummy in timeline.told] == ["create_checkpoint"]
    host.do(step)
    timeline.names.append("c")
    host.undo(step)
    assert timeline.told[-1] == ("delete_checkpoint", "c", False)


GOOD = Image("/t/a", "qcow2", 64, 10, "/t/0", "/t/0", "qcow2")


@pytest.mark.parametrize(
    ("image", "asked", "says"),
    [
        (GOOD, ("file", "qcow2", 64, "/t/0"), None),
        (Image("/t/a", "raw", 96, 10), ("block", "raw", 64, None), None),
        (None, ("file", "qcow2", 64, None), "cannot be read as qcow2"),
        (replace(GOOD, virtual_size=63), ("file", "qcow2", 64, "/t/0"), "has 63 bytes, and the disk has 64"),
        (Image("/t/a", "raw", 63, 10), ("block", "raw", 64, None), "has 63 bytes"),
        (replace(GOOD, backing="/srv/live", backing_path="/srv/live"), ("file", "qcow2", 64, "/t/0"), "stands on /srv/live"),
        (GOOD, ("file", "qcow2", 64, None), "stands on /t/0"),
    ],
    ids=["whole", "larger-device", "no-image", "shorter", "shorter-device", "on-the-image-of-the-guest", "on-something"],
)
def test_a_target_is_looked_at(monkeypatch, image, asked, says):
    monkeypatch.setattr(edge, "read_image", lambda path, format_: image)
    host = host_on(monkeypatch, Backups([(0, IDLE)]))
    told = {"bytes": 3, "disks": [{"disk": "vda", "path": "/t/a", "virtual_size": None}]}
    step = Step("inspect", None, {"images": (("vda", "/t/a", *asked),), "backup": told})
    if says is None:
        host.do(step)
        assert host.facts["backup"]["bytes"] == 3 and host.facts["backup"]["disks"][0]["virtual_size"] == image.virtual_size
        return
    with pytest.raises(VerifyFailed) as caught:
        host.do(step)
    assert says in str(caught.value) and "disk vda" in str(caught.value)


@pytest.mark.parametrize(("backing", "words"), [(None, ["-b", ""]), ("/t/0", ["-b", "/t/0", "-F", "qcow2"])])
def test_a_header_is_put_right(monkeypatch, backing, words):
    commands = []
    monkeypatch.setattr(edge, "require_tool", lambda path: None)
    monkeypatch.setattr(edge, "failure", lambda command, seconds: commands.append(command) or ("it is broken" if len(commands) > 1 else None))
    host = host_on(monkeypatch, Backups([(0, IDLE)]))
    step = Step("back", "vda", {"path": "/t/a", "format": "qcow2", "backing": backing, "backing_format": backing and "qcow2"})
    host.do(step)
    assert commands[0] == ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", *words, "--", "/t/a"]
    with pytest.raises(CallFailed) as caught:
        host.do(step)
    assert caught.value.code == "not_rebased" and "it is broken" in str(caught.value)


# XML


@pytest.mark.parametrize("backup", [PUSH, PULL, replace(PULL, server=(("name", "127.0.0.1"), ("port", "10809"), ("transport", "tcp")))])
def test_what_is_sent_is_what_libvirt_understands_and_what_it_would_tell(backup):
    text = xml.backup_xml(backup, ["hdc"])
    assert xml.parse_backup(text) == backup and same_backup(backup, xml.parse_backup(text))
    etree.RelaxNG(etree.parse(str(SCHEMAS / "domainbackup.rng"))).assertValid(etree.fromstring(text))


@pytest.mark.parametrize(
    "other",
    [
        PULL,
        replace(PUSH, parts=PUSH.parts[:1]),
        replace(PUSH, parts=(replace(PUSH.parts[0], since=None), PUSH.parts[1])),
        replace(PUSH, parts=(replace(PUSH.parts[0], place=file_layer("/t/b", "qcow2")), PUSH.parts[1])),
        replace(PUSH, parts=(replace(PUSH.parts[0], place=file_layer("/t/a", "raw")), PUSH.parts[1])),
    ],
    ids=["mode", "disks", "since", "place", "format"],
)
def test_another_backup_is_not_the_same(other):
    assert not same_backup(PUSH, other) and not same_backup(other, PUSH)
    assert same_backup(PUSH, replace(PUSH, parts=PUSH.parts[::-1]))


def test_a_checkpoint_is_what_libvirt_understands():
    text = xml.checkpoint_xml("monday", ["vda"], ["vdb"], "before <that>")
    etree.RelaxNG(etree.parse(str(SCHEMAS / "domaincheckpoint.rng"))).assertValid(etree.fromstring(text))
    found = xml.parse_points(text)
    assert (found.name, found.targets, found.description, found.parent, found.created) == ("monday", ("vda",), "before <that>", None, None)


def test_a_bitmap_without_a_size_is_broken_if_it_was_asked_for():
    disks = "<disk name='vda' checkpoint='bitmap' bitmap='b' size='0'/><disk name='vdb' checkpoint='bitmap' bitmap='b'/><disk name='vdc' checkpoint='no'/>"
    text = "<domaincheckpoint><name>b</name><parent><name>a</name></parent><creationTime>7</creationTime><disks>%s</disks></domaincheckpoint>" % disks
    one, two = xml.parse_points(text, True), xml.parse_points(text)
    assert one.points == (Point("vda", "b"), Point("vdb", "b")) and [point.size for point in one.points] == [0, None]
    assert [one.condition(target, ["vda", "vdb"]) for target in ("vda", "vdb", "vdc")] == ["valid", "broken", "detached"]
    assert [two.condition(target, ["vda"]) for target in ("vda", "vdb")] == ["unknown", "detached"] and (one.parent, one.created) == ("a", 7)


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        ({"operation": 9, "type": 3, "success": True, "disk_total": 7}, Ended(True, 7)),
        ({"operation": 9, "type": 4, "success": False, "errmsg": "No."}, Ended(False, 0, "No.")),
        ({"operation": 9, "type": 5, "success": False}, Ended(False)),
        ({"operation": 9, "type": 5, "success": True}, Ended(False)),
        ({"operation": 4, "type": 3, "success": True}, None),
        ({"type": 0}, None),
    ],
    ids=["completed", "failed", "canceled", "canceled-whatever-it-says", "another-job", "forgotten"],
)
def test_how_a_backup_ended(stats, expected):
    assert xml.parse_ended(stats) == expected


# After a run

MADE, GONE = wait(), Step("uncheck", None, {"name": "monday", "metadata_only": False, "guest": "vm1"})


def seen(*names, files=(), running=None):
    kept = Kept(tuple(Checkpoint(name) for name in names), running)
    return Observed((IDLE,), kept={"u1": kept}, files={path: File(path, True) for path in files})


@pytest.mark.parametrize(
    ("steps", "now", "expected"),
    [
        ((begin(), MADE), seen("tuesday"), []),
        ((begin(), MADE), seen(), ["there is no checkpoint tuesday"]),
        ((GONE,), seen("tuesday"), []),
        ((GONE,), seen("monday"), ["the checkpoint monday is still there"]),
        ((Step("uncheck", None, {"name": "tuesday"}), begin()), seen("tuesday"), []),
        ((begin(backup=PULL, checkpoint=None),), seen(running=PULL), []),
        ((begin(backup=PULL, checkpoint=None),), seen(), ["the backup of guest vm1 does not run"]),
    ],
    ids=["made", "not-made", "gone", "not-gone", "anew", "served", "not-served"],
)
def test_what_is_not_as_planned(steps, now, expected):
    assert unmet(Plan((IDLE,), (IDLE,), steps), now) == expected


@pytest.mark.parametrize(
    ("begun", "now", "expected"),
    [
        ((begin(), MADE), seen(), []),
        ((begin(), MADE), seen("tuesday", files=["/t/a"]), ["the checkpoint tuesday, which was created with it, is still there", "/t/a is there"]),
        ((GONE,), seen(), ["the checkpoint monday was deleted"]),
        ((GONE,), seen("monday"), []),
        ((), seen("tuesday", files=["/t/a"]), []),
    ],
    ids=["nothing", "all", "deleted", "not-deleted", "not-begun"],
)
def test_what_is_left_of_a_failure(begun, now, expected):
    assert left_over(Plan((IDLE,), (IDLE,), (begin(), MADE)), begun, now) == expected


def test_the_lines_of_a_diff():
    assert kept_lines(seen("monday", running=PULL)).splitlines() == [
        "guest vm1, checkpoint monday",
        "guest vm1, pull since monday: vda with the scratch file /t/s",
    ]


# Calls into libvirt


class Guest:
    """A handle that answers each call with what a test says, or raises it."""

    def __init__(self, **answers):
        self.answers, self.calls = answers, []

    def name(self):
        return "vm1"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append((name, *arguments))
            answer = self.answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


NUMBERS: dict = {}


class Words:
    """The constants that these calls need: each is a number of its own."""

    libvirtError = LibvirtError

    def __getattr__(self, name):
        return NUMBERS.setdefault(name, 1 << len(NUMBERS))


@pytest.fixture(name="connection")
def _connection(monkeypatch):
    monkeypatch.setattr(libvirt_host, "libvirt", Words())
    found = object.__new__(libvirt_host.Connection)
    found._patience, found.uri = Patience((LibvirtError,)), "qemu:///system"
    found._libvirt = types.SimpleNamespace(isAlive=lambda: True)
    return found


def number(name: str) -> int:
    return getattr(Words(), name)


@pytest.mark.parametrize("word", ["VIR_ERR_NO_DOMAIN_BACKUP", "VIR_ERR_OPERATION_INVALID", "VIR_ERR_NO_DOMAIN", "VIR_ERR_NO_SUPPORT"])
def test_no_backup_runs(connection, word):
    assert connection.backup(Guest(backupGetXMLDesc=LibvirtError(number(word)))) is None


def test_a_backup_that_runs_and_one_that_cannot_be_read(connection):
    assert connection.backup(Guest(backupGetXMLDesc=xml.backup_xml(PULL, []))) == PULL
    with pytest.raises(CallFailed):
        connection.backup(Guest(backupGetXMLDesc=LibvirtError(number("VIR_ERR_OTHER"))))


def test_the_last_backup_is_asked_for_without_taking_it_away(connection):
    handle = Guest(jobStats={"operation": 9, "type": 3, "success": True, "disk_total": 5})
    assert connection.last_backup(handle) == Ended(True, 5)
    assert handle.calls == [("jobStats", number("VIR_DOMAIN_JOB_STATS_COMPLETED") | number("VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED"))]
    assert connection.last_backup(Guest(jobStats=LibvirtError(number("VIR_ERR_OPERATION_INVALID")))) is None
    with pytest.raises(CallFailed):
        connection.last_backup(Guest(jobStats=LibvirtError(number("VIR_ERR_OTHER"))))


@pytest.mark.parametrize("dirty", [False, True])
def test_the_sizes_of_checkpoints_are_only_asked_for_where_they_are_wanted(connection, dirty):
    point = Guest(getXMLDesc="<domaincheckpoint><name>a</name><disks><disk name='vda' checkpoint='bitmap' bitmap='a'/></disks></domaincheckpoint>")
    handle = Guest(listAllCheckpoints=[point])
    assert [(one.name, one.sized) for one in connection.points(handle, dirty)] == [("a", dirty)]
    sized = number("VIR_DOMAIN_CHECKPOINT_XML_SIZE") if dirty else 0
    assert point.calls == [("getXMLDesc", number("VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN") | sized)]
    assert handle.calls == [("listAllCheckpoints", number("VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL"))]
    assert connection.points(Guest(listAllCheckpoints=LibvirtError(number("VIR_ERR_NO_SUPPORT"))), dirty) == []


@pytest.mark.parametrize(("metadata_only", "word"), [(False, None), (True, "VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY")])
def test_a_checkpoint_is_deleted(connection, metadata_only, word):
    point = Guest(delete=None)
    handle = Guest(checkpointLookupByName=point)
    connection.delete_checkpoint(handle, "a", metadata_only)
    assert handle.calls == [("checkpointLookupByName", "a")] and point.calls == [("delete", number(word) if word else 0)]


def test_a_checkpoint_that_is_gone_is_no_error_and_one_that_stays_is(connection):
    connection.delete_checkpoint(Guest(checkpointLookupByName=LibvirtError(number("VIR_ERR_NO_DOMAIN_CHECKPOINT"))), "a", False)
    with pytest.raises(CallFailed):
        connection.delete_checkpoint(Guest(checkpointLookupByName=Guest(delete=LibvirtError(number("VIR_ERR_OTHER")))), "a", False)
