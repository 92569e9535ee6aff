# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A plan: what is, what will be, and the steps between, with the point of no return named.

The law: a plan is complete before anything is done. Check mode shows it, the real run carries out the same one,
and a fresh look has to agree with ``after``. No steps means that everything already is as asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Tuple

from .model import Domain

SNAPSHOT, PULL, COMMIT, COPY = "snapshot", "pull", "commit", "copy"
WAIT, PIVOT, ABORT, SPEED = "wait", "pivot", "abort", "speed"
CREATE, PREPARE, DISCARD, DELETE = "create", "prepare", "discard", "delete"
DEFINE, PROTECT, FORGET = "define", "protect", "forget"
# On images that no QEMU has open: hold their locks, merge layers into one below, change what a layer stands on, put an overlay on one, write the definition.
LOCK, MERGE, REBASE, OVERLAY, REDEFINE = "lock", "merge", "rebase", "overlay", "redefine"
FREEZE, THAW = "freeze", "thaw"
REVERT, RETELL, DISOWN = "revert", "retell", "disown"  # what libvirt keeps of snapshots
# A qcow2 layer over a raw image, its data file: make it beside that, let it stand over it, or see that both show the same; copy into one; remove it.
METADATA, ADOPT, PROVE, CONVERT, DROP = "metadata", "adopt", "prove", "convert", "drop"
SAVE, RESAVE, RESTART = "save", "resave", "restart"  # a guest with its memory: save it, change what it will be started with, start it
NOTE, UNNOTE = "note", "unnote"  # in the definition of the guest: which conversion was begun
CHECKPOINT, UNCHECK = "checkpoint", "uncheck"  # create or delete one
# A backup: begin it, wait for a push, write what a target stands on into its header, look at the targets.
BEGIN, AWAIT, BACK, INSPECT = "begin", "await", "back", "inspect"
QUIET = frozenset([FORGET, LOCK, FREEZE, THAW, NOTE, UNNOTE])  # what changes nothing about the guest


@dataclass(frozen=True)
class Step:
    """One call to the host. ``action`` is one of the words above, ``detail`` what that action needs (see ``_edge/host.py``)."""

    action: str
    disk: Optional[str] = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """``fence``: the position in ``steps`` after which undo would be a lie (None: all can be undone). Work on several disks has
    ``fences``, one for each disk whose work can be done while that of another fails.

    ``spoils``: layers whose content is harmed even if the chain's shape comes back. ``settles`` is False where the
    run does not wait for its job: then ``after`` is where the guest is going, and the look afterwards may still see the job.
    ``failing`` is the (code, sentence) with which the run fails although its steps succeed, where they only keep a harm from growing;
    ``quiesces``: whether the guest's file systems are frozen meanwhile, None where that was not asked for.
    ``stands`` then says how the guest stands, where libvirt does not know it. ``facts`` are what only this module returns, as its planner's ``MORE``
    lists them; what the host measures is added by its ``facts``. ``told`` are lines for --diff beside the chains, before and after.
    """

    before: Tuple[Domain, ...]
    after: Tuple[Domain, ...]
    steps: Tuple[Step, ...] = ()
    fence: Optional[int] = None
    spoils: Tuple[str, ...] = ()
    warnings: Tuple[str, ...] = ()
    settles: bool = True
    about: Tuple[str, ...] = ()
    failing: Optional[Tuple[str, str]] = None
    stands: Optional[str] = None
    fences: Tuple[int, ...] = ()
    quiesces: Optional[bool] = None
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)
    told: Tuple[str, str] = ("", "")

    def is_fence(self, position: int) -> bool:
        return position == self.fence or position in self.fences

    def crossed(self, begun: int) -> int:
        """How many of so many begun steps are surely behind a fence, and so are not undone: a step after it was begun, too."""
        passed = [position + 1 for position in range(begun) if self.is_fence(position) and begun > position + 1]
        return max(passed, default=0)

    @property
    def changes(self) -> bool:
        """Does it change the guest? Taking away a note that a killed run left behind does not count."""
        return any(step.action not in QUIET for step in self.steps)

    @property
    def touched(self) -> frozenset:
        """The disks that the steps are about; without a step those that the plan is ``about``, or else every disk."""
        named = [step.disk for step in self.steps if step.disk is not None]
        named += [target for step in self.steps for name in ("overlays", "chains") for target, dummy in step.detail.get(name, ())]
        return frozenset(named or self.about or [disk.target for domain in self.before for disk in domain.disks])


@dataclass(frozen=True)
class Waiting:
    """How a job is waited for. ``timeout`` and ``poll_interval`` in seconds; ``on_timeout`` is leave or abort.

    ``phase``: whole; start (all is checked, and the job is started as without ``wait``); finish (no job is started, the one that runs
    was begun by the phase start of this very run); or adopt (as finish, for a job that an earlier run began).
    """

    wait: bool = True
    timeout: float = 86400
    poll_interval: float = 1.0
    on_timeout: str = "leave"
    phase: str = "whole"

    @property
    def waits(self) -> bool:
        return self.wait and self.phase != "start"

    @property
    def starts(self) -> bool:
        return self.phase not in ("finish", "adopt")

    @property
    def owns(self) -> bool:
        """Was the job that runs begun by an earlier phase of this very run?"""
        return self.phase == "finish"

    def detail(self) -> dict:
        """``rest``: the timeout is only what an earlier phase left of it."""
        rest = {} if self.starts else {"rest": True}
        return dict(rest, timeout=self.timeout, poll_interval=self.poll_interval, on_timeout=self.on_timeout)
