# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Locks on images against the real qemu-img and qemu-io: who is refused by whom, and for how long."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
import time

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Busy, CallFailed, Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import Process
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import image_locks
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.image_locks import Locks, in_use

WRITER, READER, ONLOOKER = (), ("-r",), ("-r", "-U")


@pytest.fixture(name="image")
def _image(tmp_path):
    path = str(tmp_path / "a.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    return path


@pytest.fixture(name="locks")
def _locks():
    found = Locks()
    yield found
    found.release()


@contextlib.contextmanager
def held_by_qemu(path, *options):
    """A QEMU program that has an image open, until the end of the block."""
    command = ["qemu-io", *options, "-f", "qcow2", path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 20
            while not any(line.startswith("lock:") for line in descriptors_of(process.pid)):
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.01)
            yield process
        finally:
            process.stdin.close()
            process.wait()


def descriptors_of(pid) -> list:
    found = []
    for number in os.listdir("/proc/%d/fdinfo" % pid):
        with contextlib.suppress(OSError), open("/proc/%d/fdinfo/%s" % (pid, number), encoding="ascii") as file:
            found += file.readlines()
    return found


def told(*command) -> tuple:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


LOOK, INFO = ("qemu-img", "info", "-U", "-f", "qcow2"), ("qemu-img", "info", "-f", "qcow2")
READ, CHANGE = ("qemu-io", "-r", "-f", "qcow2", "-c", "read 0 64k"), ("qemu-io", "-f", "qcow2", "-c", "write 0 64k")


@pytest.mark.parametrize(
    ("writes", "command", "refused"),
    [
        (True, LOOK, False),  # as the result is verified
        (True, INFO, True),
        (True, READ, True),
        (True, CHANGE, True),
        (False, LOOK, False),
        (False, INFO, False),
        (False, READ, False),
        (False, CHANGE, True),
    ],
)
def test_what_a_lock_keeps_qemu_from(image, locks, writes, command, refused):
    locks.take(image, writes)
    code, words = told(*command, image)
    assert ("lock" in words and code != 0) if refused else (code == 0)
    locks.release()
    assert told(*command, image)[0] == 0


@pytest.mark.parametrize(
    ("options", "writes", "refused"),
    [(WRITER, True, True), (WRITER, False, True), (READER, True, True), (READER, False, False), (ONLOOKER, True, True), (ONLOOKER, False, False)],
)
def test_what_an_open_image_keeps_us_from(image, locks, options, writes, refused):
    """Who reads and would let QEMU write is in the way of a writer as well: what it reads would not be one image any more."""
    with held_by_qemu(image, *options) as process:
        words = in_use(image, writes)
        if not refused:
            locks.take(image, writes)
            assert words is None
            return
        assert words == "the process %d, qemu-io, has locked it" % process.pid
        with pytest.raises(Busy) as caught:
            locks.take(image, writes)
        assert caught.value.code == "in_use" and image in str(caught.value) and words in str(caught.value)
        assert locks.descriptors == ()
    assert in_use(image, writes) is None
    locks.take(image, writes)


def test_the_guest_is_named(image, monkeypatch):
    with held_by_qemu(image) as process:
        monkeypatch.setattr(image_locks, "qemu_processes", lambda: (Process(1, "other", "u2"), Process(process.pid, "vm1", "u1")))
        assert in_use(image, True) == "the process %d, QEMU of guest vm1, has locked it" % process.pid


def test_who_only_looks_is_waited_for(image, locks):
    with held_by_qemu(image, *ONLOOKER) as process:
        timer = threading.Timer(0.4, process.stdin.close)
        timer.start()
        locks.take(image, True)
        timer.join()
    assert len(locks.descriptors) == 1


def test_a_failed_attempt_leaves_no_lock_and_disturbs_nobody(image, locks):
    """Not even for a moment: a running guest's own merge would fail in it."""
    with held_by_qemu(image, *READER) as process:
        stop, disturbed = threading.Event(), []

        def watch():
            while not stop.is_set():
                disturbed.append(any("lock:" in line for line in descriptors_of(os.getpid())))

        watcher = threading.Thread(target=watch)
        watcher.start()
        with pytest.raises(Busy):
            locks.take(image, True)
        stop.set()
        watcher.join()
        assert process.poll() is None
    assert disturbed and not any(disturbed)


def test_of_two_runs_at_once_one_has_it(image):
    """Each has asked before the other had taken anything."""
    start, held, refused = threading.Barrier(6), [], []

    def run():
        mine = Locks()
        start.wait()
        try:
            mine.take(image, True)
            held.append(mine)
        except Busy:
            refused.append(mine)

    threads = [threading.Thread(target=run) for dummy in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 5)
    held[0].release()


def test_one_image_by_two_names(image, locks, tmp_path):
    """It does not meet its own lock, and a lock for writing is kept when it is asked for reading."""
    link = str(tmp_path / "link")
    os.symlink(image, link)
    for path, writes, change in ((link, False, 1), (image, False, 1), (link, True, 0), (image, True, 0), (image, False, 0)):
        locks.take(path, writes)
        assert len(locks.descriptors) == 1 and in_use(image, True) is None
        assert (told(*READ, image)[0] == 0) == bool(change)


def test_a_child_keeps_the_locks(image):
    """As qemu-img does after this process was killed."""
    mine, another = Locks(), Locks()
    mine.take(image, True)
    with subprocess.Popen(["sleep", "60"], pass_fds=mine.descriptors) as child:
        mine.release()
        assert in_use(image, True) == "the process %d, sleep, has locked it" % child.pid
        with pytest.raises(Busy, match="sleep"):
            another.take(image, True)
        assert told(*CHANGE, image)[0] != 0
        child.kill()
    another.take(image, True)
    another.release()


def test_this_process_is_no_obstacle_to_itself(image, locks):
    locks.take(image, True)
    assert in_use(image, True) is None and in_use(image, False) is None


@pytest.mark.parametrize(
    ("number", "error", "code", "words"),
    [
        (errno.ENOLCK, Unavailable, "no_lock", "its file system keeps no locks"),
        (errno.EINVAL, Unavailable, "no_lock", "its file system keeps no locks"),
        (errno.ENOTSUP, Unavailable, "no_lock", "its file system keeps no locks"),
        (errno.EAGAIN, Busy, "in_use", os.strerror(errno.EAGAIN)),
        (errno.EIO, CallFailed, "image_unreadable", os.strerror(errno.EIO)),
    ],
)
def test_a_file_system_that_keeps_no_locks(image, locks, monkeypatch, number, error, code, words):
    def refuse(*dummy):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(image_locks.fcntl, "fcntl", refuse)
    with pytest.raises(error) as caught:
        locks.take(image, False)
    assert caught.value.code == code and image in str(caught.value)
    assert in_use(image, False) == words and locks.descriptors == ()


@pytest.mark.parametrize(("number", "writes"), [(errno.EACCES, False), (errno.EACCES, True), (errno.EROFS, True)])
def test_what_this_user_may_not(image, locks, monkeypatch, number, writes):
    def refuse(*dummy):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(image_locks.os, "open", refuse)
    with pytest.raises(Unavailable) as caught:
        locks.take(image, writes)
    assert caught.value.code == "permission" and ("write to" in str(caught.value)) == writes
    assert in_use(image, writes) == "this user may not read it"


def test_an_image_on_read_only_storage(image, monkeypatch):
    monkeypatch.setattr(image_locks.os, "access", lambda path, mode, effective_ids: mode == os.R_OK)
    assert in_use(image, True) == "this user may not write to it" and in_use(image, False) is None


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "link"])
@pytest.mark.parametrize("writes", [True, False])
def test_what_is_no_image(tmp_path, locks, kind, writes):
    path = str(tmp_path / "x")
    {"missing": lambda: None, "directory": lambda: os.mkdir(path), "fifo": lambda: os.mkfifo(path), "link": lambda: os.symlink("/nowhere", path)}[kind]()
    with pytest.raises(CallFailed) as caught:
        locks.take(path, writes)
    assert caught.value.code in ("image_missing", "not_an_image") and path in str(caught.value)
    assert in_use(path, writes) is None
