# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Checkpoints and backups after a run: is it as planned, and is anything left of what failed?"""

from __future__ import annotations

from typing import List, Sequence

from .backups import NOTHING_KEPT, PULLED, Kept, lines
from .model import Observed
from .plan import AWAIT, BEGIN, CHECKPOINT, UNCHECK, Plan, Step


def _names(plan: Plan, now: Observed) -> List[str]:
    return [one.name for domain in plan.before for one in _kept(domain.uuid, now).checkpoints]


def _kept(uuid: str, now: Observed) -> Kept:
    return now.kept.get(uuid, NOTHING_KEPT)


def _made(step: Step) -> List[str]:
    """The checkpoint that a step creates, or that was created with the backup it waits for."""
    name = step.detail["name"] if step.action == CHECKPOINT else step.detail["checkpoint"] if step.action in (BEGIN, AWAIT) else None
    return [name] if name else []


def unmet(plan: Plan, now: Observed) -> List[str]:
    """What is not as planned, in sentences."""
    names = _names(plan, now)
    found = ["there is no checkpoint %s" % name for name in dict.fromkeys(name for step in plan.steps for name in _made(step)) if name not in names]
    made = {name for step in plan.steps for name in _made(step)}
    gone = [step.detail["name"] for step in plan.steps if step.action == UNCHECK and step.detail["name"] not in made]
    found += ["the checkpoint %s is still there" % name for name in gone if name in names]
    pulls = [step for step in plan.steps if step.action == BEGIN and step.detail["backup"].mode == PULLED]
    return found + ["the backup of guest %s does not run" % one.name for one in plan.before if pulls and _kept(one.uuid, now).running is None]


def left_over(plan: Plan, begun: Sequence[Step], now: Observed) -> List[str]:
    """What is there of a run that failed, or is not there any more, in sentences."""
    names = _names(plan, now)
    found = ["the checkpoint %s, which was created with it, is still there" % name for step in begun for name in _made(step) if name in names]
    found += ["the checkpoint %s was deleted" % step.detail["name"] for step in begun if step.action == UNCHECK and step.detail["name"] not in names]
    paths = [path for step in begun if step.action in (BEGIN, AWAIT) for path in step.detail["creates"]]
    found += ["%s is there" % path for path in paths if path in now.files and now.files[path].exists]
    return list(dict.fromkeys(found))


def kept_lines(now: Observed) -> str:
    """The checkpoints and the backup of the guests that were looked at, for --diff."""
    pairs = [(domain, _kept(domain.uuid, now)) for domain in now.domains]
    return "".join(lines(domain.name, [one.name for one in kept.checkpoints], kept.running and str(kept.running)) for domain, kept in pairs)
