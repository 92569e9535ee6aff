# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a copy goes: the option ``dest`` as a layer, and what has to be true of that place before anything starts."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Optional, Tuple

from ..chain import Layer, Pairs
from ..errors import Refused
from ..headers import probe_of
from ..model import Disk, Domain, Observed
from ..sizes import parse_size
from ._files import absolute, layer_unused, places_of

FILE, BLOCK, NETWORK = "file", "block", "network"
RAW, QCOW2 = "raw", "qcow2"
DEFAULT_PORTS = {"nbd": 10809}
CREATED_BY_POOL = ("cluster_size", "extended_l2", "lazy_refcounts")


@dataclass(frozen=True)
class Dest:
    """The option as it was given. ``layer`` is None for a volume, which has to be looked up first; ``options`` are for its creation."""

    layer: Optional[Layer]
    format: Optional[str]
    volume: Optional[Tuple[str, str]] = None
    options: Tuple[Tuple[str, object], ...] = ()


def parse_place(params: dict, format_: Optional[str], option: str) -> Layer:
    """The keys type, path, protocol, name and host of an option as a layer. Raises Refused (codes bad_dest, not_absolute)."""
    if params["protocol"] is not None or params["type"] == NETWORK:
        return _network(params, format_, option)
    if params["path"] is None:
        raise _bad("names no place: give path, pool and volume, or protocol and host", option)
    if params["name"] is not None or params["host"]:
        raise _bad("has a path, and a name or a host, which are for a network source: give one of them", option)
    kind = params["type"] or FILE
    return Layer(kind, (("dev" if kind == BLOCK else "file", absolute(params["path"], "%s.path" % option if "[" in option else option)),), format_)


def parse(params: Optional[dict]) -> Optional[Dest]:
    """``dest`` as a value. Raises Refused (codes bad_dest, not_absolute, bad_size) for what is wrong in itself."""
    if params is None:
        return None
    format_ = params["format"]
    if params["pool"] is not None or params["volume"] is not None:
        return _volume(params, format_)
    given = [name for name in CREATED_BY_POOL if params[name] is not None]
    if given:
        raise _bad("has %s, which only the pool of a volume can create: give pool and volume, or prepare the image and set reuse_existing" % ", ".join(given))
    return Dest(parse_place(params, format_, "dest"), format_)


def _bad(what: str, option: str = "dest") -> Refused:
    return Refused("bad_dest", "The option %s %s." % (option, what))


def _volume(params: dict, format_: Optional[str]) -> Dest:
    if params["pool"] is None or params["volume"] is None:
        raise _bad("has only one of pool and volume: give both")
    if any(params[name] is not None for name in ("path", "protocol", "type", "name", "host")):
        raise _bad("names a volume and another place or a type, too: give one of them")
    options = {name: params[name] for name in CREATED_BY_POOL if params[name]}
    if "cluster_size" in options:
        options["cluster_size"] = parse_size(options["cluster_size"], "dest.cluster_size")
    if options and format_ not in (None, QCOW2):
        raise _bad("has %s, which only a qcow2 image can have: leave it out, or correct the format" % ", ".join(options))
    return Dest(None, format_, (params["pool"], params["volume"]), tuple(sorted(options.items())))


def _network(params: dict, format_: Optional[str], option: str) -> Layer:
    if params["protocol"] is None:
        raise _bad("is of the type network and has no protocol: give one, such as nbd", option)
    if params["path"] is not None or params["type"] not in (None, NETWORK):
        raise _bad("has a protocol and a path or another type, too: give one of them", option)
    hosts = tuple(_host(host, params["protocol"], option) for host in params["host"] or ())
    if params["protocol"] == "nbd" and len(hosts) != 1:
        raise _bad("has the protocol nbd and %d hosts: give exactly one" % len(hosts), option)
    source = {"protocol": params["protocol"], "name": params["name"]}
    return Layer(NETWORK, tuple(sorted((key, value) for key, value in source.items() if value is not None)), format_, hosts=hosts)


def _host(host: dict, protocol: str, option: str) -> Pairs:
    """In libvirt's words; a port that it fills in by itself is given, so that what it shows later is the same place."""
    if host["socket"] is not None:
        return (("socket", absolute(host["socket"], "%s.host.socket" % option)), ("transport", "unix"))
    if host["name"] is None:
        raise _bad("has a host without a name and without a socket: give one of them", option)
    port = host["port"] if host["port"] is not None else DEFAULT_PORTS.get(protocol)
    return (("name", host["name"]),) + ((("port", str(port)),) if port is not None else ())


def the_layer(wanted: Dest, domain: Domain, disk: Disk, seen: Observed, reuse: bool) -> Layer:
    """The destination as a layer with a format: that of the option or, for what is created, that of the disk."""
    format_ = wanted.format
    layer = wanted.layer
    if layer is None:
        layer = _looked_up(wanted, domain, disk, seen)
    if format_ is None and reuse:
        raise Refused(
            "format_needed",
            "The destination %s of disk %s of guest %s is to be reused, and its format is not given: set dest.format, since a guess would trust the image."
            % (layer, disk.target, domain.name),
        )
    return Layer(layer.type, layer.source, format_ or disk.chain[0].format or RAW, hosts=layer.hosts)


def _looked_up(wanted: Dest, domain: Domain, disk: Disk, seen: Observed) -> Layer:
    volume = seen.volume
    if volume is None or volume.path is None or volume.problem is not None:
        pool, name = wanted.volume or ("", "")
        raise Refused(
            "no_volume",
            "The volume %s of the pool %s, the destination for disk %s of guest %s, cannot be used (%s): correct dest."
            % (name, pool, disk.target, domain.name, volume.problem if volume is not None and volume.problem else "it has no path"),
        )
    if volume.kind not in (FILE, BLOCK):
        raise Refused(
            "no_volume",
            "The volume %s of the pool %s, the destination for disk %s of guest %s, is of type %s: give it as a network source in dest."
            % (volume.name, volume.pool, disk.target, domain.name, volume.kind),
        )
    return Layer(volume.kind, (("dev" if volume.kind == BLOCK else "file", volume.path),))


def usable(domain: Domain, disk: Disk, layer: Layer, reuse: bool, seen: Observed) -> None:
    """Refuses a place that cannot take the copy: relative to what is there, who uses it, and how big it is.

    Codes: same_image, in_use, exists, no_parent, missing, wrong_type, wrong_format, size_differs, too_small.
    """
    where = "The destination %s of disk %s of guest %s" % (layer, disk.target, domain.name)
    places = {layer.place} | (places_of(layer.path, seen) if layer.path else set())
    if any(image.place in places for image in disk.chain.images()):
        raise Refused("same_image", "%s is a layer of that disk itself: choose another place." % where)
    layer_unused(domain, disk, layer, seen)
    if layer.path is None or not seen.local:
        return  # what is behind a network source, or on a remote host, is QEMU's to check
    file = seen.files[layer.path]
    _of_type(where, layer, reuse, seen)
    if file.claimed:
        raise Refused("in_use", "%s is used by the host itself, as a mounted file system, LVM, RAID or swap: choose another device." % where)
    if layer.type == FILE and not reuse and file.exists and (file.kind != "file" or file.size):
        raise Refused("exists", "%s exists already: remove it, choose another place, or set reuse_existing if it was prepared for this." % where)
    if (layer.type == BLOCK or reuse) and seen.unread:
        words = "%s may be a layer of another guest: the chain below %s cannot be read, so nobody knows who needs it, mend that first."
        raise Refused("unread", words % (where, ", ".join(seen.unread)))
    if layer.type == BLOCK or reuse:
        _big_enough(where, disk, layer, reuse, seen)


def _of_type(where: str, layer: Layer, reuse: bool, seen: Observed) -> None:
    file = seen.files[layer.path or ""]
    if file.parent != "dir":
        raise Refused("no_parent", "%s is in %s, which is not a directory: create it first." % (where, posixpath.dirname(layer.path or "")))
    if (reuse or layer.type == BLOCK) and not file.exists:
        raise Refused("missing", "%s does not exist: %s." % (where, "prepare it first" if reuse else "attach the device first"))
    if file.exists and file.kind != layer.type and (file.kind in (FILE, BLOCK) or reuse):
        words = {FILE: "a regular file", BLOCK: "a block device"}.get(file.kind or "", "neither a file nor a block device")
        raise Refused("wrong_type", "%s is given as type %s and is %s: correct dest.type." % (where, layer.type, words))


def _big_enough(where: str, disk: Disk, layer: Layer, reuse: bool, seen: Observed) -> None:
    """QEMU copies only to the same size (7.2: a bigger raw device or prepared image fails as well, and only after the start)."""
    probe = probe_of(layer, seen.probes)
    needed = disk.capacity
    if probe is None or needed is None:
        return
    if reuse and layer.format != RAW:
        if probe.problem is not None or probe.image is None or (probe.magic is not None and probe.magic != layer.format):
            raise Refused("wrong_format", "%s is no image of the format %s (%s): prepare it, or correct dest.format." % (where, layer.format, _why(probe)))
        size = probe.image.virtual_size
    else:
        size = probe.physical or 0
    if size < needed:
        raise Refused("too_small", "%s has %d bytes, and the disk has %d: make it as big as the disk." % (where, size, needed))
    if size > needed and (layer.format == RAW or reuse):
        words = "%s has %d bytes, and the disk has %d, but QEMU only copies to an equal size: make it as big as the disk."
        raise Refused("size_differs", words % (where, size, needed))


def _why(probe) -> str:
    if probe.magic is not None:
        return "its header says %s" % probe.magic
    return probe.detail or probe.problem or "it has no such header"
