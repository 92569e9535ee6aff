# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What block_backup was asked for."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace
from typing import List, Optional, Tuple

from ..backups import PULLED, PUSH, Asked, Backup, Part
from ..chain import Layer, Pairs, file_layer
from ..errors import Refused
from ..model import Domain, Needs, Selection
from ..plan import Waiting
from . import _backups as backups
from . import _common as common
from . import _files as files

PRESENT, ABSENT = "present", "absent"
DEEPEST = 200
NBD_PORT = 10809
LOOPBACK = ("localhost", "::1")
OF_PUSH, OF_PULL = ("path", "backing", "backing_format"), ("export",)


@dataclass(frozen=True)
class Item:
    """A disk that is to be backed up. ``backing`` is (path, format) of the earlier backup that an incremental one stands on."""

    disk: str
    place: Optional[Layer] = None
    backing: Optional[Tuple[str, str]] = None
    export: Optional[str] = None


@dataclass(frozen=True)
class Request:
    selection: Selection
    state: str
    mode: str
    items: Tuple[Item, ...]
    since: Optional[str]
    checkpoint: Optional[str]
    server: Pairs
    scratch: Optional[str]
    waiting: Waiting

    @property
    def needs(self) -> Needs:
        places = [item.place for item in self.items if item.place is not None]
        bare = [(place.path or "", place.format) for place in places] + [item.backing for item in self.items if item.backing is not None]
        return Needs(
            self.selection,
            paths=tuple(path for path, dummy in bare) + tuple(posixpath.dirname(place.path or "") for place in places),
            capacities=True,
            paths_of=self._paths,
            uses=True,
            headers=DEEPEST,
            bare=tuple(bare),
            doubts=True,
            versions=True,
            kept=Asked(self.since is not None or self.checkpoint is not None, self._measure if self.state == PRESENT and self.mode == PUSH else None),
        )

    def _measure(self, domain: Domain) -> List[Tuple[str, Tuple[Layer, ...], str]]:
        """What a target of each disk needs if it takes all that the disk holds."""
        pairs = [(one, item) for item in self.items for one in common.disks_named(domain, item.disk)] if domain.active else []
        return [(disk.target, disk.chain.layers, item.place.format or "") for disk, item in pairs if item.place is not None and disk.job is None]

    def _paths(self, domain: Domain) -> Tuple[str, ...]:
        named = [disk.target for item in self.items for disk in common.disks_named(domain, item.disk)] if self.mode == PULLED else []
        scratch = [place.path or "" for place in (scratch_of(self, domain.name, target) for target in named) if place is not None]
        sockets = [value for key, value in self.server if key == "socket"]
        created = [record.creates for record in domain.records if record.creates]
        folders = [posixpath.dirname(path) for path in (*scratch, *sockets)]
        return tuple(dict.fromkeys((*scratch, *sockets, *created, *folders)))

    def backup(self, domain: Domain) -> Backup:
        """The backup that is asked for, with the targets of the disks in the guest."""
        parts = []
        for item in self.items:
            disk = common.the_disk(domain, item.disk)
            part = Part(disk.target, item.place, self.since)
            if self.mode == PULLED:
                scratch = scratch_of(self, domain.name, disk.target)
                part = replace(part, place=scratch, export=item.export or disk.target, bitmap=self.since and "backup-%s" % disk.target)
            parts.append(part)
        return Backup(self.mode, tuple(parts), self.server)


def scratch_of(wanted: Request, guest: str, target: str) -> Optional[Layer]:
    """The scratch file of a disk in a pull: what the guest overwrites meanwhile is kept there."""
    if wanted.scratch is None:
        return None
    return file_layer(posixpath.join(wanted.scratch, "%s-%s.scratch" % (guest.replace("/", "_"), target)), "qcow2")


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused for what is wrong in itself."""
    state, mode, since = params["state"], params["mode"], params["since"]
    waiting = common.waiting(params)
    entries = params["disks"]
    if state == PRESENT and not entries:
        raise _bad("Name the disks that are to be backed up")
    items = tuple(_item(entry, state, mode, since) for entry in entries or ())
    _twice(items)
    checkpoint = backups.checked_name(params["checkpoint"], "checkpoint")
    if checkpoint is not None and checkpoint == since:
        raise Refused("bad_name", "The options since and checkpoint are both %s: a new checkpoint needs a name of its own." % since)
    server, scratch = _server(params, state, mode), params["scratch_dir"]
    if mode == PULLED and state == PRESENT and scratch is None:
        raise _bad("A pull needs the option scratch_dir, for what the guest overwrites meanwhile")
    if mode == PUSH and scratch is not None:
        raise _bad("The option scratch_dir is for a pull: leave it out, or set mode")
    scratch = None if scratch is None else files.absolute(scratch, "scratch_dir")
    return Request(common.one_guest(params), state, mode, items, since, checkpoint, server, scratch, waiting)


def _bad(what: str) -> Refused:
    return Refused("bad_disks", "%s." % what)


def _item(entry: dict, state: str, mode: str, since: Optional[str]) -> Item:
    disk = entry["disk"]
    wrong = [name for name in (OF_PULL if mode == PUSH else OF_PUSH) if entry[name] is not None]
    if wrong:
        raise _bad("Disk %s has %s, which a %s has not: leave it out" % (disk, " and ".join(wrong), mode))
    if mode == PULLED:
        return Item(disk, export=entry["export"])
    if entry["path"] is None:
        if state == ABSENT:
            return Item(disk)
        raise _bad("Disk %s has no path: say where it is to be backed up to" % disk)
    path = files.absolute(entry["path"], "path")
    if since is not None and entry["format"] == "raw":
        raise Refused(
            "raw_incremental",
            "The backup of disk %s since the checkpoint %s is to be raw, and a raw image does not tell what it lacks: set the format qcow2." % (disk, since),
        )
    place = Layer(entry["type"], (("dev" if entry["type"] == "block" else "file", path),), entry["format"])
    return Item(disk, place, _backing(entry, path, since))


def _backing(entry: dict, path: str, since: Optional[str]) -> Optional[Tuple[str, str]]:
    """Refuses (code bad_backing) a backing without a format, of a full backup, or the target itself."""
    if entry["backing"] is None:
        return None
    backing = files.absolute(entry["backing"], "backing")
    reasons = (
        (since is None, "only an incremental backup (since) stands on an earlier one"),
        (entry["backing_format"] is None, "its format is not given, and nobody is to guess it: set backing_format"),
        (backing == path, "it is the target itself"),
    )
    for wrong, reason in reasons:
        if wrong:
            raise Refused("bad_backing", "The option backing of disk %s is %s, but %s." % (entry["disk"], backing, reason))
    return backing, entry["backing_format"]


def _twice(items: Tuple[Item, ...]) -> None:
    """Refuses (code double) a disk, a target or an export that is named twice."""
    for words, names in (
        ("disk %s", [item.disk for item in items]),
        ("target %s", [item.place.path for item in items if item.place is not None]),
        ("export %s", [item.export for item in items if item.export is not None]),
    ):
        more = sorted({str(name) for name in names if names.count(name) > 1})
        if more:
            raise Refused("double", "The option disks names the %s twice: each disk has a place of its own." % (words % more[0]))


def _server(params: dict, state: str, mode: str) -> Pairs:
    """Where a pull is served, in libvirt's words. Raises Refused (codes bad_server, not_absolute)."""
    given = params["server"]
    if given is None and (mode == PUSH or state == ABSENT):
        return ()
    if given is None or mode == PUSH:
        wrong = "The option server is for a pull: leave it out, or set mode." if given is not None else ""
        raise Refused("bad_server", wrong or "A pull needs the option server: give a socket, or a host and a port.")
    socket, host = given["socket"], given["host"]
    if (socket is None) == (host is None) or (socket is not None and given["port"] is not None):
        raise Refused("bad_server", "The option server needs either a socket, or a host with or without a port.")
    if socket is not None:
        return (("socket", files.absolute(socket, "server.socket")), ("transport", "unix"))
    if host not in LOOPBACK and not host.startswith("127."):
        raise Refused(
            "bad_server",
            "The option server has the host %s: whoever reaches it reads the whole disk. Use 127.0.0.1 or a socket, and a tunnel." % host,
        )
    return (("name", host), ("port", str(given["port"] or NBD_PORT)), ("transport", "tcp"))
