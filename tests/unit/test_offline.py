# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Steps on images that no QEMU has open, with the real qemu-img: what a guest would see, and what the headers say, before and after."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, Layer, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Busy, CallFailed, Moved
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.plan import Step
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import image_work, libvirt_host, steps
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.host import Host
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.image_locks import in_use
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.libvirt_host import Connection
from ansible_collections.livestorage.libvirt.tests.unit.fake_connection import Handle, Timeline, host_on
from ansible_collections.livestorage.libvirt.tests.unit.support import ROOT

MiB = 1 << 20
OFF = Domain("vm1", "u1", False, "shutdown", disks=(Disk("vda", Chain((file_layer("/a", "qcow2"),), True)),))


def qemu(*command) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(path, format, *parts) -> None:
    qemu("qemu-io", "-f", format, *(word for part in parts for word in ("-c", part)), str(path))


def chain(folder, relative=False, sizes=(4, 4, 4, 4), full=4) -> tuple:
    """Layers, active first, the base raw: each has data, zeros and holes of its own above the next. ``sizes`` in MiB, as the layers."""
    below, layers = None, []
    for number, size in zip(reversed(range(len(sizes))), reversed(sizes)):
        path, format = folder / ("%d.img" % number), "qcow2" if below else "raw"
        backing = () if below is None else ("-b", below.name if relative else str(below), "-F", "raw" if len(layers) == 1 else "qcow2")
        qemu("qemu-img", "create", "-q", "-f", format, *backing, str(path), "%dM" % size)
        mark = 16 * (number + 1)
        parts = [
            "write -P %d %dk 128k" % (mark, 192 * number),
            "write -z %dk 64k" % (1024 + 192 * number),
            "write -P %d 1536k %dk" % (mark + 1, 64 * (number + 1)),
        ]
        parts = ["write -P 5 0 %dM" % full] + parts if below is None else parts
        written(path, format, *parts)
        layers.insert(0, file_layer(str(path), format))
        below = path
    return tuple(layers)


def shown(layer: Layer) -> str:
    """What a guest sees of an image, by its headers."""
    target = layer.path + ".shown"
    qemu("qemu-img", "convert", "-f", layer.format, "-O", "raw", layer.path, target)
    found = hashlib.sha256(Path(target).read_bytes()).hexdigest()
    os.unlink(target)
    return found


def files(layers) -> list:
    return [hashlib.sha256(Path(layer.path).read_bytes()).hexdigest() for layer in layers]


def header(layer: Layer) -> tuple:
    facts = json.loads(qemu("qemu-img", "info", "--output=json", "-U", "-f", layer.format, layer.path))
    return facts.get("backing-filename"), facts.get("backing-filename-format")


@pytest.fixture(name="host")
def _host():
    """Of images that belong to no guest: it must not ask libvirt anything."""
    found = Host("qemu:///system", False)
    yield found
    assert found._opened is None
    found.close()


def lock(write, read=(), **more) -> Step:
    return Step("lock", None, dict(more, write=tuple(write), read=tuple(read)))


def merge(layers, top, base, size=None, timeout=60, bandwidth=0) -> Step:
    detail = {"chain": layers[top : base + 1], "below": layers[base + 1 :], "size": size, "timeout": timeout, "bandwidth": bandwidth}
    return Step("merge", None, detail)


def rebase(layers, layer, to, safe, **more) -> Step:
    detail = {"layer": layers[layer], "below": layers[layer + 1 :], "to": None if to is None else layers[to], "rest": () if to is None else layers[to + 1 :]}
    return Step("rebase", None, dict(dict(detail, safe=safe, name=None, timeout=60, old_name=header(layers[layer])[0]), **more))


PAIRS = [(top, base) for base in range(1, 4) for top in range(base)]


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(("top", "base"), PAIRS)
def test_layers_are_merged_into_one_below(tmp_path, host, top, base, relative):
    layers = chain(tmp_path, relative)
    wanted, through, names = shown(layers[0]), shown(layers[top]), [header(layer) for layer in layers]
    above, rest = layers[:base], layers[base + 1 :]
    kept = files(above), files(rest)
    host.do(lock(layers[max(0, top - 1) : base + 1], rest))
    for dummy in range(2):  # as after a run that was killed
        host.do(merge(layers, top, base))
        assert shown_while_locked(layers[0]) == wanted and shown_while_locked(layers[base]) == through
        assert (files(above), files(rest)) == kept and [header(layer) for layer in layers] == names
    if top:
        host.do(rebase(layers, top - 1, base, False))
        assert shown_while_locked(layers[0]) == wanted and header(layers[top - 1]) == (layers[base].path, layers[base].format)
    host.close()
    assert shown(layers[0]) == wanted


def shown_while_locked(layer) -> str:
    target = layer.path + ".shown"
    qemu("qemu-img", "convert", "-U", "-f", layer.format, "-O", "raw", layer.path, target)
    found = hashlib.sha256(Path(target).read_bytes()).hexdigest()
    os.unlink(target)
    return found


@pytest.mark.parametrize("sizes", [(4, 2, 4), (4, 2, 3, 4), (3, 2, 4, 2), (2, 4, 2), (4, 2, 2), (2, 4, 4)])
@pytest.mark.parametrize("times", [1, 2])
def test_layers_of_several_sizes(tmp_path, host, sizes, times):
    """Where a short one hides the end of the base, what is longer above it shows zeros, and does so after it is merged."""
    layers = chain(tmp_path, sizes=sizes, full=sizes[-1])
    wanted = shown(layers[0])
    host.do(lock(layers))
    for dummy in range(times):
        host.do(merge(layers, 0, len(layers) - 1, size=max(sizes[0], sizes[-1]) * MiB))
        assert shown_while_locked(layers[0]) == wanted
    host.close()
    assert os.path.getsize(layers[-1].path) >= sizes[0] * MiB
    assert hashlib.sha256(Path(layers[-1].path).read_bytes()[: sizes[0] * MiB]).hexdigest() == wanted


def test_a_base_is_only_made_longer(tmp_path, host):
    layers = chain(tmp_path, sizes=(2, 4))
    host.do(lock(layers))
    host.do(merge(layers, 0, 1, size=3 * MiB))
    assert os.path.getsize(layers[1].path) == 4 * MiB
    host.do(merge(layers, 0, 1, size=6 * MiB))
    assert os.path.getsize(layers[1].path) == 6 * MiB


@pytest.mark.parametrize("relative", [True, False])
def test_a_merge_that_is_too_slow(tmp_path, host, relative):
    """It leaves everything readable, and is done again."""
    layers = chain(tmp_path, relative)
    written(layers[1].path, "qcow2", "write -P 77 0 4M")
    wanted, step = shown(layers[0]), merge(layers, 0, 3, timeout=1, bandwidth=512 * 1024)
    host.do(lock(layers))
    with pytest.raises(CallFailed) as caught:
        host.do(step)
    assert caught.value.code == "not_merged" and "no end after 1 seconds" in str(caught.value) and "json" not in str(caught.value)
    assert shown_while_locked(layers[0]) == wanted
    host.undo(step)
    host.do(merge(layers, 0, 3))
    assert shown_while_locked(layers[0]) == wanted == shown_while_locked(layers[3])


def test_a_merge_that_qemu_img_refuses(tmp_path, host):
    layers = chain(tmp_path)
    Path(layers[2].path).write_bytes(b"nothing")
    host.do(lock(layers))
    with pytest.raises(CallFailed) as caught:
        host.do(merge(layers, 0, 1))
    assert caught.value.code == "not_merged" and "(Could not open '%s': " % layers[0].path in str(caught.value)
    assert "not in qcow2 format)" in str(caught.value) and "json" not in str(caught.value)


TARGETS = [(layer, to) for layer in range(3) for to in [None, *range(layer + 1, 4)]]


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(("layer", "to"), TARGETS)
def test_a_layer_takes_what_is_between(tmp_path, host, layer, to, relative):
    """The safe rebase: of all images only the one is written, and its header is as it is asked for. Its undo needs the header only."""
    layers = chain(tmp_path, relative)
    wanted, old = [shown(one) for one in layers], header(layers[layer])
    others = [one for one in layers if one is not layers[layer]]
    kept = files(others)
    name = "%d.img" % to if relative and to is not None else None
    step = rebase(layers, layer, to, True, name=name)
    host.do(lock(layers[layer : layer + 1], layers[layer + 1 :]))
    host.do(step)
    assert header(layers[layer]) == ((None, None) if to is None else (name or layers[to].path, layers[to].format))
    assert files(others) == kept and [shown_while_locked(one) for one in layers] == wanted
    for dummy in range(2):
        host.undo(step)
        assert header(layers[layer]) == old and [shown_while_locked(one) for one in layers] == wanted


def with_data(folder) -> tuple:
    """A layer, one with its data in a file of its own (data_file_raw is off), and a base over a raw image that shows the same."""
    top, mid, base = (folder / name for name in ("top.qcow2", "mid.qcow2", "base.qcow2"))
    for name in ("base", "dummy"):
        qemu("qemu-img", "create", "-q", "-f", "raw", str(folder / (name + ".raw")), "4M")
    written(folder / "base.raw", "raw", "write -P 5 0 4M")
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=%s,data_file_raw=on" % (folder / "dummy.raw"), str(base), "4M")
    qemu("qemu-img", "amend", "-q", "-f", "qcow2", "-o", "data_file=%s" % (folder / "base.raw"), str(base))
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", "-o", "data_file=%s" % (folder / "mid.raw"), str(mid))
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(mid), "-F", "qcow2", str(top))
    for path, start in ((mid, 64), (top, 512)):
        written(path, "qcow2", "write -P %d %dk 256k" % (start % 251, start), "write -z %dk 128k" % (1024 + start))
    layers = tuple(file_layer(str(path), "qcow2") for path in (top, mid, base))
    stores = (None, file_layer(str(folder / "mid.raw"), "raw"), file_layer(str(folder / "base.raw"), "raw"))
    return tuple(replace(layer, store=store) for layer, store in zip(layers, stores))


@pytest.mark.parametrize(("top", "base"), [(0, 1), (0, 2), (1, 2)])
def test_layers_with_data_files_are_merged(tmp_path, host, top, base):
    """The descriptions name the data files, which are locked by this process, and what shows the base by itself still does."""
    layers = with_data(tmp_path)
    wanted, through = shown(layers[0]), shown(layers[top])
    host.do(lock(_with_stores(layers)))
    for dummy in range(2):
        host.do(merge(layers, top, base, size=6 * MiB if base == 2 else None))
        assert shown_while_locked(layers[0]) == wanted
        if base == 1:
            assert shown_while_locked(layers[base]) == through
    if top:
        host.do(rebase(layers, top - 1, base, False))
        assert header(layers[0]) == (layers[2].path, "qcow2") and shown_while_locked(layers[0]) == wanted
    if base == 2:
        raw = Path(layers[2].store.path)
        assert raw.stat().st_size == 6 * MiB and shown_while_locked(layers[2]) == hashlib.sha256(raw.read_bytes()).hexdigest()
        assert hashlib.sha256(raw.read_bytes()[: 4 * MiB]).hexdigest() == through
    facts = [json.loads(qemu("qemu-img", "info", "--output=json", "-U", layer.path))["format-specific"]["data"].get("data-file") for layer in layers]
    assert facts == [None, layers[1].store.path, layers[2].store.path]


@pytest.mark.parametrize(("layer", "to"), [(0, 2), (0, None), (1, None)])
def test_layers_take_what_data_files_hold(tmp_path, host, layer, to):
    layers = with_data(tmp_path)
    wanted, rest = [shown(one) for one in layers], _with_stores(layers[layer + 1 :])
    kept, step = files(rest), rebase(layers, layer, to, True)
    host.do(lock(_with_stores(layers[layer : layer + 1]), rest))
    host.do(step)
    assert [shown_while_locked(one) for one in layers] == wanted and files(rest) == kept
    host.undo(step)
    assert [shown_while_locked(one) for one in layers] == wanted


def _with_stores(layers) -> list:
    return [image for layer in layers for image in (layer, layer.store) if image is not None]


def test_a_data_file_in_use_is_not_begun_with(tmp_path, host):
    """Somebody has the raw image open who knows nothing of the layer over it."""
    layers = with_data(tmp_path)
    with subprocess.Popen(["qemu-io", "-f", "raw", layers[2].store.path], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as other:
        until = time.monotonic() + 20
        while in_use(layers[2].store.path, False) is None and time.monotonic() < until:
            time.sleep(0.05)
        assert in_use(layers[2].path, True) is None
        with pytest.raises(Busy):
            host.do(lock(_with_stores(layers)))
        other.communicate(b"quit\n", timeout=20)
    host.do(lock(_with_stores(layers)))


def test_a_safe_rebase_that_is_cut_off(tmp_path, host):
    """Its header stays what it was until all is copied: at whatever moment it ends, the layer shows the same."""
    layers = chain(tmp_path, sizes=(64, 64, 64), full=64)
    written(layers[1].path, "qcow2", "write -P 78 2M 60M")
    wanted, old = shown(layers[0]), header(layers[0])
    host.do(lock(layers[:1], layers[1:]))
    late = []
    for timeout in (0.02, 0.05, 0.1):
        try:
            host.do(rebase(layers, 0, 2, True, timeout=timeout))
        except CallFailed as error:
            late.append((error.code, "no end after" in str(error), header(layers[0])))
        assert shown_while_locked(layers[0]) == wanted
    assert late and set(late) == {("not_rebased", True, old)}
    host.do(rebase(layers, 0, 2, True))
    assert shown_while_locked(layers[0]) == wanted and header(layers[0]) == (layers[2].path, "raw")


def test_a_safe_rebase_writes_its_tables_before_its_header(tmp_path, host, monkeypatch):
    """Else QEMU (7.2) changes the header while its tables are in memory alone: killed then, the layer shows the new backing without what was copied."""
    layers, commands, carried_out = chain(tmp_path), [], image_work.carried_out

    def noted(command, *arguments, **more):
        commands.append(command)
        return carried_out(command, *arguments, **more)

    monkeypatch.setattr(image_work, "carried_out", noted)
    host.do(lock(layers[:1], layers[1:]))
    host.do(rebase(layers, 0, 2, True))
    assert [command[1:5] for command in commands if "rebase" in command] == [["rebase", "-q", "-t", "writethrough"]]


def test_headers_that_lead_elsewhere_are_not_followed(tmp_path, host):
    """qemu-img opens the new backing by its path: below that its header would be followed, and so it has to say what is meant."""
    layers = chain(tmp_path)
    stranger = file_layer(str(tmp_path / "stranger"), "raw")
    qemu("qemu-img", "create", "-q", "-f", "raw", stranger.path, "4M")
    host.do(lock(layers[:1], [*layers[1:], stranger]))
    old = header(layers[0])
    for rest in ((layers[2], stranger), (stranger,), (), (layers[2],), (layers[2], replace(layers[3], format="qcow2"))):
        with pytest.raises(CallFailed) as caught:
            host.do(rebase(layers, 0, 1, True, rest=rest))
        assert caught.value.code == "not_rebased" and header(layers[0]) == old
    link = tmp_path / "link"
    link.symlink_to(layers[2].path)
    host.do(rebase(layers, 0, 1, True, rest=(file_layer(str(link), "qcow2"), layers[3])))


@pytest.mark.parametrize("name", [None, "2.img"])
def test_only_the_header(tmp_path, host, name):
    """The unsafe rebase opens no backing, reads no data and is taken back to the very name that was there."""
    layers = chain(tmp_path, relative=name is not None)
    old = header(layers[0])
    os.rename(layers[1].path, layers[1].path + ".away")
    step = rebase(layers, 0, 2, False, name=name)
    host.do(lock(layers[:1]))
    host.do(step)
    assert header(layers[0]) == (name or layers[2].path, "qcow2")
    host.undo(step)
    assert header(layers[0]) == old


def test_what_was_not_begun_is_not_undone(tmp_path, host):
    layers = chain(tmp_path)
    host.do(lock(layers))
    before = files(layers)
    for step in (rebase(layers, 0, 2, False, old_name="/elsewhere"), overlay(tmp_path / "0.img", layers[1]), merge(layers, 0, 1), lock(layers)):
        host.undo(step)
    assert files(layers) == before


def test_an_image_in_use_is_not_begun_with(tmp_path, host):
    layers = chain(tmp_path)
    other = Host("qemu:///system", False)
    other.do(lock(layers[2:3], layers[3:]))
    with pytest.raises(Busy):
        host.do(lock(layers[:1], layers[1:]))
    other.close()
    host.do(lock(layers[:1], layers[1:]))


def test_an_image_that_somebody_put_on_another_one_meanwhile(tmp_path, host):
    layers = chain(tmp_path, relative=True)
    names = [(layer, header(layer)[0]) for layer in layers[:3]]
    host.do(lock(layers, names=names))
    with pytest.raises(Moved, match="stands on something else"):
        host.do(lock(layers, names=[(layers[0], "2.img")]))


@pytest.mark.parametrize("active", [True, False])
def test_a_guest_that_was_started_meanwhile(monkeypatch, tmp_path, active):
    layers = chain(tmp_path)
    host = host_on(monkeypatch, Timeline([(0, replace(OFF, active=active))]))
    if active:
        with pytest.raises(Moved, match="was started"):
            host.do(lock(layers))
    else:
        host.do(lock(layers))
    host.close()


WORKER = """
import sys
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.plan import Step
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.host import Host
layers = (file_layer(sys.argv[1], "qcow2"), file_layer(sys.argv[2], "raw"))
host = Host("qemu:///system", False)
host.do(Step("lock", None, {"write": layers, "read": ()}))
print("locked", flush=True)
host.do(Step("merge", None, {"chain": layers, "below": (), "size": None, "timeout": 60, "bandwidth": 1 << 20}))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed(tmp_path, host, number):
    """qemu-img goes on and keeps the locks until it ends; a run that can still clean up ends it."""
    layers = chain(tmp_path, sizes=(4, 4))
    written(layers[0].path, "qcow2", "write -P 79 0 4M")
    wanted = shown(layers[0])
    environment = dict(os.environ, PYTHONPATH=str(ROOT.parents[2]))
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, layers[0].path, layers[1].path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as run:
        assert run.stdout.readline() == b"locked\n"
        until = time.monotonic() + 20
        while not children(run.pid, "commit") and time.monotonic() < until:
            time.sleep(0.02)
        child = children(run.pid, "commit")[0]
        time.sleep(0.3)
        run.send_signal(number)
        run.wait()
    if number == signal.SIGKILL:
        assert in_use(layers[1].path, True) == "the process %d, qemu-img, has locked it" % child
        with pytest.raises(Busy):
            host.do(lock(layers))
        while in_use(layers[1].path, True) and time.monotonic() < until + 20:
            time.sleep(0.1)
    assert in_use(layers[1].path, True) is None
    host.do(lock(layers))
    host.do(merge(layers, 0, 1))
    assert shown_while_locked(layers[0]) == wanted == shown_while_locked(layers[1])


def children(pid: int, work: str) -> list:
    """The processes that run qemu-img for that work. (It reads headers before; and the clone of a Python that has not become one yet does nothing.)"""
    found = []
    for child in Path("/proc/%d/task/%d/children" % (pid, pid)).read_text(encoding="ascii").split():
        with contextlib.suppress(OSError):  # it has ended
            words = Path("/proc/%s/cmdline" % child).read_text(encoding="utf-8").split("\0")
            if words[:2] == ["qemu-img", work]:
                found.append(int(child))
    return found


def overlay(path, on, size=None, creates=True, **more) -> Step:
    detail = {"path": str(path), "format": "qcow2", "on": on, "size": size, "mode_of": on.path, "creates": str(path) if creates else None, "below": ()}
    return Step("overlay", "vda", dict(detail, **more))


@pytest.mark.parametrize(("mode", "wanted"), [(0o600, 0o600), (0o640, 0o640), (0o444, 0o644), (0o777, 0o666)])
def test_an_overlay(tmp_path, host, mode, wanted):
    layers = chain(tmp_path, relative=True)
    os.chmod(layers[0].path, mode)
    os.chown(layers[0].path, 12, 34)
    new = file_layer(str(tmp_path / "new"), "qcow2")
    host.do(lock([], layers))
    before = files(layers)
    host.do(overlay(new.path, layers[0]))
    facts = os.stat(new.path)
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid) == (wanted, 12, 34)
    assert header(new) == (layers[0].path, "qcow2") and shown_while_locked(new) == shown_while_locked(layers[0])
    assert files(layers) == before
    for dummy in range(2):
        host.undo(overlay(new.path, layers[0]))
        assert not os.path.exists(new.path)


def test_an_overlay_does_not_open_what_it_stands_on(tmp_path, host):
    new = file_layer(str(tmp_path / "new"), "qcow2")
    host.do(overlay(new.path, file_layer("/nowhere/base", "raw"), size=3 * MiB, mode_of=None))
    facts = json.loads(qemu("qemu-img", "info", "--output=json", "-f", "qcow2", new.path))
    assert facts["virtual-size"] == 3 * MiB and facts["backing-filename"] == "/nowhere/base" and stat.S_IMODE(os.stat(new.path).st_mode) == 0o600


def test_an_overlay_that_is_there_already(tmp_path, host):
    layers = chain(tmp_path)
    path = tmp_path / "new"
    path.write_text("somebody's")
    for creates in (True, False):
        with pytest.raises(Moved):
            host.do(overlay(path, layers[0], creates=creates))
        host.undo(overlay(path, layers[0], creates=creates))
    assert path.read_text() == "somebody's"


def test_an_overlay_that_cannot_be_made(tmp_path, host):
    layers = chain(tmp_path)
    step = overlay(tmp_path / "new", layers[0], mode_of="/nowhere/model")
    with pytest.raises(CallFailed, match="/nowhere/model"):
        host.do(step)
    host.undo(step)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("replaced", [True, False])
def test_an_overlay_that_is_needed_by_now_stays(monkeypatch, tmp_path, replaced):
    """Because the definition names it, or because it is another file."""
    layers = chain(tmp_path)
    new = file_layer(str(tmp_path / "new"), "qcow2")
    timeline = Timeline([(0, OFF)])
    host = host_on(monkeypatch, timeline)
    step = overlay(new.path, layers[0])
    host.do(step)
    if replaced:
        (tmp_path / "other").write_text("x")
        os.replace(tmp_path / "other", new.path)
    else:
        timeline.states = [(0, replace(OFF, disks=(Disk("vda", Chain((new, *layers), True)),)))]
    with pytest.raises(Moved if replaced else CallFailed):
        host.undo(step)
    assert os.path.exists(new.path)


def test_an_overlay_of_a_guest_is_removed_while_it_is_off(monkeypatch, tmp_path):
    layers = chain(tmp_path)
    host = host_on(monkeypatch, Timeline([(0, OFF)]))
    host.do(overlay(tmp_path / "new", layers[0]))
    host.undo(overlay(tmp_path / "new", layers[0]))
    assert not (tmp_path / "new").exists()


def test_an_overlay_that_a_qemu_has_open_stays(monkeypatch, tmp_path, host):
    layers = chain(tmp_path)
    host.do(overlay(tmp_path / "new", layers[0]))
    monkeypatch.setattr(steps, "held_open", lambda path: path == str(tmp_path / "new"))
    with pytest.raises(CallFailed, match="QEMU"):
        host.undo(overlay(tmp_path / "new", layers[0]))
    assert (tmp_path / "new").exists()


CHAIN = Chain((file_layer("/new", "qcow2"), file_layer("/base", "raw")), True)


@pytest.mark.parametrize("answer", [None, ("before", "after")])
def test_the_definition_is_written_and_put_back(monkeypatch, answer):
    timeline = Timeline([(0, OFF)])
    told = []
    monkeypatch.setattr(timeline, "define_chains", lambda handle, chains: told.append(chains) or answer, raising=False)
    monkeypatch.setattr(timeline, "define_again", lambda handle, *xml: told.append(xml), raising=False)
    host = host_on(monkeypatch, timeline)
    step = Step("redefine", None, {"chains": (("vda", CHAIN), ("vdb", CHAIN))})
    host.undo(step)
    host.do(step)
    host.undo(step)
    host.undo(step)
    assert told == [{"vda": CHAIN, "vdb": CHAIN}] + ([answer] if answer else [])


class Definition(Handle):
    """A guest that is off, and the part of libvirt that defines it: what is written comes back in another hand."""

    VIR_DOMAIN_XML_INACTIVE, VIR_DOMAIN_XML_SECURE = 2, 1
    libvirtError = OSError
    active, persistent = False, True

    def __init__(self, xml):
        self.xml = xml

    def XMLDesc(self, flags):
        assert flags == 3  # without its secrets they would be lost
        return self.xml

    def isActive(self):
        return self.active

    def isPersistent(self):
        return self.persistent

    def defineXML(self, xml):
        self.xml = xml.replace('"', "'")


XML = "<domain><name>vm1</name><devices><disk type='file'><source file='/old'/><target dev='vda'/></disk></devices></domain>"


@pytest.fixture(name="definition")
def _definition(monkeypatch):
    """With the connection to it."""
    found = Definition(XML)
    monkeypatch.setattr(libvirt_host, "libvirt", found)
    connection = object.__new__(Connection)
    connection._libvirt = found
    monkeypatch.setattr(connection, "_bounded", lambda call, *arguments: call(*arguments))
    return connection, found


def test_a_definition_comes_back(definition):
    connection, guest = definition
    before, after = connection.define_chains(guest, {"vda": CHAIN})
    assert before == XML and guest.xml == after and "/new" in after and "/old" not in after
    assert connection.define_chains(guest, {"vda": CHAIN}) is None
    connection.define_again(guest, before, after)
    assert guest.xml == XML


@pytest.mark.parametrize("change", [{"active": True}, {"xml": XML}])
def test_a_definition_that_somebody_needs_or_changed_stays(definition, change):
    connection, guest = definition
    before, after = connection.define_chains(guest, {"vda": CHAIN})
    vars(guest).update(change)
    kept = guest.xml
    with pytest.raises(Moved):
        connection.define_again(guest, before, after)
    assert guest.xml == kept


def test_a_guest_without_a_definition_gets_none(definition):
    connection, guest = definition
    guest.persistent = False
    with pytest.raises(Moved):
        connection.define_chains(guest, {"vda": CHAIN})
    assert guest.xml == XML
