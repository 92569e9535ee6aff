# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which image does QEMU write to, where a pivot may have been cut off?

The law: libvirt's XML is a belief, and QEMU's own answer is the fact. A doubt leads to asking QEMU and is never a verdict by
itself; where there is a doubt and no answer, the outcome is not known, and nothing is done or removed.
"""

from __future__ import annotations

from typing import Dict, Iterable, List, Optional, Sequence, Tuple

from .chain import Layer, normal_path
from .host_facts import Process, QemuView
from .model import ACTIVE_COMMIT, COPY, Disk, Domain

# What became of a pivot whose call brought no answer.
PIVOTED, OPEN, STALE, ORPHANED, NOT_PIVOTED, GONE, UNKNOWN = "pivoted", "open", "stale", "orphaned", "not_pivoted", "gone", "unknown"

# The memory of guests in files, as for virtiofs: /var/lib/libvirt/qemu/ram, /dev/shm, hugetlbfs, memfd; character devices; the log.
NOT_DISKS = ("/qemu/ram/", "/dev/shm/", "hugepages", "/memfd:", "/dev/net/", "/dev/vhost", "/dev/vfio/", "/dev/pts/", "/dev/ptmx", "/log/libvirt/")


def processes_of(domains: Iterable[Domain], processes: Iterable[Process]) -> Dict[str, Tuple[Process, ...]]:
    """The QEMU processes of each guest, by its uuid: those with that uuid or name, whatever libvirt knows of them."""
    named: Dict[str, List[Process]] = {}
    for process in processes:
        for word in dict.fromkeys((process.uuid, process.name)):
            named.setdefault(word, []).append(process)
    return {domain.uuid: tuple(dict.fromkeys(named.get(domain.uuid, []) + named.get(domain.name, []))) for domain in domains} if named else {}


def unmentioned(domain: Domain, process: Process) -> Tuple[str, ...]:
    """The files that a guest's process may write to and that the guest's XML names nowhere."""
    found = {path for path, writes in process.files if writes and path not in domain.mentioned}
    return tuple(sorted(path for path in found if not any(part in path for part in NOT_DISKS)))


def doubtful(domain: Domain, processes: Sequence[Process]) -> bool:
    """Is there a reason to ask QEMU which images it writes to? (Not asked for nothing: libvirt marks the guest as tainted.)

    A guest that is off while a QEMU process of its uuid runs; a mirror, or the note of a copy, without a job; a file that the process
    may write to and that libvirt names nowhere (libvirt 9.0, killed before it wrote the mirror down, names only the old image).
    """
    own = [process for process in processes if process.uuid == domain.uuid]
    if not domain.active:
        return bool(own)
    return any(cut_off(domain, disk) for disk in domain.disks) or any(unmentioned(domain, process) for process in own)


def cut_off(domain: Domain, disk: Disk) -> bool:
    """Is a mirror, or the note of a job with one that has not got to its end, left on a disk whose job is gone?"""
    record = domain.record(disk.target)
    noted = record is not None and record.job in (COPY, ACTIVE_COMMIT) and not record.layers.endswith(str(disk.chain.active))
    return disk.job is None and (disk.mirror is not None or noted)


def writes(disk: Disk, view: Optional[QemuView]) -> Optional[Tuple[str, str]]:
    """(node, file) of what QEMU writes a disk to; None where it was not asked, or its answer does not say it."""
    if view is None or disk.alias is None:
        return None
    found = [(node, file) for qdev, node, file in view.devices if disk.alias in qdev.split("/")]
    return found[0] if found and found[0][1] else None


def agrees(disk: Disk, view: Optional[QemuView]) -> Optional[bool]:
    """Does QEMU write to the layer that libvirt has as the active one? None where that is not known.

    libvirt calls the node of a layer libvirt-INDEX-format (from 5.10); filters above it have other names, so that the file counts, too.
    """
    found, active = writes(disk, view), disk.chain.active
    if found is None or active is None:
        return None
    if found[0].startswith("libvirt-%s-" % active.index) or names(found[1], active):
        return True
    return None if found[1].startswith("json:") and not found[0].startswith("libvirt-") else False


def stray(disk: Disk, view: Optional[QemuView]) -> Optional[str]:
    """The image that QEMU writes to on a disk, as QEMU names it, where libvirt has another as the active layer and no job; else None."""
    found = writes(disk, view)
    return found[1] if found is not None and disk.job is None and agrees(disk, view) is False else None


def image_of(node: str, file: str, view: QemuView) -> Optional[Layer]:
    """What QEMU writes to, as a layer by its own words; None for what is not a path, or a kind of image that is not known."""
    kinds = {one.driver for one in view.nodes if one.file == file and one.driver in ("file", "host_device")}
    format_ = next((one.driver for one in view.nodes if one.name == node), None)
    if not file.startswith("/") or len(kinds) != 1 or format_ not in ("raw", "qcow2"):
        return None
    block = kinds == {"host_device"}
    return Layer("block" if block else "file", (("dev" if block else "file", normal_path(file)),), format_)


def names(file: str, layer: Layer) -> bool:
    """Is this, as QEMU names it, that layer?"""
    if layer.path is not None:
        return normal_path(file) == normal_path(layer.path)
    if layer.protocol == "nbd" and any(dict(host).get("socket") for host in layer.hosts):  # QEMU's socket is in the part that is not shown
        return file.rstrip("/") == ("nbd+unix:///%s" % (layer.name or "").lstrip("/")).rstrip("/")
    file = file.replace("[", "").replace("]", "")  # around IPv6 addresses
    return file.rstrip("/") == str(layer).rstrip("/")


def outcome(domain: Optional[Domain], target: str, to: Layer, view: Optional[QemuView], processes: Sequence[Process]) -> str:
    """What became of a pivot of a disk to that layer, after its call broke off; one of the words above.

    ``domain`` is the guest as libvirt has it now, ``view`` QEMU's answer if there is one, ``processes`` the guest's QEMU processes.
    """
    if domain is None:
        return UNKNOWN if processes else GONE
    disk = domain.disk(target)
    if not domain.active:
        if not processes:
            return GONE
        return ORPHANED if written_by_orphan(view, to) else UNKNOWN
    if disk is None or disk.chain.active is None:
        return UNKNOWN
    if disk.chain.active.place == to.place:
        return PIVOTED
    if disk.job is not None:
        return OPEN
    same = agrees(disk, view)
    if same:
        return NOT_PIVOTED
    file = stray(disk, view)
    node = (writes(disk, view) or ("", ""))[0]
    mirror = disk.mirror.chain.active if disk.mirror is not None else None
    by_node = mirror is not None and mirror.place == to.place and node.startswith("libvirt-%s-" % mirror.index)
    return STALE if file is not None and (by_node or names(file, to)) else UNKNOWN


def written_by_orphan(view: Optional[QemuView], layer: Layer) -> bool:
    """Does the QEMU of a guest that is off for libvirt write to that layer? (The definition of a guest that is off names no devices.)"""
    return view is not None and any(names(file, layer) for dummy, dummy2, file in view.devices)


def way_out(layer: Layer, orphan: Optional[int] = None) -> str:
    """What is to be done once the next start has that layer. ``orphan``: the process of a guest that is off for libvirt."""
    if orphan is not None:
        return (
            "The next start has %s now: end the process %d with SIGTERM (never SIGKILL), wait until it is gone, start the guest, and run the same task again."
            % (layer, orphan)
        )
    return (
        "The next start has %s now: start no job and take no snapshot on this disk, shut the guest down and start it again when that suits, and run the same "
        "task again." % layer
    )
