# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a validation reports: divergences between what libvirt believes, what the images say, and what QEMU does.

The law: a finding is a fact with its evidence and a way out, never an error by itself. Its code is stable, its severity
says how much of the guest's data depends on it: critical (data are lost, hidden or shared if nothing is done), warning
(something will break, or is open to attack, later), info (something could not be known).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import FrozenSet, Iterable, List, Optional, Tuple, Union

from .chain import NO_CHAIN, Chain, Layer

INFO, WARNING, CRITICAL = "info", "warning", "critical"
SEVERITIES = (INFO, WARNING, CRITICAL)

CODES = {
    "backing_differs": CRITICAL,
    "base_smaller": INFO,
    "config_differs": WARNING,
    "data_store_differs": CRITICAL,
    "data_store_missing": WARNING,
    "data_store_relative": WARNING,
    "format_differs": CRITICAL,
    "format_missing": WARNING,
    "format_unknown": WARNING,
    "hidden_backing": CRITICAL,
    "hidden_data_store": WARNING,
    "job_left": WARNING,
    "loop": CRITICAL,
    "mirror_format": WARNING,
    "missing_file": CRITICAL,
    "not_a_file": CRITICAL,
    "orphaned_guest": CRITICAL,
    "protocol_backing": WARNING,
    "raw_with_header": CRITICAL,
    "shared_image": CRITICAL,
    "snapshot_stale": WARNING,
    "stale_pivot": CRITICAL,
    "too_deep": WARNING,
    "unknown": INFO,
    "unreadable": WARNING,
    "writable_by_others": WARNING,
}

Value = Union[str, int, None]


@dataclass(frozen=True)
class Finding:
    """``layer`` is libvirt's address of it, or its path where it has none. Sizes in ``expected`` and ``actual`` are bytes."""

    code: str
    layer: Optional[str]
    expected: Value
    actual: Value
    message: str
    level: Optional[str] = None

    @property
    def severity(self) -> str:
        """That of its code, unless the evidence makes it less."""
        return self.level or CODES[self.code]

    def result(self) -> dict:
        return {
            "code": self.code,
            "severity": self.severity,
            "layer": self.layer,
            "expected": self.expected,
            "actual": self.actual,
            "message": self.message,
        }


@dataclass(frozen=True)
class Subject:
    """What a finding is about, in words: a disk of a guest (``target`` is its name there), or an image that belongs to none.

    ``running`` is the chain in use: the next start's layers are called by the addresses that they have there. ``image`` is the
    path of such an image. ``spelled``: the places of the layers that the next start's definition has with what is below them, so that libvirt
    does not look into their headers.
    """

    words: str
    target: Optional[str] = None
    running: Chain = NO_CHAIN
    image: Optional[str] = None
    spelled: FrozenSet[tuple] = frozenset()

    def label(self, layer: Layer) -> str:
        depth = self.running.depth_of(layer.place) if layer.index is None else None
        index = layer.index if depth is None else self.running[depth].index
        return "%s[%d]" % (self.target, index) if self.target and index is not None else str(layer)

    def name(self, layer: Layer) -> str:
        """The layer for a message: its path, with its address where it has one."""
        label = self.label(layer)
        return label if label == str(layer) else "%s (%s)" % (layer, label)

    def on(self, layer: Layer) -> str:
        """The layer and where it belongs, for a message."""
        return self.name(layer) if str(layer) == self.image else "%s on %s" % (self.name(layer), self.words)


def distinct(findings: Iterable[Finding]) -> List[Finding]:
    """Without a second finding of the same code on the same layer: both chains of a disk may tell the same."""
    kept = {}
    for one in findings:
        kept.setdefault((one.code, one.layer, one.actual), one)
    return list(kept.values())


def failing(findings: Iterable[Finding], fail_on: Tuple[str, ...]) -> List[Finding]:
    """The findings that ``fail_on`` (codes, and severities that mean themselves and worse) makes a failure."""
    lowest = [SEVERITIES.index(word) for word in fail_on if word in SEVERITIES]
    return [one for one in findings if one.code in fail_on or (lowest and SEVERITIES.index(one.severity) >= min(lowest))]


def counted(number: int, word: str) -> str:
    return "%d %s%s" % (number, word, "" if number == 1 else "s")
