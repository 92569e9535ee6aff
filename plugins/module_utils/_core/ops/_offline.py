# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The same work on images that no QEMU has open: those of a guest that is off, and images by themselves.

The law: what a guest would see does not change at any moment in between, so that a run that was killed is simply run again; no image
that anybody holds is written to, and of each chain the definition and the headers have to say the same before anything starts.
"""

from __future__ import annotations

import posixpath
from typing import Iterable, List, Optional, Tuple

from ..chain import XML, Chain, Layer, same_shape
from ..errors import Busy, Refused
from ..headers import PROBED_TYPES, follow, probe_of
from ..model import Disk, Domain, Observed, where
from ..plan import DELETE, LOCK, MERGE, OVERLAY, REBASE, REDEFINE, Plan, Step, Waiting
from . import _common as common
from . import _files as files

DEEPEST = 200  # libvirt's own limit for a chain
WORDS = {
    None: "there are more layers than libvirt takes",
    "protocol": "its header names something else than a path",
    "loop": "its header leads back to a layer above it",
    "missing": "it is not there",
    "not_a_file": "it is neither a file nor a block device",
    "permission": "this user may not read it",
    "unreadable": "its header cannot be read",
    "unsafe": "images of its format are not opened",
    "timeout": "the storage gave no answer in time",
    "format_unknown": "the header above it does not say its format, set that with qemu-img rebase -u -F",
    "remote": "it is on another host",
}


def idle(domain: Domain, disk: Disk, seen: Observed, work: str, waiting: Optional[Waiting] = None) -> None:
    """Refuses a disk on whose images nothing can be done now, naming the reason. ``domain`` is off."""
    what = where(domain, disk)
    if not seen.local:
        raise Refused("remote_files", "%s of %s, which is off, needs its files: run this task on the guest's host." % (work.capitalize(), what))
    if waiting is not None and not waiting.wait:
        raise Refused("offline_waits", "%s of %s, which no QEMU has open, is done by this very task: leave wait out, or use async." % (work.capitalize(), what))
    if not domain.bare:
        at_rest(domain, seen)
        common.writable_disk(domain, disk, work)
        if seen.bitmaps and any(target == disk.target for target, dummy in seen.bitmaps):
            raise Refused(
                "checkpoints",
                "There are checkpoints of %s, whose bitmaps %s offline would lose: start the guest and run this task again, or delete its checkpoints."
                % (what, work),
            )
    for layer in disk.chain.layers:
        _plain(domain, disk, layer, work)
    _whole(domain, disk, seen)
    if domain.bare:
        ours(domain, disk, disk.chain.layers[:1], seen)


def at_rest(domain: Domain, seen: Observed) -> None:
    common.no_orphan(domain, seen)
    if domain.saved:
        raise Refused(
            "saved",
            "Guest %s is saved with its memory (managed save), which expects its disks as they are: start it, or drop that with virsh managedsave-remove."
            % domain.name,
        )


def _whole(domain: Domain, disk: Disk, seen: Observed) -> None:
    """The chain has to be known to its end, and the definition and the headers have to agree on it."""
    what = where(domain, disk)
    if not disk.chain.layers:
        raise Refused("image_missing", "The image %s is not there: correct the path." % domain.name)
    last = disk.chain[len(disk.chain) - 1]
    if disk.chain.ends is None:
        problem = follow(last, seen.probes, DEEPEST).problem
        if domain.bare and len(disk.chain) == 1 and problem == "format_unknown":
            raise Refused("unknown_end", "What %s is cannot be told from its first bytes: give the option format." % what)
        raise Refused("unknown_end", "What is below %s on %s is not known (%s): mend that first." % (last, what, WORDS.get(problem, problem)))
    told = follow(disk.chain[0], seen.probes, DEEPEST)
    if not domain.bare and not same_shape(disk.chain, told.chain):
        raise Refused(
            "chain_differs",
            "The definition gives %s the chain %s, and the headers say %s: find out with disk_chain_info (validate) which is right, and mend the other."
            % (what, _words(disk.chain), _words(told.chain)),
        )


def _words(chain: Chain) -> str:
    return " on ".join(str(layer) for layer in chain.layers)


def _plain(domain: Domain, disk: Disk, layer: Layer, work: str) -> None:
    reasons = (
        (layer.path is None or layer.type not in PROBED_TYPES, "is neither a file nor a block device"),
        (bool(layer.facts.slices), "is a slice of its image"),
        (bool(layer.facts.encryption), "is encrypted"),
    ) + _plain_data(layer.store)
    for wrong, reason in reasons:
        if wrong:
            how = "leave it alone" if domain.bare else "start the guest and run this task again"
            raise Refused("offline_kind", "The layer %s of %s %s, which %s offline is not made for: %s." % (layer, where(domain, disk), reason, work, how))


def _plain_data(store: Optional[Layer]) -> tuple:
    if store is None:
        return ()
    return (
        (store.path is None or store.type not in PROBED_TYPES, "has its data in %s, which is neither a file nor a block device" % store),
        (bool(store.facts.slices) or bool(store.facts.encryption), "has its data in %s, which is encrypted or only a part of that" % store),
        (store.relative, "names its data file without a directory (make that absolute with qemu-img amend -o data_file=%s)" % store),
        (store.known_from == XML, "has the data file %s in the definition, and another one or none in its header" % store),
    )


def with_data(layers: Iterable[Layer]) -> Tuple[Layer, ...]:
    """The layers, and the data files of those that have one: whoever holds or writes a layer does it to both."""
    return tuple(image for layer in layers for image in (layer, layer.store) if image is not None)


def free(domain: Domain, disk: Disk, write: Iterable[Layer], read: Iterable[Layer], seen: Observed) -> Step:
    """The step that holds these images. Raises Busy (code in_use) where somebody holds one of them now."""
    write, read = with_data(write), with_data(read)
    for layers, writes in ((write, True), (read, False)):
        for layer in layers:
            reason = seen.held.get((layer.path or "", writes))
            if reason is not None:
                raise Busy("in_use", "%s is in use (%s): let that end, then run this task again." % (_of(domain, disk, layer), reason))
    probes = [(layer, probe_of(layer, seen.probes)) for layer in write + read]
    names = tuple((layer, probe.image.backing) for layer, probe in probes if layer.format != "raw" and probe is not None and probe.image is not None)
    return Step(LOCK, disk.target, {"write": write, "read": read, "names": names})


def ours(domain: Domain, disk: Disk, layers: Iterable[Layer], seen: Observed) -> None:
    """Refuses to write to an image that another disk, or a guest of whom this image is only asked for by itself, has in its chain."""
    for layer in with_data(layers):
        places = files.places_of(layer.path or "", seen) | {layer.place}
        for use in seen.uses:
            if use.place in places and (use.uuid, use.disk) != (domain.uuid, disk.target):
                advice = "name that guest instead of the image" if domain.bare else "leave it alone"
                raise Refused("in_use", "%s is a layer of disk %s of guest %s: %s." % (_of(domain, disk, layer), use.disk, use.guest, advice))
    if seen.unread:
        raise Refused(
            "unread",
            "Images of %s may be shared: the chain below %s cannot be read, so nobody knows who needs them, mend that first."
            % (where(domain, disk), ", ".join(seen.unread)),
        )


def _of(domain: Domain, disk: Disk, layer: Layer) -> str:
    """A layer in a message, at its beginning."""
    return "The image %s" % layer if domain.bare and str(layer) == domain.name else "The image %s of %s" % (layer, where(domain, disk))


def merge(domain: Domain, disk: Disk, top: int, base: int, size: Optional[int], limits: dict, relative: bool, seen: Observed) -> Tuple[Step, ...]:
    """The layers from ``top`` down to just above ``base`` into ``base``; what stands on them is then put on ``base``. ``size``: of the base, if it grows."""
    layers = disk.chain.layers
    write = layers[max(0, top - 1) : base + 1]
    ours(domain, disk, write, seen)
    steps = [free(domain, disk, write, layers[base + 1 :], seen)]
    steps.append(Step(MERGE, disk.target, dict(limits, chain=layers[top : base + 1], below=layers[base + 1 :], size=size)))
    if top:
        steps.append(_stood_on(layers, top - 1, base, False, limits, relative, seen, disk.target))
    return tuple(steps)


def pull(domain: Domain, disk: Disk, top: int, base: Optional[int], limits: dict, relative: bool, seen: Observed) -> Tuple[Step, ...]:
    """What the layers between ``top`` and ``base`` hold (None: all below) into ``top``, which then stands on ``base``."""
    layers = disk.chain.layers
    ours(domain, disk, layers[top : top + 1], seen)
    lock = free(domain, disk, layers[top : top + 1], layers[top + 1 :], seen)
    return (lock, _stood_on(layers, top, base, True, limits, relative, seen, disk.target))


def _stood_on(layers: tuple, layer: int, to: Optional[int], safe: bool, limits: dict, relative: bool, seen: Observed, target: str) -> Step:
    probe = probe_of(layers[layer], seen.probes)
    old = probe.image.backing if probe is not None and probe.image is not None else None
    new = None if to is None else layers[to]
    name = None
    if relative and new is not None and old is not None and not old.startswith("/"):
        name = posixpath.relpath(new.path or "", posixpath.dirname(layers[layer].path or ""))
    detail = {"layer": layers[layer], "below": layers[layer + 1 :], "to": new, "rest": () if to is None else layers[to + 1 :]}
    return Step(REBASE, target, dict(limits, **detail, safe=safe, name=name, old_name=old))


def redefine(domain: Domain, changed: Iterable[Tuple[Disk, Chain]]) -> Tuple[Step, ...]:
    """The step that lets the definition name the new chains, where it would not do so by itself: one that is open follows the headers."""
    chains = []
    for disk, chain in changed:
        config = domain.config_disk(disk.target)
        if config is None:
            continue
        written = len(config.chain) > 1 or config.chain.ends is not None
        if config.chain.places[:1] != chain.places[:1] or (written and not _says(config.chain, chain)):
            chains.append((disk.target, chain))
    return (Step(REDEFINE, None, {"chains": tuple(chains)}),) if chains else ()


def mended(domain: Domain, disk: Disk) -> Tuple[Step, ...]:
    """What a run that was killed has left to do where the chain is as asked: the definition may still spell the old one out."""
    return redefine(domain, [(disk, disk.chain)])


def _says(written: Chain, chain: Chain) -> bool:
    return written.places == chain.places[: len(written)] and written.ends in (None, chain.ends) and (written.ends is None or len(written) == len(chain))


def removable(domain: Domain, disk: Disk, paths: Iterable[str], after: Domain, seen: Observed, option: str) -> Tuple[Step, ...]:
    """Steps that remove files, none of which holds an internal snapshot."""
    steps = files.deletions(domain, disk, paths, after, seen, option)
    for step in steps:
        kept_inside(domain, disk, step, seen, option)
    return steps


def kept_inside(domain: Domain, disk: Disk, step: Step, seen: Observed, option: str) -> None:
    """Refuses (code internal_snapshots) to remove an image with snapshots inside."""
    path = step.detail["path"]
    found: List[str] = []
    for (one, dummy), probe in seen.probes.items():
        if one == path and probe.image is not None:
            found = list(probe.image.snapshots)
    if step.action == DELETE and found:
        raise Refused(
            "internal_snapshots",
            "The option %s for %s would remove %s, which holds internal snapshots (%s): leave it out." % (option, where(domain, disk), path, ", ".join(found)),
        )


def bitmap_warnings(domain: Domain, disk: Disk, layers: Iterable[Layer], seen: Observed) -> Tuple[str, ...]:
    """What is said where layers that leave the chain hold dirty bitmaps: qemu-img merges none."""
    found = [(layer, probe_of(layer, seen.probes)) for layer in layers]
    return tuple(
        "The dirty bitmaps in %s (%s) do not go on in the chain of %s: the next backup has to be a full one."
        % (layer, ", ".join(name for name, dummy in probe.image.bitmaps), where(domain, disk))
        for layer, probe in found
        if probe is not None and probe.image is not None and probe.image.bitmaps
    )


def locks_first(steps: Iterable[Step]) -> Tuple[Step, ...]:
    """The same steps, with every image held before the first one is written to."""
    found = tuple(steps)
    return tuple(step for step in found if step.action == LOCK) + tuple(step for step in found if step.action != LOCK)


def joined(plans: Iterable[Plan]) -> Plan:
    """The plans for several images as one: all the work first, and what is removed after all of it was verified."""
    parts = list(plans)
    _apart(parts)
    work = locks_first(step for part in parts for step in part.steps if step.action != DELETE)
    removals = tuple({step.detail["path"]: step for part in parts for step in part.steps if step.action == DELETE}.values())
    return Plan(
        tuple(domain for part in parts for domain in part.before),
        tuple(domain for part in parts for domain in part.after),
        work + removals,
        fence=max(0, len(work) - 1) if removals else None,
        spoils=tuple(dict.fromkeys(layer for part in parts for layer in part.spoils)),
        warnings=tuple(dict.fromkeys(warning for part in parts for warning in part.warnings)),
        about=tuple(target for part in parts for target in part.about),
    )


def _apart(parts: List[Plan]) -> None:
    """Refuses images of one task that have a layer in common which the work on one of them changes, makes or removes."""
    for number, part in enumerate(parts):
        for other in parts[:number] + parts[number + 1 :]:
            made, gone = (_paths(part, action) for action in (OVERLAY, DELETE))
            written = {layer.place for step in part.steps if step.action == LOCK for layer in step.detail["write"]}
            needed, later = ({image.place for image in one[0].disks[0].chain.images()} for one in (other.before, other.after))
            shared = ((written | made) & (needed | _paths(other, OVERLAY))) | (gone & later)
            if shared:
                message = "The images %s and %s have %s in common, which would be changed under one of them: leave one of them out."
                raise Refused("in_use", message % (part.before[0].name, other.before[0].name, sorted(place[-1] for place in shared)[0]))


def _paths(plan: Plan, action: str) -> set:
    return {("path", step.detail["path"]) for step in plan.steps if step.action == action}


def limits_of(waiting: Waiting, bandwidth: int) -> dict:
    return {"timeout": waiting.timeout, "bandwidth": bandwidth}
