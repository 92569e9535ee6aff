# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What earlier runs left: layers that were not finished, and those that nobody uses any more."""

from __future__ import annotations

from typing import Optional, Tuple

from ..errors import Refused
from ..model import Disk, Domain, Observed, where
from ..plan import DISCARD, Step
from ._datafile_request import ABSENT, UNFINISHED, Request


def leftovers(domain: Domain, disk: Disk, layer: str, raw: str, seen: Observed) -> Tuple[Step, ...]:
    """The steps that remove the files which an earlier run left half-done: those that its note names, or that say so themselves."""
    note = domain.conversion(disk.target)
    noted = note is not None and note.metadata == layer
    image = seen.images.get(layer)
    unfinished = image is not None and image.data_path == layer + UNFINISHED
    if image is None:
        ours = noted
    else:
        dropped = note is not None and note.state == ABSENT
        ours = (unfinished or (noted and image.data_path == raw)) and (dropped or not image.bitmaps) and image.backing is None
    # The layer last: as long as it is there, it tells of the other one.
    found = [seen.files.get(path) for path in (layer + UNFINISHED, layer)] if ours else []
    return tuple(
        Step(DISCARD, disk.target, {"path": one.path, "device": one.device, "inode": one.inode}) for one in found if one is not None and one.kind == "file"
    )


def old_layer(wanted: Request, domain: Domain, disk: Disk, raw: str, seen: Observed) -> Optional[str]:
    """The path of a layer that nobody uses any more over a raw image that is used alone: it has to go, before anybody attaches it again."""
    note = domain.conversion(disk.target)
    named = wanted.metadata or (note.metadata if note is not None and note.data == raw else None)
    image = seen.images.get(named or "")
    if wanted.state != ABSENT or named is None or image is None or not seen.files[named].exists:
        return None
    if image.data_path in (raw, named + UNFINISHED):
        return named
    if wanted.metadata is None:
        return None
    raise Refused(
        "not_over",
        "%s is no layer over %s of %s: leave the option metadata out, or name the layer that is to be dropped." % (named, raw, where(domain, disk)),
    )
