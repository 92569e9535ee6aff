# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The snapshots of a guest: those that libvirt keeps, and those that only our own note in its metadata tells of.

The law: a snapshot of a disk is a border between two layers, the overlay above and the image below that holds the moment. Deleting it
takes the border away: backward, the overlay goes into the image below; forward, the image below goes into the overlay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Iterable, Optional, Tuple

from ..chain import Layer
from ..errors import Refused
from ..model import Disk, Domain, Observed, Snapshot, where
from ..plan import DISOWN, RETELL, Step

FORWARD, BACKWARD = "forward", "backward"


def known(domain: Domain, seen: Observed) -> Tuple[Snapshot, ...]:
    """libvirt's, with what our note says of them, then those of our note alone that still have an overlay in a chain, or an image on another branch."""
    noted = {one.name: one for one in domain.noted}
    tracked = seen.snapshots or seen.shots.get(domain.uuid, ())
    found = [replace(one, on_delete=noted[one.name].on_delete, spoiled=noted[one.name].spoiled) if one.name in noted else one for one in tracked]
    names = {one.name for one in tracked}
    return tuple(found) + tuple(one for one in domain.noted if one.name not in names and not one.tracked and _stands(domain, one, seen))


def _stands(domain: Domain, shot: Snapshot, seen: Observed) -> bool:
    """Is an overlay of it in a chain, or its image kept on another branch, which a reversion has left?"""
    chains = {disk.target: disk.chain for disk in domain.disks}
    for target, path in shot.files:
        state = seen.files.get(shot.base(target) or "")
        if target in chains and chains[target].named(path) is not None:
            return True
        if target in chains and state is not None and state.exists and chains[target].named(state.path) is None:
            return True
    return False


@dataclass(frozen=True)
class Border:
    """Between the layers at the depths ``over`` and ``over + 1`` of a disk. ``merge`` is forward or backward."""

    disk: Disk
    over: int
    merge: str

    @property
    def overlay(self) -> Layer:
        return self.disk.chain[self.over]

    @property
    def below(self) -> Layer:
        return self.disk.chain[self.over + 1]

    @property
    def leaves(self) -> Layer:
        """The layer that is merged into the other one."""
        return self.overlay if self.merge == BACKWARD else self.below

    @property
    def stays(self) -> Layer:
        return self.below if self.merge == BACKWARD else self.overlay


def border(domain: Domain, disk: Disk, shot: Snapshot, merge: str) -> Optional[Border]:
    """Where a snapshot's border is, None where it is gone. Raises Refused (code not_as_recorded) where the layers are not those that it was taken with."""
    overlay, state = shot.overlay(disk.target), shot.base(disk.target)
    depth = None if overlay is None else disk.chain.named(overlay)
    if depth is None or depth + 1 == len(disk.chain):
        return None
    if state is not None and disk.chain.named(state) != depth + 1:
        if disk.chain.named(state) is None:
            return None  # it was merged forward before
        raise Refused(
            "not_as_recorded",
            "Snapshot %s of guest %s was taken with %s directly above %s, and %s has %s between them now: name the disk and the layer instead."
            % (shot.name, domain.name, overlay, state, where(domain, disk), disk.chain[depth + 1]),
        )
    return Border(disk, depth, merge)


def moved(disk: Disk, shot: Snapshot) -> Optional[Tuple[str, Layer]]:
    """(path that has left, the layer that stands for it) of a border that is gone; None where nothing stands for it.

    A copy or a pull takes an overlay away, too, and the image below is as it was: only a deletion that was begun has merged the one into the other.
    """
    pair = (shot.overlay(disk.target), shot.base(disk.target))
    depths = [None if path is None else disk.chain.named(path) for path in pair]
    if depths[0] is None and depths[1] is not None and pair[0] is not None and disk.target in dict(shot.spoiled):
        return pair[0], disk.chain[depths[1]]
    if depths[1] is None and depths[0] is not None and pair[1] is not None:
        return pair[1], disk.chain[depths[0]]
    return None


def left_out(domain: Domain, shot: Snapshot) -> Tuple[str, ...]:
    """What is said of the disks of a snapshot that were taken from the guest since then."""
    message = "Snapshot %s is of disk %s, too, which guest %s does not have any more: its overlay %s is left as it is."
    return tuple(message % (shot.name, target, domain.name, path) for target, path in shot.files if domain.disk(target) is None)


def spoiling(domain: Domain, shot: Snapshot, borders: Iterable[Border]) -> Tuple[Step, ...]:
    """The step that writes down, before the first write, that the images below these borders will hold the moment no more."""
    spoiled = dict(shot.spoiled)
    spoiled.update({one.disk.target: str(one.below) for one in borders if one.merge == BACKWARD})
    if domain.bare or tuple(spoiled.items()) == shot.spoiled:
        return ()
    others = tuple(one for one in domain.noted if one.name != shot.name)
    return (retell((), others + (replace(shot, spoiled=tuple(spoiled.items())),), before=domain.noted),)


def forgotten(domain: Domain, shot: Snapshot, seen: Observed, changes: Iterable[Tuple[str, str, Layer]], noted: bool) -> Tuple[Step, ...]:
    """The steps that let nothing name a snapshot any more, and the others name the layers that are there now: (disk, path that left, layer instead).
    ``noted``: this run has written a note about it.

    What is left to do in between, our note remembers.
    """
    pairs = tuple(changes)
    names = tuple(one.name for one in known(domain, seen) if one.tracked and one.name != shot.name) if pairs else ()
    kept = tuple(_retold(one, pairs) for one in domain.noted if one.name != shot.name and (one.tracked or _stands(domain, one, seen)))
    disown = (Step(DISOWN, None, {"name": shot.name}),) if shot.tracked else ()
    if disown and names:
        spoiled = dict(shot.spoiled, **{target: str(layer) for target, path, layer in pairs if path == shot.overlay(target)})
        left = (retell((), kept + (replace(shot, tracked=False, spoiled=tuple(spoiled.items())),)),)
        return left + disown + (retell(names, kept, pairs),)
    notes = kept if noted or kept != domain.noted else None
    return disown + ((retell(names, notes, pairs),) if names or notes is not None else ())


def followed(domain: Domain, seen: Observed, changes: Iterable[Tuple[str, str, Layer]]) -> Tuple[Step, ...]:
    """The step that lets the snapshots name the layers that are there after the last of these changes, where no snapshot has gone."""
    pairs = tuple(changes)
    names = tuple(one.name for one in known(domain, seen) if one.tracked)
    before, kept = (tuple(_retold(one, some) for one in domain.noted) for some in (pairs[:-1], pairs))
    # Never undone: the merge that it tells of is done, and stays so.
    return (retell(names, None if kept == before else kept, pairs),) if names or kept != before else ()


def retell(names: tuple, notes: Optional[tuple], pairs: tuple = (), overlays: tuple = (), before: Optional[tuple] = None) -> Step:
    """``names``: the snapshots that libvirt keeps and that are put right. ``notes``: our note from now on, None: as it is; ``before``: for its undo."""
    return Step(RETELL, None, {"moved": pairs, "names": names, "overlays_of": overlays, "notes": notes, "before": before})


def _retold(shot: Snapshot, pairs: Iterable[Tuple[str, str, Layer]]) -> Snapshot:
    new = {(target, path): str(layer) for target, path, layer in pairs}

    def change(files: tuple) -> tuple:
        return tuple((target, new.get((target, path), path)) for target, path in files)

    return replace(shot, files=change(shot.files), bases=change(shot.bases))
