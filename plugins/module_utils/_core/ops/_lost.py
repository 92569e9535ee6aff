# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The second run after a pivot whose daemon died: keep the guest from a cold start on old data, and say what leads out.

No call of libvirt brings its belief and QEMU together again while the guest runs. What can be done is to let the next start have
the image that QEMU writes to; the run fails nevertheless, since the guest is not yet what libvirt says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Optional

from ..chain import Chain, Layer
from ..errors import VerifyFailed
from ..host_facts import QemuView
from ..model import Disk, Domain, Observed, with_config, with_disk
from ..pivot import image_of, names, stray, way_out, writes
from ..plan import PROTECT, Plan, Step


def plan(domain: Domain, disk: Disk, asked: Callable[[Disk], Optional[Layer]], seen: Observed) -> Optional[Plan]:
    """The plan that protects the guest, None where libvirt is right, or where it cannot be said what QEMU writes to.

    ``asked`` gives the destination that this run asks for. Raises VerifyFailed (code stale_pivot) where nothing is left to be done here.
    """
    if not disk.chain.layers:
        return None
    processes, view = seen.processes_of(domain), seen.qemu.get(domain.uuid)
    to = _written(domain, disk, asked, view) if domain.active or processes else None
    if to is None:
        return None
    config = domain.config_disk(disk.target)
    stands = "QEMU writes disk %s of guest %s to %s, which libvirt does not know" % (disk.target, domain.name, to)
    if config is None:
        advice = "The guest is transient: whoever starts it next has to give it %s." % to
        raise _error("%s (a pivot whose daemon died). %s" % (stands, advice), stands)
    advice = way_out(to, processes[0].pid if not domain.active else None)
    message = "%s (a pivot whose daemon died). %s" % (stands, advice)
    same = config.chain.places[:1] == (to.place,) and config.chain[0].format == to.format
    if same and (domain.active or config.chain.ends is None):
        raise _error(message, stands)
    after = with_config(domain, disk.target, Chain((to,), None))
    if not domain.active:
        after = with_disk(after, disk.target, chain=Chain((to,), None))
    return Plan((domain,), (after,), (Step(PROTECT, disk.target, {"to": to}),), failing=("stale_pivot", message), stands=stands)


def _written(domain: Domain, disk: Disk, asked: Callable[[Disk], Optional[Layer]], view: Optional[QemuView]) -> Optional[Layer]:
    """The image that QEMU writes to instead of libvirt's, by QEMU's own words where it is a path: they tell its format, too."""
    if view is None:
        return None
    wish = asked(disk)
    if domain.active:
        found = writes(disk, view) if stray(disk, view) is not None else None
    else:  # the definition of a guest that is off names no devices: what is asked for has to be one of them
        found = next(((node, file) for dummy, node, file in view.devices if wish is not None and names(file, wish)), None)
        if wish is None or _another(domain, disk, wish, view):
            return None
    if found is None:
        return None
    told = image_of(*found, view)
    mirror = disk.mirror.chain.active if disk.mirror is not None else None
    by_node = mirror if mirror is not None and found[0].startswith("libvirt-%s-" % mirror.index) else None
    known = by_node or next((layer for layer in (mirror, wish) if layer is not None and names(found[1], layer)), None)
    if known is None:
        return told
    return known if told is None else replace(known, format=told.format)


def _another(domain: Domain, disk: Disk, wish: Layer, view: QemuView) -> bool:
    """Is that image another disk's, or does QEMU write to the image that this disk's definition has?"""
    if any(one.chain.places[:1] == (wish.place,) for one in domain.disks if one.target != disk.target):
        return True
    return disk.chain[0].place != wish.place and any(names(file, disk.chain[0]) for dummy, dummy2, file in view.devices)


def _error(message: str, stands: str) -> VerifyFailed:
    error = VerifyFailed("stale_pivot", message, changed=False, rolled_back=False)
    error.stands = stands
    return error
