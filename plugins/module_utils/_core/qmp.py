# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Answers of QEMU's monitor as values."""

from __future__ import annotations

import json
from typing import Any, List, Optional

from .errors import Unavailable
from .host_facts import Node, QemuView
from .image_info import shown_name


def parse_view(nodes: str, jobs: str, devices: str) -> QemuView:
    """From the answers to query-named-block-nodes, query-block-jobs and query-block. Raises Unavailable (code qmp)."""
    try:
        return QemuView(
            tuple(_node(one) for one in _answer(nodes)),
            tuple(_answer(jobs)),
            tuple(_device(one) for one in _answer(devices) if one.get("inserted")),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unavailable("qmp", "QEMU's monitor gave an answer that cannot be read: check the version of QEMU.") from error


def parse_job_name(jobs: str, disk: str) -> str:
    """QEMU's name of the copy of a disk, from the answer to query-block-jobs: libvirt calls it copy-DISK-NODE. Raises Unavailable (code qmp)."""
    try:
        names = [one["device"] for one in _answer(jobs) if one["device"].startswith("copy-%s-" % disk)]
    except (ValueError, KeyError, TypeError, AttributeError):
        names = []
    if len(names) != 1:
        raise Unavailable("qmp", "QEMU has no copy of disk %s that could be told from its other jobs: look at query-block-jobs." % disk)
    return names[0]


def parse_word(text: str) -> Optional[str]:
    """What QEMU has against a command, or None where it did it."""
    try:
        answer = json.loads(text)
        return None if "return" in answer else str(answer["error"]["desc"])
    except (ValueError, KeyError, TypeError):
        return "its answer cannot be read"


def _answer(text: str) -> List[Any]:
    found = json.loads(text)["return"]
    if not isinstance(found, list):
        raise ValueError("no list")
    return found


def _node(facts: dict) -> Node:
    return Node(facts["node-name"], facts["drv"], _file(facts["file"]), bool(facts["ro"]))


def _device(facts: dict) -> tuple:
    inserted = facts["inserted"]
    return (facts.get("qdev") or facts.get("device") or "", inserted.get("node-name") or "", _file(inserted["file"]))


def _file(name: str) -> str:
    """The path of a node. Where QEMU cannot say it plainly (a slice, a backing that was hidden), it is inside of a json: name."""
    try:  # QEMU cuts a name of more than 4,095 bytes off
        inner: Any = json.loads(name[len("json:") :]) if name.startswith("json:") else None
    except (ValueError, RecursionError):
        inner = None
    while isinstance(inner, dict):
        if isinstance(inner.get("filename"), str):
            return shown_name(inner["filename"])
        inner = inner.get("file")
    return shown_name(name)
