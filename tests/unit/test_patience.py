# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Calls that never return are given up, and nothing after them waits."""

from __future__ import annotations

import os
import threading
import time

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import patience, qemu_img
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.patience import GivenUp, Patience, RealPaths


@pytest.fixture(name="never")
def _never():
    """A call that does not return before the test ends."""
    release = threading.Event()
    yield lambda *arguments: release.wait()
    release.set()


def test_answers_and_errors_come_back():
    one = Patience((ValueError,))
    assert one.call(5, int, "7") == 7
    with pytest.raises(ValueError, match="seven"):
        one.call(5, int, "seven")
    assert one.call(5, threading.get_ident) != threading.get_ident()


def test_the_next_call_has_another_thread(never):
    one = Patience(())
    first = one.call(5, threading.get_ident)
    with pytest.raises(GivenUp):
        one.call(0.05, never)
    assert one.call(5, threading.get_ident) != first


def test_a_link_is_resolved(tmp_path):
    (tmp_path / "real").write_text("")
    (tmp_path / "link").symlink_to("real")
    assert RealPaths().of(str(tmp_path / "link")) == str(tmp_path / "real")
    assert RealPaths().of("/a\0b") == "/a\0b"


def test_a_dead_folder_is_waited_for_once(monkeypatch, never):
    monkeypatch.setattr(patience, "PATH_SECONDS", 0.2)
    monkeypatch.setattr(patience.os.path, "realpath", lambda path: never() if path.startswith("/dead/") else path)
    real, start = RealPaths(), time.monotonic()
    assert [real.of("/dead/%d" % number) for number in range(50)] == ["/dead/%d" % number for number in range(50)]
    assert real.of("/alive/1") == "/alive/1" and time.monotonic() - start < 2


def test_images_on_dead_storage_are_given_up(monkeypatch, never, tmp_path):
    """Even the look at a path may hang: one wait for each folder, and the other images are read."""
    good = tmp_path / "good.raw"
    good.write_bytes(bytes(512))
    really = os.open
    monkeypatch.setattr(qemu_img.os, "open", lambda path, *more: never() if str(path).startswith("/dead/") else really(path, *more))
    keys = {("/dead/%d" % number, "raw"): 0.2 for number in range(40)}
    start = time.monotonic()
    found = qemu_img.probe_all({**keys, (str(good), "raw"): 3.0})
    assert time.monotonic() - start < 2
    assert {found[key].problem for key in keys} == {"timeout"} and found[str(good), "raw"].virtual == 512
