# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Calls into libvirt that never return: the one thing of the connection that no healthy lab can show quickly."""

from __future__ import annotations

import threading
import types

import pytest

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Busy, CallFailed, Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import libvirt_host
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge.libvirt_host import Connection


class LibvirtError(Exception):
    def __init__(self, code, text="No."):
        super().__init__(text)
        self.code = code

    def get_error_code(self):
        return self.code


@pytest.fixture
def connection(monkeypatch):
    codes = {
        "VIR_ERR_OPERATION_DENIED": 29,
        "VIR_ERR_AUTH_FAILED": 45,
        "VIR_ERR_AUTH_CANCELLED": 79,
        "VIR_ERR_ACCESS_DENIED": 88,
        "VIR_ERR_BLOCK_COPY_ACTIVE": 83,
    }
    monkeypatch.setattr(libvirt_host, "libvirt", types.SimpleNamespace(libvirtError=LibvirtError, **codes))
    one = Connection.__new__(Connection)
    one.uri = "qemu:///system"
    one._libvirt = types.SimpleNamespace(isAlive=lambda: True)
    return one


def test_a_call_that_never_returns(connection, monkeypatch):
    monkeypatch.setattr(libvirt_host, "CALL_SECONDS", 0.1)
    release = threading.Event()
    with pytest.raises(Unavailable) as caught:
        connection._bounded(release.wait)
    release.set()
    assert caught.value.code == "no_answer"


def test_a_call_that_returns(connection):
    assert connection._bounded(max, 1, 2) == 2


@pytest.mark.parametrize(
    ("code", "text", "kind", "expected"),
    [
        (1, "Something.", CallFailed, "libvirt_error"),
        (83, "disk 'vda' already in active block job", Busy, "foreign_job"),
        (84, "disk 'vda' already in active block job", Busy, "foreign_job"),
        (84, "not supported", CallFailed, "libvirt_error"),
        (29, "read only", Unavailable, "permission"),
    ],
)
def test_what_an_error_means(connection, code, text, kind, expected):
    def refuse():
        raise LibvirtError(code, text)

    with pytest.raises(kind) as caught, connection.calling("pull"):
        connection._bounded(refuse)
    assert caught.value.code == expected
