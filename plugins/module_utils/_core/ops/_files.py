# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that a plan creates or removes: what has to be true of them before anything starts."""

from __future__ import annotations

import posixpath
from typing import Iterable, Optional, Tuple

from ..chain import Layer, Pairs, file_layer, normal_path
from ..errors import Refused
from ..model import Disk, Domain, Observed, Use, where
from ..plan import DELETE, Step


def absolute(path: str, option: str) -> str:
    """The path without dots and double slashes. Raises Refused (code not_absolute)."""
    if not path.startswith("/"):
        raise Refused("not_absolute", "The option %s is %s, a relative path, which QEMU would look for elsewhere: give an absolute path." % (option, path))
    return normal_path(path)


def places_of(path: str, seen: Observed) -> set:
    """The places that mean this path: as written and with its links resolved."""
    names = {normal_path(path)}
    if path in seen.files and seen.files[path].real:
        names.add(seen.files[path].real)
    return {("path", name) for name in names}


def unused(domain: Domain, disk: Disk, path: str, seen: Observed) -> None:
    """Refuses a destination that is a layer of any guest's disk (code in_use)."""
    layer_unused(domain, disk, file_layer(path, None), seen)


def layer_unused(domain: Domain, disk: Disk, layer: Layer, seen: Observed) -> None:
    """Refuses a destination, of any type, that is a layer of any guest's disk (code in_use)."""
    places = {layer.place} | (places_of(layer.path, seen) if layer.path else set())
    for use in seen.uses:
        if use.place in places:
            raise Refused(
                "in_use",
                "The destination %s for %s is a layer of disk %s of guest %s: choose another path."
                % (layer, where(domain, disk), use.disk, use.guest),
            )


def new_file(domain: Domain, disk: Disk, path: str, seen: Observed) -> None:
    """Refuses a destination that exists or that cannot be created (codes in_use, exists, no_parent).

    An empty file counts as absent, as it does for libvirt: it may have been made to preset its owner.
    """
    unused(domain, disk, path, seen)
    file = seen.files.get(path)
    if file is None:
        return  # a remote host's files are libvirt's to check
    what = "The destination %s for %s" % (path, where(domain, disk))
    if file.parent != "dir":
        raise Refused("no_parent", "%s is in %s, which is not a directory: create it first." % (what, posixpath.dirname(path)))
    if file.exists and (file.kind != "file" or file.size):
        raise Refused("exists", "%s exists already: remove it, choose another path, or set reuse_existing if it was prepared for this." % what)


def paths_of_layers(domain: Domain, disk: Disk) -> Tuple[str, ...]:
    """The paths of all layers that a disk has now, in its mirror, or at its next start, and of their data files."""
    return tuple(dict.fromkeys(layer.path for chain in _chains(domain, disk) for layer in chain.images() if layer.path))


def _chains(domain: Domain, disk: Disk) -> list:
    """Every chain of a disk of that guest. ``disk`` is the disk as it is now: a prediction has no mirror any more."""
    found = [one for one in (domain.disk(disk.target), domain.config_disk(disk.target)) if one is not None]
    return [one.chain for one in found] + ([disk.mirror.chain] if disk.mirror else [])


def data_of(layers: Iterable[Layer]) -> Pairs:
    """(path of the layer, path of its data file) of those that have both: what is noted of layers that leave a chain."""
    return tuple((layer.path, layer.store.path) for layer in layers if layer.path and layer.store is not None and layer.store.path)


def deletions(
    domain: Domain, disk: Disk, paths: Iterable[str], after: Domain, seen: Observed, option: str, data: Pairs = ()
) -> Tuple[Step, ...]:
    """Steps that remove the files that exist, each with its data file after it. ``after``: the guest as it will be; ``data``: as ``data_of``, by a note.

    Raises Refused: a remote host (remote_files), a path that the disk goes on needing (still_in_chain), that another disk
    uses (in_use), that is not a regular file (not_a_file), or chains that could not be read to the end (unread). A data file that is
    needed, or is no regular file, stays, and the step says so.
    """
    layers = [layer for chain in _chains(after, disk) for layer in chain.images()]
    needed = {place for layer in layers for place in (places_of(layer.path, seen) if layer.path else ())}
    needed.update(layer.place for layer in layers)
    steps = []
    for path in paths:
        what = "The option %s for %s names %s" % (option, where(domain, disk), path)
        if not seen.local:
            raise Refused("remote_files", "%s, but the files of a remote URI cannot be removed: run this task on the guest's host." % what)
        if places_of(path, seen) & needed:
            raise Refused(
                "still_in_chain",
                "The option %s names %s, which %s still needs, now or at its next start: leave it out."
                % (option, path, where(domain, disk)),
            )
        _unused_elsewhere(after, disk, path, seen, what)
        file, store = seen.files.get(path), _data_file(domain, disk, path, seen, data)
        if file is not None and not file.exists:
            steps += _with_data(after, disk, path, store, needed, seen)[1]
            continue
        if file is None or file.kind != "file":  # None: it is no path at all
            raise Refused("not_a_file", "%s, which is not a regular file: only files are removed, leave it out." % what)
        if seen.unread:
            raise Refused(
                "unread",
                "%s, but the chain below %s cannot be read, so nobody knows who needs that file: mend it or leave %s empty."
                % (what, ", ".join(seen.unread), option),
            )
        stays, following = _with_data(after, disk, path, store, needed, seen)
        steps.append(Step(DELETE, disk.target, dict({"path": path, "device": file.device, "inode": file.inode}, **stays)))
        steps += following
    return tuple({step.detail["path"]: step for step in steps}.values())


def _data_file(domain: Domain, disk: Disk, path: str, seen: Observed, noted: Pairs) -> Optional[str]:
    """The data file of a layer that is or was in a chain of the disk: by the chains, by its header where its format is known, or by a note."""
    found = dict(noted)
    image = seen.images.get(path)
    if image is not None and image.data_path:
        found[path] = image.data_path
    found.update(pair for chain in _chains(domain, disk) for pair in data_of(chain.layers))
    return found.get(path)


def _with_data(after: Domain, disk: Disk, path: str, data: Optional[str], needed: set, seen: Observed) -> Tuple[dict, Tuple[Step, ...]]:
    """(why the data file of a layer that is removed stays, the step that removes it)."""
    file = seen.files.get(data or "")
    if data is None or (file is not None and not file.exists):
        return {}, ()
    user = _user(after, disk, data, seen)
    if places_of(data, seen) & needed:
        reason = "disk %s needs it" % disk.target
    elif user is not None:
        reason = "disk %s of guest %s uses it" % (user.disk, user.guest)
    elif file is None or file.kind != "file":
        reason = "it is no regular file"
    elif seen.unread:
        reason = "who needs it is not known"
    else:
        return {}, (Step(DELETE, disk.target, {"path": data, "device": file.device, "inode": file.inode, "of": path}),)
    return {"stays": (data, reason)}, ()


def _unused_elsewhere(domain: Domain, disk: Disk, path: str, seen: Observed, what: str) -> None:
    """Refuses a path that another disk uses, or this one at a next start that will begin with another image than the one in use then.

    ``domain``: the guest as it will be.
    """
    use = _user(domain, disk, path, seen)
    if use is not None:
        raise Refused("in_use", "%s, which disk %s of guest %s uses: leave it out." % (what, use.disk, use.guest))


def _user(domain: Domain, disk: Disk, path: str, seen: Observed) -> Optional[Use]:
    now, config = domain.disk(disk.target), domain.config_disk(disk.target)
    same_start = now is None or config is None or config.chain.places[:1] == now.chain.places[:1]
    places = places_of(path, seen)
    for use in seen.uses:
        own = (use.uuid, use.disk) == (domain.uuid, disk.target)
        if use.place in places and not (own and same_start):
            return use
    return None
