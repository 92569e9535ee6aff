# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a live migration needs that brings a guest onto the other image: that image, and the XML to migrate with."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional, Tuple

from ..chain import Chain, Layer
from ..errors import Refused
from ..model import Disk, Domain, Observed, where
from ..plan import Plan, Step
from ..write_xml import with_chains, without_conversions
from ._datafile_request import MIGRATE


def ready(domain: Domain, disk: Disk, path: str, raw: str, seen: Observed) -> bool:
    """Has an earlier run made the layer, and has nobody used it since? One that was used, or that has holes marked, may show what is no longer so."""
    note, image = domain.conversion(disk.target), seen.images.get(path)
    noted = note is not None and note.state == MIGRATE and (note.metadata, note.data) == (path, raw)
    return noted and image is not None and image.data_path == raw and bool(image.data_raw) and not image.bitmaps and image.backing is None


def prepared(domain: Domain, disk: Disk, to: Layer, made: Tuple[Step, ...], adopted: Optional[Step], facts: dict, seen: Observed) -> Plan:
    """The guest stays on the image that it has. ``adopted``: the step that lets the new layer stand over the raw image, without a look at what is in it."""
    what = where(domain, disk)
    live, definition, secrets = seen.texts.get(domain.uuid, ("", "", False))
    if not live:
        raise Refused("unknown", "libvirt does not give the XML to migrate guest %s with: choose another method for %s." % (domain.name, what))
    if secrets:
        words = "The XML of guest %s has secrets, as the password of a console, which are not returned: choose another method for %s."
        raise Refused("secrets", words % (domain.name, what))
    chains = {disk.target: Chain((to,), None)}
    xml = {name: without_conversions(with_chains(one, chains) or one) for name, one in (("live", live), ("persistent", definition))}
    steps = made + ((replace(adopted, detail=dict(adopted.detail, holes=False, compare=False, owner=None, live=True)),) if adopted is not None else ())
    return Plan((domain,), (domain,), steps, about=(disk.target,), facts=dict(facts, method=MIGRATE if steps else None, xml=xml))
