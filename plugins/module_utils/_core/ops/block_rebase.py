# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of block_rebase: a pull down to a base that stays, or a flatten, by a job of QEMU, or by qemu-img where no QEMU has the images open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Optional, Tuple

from ..chain import Layer, pull
from ..errors import Refused
from ..model import PULL, Disk, Domain, Needs, Observed, Selection, where, with_chain
from ..plan import Plan, Step, Waiting
from ..sizes import parse_bandwidth
from . import _base as bases
from . import _common as common
from . import _files as files
from . import _merge_jobs as jobs
from . import _offline as offline

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
    delete_dropped: Tuple[str, ...]
    waiting: Waiting
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
            paths=self.delete_dropped,
            images=tuple((path, "qcow2") for path in self.delete_dropped),
            paths_of=self._layers,
            uses=True,
            snapshots=True,
            doubts=True,
            bitmaps=True,
            stores=True,
        )

    def _layers(self, domain: Domain) -> Tuple[str, ...]:
        disks = domain.disks if domain.bare else common.disks_named(domain, self.disk)
        return tuple(path for disk in disks for path in files.paths_of_layers(domain, disk))


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused for what is wrong in itself."""
    if params["keep_relative"] and params["base"] is None:
        raise Refused("relative_needs_base", "The option keep_relative needs a base: without one no backing name is left to keep.")
    waiting = common.waiting(params)
    images = common.bare_images(params)
    if params["delete_dropped"] and not waiting.wait:
        raise Refused("delete_needs_wait", "The option delete_dropped needs wait: files are only removed after the pull was verified.")
    return Request(
        common.one_guest(params),
        params["disk"] or "",
        params["top"],
        params["base"],
        parse_bandwidth(params["bandwidth"]),
        params["keep_relative"],
        tuple(files.absolute(path, "delete_dropped") for path in params["delete_dropped"]),
        waiting,
        images,
    )


def plan(wanted: Request, seen: Observed) -> Plan:
    """The steps of the pull. Raises Refused or Busy, naming the guest, the disk and the layer."""
    if wanted.images:
        return offline.joined(_offline(wanted, image, image.disks[0], seen) for image in seen.domains)
    found = common.the_guest(wanted.selection, seen)
    if not found.active and wanted.waiting.starts:
        return _offline(wanted, found, common.the_disk(found, wanted.disk), seen)
    domain, disk = common.workable(wanted.selection, wanted.disk, seen, "a pull", wanted.waiting)
    common.known_end(domain, disk)
    top, base = _range(wanted, domain, disk)
    chain = pull(disk.chain, base, top)
    after = with_chain(domain, disk.target, chain)
    removals = _removals(wanted, domain, disk, after, base, seen)
    if chain.layers == disk.chain.layers:
        if disk.job is not None and disk.job.type == PULL:
            common.no_job(domain, disk)  # it would take that base away
        notes = common.leftovers(domain, disk)
        removals = removals if wanted.waiting.waits else ()
        return Plan((domain,), (domain,), notes + removals, fence=len(notes) if removals else None, about=(disk.target,))
    if top:
        raise offline_only(domain, disk, top)
    lost_job = common.unfinished(wanted.waiting, domain, disk, PULL)
    if lost_job is not None:
        return common.ended(domain, disk, lost_job)
    if base is not None:
        bases.covered(domain, disk, 0, base, seen, "shut the guest down and run this task again")
    steps = jobs.pull_steps(jobs.How(wanted.bandwidth, wanted.keep_relative, wanted.waiting), domain, disk, base)
    return Plan(
        (domain,),
        (after,),
        steps + (removals if wanted.waiting.waits else ()),
        fence=len(steps) - 1 if wanted.waiting.waits else None,
        warnings=common.snapshot_warnings(domain, disk, _dropped(disk, chain.layers), seen),
        settles=wanted.waiting.waits,
    )


def offline_only(domain: Domain, disk: Disk, top: int, instead: Optional[str] = None) -> Refused:
    """libvirt pulls into the active layer only, and a job that QEMU is given past it leaves libvirt with a chain that is not so any more."""
    layers = disk.chain.layers
    instead = instead or "merge %s into %s with block_commit" % (layers[top], layers[top + 1])
    return Refused(
        "offline_only",
        "libvirt cannot pull into %s, a middle layer of %s, while the guest runs: shut the guest down and run this task again, or %s, "
        "which works live and gives the same data." % (layers[top], where(domain, disk), instead),
    )


def _offline(wanted: Request, domain: Domain, disk: Disk, seen: Observed) -> Plan:
    """The plan where no QEMU has the images open."""
    offline.idle(domain, disk, seen, "a pull", wanted.waiting)
    top, base = _range(wanted, domain, disk)
    chain = pull(disk.chain, base, top)
    after = with_chain(domain, disk.target, chain)
    removals = _removals(wanted, domain, disk, after, base, seen)
    if chain.layers == disk.chain.layers:
        steps = offline.mended(domain, disk)
        after = with_chain(domain, disk.target, disk.chain)
        return Plan((domain,), (after,), steps + removals, fence=max(0, len(steps) - 1) if removals else None, about=(disk.target,))
    limits = offline.limits_of(wanted.waiting, 0)
    steps = offline.pull(domain, disk, top, base, limits, wanted.keep_relative, seen) + offline.redefine(domain, [(disk, chain)])
    dropped = _dropped(disk, chain.layers)
    warnings = common.snapshot_warnings(domain, disk, dropped, seen) + offline.bitmap_warnings(domain, disk, dropped, seen)
    if wanted.bandwidth:
        warnings += ("qemu-img knows no bandwidth for this: %s is pulled at full speed." % where(domain, disk),)
    return Plan((domain,), (after,), steps + removals, fence=len(steps) - 1 if removals else None, warnings=warnings)


def _dropped(disk: Disk, kept: Iterable[Layer]) -> list:
    return [layer for layer in disk.chain.layers if layer not in kept]


def _range(wanted: Request, domain: Domain, disk: Disk) -> Tuple[int, Optional[int]]:
    """The layer that is pulled into, and the one below it that stays (None: none)."""
    top = 0 if wanted.top is None else common.the_layer(domain, disk, wanted.top, "top")
    if wanted.base is None:
        return top, None
    base = common.the_layer(domain, disk, wanted.base, "base")
    if base == 0 and wanted.top is None:
        raise Refused(
            "base_is_active",
            "The base %s is the active layer of %s: name a layer below it, the chain is %s."
            % (wanted.base, where(domain, disk), common.addresses(disk)),
        )
    if base <= top:
        raise Refused(
            "base_not_below",
            "The base %s is not below the top %s on %s: swap them, the chain is %s."
            % (disk.chain[base], disk.chain[top], where(domain, disk), common.addresses(disk)),
        )
    return top, base


def _removals(wanted: Request, domain: Domain, disk: Disk, after: Domain, base: Optional[int], seen: Observed) -> Tuple[Step, ...]:
    steps = offline.removable(domain, disk, wanted.delete_dropped, after, seen, "delete_dropped")
    _were_layers(wanted, domain, disk, base, steps, seen)
    return steps


def _were_layers(wanted: Request, domain: Domain, disk: Disk, base: Optional[int], removals: Tuple[Step, ...], seen: Observed) -> None:
    """Refuses (code not_a_layer) to remove a file that neither is a layer of the chain nor can have been one.

    After an earlier run nothing names the layers that left: their own headers do, which lead down to the base.
    """
    paths = [step.detail["path"] for step in removals if "of" not in step.detail]
    known = set(disk.chain.places) | {("path", path) for path in wanted.delete_dropped}
    for path in paths:
        if files.places_of(path, seen) & set(disk.chain.places):
            continue
        image = seen.images.get(path)
        below = None if image is None or image.backing_path is None else ("path", image.backing_path)
        if image is None or (base is not None and below not in known):
            raise Refused(
                "not_a_layer",
                "The option delete_dropped for %s names %s, which is no layer of its chain, and no qcow2 image%s: leave it out."
                % (where(domain, disk), path, "" if base is None else " on %s" % disk.chain[base]),
            )
