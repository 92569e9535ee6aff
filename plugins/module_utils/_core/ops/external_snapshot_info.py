# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of external_snapshot_info: no steps; the snapshots of guests, and what external_snapshot would do with each.

The law: what can be deleted and gone back to is asked of external_snapshot's own planner, with the look that it would have had of that
guest. There is no second set of rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Tuple

from ..errors import LiveStorageError
from ..model import Domain, Needs, Observed, Selection, Snapshot
from ..plan import DELETE, Plan, Waiting
from . import _common as common
from . import _snapshot_delete as deletes
from . import _snapshot_revert as reverts
from . import external_snapshot
from ._merge_jobs import How
from ._offline import DEEPEST
from ._snapshot_report import LayerFacts, in_order, memory_result, parents, reason_of, tree, uses_by_guest
from ._snapshots import BACKWARD, Border, border, known

CHANGES = False
NOTHING = {"domains": []}  # what is returned where nothing could be read
QUESTIONS = ("job", "snapshots", "checkpoints")  # without an answer to one of these external_snapshot fails


@dataclass(frozen=True)
class Request:
    selection: Selection
    name: Optional[str]
    merge: Optional[str]

    @property
    def needs(self) -> Needs:
        return Needs(
            self.selection,
            tolerant=True,
            offline=True,
            headers=DEEPEST,
            sizes=True,
            uses=True,
            shots=True,
            of_snapshots=True,
            doubts=True,
            bitmaps=True,
            versions=True,
            confinement=True,
            paths_of=deletes.paths,
            paths_with=_new_overlays,
            stores=True,
        )


def _new_overlays(domain: Domain, shots: Tuple[Snapshot, ...]) -> Tuple[str, ...]:
    """Where a reversion would put its overlays."""
    disks = () if domain.active else domain.disks
    pairs = [(shot.name, disk.target, shot.base(disk.target)) for shot in (*shots, *domain.noted) for disk in disks]
    chains = {disk.target: disk.chain for disk in disks}
    depths = [(name, chains[target], chains[target].named(state)) for name, target, state in pairs if state is not None]
    states = [(name, chain[depth].path) for name, chain, depth in depths if depth is not None]
    return tuple(one for name, path in states if path is not None for one in reverts.new_paths(path, name))


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused (code bad_filter)."""
    return Request(common.several_guests(params), params["snapshot_name"], params["merge"])


def plan(wanted: Request, seen: Observed) -> Plan:
    """Nothing to do. Raises Refused (code no_guest) for a guest that was named and is not there."""
    common.none_missing(wanted.selection, seen)
    names = {domain.uuid: domain.name for domain in seen.domains}
    warnings = ["The jobs of guest %s cannot be read now: what can be done with its snapshots is not known." % name for name in seen.silent]
    warnings += ["Guest %s changed while it was looked at: what is returned of it may be outdated." % names[uuid] for uuid in seen.moved]
    return Plan(seen.domains, seen.domains, warnings=tuple(warnings) + seen.troubles)


def report(wanted: Request, seen: Observed) -> dict:
    """What the module returns."""
    uses = uses_by_guest(seen)
    return {"changed": False, "domains": [_Guest(wanted, domain, seen, uses(domain)).result() for domain in seen.domains]}


class _Guest:
    """One guest, and the look that external_snapshot would have had of it."""

    def __init__(self, wanted: Request, domain: Domain, seen: Observed, uses: tuple):
        answers = [seen.unanswered.get((domain.uuid, question)) for question in QUESTIONS]
        doubt = seen.unanswered.get((domain.uuid, "qemu_view"))
        self._lost = next(({"code": one[0], "message": one[1]} for one in answers if one is not None), None)
        self._wanted, self._domain = wanted, domain
        self._checkpoints = seen.checkpoints.get(domain.uuid, ())
        self._view = replace(
            seen,
            domains=(domain,),
            snapshots=seen.shots.get(domain.uuid, ()),
            shots={},
            uses=uses,
            bitmaps=tuple(pair for dummy, pairs in self._checkpoints for pair in pairs),
            troubles=(doubt[1],) if doubt is not None else (),
        )
        shots = known(domain, self._view)
        self._parents = parents(shots)
        self._shots = in_order(shots, self._parents)
        self._facts = LayerFacts(domain, seen)

    def result(self) -> dict:
        domain, name = self._domain, self._wanted.name
        return {
            "name": domain.name,
            "uuid": domain.uuid,
            "active": domain.active,
            "persistent": domain.persistent,
            "state": domain.state,
            "unread": self._lost,
            "snapshots": [self._snapshot(shot) for shot in self._shots if name in (None, shot.name)],
            "tree": tree(self._shots, self._parents),
            "untracked": [] if name is not None else self._untracked(),
            "checkpoints": [{"name": one, "disks": [{"disk": target, "bitmap": bitmap} for target, bitmap in pairs]} for one, pairs in self._checkpoints],
        }

    def _snapshot(self, shot: Snapshot) -> dict:
        kept = self._refusal(self._absent(shot.name), self._view)
        back = external_snapshot.Request(Selection(uuid=self._domain.uuid), external_snapshot.REVERTED, reversion=reverts.Reversion(shot.name, False))
        stuck = self._refusal(back, self._view)
        disks = [self._disk(shot, target, kept) for target, dummy in shot.files]
        return {
            "name": shot.name,
            "parent": self._parents[shot.name],
            "children": [one.name for one in self._shots if self._parents[one.name] == shot.name],
            "current": shot.current,
            "tracked": shot.tracked,
            "description": shot.description,
            "created": shot.created,
            "state": shot.state,
            "internal": list(shot.internal),
            "memory": memory_result(shot, self._view),
            "disks": disks,
            "stale": bool(disks) and all(disk["in_chain"] is False for disk in disks),
            "deletable": kept is None,
            "delete_reason": kept,
            "revertable": stuck is None,
            "revert_reason": stuck,
        }

    def _disk(self, shot: Snapshot, target: str, whole: Optional[dict]) -> dict:
        """One disk of a snapshot, judged as if the snapshot had no other one."""
        view = self._narrowed(shot, target)
        disk = self._domain.disk(target)
        reason = whole if len(shot.files) == 1 else self._refusal(self._absent(shot.name), view)
        found: Optional[Border] = None
        there: Optional[bool] = False
        try:
            direction = deletes.direction(self._deletion(shot.name), None, shot, target)
            if disk is not None:
                found = border(self._domain, disk, shot, direction)
                there = True if found is not None else None if disk.chain.layers and disk.chain.ends is None else False
        except LiveStorageError:  # both sides are there, and something else between them
            there = True
        return {
            "disk": target,
            "on_delete": dict(shot.on_delete).get(target),
            "depth": self._facts.depth(target, shot.overlay(target)),
            "in_chain": there,
            "spoiled": target in dict(shot.spoiled),
            "overlay": self._facts.named(target, shot.overlay(target)),
            "base": self._facts.named(target, shot.base(target)),
            "merge": None if found is None else self._merge(found),
            **self._removal(target, self._absent(shot.name, (), True), view, reason),
            "deletable": reason is None,
            "reason": reason,
        }

    def _narrowed(self, shot: Snapshot, target: str) -> Observed:
        """The same look, in which a snapshot is of one disk alone."""

        def narrow(one: Snapshot) -> Snapshot:
            files, bases = (tuple(pair for pair in pairs if pair[0] == target) for pairs in (one.files, one.bases))
            return replace(one, files=files, bases=bases) if one.name == shot.name else one

        domain = replace(self._domain, noted=tuple(map(narrow, self._domain.noted)))
        return replace(self._view, domains=(domain,), snapshots=tuple(map(narrow, self._view.snapshots)))

    def _untracked(self) -> List[dict]:
        """The overlays that no snapshot knows, as external_snapshot would take them by disk and layer."""
        found = []
        for disk in self._domain.disks:
            owned = {disk.chain.named(path) for shot in self._shots for target, path in shot.files if target == disk.target}
            found += [self._overlay(Border(disk, depth, self._wanted.merge or BACKWARD)) for depth in range(len(disk.chain) - 1) if depth not in owned]
        return found

    def _overlay(self, one: Border) -> dict:
        target = one.disk.target
        name = one.overlay.path or one.disk.address(one.over) or str(one.overlay)
        entries = (deletes.Entry(target, None, name),)
        reason = self._refusal(self._absent(None, entries), self._view)
        return {
            "disk": target,
            "layer": name,
            "depth": one.over,
            "overlay": self._facts.at(target, one.over),
            "base": self._facts.at(target, one.over + 1),
            "merge": self._merge(one),
            **self._removal(target, self._absent(None, entries, True), self._view, reason),
            "deletable": reason is None,
            "reason": reason,
        }

    def _merge(self, one: Border) -> dict:
        leaves = one.over if one.leaves is one.overlay else one.over + 1
        return {"direction": one.merge, "from": str(one.leaves), "into": str(one.stays), "bytes": self._facts.held(one.disk.target, leaves)}

    def _removal(self, target: str, removing: external_snapshot.Request, view: Observed, reason: Optional[dict]) -> dict:
        """The file that would be removed from this disk. ``removing``: the deletion with its files, which is asked for if the one without them goes."""
        plan_, kept = self._judged(removing, view) if reason is None else (None, None)
        steps = plan_.steps if plan_ is not None else ()
        return {"deletes": next((step.detail["path"] for step in steps if step.action == DELETE and step.disk == target), None), "kept": kept}

    def _deletion(self, name: Optional[str], entries: tuple = (), delete_files: bool = False) -> deletes.Deletion:
        return deletes.Deletion(name, self._wanted.merge, entries, delete_files, False, How(0, False, Waiting()))

    def _absent(self, name: Optional[str], entries: tuple = (), delete_files: bool = False) -> external_snapshot.Request:
        deletion = self._deletion(name, entries, delete_files)
        return external_snapshot.Request(Selection(uuid=self._domain.uuid), external_snapshot.ABSENT, deletion=deletion)

    def _refusal(self, asked: external_snapshot.Request, view: Observed) -> Optional[dict]:
        return self._judged(asked, view)[1]

    def _judged(self, asked: external_snapshot.Request, view: Observed) -> Tuple[Optional[Plan], Optional[Dict[str, str]]]:
        """(what external_snapshot would do, None), or (None, why it would not)."""
        if self._lost is not None:
            return None, self._lost
        try:
            return external_snapshot.plan(asked, view), None
        except LiveStorageError as error:
            return None, reason_of(error)
