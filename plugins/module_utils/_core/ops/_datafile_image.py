# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The conversion of an image that belongs to no guest."""

from __future__ import annotations

from dataclasses import replace

from ..chain import Chain
from ..errors import Refused
from ..model import Domain, Observed
from ..plan import DROP, Plan, Step
from . import _datafile_copy as copies
from . import _datafile_left as left_by
from . import _datafile_rules as rules
from . import _datafile_steps as steps_of
from . import _offline as offline
from ._datafile_request import ABSENT, COPY, OFFLINE, PRESENT, UNFINISHED, Request


def plan(wanted: Request, seen: Observed) -> Plan:
    """An image that belongs to no guest: looked at by its own path and by that of its layer."""
    over, image = seen.domains
    disk = image.disks[0]
    if not disk.chain.layers:
        raise Refused("image_missing", "The image %s is not there: correct the path." % image.name)
    facts = {"method": OFFLINE, "metadata": over.name, "data_file": wanted.path}
    if wanted.method == COPY or wanted.dest is not None:
        return copies.of_image(wanted, over, image, seen)
    held = over.disks[0].chain.active
    converted = held is not None and held.store is not None and held.store.path == wanted.path
    both = (over, image)
    if converted and wanted.state == PRESENT:
        rules.over_raw(over, over.disks[0], seen)
        return Plan(both, both, about=(over.disks[0].target,), facts=dict(facts, method=None))
    if wanted.state == ABSENT:
        return _dropped(wanted, over, image, converted, facts, seen)
    rules.convertible(wanted, image, disk, seen)
    rules.raw_alone(image, disk, seen)
    left = left_by.leftovers(image, disk, over.name, wanted.path or "", seen)
    rules.new_layer(wanted, image, disk, (over.name, over.name + UNFINISHED), left, rules.size_of(disk.chain[0], seen), seen)
    layer = steps_of.new(wanted, image, disk, seen)
    work = steps_of.made(wanted, image, disk, layer, seen) + (offline.free(image, disk, disk.chain.layers, (), seen),)
    work += (steps_of.adopted(wanted, image, disk, layer, True, seen),)
    after = replace(over, disks=(replace(over.disks[0], chain=Chain((layer,), True)),))
    return Plan(both, (after, image), left + work, about=(over.disks[0].target,), facts=facts)


def _dropped(wanted: Request, over: Domain, image: Domain, converted: bool, facts: dict, seen: Observed) -> Plan:
    """The layer of an image that belongs to no guest goes."""
    if not converted:
        held = over.disks[0].chain.active
        left = left_by.leftovers(image, image.disks[0], over.name, wanted.path or "", seen)
        if wanted.metadata is not None and held is not None and not left:
            raise Refused("not_over", "%s is no layer over %s: name the layer that is to be dropped." % (over.name, wanted.path))
        after = replace(over, disks=(replace(over.disks[0], chain=Chain()),)) if left else over
        return Plan((over, image), (after, image), left, about=(over.disks[0].target,), facts=dict(facts, method=None))
    disk = over.disks[0]
    rules.convertible(wanted, over, disk, seen)
    rules.over_raw(over, disk, seen)
    steps = (offline.free(over, disk, tuple(disk.chain.images()), (), seen), steps_of.proven(over, disk, seen))
    after = replace(over, disks=(replace(disk, chain=Chain()),))
    file = seen.files[over.name]
    gone = (Step(DROP, disk.target, {"path": file.path, "device": file.device, "inode": file.inode}),)
    warnings = rules.bitmap_warning(over, disk, seen)
    return Plan((over, image), (after, image), steps + gone, fence=len(steps), warnings=warnings, about=(disk.target,), facts=facts)
