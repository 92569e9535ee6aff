# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The way by a copy: onto a new qcow2 layer over a new data file, by a job of QEMU while the guest runs, or by qemu-img where no QEMU has the image open."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional, Tuple

from ..chain import HEADER, XML, Chain, Layer, file_layer
from ..errors import Busy, Refused
from ..jobs import READY
from ..model import COPY as COPY_JOB
from ..model import Disk, Domain, Observed, Record, where, with_chain
from ..notes import Conversion
from ..plan import CONVERT, METADATA, NOTE, PIVOT, REDEFINE, UNNOTE, WAIT, Plan, Step
from ..plan import COPY as COPY_STEP
from . import _common as common
from . import _datafile_rules as rules
from . import _offline as offline
from ._datafile_request import COPY, PRESENT, QCOW2, RAW, Request, cluster_size


def _layer(wanted: Request, domain: Domain, disk: Disk, dest: str, seen: Observed) -> Layer:
    named = XML if not domain.bare and rules.names_data(seen) else HEADER
    path = wanted.layer_over(disk.chain[0].path or "")
    return Layer("file", (("file", path),), QCOW2, store=replace(file_layer(dest, RAW), known_from=named, raw=True))


def running(wanted: Request, domain: Domain, disk: Disk, seen: Observed) -> Optional[Plan]:
    """The plan for a copy that an earlier run began and that still runs; None where none does. Raises Busy for another job."""
    if disk.job is None and disk.mirror is None:
        return None
    note = domain.conversion(disk.target)
    mirror = disk.mirror.chain.active if disk.mirror is not None and disk.mirror.job == COPY_JOB and disk.job is not None else None
    ours = mirror is not None and note is not None and mirror.place == ("path", note.metadata)
    asked = note is not None and (wanted.dest in (None, note.data)) and (wanted.metadata in (None, note.metadata))
    if not ours or not asked or mirror is None or note is None:
        common.no_job(domain, disk)
        raise Busy("foreign_job", "A copy that this task did not ask for is running on %s: let it end, then run again." % where(domain, disk))
    layer = replace(_layer(wanted, domain, disk, note.data, seen), source=(("file", note.metadata),))
    ready = disk.mirror is not None and disk.mirror.ready == "yes"
    return _rest(wanted, domain, disk, layer, (), ready, seen)


def start(wanted: Request, domain: Domain, disk: Disk, seen: Observed) -> Plan:
    """A copy from the beginning, of a guest that runs or that is off."""
    if wanted.dest is None:
        raise Refused(
            "copy_needed",
            "%s of %s holds its data itself, which only a copy brings into a data file: give the option dest." % (disk.chain[0], where(domain, disk)),
        )
    active, what = disk.chain[0], where(domain, disk)
    rules.convertible(wanted, domain, disk, seen, copied=True)
    rules.discards(domain, disk, wanted.dest, seen)
    if len(disk.chain) > 1:
        words = "%s of %s is on %s, and only a raw or qcow2 image that stands alone is copied to a data file: flatten it first with block_rebase."
        raise Refused("backing_file", words % (active, what, disk.chain[1]))
    if active.format not in (RAW, QCOW2):
        words = "%s of %s is %s, and only a raw or qcow2 image is copied to a data file: copy it to a raw one with block_copy first."
        raise Refused("wrong_format", words % (active, what, active.format or "of a format that is not known"))
    layer = _layer(wanted, domain, disk, wanted.dest, seen)
    path, size = layer.path or "", rules.size_of(active, seen)
    rules.new_layer(wanted, domain, disk, (path, wanted.dest), (), size, seen)
    _room(domain, disk, wanted.dest, seen)
    made = {"path": path, "over": wanted.dest, "size": size, "cluster_size": cluster_size(wanted, size), "mode_of": active.path, "keeps": True}
    made["creates"] = (path, wanted.dest)
    note = Conversion(disk.target, path, wanted.dest, PRESENT, domain.active)
    noted = (Step(NOTE, disk.target, {"note": note, "before": domain.conversion(disk.target)}),) if domain.persistent else ()
    if not domain.active:
        rules.idle(wanted, domain, disk, seen)
        return _offline(wanted, domain, disk, layer, noted, made, seen)
    common.may_start(wanted.waiting, domain, disk, COPY_JOB)
    record = Record(disk.target, COPY_JOB, path, disk.indexes, source=active.path, creates=path)
    detail = {"to": replace(layer, store=None), "below": None, "shallow": False, "params": _speed(wanted), "record": record, "creates": None, "pool": None}
    flags = ("REUSE_EXT",) + (("TRANSIENT_JOB",) if domain.persistent else ())
    begun = noted + (Step(METADATA, disk.target, made), Step(COPY_STEP, disk.target, dict(detail, flags=flags)))
    return _rest(wanted, domain, disk, layer, begun, False, seen)


def _speed(wanted: Request) -> dict:
    return {"bandwidth": wanted.bandwidth} if wanted.bandwidth else {}


def _rest(wanted: Request, domain: Domain, disk: Disk, layer: Layer, begun: Tuple[Step, ...], ready: bool, seen: Observed) -> Plan:
    """From a copy that is started to the definition of the next start."""
    after = with_chain(domain, disk.target, Chain((layer,), True))
    steps, waits = begun, wanted.waiting.waits or ready
    if not ready and waits:
        steps += (Step(WAIT, disk.target, dict(wanted.waiting.detail(), job=COPY_JOB, until=READY)),)
    fence = len(steps) if waits else None
    if waits:
        steps += (Step(PIVOT, disk.target, dict(common.pivot_detail(layer, wanted.waiting), guards=True)),)
        steps += _defined(disk, layer) + (Step(UNNOTE, disk.target),) if domain.persistent else ()
    facts = {"method": COPY, "metadata": layer.path, "data_file": layer.store.path if layer.store is not None else None}
    warnings = rules.unnamed(domain, disk, str(layer.store), None, seen)
    return Plan((domain,), (after,), steps, fence=fence, settles=waits, warnings=warnings, about=(disk.target,), facts=facts)


def _defined(disk: Disk, layer: Layer) -> Tuple[Step, ...]:
    return (Step(REDEFINE, None, {"chains": ((disk.target, Chain((layer,), None)),)}),)


def _offline(wanted: Request, domain: Domain, disk: Disk, layer: Layer, noted: Tuple[Step, ...], made: dict, seen: Observed) -> Plan:
    """By qemu-img, which keeps the dirty bitmaps of a qcow2 image."""
    after = with_chain(domain, disk.target, Chain((layer,), True))
    owner = rules.owner_for(domain, disk.chain[0].path or "", seen)  # the new files have the old one's
    work = Step(CONVERT, disk.target, dict(made, source=disk.chain[0], timeout=wanted.waiting.timeout, owner=owner))
    steps = noted + (offline.free(domain, disk, disk.chain.layers, (), seen), work) + _defined(disk, layer) + (Step(UNNOTE, disk.target),)
    facts = {"method": COPY, "metadata": layer.path, "data_file": wanted.dest}
    warnings = rules.unnamed(domain, disk, wanted.dest or "", owner, seen)
    return Plan((domain,), (after,), steps, warnings=warnings, about=(disk.target,), facts=facts)


def of_image(wanted: Request, over: Domain, image: Domain, seen: Observed) -> Plan:
    """An image that belongs to no guest, copied to a new layer over a new data file."""
    disk, held = image.disks[0], over.disks[0].chain.active
    facts = {"method": COPY, "metadata": over.name, "data_file": wanted.dest}
    if held is not None and held.store is not None and held.store.path == wanted.dest:
        return Plan((over, image), (over, image), about=(over.disks[0].target,), facts=dict(facts, method=None))
    rules.convertible(wanted, image, disk, seen)
    layer = _layer(wanted, image, disk, wanted.dest or "", seen)
    size = rules.size_of(disk.chain[0], seen)
    rules.new_layer(wanted, image, disk, (over.name, wanted.dest or ""), (), size, seen)
    _room(image, disk, wanted.dest or "", seen)
    detail = {"path": over.name, "over": wanted.dest, "size": size, "cluster_size": cluster_size(wanted, size), "mode_of": disk.chain[0].path, "keeps": True}
    detail.update(creates=(over.name, wanted.dest), source=disk.chain[0], timeout=wanted.waiting.timeout, owner=None)
    steps = (offline.free(image, disk, disk.chain.layers, (), seen), Step(CONVERT, over.disks[0].target, detail))
    after = replace(over, disks=(replace(over.disks[0], chain=Chain((layer,), True)),))
    return Plan((over, image), (after, image), steps, about=(over.disks[0].target,), facts=facts)


def _room(domain: Domain, disk: Disk, dest: str, seen: Observed) -> None:
    file = seen.files.get(dest)
    if file is not None and file.free is not None and seen.measured is not None and seen.measured > file.free:
        raise Refused(
            "no_space",
            "The data file %s for %s needs %d bytes, and its file system has %d left: make room or choose another place."
            % (dest, where(domain, disk), seen.measured, file.free),
        )
