# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""QEMU processes as /proc shows them, with real processes that only carry QEMU's arguments."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import processes
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.processes import qemu_processes

# The words after it are QEMU's, for whoever looks at the process.
HOLD = "cd %s; exec 3<ro 4<>rw 5>>wo 6<>/dev/null; echo ready; read line"


@pytest.fixture(name="start")
def _start(tmp_path):
    """Start a program of some name with further arguments; its pid."""
    started = []
    for name in ("ro", "rw", "wo"):
        (tmp_path / name).write_text("")

    def start(*arguments, program="qemu-system-x86_64"):
        path = shutil.copy(os.path.realpath(shutil.which("bash")), tmp_path / program)
        command = [path, "-c", HOLD % tmp_path, program, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"LC_ALL": "C"})
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process.pid

    yield start
    for process in started:
        process.communicate()


def found(pid):
    return next((one for one in qemu_processes() if one.pid == pid), None)


@pytest.mark.parametrize(
    ("name", "guest"),
    [
        ("guest=vm1,debug-threads=on", "vm1"),
        ("debug-threads=on,guest=vm1", "vm1"),
        ("guest=a,,b,debug-threads=on", "a,b"),
        ("guest=a,,", "a,"),
        ("vm1", "vm1"),
        ("vm1,process=x", "vm1"),
        ("guest=ä 雪", "ä 雪"),
        ("process=notguest=x,guest=vm1", "vm1"),
    ],
)
def test_the_name_of_a_guest(start, name, guest):
    one = found(start("-name", name, "-uuid", "u1"))
    assert (one.name, one.uuid) == (guest, "u1")


def test_the_files_that_it_holds(start, tmp_path):
    one = found(start("-uuid", "u1", "-S", "-name", "guest=vm1"))
    ours = {path: writes for path, writes in one.files if path.startswith(str(tmp_path))}
    assert ours == {str(tmp_path / "ro"): False, str(tmp_path / "rw"): True, str(tmp_path / "wo"): True}
    assert all(path.startswith("/") and path != "/dev/null" for path, dummy in one.files)
    assert one.writes(str(tmp_path / "rw")) and not one.writes(str(tmp_path / "ro"))
    assert one.holds(str(tmp_path / "ro")) and not one.holds(str(tmp_path))


def test_a_file_by_a_link_has_its_real_name(start, tmp_path):
    (tmp_path / "real").write_text("")
    (tmp_path / "rw").unlink()
    (tmp_path / "rw").symlink_to("real")
    assert found(start("-name", "a", "-uuid", "b")).writes(str(tmp_path / "real"))


@pytest.mark.parametrize("arguments", [(), ("-name", "guest=vm1"), ("-uuid", "u1")])
def test_another_process_is_none(start, arguments):
    assert found(start(*arguments)) is None


@pytest.mark.parametrize(("program", "is_one"), [("qemu-kvm", True), ("qemu-system-aarch64", True), ("sleep", False)])
def test_a_program_of_another_name_is_none(start, program, is_one):
    """Whoever may run anything may give it any arguments."""
    assert (found(start("-name", "guest=vm1", "-uuid", "u1", program=program)) is not None) == is_one


@pytest.mark.parametrize(("program", "is_one"), [("qemu-kvm", True), ("sleep", False)])
def test_a_program_that_this_user_may_not_know_is_what_it_calls_itself(start, monkeypatch, program, is_one):
    pid, real = start("-name", "guest=vm1", "-uuid", "u1", program=program), os.readlink

    def refuse(path):
        if path == "/proc/%d/exe" % pid:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(processes.os, "readlink", refuse)
    assert (found(pid) is not None) == is_one


def test_the_files_of_another_user_stay_hidden(start, monkeypatch):
    pid, real = start("-name", "guest=vm1", "-uuid", "u1"), os.listdir

    def refuse(path):
        if path == "/proc/%d/fd" % pid:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(processes.os, "listdir", refuse)
    assert found(pid).files == ()


def test_what_ends_meanwhile_is_left_out(start, monkeypatch):
    """A process, or a file of it, that is gone between two looks."""
    pid, real = start("-name", "guest=vm1", "-uuid", "u1"), os.listdir
    more = {"/proc": ["4194399"], "/proc/%d/fd" % pid: ["9999"]}
    monkeypatch.setattr(processes.os, "listdir", lambda path: real(path) + more.get(path, []))
    assert len(found(pid).files) >= 3 and found(4194399) is None
