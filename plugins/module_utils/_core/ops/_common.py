# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every planner asks first: which guest, which disk, which layer, and is somebody else at work."""

from __future__ import annotations

import re
from typing import Iterable, List, Optional, Tuple

from ..chain import Layer, normal_path
from ..errors import Busy, JobFailed, Refused
from ..model import ACTIVE_COMMIT, Disk, Domain, Observed, Record, Selection, where
from ..pivot import agrees, cut_off, stray
from ..plan import FORGET, Plan, Step, Waiting
from ._files import absolute

_ADDRESS = re.compile(r"^(?P<disk>[^\[\]/]+)\[(?P<index>\d+)\]$")


def one_guest(params: dict) -> Selection:
    return Selection(name=params.get("name"), uuid=params.get("uuid"))


def several_guests(params: dict) -> Selection:
    """One, several or all guests. Raises Refused (code bad_filter)."""
    if params["filter"] is not None:
        try:
            re.compile(params["filter"])
        except re.error as error:
            raise Refused("bad_filter", "The filter %r is not a regular expression (%s)." % (params["filter"], error)) from error
    names = params["names"]
    return Selection(params["name"], params["uuid"], None if names is None else tuple(names), params["filter"], params.get("state"))


def bare_images(params: dict) -> Tuple[Tuple[str, Optional[str]], ...]:
    """The option images as (path, format). Raises Refused (codes not_absolute, no_images)."""
    if params["images"] is None:
        return ()
    if not params["images"]:
        raise Refused("no_images", "The option images is an empty list: name an image, or a guest.")
    return tuple(dict.fromkeys((absolute(path, "images"), params["format"]) for path in params["images"]))


def waiting(params: dict) -> Waiting:
    """The wait options. Raises Refused (code bad_wait) for a deadline or an interval that is not positive."""
    for option in ("wait_timeout", "poll_interval"):
        if not params[option] > 0:
            raise Refused("bad_wait", "The option %s is %s: give a number of seconds above 0." % (option, params[option]))
    return Waiting(params["wait"], params["wait_timeout"], params["poll_interval"], params["on_timeout"], params.get("phase", "whole"))


def the_guest(selection: Selection, seen: Observed) -> Domain:
    """The one guest of the request. Raises Refused (code no_guest)."""
    if not seen.domains:
        who = "name %s" % selection.name if selection.name is not None else "uuid %s" % selection.uuid
        raise Refused("no_guest", "libvirt knows no guest with the %s: list the guests with disk_chain_info." % who)
    return seen.domain


def none_missing(selection: Selection, seen: Observed) -> None:
    """Refuses (code no_guest) where a guest was named that is not there. One that is only in another ``state`` is not asked for."""
    if selection.uuid is not None and not seen.domains:
        raise Refused("no_guest", "libvirt knows no guest with the uuid %s." % selection.uuid)
    found = {domain.name for domain in seen.domains}
    asked = (selection.name,) if selection.name is not None else selection.names or ()
    missing = [name for name in asked if name not in found]
    if missing and selection.state is None and selection.pattern is None:
        raise Refused("no_guest", "libvirt knows no guest named %s: leave the name out to list all guests." % ", ".join(missing))


def no_orphan(domain: Domain, seen: Observed) -> None:
    """Refuses (code orphaned_guest) a guest that is off for libvirt while its QEMU runs."""
    processes = seen.processes_of(domain)
    if not domain.active and processes:
        raise Refused(
            "orphaned_guest",
            "Guest %s is off for libvirt, but its QEMU process %d runs: find out with disk_chain_info (validate) which images it writes to, and define "
            "the guest with them before that process is ended and the guest is started." % (domain.name, processes[0].pid),
        )


def running_guest(selection: Selection, seen: Observed) -> Domain:
    """The one guest, which has to be active. Raises Refused (codes no_guest, not_running)."""
    domain = the_guest(selection, seen)
    no_orphan(domain, seen)
    if not domain.active:
        raise Refused("not_running", "Guest %s is not running (%s): start it first, live block work needs it." % (domain.name, domain.state))
    return domain


def disks_named(domain: Domain, wanted: str) -> List[Disk]:
    """The disks that a target (vda) or a source path means."""
    disk = domain.disk(wanted)
    if disk is not None:
        return [disk]
    place = ("path", normal_path(wanted))
    return [disk for disk in domain.disks if disk.chain.layers and disk.chain.active.place == place]


def the_disk(domain: Domain, wanted: str) -> Disk:
    """The one disk of that target or source path. Raises Refused (codes no_disk, ambiguous_disk)."""
    found = disks_named(domain, wanted)
    if len(found) == 1:
        return found[0]
    if found:
        targets = ", ".join(disk.target for disk in found)
        raise Refused("ambiguous_disk", "Guest %s uses %s for the disks %s: name one of these." % (domain.name, wanted, targets))
    targets = ", ".join(disk.target for disk in domain.disks) or "none"
    raise Refused("no_disk", "Guest %s has no disk %s: its disks are %s." % (domain.name, wanted, targets))


def workable(selection: Selection, disk: str, seen: Observed, work: str, waiting: Waiting) -> Tuple[Domain, Disk]:
    """The running guest and its disk, which live block work is possible on. Raises Refused, naming the reason.

    Raises JobFailed (code guest_stopped) where a job was to be finished and the guest has stopped meanwhile.
    """
    stopped = the_guest(selection, seen)
    if not waiting.starts and not stopped.active and not seen.processes_of(stopped):
        raise JobFailed(
            "guest_stopped",
            "Guest %s stopped before the job on its disk %s was done, which has ended it; what it has written so far may still be there: start the guest and "
            "run the whole task again." % (stopped.name, disk),
        )
    domain = running_guest(selection, seen)
    found = writable_disk(domain, the_disk(domain, disk), work)
    agreed(domain, found, seen)
    return domain, found


def agreed(domain: Domain, disk: Disk, seen: Observed) -> None:
    """Refuses a disk of which QEMU writes to another image than libvirt has (code stale_pivot), or may do so (code unknown)."""
    view = seen.qemu.get(domain.uuid)
    file = stray(disk, view)
    if file is None and disk.mirror is not None and disk.job is None and agrees(disk, view):
        raise Busy(
            "foreign_job",
            "On %s libvirt keeps a mirror (%s) without a job, and takes no other; QEMU writes to %s, as libvirt says: shut the guest down and "
            "start it again, then run the task again." % (where(domain, disk), disk.mirror.job, disk.chain.active),
        )
    if file is not None:
        raise Refused(
            "stale_pivot",
            "QEMU writes the data of %s to %s, while libvirt has %s (a pivot that was cut off): do nothing else to this disk, run block_copy "
            "with %s as its destination to make the next start safe, and follow what it says."
            % (where(domain, disk), file, disk.chain.active, file),
        )
    if view is None and domain.record(disk.target) is not None and cut_off(domain, disk):
        raise Refused(
            "unknown",
            "An earlier copy or commit of %s is gone unseen, and QEMU cannot be asked which image it writes to (%s): ask it first."
            % (where(domain, disk), "; ".join(seen.troubles) or "no answer"),
        )


def writable_disk(domain: Domain, disk: Disk, work: str) -> Disk:
    """Refuses the disks on which live block work is wrong or impossible (code disk_kind), naming the reason."""
    reasons = (
        (not disk.chain.layers, "is an empty drive"),
        (disk.device != "disk", "is a %s" % disk.device),
        (disk.readonly, "is read-only"),
        (disk.shareable, "is shareable, so other guests write to the same image"),
        (disk.transient, "is transient"),
        (disk.bus == "sd", "is on the sd bus, which QEMU gives no block jobs"),
        (disk.chain.layers and disk.chain.active.type == "vhostuser", "is served by vhost-user, not by QEMU"),
        (disk.chain.branched, "has a layer with several images below it, as a quorum"),
    )
    for wrong, reason in reasons:
        if wrong:
            raise Refused("disk_kind", "Disk %s of guest %s %s: %s is not possible, choose another disk." % (disk.target, domain.name, reason, work))
    return disk


def find_layer(domain: Domain, disk: Disk, wanted: str, option: str) -> Optional[int]:
    """The depth of a layer given as vda[2], as a path or as it is printed; None when it is not in the chain."""
    match = _ADDRESS.match(wanted)
    if match:
        if match.group("disk") != disk.target:
            raise Refused(
                "other_disk",
                "The option %s is %s, an address on another disk than %s of guest %s: use one of %s."
                % (option, wanted, disk.target, domain.name, addresses(disk)),
            )
        index = int(match.group("index"))
        return next((depth for depth, layer in enumerate(disk.chain.layers) if layer.index == index), None)
    depth = disk.chain.depth_of(("path", normal_path(wanted)))
    if depth is not None:
        return depth
    return next((depth for depth, layer in enumerate(disk.chain.layers) if str(layer) == wanted), None)


def the_layer(domain: Domain, disk: Disk, wanted: str, option: str) -> int:
    """As ``find_layer``, but a layer that is not there is Refused (code not_in_chain)."""
    depth = find_layer(domain, disk, wanted, option)
    if depth is None:
        raise Refused(
            "not_in_chain",
            "The %s %s is not in the chain of %s, which is %s: name one of its layers."
            % (option, wanted, where(domain, disk), addresses(disk)),
        )
    return depth


def addresses(disk: Disk) -> str:
    """The chain for messages: each layer with its address, active first."""
    return ", ".join(
        "%s (%s)" % (layer, disk.address(depth) or "depth %d" % depth) for depth, layer in enumerate(disk.chain.layers)
    )


def known_end(domain: Domain, disk: Disk) -> None:
    """Refuses a chain whose end libvirt does not know (code unknown_end): no prediction could be made."""
    if disk.chain.ends is None:
        raise Refused(
            "unknown_end",
            "libvirt does not know what follows below %s on %s: restart the guest so that it probes the chain."
            % (disk.chain[len(disk.chain) - 1], where(domain, disk)),
        )


def no_job(domain: Domain, disk: Disk) -> None:
    """Raises Busy (code foreign_job) while any job runs on the disk, or a mirror is left on it."""
    if disk.job is None and disk.mirror is None:
        return
    if disk.job is None:  # left by a daemon that was killed during a pivot: QEMU may write to the mirror already
        raise Busy("foreign_job", "On %s a mirror (%s) is left without a job: find out which image QEMU writes to." % (where(domain, disk), disk.mirror.job))
    raise Busy(
        "foreign_job",
        "%s %s job that this task did not ask for is running on %s: let it end, or end it with virsh blockjob, then run again."
        % ("An" if disk.job.type == ACTIVE_COMMIT else "A", disk.job.type, where(domain, disk)),
    )


def may_start(waiting: Waiting, domain: Domain, disk: Disk, job: str) -> None:
    """Refuses to start a job in a run that is only to finish one (code no_job)."""
    if not waiting.starts:
        raise Refused(
            "no_job",
            "No %s job runs on %s that could be finished, and the chain is %s: it failed or was ended meanwhile, run the whole task again."
            % (job, where(domain, disk), addresses(disk)),
        )


def unfinished(waiting: Waiting, domain: Domain, disk: Disk, job: str) -> Optional[Record]:
    """The note of the job that a run is only to finish, where no job is there any more."""
    record = domain.record(disk.target)
    left = disk.job is None and disk.mirror is None and not waiting.starts
    return record if left and record is not None and record.job == job else None


def ended(domain: Domain, disk: Disk, record: Record, steps: Tuple[Step, ...] = ()) -> Plan:
    """The job that this run was to finish is gone, and the chain is what it was: nothing is left to be done but ``steps``, and the run fails."""
    message = "The %s job on disk %s of guest %s ended without its work, as with full or broken storage or by somebody else: see the log of the guest."
    failing = ("job_failed", message % (record.job, disk.target, domain.name))
    return Plan((domain,), (domain,), steps + (Step(FORGET, disk.target),), failing=failing)


def abort_detail(disk: Disk, job: str, later: bool) -> dict:
    """What an ABORT step needs. ``unseen``: only QEMU could tell if the job pivots nevertheless; an open file tells it of a copy to a path."""
    mirror = disk.mirror.chain.active if disk.mirror is not None else None
    return {"job": job, "later": later, "unseen": mirror is not None and (job == ACTIVE_COMMIT or mirror.path is None)}


def pivot_detail(to: Layer, waiting: Waiting) -> dict:
    """What a PIVOT step needs: the layer that becomes the active one, and the wait options."""
    return dict(waiting.detail(), to=to)


def record_for(disk: Disk, job: str, *depths: int) -> Record:
    """The note that a job of this meaning leaves while it runs; ``depths`` are the layers it is given."""
    layers = " ".join(str(disk.chain[depth]) for depth in depths)
    return Record(disk.target, job, layers, disk.indexes)


def own_job(domain: Domain, disk: Disk, record: Record) -> bool:
    """Does the running job have this record's meaning, by the note that was left when it was started?"""
    return disk.job is not None and disk.job.type == record.job and domain.record(disk.target) == record


def leftovers(domain: Domain, disk: Disk) -> Tuple[Step, ...]:
    """The step that takes away the note of a job that is over: the run that left it was killed, or did not wait."""
    stale = domain.record(disk.target) is not None and disk.job is None
    return (Step(FORGET, disk.target),) if stale else ()


def snapshot_warnings(domain: Domain, disk: Disk, dropped: Iterable, seen: Observed) -> tuple:
    """A warning for each tracked snapshot whose files would leave the chain: libvirt can then neither delete nor revert it."""
    paths = {layer.path for layer in dropped if layer.path}
    return tuple(
        "Snapshot %s of guest %s needs %s on disk %s: after this, libvirt can neither delete nor revert it." % (shot.name, domain.name, path, target)
        for shot in seen.snapshots
        for target, path in dict.fromkeys(shot.files + shot.bases)
        if target == disk.target and path in paths
    )
