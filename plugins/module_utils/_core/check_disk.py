# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest's disk against its definition, the other guests, its snapshots, its jobs, and what QEMU really does."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Iterator, List, Optional, Tuple

from .chain import HEADER, NO_CHAIN, Chain, Layer, normal_path
from .check_chain import chain_findings, image_itself
from .findings import INFO, WARNING, Finding, Subject, distinct
from .headers import Probes, Walk, chains_of, completed, probe_of
from .host_facts import Process
from .model import Disk, Domain, Observed, Use
from .pivot import processes_of, stray, unmentioned
from .render import chain_text, data_of
from .verify import covers

_WAY_OUT = (
    "start no job and take no snapshot on it; define the guest's persistent XML with the source %s, the format %s and no backingStore for that disk "
    "(virsh define works while it runs), and only then shut the guest down and start it again"
)


PERHAPS = "perhaps: "  # another disk of the same size may be meant


def subject_of(domain: Domain, disk: Disk) -> Subject:
    config = domain.config_disk(disk.target)
    chain = config.chain if config is not None else NO_CHAIN
    spelled = frozenset(layer.place for depth, layer in enumerate(chain.layers) if chain.terminated(depth) is not None)
    return Subject("disk %s of guest %s" % (disk.target, domain.name), disk.target, spelled=spelled)


class Evidence:
    """One look, ready for questions about one disk after the other, of thousands."""

    def __init__(self, seen: Observed, deepest: int):
        self.seen, self.deepest, self.probes = seen, deepest, seen.probes
        self.uses: Dict[tuple, List[Use]] = {}
        for use in seen.uses:
            self.uses.setdefault(use.place, []).append(use)
        self.processes = processes_of(seen.domains, seen.processes)
        self.stores = {probe.image.data_path for probe in seen.probes.values() if probe.image is not None and probe.image.data_path}


def disk_findings(domain: Domain, disk: Disk, look: Evidence) -> List[Finding]:
    """Everything that is found about one disk, once each."""
    subject = subject_of(domain, disk)
    if domain.uuid in look.seen.moved:
        message = "The chain of %s changed while it was compared, as during a snapshot or a pivot: look again."
        return [Finding("unknown", None, None, "moved", message % subject.words)]
    config = domain.config_disk(disk.target) if domain.active else None
    found = list(chain_findings(subject, completed(disk.chain, look.probes, look.deepest), look.probes, look.deepest))
    if disk.mirror is not None:
        found += _mirror(subject, disk, look.probes)
    if config is not None:
        found += _config(subject, disk, config, look.probes, look.deepest)
    found += _shared(domain, disk, look, subject)
    found += _snapshots(domain, disk, look, subject)
    found += _jobs(domain, disk, look, subject)
    found += _orphan(domain, disk, look, subject)
    found += _hidden(domain, disk, look, subject)
    return distinct(found)


def _config(subject: Subject, disk: Disk, config: Disk, probes: Probes, deepest: int) -> Iterator[Finding]:
    """The next start's chain against the one in use, and against the headers where it is another."""
    walk = completed(config.chain, probes, deepest)
    if covers(_resolved(walk.chain, probes), _resolved(disk.chain, probes)) if disk.chain.layers else not config.chain.layers:
        return
    words = _with_formats if walk.chain.places == disk.chain.places else chain_text
    live, then = words(disk.chain), words(walk.chain)
    message = "At its next start, %s will have the chain %s, but %s is in use: define the chain in use, or restart the guest if the definition is meant."
    level = INFO if disk.device in ("cdrom", "floppy") else None  # media come and go
    yield Finding("config_differs", None, live, then, message % (subject.words, then, live), level)
    yield from chain_findings(replace(subject, words="%s at its next start" % subject.words, running=disk.chain), walk, probes, deepest)


def _resolved(chain: Chain, probes: Probes) -> Chain:
    """The chain with the links of its paths resolved, and without the formats that only headers claim (see format_differs)."""

    def change(layer: Layer) -> Layer:
        probe = probe_of(layer, probes)
        source = (("file", probe.real),) if probe is not None and probe.real else layer.source
        return replace(layer, source=source, format=None if layer.known_from == HEADER else layer.format)

    return chain.map(change)


def _with_formats(chain: Chain) -> str:
    return " <- ".join("%s (%s%s)" % (layer, layer.format or "format unknown", data_of(layer)) for layer in reversed(chain.layers))


def _mirror(subject: Subject, disk: Disk, probes: Probes) -> Iterator[Finding]:
    """The image that a job writes to: is it there, and of the format that was asked for?"""
    mirror = disk.mirror.chain.active if disk.mirror is not None else None
    probe = probe_of(mirror, probes) if mirror is not None else None
    if mirror is None or probe is None:
        return
    if probe.magic in (None, mirror.format):
        yield from image_itself(subject, mirror, probe)
        return
    message = "The %s job of %s writes %s as %s, but the header of that image says %s: end the job, and copy again with the right format."
    words = message % (disk.mirror.job, subject.words, mirror, mirror.format, probe.magic)
    yield Finding("mirror_format", subject.label(mirror), mirror.format, probe.magic, words)


def _shared(domain: Domain, disk: Disk, look: Evidence, subject: Subject) -> Iterator[Finding]:
    """Images of this disk that two disks use, one of them writing."""
    walk = completed(disk.chain, look.probes, len(disk.chain) + look.deepest)
    for image in walk.chain.images():
        users = [use for place in {image.place} | _real_places(image, look.probes) for use in look.uses.get(place, ())]
        own = [use for use in users if (use.uuid, use.disk) == (domain.uuid, disk.target)]
        others = [use for use in users if (use.uuid, use.disk) != (domain.uuid, disk.target) and not _another_start(domain, use)]
        if not any(use.writes for use in own):
            others = [use for use in others if use.writes]
        if others:
            who = ", ".join(sorted({"disk %s of guest %s" % (use.disk, use.guest) for use in others}))
            message = "%s of %s is also an image of %s, and one of them may write to it: give each guest an image of its own, or an overlay."
            yield Finding("shared_image", subject.label(image), None, who, message % (subject.name(image), subject.words, who))


def _another_start(domain: Domain, use: Use) -> bool:
    """Is it the same guest's use, but only at its next start? A disk that was plugged elsewhere is never used at once."""
    other = domain.disk(use.disk) if use.uuid == domain.uuid else None
    written = use.layer or use.place
    return use.uuid == domain.uuid and (other is None or written not in {layer.place for layer in other.chain.images()})


def _real_places(image: Layer, probes: Probes) -> set:
    probe = probe_of(image, probes)
    return {("path", probe.real)} if probe is not None and probe.real else set()


def _snapshots(domain: Domain, disk: Disk, look: Evidence, subject: Subject) -> Iterator[Finding]:
    """Snapshots that need an image which is in no chain of the disk; where an end is not known, it may be there."""
    config = domain.config_disk(disk.target)
    walks = [completed(chain, look.probes, look.deepest).chain for chain in [disk.chain] + ([config.chain] if config is not None else [])]
    if any(walk.layers and walk.ends is None for walk in walks):
        return
    places = {place for walk in walks for place in walk.places}
    for shot in look.seen.shots.get(domain.uuid, ()):
        for target, path in shot.files + shot.bases:
            if target == disk.target and ("path", normal_path(path)) not in places:
                message = "Snapshot %s needs %s, no layer of %s now: but for another branch after a revert, libvirt can neither delete nor revert it."
                yield Finding("snapshot_stale", path, path, None, message % (shot.name, path, subject.words))


def _jobs(domain: Domain, disk: Disk, look: Evidence, subject: Subject) -> Iterator[Finding]:
    written = written_to(domain, disk, look)
    if written is not None:
        yield _stale(disk, written, subject)
    elif disk.mirror is not None and domain.name not in look.seen.silent:
        mirror = disk.mirror
        where = str(mirror.chain.active)
        if disk.job is None and mirror.ready != "pivot":
            message = "A mirror (%s) to %s is left on %s without a job: find out with qemu_nodes which image QEMU writes to."
            yield Finding("job_left", subject.label(mirror.chain.active), None, mirror.job, message % (mirror.job, where, subject.words))
        elif mirror.ready == "yes":
            message = "A %s job to %s on %s is ready, and nobody has ended it: pivot it or end it."
            yield Finding("job_left", subject.label(mirror.chain.active), None, mirror.job, message % (mirror.job, where, subject.words))


def written_to(domain: Domain, disk: Disk, look: Evidence) -> Optional[Tuple[Layer, str]]:
    """The image that QEMU writes to although libvirt has another as the active layer, and how that is known; or None.

    Where QEMU was asked, its answer decides. Else a mirror that is pivoting without a job is such an image, and so is a file
    that QEMU holds open for writing and that the guest's XML names nowhere (libvirt 9.0, killed before it wrote the mirror down).
    """
    if not domain.active or domain.name in look.seen.silent or disk.chain.active is None or disk.job is not None:
        return None
    view = look.seen.qemu.get(domain.uuid)
    if view is not None and disk.alias is not None:
        file = stray(disk, view)
        if file is None or not file.startswith("/") or disk.chain.active.path is None:
            return None
        return _layer_for(disk, file, look.probes), "QEMU itself says so"
    if disk.mirror is not None and disk.mirror.ready == "pivot" and disk.mirror.chain.active is not None:
        return disk.mirror.chain.active, "a mirror is left in the middle of its pivot; ask QEMU itself with qemu_nodes"
    if view is None and disk.mirror is None and not disk.readonly:
        for process, layer in _strangers(domain, disk, look):
            return layer, PERHAPS + "process %d holds it open for writing, and libvirt names it nowhere" % process.pid
    return None


def _layer_for(disk: Disk, path: str, probes: Probes) -> Layer:
    mirror = disk.mirror.chain.active if disk.mirror is not None else None
    if mirror is not None and mirror.path is not None and normal_path(mirror.path) == normal_path(path):
        return mirror
    format_ = next((probe.format for (one, dummy), probe in probes.items() if one == path and probe.format), None)
    return Layer("file", (("file", path),), format_)


def _stale(disk: Disk, written: Tuple[Layer, str], subject: Subject) -> Finding:
    layer, evidence = written
    old, label = str(disk.chain.active), subject.label(disk.chain.active)
    if evidence.startswith(PERHAPS):
        message = "QEMU may write the data of %s to %s, while libvirt has %s (%s): ask QEMU itself with qemu_nodes before anything else is done to the guest."
        return Finding("stale_pivot", label, old, str(layer), message % (subject.words, layer, old, evidence[len(PERHAPS) :]), WARNING)
    message = "QEMU writes the data of %s to %s, while libvirt and the next start have %s (a pivot whose daemon was killed; %s): " + _WAY_OUT + "."
    words = message % (subject.words, layer, old, evidence, layer, layer.format or "that its header has")
    return Finding("stale_pivot", label, old, str(layer), words)


def _strangers(domain: Domain, disk: Disk, look: Evidence) -> List[Tuple[Process, Layer]]:
    """Images that a process of this guest may write to, that its XML names nowhere, and that are as big as this disk."""
    processes = look.processes.get(domain.uuid, ())
    own = probe_of(disk.chain[0], look.probes) if processes and disk.chain.layers else None
    if own is None:
        return []
    chains = [chain for one in domain.disks + domain.config for chain in chains_of(one)]
    found = (probe_of(layer, look.probes) for chain in chains for layer in chain.images())
    known = {probe.identity for probe in found if probe is not None}
    strangers = []
    for process in processes:
        if domain.active and process.uuid != domain.uuid:
            continue  # another guest of that name, as in a container
        for path in unmentioned(domain, process):
            probe = look.probes.get((path, None))
            size = None if probe is None else probe.virtual or probe.physical
            if probe is not None and size == own.virtual and path not in look.stores and probe.identity not in known:
                strangers.append((process, Layer("file", (("file", path),), probe.format)))
    return strangers


def _hidden(domain: Domain, disk: Disk, look: Evidence, subject: Subject) -> Iterator[Finding]:
    for process in look.processes.get(domain.uuid, ()):
        if process.hidden and disk == domain.disks[0]:
            message = "Which files QEMU (process %d) holds open for %s is hidden from this user, so an orphan or a silent stale pivot is not seen: use become."
            yield Finding("unknown", None, None, "permission", message % (process.pid, subject.words))


def _orphan(domain: Domain, disk: Disk, look: Evidence, subject: Subject) -> Iterator[Finding]:
    if domain.active or not disk.chain.layers:
        return
    for process in look.processes.get(domain.uuid, ()):
        layers = [layer for chain in chains_of(disk) for layer in chain.layers]
        held = [layer for layer in layers if layer.path and process.holds(_real(layer, look.probes))]
        if not held:
            continue
        others = ["%s (format %s)" % (layer, layer.format or "unknown") for one, layer in _strangers(domain, disk, look) if one == process]
        message = (
            "Guest %s is off for libvirt, but its QEMU process %d runs and holds %s of its disk %s%s: remove no file; "
            "if it writes to another image than the definition has, define the disk with that image, its format and no backingStore, "
            "then end the process with SIGTERM, wait until it is gone, and start the guest."
        )
        also = ", and writes to %s" % ", ".join(others) if others else ""
        label = subject.label(held[0])
        yield Finding("orphaned_guest", label, None, process.pid, message % (domain.name, process.pid, held[0], disk.target, also))


def _real(layer: Layer, probes: Probes) -> str:
    probe = probe_of(layer, probes)
    return probe.real if probe is not None and probe.real else layer.path or ""


def image_findings(walk: Walk, where: str, probes: Probes, deepest: int) -> List[Finding]:
    """What is found about an image that belongs to no guest."""
    return distinct(chain_findings(Subject("image %s" % where, image=where), walk, probes, deepest))


def chain_now(chain: Chain, probes: Probes, deepest: int) -> Walk:
    """A chain as it is returned: completed by headers where they were read."""
    return completed(chain, probes, deepest) if probes else Walk(chain)
