# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Doing and undoing the steps on images that no QEMU has open: of a guest that is off, or of no guest (``handle`` is None then).

The images are locked by the first step, and stay so until the host is closed, a failure and its undo included.
"""

from __future__ import annotations

import os
import stat
from typing import Dict, Optional, Set, Tuple

from .._core.chain import Layer
from .._core.errors import CallFailed, Moved
from .image_locks import Locks
from .image_work import Work, create_overlay, virtual_size
from .libvirt_host import surely_local
from .qemu_img import read_image

CREATE_SECONDS = 60.0  # an empty image


class Offline:
    """These steps of a Host, which gives the connection and the looks."""

    _locks: Locks
    _redefined: Dict[Tuple[str, ...], Tuple[str, str]]
    _written: Set[str]

    @property
    def _here(self) -> bool:
        """Are the images files of this host? Those that belong to no guest are worked on without libvirt."""
        return (self._uuid is None and surely_local(self._uri)) or self._connection.local

    def _do_lock(self, handle, target, detail) -> None:
        """Hold the images, then see that nothing has changed before: from here on nobody else can change them."""
        for layers, writes in ((detail["write"], True), (detail["read"], False)):
            for layer in layers:
                self._lock(layer, writes)
        if handle is not None and self._now(handle).active:
            raise Moved("started", "The guest %s was started after it was looked at: run the task again." % handle.name())
        for layer, name in detail.get("names", ()):
            image = read_image(layer.path, layer.format)
            if image is None or image.backing != name:
                raise Moved("moved", "The image %s stands on something else than when it was looked at: run the task again." % layer)

    def _lock(self, layer: Layer, writes: bool) -> None:
        if layer.path is None:
            raise CallFailed("not_an_image", "%s is no image on this host: it cannot be locked." % layer)
        self._locks.take(layer.path, writes)

    def _work(self, detail) -> Work:
        return Work(detail["timeout"], self._locks.descriptors, detail.get("bandwidth", 0))

    def _do_merge(self, handle, target, detail) -> None:
        """Nothing of this is undone: through the layers above the base the same is seen at any moment, and it can be done again."""
        top, base = detail["chain"][0], detail["chain"][-1]
        self._written.add(target)
        reason = self._work(detail).merge(detail["chain"], detail["below"], detail["size"])
        if reason is not None:
            message = "%s could not be merged into %s (%s): %s still shows what it showed, the base alone may hold a part of it already; run the task again."
            raise CallFailed("not_merged", message % (top, base, reason, top))

    def _do_rebase(self, handle, target, detail) -> None:
        layer, to, name = detail["layer"], detail["to"], detail.get("name")
        self._rebased.add(layer.path)
        work, reason = self._work(detail), None
        if detail["safe"]:
            reason = work.rebase(layer, detail["below"], to, detail["rest"])
        if reason is None and (not detail["safe"] or name is not None):  # a relative name leads nowhere from the name that a safe rebase has for the layer
            reason = work.rename(layer, to, name)
        if reason is not None:
            where = "on nothing" if to is None else "on %s" % to
            raise CallFailed("not_rebased", "%s could not be put %s (%s): it still shows what it showed; run the task again." % (layer, where, reason))

    def _undo_rebase(self, handle, target, detail) -> None:
        """Only the header: what a safe rebase has copied is what the old backing shows as well."""
        layer = detail["layer"]
        if layer.path not in self._rebased:
            return
        to = detail["below"][0] if detail["below"] else None
        reason = Work(CREATE_SECONDS, self._locks.descriptors).rename(layer, to, detail.get("old_name"))
        if reason is not None:
            raise CallFailed("not_rebased", "%s could not be put back on %s (%s)." % (layer, to or "nothing", reason))
        self._rebased.discard(layer.path)

    def _do_overlay(self, handle, target, detail) -> None:
        """Nobody may read what a guest will write: the file is its owner's alone until it has the access rights of its model."""
        path, on = detail["path"], detail["on"]
        self._place_for(path, detail["creates"])
        size = virtual_size(on) if detail["size"] is None else detail["size"]
        reason = create_overlay(path, detail["format"], on, size, CREATE_SECONDS)
        if reason is None and detail["creates"] and detail["mode_of"]:
            reason = follow(path, detail["mode_of"])
        if reason is not None:
            raise CallFailed("not_prepared", "The image %s could not be made on %s (%s): %s was not changed." % (path, on, reason, on))

    def _place_for(self, path: str, creates: Optional[str]) -> None:
        if creates:
            self._claim(creates)
        elif not _is_block(path):
            raise Moved("exists", "The overlay %s is no block device that is there already: look at it and run again." % path)

    def _undo_overlay(self, handle, target, detail) -> None:
        """Unless the definition names it by now."""
        if detail["creates"] is None or detail["creates"] not in self._made:
            return
        if handle is not None:
            self._remove_created(handle, target, detail["creates"])
        else:
            self._remove_unheld(detail["creates"])
        self._made.discard(detail["creates"])

    def _do_redefine(self, handle, target, detail) -> None:
        written = self._connection.define_chains(handle, dict(detail["chains"]))
        if written is not None:
            self._redefined[_disks(detail)] = written

    def _undo_redefine(self, handle, target, detail) -> None:
        if _disks(detail) in self._redefined and handle is not None:
            self._connection.define_again(handle, *self._redefined[_disks(detail)])
            del self._redefined[_disks(detail)]


def _disks(detail) -> Tuple[str, ...]:
    return tuple(target for target, dummy in detail["chains"])


def follow(path: str, model: str) -> Optional[str]:
    """Give a file the owner, the group and the mode of another. Why that failed, or None."""
    try:
        facts = os.stat(model)
        os.chown(path, facts.st_uid, facts.st_gid)
        os.chmod(path, stat.S_IMODE(facts.st_mode) & 0o666 | 0o600)  # a template may be read-only
    except OSError as error:
        return "its access rights cannot be set as those of %s: %s" % (model, error.strerror)
    return None


def _is_block(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False
