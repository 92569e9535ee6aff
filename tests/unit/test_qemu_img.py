# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real files and the real qemu-img: what is read of an image, what is not opened, and what is given up."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
import subprocess
import time

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import Image
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import qemu_img
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.image_work import holds_data
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.qemu_img import SECONDS, info_command, probe_all, read_image

MiB = 1 << 20


def create(path, *arguments, format="qcow2", size="4M"):
    subprocess.run(["qemu-img", "create", "-q", "-f", format, *arguments, str(path), size], check=True)
    return str(path)


def probe(path, format="qcow2", seconds=SECONDS, named=True, guessed=False):
    path = str(path)
    return probe_all({(path, format): seconds}, [path] if named else [], [path] if guessed else [])[path, format]


@pytest.fixture(name="commands")
def _commands(monkeypatch):
    """Every command line that was made."""
    made = []

    def note(descriptor, format):
        made.append(format)
        return info_command(descriptor, format)

    monkeypatch.setattr(qemu_img, "info_command", note)
    return made


def test_an_image(tmp_path):
    base = create(tmp_path / "base.qcow2")
    top = create(tmp_path / "top.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    os.chmod(top, 0o640)
    found = probe(top)
    facts = os.stat(top)
    assert found.image == Image(top, "qcow2", 4 * MiB, found.image.actual_size, "base.qcow2", base, "qcow2")
    assert (found.path, found.format, found.kind, found.problem, found.magic) == (top, "qcow2", "file", None, "qcow2")
    assert (found.physical, found.allocated, found.mode) == (facts.st_size, facts.st_blocks * 512, 0o640)
    assert (found.identity, found.real, found.virtual) == ((facts.st_dev, facts.st_ino), top, 4 * MiB)
    assert 0 < found.seconds < SECONDS


def test_a_link_is_the_file_that_it_leads_to(tmp_path):
    top = create(tmp_path / "top.qcow2")
    link = tmp_path / "link"
    link.symlink_to("top.qcow2")
    one, other = probe(link), probe(top)
    assert (one.path, one.real, one.identity) == (str(link), top, other.identity)
    assert one.image.virtual_size == 4 * MiB


def test_a_relative_name_in_a_header_starts_where_the_path_is(tmp_path):
    """Not where a link leads to, nor at the descriptor that qemu-img was given."""
    (tmp_path / "real").mkdir()
    create(tmp_path / "real" / "top.qcow2", "-u", "-b", "base.qcow2", "-F", "raw")
    (tmp_path / "link").symlink_to("real/top.qcow2")
    assert probe(tmp_path / "link").image.backing_path == str(tmp_path / "base.qcow2")


def test_raw_is_not_read_by_qemu_img(tmp_path, commands):
    path = tmp_path / "disk.raw"
    create(path)  # a guest may have written that header
    found = probe(path, "raw")
    assert (found.image, found.problem, found.magic, found.virtual) == (None, None, "qcow2", -(-os.stat(path).st_size // 512) * 512)
    assert commands == []


@pytest.mark.parametrize("format", ["vmdk", "luks-something", "host_device", "nbd", "file"])
def test_a_format_that_is_not_known_to_be_safe_is_not_opened(tmp_path, commands, format):
    path = create(tmp_path / "a.vmdk", format="vmdk")
    found = probe(path, format)
    assert (found.problem, found.image, found.kind) == ("unsafe", None, "file") and format in found.detail
    assert commands == []


def test_a_vmdk_is_not_opened_for_its_first_bytes_either(tmp_path, commands):
    path = create(tmp_path / "a.vmdk", format="vmdk")
    found = probe(path, None, guessed=True)
    assert (found.problem, found.format, found.magic) == ("unsafe", "vmdk", "vmdk") and commands == []


@pytest.mark.parametrize(
    ("named", "guessed", "expected"),
    [(True, True, ("qcow2", "qcow2", None)), (True, False, (None, "qcow2", "format_unknown")), (False, False, (None, None, "format_unknown"))],
)
def test_whose_first_bytes_are_taken_for_the_format(tmp_path, named, guessed, expected):
    found = probe(create(tmp_path / "a.qcow2"), None, named=named, guessed=guessed)
    assert (found.format, found.magic, found.problem) == expected and (found.image is None) == (expected[2] is not None)


def test_the_format_of_raw_is_never_guessed(tmp_path):
    (tmp_path / "a").write_bytes(b"\0" * 4096)
    found = probe(tmp_path / "a", None, guessed=True)
    assert (found.format, found.problem, found.physical) == (None, "format_unknown", 4096)


def test_what_only_a_header_names_is_not_opened_without_a_format(tmp_path, monkeypatch, commands):
    path = create(tmp_path / "a.qcow2")
    opened, real = [], os.open
    monkeypatch.setattr(qemu_img.os, "open", lambda *arguments: opened.append(arguments) or real(*arguments))
    assert probe(path, None, named=False).problem == "format_unknown"
    assert [flags & os.O_PATH for name, flags in opened] == [os.O_PATH] and commands == []


# What is no image


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "problem", "detail"),
    [
        (lambda path: None, "missing", "No such file or directory"),
        (lambda path: path.symlink_to("nowhere"), "missing", "No such file or directory"),
        (lambda path: path.symlink_to(path.name), "missing", "Too many levels of symbolic links"),
        (lambda path: path.mkdir(), "not_a_file", "a directory"),
        (os.mkfifo, "not_a_file", "a FIFO"),
        (make_socket, "not_a_file", "a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "not_a_file", "a character device"),
    ],
    ids=["gone", "dangling", "circle", "directory", "fifo", "socket", "device"],
)
@pytest.mark.parametrize("format", ["qcow2", "raw", None])
def test_what_is_no_file_is_not_opened(tmp_path, commands, make, problem, detail, format):
    make(tmp_path / "x")
    start = time.monotonic()
    found = probe(tmp_path / "x", format, guessed=True)
    assert (found.problem, found.detail, found.kind, found.image, found.magic) == (problem, detail, None, None, None)
    assert time.monotonic() - start < 1 and commands == []


def test_a_path_below_a_file_is_missing(tmp_path):
    (tmp_path / "file").write_text("")
    assert probe(tmp_path / "file" / "x").problem == "missing"


def test_a_folder_that_may_not_be_entered(tmp_path, monkeypatch):
    def refuse(path, flags):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(qemu_img.os, "open", refuse)
    found = probe(tmp_path / "x")
    assert (found.problem, found.detail) == ("permission", "Permission denied")


def test_a_file_whose_first_bytes_may_not_be_read(tmp_path, monkeypatch):
    """As of a user who is not root: the rest is told."""
    path, real = create(tmp_path / "a.qcow2"), os.open

    def refuse(name, flags, *more):
        if str(name).startswith("/proc/self/fd/"):
            raise PermissionError(13, "Permission denied")
        return real(name, flags, *more)

    monkeypatch.setattr(qemu_img.os, "open", refuse)
    found = probe(path)
    assert found.magic is None and found.kind == "file" and found.physical == os.stat(path).st_size


def test_a_block_device(tmp_path, monkeypatch):
    """Its length is the kernel's word; what it holds of the storage nobody knows."""
    path, real = create(tmp_path / "disk"), os.fstat
    device = os.makedev(259, 1048575)

    def as_device(descriptor):
        facts = list(real(descriptor))
        if os.readlink("/proc/self/fd/%d" % descriptor) != path:
            return real(descriptor)
        facts[0] = stat.S_IFBLK | 0o660
        return os.stat_result(facts, {"st_rdev": device, "st_blocks": 0})

    monkeypatch.setattr(qemu_img.os, "fstat", as_device)
    found = probe(path, "raw")
    assert (found.kind, found.physical, found.allocated, found.identity, found.problem) == ("block", None, None, (0, device), None)
    monkeypatch.setattr(qemu_img, "_device_size", lambda number: 512 * number)
    assert probe(path, "qcow2").physical == 512 * device and probe(path, "qcow2").image.virtual_size == 4 * MiB


def test_the_length_of_the_devices_of_this_host():
    """Every device that the kernel lists has one; one that it does not know has none."""
    names = os.listdir("/sys/dev/block")
    for name in names[:4]:
        major, minor = map(int, name.split(":"))
        assert qemu_img._device_size(os.makedev(major, minor)) % 512 == 0
    assert qemu_img._device_size(os.makedev(4095, 1048575)) is None


@pytest.mark.parametrize(("written", "own"), [(None, False), ("write -P 1 4096 4096", True), ("write -z 65536 65536", True)])
def test_data_of_its_own(tmp_path, written, own):
    """Zeros hide what is below as well; what the backing holds does not count, and it is not opened."""
    create(tmp_path / "base", size="1M")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 65536", str(tmp_path / "base")], check=True, stdout=subprocess.DEVNULL)
    create(tmp_path / "new", "-b", str(tmp_path / "base"), "-F", "qcow2", size="1M")
    if written:
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", written, str(tmp_path / "new")], check=True, stdout=subprocess.DEVNULL)
    (tmp_path / "base").unlink()
    assert holds_data(str(tmp_path / "new"), "qcow2") is own
    assert holds_data(str(tmp_path / "base"), "qcow2") is None


# What qemu-img says


def test_a_truncated_header(tmp_path):
    path = create(tmp_path / "a.qcow2")
    os.truncate(path, 40)
    found = probe(path)
    assert (found.problem, found.magic, found.image) == ("unreadable", "qcow2", None)
    assert found.detail and "/proc" not in found.detail and "qemu-img" not in found.detail


def test_an_empty_file_and_another_format(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert probe(tmp_path / "empty").problem == "unreadable" and probe(tmp_path / "empty").physical == 0
    found = probe(create(tmp_path / "a.qed", format="qed"), "qcow2")
    assert (found.problem, found.magic) == ("unreadable", "qed") and "qcow2 format" in found.detail


@pytest.mark.parametrize("format", ["qcow2", "qcow", "qed", "vdi", "vhdx", "vpc", "parallels"])
def test_every_safe_format_can_be_read_by_its_descriptor(tmp_path, format):
    path = create(tmp_path / "image", format=format)
    found = probe(path, format)
    assert found.problem is None and (found.image.format, found.magic) == (format, format)
    assert found.image.virtual_size >= 4 * MiB


def test_nothing_that_a_header_names_is_opened(tmp_path):
    """A server, a FIFO that would block, a file that is gone: as backing and as data file."""
    os.mkfifo(tmp_path / "fifo")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        port = server.getsockname()[1]
        url = "nbd://127.0.0.1:%d/x" % port
        told = 'json:{"driver": "raw", "file": {"driver": "nbd", "host": "127.0.0.1", "port": "%d"}}' % port
        names = [url, told, str(tmp_path / "fifo"), "/dev/zero", str(tmp_path / "gone")]
        start = time.monotonic()
        for number, name in enumerate(names):
            found = probe(create(tmp_path / ("%d.qcow2" % number), "-u", "-b", name, "-F", "raw"))
            assert (found.problem, found.image.backing, found.image.backing_format) == (None, name, "raw")
        assert time.monotonic() - start < 5 * len(names)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("there", ["file", "gone", "fifo"])
def test_a_data_file_is_told(tmp_path, there):
    path, data = tmp_path / "a.qcow2", tmp_path / "data.raw"
    create(path, "-o", "data_file=%s,data_file_raw=on" % data)
    if there != "file":
        data.unlink()
    if there == "fifo":
        os.mkfifo(data)
    start = time.monotonic()
    found = probe(path)
    assert time.monotonic() - start < SECONDS + 1
    told = found.image and (found.image.data, found.image.data_path, found.image.data_raw)
    # A qemu-img that opens the data file says why it cannot; one that does not (as it should) tells its name.
    assert told == (str(data), str(data), True) or (there != "file" and found.problem in ("unreadable", "timeout"))


def test_a_file_that_is_swapped_after_it_was_looked_at(tmp_path, monkeypatch):
    path, other = create(tmp_path / "a.qcow2"), create(tmp_path / "b.qcow2", size="9M")

    def swap(descriptor, format):
        os.replace(other, path)
        return info_command(descriptor, format)

    monkeypatch.setattr(qemu_img, "info_command", swap)
    found = probe(path)
    assert found.image.virtual_size == 4 * MiB and not os.path.exists(other)
    assert found.identity != (os.stat(path).st_dev, os.stat(path).st_ino)


# What is given up


@pytest.fixture(name="hanging")
def _hanging(tmp_path, monkeypatch):
    """Every image but those named good* is answered by a process that sleeps; the file its number is written to."""
    pids = tmp_path / "pids"

    def hang(descriptor, format):
        if os.path.basename(os.readlink("/proc/self/fd/%d" % descriptor)).startswith("good"):
            return info_command(descriptor, format)
        return ["sh", "-c", "echo $$ >> %s; exec sleep 600" % pids]

    monkeypatch.setattr(qemu_img, "info_command", hang)
    return pids


def is_running(pid: int) -> bool:
    try:
        return open("/proc/%d/stat" % pid, encoding="ascii").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_qemu_img_that_hangs_is_given_up_and_ended(tmp_path, hanging):
    bad, good = create(tmp_path / "bad.qcow2"), create(tmp_path / "good.qcow2")
    start = time.monotonic()
    found = probe_all({(bad, "qcow2"): 0.5, (good, "qcow2"): SECONDS})
    assert time.monotonic() - start < 0.5 + 2
    assert (found[bad, "qcow2"].problem, found[bad, "qcow2"].image) == ("timeout", None) and "in time" in found[bad, "qcow2"].detail
    assert found[good, "qcow2"].problem is None
    assert not is_running(int(hanging.read_text()))


def test_more_images_that_hang_than_are_read_at_once(tmp_path, monkeypatch, hanging):
    monkeypatch.setattr(qemu_img, "AT_ONCE", 3)
    keys = {(create(tmp_path / ("bad%d.qcow2" % number)), "qcow2"): 0.3 for number in range(6)}
    good = create(tmp_path / "good.qcow2")
    found = probe_all({**keys, (good, "qcow2"): SECONDS})
    assert {found[key].problem for key in keys} == {"timeout"} and found[good, "qcow2"].problem is None
    assert not any(is_running(int(pid)) for pid in hanging.read_text().split())


def test_what_has_no_time_left_is_not_waited_for(tmp_path, hanging):
    path = create(tmp_path / "bad.qcow2")
    start = time.monotonic()
    assert probe(path, seconds=-3.0).problem == "timeout" and time.monotonic() - start < 1.5


def test_a_process_is_limited(tmp_path, monkeypatch):
    limits, told = dict(qemu_img.LIMITS), tmp_path / "limits"
    assert 0 < limits[resource.RLIMIT_AS] <= 2 << 30 and SECONDS <= limits[resource.RLIMIT_CPU] <= 6 and limits[resource.RLIMIT_CORE] == 0
    # A moment later: the limits are set after the start.
    monkeypatch.setattr(qemu_img, "info_command", lambda descriptor, format: ["sh", "-c", "sleep 0.3; cat /proc/self/limits > %s" % told])
    probe(create(tmp_path / "a.qcow2"))
    lines = {line[:26].strip(): line[26:].split()[:2] for line in told.read_text().splitlines()}
    names = {"Max address space": resource.RLIMIT_AS, "Max cpu time": resource.RLIMIT_CPU, "Max core file size": resource.RLIMIT_CORE}
    for name, kind in {**names, "Max file size": resource.RLIMIT_FSIZE}.items():
        assert lines[name] == [str(limits[kind])] * 2


def test_a_process_that_works_too_long_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(qemu_img, "LIMITS", ((resource.RLIMIT_CPU, 1),))
    monkeypatch.setattr(qemu_img, "info_command", lambda descriptor, format: ["sh", "-c", "while :; do :; done"])
    found = probe(create(tmp_path / "a.qcow2"), seconds=60.0)
    assert (found.problem, found.detail) == ("unreadable", "it was ended by its limits")


def test_nothing_is_begun_after_the_deadline(tmp_path, commands):
    image, raw = create(tmp_path / "a.qcow2"), create(tmp_path / "b.raw")
    keys = {(image, "qcow2"): SECONDS, (raw, "raw"): SECONDS}
    late = probe_all(keys, deadline=time.monotonic() - 1)
    assert (late[image, "qcow2"].problem, late[image, "qcow2"].physical) == ("timeout", os.stat(image).st_size)
    assert late[raw, "raw"].problem is None and commands == []
    assert probe_all(keys, deadline=time.monotonic() + 60)[image, "qcow2"].problem is None


def test_an_answer_that_never_ends_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(qemu_img, "LIMITS", ((resource.RLIMIT_FSIZE, MiB),))
    monkeypatch.setattr(qemu_img, "info_command", lambda descriptor, format: ["sh", "-c", "sleep 0.2; exec yes"])
    found = probe(create(tmp_path / "a.qcow2"), seconds=60.0)
    assert (found.problem, found.image) == ("unreadable", None) and len(found.detail) < 200


def test_what_a_process_leaves_behind_is_not_waited_for(tmp_path, monkeypatch):
    """It holds the ends of the output open, as one that hangs on dead storage does after it was killed."""
    monkeypatch.setattr(qemu_img, "info_command", lambda descriptor, format: ["sh", "-c", "sleep 5 & echo no >&2; exit 1"])
    start = time.monotonic()
    found = probe(create(tmp_path / "a.qcow2"))
    assert (found.problem, found.detail) == ("unreadable", "no") and time.monotonic() - start < 2


@pytest.mark.parametrize("output", ["", "no json", "[]", "{}", '{"format": "qcow2"}', "\\377\\376"])
def test_an_answer_that_cannot_be_read(tmp_path, monkeypatch, output):
    monkeypatch.setattr(qemu_img, "info_command", lambda descriptor, format: ["printf", output or "%s"])
    found = probe(create(tmp_path / "a.qcow2"))
    assert (found.problem, found.image) == ("unreadable", None) and "check its version" in found.detail


def test_without_qemu_img(tmp_path, monkeypatch):
    """It is needed for headers only."""
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    path = create(tmp_path / "a.qcow2")
    assert probe(path, "raw").physical == os.stat(path).st_size and probe(tmp_path / "gone").problem == "missing"
    with pytest.raises(Unavailable, match="qemu-utils") as caught:
        probe(path)
    assert caught.value.code == "qemu_img" and path in str(caught.value)


def test_many_more_images_than_descriptors(tmp_path):
    """A process may often have 1,024 open files; here it has no more than what one batch needs."""
    paths = [str(tmp_path / ("%d.raw" % number)) for number in range(3 * qemu_img.BATCH)]
    for path in paths:
        open(path, "wb").close()
    images = [create(tmp_path / ("%d.qcow2" % number)) for number in range(5)]
    before = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + qemu_img.BATCH + 60, hard))
    try:
        found = probe_all({**{(path, "raw"): SECONDS for path in paths}, **{(path, "qcow2"): SECONDS for path in images}}, paths + images)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(found) == len(paths) + 5 and {one.problem for one in found.values()} == {None}
    assert len(os.listdir("/proc/self/fd")) <= before


def test_images_are_read_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setattr(qemu_img, "AT_ONCE", 4)
    monkeypatch.setattr(qemu_img, "info_command", lambda descriptor, format: ["sleep", "0.5"])
    keys = {(create(tmp_path / ("%d.qcow2" % number)), "qcow2"): SECONDS for number in range(4)}
    start = time.monotonic()
    probe_all(keys)
    assert time.monotonic() - start < 1.8  # one after the other it would be 2 seconds


# One image for the other modules


def test_read_image(tmp_path):
    path = create(tmp_path / "a.qcow2", "-u", "-b", "gone", "-F", "raw")
    assert read_image(path, "qcow2").backing_path == str(tmp_path / "gone")
    assert read_image(path, "raw") == Image(path, "raw", os.stat(path).st_size, os.stat(path).st_blocks * 512)
    for name, format in (("gone", "qcow2"), ("gone", "raw"), (".", "raw"), ("a.qcow2", "qed"), ("a.qcow2", "vmdk")):
        assert read_image(str(tmp_path / name), format) is None


def test_read_image_does_not_wait_for_ever(tmp_path, monkeypatch, hanging):
    monkeypatch.setattr(qemu_img, "PATIENT_SECONDS", 0.3)
    path = create(tmp_path / "bad.qcow2")
    with pytest.raises(Unavailable, match="gave no answer about %s" % path) as caught:
        read_image(path, "qcow2")
    assert caught.value.code == "qemu_img"
