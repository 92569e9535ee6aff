# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random sequences: what a guest is made like, and the steps that follow. A sequence is told by its seed alone."""

from __future__ import annotations

import random

CELLS = 16
WAYS = [None, "forward", "backward"]
WEIGHTS = {
    "snapshot": 24,
    "delete": 16,
    "merge_layer": 7,
    "commit": 11,
    "pull": 11,
    "copy": 8,
    "revert": 4,
    "wrong": 7,
    "power": 9,
    "pause": 2,
    "daemon": 1,
    "native": 3,
}


def sequence(seed: str, length: int) -> list[dict]:
    """The first step makes the guest."""
    chance = random.Random(seed)
    return [_guest(chance)] + [_step(chance, number) for number in range(1, length + 1)]


def _guest(chance: random.Random) -> dict:
    return {
        "op": "guest",
        "disks": chance.choice([1, 2, 2, 2]),
        "layers": chance.randint(1, 4),
        "base": chance.choice(["qcow2", "qcow2", "raw"]),
        "define": chance.choice(["first", "as it is", "all"]),
        "shared": chance.random() < 0.25,
        "running": chance.random() < 0.6,
    }


def _step(chance: random.Random, number: int) -> dict:
    """Every step has all that any of them needs: one that means nothing for the chains as they are may stand for another (see model.py)."""
    return {
        "n": number,
        "op": chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0],
        "cells": [[chance.randrange(CELLS), chance.randint(1, 255)] for dummy in range(2)],
        "disk": _number(chance),
        "a": _number(chance),
        "b": _number(chance),
        "shot": _number(chance),
        "kind": _number(chance),
        "wild": _number(chance),
        "disks": [_number(chance), _number(chance)],
        "files": chance.random() < 0.3,
        "tracked": chance.random() < 0.6,
        "named": chance.random() < 0.5,
        "place": chance.random() < 0.3,
        "shallow": chance.random() < 0.6,
        "raw": chance.random() < 0.3,
        "merge": chance.choice(WAYS),
        "on_delete": chance.choice(WAYS),
        "ways": [chance.choice([None, None, *WAYS]) for dummy in range(2)],
    }


def _number(chance: random.Random) -> float:
    return round(chance.random(), 3)
