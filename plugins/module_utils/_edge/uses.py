# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who uses which image: every layer of every guest, now and at its next start.

What XML leaves open is read from the image headers, one at a time. What cannot be read is named, so that nobody takes
silence for "nobody uses it".
"""

from __future__ import annotations

import os
from typing import Callable, List, Optional, Tuple

from .._core.chain import Chain, Layer
from .._core.errors import Unavailable
from .._core.model import Selection, Use
from .libvirt_host import Connection
from .qemu_img import read_image

DEEPEST = 200  # libvirt's own limit for a chain


def all_uses(connection: Connection, run_command: Callable) -> Tuple[Tuple[Use, ...], Tuple[str, ...]]:
    """(uses, the images that hid a part of them)."""
    uses: List[Use] = []
    unread: List[str] = []
    for handle in connection.select(Selection()):
        domain = connection.read(handle, True, False)
        for disk in (domain.disks + domain.config) if domain is not None else ():
            for chain in [disk.chain] + ([disk.mirror.chain] if disk.mirror else []):
                places, problems = _places(connection, run_command, chain)
                uses += [Use(place, domain.name, domain.uuid, disk.target, written) for place, written in places]
                unread += problems
    return tuple(dict.fromkeys(uses)), tuple(dict.fromkeys(unread))


def _places(connection: Connection, run_command: Callable, chain: Chain) -> tuple:
    """(place, place as written) of a chain's layers, volumes and links resolved, and the layers of which something is unknown."""
    places = [(place, ()) for place in chain.places]
    problems: List[str] = []
    path: Optional[str] = None
    for layer in chain.layers:
        path = _path(connection, layer)
        if path is not None:
            places.append((("path", path), layer.place))
        elif layer.type == "volume":
            problems.append(str(layer))
    if chain.layers and chain.ends is None:
        last = chain.layers[-1]
        below, problem = _below(run_command, path, last.format, str(last), connection.local)
        places += [(("path", one), ()) for one in below]
        problems += [problem] if problem else []
    real = [
        (("path", os.path.realpath(place[1])), written or place) for place, written in places if place[0] == "path" and connection.local
    ]
    return list(dict.fromkeys(places + real)), problems


def _path(connection: Connection, layer: Layer) -> Optional[str]:
    if layer.type == "volume":
        return connection.volume_path(layer.attribute("pool"), layer.attribute("volume"))
    return layer.path


def _below(run_command: Callable, path: Optional[str], format: Optional[str], name: str, local: bool) -> Tuple[List[str], Optional[str]]:
    """The paths that the headers name below an image, and the image of which that is not known (or None)."""
    found: List[str] = []
    while format != "raw":
        if not local or path is None or format is None:
            return found, path or name
        if not os.path.exists(path):
            # Nothing can depend on what an image that is gone would name; one whose directory is gone may come back with it.
            return found, None if os.path.isdir(os.path.dirname(path)) else path
        try:
            image = read_image(run_command, path, format)
        except Unavailable:
            return found, path
        if image is None or (image.backing and image.backing_path is None):
            return found, path
        if not image.backing:
            return found, None
        path, format = image.backing_path, image.backing_format
        if path in found or len(found) > DEEPEST:
            return found, path
        found.append(path)
    return found, None
