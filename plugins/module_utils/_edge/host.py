# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host: look at it, do a step, undo a step. It translates and never decides.

``do`` and ``undo`` take the steps of ``_core/plan.py`` (see ``steps.py``, ``waits.py``, ``pivots.py`` and ``offline.py``). ``undo`` may be called for a
step that was only half done, or twice, and removes no file that this run did not create.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Dict, List, Mapping, Optional, Set, Tuple

from .._core.apparmor import APPARMOR, Confinement
from .._core.chain import Chain
from .._core.errors import CallFailed, LiveStorageError, Unavailable
from .._core.headers import Probes, bare_guest, measured, stores, wanted, whole, with_stores
from .._core.host_facts import NOT_ASKED, File, Image, Process, QemuView, Volume
from .._core.model import Domain, Needs, Observed, Selection, Snapshot
from .._core.pivot import doubtful, processes_of, unmentioned
from .._core.verify import same_disks
from .backups import Backups
from .confinement import confinement
from .conversions import Conversions
from .datafile import shows
from .files import read_file, takes_holes
from .image_locks import Locks, in_use
from .image_work import holds_data, measure, same_data
from .images import Images
from .libvirt_host import Connection, surely_local
from .offline import Offline
from .patience import PATH_SECONDS, Look
from .pivots import Pivots
from .processes import ask_monitor, qemu_processes
from .qemu_img import PATIENT_SECONDS, SECONDS, read_image
from .snapshots import Snapshots
from .steps import Steps
from .uses import all_uses
from .waits import Waits

LOOKS, FEW = 3, 10  # how often as many guests are looked at again that change under the look
OTHERS_SECONDS = 2.0  # how long an info module reads the images of guests that it was not asked about


NO_ANSWER = "the storage gave no answer in time"
Shots = Mapping[str, Tuple[Snapshot, ...]]  # by the guest's uuid


class _Troubles:
    """What could not be read during a look: in words, the names of the guests whose jobs are not known, and by (uuid, question)."""

    def __init__(self) -> None:
        self.words: List[str] = []
        self.silent: List[str] = []
        self.of_guests: Dict[Tuple[str, str], Tuple[str, str]] = {}


class Host(Steps, Waits, Pivots, Offline, Snapshots, Conversions, Backups):
    """One hypervisor. ``clock``, ``sleep`` and ``now_of_day`` are the time module's, passed in for tests.

    ``notes`` are sentences about what was noticed while steps were done, which are no failures.
    """

    def __init__(self, uri: str, with_events: bool, clock=time.monotonic, sleep=time.sleep, now_of_day=time.time):
        self._uri, self._with_events = uri, with_events
        self._opened: Optional[Connection] = None
        self._clock, self._sleep, self._now_of_day = clock, sleep, now_of_day
        self._uuid: Optional[str] = None
        self._paths: Dict[str, None] = {}  # of the first look: a later chain may no longer name them
        self._started: Set[str] = set()  # the disks with a job that this run may end
        self._copied: Set[str] = set()  # the disks on which this run has started one, whatever became of it
        self._away = False  # has a lost daemon been waited for in vain?
        self._measured: Dict[tuple, Optional[int]] = {}
        self._held: Dict[tuple, Optional[bool]] = {}
        self._owned: Dict[str, Optional[Tuple[Optional[int], Optional[int]]]] = {}  # the files that QEMU has at the paths that this run created
        self._pivoting: Set[str] = set()  # the disks on which this run has begun a pivot, whatever became of it
        self._made: Set[str] = set()  # the files that this run created before a job
        self._written: Set[str] = set()  # the disks on which this run has begun to write into a base
        self._slower: Dict[str, int] = {}  # the speed limits that this run changed
        self._behind: Dict[str, str] = {}  # what was said of the copies that do not catch up with their guests
        self._locks = Locks()
        self._agreed: Dict[tuple, Optional[bool]] = {}
        self._rebased: Set[str] = set()  # the images that this run has begun to put on another one
        self._renamed: List[str] = []  # what libvirt kept of the snapshots that this run redefined
        self._redefined: Dict[Tuple[str, ...], Tuple[str, str]] = {}  # by disks: the definition before this run wrote one, and what it wrote
        self._owners: Dict[str, Tuple[int, int]] = {}  # of the data files that this run gave to another owner, as they were before
        self.notes: List[str] = []
        self.facts: Dict[str, Any] = {}  # what was measured while steps were done, in the words of the module's result

    @property
    def _connection(self) -> Connection:
        """Opened when it is first needed: images that belong to no guest are read without libvirt."""
        if self._opened is None:
            self._opened = Connection(self._uri, self._with_events)
        return self._opened

    def close(self) -> None:
        self._locks.release()
        if self._opened is not None:
            self._opened.close()

    def settle(self) -> None:
        """Wait for a call that this run was interrupted in; what becomes of it is seen by the next look."""
        if self._opened is not None:
            with contextlib.suppress(LiveStorageError):
                self._connection.settle()
                self._settle_start()

    # READ

    def observe(self, needs: Needs) -> Observed:
        """One look at everything that ``needs`` names.

        Where it is compared with files and processes (uses of an info module), the guests are read once more at the end; a few
        that changed meanwhile are looked at again, and those that keep changing are named in ``moved``.
        """
        seen = self._look(needs)
        for dummy in range(LOOKS - 1):
            if not seen.moved or len(seen.domains) > FEW:
                break
            seen = self._look(needs)
        return seen

    def _look(self, needs: Needs) -> Observed:
        selection = self._pinned(needs.selection)
        local = not needs.guests and surely_local(self._uri)
        if not local:
            self._reach()
            local = self._connection.local
        handles = self._connection.select(selection) if needs.guests else []
        troubles = _Troubles()
        read = [(handle, self._read(handle, needs, troubles)) for handle in handles]
        kept = [(handle, one) for handle, one in read if one is not None and selection.state in (None, one.state)]
        domains = tuple(one for dummy, one in kept)
        if needs.selection.single and domains:
            self._uuid = domains[0].uuid
        images = Images(local, None if local else self._connection.volume_xml, SECONDS if needs.tolerant else PATIENT_SECONDS)
        processes = qemu_processes() if (needs.processes or needs.doubts) and local else ()
        running = processes_of(domains, processes)
        seen = domains if needs.processes else ()
        strangers = [(path, None) for domain in seen for process in running.get(domain.uuid, ()) for path in unmentioned(domain, process)]
        volume = self._connection.volume(*needs.volume) if needs.volume is not None else None
        snapshots = tuple(self._connection.snapshots(handles[0])) if needs.snapshots and handles and domains else ()
        bare = list(needs.bare) + self._of_volume(volume, needs.volume_format)
        shots = self._of_each(kept if needs.shots else [], "snapshots", troubles)
        both = shots if needs.shots else {domain.uuid: snapshots for domain in domains}
        probes = self._headers(needs, domains, images, bare + strangers, both, local) if needs.headers else {}
        if needs.stores:
            domains = tuple(with_stores(one, probes) for one in domains)
        if needs.offline:
            domains = tuple(whole(one, probes, needs.headers, self._show_the_same) for one in domains) + self._images_alone(needs, probes)
        # Other guests' slow or hostile images must not keep a mere look at one guest waiting; what is judged as before a change is worth it.
        deadline = self._clock() + OTHERS_SECONDS if needs.tolerant and not needs.offline else None
        uses, unread = all_uses(self._connection, images, deadline) if needs.uses else ((), ())
        return Observed(
            domains,
            uses=uses,
            unread=unread,
            snapshots=snapshots,
            silent=tuple(troubles.silent),
            local=local,
            probes=probes,
            sizes=self._sizes(needs, kept, probes, troubles),
            shots=shots,
            checkpoints=self._of_each(kept if needs.shots and needs.bitmaps else [], "checkpoints", troubles),
            qemu=self._views(needs, [(handle, domain) for (handle, dummy), domain in zip(kept, domains)], running, troubles),
            processes=processes,
            moved=self._moved(needs, kept) if needs.uses and needs.tolerant else (),
            bitmaps=tuple(self._connection.bitmaps(handles[0])) if needs.bitmaps and not needs.shots and handles and domains else (),
            volume=volume,
            versions=self._connection.versions() if needs.versions and needs.guests else NOT_ASKED,
            texts=self._of_each([pair for pair in kept if pair[1].active] if needs.texts else [], "texts", troubles),
            runner=self._connection.runner() if needs.runner and needs.guests else None,
            rates=self._rates(needs, kept) if needs.sample else {},
            **(self._of_storage(needs, domains, bare, both, probes, troubles) if local else {}),
            troubles=tuple(troubles.words),
            unanswered=troubles.of_guests,
            kept=self._kept(needs, kept, local, troubles) if needs.kept is not None else {},
        )

    def _headers(self, needs: Needs, domains: Tuple[Domain, ...], images: Images, more: list, shots: Shots, local: bool) -> Probes:
        """What the images say of themselves: those of the guests, of their snapshots, and ``more``."""
        # Elsewhere each image is a call over the network: there only a validation asks about what libvirt knows already.
        named = wanted(domains, only_open=not local and not needs.uses)
        probes = images.read(more + named, needs.headers, [path for path, dummy in more])
        seen_paths = {path for path, dummy in probes}
        others = [path for path in dict.fromkeys(self._of_snapshots(needs, domains, shots)) if path not in seen_paths]
        return images.read([(path, None) for path in others], needs.headers, others) if others else probes

    def _of_storage(self, needs: Needs, domains: Tuple[Domain, ...], bare: list, shots: Shots, probes: Probes, troubles: _Troubles) -> dict:
        """What this host's own files and processes say."""
        look = Look(PATH_SECONDS if needs.tolerant else None)
        images = self._images(needs, domains)
        if needs.stores:
            self._paths.update(dict.fromkeys(path for path, dummy in stores(probes.values())))
            self._paths.update(dict.fromkeys(image.data_path for image in images.values() if image.data_path))
        found = {
            "files": self._files(needs, domains, shots, look),
            "images": images,
            "measured": self._measure(needs, domains),
            "holds": self._holds(needs, domains, bare),
            "takes_holes": {path: look(None, takes_holes, path) for domain in domains for path in (needs.holes_at(domain) if needs.holes_at else ())},
            "held": self._held_by(domains, look) if needs.offline else {},
            "same": self._same(needs, domains),
            "confinement": self._confined(domains) if needs.confinement else {},
        }
        troubles.words += ["The storage at %s gave no answer in time: nothing is known of the files there." % folder for folder in sorted(look.dead)]
        return found

    def _measure(self, needs: Needs, domains: Tuple[Domain, ...]) -> Optional[int]:
        """Measured at the first look only: it may take long, and what a guest writes between two looks is not what decides."""
        asked = needs.measure(domains[0]) if needs.measure is not None and domains else None
        if asked is not None and asked not in self._measured:
            self._measured[asked] = measure(*asked)
        return None if asked is None else self._measured[asked]

    def _holds(self, needs: Needs, domains: Tuple[Domain, ...], bare: list) -> Optional[bool]:
        """Has the prepared image data of its own? Looked at first only, before a copy writes to it."""
        image = (bare[-1] if needs.volume is not None else bare[0]) if bare else (None, None)
        if needs.prepared is None or not domains or None in image or not needs.prepared(domains[0]):
            return None
        if image not in self._held:
            self._held[image] = holds_data(*image)
        return self._held[image]

    def _confined(self, domains: Tuple[Domain, ...]) -> Dict[str, Confinement]:
        """What AppArmor lets the QEMU of each running guest do."""
        labels = [(domain.uuid, label) for domain in domains if domain.active for model, label in domain.seclabels if model == APPARMOR]
        return {uuid: confinement(APPARMOR, label) for uuid, label in labels}

    def _of_snapshots(self, needs: Needs, domains: Tuple[Domain, ...], shots: Shots) -> List[str]:
        """The files that libvirt's snapshots of the guests and our own notes name."""
        found = [shot for domain in domains for shot in (*shots.get(domain.uuid, ()), *domain.noted)]
        return [path for shot in found for path in shot.paths] if needs.of_snapshots else []

    def _images_alone(self, needs: Needs, probes: Probes) -> Tuple[Domain, ...]:
        """The images that were asked for by themselves, as guests that are off."""
        if not needs.as_guests:
            return ()
        names = needs.names or tuple(path for path, dummy in needs.bare)
        return tuple(bare_guest(path, format_, probes, needs.headers, name) for name, (path, format_) in zip(names, needs.bare))

    def _held_by(self, domains: Tuple[Domain, ...], look: Look) -> Dict[Tuple[str, bool], Optional[str]]:
        """Who holds the images of what is off; not asked any more once this run holds them itself."""
        idle = [disk for domain in domains if not domain.active for disk in domain.disks] if not self._locks.descriptors else []
        paths = dict.fromkeys(layer.path for disk in idle for layer in disk.chain.images() if layer.path)
        return {(path, writes): look(NO_ANSWER, in_use, path, writes) for path in paths for writes in (True, False)}

    def _same(self, needs: Needs, domains: Tuple[Domain, ...]) -> Dict[Tuple[str, str], bool]:
        """Compared at the first look only: it may take long, and tells only whether the work was done before."""
        asked = [(domain, one) for domain in domains for one in needs.agree(domain)] if needs.agree is not None else []
        found = {}
        for domain, (target, layers, others) in asked:
            key = (domain.uuid, target)
            if key not in self._agreed:
                self._agreed[key] = shows(layers[0]) if others == (layers[0].store,) else same_data(layers, others)
            if self._agreed[key] is not None:
                found[key] = self._agreed[key]
        return found

    def _show_the_same(self, one: Chain, two: Chain) -> Optional[bool]:
        key = (one, two)
        if key not in self._agreed:
            self._agreed[key] = same_data(one.layers, two.layers)
        return self._agreed[key]

    def _rates(self, needs: Needs, kept: list) -> dict:
        """Every job that still runs after ``sample`` seconds, with what it did in them, in bytes per second."""
        running = [(handle, domain, disk) for handle, domain in kept for disk in domain.disks if disk.job is not None]
        if not running:
            return {}
        start = self._clock()
        self._sleep(needs.sample)
        found = {}
        for handle, domain, disk in running:
            try:
                job = self._connection.job(handle, disk.target, disk.mirror)
            except (CallFailed, Unavailable):
                job = disk.job  # as it was at the first look
            if job is None:
                continue  # it has ended meanwhile
            rate = max(0, job.cur - disk.job.cur) / max(0.001, self._clock() - start)
            found[domain.uuid, disk.target] = (job, rate if job.type == disk.job.type and job is not disk.job else None)
        return found

    def _of_volume(self, volume: Optional[Volume], format: Optional[str]) -> list:
        """What is to be read of a volume that was looked up."""
        if volume is None or volume.path is None:
            return []
        self._paths[volume.path] = None
        return [(volume.path, format or volume.format)] if volume.exists else []

    def _moved(self, needs: Needs, kept: list) -> Tuple[str, ...]:
        """The guests that have other disks by now than when they were read."""
        again = [(domain, self._connection.read(handle, needs.config, False)) for handle, domain in kept]
        return tuple(domain.uuid for domain, now in again if now is None or not same_disks(domain, now))

    def _sizes(self, needs: Needs, kept: list, probes: Probes, troubles: _Troubles) -> dict:
        """Of running guests with an image that was not measured already; what is off has no statistics."""
        running = [handle for handle, domain in kept if domain.active and not measured(domain, probes)]
        if not needs.sizes or not running:
            return {}
        try:
            return self._connection.sizes(running)
        except (CallFailed, Unavailable) as error:
            self._told(error, troubles)
            return {}

    def _views(self, needs: Needs, kept: list, processes: Dict[str, Tuple[Process, ...]], troubles: _Troubles) -> dict:
        running = [pair for pair in kept if pair[1].active]
        if not needs.doubts:
            return self._of_each(running if needs.qemu else [], "qemu_view", troubles)
        found = self._of_each([pair for pair in running if doubtful(pair[1], processes.get(pair[1].uuid, ()))], "qemu_view", troubles)
        lost = [domain for dummy, domain in kept if not domain.active and doubtful(domain, processes.get(domain.uuid, ()))]
        for domain in lost:
            view = self._orphans_view(domain, processes[domain.uuid])
            found.update({domain.uuid: view} if view is not None else {})
        return found

    def _orphans_view(self, domain: Domain, processes: Tuple[Process, ...]) -> Optional[QemuView]:
        """What the QEMU of a guest says that is off for libvirt: its monitor has no other client then."""
        answers = (ask_monitor(process.pid) for process in processes if process.uuid == domain.uuid)
        return next((view for view in answers if view is not None), None)

    def _of_each(self, kept: list, question: str, troubles: _Troubles) -> dict:
        """An answer for each guest, by uuid; a guest that gives none is a trouble, and not the end."""
        found = {}
        for handle, domain in kept:
            try:
                found[domain.uuid] = getattr(self._connection, question)(handle)
            except (CallFailed, Unavailable) as error:
                self._told(error, troubles)
                troubles.of_guests[domain.uuid, question] = (error.code, str(error))
        return found

    def _told(self, error: LiveStorageError, troubles: _Troubles) -> None:
        if not self._connection.alive:
            raise error
        troubles.words.append(str(error))

    def _read(self, handle, needs: Needs, troubles: _Troubles) -> Optional[Domain]:
        try:
            return self._connection.read(handle, needs.config, True, needs.capacities, needs.processes or needs.doubts)
        except (CallFailed, Unavailable) as error:
            if not needs.tolerant or not self._connection.alive:
                raise
            troubles.silent.append(handle.name())
            troubles.of_guests[handle.UUIDString(), "job"] = (error.code, str(error))
            return self._connection.read(handle, needs.config, False, False, needs.processes or needs.doubts)

    def _reach(self) -> None:
        """A connection that broke is opened again. Raises Unavailable."""
        if not self._connection.alive:
            self._reopen()

    def _pinned(self, selection: Selection) -> Selection:
        """After the first look a guest is looked up by its uuid: its name may be given to another."""
        return Selection(uuid=self._uuid) if self._uuid and selection.single else selection

    def _files(self, needs: Needs, domains: Tuple[Domain, ...], shots: Shots, look: Look) -> Dict[str, File]:
        self._paths.update(dict.fromkeys(needs.paths))
        self._paths.update(dict.fromkeys(self._of_snapshots(needs, domains, shots)))
        if needs.paths_of is not None:
            self._paths.update(dict.fromkeys(path for domain in domains for path in needs.paths_of(domain)))
        if needs.paths_with is not None:
            self._paths.update(dict.fromkeys(path for domain in domains for path in needs.paths_with(domain, shots.get(domain.uuid, ()))))
        found = ((path, look(None, read_file, path)) for path in self._paths)
        return {path: file for path, file in found if file is not None}

    def _images(self, needs: Needs, domains: Tuple[Domain, ...]) -> Dict[str, Image]:
        more = [key for domain in domains for key in needs.images_of(domain)] if needs.images_of is not None else []
        read = ((path, read_image(path, format)) for path, format in dict.fromkeys([*needs.images, *more]))
        return {path: image for path, image in read if image is not None}
