# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps of a conversion on real files, with a libvirt that is only a record of calls: whatever fails, the guest runs again on its raw image."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import CallFailed, Moved, Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.notes import Conversion
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.plan import Step
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import conversions
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.host import Host
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.qemu_img import read_image
from ansible_collections.livestorage.libvirt.tests.unit.fake_connection import Handle, Timeline, host_on

MiB = 1 << 20
NO = CallFailed("libvirt_error", "No.")
ME = (os.getuid(), os.getgid())


class Libvirt(Timeline):
    """A guest that is saved and started. ``noted`` is the note in its definition, ``written`` what it was saved with."""

    def __init__(self, domain, noted=None):
        super().__init__([(0, domain)])
        self.noted, self.written, self.defined, self.kept, self.errors = noted, "old", "old", False, {}

    def _told(self, name, *more):
        self.calls.append((name, *more) if more else name)
        self.now += 1
        error = self.errors.pop(name, None)
        if error is not None:
            raise error

    def becomes(self, active):
        domain = self.states[-1][1]
        self.states = [(0, replace(domain, active=active, state="running" if active else "shutdown"))]

    def note_conversion(self, handle, target, note):
        self._told("note" if note is not None else "unnote")
        self.noted = note

    def save(self, handle, seconds):
        self._told("save")
        self.becomes(False)
        self.kept = True

    def saved(self, handle):
        return self.kept

    def drop_saved(self, handle):
        self._told("drop_saved")
        self.kept = False

    def start(self, handle, seconds):
        self._told("start", self.written if self.kept else self.defined)
        self.kept = False
        self.becomes(True)

    def resave(self, handle, chains):
        self._told("resave", str(chains["vda"].active))
        before, self.written = self.written, str(chains["vda"].active)
        return None if before == self.written else before

    def resave_again(self, handle, xml):
        self._told("resave_again", xml)
        self.written = xml

    def define_chains(self, handle, chains):
        self._told("define")
        before, self.defined = self.defined, str(chains["vda"].active)
        return before, self.defined

    def define_again(self, handle, before, after):
        self._told("define_again")
        self.defined = before


class Work:
    """A raw image in a directory, a guest on it, and the steps of its conversion."""

    def __init__(self, monkeypatch, folder: Path, active=True, noted=None):
        self.folder, self.raw, self.path = folder, str(folder / "a.raw"), str(folder / "a.raw.qcow2")
        with open(self.raw, "wb") as file:
            file.seek(MiB)
            file.write(b"x" * MiB)
        os.chmod(self.raw, 0o640)
        chain = Chain((file_layer(self.raw, "raw"),), True)
        domain = Domain("vm1", "u1", active, "running" if active else "shutdown", disks=(Disk("vda", chain),), config=(Disk("vda", chain),))
        self.libvirt = Libvirt(domain, noted)
        self.host = host_on(monkeypatch, self.libvirt)
        self.note = Conversion("vda", self.path, self.raw, "present", True)
        self.noted = noted

    def step(self, action, **more) -> Step:
        new = Chain((file_layer(self.path, "qcow2"),), None)
        detail = {
            "note": {"note": self.note, "before": self.noted},
            "metadata": {"path": self.path, "over": self.path + ".adopting", "size": 2 * MiB, "cluster_size": 65536, "mode_of": self.raw},
            "save": {"timeout": 60},
            "lock": {"write": (file_layer(self.raw, "raw"),), "read": ()},
            "adopt": {"path": self.path, "over": self.path + ".adopting", "raw": file_layer(self.raw, "raw"), "size": 2 * MiB, "cluster_size": 65536},
            "resave": {"chains": (("vda", new),)},
            "redefine": {"chains": (("vda", new),)},
        }.get(action, {})
        if action == "metadata":
            detail["creates"] = (self.path, self.path + ".adopting")
        if action == "adopt":
            detail.update(holes=True, compare=True, owner=None, timeout=60)
        return Step(action, None if action in ("resave", "redefine") else "vda", dict(detail, **more))

    def way(self, **of_adopt) -> list:
        names = ("note", "metadata", "save", "lock", "adopt", "resave", "redefine", "restart", "unnote")
        return [self.step(name, **of_adopt if name == "adopt" else {}) for name in names]

    def files(self) -> list:
        return sorted(os.listdir(self.folder))

    def run(self, steps) -> list:
        """As the pipeline does it: the error of the step that fails, and the complaints of the undos."""
        done, complaints = [], []
        try:
            for step in steps:
                done.append(step)
                self.host.do(step)
            return []
        except BaseException as error:
            for step in reversed(done):
                try:
                    self.host.undo(step)
                except Exception as trouble:
                    complaints.append(str(trouble))
            return [error, *complaints]


@pytest.fixture(name="work")
def _work(monkeypatch, tmp_path):
    found = Work(monkeypatch, tmp_path)
    yield found
    found.host.close()


def test_the_whole_way(work, monkeypatch):
    """The note comes first and goes last, the definition after what was saved, and QEMU finds the images free."""
    start, free = work.libvirt.start, []
    monkeypatch.setattr(work.libvirt, "start", lambda *arguments: free.append(work.host._locks.descriptors) or start(*arguments))
    before = Path(work.raw).read_bytes()
    assert work.run(work.way()) == []
    assert work.libvirt.calls == ["note", "save", ("resave", work.path), "define", ("start", work.path), "unnote"]
    assert free == [()] and Path(work.raw).read_bytes() == before and work.files() == ["a.raw", "a.raw.qcow2"]
    image = read_image(work.path, "qcow2")
    assert (image.data_path, image.data_raw, image.virtual_size) == (work.raw, True, 2 * MiB)
    assert os.stat(work.path).st_mode & 0o777 == 0o640
    assert work.host.facts == {"pause": 4.0}  # each call takes a second here
    assert work.libvirt.noted is None


FAILURES = ["metadata", "metadata-rights", "save", "lock", "adopt", "owner", "resave", "define", "start"]


@pytest.mark.parametrize("where", FAILURES)
@pytest.mark.parametrize("noted", [None, Conversion("vda", "/x", "/y", "absent")])
def test_a_step_that_fails(monkeypatch, tmp_path, where, noted):
    """All is as it was before, an older note included: the guest goes on from its memory, or was not stopped at all."""
    work = Work(monkeypatch, tmp_path, noted=noted)
    told = {"metadata": "create", "metadata-rights": "follow", "adopt": "differs"}
    if where in told:
        monkeypatch.setattr(conversions, told[where], lambda *dummy: "no luck")
    elif where == "lock":
        monkeypatch.setattr(work.host, "_do_lock", lambda *dummy: work.host._locks.take("/none", True))
    elif where == "owner":
        monkeypatch.setattr(conversions.os, "chown", refused)
    else:
        work.libvirt.errors[where] = NO
    steps = work.way(owner=(ME[0] + 1, ME[1])) if where == "owner" else work.way()
    before = Path(work.raw).read_bytes()
    error, *complaints = work.run(steps)
    assert isinstance(error, CallFailed) and complaints == []
    libvirt = work.libvirt
    assert libvirt.states[-1][1].active and (libvirt.written, libvirt.defined, libvirt.noted) == ("old", "old", noted)
    assert [call for call in libvirt.calls if call[0] == "start"][-1:] == ([] if where in ("metadata", "metadata-rights", "save") else [("start", "old")])
    assert work.files() == ["a.raw"] and Path(work.raw).read_bytes() == before
    assert ("pause" in work.host.facts) == (where not in ("metadata", "metadata-rights"))
    work.host.close()


def refused(path, user, group):
    if user != ME[0]:
        raise PermissionError(1, "Operation not permitted")


def test_an_error_names_the_files(work, monkeypatch):
    monkeypatch.setattr(conversions, "differs", lambda *dummy: "no luck")
    error = work.run(work.way())[0]
    assert error.code == "not_adopted" and str(error) == "%s could not be put over %s (no luck): that image was not written to." % (work.path, work.raw)


@pytest.mark.parametrize(("compare", "live", "asked"), [(True, False, "dkc"), (False, False, "dk"), (False, True, "")])
def test_what_is_proven(work, monkeypatch, compare, live, asked):
    """A guest that runs goes on writing: then nothing can be proven."""
    calls = []
    for name, letter in (("differs", "d"), ("checked", "k"), ("compared", "c")):
        monkeypatch.setattr(conversions, name, lambda *dummy, letter=letter: calls.append(letter))
    for step in (work.step("metadata"), work.step("adopt", compare=compare, live=live, holes=False)):
        work.host.do(step)
    assert "".join(calls) == asked


@pytest.mark.parametrize("proof", ["mark_holes", "stand_over", "checked", "compared"])
def test_each_proof_counts(work, monkeypatch, proof):
    monkeypatch.setattr(conversions, proof, lambda *dummy: "no luck")
    assert work.run([work.step("metadata"), work.step("adopt")])[0].code == "not_adopted"
    assert work.files() == ["a.raw"]


def test_holes_are_only_marked_where_that_is_asked(work, monkeypatch):
    monkeypatch.setattr(conversions, "mark_holes", lambda *dummy: "no luck")
    assert work.run([work.step("metadata"), work.step("adopt", holes=False)]) == []


@pytest.mark.parametrize(("error", "ended"), [(NO, False), (KeyboardInterrupt(), True), (Unavailable("no_answer", "Late."), True)])
def test_a_save_that_nobody_waits_for_any_more(work, error, ended):
    """It is ended before anything else is undone; one that libvirt refused needs no end."""
    work.libvirt.errors["save"] = error
    assert work.run(work.way()) == [error]
    assert ("abort_backup" in work.libvirt.calls) == ended and work.libvirt.noted is None and work.files() == ["a.raw"]


def test_an_interrupted_save_that_was_done_nevertheless(work, monkeypatch):
    """The guest is started from its memory."""
    save = work.libvirt.save

    def interrupted(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(work.libvirt, "save", interrupted)
    work.run(work.way())
    assert ("start", "old") in work.libvirt.calls and work.libvirt.states[-1][1].active


@pytest.mark.parametrize("kept", [True, False])
def test_a_guest_that_was_started_again_or_stopped_while_it_was_saved(work, monkeypatch, kept):
    save = work.libvirt.save

    def also(*arguments):
        save(*arguments)
        work.libvirt.becomes(kept)
        work.libvirt.kept = kept

    monkeypatch.setattr(work.libvirt, "save", also)
    error, *complaints = work.run(work.way())
    assert isinstance(error, Moved) and complaints == []
    assert not any(call[0] == "start" for call in work.libvirt.calls)  # what somebody shut down stays off


def test_what_a_daemon_left_that_died_while_it_saved(work, monkeypatch):
    """The guest runs on, and the part of its memory that was written goes."""

    def died(*arguments):
        work.libvirt.kept = True
        raise Unavailable("connection_lost", "Gone.")

    monkeypatch.setattr(work.libvirt, "save", died)
    error, *complaints = work.run(work.way())
    assert (error.code, complaints, work.libvirt.kept) == ("connection_lost", [], False)
    assert "drop_saved" in work.libvirt.calls and work.libvirt.noted is None


@pytest.mark.parametrize("ends", ["started", "ended", "neither"])
def test_a_start_that_was_cut_off(work, monkeypatch, ends):
    """It is over when the memory is not kept any more, or the guest is off; memory that is kept beside a guest that runs on would be its next start's."""
    work.libvirt.kept = True
    sleep = work.host._sleep

    def later(seconds):
        sleep(seconds)
        if ends == "started":
            work.libvirt.kept = False
        elif ends == "ended":
            work.libvirt.becomes(False)

    monkeypatch.setattr(work.host, "_sleep", later)
    assert work.host._connection is work.libvirt
    begun = work.libvirt.now
    work.host.settle()
    assert ("drop_saved" in work.libvirt.calls, work.libvirt.kept) == (ends == "neither", ends == "ended")
    assert (work.libvirt.now - begun >= conversions.SETTLE_SECONDS) == (ends == "neither")


def test_a_guest_that_is_gone_is_not_started(work):
    work.host.do(work.step("save"))
    work.libvirt.states = [(0, None)]
    work.host.undo(work.step("save"))
    assert work.libvirt.calls == ["save"]


def test_what_was_saved_is_put_back_only_where_it_was_changed_and_is_there(work):
    step = work.step("resave")
    work.host.undo(step)
    work.libvirt.kept = True
    work.libvirt.written = work.path
    work.host.do(step)  # it was so already
    work.host.undo(step)
    assert work.libvirt.calls == [("resave", work.path)]
    work.libvirt.written = "old"
    work.host.do(step)
    work.libvirt.kept = False
    work.host.undo(step)
    work.libvirt.kept = True
    for dummy in range(2):
        work.host.undo(step)
    assert work.libvirt.calls[2:] == [("resave_again", "old")]


def resumed(work) -> list:
    """Killed after what was saved got the layer: the second run begins with the raw image, and makes the layer anew."""
    work.libvirt.becomes(False)
    work.libvirt.kept, work.libvirt.written = True, work.path
    back = Chain((file_layer(work.raw, "raw"),), None)
    return [work.step("save", already=True), Step("resave", None, {"chains": (("vda", back),), "stays": True})] + [
        step for step in work.way() if step.action != "save"
    ]


def test_a_conversion_that_was_killed_is_resumed(work):
    assert work.run(resumed(work)) == []
    assert "save" not in work.libvirt.calls and ("start", work.path) in work.libvirt.calls and work.host.facts == {}


@pytest.mark.parametrize("where", ["create", "differs"])
def test_a_resumed_conversion_that_fails(work, monkeypatch, where):
    """The layer is gone: the guest has to start on its raw image, which is not what it was saved with at last."""
    monkeypatch.setattr(conversions, where, lambda *dummy: "no luck")
    assert len(work.run(resumed(work))) == 1
    assert work.libvirt.calls[-1] == ("start", work.raw)
    assert work.libvirt.states[-1][1].active and work.files() == ["a.raw"]


@pytest.fixture(name="owners")
def _owners(monkeypatch):
    """chown as a record: the tests need no rights."""
    given, stat = {}, os.stat

    def told(path, *arguments, **more):
        facts = list(stat(path, *arguments, **more))
        facts[4:6] = given.get(str(path), facts[4:6])
        return os.stat_result(facts)

    monkeypatch.setattr(conversions.os, "chown", lambda path, user, group: given.update({str(path): (user, group)}))
    monkeypatch.setattr(conversions.os, "stat", told)
    return given


def test_a_data_file_is_given_to_its_qemu_and_back(work, owners):
    adopt = work.step("adopt", owner=(64055, 108))
    work.host.do(work.step("metadata"))
    work.host.do(adopt)
    assert owners[work.raw] == (64055, 108)
    work.host.undo(adopt)  # the guest runs: it is libvirt's now
    assert owners[work.raw] == (64055, 108)
    work.libvirt.becomes(False)
    for dummy in range(2):
        work.host.undo(adopt)
    assert owners[work.raw] == ME


def test_an_owner_that_is_right_already_is_not_written(work, owners):
    work.host._give(work.raw, ME)
    assert owners == {} and work.host._owners == {}


def test_a_path_that_somebody_took_meanwhile(work):
    """Nothing is written over it, nor removed."""
    for path in (work.path + ".adopting", work.path):
        Path(path).write_text("theirs")
        error, *complaints = work.run([work.step("note"), work.step("metadata")])
        assert (type(error), error.code, complaints) == (Moved, "exists", []) and Path(path).read_text() == "theirs"
        assert work.files() == ["a.raw", os.path.basename(path)]
        os.unlink(path)


def test_a_layer_that_somebody_put_in_place_of_ours(work):
    step = work.step("metadata")
    work.host.do(step)
    os.rename(work.path, work.path + ".away")
    Path(work.path).write_text("theirs")
    with pytest.raises(Moved, match="is not the one that this run created"):
        work.host.undo(step)
    assert Path(work.path).read_text() == "theirs"


def test_a_layer_that_the_guest_uses_by_now_stays(work):
    step = work.step("metadata")
    work.host.do(step)
    domain = work.libvirt.states[-1][1]
    work.libvirt.states = [(0, replace(domain, disks=(Disk("vda", Chain((file_layer(work.path, "qcow2"),), True)),)))]
    with pytest.raises(CallFailed, match="in use by disk vda"):
        work.host.undo(step)
    assert "a.raw.qcow2" in work.files()


def test_a_proof(work):
    for step in (work.step("metadata"), work.step("adopt")):
        work.host.do(step)
    proof = Step("prove", "vda", {"path": work.path, "raw": file_layer(work.raw, "raw"), "size": 2 * MiB})
    work.host.do(proof)
    with open(work.raw, "r+b") as file:
        file.write(b"y")
    with pytest.raises(CallFailed) as caught:
        work.host.do(proof)
    assert caught.value.code == "differs"
    assert "it shows zeros at 0, where the raw image has data" in str(caught.value)


def of_image(tmp_path, **more) -> Step:
    """A copy of an image that belongs to no guest."""
    source, path, data = (str(tmp_path / name) for name in ("a", "b.qcow2", "b"))
    Path(source).write_bytes(b"x" * MiB)
    detail = {"path": path, "over": data, "creates": (path, data), "mode_of": source, "size": MiB, "cluster_size": 65536, "timeout": 60, "owner": None}
    return Step("convert", "vda", dict(detail, source=file_layer(source, "raw"), **more))


@pytest.mark.parametrize("fails", [True, False])
def test_an_image_of_no_guest_is_copied_without_libvirt(tmp_path, monkeypatch, fails):
    host = Host("qemu:///system", False)
    step = of_image(tmp_path)
    os.chmod(tmp_path / "a", 0o604)
    if fails:
        monkeypatch.setattr(conversions, "convert", lambda *dummy: "no luck")
        with pytest.raises(CallFailed, match=r"could not be copied to .* \(no luck\): nothing of the disk was changed"):
            host.do(step)
    else:
        host.do(step)
        assert [os.stat(tmp_path / name).st_mode & 0o777 for name in ("b", "b.qcow2")] == [0o604, 0o604]
        assert Path(tmp_path / "b").read_bytes() == b"x" * MiB
    for dummy in range(2):
        host.undo(step)
    assert host._opened is None and os.listdir(tmp_path) == ["a"]
    host.close()


def test_the_data_file_of_a_copy_is_given_to_its_qemu(work, tmp_path, owners):
    step = of_image(tmp_path, owner=(64055, 108))
    work.host.do(step)
    assert owners[str(tmp_path / "b")] == (64055, 108) and owners.get(str(tmp_path / "a")) is None


@pytest.mark.parametrize("same", [True, False])
def test_a_layer_is_dropped_only_if_it_is_the_one_that_was_seen(tmp_path, same):
    path = tmp_path / "a"
    path.write_text("layer")
    facts = os.stat(path)
    host = Host("qemu:///system", False)
    host.do(Step("drop", None, {"path": str(path), "device": facts.st_dev, "inode": facts.st_ino + (not same)}))
    assert path.exists() != same and host._opened is None
    host.close()


def test_the_handle_of_a_guest_is_asked_for_by_its_uuid(work):
    assert isinstance(work.host._handle(), Handle)
