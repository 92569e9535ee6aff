# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of block_commit: layers merged backward into one below them, by a job of QEMU, or by qemu-img where no QEMU has them open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Optional, Tuple

from ..chain import Layer, commit, normal_path
from ..errors import Refused
from ..model import ACTIVE_COMMIT, COMMIT, Disk, Domain, Needs, Observed, Record, Selection, where, with_chain
from ..plan import COMMIT as COMMIT_STEP
from ..plan import FORGET, Plan, Step, Waiting
from ..sizes import parse_bandwidth
from . import _base as bases
from . import _common as common
from . import _files as files
from . import _lost as lost
from . import _merge_jobs as jobs
from . import _offline as offline
from ._snapshots import known

CHANGES = True
IMAGES = True
PER_DISK = False


@dataclass(frozen=True)
class Request:
    selection: Selection
    disk: str
    top: Optional[str]
    base: Optional[str]
    bandwidth: int
    keep_relative: bool
    delete_merged: bool
    waiting: Waiting
    resize_base: bool = False
    images: Tuple[Tuple[str, Optional[str]], ...] = ()

    @property
    def needs(self) -> Needs:
        return Needs(
            self.selection,
            guests=not self.images,
            bare=self.images,
            as_guests=bool(self.images),
            offline=True,
            headers=offline.DEEPEST,
            sizes=True,
            paths=self._named(),
            paths_of=self._layers,
            uses=True,
            snapshots=True,
            of_snapshots=True,
            doubts=True,
            bitmaps=True,
            versions=True,
            confinement=True,
            agree=self._merged_already,
            stores=True,
        )

    def _named(self) -> Tuple[str, ...]:
        """The paths among the options: of images that are gone nothing else tells."""
        return tuple(path for path in (self.top, self.base) if path is not None and path.startswith("/"))

    def _merged_already(self, image: Domain) -> tuple:
        """The two chains that show the same data where an image by itself was merged before: nothing else would tell it."""
        disk = image.disks[0] if image.bare else None
        if disk is None or not disk.chain.layers:
            return ()
        top, base = _depths(self, image, disk)
        return ((disk.target, disk.chain.layers, disk.chain.layers[base:]),) if top == 0 and base is not None else ()

    def _layers(self, domain: Domain) -> Tuple[str, ...]:
        disks = domain.disks if domain.bare else common.disks_named(domain, self.disk)
        records = [record for record in (domain.record(disk.target) for disk in disks) if record is not None]
        merged = [path for record in records for path in record.merges + tuple(data for dummy, data in record.data)]
        return tuple(dict.fromkeys(merged + [path for disk in disks for path in files.paths_of_layers(domain, disk)]))


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused for what is wrong in itself."""
    waiting = common.waiting(params)
    images = common.bare_images(params)
    if params["delete_merged"] and not waiting.wait:
        raise Refused("delete_needs_wait", "The option delete_merged needs wait: files are only removed after the commit was verified.")
    if len(images) > 1 and (params["top"] is not None or params["base"] is not None):
        raise Refused("one_image", "The options top and base are layers of one chain: name one image, or leave them out to merge each into the one below it.")
    return Request(
        common.one_guest(params),
        params["disk"] or "",
        params["top"],
        params["base"],
        parse_bandwidth(params["bandwidth"]),
        params["keep_relative"],
        params["delete_merged"],
        waiting,
        params["resize_base"],
        images,
    )


def plan(wanted: Request, seen: Observed) -> Plan:
    """The steps of the commit. Raises Refused or Busy, naming the guest, the disk and the layer."""
    if wanted.images:
        return offline.joined(_offline(wanted, image, image.disks[0], seen) for image in seen.domains)
    found = common.the_guest(wanted.selection, seen)
    asked = common.the_disk(found, wanted.disk)
    astray = lost.plan(found, asked, lambda disk: _named_base(wanted, found, disk), seen)
    if astray is not None:
        return astray
    if not found.active and wanted.waiting.starts:
        return _offline(wanted, found, asked, seen)
    domain, disk = common.workable(wanted.selection, wanted.disk, seen, "a commit", wanted.waiting)
    common.known_end(domain, disk)
    for job in (COMMIT, ACTIVE_COMMIT):
        lost_job = common.unfinished(wanted.waiting, domain, disk, job)
        if lost_job is not None:
            return _over(wanted, domain, disk, lost_job, seen)
    if _already(wanted, domain, disk):
        return Plan((domain,), (domain,), common.leftovers(domain, disk), about=(disk.target,))
    top, base = _range(wanted, domain, disk)
    after = with_chain(domain, disk.target, commit(disk.chain, top, base))
    steps = jobs.commit_steps(jobs.How(wanted.bandwidth, wanted.keep_relative, wanted.waiting), domain, disk, top, base)
    starts = any(step.action == COMMIT_STEP for step in steps)
    bases.shared(domain, disk, base, seen, starts)
    warnings: Tuple[str, ...] = ()
    if starts:
        warnings = _allowed(wanted, domain, disk, top, base, seen)[1]
        bases.confined(domain, disk, top, base, seen)
    removals = _removals(wanted, domain, disk, disk.chain.layers[top:base], after, seen)
    return Plan(
        (domain,),
        (after,),
        steps + (jobs.after_commit(domain, disk, top, base) + removals if wanted.waiting.waits else ()),
        fence=len(steps) - 1 if wanted.waiting.waits else None,
        spoils=tuple(str(layer) for layer in disk.chain.layers[top + 1 : base + 1]),
        warnings=warnings,
        settles=wanted.waiting.waits,
    )


def _allowed(wanted: Request, domain: Domain, disk: Disk, top: int, base: int, seen: Observed) -> tuple:
    """What has to be true before the first write, running or off; (the size that the base grows to, or None; warnings)."""
    bases.protected(domain, disk, base, seen)
    bases.snapshots(domain, disk, top, base, known(domain, seen), seen)
    return bases.growth(domain, disk, top, base, wanted.resize_base, seen)


def _offline(wanted: Request, domain: Domain, disk: Disk, seen: Observed) -> Plan:
    """The plan where no QEMU has the images open."""
    gone = domain.bare and not disk.chain.layers and wanted.base is not None and wanted.base in seen.files and seen.files[wanted.base].exists
    if gone and wanted.delete_merged:
        return Plan((domain,), (domain,), about=(disk.target,))
    offline.idle(domain, disk, seen, "a commit", wanted.waiting)
    if _already(wanted, domain, disk):
        return Plan((domain,), (with_chain(domain, disk.target, disk.chain),), offline.mended(domain, disk), about=(disk.target,))
    top, base = _range(wanted, domain, disk)
    chain = commit(disk.chain, top, base)
    after = with_chain(domain, disk.target, chain)
    merged = disk.chain.layers[top:base]
    removals = _removals(wanted, domain, disk, merged, after, seen)
    if domain.bare and top == 0 and seen.same.get((domain.uuid, disk.target)):
        return Plan((domain,), (after if removals else domain,), removals, fence=0 if removals else None, about=(disk.target,))
    bases.shared(domain, disk, base, seen, True)
    size, warnings = _allowed(wanted, domain, disk, top, base, seen)
    limits = offline.limits_of(wanted.waiting, wanted.bandwidth)
    steps = offline.merge(domain, disk, top, base, size, limits, wanted.keep_relative, seen) + offline.redefine(domain, [(disk, chain)])
    spoils = tuple(str(layer) for layer in disk.chain.layers[top + 1 : base + 1])
    fence = len(steps) - 1 if removals else None
    return Plan((domain,), (after,), steps + removals, fence=fence, spoils=spoils, warnings=warnings + offline.bitmap_warnings(domain, disk, merged, seen))


def _removals(wanted: Request, domain: Domain, disk: Disk, merged: Iterable[Layer], after: Domain, seen: Observed) -> Tuple[Step, ...]:
    paths = tuple(layer.path for layer in merged if layer.path) if wanted.delete_merged else ()
    return offline.removable(domain, disk, paths, after, seen, "delete_merged")


def _depths(wanted: Request, domain: Domain, disk: Disk) -> Tuple[Optional[int], Optional[int]]:
    """(top, base), None for what is not in the chain."""
    top = 0 if wanted.top is None else common.find_layer(domain, disk, wanted.top, "top")
    below = None if top is None or top + 1 >= len(disk.chain) else top + 1
    return top, below if wanted.base is None else common.find_layer(domain, disk, wanted.base, "base")


def _named_base(wanted: Request, domain: Domain, disk: Disk) -> Optional[Layer]:
    """The layer that an active commit would have pivoted to."""
    depth = 1 if wanted.base is None else common.find_layer(domain, disk, wanted.base, "base")
    return disk.chain[depth] if depth is not None and depth < len(disk.chain) else None


def _over(wanted: Request, domain: Domain, disk: Disk, record: Record, seen: Observed) -> Plan:
    """The commit that this run was to finish is over: its layers have left the chain, or it has failed."""
    if any(("path", normal_path(path)) in disk.chain.places for path in record.merges):
        return common.ended(domain, disk, record)
    removals = files.deletions(domain, disk, record.merges, domain, seen, "delete_merged", record.data) if wanted.delete_merged else ()
    return Plan((domain,), (domain,), removals + (Step(FORGET, disk.target),), fence=0 if removals else None)


def _already(wanted: Request, domain: Domain, disk: Disk) -> bool:
    """A named top that is gone while its named base is there has been merged."""
    if wanted.top is None or wanted.base is None:
        return False
    top = common.find_layer(domain, disk, wanted.top, "top")
    return top is None and common.find_layer(domain, disk, wanted.base, "base") is not None


def _range(wanted: Request, domain: Domain, disk: Disk) -> Tuple[int, int]:
    top = 0 if wanted.top is None else common.the_layer(domain, disk, wanted.top, "top")
    if wanted.base is None:
        base = top + 1
        if base == len(disk.chain):
            raise Refused(
                "nothing_below",
                "Nothing lies below %s on %s, so there is no layer to merge it into: the chain is %s."
                % (disk.chain[top], where(domain, disk), common.addresses(disk)),
            )
        return top, base
    base = common.the_layer(domain, disk, wanted.base, "base")
    if base <= top:
        raise Refused(
            "base_not_below",
            "The base %s is not below the top %s on %s: swap them, the chain is %s."
            % (disk.chain[base], disk.chain[top], where(domain, disk), common.addresses(disk)),
        )
    return top, base
