# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A copy that is over: the disk lives at the destination, or the copy has ended without that."""

from __future__ import annotations

from typing import List, Optional, Tuple

from ..chain import Layer
from ..errors import Refused
from ..model import COPY, Disk, Domain, Observed, Record, with_config
from ..plan import DISCARD, Plan, Step, Waiting
from ..verify import covers
from . import _common as common
from . import _files as files
from . import _merge_jobs as jobs


def acceptable(shallow: bool, format_: Optional[str], domain: Domain, disk: Disk, layer: Layer) -> Tuple[str, ...]:
    """Refuses a disk that lives at the destination in another format (code wrong_format); a warning where it does not stand alone as was asked."""
    where = "Disk %s of guest %s lives on %s" % (disk.target, domain.name, layer)
    if format_ is not None and disk.chain[0].format not in (None, format_):
        raise Refused("wrong_format", "%s as %s, not as %s: copy it to another destination." % (where, disk.chain[0].format, format_))
    if shallow or len(disk.chain) == 1:
        return ()
    return ("%s already, but not alone as a copy of everything would, its chain is %s: flatten it with block_rebase." % (where, common.addresses(disk)),)


def there(delete_source: bool, waiting: Waiting, domain: Domain, disk: Disk, seen: Observed) -> Plan:
    """The disk lives at the destination: what is left is the next start's definition, the old file, and the note of an earlier run."""
    record = domain.record(disk.target)
    steps: List[Step] = []
    after = domain
    config = domain.config_disk(disk.target)
    if config is not None and not covers(config.chain, disk.chain):
        config_ours(domain, disk, config, record)
        steps.append(jobs.defined(disk, config.chain.layers + disk.chain.layers))
        after = with_config(domain, disk.target, disk.chain)
    removals: Tuple[Step, ...] = ()
    ours = record is not None and record.job == COPY and record.layers == str(disk.chain[0])  # a note of another copy says nothing about this one
    if delete_source and ours and record is not None and record.source and waiting.waits:
        removals = files.deletions(domain, disk, (record.source,), after, seen, "delete_source", record.data)
    fence = len(steps) if removals else None
    notes = common.leftovers(domain, disk) if waiting.waits else ()
    return Plan((domain,), (after,), tuple(steps) + removals + notes, fence=fence, about=(disk.target,))


def config_ours(domain: Domain, disk: Disk, config: Disk, record: Optional[Record]) -> None:
    """Refuses to overwrite a definition of the next start that names another image than this copy has left or gone to (code config_differs)."""
    place = config.chain.places[:1]
    known = [disk.chain.places[:1]] + ([(("path", record.source),)] if record is not None and record.source else [])
    if place in known:
        return
    raise Refused(
        "config_differs",
        "At its next start, disk %s of guest %s would have %s, while it has %s now: define the one that is meant, then run again."
        % (disk.target, domain.name, config.chain.active or "nothing", disk.chain[0]),
    )


def left_behind(domain: Domain, disk: Disk, layer: Layer, reuse: bool, seen: Observed) -> None:
    """Refuses a file that an earlier copy of this collection has left (code exists): it may be a copy that somebody ended on purpose."""
    record = domain.record(disk.target)
    file = seen.files.get(layer.path or "")
    if record is None or record.creates is None or record.creates != layer.path or reuse or file is None or not file.exists:
        return
    raise Refused(
        "exists",
        "The destination %s of disk %s of guest %s was left by an earlier copy, which failed or was ended before its pivot: remove it, then run again."
        % (layer, disk.target, domain.name),
    )


def ended(owns: bool, domain: Domain, disk: Disk, record: Record, seen: Observed) -> Plan:
    """The copy that this run was to finish is gone, and the disk is where it was: what it created goes, and the run fails."""
    file = seen.files.get(record.creates or "")
    steps: List[Step] = []
    if owns and file is not None and file.exists:
        steps.append(Step(DISCARD, disk.target, {"path": file.path, "device": file.device, "inode": file.inode}))
    return common.ended(domain, disk, record, tuple(steps))
