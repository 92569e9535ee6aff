# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The two merges of a running guest as steps: a commit (backward) and a pull (forward), started, adopted, waited for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Iterable, Optional, Tuple

from ..chain import Layer
from ..jobs import COMPLETED, READY
from ..model import ACTIVE_COMMIT, COMMIT, PULL, Disk, Domain, Record
from ..plan import COMMIT as COMMIT_STEP
from ..plan import DEFINE, PIVOT, WAIT, Step, Waiting
from ..plan import PULL as PULL_STEP
from . import _common as common
from . import _files as files


@dataclass(frozen=True)
class How:
    """``bandwidth`` in bytes per second, 0: no limit."""

    bandwidth: int
    keep_relative: bool
    waiting: Waiting


def commit_steps(how: How, domain: Domain, disk: Disk, top: int, base: int) -> Tuple[Step, ...]:
    """The layers from ``top`` down to just above ``base`` into ``base``. Raises Busy, and Refused where no job may be started."""
    job = COMMIT if top else ACTIVE_COMMIT
    adopted = _adopted_commit(domain, disk, top, base)
    start: Tuple[Step, ...] = ()
    if not adopted:
        common.no_job(domain, disk)
        common.may_start(how.waiting, domain, disk, job)
        leaving = disk.chain.layers[top:base]
        merged = {"merges": tuple(layer.path for layer in leaving if layer.path), "data": files.data_of(leaving)}
        detail = {
            "job": job,
            "top": disk.address(top) if top else None,
            "base": disk.address(base),
            "bandwidth": how.bandwidth,
            "keep_relative": how.keep_relative,
            "record": replace(common.record_for(disk, job, top, base), **merged),
        }
        start = (Step(COMMIT_STEP, disk.target, detail),)
    if not how.waiting.waits:
        return start
    until = COMPLETED if top else READY
    wait = (Step(WAIT, disk.target, dict(how.waiting.detail(), job=job, until=until)),)
    pivot = () if top else (Step(PIVOT, disk.target, common.pivot_detail(disk.chain[base], how.waiting)),)
    ready = adopted and disk.mirror is not None and disk.mirror.ready == "yes"
    return start + (() if ready else wait) + pivot


def _adopted_commit(domain: Domain, disk: Disk, top: int, base: int) -> bool:
    """An active commit shows its base as its mirror; a commit further down is known by its record."""
    if disk.job is None:
        return False
    if top == 0:
        mirror = disk.mirror
        return mirror is not None and mirror.job == ACTIVE_COMMIT and mirror.chain.places[:1] == (disk.chain[base].place,)
    return common.own_job(domain, disk, common.record_for(disk, COMMIT, top, base))


def pull_steps(how: How, domain: Domain, disk: Disk, base: Optional[int]) -> Tuple[Step, ...]:
    """What is between the active layer and ``base`` (None: all below) into the active layer. Raises Busy, and Refused where no job may be started."""
    record = _pull_record(disk, base)
    start: Tuple[Step, ...] = ()
    if not common.own_job(domain, disk, record):  # libvirt does not tell the base of a pull, so only the record can say so
        common.no_job(domain, disk)
        common.may_start(how.waiting, domain, disk, PULL)
        detail = {
            "base": None if base is None else disk.address(base),
            "bandwidth": how.bandwidth,
            "keep_relative": how.keep_relative,
            "record": record,
        }
        start = (Step(PULL_STEP, disk.target, detail),)
    if not how.waiting.waits:
        return start
    return start + (Step(WAIT, disk.target, dict(how.waiting.detail(), job=PULL, until=COMPLETED)),)


def _pull_record(disk: Disk, base: Optional[int]) -> Record:
    return common.record_for(disk, PULL, *(() if base is None else (base,)))


def defined(disk: Disk, layers: Iterable[Layer]) -> Step:
    """The step that lets the next start have the chain of a disk, with the data files that libvirt knew before of these layers."""
    known = tuple(layer for layer in layers if layer.told_store is not None)
    return Step(DEFINE, disk.target, {"known": known} if known else {})


def after_commit(domain: Domain, disk: Disk, top: int, base: int) -> Tuple[Step, ...]:
    """What follows the pivot to a base with a data file: libvirt (11.3) would start the guest with that file read-only, as it was below a layer."""
    config = domain.config_disk(disk.target)
    if top or config is None or config.chain.places[:1] != disk.chain.places[:1]:
        return ()
    step = defined(disk, config.chain.layers + disk.chain.layers[base:])
    return (step,) if any(layer.place == disk.chain[base].place for layer in step.detail.get("known", ())) else ()
