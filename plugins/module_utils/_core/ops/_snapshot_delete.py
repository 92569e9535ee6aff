# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Deleting a snapshot: each disk is merged in its own direction, then nothing names the snapshot any more.

The law: disk after disk, and each is done or as it was before, whatever becomes of the next. What is done is not done again, so that a
second run finishes what a first one could not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Tuple

from ..chain import Chain, commit, pull
from ..errors import Refused
from ..model import Disk, Domain, Observed, Snapshot, where, with_chain
from ..plan import DELETE, Plan, Step
from . import _base as bases
from . import _common as common
from . import _files as files
from . import _merge_jobs as jobs
from . import _offline as offline
from ._snapshot_revert import new_paths
from ._snapshots import BACKWARD, FORWARD, Border, border, followed, forgotten, known, left_out, moved, spoiling
from .block_rebase import offline_only


@dataclass(frozen=True)
class Entry:
    """A disk of a deletion. ``layer``: the overlay, where no snapshot names it."""

    disk: str
    merge: Optional[str] = None
    layer: Optional[str] = None


@dataclass(frozen=True)
class Deletion:
    name: Optional[str]
    merge: Optional[str]
    entries: Tuple[Entry, ...]
    delete_files: bool
    resize_base: bool
    how: jobs.How


def plan(wanted: Deletion, domain: Domain, seen: Observed) -> Plan:
    """The steps that delete a snapshot, or take away the borders that are named by disk and layer. Raises Refused or Busy."""
    shot = _snapshot(wanted, domain, seen)
    if wanted.name is not None and shot is None:
        return Plan((domain,), (domain,), about=_named(wanted, domain))
    borders, gone = _borders(wanted, domain, shot, seen)
    work = _Work(wanted, domain, seen, shot)
    first = spoiling(domain, shot, borders) if shot is not None else ()
    work.steps += first
    waits = wanted.how.waiting.waits or not domain.active
    for one in borders:
        work.add(one)
        if shot is None and waits:
            work.steps += followed(domain, seen, work.moved)
    if domain.active:
        work.steps += [step for disk, dummy in gone for step in common.leftovers(domain, disk)]
    else:
        for disk, dummy in gone:
            work.steps += offline.mended(domain, disk)
            work.after = with_chain(work.after, disk.target, disk.chain)
    pairs = work.moved + [(disk.target,) + pair for disk, pair in gone if pair is not None]
    if shot is not None and waits:
        work.steps += forgotten(domain, shot, seen, pairs, bool(first))
    removals = work.removals(gone) if waits else ()
    steps = offline.locks_first(work.steps)
    fences = tuple(number for number, step in enumerate(steps) if any(step is one for one in work.fences))
    return Plan(
        (domain,),
        (work.after,),
        steps + removals,
        fence=max(0, len(steps) - 1) if removals and not fences else None,
        fences=fences + ((len(steps) - 1,) if removals and fences else ()),
        spoils=tuple(work.spoils),
        warnings=tuple(work.warnings) + (left_out(domain, shot) if shot is not None else ()),
        settles=waits,
        about=_named(wanted, domain) + tuple(target for target, dummy in (shot.files if shot is not None else ()) if domain.disk(target) is not None),
    )


def _named(wanted: Deletion, domain: Domain) -> Tuple[str, ...]:
    return tuple(disk.target for entry in wanted.entries for disk in common.disks_named(domain, entry.disk))


def _snapshot(wanted: Deletion, domain: Domain, seen: Observed) -> Optional[Snapshot]:
    if wanted.name is None:
        return None
    shot = next((one for one in known(domain, seen) if one.name == wanted.name), None)
    if shot is not None and shot.internal:
        raise Refused(
            "internal_snapshot",
            "Snapshot %s of guest %s is inside the images of its disks (%s), where there is nothing to merge: delete it with virsh snapshot-delete."
            % (shot.name, domain.name, ", ".join(shot.internal)),
        )
    return shot


def _borders(wanted: Deletion, domain: Domain, shot: Optional[Snapshot], seen: Observed) -> tuple:
    """(the borders that are there, (disk, what has moved) for those that are gone)."""
    _no_doubles(wanted, domain)
    if shot is None:
        pairs = [(common.the_disk(domain, entry.disk), _by_layer(wanted, domain, entry, seen)) for entry in wanted.entries]
        return [one for dummy, one in pairs if one is not None], [(disk, None) for disk, one in pairs if one is None]
    found: List[Border] = []
    gone = []
    entries = {common.the_disk(domain, entry.disk).target: entry for entry in wanted.entries}
    strange = [target for target in entries if target not in dict(shot.files)]
    if strange:
        raise Refused(
            "not_in_snapshot",
            "Snapshot %s of guest %s has no disk %s: its disks are %s." % (shot.name, domain.name, strange[0], ", ".join(dict(shot.files)) or "none"),
        )
    for target, dummy in shot.files:
        disk = domain.disk(target)
        if disk is None:
            continue  # it was taken from the guest since then
        one = border(domain, disk, shot, direction(wanted, entries.get(target), shot, target))
        if one is None:
            _not_cut_off(domain, disk, shot)
            _known_whole(wanted, domain, disk, seen)
            gone.append((disk, moved(disk, shot)))
        else:
            found.append(one)
    return found, gone


def _no_doubles(wanted: Deletion, domain: Domain) -> None:
    targets = [common.the_disk(domain, entry.disk).target for entry in wanted.entries]
    for target in targets:
        if targets.count(target) > 1:
            raise Refused("double", "The disk %s is named twice for guest %s: name it once, and its next layer in another task." % (target, domain.name))


def direction(wanted: Deletion, entry: Optional[Entry], shot: Snapshot, target: str) -> str:
    """What this run says of the disk, or of all, or what was recorded when the snapshot was taken."""
    return (entry.merge if entry is not None else None) or wanted.merge or dict(shot.on_delete).get(target) or BACKWARD


def _known_whole(wanted: Deletion, domain: Domain, disk: Disk, seen: Observed) -> None:
    """Refuses a chain that may go on below what is known of it: nobody could say what has left it."""
    if disk.chain.layers and disk.chain.ends is None:
        if not domain.active:
            offline.idle(domain, disk, seen, "the deletion of a snapshot", wanted.how.waiting)
        common.known_end(domain, disk)


def _not_cut_off(domain: Domain, disk: Disk, shot: Snapshot) -> None:
    """Refuses (code unfinished) to take a border for gone that is only wrongly written down, as a reversion or the deletion of another was cut off."""
    message = "The %s snapshot %s of guest %s was cut off, and what is kept of %s does not name the layers that are there: run that again first."
    state = shot.base(disk.target)
    depth = None if state is None else disk.chain.named(state)
    if depth and disk.chain[depth - 1].path in new_paths(state or "", shot.name):
        raise Refused("unfinished", message % ("reversion to", shot.name, domain.name, shot.name))
    for one in domain.noted if depth is None and state is not None else ():
        if one.name != shot.name and not one.tracked and one.base(disk.target) == state and moved(disk, one) is not None:
            raise Refused("unfinished", message % ("deletion of", one.name, domain.name, shot.name))


def _by_layer(wanted: Deletion, domain: Domain, entry: Entry, seen: Observed) -> Optional[Border]:
    disk = common.the_disk(domain, entry.disk)
    depth = common.find_layer(domain, disk, entry.layer or "", "disks[].layer")
    if depth is None or depth + 1 == len(disk.chain):
        _known_whole(wanted, domain, disk, seen)
    if depth is None:
        return None  # merged before
    if depth + 1 == len(disk.chain):
        raise Refused(
            "nothing_below",
            "Nothing lies below %s on %s, so there is no border to take away: the chain is %s."
            % (disk.chain[depth], where(domain, disk), common.addresses(disk)),
        )
    return Border(disk, depth, entry.merge or wanted.merge or BACKWARD)


class _Work:
    """The steps as they add up, disk after disk."""

    def __init__(self, wanted: Deletion, domain: Domain, seen: Observed, shot: Optional[Snapshot]):
        self.wanted, self.domain, self.seen, self.shot = wanted, domain, seen, shot
        self.after = domain
        self.steps: List[Step] = []
        self.fences: List[Step] = []  # the last step of each disk: it is done then, and libvirt may be told
        self.spoils: List[str] = []
        self.warnings: List[str] = []
        self.moved: List[tuple] = []
        self._done: List[Border] = []

    def add(self, one: Border) -> None:
        domain, disk, seen = self.domain, one.disk, self.seen
        below = one.over + 2 if one.over + 2 < len(disk.chain) else None
        chain = commit(disk.chain, one.over, one.over + 1) if one.merge == BACKWARD else pull(disk.chain, below, one.over)
        if self.domain.active:
            steps = self._live(one, below)
        else:
            steps = self._idle(one, below, chain)
        others = [shot for shot in known(domain, seen) if self.shot is None or shot.name != self.shot.name]
        if self.shot is not None:  # those above it are put right, and name the layer that stays then
            others = [shot for shot in others if shot.base(disk.target) == str(one.below) or shot.overlay(disk.target) not in self._paths(disk)]
        bases.snapshots(domain, disk, one.over, one.over + 1, others, seen, True)
        if one.merge == FORWARD and self.shot is None:
            bases.overlays(domain, disk, one.over + 1, others)
        self.steps += steps
        if self.wanted.how.waiting.waits or not self.domain.active:
            self.fences.append(self.steps[-1])
        if self.wanted.how.waiting.waits and self.domain.active and one.merge == BACKWARD:
            self.steps += jobs.after_commit(domain, disk, one.over, one.over + 1)
        self.after = with_chain(self.after, disk.target, chain)
        self.moved.append((disk.target, str(one.leaves), one.stays))
        self._done.append(one)

    def _paths(self, disk: Disk) -> set:
        return {str(layer) for layer in disk.chain.layers}

    def _live(self, one: Border, below: Optional[int]) -> Tuple[Step, ...]:
        domain, seen = self.domain, self.seen
        disk = common.writable_disk(domain, one.disk, "the deletion of a snapshot")
        common.agreed(domain, disk, seen)
        common.known_end(domain, disk)
        if one.merge == FORWARD:
            if one.over:
                raise offline_only(domain, disk, one.over, "set merge to backward for it")
            if below is not None:
                bases.covered(domain, disk, one.over, below, seen, "shut the guest down and run this task again")
            return jobs.pull_steps(self.wanted.how, domain, disk, below)
        steps = jobs.commit_steps(self.wanted.how, domain, disk, one.over, one.over + 1)
        starts = disk.job is None
        self.spoils.append(str(one.below))
        bases.shared(domain, disk, one.over + 1, seen, starts)
        if starts:
            self._into(one)
            bases.confined(domain, disk, one.over, one.over + 1, seen)
        return steps

    def _into(self, one: Border) -> Optional[int]:
        bases.protected(self.domain, one.disk, one.over + 1, self.seen)
        size, warnings = bases.growth(self.domain, one.disk, one.over, one.over + 1, self.wanted.resize_base, self.seen)
        self.warnings += warnings
        return size

    def _idle(self, one: Border, below: Optional[int], chain: Chain) -> Tuple[Step, ...]:
        domain, disk, seen = self.domain, one.disk, self.seen
        offline.idle(domain, disk, seen, "the deletion of a snapshot", self.wanted.how.waiting)
        limits = offline.limits_of(self.wanted.how.waiting, self.wanted.how.bandwidth)
        if one.merge == FORWARD:
            steps = offline.pull(domain, disk, one.over, below, limits, False, seen)
        else:
            bases.shared(domain, disk, one.over + 1, seen, True)
            self.spoils.append(str(one.below))
            steps = offline.merge(domain, disk, one.over, one.over + 1, self._into(one), limits, False, seen)
        self.warnings += offline.bitmap_warnings(domain, disk, [one.leaves], seen)
        return steps + offline.redefine(domain, [(disk, chain)])

    def removals(self, gone: list) -> Tuple[Step, ...]:
        """The files that leave the chains, those of an earlier run's merges included, and that of the memory."""
        if not self.wanted.delete_files:
            return ()
        pairs = [(one.disk, one.leaves.path) for one in self._done]
        pairs += [(disk, pair[0]) for disk, pair in gone if pair is not None and self._merged(disk, pair[0])]
        steps: List[Step] = []
        for disk, path in pairs:
            if path is not None and path.startswith("/") and not self._device(path):
                steps += offline.removable(self.domain, disk, [path], self.after, self.seen, "delete_files")
        memory = self.shot.memory if self.shot is not None else None
        file = self.seen.files.get(memory or "")
        if file is not None and file.exists and file.kind == "file":
            steps.append(Step(DELETE, None, {"path": file.path, "device": file.device, "inode": file.inode}))
        return tuple(steps)

    def _merged(self, disk: Disk, path: str) -> bool:
        """Was a file that has left the chain surely merged by us? An overlay may be a branch that a reversion has left."""
        shot = self.shot
        return shot is not None and (path != shot.overlay(disk.target) or disk.target in dict(shot.spoiled))

    def _device(self, path: str) -> bool:
        file = self.seen.files.get(path)
        if file is not None and file.kind == "block":
            self.warnings.append("The device %s is not in use any more, and is left as it is." % path)
            return True
        return False


def paths(domain: Domain) -> Tuple[str, ...]:
    """The paths whose facts a deletion needs: of every layer."""
    found = [path for disk in domain.disks for path in files.paths_of_layers(domain, disk)]
    return tuple(dict.fromkeys(found))
