# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of datafile_convert: a qcow2 layer over a raw image that becomes its data file, and back.

The law: the raw image is the truth at any moment, with the layer and without it. So a layer is always made anew, and one that was dropped is destroyed:
used again after its data file was used alone, it would show what is no longer so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Tuple

from ..chain import HEADER, XML, Chain, Layer
from ..errors import Refused
from ..model import Disk, Domain, Observed, where, with_chain, with_config
from ..notes import Conversion
from ..plan import DELETE, LOCK, NOTE, REDEFINE, RESAVE, RESTART, SAVE, UNNOTE, Plan, Step
from . import _common as common
from . import _datafile_copy as copies
from . import _datafile_image as images
from . import _datafile_left as left_by
from . import _datafile_migration as migration
from . import _datafile_request
from . import _datafile_rules as rules
from . import _datafile_steps as steps_of
from . import _files as files
from . import _offline as offline
from ._datafile_request import ABSENT, AUTO, COPY, MIGRATE, OFFLINE, PRESENT, QCOW2, RAW, SAVED, UNFINISHED, Request

CHANGES = True
IMAGES = True
PER_DISK = False
MORE: Dict[str, object] = {"method": None, "pause": None, "metadata": None, "data_file": None, "xml": None}
request = _datafile_request.request
MIB = 1 << 20


def plan(wanted: Request, seen: Observed) -> Plan:
    """The steps of the conversion. Raises Refused or Busy, naming the guest, the disk and the layer."""
    if wanted.path is not None:
        return images.plan(wanted, seen)
    domain = common.the_guest(wanted.selection, seen)
    disk = _the_disk(wanted, domain)
    common.writable_disk(domain, disk, "a conversion")
    if domain.active:
        common.agreed(domain, disk, seen)
    if wanted.state == ABSENT:
        return _absent(wanted, domain, disk, seen)
    active = disk.chain[0]
    if active.format == QCOW2 and active.store is not None:
        return _there(wanted, domain, disk, seen)
    running = copies.running(wanted, domain, disk, seen)
    return running if running is not None else _present(wanted, domain, disk, seen)


def _the_disk(wanted: Request, domain: Domain) -> Disk:
    """By its target, or by the path of its active layer or of the data file below that."""
    found = wanted.named(domain)
    return found[0] if len(found) == 1 else common.the_disk(domain, wanted.disk)


def _there(wanted: Request, domain: Domain, disk: Disk, seen: Observed) -> Plan:
    """It has a data file already: what is left is what a run that was killed has not done."""
    active, what = disk.chain[0], where(domain, disk)
    store = active.store
    rules.over_raw(domain, disk, seen)
    for option, asked, found in (("metadata", wanted.metadata, active.path), ("dest", wanted.dest, store.path if store is not None else None)):
        if asked is not None and asked != found:
            words = "The layer %s over the data file %s is on %s already: leave the option %s out, or correct it."
            raise Refused("converted", words % (active, store, what, option))
    note, steps, after = domain.conversion(disk.target), (), domain
    config = domain.config_disk(disk.target)
    if config is not None and config.chain.places[:1] != disk.chain.places[:1] and note is not None and note.metadata == active.path:
        steps += (steps_of.onto(REDEFINE, disk, replace(active, store=store and replace(store, known_from=XML if rules.names_data(seen) else HEADER))),)
        after = with_config(domain, disk.target, Chain((active,), True))
    else:
        rules.same_start(domain, disk)
    if note is not None and note.ran and domain.saved and not domain.active:
        steps += (Step(RESTART, disk.target),)
        after = replace(after, active=True, state="running", saved=False)
    fence = len(steps) - 1 if steps else None
    steps += (Step(UNNOTE, disk.target),) if note is not None else ()
    facts = {"metadata": active.path, "data_file": store.path if store is not None else None}
    return Plan((domain,), (after,), steps, fence=fence, about=(disk.target,), facts=facts)


def _present(wanted: Request, domain: Domain, disk: Disk, seen: Observed) -> Plan:
    """A layer over the raw image of a disk."""
    method = _method(wanted, domain, disk)
    if method == COPY:
        return copies.start(wanted, domain, disk, seen)
    rules.convertible(wanted, domain, disk, seen)
    rules.raw_alone(domain, disk, seen)
    rules.discards(domain, disk, disk.chain[0].path or "", seen)
    if not domain.active:
        rules.idle(wanted, domain, disk, seen)
    layer = steps_of.new(wanted, domain, disk, seen)
    path, raw = layer.path or "", disk.chain[0].path or ""
    if method == MIGRATE and migration.ready(domain, disk, path, raw, seen):
        return migration.prepared(domain, disk, layer, (), None, {"metadata": path, "data_file": raw}, seen)
    left = left_by.leftovers(domain, disk, path, raw, seen)
    rules.new_layer(wanted, domain, disk, (path, path + UNFINISHED), left, rules.size_of(disk.chain[0], seen), seen)
    state = MIGRATE if method == MIGRATE else PRESENT
    told = Conversion(disk.target, path, raw, state, method != MIGRATE and (domain.active or _was_saved(domain, disk)))
    note = Step(NOTE, disk.target, {"note": told, "before": domain.conversion(disk.target)})
    made = left + (note,) + steps_of.made(wanted, domain, disk, layer, seen)
    facts = {"method": method, "metadata": path, "data_file": raw}
    adopted = steps_of.adopted(wanted, domain, disk, layer, method == OFFLINE, seen)
    warnings = rules.unnamed(domain, disk, raw, adopted.detail["owner"], seen)
    if method == MIGRATE:
        return migration.prepared(domain, disk, layer, made, adopted, facts, seen)
    return _worked(wanted, domain, disk, layer, made, (adopted,), (Step(UNNOTE, disk.target),), method, seen, warnings, facts)


def _absent(wanted: Request, domain: Domain, disk: Disk, seen: Observed) -> Plan:
    """The raw image alone again, and no layer that anybody could put over it once more."""
    active, note = disk.chain[0], domain.conversion(disk.target)
    if active.store is None:
        if active.format != RAW:
            raise Refused(
                "no_data_file",
                "%s of %s has no data file, it holds its data itself: copy the disk to a raw image with block_copy." % (active, where(domain, disk)),
            )
        return _raw_already(wanted, domain, disk, seen)
    if wanted.metadata is not None and wanted.metadata != active.path:
        raise Refused("not_over", "The layer of %s is %s: correct the option metadata, or leave it out." % (where(domain, disk), active))
    rules.convertible(wanted, domain, disk, seen)
    rules.over_raw(domain, disk, seen)
    if not domain.active:
        rules.idle(wanted, domain, disk, seen)
    method = _method(wanted, domain, disk)
    raw = replace(active.store, known_from=XML, index=None)
    told = Conversion(disk.target, active.path or "", raw.path or "", ABSENT, domain.active or _was_saved(domain, disk))
    first = (Step(NOTE, disk.target, {"note": told, "before": note}),)
    facts = {"method": method, "metadata": active.path, "data_file": raw.path}
    if method == MIGRATE:
        return migration.prepared(domain, disk, raw, (), None, facts, seen)
    after = with_chain(domain, disk.target, Chain((raw,), True))
    last = files.deletions(domain, disk, (active.path or "",), after, seen, "state") + (Step(UNNOTE, disk.target),)
    warnings = rules.bitmap_warning(domain, disk, seen)
    return _worked(wanted, domain, disk, raw, first, (steps_of.proven(domain, disk, seen),), last, method, seen, warnings, facts)


def _raw_already(wanted: Request, domain: Domain, disk: Disk, seen: Observed) -> Plan:
    """Nothing is over the raw image. What a killed run left goes: the layer, the note, and the pause of the guest."""
    note, raw = domain.conversion(disk.target), disk.chain[0]
    steps: Tuple[Step, ...] = ()
    after = domain
    if note is not None and note.ran and domain.saved and not domain.active:
        steps += (steps_of.onto(RESAVE, disk, raw), Step(RESTART, disk.target))
        after = replace(domain, active=True, state="running", saved=False)
    config = domain.config_disk(disk.target)
    if note is not None and config is not None and config.chain.places[:1] != disk.chain.places[:1] and config.chain.named(note.metadata) == 0:
        steps += (steps_of.onto(REDEFINE, disk, raw),)
        after = with_config(after, disk.target, Chain((raw,), True))
    else:
        rules.same_start(domain, disk)
    old = left_by.old_layer(wanted, domain, disk, raw.path or "", seen)
    gone = files.deletions(domain, disk, (old,) if old is not None else (), after, seen, "metadata")
    if note is not None and old is None:
        steps = left_by.leftovers(domain, disk, note.metadata, raw.path or "", seen) + steps
    fence = len(steps) - 1 if steps else None
    done = steps + gone + ((Step(UNNOTE, disk.target),) if note is not None else ())
    facts = {"metadata": old, "data_file": raw.path}
    return Plan((domain,), (after,), done, fence=fence, about=(disk.target,), facts=facts)


def _worked(
    wanted: Request,
    domain: Domain,
    disk: Disk,
    layer: Layer,
    first: Tuple[Step, ...],
    work: Tuple[Step, ...],
    last: Tuple[Step, ...],
    method: str,
    seen: Observed,
    warnings: Tuple[str, ...],
    facts: dict,
) -> Plan:
    """The work on images that no QEMU has open, and the guest's next start on ``layer``; between a save and a start where the guest runs."""
    after = with_chain(domain, disk.target, Chain((layer,), True))
    images = tuple(disk.chain.images())
    steps = first
    if method == OFFLINE:
        steps += (offline.free(domain, disk, images, (), seen), *work, steps_of.onto(REDEFINE, disk, layer))
    else:
        steps = _stopped(wanted, domain, disk) + first + ((Step(SAVE, disk.target, {"timeout": wanted.waiting.timeout}),) if domain.active else ())
        steps += (Step(LOCK, disk.target, {"write": images, "read": ()}), *work)
        # In this order: somebody may start the guest from what was saved, and later from its definition. Only the later of both may be the raw
        # image, on which a guest writes beside the layer.
        told = (steps_of.onto(RESAVE, disk, layer), steps_of.onto(REDEFINE, disk, layer))
        steps += (*(told if layer.store is not None else reversed(told)), Step(RESTART, disk.target))
        after = replace(after, active=True, state=domain.state if domain.active else "running", saved=False)
    fence = len(steps) - 1 if method == SAVED or any(step.action == DELETE for step in last) else None
    return Plan((domain,), (after,), steps + last, fence=fence, warnings=warnings, about=(disk.target,), facts=facts)


def _stopped(wanted: Request, domain: Domain, disk: Disk) -> Tuple[Step, ...]:
    """Of a guest that a killed run has saved: nothing of that run stands in the way of its start any more, and if this run fails it is started."""
    if domain.active:
        return ()
    back = steps_of.onto(RESAVE, disk, disk.chain[0])
    return Step(SAVE, disk.target, {"timeout": wanted.waiting.timeout, "already": True}), replace(back, detail=dict(back.detail, stays=True))


def _method(wanted: Request, domain: Domain, disk: Disk) -> str:
    """How it is done. Refuses what the state of the guest does not allow, and a pause that nobody has allowed."""
    method, what = wanted.method, where(domain, disk)
    if _was_saved(domain, disk):
        return SAVED  # a run that was killed has paused it: whatever was asked for, it has to go on
    if method == AUTO and (wanted.dest is not None or not domain.active):
        method = COPY if wanted.dest is not None else OFFLINE
    if method in (OFFLINE, SAVED, MIGRATE) and (method == OFFLINE) == domain.active:
        so, advice = ("running", "shut it down") if domain.active else ("off", "start it")
        raise Refused("bad_method", "Guest %s is %s, and the method %s is for one that is not: %s, or leave method out." % (domain.name, so, method, advice))
    if method in (AUTO, SAVED) and not wanted.allow_pause:
        copy = ", or give dest, to copy it without a pause" if wanted.state == PRESENT else ""
        raise Refused(
            "pause",
            "For the conversion of %s its guest has to be paused: %d MiB of memory are written to libvirt's save directory and read again, nothing of "
            "the disk is copied. Set allow_pause, or shut the guest down first%s." % (what, (domain.memory or 0) // MIB, copy),
        )
    return SAVED if method == AUTO else method


def _was_saved(domain: Domain, disk: Disk) -> bool:
    """Is it paused by a run of this module that did not come to its end?"""
    note = domain.conversion(disk.target)
    return not domain.active and domain.saved and note is not None and note.ran
