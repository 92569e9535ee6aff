# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""May layers be merged into that base?

The law: a base is written to from the first moment of a commit, and nothing takes that back. So whoever else needs it as it is (another
disk, a snapshot, the operator who protected it) is asked for before.
"""

from __future__ import annotations

from typing import Iterable, Optional, Tuple

from ..apparmor import obstacle
from ..chain import Layer, file_layer
from ..errors import Refused
from ..headers import follow, probe_of
from ..model import Disk, Domain, Observed, Snapshot, where
from . import _files as files
from ._offline import DEEPEST, with_data


def shared(domain: Domain, disk: Disk, base: int, seen: Observed, starts: bool) -> None:
    """A base that another disk needs must not be written to. What is not known only matters before the first write."""
    written = with_data([disk.chain[base]])
    places = {place for image in written for place in {image.place} | (files.places_of(image.path, seen) if image.path else set())}
    own = [use for use in seen.uses if (use.uuid, use.disk) == (domain.uuid, disk.target)]
    places |= {use.place for use in own if use.layer in [image.place for image in written]}
    for use in seen.uses:
        if use.place in places and (use.uuid, use.disk) != (domain.uuid, disk.target):
            raise Refused(
                "base_shared",
                "The base %s of %s is also a layer of disk %s of guest %s, which a commit would corrupt: choose a base above it."
                % (disk.chain[base], where(domain, disk), use.disk, use.guest),
            )
    if starts and seen.unread and not seen.local:
        raise Refused(
            "remote_files",
            "Whether another guest needs the base %s of %s cannot be seen through a remote URI: run this task on the guest's host."
            % (disk.chain[base], where(domain, disk)),
        )
    if starts and seen.unread:
        raise Refused(
            "unread",
            "The base %s of %s may be shared: the chain below %s cannot be read, so nobody knows who needs it, mend that first."
            % (disk.chain[base], where(domain, disk), ", ".join(seen.unread)),
        )


def protected(domain: Domain, disk: Disk, base: int, seen: Observed) -> None:
    """Refuses (code protected) a base that its operator keeps from being written to."""
    for image in with_data([disk.chain[base]]):
        file = seen.files.get(image.path or "")
        if file is not None and file.protected is not None:
            what = "The base %s of %s" % (disk.chain[base], where(domain, disk))
            what = what if image == disk.chain[base] else "%s has the data file %s, which" % (what, image)
            raise Refused("protected", "%s is protected (%s): choose a base above it, or take that away." % (what, file.protected))


def confined(domain: Domain, disk: Disk, top: int, base: int, seen: Observed) -> None:
    """Refuses (code apparmor) what the profile of the running guest keeps QEMU from writing to: the base, and the header of what stands on ``top``.

    QEMU opens the latter only at the end of the job, when the base has been written.
    """
    confinement = seen.confinement.get(domain.uuid)
    layers = disk.chain.layers
    for layer in with_data((layers[base],) + (layers[top - 1 : top] if top > 1 else ())):
        file = seen.files.get(layer.path or "")
        path = file.real if file is not None and file.exists and file.real else layer.path
        reason = obstacle(confinement, seen.versions.libvirt, path) if confinement is not None and path is not None else None
        if reason is not None:
            raise Refused("apparmor", "A commit into %s of %s is not possible: %s" % (layers[base], where(domain, disk), reason))


def snapshots(domain: Domain, disk: Disk, top: int, base: int, known: Iterable[Snapshot], seen: Observed, retold: bool = False) -> None:
    """Refuses (code snapshot_needs) a commit of which a snapshot would lose what it stands for.

    A snapshot is the image below its overlay as it was then: merged into, it is that no more, and libvirt can neither revert nor delete it.
    The same holds for one on another branch, left by a reversion, whose images stand on the base. ``retold``: of one that stands for ``top``
    it is written down afterwards that the base has taken its place.
    """
    layers = disk.chain.layers
    overlays = {str(layer) for layer in layers[top:base]}
    states = {str(layer) for layer in layers[top + retold : base + 1]}
    for shot in known:
        path = shot.overlay(disk.target)
        state = shot.base(disk.target)
        needed = path if path in overlays else state if state in states else None
        if needed is None and _stands_on(shot, disk, disk.chain[base], seen):
            needed = str(disk.chain[base])
        if needed is not None:
            raise Refused(
                "snapshot_needs",
                "Snapshot %s of guest %s needs %s on %s: delete it with external_snapshot (state absent), which merges in the same way."
                % (shot.name, domain.name, needed, where(domain, disk)),
            )


def overlays(domain: Domain, disk: Disk, depth: int, known: Iterable[Snapshot]) -> None:
    """Refuses (code snapshot_needs) to let a layer leave the chain that is the overlay of a snapshot: what stands for that border then, nobody would know."""
    for shot in known:
        if shot.overlay(disk.target) == str(disk.chain[depth]):
            raise Refused(
                "snapshot_needs",
                "Snapshot %s of guest %s needs %s on %s: delete it with external_snapshot (state absent), which merges in the same way."
                % (shot.name, domain.name, disk.chain[depth], where(domain, disk)),
            )


def _stands_on(shot: Snapshot, disk: Disk, base: Layer, seen: Observed) -> bool:
    """Does an image of a snapshot that is not in the chain have the base below it?"""
    named = [path for path in (shot.overlay(disk.target), shot.base(disk.target)) if path is not None]
    away = [path for path in named if path.startswith("/") and disk.chain.named(path) is None]
    return any(base.place in follow(file_layer(path, None), seen.probes, DEEPEST).chain.places for path in away)


def size_of(domain: Domain, disk: Disk, layer: Layer, seen: Observed) -> Optional[int]:
    """What a guest sees of a layer, in bytes, None where nobody knows: by its header, or else by libvirt's statistics."""
    probe = probe_of(layer, seen.probes)
    if probe is not None and probe.virtual is not None:
        return probe.virtual
    sizes = seen.sizes.get((domain.uuid, disk.target, layer.index))
    return None if sizes is None else sizes.virtual


def covered(domain: Domain, disk: Disk, over: int, base: int, seen: Observed, advice: str) -> None:
    """Refuses (code middle_smaller) to let the layer at the depth ``over`` stand on ``base`` where the one between hides the end of the base from it.

    Behind the end of a layer zeros are read, and QEMU (to 7.2 at least) copies none of them.
    """
    layers = disk.chain.layers
    upper, between, there = (size_of(domain, disk, layers[depth], seen) for depth in (over, over + 1, base))
    if upper is not None and between is not None and there is not None and between < min(upper, there):
        raise Refused(
            "middle_smaller",
            "The layer %s of %s ends after %d bytes, before %s above it and %s below it: behind that zeros are read, and would be read from the base then, %s."
            % (layers[over + 1], where(domain, disk), between, layers[over], layers[base], advice),
        )


def growth(domain: Domain, disk: Disk, top: int, base: int, resize: bool, seen: Observed) -> Tuple[Optional[int], Tuple[str, ...]]:
    """(the size in bytes that the base has to grow to, None where it is large enough; what to say of it).

    Raises Refused: base_smaller where ``resize`` does not allow it, or the base is a device, which nobody here can grow.
    """
    layers = disk.chain.layers
    wanted, there = (size_of(domain, disk, layers[depth], seen) for depth in (top, base))
    if top:
        covered(domain, disk, top - 1, base, seen, "merge it forward while the guest is off")
    if wanted is None or there is None or there >= wanted:
        return None, ()
    what = "The base %s of %s has %d bytes, and %s above it has %d" % (layers[base], where(domain, disk), there, layers[top], wanted)
    holder = layers[base].store or layers[base]
    if holder.format == "raw" and holder.type != "file":
        raise Refused("base_smaller", "%s: let the device grow first, or choose another base." % what)
    if not resize:
        raw = " (a raw image, whose file becomes longer)" if layers[base].format == "raw" else ""
        raise Refused("base_smaller", "%s: set resize_base, so that it grows%s." % (what, raw))
    return wanted, ("%s: it grows to that size, and does not shrink again." % what,)
