# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a copy leaves below its destination, how that comes to be true, and what it takes.

The law: a shallow copy carries only what the active layer holds, and libvirt does not look whether the rest is the same below
the destination (9.0: it pivots, and what the layers between held is lost). So a destination on any other backing is first made
to hold the difference, and only then copied to.
"""

from __future__ import annotations

from dataclasses import replace
from typing import List, Optional, Tuple

from ..chain import Chain, Layer, same_shape
from ..errors import Refused
from ..headers import follow, probe_of
from ..model import Disk, Domain, Observed
from ..render import chain_text
from . import _common as common
from . import _files as files

DEEPEST = 200  # libvirt's own limit for a chain


def stays_below(domain: Domain, disk: Disk, shallow: bool, backing: Optional[Tuple[str, Optional[str]]], seen: Observed) -> Chain:
    """The chain below the destination; empty for a copy of everything. ``backing``: (a layer or another image, its format)."""
    if not shallow or (len(disk.chain) == 1 and backing is None):
        return Chain((), True)
    common.known_end(domain, disk)
    if backing is None:
        return replace(disk.chain, layers=disk.chain.layers[1:])
    named, format_ = backing
    depth = common.find_layer(domain, disk, named, "backing")
    if depth == 0:
        raise Refused(
            "backing_is_active",
            "The backing %s is the active layer of disk %s of guest %s: name a layer below it, the chain is %s."
            % (named, disk.target, domain.name, common.addresses(disk)),
        )
    if depth is not None:
        return replace(disk.chain, layers=disk.chain.layers[depth:])
    return _parallel(domain, disk, named, format_, seen)


def _parallel(domain: Domain, disk: Disk, path: str, format_: Optional[str], seen: Observed) -> Chain:
    """The chain of an image that is no layer of the disk, as the headers tell it."""
    where = "The backing %s for the copy of disk %s of guest %s" % (path, disk.target, domain.name)
    if not path.startswith("/"):
        raise Refused("not_in_chain", "%s is no layer of its chain, which is %s, and no absolute path: name either." % (where, common.addresses(disk)))
    if format_ is None:
        raise Refused("format_needed", "%s is no layer of its chain, which is %s: give backing_format with another image." % (where, common.addresses(disk)))
    if len(disk.chain) == 1:
        raise Refused("nothing_below", "%s cannot be used, because nothing is below the active layer now: leave backing and shallow out." % where)
    if not seen.local:
        raise Refused("remote_files", "%s cannot be looked at through a remote URI: run this task on the guest's host." % where)
    probe = seen.probes.get((path, format_))
    kind = probe.kind if probe is not None and probe.kind else "file"
    walk = follow(Layer(kind, (("dev" if kind == "block" else "file", path),), format_), seen.probes, DEEPEST)
    if not walk.chain.ends or walk.problem is not None:
        raise Refused("unread", "%s cannot be read to its end (%s): correct backing and backing_format." % (where, walk.problem or "unknown"))
    places = {place for layer in walk.chain.layers for place in files.places_of(layer.path or "", seen) | {layer.place}}
    for use in seen.uses:
        if use.writes and use.place in places:
            raise Refused("in_use", "%s is written to by disk %s of guest %s: name an image that stays as it is." % (where, use.disk, use.guest))
    return walk.chain


def rules(domain: Domain, disk: Disk, layer: Layer, below: Chain, reuse: bool, seen: Observed) -> None:
    """libvirt's own rules for what can stand on what (codes shallow_raw, backing_differs), and no secret in the clear (code encrypted)."""
    if any(one.facts.encryption for one in leaving(disk, below)):
        raise Refused(
            "encrypted",
            "Disk %s of guest %s is encrypted, and its copy %s would not be: copy it with virsh, which can give the destination a secret of its own."
            % (disk.target, domain.name, layer),
        )
    probe = probe_of(layer, seen.probes) if reuse else None
    image = probe.image if probe is not None else None
    if not below.layers and image is not None and image.backing:
        raise Refused(
            "backing_differs",
            "The destination %s of disk %s of guest %s has %s as its backing, and a copy of everything stands alone: prepare it without one, or set shallow."
            % (layer, disk.target, domain.name, image.backing),
        )
    if not below.layers:
        return
    where = "The destination %s of disk %s of guest %s" % (layer, disk.target, domain.name)
    if layer.format == "raw":
        raise Refused("shallow_raw", "%s is raw, and a raw image has nothing below it: leave shallow out to copy everything, or use qcow2." % where)
    if not reuse or layer.path is None:
        return
    named = image.backing_path if image is not None else None
    if image is not None and (named is None or not files.places_of(named, seen) & (files.places_of(below[0].path or "", seen) | {below[0].place})):
        raise Refused(
            "backing_differs",
            "%s has %s as its backing, where %s is to be below the copy: prepare it on that, or name its backing with the option backing."
            % (where, (image.backing if image.backing else "nothing"), below[0]),
        )
    if seen.holds and below.places == disk.chain.places[1:]:
        raise Refused(
            "not_empty",
            "%s holds data of its own, which the guest would see where its active layer has none: make it anew on %s, or leave reuse_existing out."
            % (where, below[0]),
        )


def prepared(domain: Domain, disk: Disk, layer: Layer, below: Chain, reuse: bool, seen: Observed) -> bool:
    """Does the destination have to hold what the layers between hold, before it is copied to? Refuses what cannot be prepared."""
    if reuse or not below.layers or below.places == disk.chain.places[1:]:
        return False
    where = "disk %s of guest %s" % (disk.target, domain.name)
    if layer.type != "file" or not seen.local:
        raise Refused(
            "cannot_prepare",
            "The destination %s of %s has to be prepared on %s, which is only done for a file on the guest's host: prepare it there and set reuse_existing."
            % (layer, where, below[0]),
        )
    old = disk.chain.layers[1:]
    if any(one.path is None or one.facts.slices for one in old + below.layers[:1]):
        raise Refused("cannot_prepare", "The layers below the active one of %s are not all files or block devices: copy without backing." % where)
    by_header = follow(replace(old[0], index=None), seen.probes, DEEPEST)
    if not same_shape(Chain(old, disk.chain.ends), by_header.chain):
        raise Refused(
            "backing_differs",
            "libvirt and the headers of the images do not agree on the chain of %s (%s, and %s): look with disk_chain_info (validate) first."
            % (where, chain_text(Chain(old, disk.chain.ends)), chain_text(by_header.chain)),
        )
    return True


def leaving(disk: Disk, below: Chain) -> List[Layer]:
    """The layers that are in the chain now and not below the destination."""
    return [layer for layer in disk.chain.layers if layer.place not in below.places]


def to_measure(domain: Domain, disk: Disk, shallow: bool, backing: Optional[str]) -> Tuple[Layer, ...]:
    """The layers whose data goes to the destination; none where there is nothing to be measured on this host.

    Of a backing that is no layer of the chain it is not known beforehand what differs from it.
    """
    if not shallow:
        return disk.chain.layers
    depth = common.find_layer(domain, disk, backing, "backing") if backing is not None else 1
    return disk.chain.layers[: depth or 1]


def bitmaps(disk: Disk, seen: Observed) -> List[str]:
    """The names of the dirty bitmaps of a disk: those of its checkpoints, and those that the header of its active layer names."""
    probe = probe_of(disk.chain[0], seen.probes)
    stored = list(probe.image.bitmaps) if probe is not None and probe.image is not None else []
    names = dict.fromkeys([name for name, dummy in stored] + [name for target, name in seen.bitmaps if target == disk.target])
    return list(names)


def inside(disk: Disk, seen: Observed) -> Tuple[str, ...]:
    """The names of the internal snapshots in the active layer: no copy carries them."""
    probe = probe_of(disk.chain[0], seen.probes)
    return probe.image.snapshots if probe is not None and probe.image is not None else ()


def losses(domain: Domain, disk: Disk, layer: Layer, seen: Observed) -> Tuple[str, ...]:
    """Sentences about what the disk will have no more at the destination."""
    found = []
    names = bitmaps(disk, seen) if layer.format == "raw" else []
    if names:
        text = "A raw image keeps no dirty bitmaps: after this, disk %s has no more of %s, and the next backup has to be a full one."
        found.append(text % (disk.target, ", ".join(names)))
    if inside(disk, seen):
        text = "A copy has no internal snapshots: those of disk %s of guest %s (%s) stay in %s, and libvirt can neither delete nor revert them then."
        found.append(text % (disk.target, domain.name, ", ".join(inside(disk, seen)), disk.chain[0]))
    return tuple(found)


def kept_inside(domain: Domain, disk: Disk, seen: Observed) -> None:
    """Refuses to remove a source that holds internal snapshots (code has_snapshots): they are nowhere else."""
    if inside(disk, seen):
        raise Refused(
            "has_snapshots",
            "The option delete_source for disk %s of guest %s names %s, which has the internal snapshots %s, and no copy has them: leave it out, "
            "or delete them first." % (disk.target, domain.name, disk.chain[0], ", ".join(inside(disk, seen))),
        )


def room(domain: Domain, disk: Disk, layer: Layer, reuse: bool, seen: Observed) -> None:
    """Refuses a file system that is too small (code no_space) by qemu-img's measure. What the guest writes meanwhile comes on top."""
    file = seen.files.get(layer.path or "")
    if file is None or seen.measured is None:
        return
    if layer.type == "block" and layer.format != "raw":
        probe = probe_of(layer, seen.probes)
        if probe is not None and probe.physical is not None and seen.measured > probe.physical:
            raise Refused(
                "no_space",
                "The destination %s of disk %s of guest %s has %d bytes, and what the disk holds now needs %d as %s: make the device bigger."
                % (layer, disk.target, domain.name, probe.physical, seen.measured, layer.format),
            )
    if layer.type != "file" or file.free is None:
        return
    probe = probe_of(layer, seen.probes) if reuse else None
    needed = seen.measured - (probe.allocated or 0 if probe is not None else 0)
    if needed > file.free:
        raise Refused(
            "no_space",
            "The destination %s of disk %s of guest %s needs %d bytes, and its file system has %d left: make room or choose another place."
            % (layer, disk.target, domain.name, needed, file.free),
        )
