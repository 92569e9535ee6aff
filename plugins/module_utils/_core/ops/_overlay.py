# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where an overlay goes: a place that nobody uses, or an overlay that was prepared rightly."""

from __future__ import annotations

from ..chain import Layer
from ..errors import Refused
from ..model import Disk, Domain, Observed, where
from . import _files as files


def exists(path: str, seen: Observed) -> bool:
    return path in seen.files and seen.files[path].exists


def overlay_place(domain: Domain, disk: Disk, layer: Layer, reuse: bool, seen: Observed) -> None:
    """Refuses a place for an overlay that is taken, or a prepared overlay that is not right for the disk."""
    if layer.path is None:
        files.layer_unused(domain, disk, layer, seen)
    elif layer.type == "block" and not reuse:
        _device(domain, disk, layer.path, seen)
    elif reuse:
        _prepared(domain, disk, layer, seen)
    else:
        files.new_file(domain, disk, layer.path, seen)


def _device(domain: Domain, disk: Disk, path: str, seen: Observed) -> None:
    """A device that QEMU will format as the overlay: it has to be one, and nobody's."""
    files.unused(domain, disk, path, seen)
    file = seen.files.get(path)
    if file is not None and (file.kind != "block" or file.claimed):
        reason = "the host itself uses it" if file.claimed else "it is no block device"
        raise Refused("bad_dest", "The device %s for the overlay of %s cannot be used (%s): choose another." % (path, where(domain, disk), reason))


def _prepared(domain: Domain, disk: Disk, layer: Layer, seen: Observed) -> None:
    """A prepared overlay has to exist, be of the stated format, be large enough and name the active layer as its backing."""
    files.unused(domain, disk, layer.path, seen)
    what = "The prepared overlay %s for %s" % (layer.path, where(domain, disk))
    if not seen.local:
        raise Refused("remote_files", "%s cannot be read through a remote URI: run this task on the guest's host." % what)
    image = seen.images.get(layer.path)
    if image is None:
        raise Refused("not_prepared", "%s is not there, or is not a %s image: create it first, or leave reuse_existing out." % (what, layer.format))
    if disk.capacity is not None and image.virtual_size < disk.capacity:
        raise Refused("too_small", "%s has %d bytes, but the disk has %d: create it with the disk's size." % (what, image.virtual_size, disk.capacity))
    if image.backing_path is None or ("path", image.backing_path) != disk.chain.active.place:
        raise Refused(
            "wrong_backing",
            "%s has the backing file %s in its header, not %s: the next start would read other data, create it with -b %s -F %s."
            % (what, image.backing or "(none)", disk.chain.active, disk.chain.active, disk.chain.active.format),
        )
    if image.backing_format != disk.chain.active.format:
        raise Refused(
            "wrong_backing",
            "%s says in its header that its backing file is of the format %s, not %s: the next start would misread it, create it with -b %s -F %s."
            % (what, image.backing_format or "(none)", disk.chain.active.format, disk.chain.active, disk.chain.active.format),
        )
