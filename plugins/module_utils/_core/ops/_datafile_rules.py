# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What has to be true before a raw image becomes the data file of a qcow2 layer, or stops being one; each refusal names the way out."""

from __future__ import annotations

import posixpath
from typing import List, Optional, Tuple

from ..chain import Layer
from ..errors import Refused
from ..headers import PROBED_TYPES, probe_of
from ..host_facts import SECTOR, Image
from ..host_xml import numbers_of
from ..model import Disk, Domain, Observed, where
from ..plan import Step
from . import _common as common
from . import _files as files
from . import _offline as offline
from ._datafile_request import QCOW2, RAW, Request, cluster_size, tables

NAMES_DATA = (10, 10, 0)  # the libvirt that has <dataStore>
DAC = "dac"


def image_of(layer: Layer, seen: Observed) -> Optional[Image]:
    probe = probe_of(layer, seen.probes)
    return probe.image if probe is not None else None


def size_of(layer: Layer, seen: Observed) -> int:
    """The bytes of an image as a guest sees them."""
    probe = probe_of(layer, seen.probes)
    return (probe.virtual if probe is not None else None) or 0


def convertible(wanted: Request, domain: Domain, disk: Disk, seen: Observed, copied: bool = False) -> None:
    """Refuses what neither direction can be done with: the disk's kind, its jobs, its snapshots, its checkpoints, another next start.

    ``copied``: to another image, which takes the bitmaps of the checkpoints along (libvirt's copy and qemu-img's both do).
    """
    what = where(domain, disk)
    if not seen.local:
        raise Refused("remote_files", "The conversion of %s needs its files: run this task on the guest's host." % what)
    if not domain.bare:
        common.writable_disk(domain, disk, "a conversion")
        common.no_job(domain, disk)
        _next_start(domain, disk)
    for layer in disk.chain.layers[:1]:
        _plain(what, layer)
    names = sorted({shot.name for shot in seen.snapshots})
    if names:
        raise Refused(
            "snapshots",
            "Guest %s has snapshots (%s), which name %s as it is now, and a reversion would bring that back: delete them first."
            % (domain.name, ", ".join(names), disk.chain[0]),
        )
    if not copied and any(target == disk.target for target, dummy in seen.bitmaps):
        raise Refused(
            "checkpoints",
            "There are checkpoints of %s, whose bitmaps would say nothing true of it any more: delete them first, and make a full backup afterwards." % what,
        )
    _unshared(domain, disk, seen)


def _next_start(domain: Domain, disk: Disk) -> None:
    if not domain.persistent:
        raise Refused("transient", "Guest %s is transient, so that its conversion would end with it: define it first (virsh define)." % domain.name)
    config, note = domain.config_disk(disk.target), domain.conversion(disk.target)
    both = disk.chain.places[:1] + (config.chain.places[:1] if config is not None else ())
    if note is not None and both == (("path", note.metadata), ("path", note.data)):
        return  # a run that was killed has changed only one of both
    if config is None or config.chain.places[:1] != disk.chain.places[:1]:
        _differs(domain, disk, config)


def same_start(domain: Domain, disk: Disk) -> None:
    """Refuses a disk that is as asked now and will not be so at the next start of its guest."""
    config = domain.config_disk(disk.target)
    if config is not None and config.chain.places[:1] != disk.chain.places[:1]:
        _differs(domain, disk, config)


def _differs(domain: Domain, disk: Disk, config: Optional[Disk]) -> None:
    raise Refused(
        "config_differs",
        "At its next start, disk %s of guest %s would have %s, while it has %s now: define the one that is meant, then run again."
        % (disk.target, domain.name, config.chain.active if config is not None and config.chain.layers else "nothing", disk.chain[0]),
    )


def _plain(what: str, layer: Layer) -> None:
    reasons = (
        (layer.path is None or layer.type not in PROBED_TYPES, "is neither a file nor a block device"),
        (bool(layer.facts.slices), "is a slice of its image"),
        (bool(layer.facts.encryption), "is encrypted"),
    )
    for wrong, reason in reasons:
        if wrong:
            raise Refused("disk_kind", "The layer %s of %s %s, which no data file can be: choose another disk." % (layer, what, reason))


def _unshared(domain: Domain, disk: Disk, seen: Observed) -> None:
    """Refuses an image that another disk has in its chain: with a layer over it, or without one, that disk would read something else."""
    for layer in disk.chain.images():
        places = files.places_of(layer.path or "", seen) | {layer.place}
        for use in seen.uses:
            if use.place in places and (use.uuid, use.disk) != (domain.uuid, disk.target):
                who = "disk %s of guest %s" % (use.disk, use.guest)
                if domain.bare:
                    raise Refused("in_use", "The image %s is a layer of %s: name that guest instead of the image." % (layer, who))
                raise Refused("in_use", "%s of %s is a layer of %s, too: leave it alone." % (layer, where(domain, disk), who))
    if seen.unread:
        raise Refused(
            "unread",
            "Nobody knows who else needs %s, because the chain below %s cannot be read: mend that first." % (where(domain, disk), ", ".join(seen.unread)),
        )


def discards(domain: Domain, disk: Disk, path: str, seen: Observed) -> None:
    """Refuses discards of the guest that the layer would note and the data file could not follow (what else libvirt can set keeps both the same)."""
    drivers = [dict(one.driver) for one in (domain.disk(disk.target), domain.config_disk(disk.target)) if one is not None]
    if any(driver.get("discard") == "unmap" for driver in drivers) and seen.takes_holes.get(path) is False:
        raise Refused(
            "discard",
            "%s has discard='unmap', and what is discarded at %s may still be read there, where the layer shows zeros: set discard='ignore' in the "
            "definition of guest %s and start it anew, or copy the disk with dest to a file system that takes holes."
            % (_begun(domain, disk), path, domain.name),
        )


def _begun(domain: Domain, disk: Disk) -> str:
    """A disk at the beginning of a message."""
    return where(domain, disk)[0].upper() + where(domain, disk)[1:]


def raw_alone(domain: Domain, disk: Disk, seen: Observed) -> None:
    """Refuses a disk that is not just one raw image of whole sectors."""
    what, active = where(domain, disk), disk.chain[0]
    if active.format == QCOW2 and len(disk.chain) == 1 and disk.chain.ends is not False:
        raise Refused(
            "copy_needed",
            "%s of %s is a qcow2 image that holds its data itself, which only a copy brings into a data file: give the option dest." % (active, what),
        )
    if active.format != RAW and len(disk.chain) > 1:
        words = "%s of %s is %s on %s, and only a raw image can become a data file: merge or flatten its chain first."
        raise Refused("backing_file", words % (active, what, active.format, disk.chain[1]))
    if active.format != RAW:
        words = "%s of %s is %s, and only a raw image can become a data file: copy it to one with block_copy."
        raise Refused("wrong_format", words % (active, what, active.format or "of a format that is not known"))
    probe = probe_of(active, seen.probes)
    if probe is None or probe.physical is None:
        raise Refused("image_missing", "The image %s of %s cannot be looked at: see that it is there, and run again." % (active, what))
    if probe.physical % SECTOR or not probe.physical:
        raise Refused(
            "size",
            "%s of %s has %d bytes, which is no multiple of %d, so that the layer would show more than it: grow it with qemu-img resize first."
            % (active, what, probe.physical, SECTOR),
        )


def over_raw(domain: Domain, disk: Disk, seen: Observed) -> None:
    """Refuses a layer whose data file alone is not what it shows (codes not_raw, backing_file, size, bitmaps...)."""
    active, what = disk.chain[0], where(domain, disk)
    if len(disk.chain) > 1:
        raise Refused("backing_file", "%s of %s stands on %s, so its data file is not the whole disk: merge its chain first." % (active, what, disk.chain[1]))
    image = image_of(active, seen)
    if image is None or not image.data_raw:
        raise Refused(
            "not_raw",
            "%s of %s has a data file that is not raw (data_file_raw is off, and cannot be set later), so nobody can read it alone: "
            "copy the disk with block_copy."
            % (active, what),
        )
    store = active.store
    probe = probe_of(store, seen.probes) if store is not None else None
    if probe is not None and probe.physical is not None and probe.physical != image.virtual_size:
        raise Refused(
            "size",
            "%s of %s shows %d bytes, and its data file %s has %d: they have to be equal, resize the smaller one first."
            % (active, what, image.virtual_size, store, probe.physical),
        )
    free = all(seen.held.get((one.path or "", True)) is None for one in disk.chain.images())
    if free and seen.same.get((domain.uuid, disk.target)) is False:
        raise Refused(
            "differs",
            "%s of %s does not show what its data file %s holds, which was used without it, or never got the discards of a guest: find out which of both is "
            "right. If that is the data file, use it alone and remove the layer; if not, copy the disk with block_copy."
            % (active, what, store),
        )


def new_layer(wanted: Request, domain: Domain, disk: Disk, paths: Tuple[str, ...], left: Tuple[Step, ...], size: int, seen: Observed) -> None:
    """Refuses places where something is already, or that cannot take the new files. ``left``: what an earlier run left, and this one removes first."""
    going = {step.detail["path"] for step in left}
    active = disk.chain[0]
    probe = probe_of(active, seen.probes)
    if wanted.metadata is None and wanted.dest is None and probe is not None and probe.kind == "block":
        words = "%s of %s is a block device, and beside it no file outlasts the next boot of the host: name the layer with the option metadata."
        raise Refused("metadata_needed", words % (active, where(domain, disk)))
    for path in paths:
        file, what = seen.files.get(path), "The path %s for %s" % (path, where(domain, disk))
        if path in (active.path, active.store.path if active.store is not None else None):
            raise Refused("exists", "%s is the image itself: choose another path." % what)
        files.unused(domain, disk, path, seen)
        if file is None:
            raise Refused("remote_files", "%s cannot be looked at: run this task on the guest's host." % what)
        if file.parent != "dir":
            raise Refused("no_parent", "%s is in %s, which is not a directory: create it first." % (what, posixpath.dirname(path)))
        if file.exists and path not in going:
            raise Refused(
                "exists",
                "%s exists already, and nothing is written over a file: remove it if nobody needs it (an old layer over a raw image that was used without it "
                "is of no use any more), or choose another path with metadata." % what,
            )
    if len(set(paths)) < len(paths):
        raise Refused("exists", "The new files for %s have the same path: choose other ones." % where(domain, disk))
    cluster = cluster_size(wanted, size)
    if size % cluster:
        words = "%s of %s has %d bytes, which is no multiple of the cluster_size %d, so that it would grow by writes at its end: leave that option out."
        raise Refused("size", words % (active, where(domain, disk), size, cluster))
    needed = tables(size, cluster)
    free = seen.files[paths[0]].free
    if free is not None and needed > free:
        raise Refused(
            "no_space",
            "The layer %s for %s needs %d bytes, and its file system has %d left: make room, choose another path with metadata, or a bigger cluster_size."
            % (paths[0], where(domain, disk), needed, free),
        )


def names_data(seen: Observed) -> bool:
    """Does libvirt's XML name data files?"""
    return (seen.versions.libvirt or (0, 0, 0)) >= NAMES_DATA


def unnamed(domain: Domain, disk: Disk, raw: str, owner: Optional[Tuple[int, int]], seen: Observed) -> Tuple[str, ...]:
    """What is said where libvirt does not know that there is a data file."""
    if domain.bare or names_data(seen):
        return ()
    version = ".".join(map(str, seen.versions.libvirt or ()))
    given = " It is given to the user %d, as whom QEMU runs, and stays so." % owner[0] if owner is not None and owner[0] else ""
    return (
        "libvirt %s cannot name the data file %s of %s (10.10 does): it neither labels nor locks it, and does not count it as used.%s "
        "SELinux or AppArmor, where they confine guests, have to let QEMU open it." % (version or "here", raw, where(domain, disk), given),
    )


def owner_for(domain: Domain, raw: str, seen: Observed) -> Optional[Tuple[int, int]]:
    """Who has to own the data file so that the next QEMU can open it; None where nothing has to be changed.

    libvirt before 10.10 gives a data file to nobody. A running guest's image belongs to whom it has to belong to; libvirt takes that back when it is saved.
    """
    file = seen.files.get(raw)
    if domain.bare or names_data(seen) or file is None or file.kind not in ("file", "block"):
        return None
    if domain.active:
        return file.owner, file.group
    own = [numbers_of(label) for model, label in domain.seclabels if model == DAC]
    runner = own[0] if own else seen.runner
    return runner if runner is not None and not _opens(runner, file) else None


def _opens(runner: Tuple[int, int], file) -> bool:
    """May that user read and write a file, by its mode?"""
    if runner[0] == 0:
        return True
    shift = 6 if runner[0] == file.owner else 3 if runner[1] == file.group else 0
    return (file.mode >> shift) & 0o6 == 0o6


def bitmap_warning(domain: Domain, disk: Disk, seen: Observed) -> Tuple[str, ...]:
    """Dirty bitmaps go with the layer that is dropped."""
    image = image_of(disk.chain[0], seen)
    names: List[str] = [name for name, dummy in image.bitmaps] if image is not None else []
    if not names:
        return ()
    return ("The dirty bitmaps in %s (%s) go with it: the next backup of %s has to be a full one." % (disk.chain[0], ", ".join(names), where(domain, disk)),)


def idle(wanted: Request, domain: Domain, disk: Disk, seen: Observed) -> None:
    """Refuses a guest that is off and not at rest; one that this module saved before goes on from there."""
    note = domain.conversion(disk.target)
    if domain.bare or (domain.saved and note is not None and note.ran):
        return
    offline.at_rest(domain, seen)
