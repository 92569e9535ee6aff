# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only place that imports libvirt: a connection, looks, and calls whose errors are ours.

Nothing is decided here. The binding is imported lazily by name so that the pipeline can say which package is missing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import time
from dataclasses import replace
from typing import Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import urlsplit

from .._core.backup_xml import parse_backup, parse_ended, parse_points
from .._core.backups import Backup, Checkpoint, Ended
from .._core.chain import Chain, Layer
from .._core.domain_xml import (
    CONVERSION_URI,
    NOTED_URI,
    RECORD_PREFIX,
    RECORD_URI,
    mentioned,
    parse_checkpoint,
    parse_domain,
)
from .._core.errors import Busy, CallFailed, Moved, Unavailable
from .._core.headers import with_layers
from .._core.host_facts import QemuView, Sizes, Versions, Volume
from .._core.host_xml import parse_named_volume, parse_pool, parse_runner
from .._core.model import ACTIVE_COMMIT, BACKUP, COMMIT, COPY, PULL, Domain, Job, Record, Selection, Snapshot
from .._core.notes import Conversion
from .._core.qmp import parse_job_name, parse_view, parse_word
from .._core.snapshot_xml import noted_xml, parse_snapshot, retold, under
from .._core.write_xml import as_running, conversion_xml, on_image, record_xml, with_chains
from .libvirt_events import Events, start_loop
from .patience import GivenUp, Patience, RealPaths

try:
    import libvirt
except ImportError:
    libvirt = None
try:
    import libvirt_qemu
except ImportError:
    libvirt_qemu = None

_JOB_TYPES = {1: PULL, 2: COPY, 3: COMMIT, 4: ACTIVE_COMMIT, 5: BACKUP}
# community.libvirt's words for virDomainState: nostate, running, blocked, paused, shutdown, shutoff, crashed, pmsuspended.
_STATES = ("running", "running", "running", "paused", "shutdown", "shutdown", "crashed", "paused")


def is_local(uri: str) -> bool:
    """Are the files of this URI's hypervisor the files of this host? (An alias of libvirt.conf has to be resolved before.)"""
    parts = urlsplit(uri)
    return not parts.netloc and parts.scheme != "test" and parts.scheme.partition("+")[2] in ("", "unix")


def surely_local(uri: str) -> bool:
    """Is that plain without asking libvirt? (What has no scheme may be an alias of libvirt.conf.)"""
    return ":" in uri and is_local(uri)


QUESTIONS = ("query-named-block-nodes", "query-block-jobs", "query-block")
DIRECTORY_POOLS = ("dir", "fs", "netfs")
CALL_SECONDS = 60  # more than the 30 that libvirt itself waits for the lock on a guest
REVERT_SECONDS = 600
BEGIN_SECONDS = 600


class Connection:
    """One connection to libvirt. Raises Unavailable when the daemon or the permission is missing."""

    def __init__(self, uri: str, with_events: bool):
        libvirt.registerErrorHandler(_silent, None)
        if with_events:
            start_loop(libvirt)
        self.uri = uri
        self._with_events = with_events
        self._patience = Patience((libvirt.libvirtError, TypeError, ValueError, OverflowError))
        self._volumes: Dict[Tuple[str, str], Optional[str]] = {}
        self._jobless = False  # a driver that has no block jobs at all
        self._open()
        self.local = is_local(self._libvirt.getURI())

    def _open(self) -> None:
        try:
            self._libvirt = self._bounded(libvirt.open, self.uri)
            self.events = Events(libvirt, self._libvirt) if self._with_events else None
        except libvirt.libvirtError as error:
            denied = error.get_error_code() in _denied() or os.strerror(errno.EACCES) in str(error)  # the socket says it in errno's words
            code = "permission" if denied else "no_daemon"
            what = "refused this user" if code == "permission" else "does not answer"
            advice = "use become, polkit or the group libvirt" if code == "permission" else "start its daemon or correct uri"
            raise Unavailable(code, "libvirt at %s %s (%s): %s." % (self.uri, what, error, advice)) from error

    def reopen(self, deadline: float, pause: float = 0.2) -> None:
        """A new connection after the old one broke, tried until ``deadline`` (monotonic seconds). Raises Unavailable."""
        self.close()
        while True:
            try:
                self._open()
                return
            except Unavailable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(pause)

    @property
    def alive(self) -> bool:
        try:
            return bool(self._libvirt.isAlive())
        except libvirt.libvirtError:
            return False

    def close(self) -> None:
        with contextlib.suppress(libvirt.libvirtError, Unavailable):
            self._bounded(self._libvirt.close)

    def _bounded(self, call, *arguments, seconds: float = 0):
        """The answer to a call that QEMU has a part in. Raises Unavailable (code no_answer) after so many seconds, 0: CALL_SECONDS.

        libvirt waits for QEMU's monitor without a limit, as with a process that hangs on dead storage.
        """
        try:
            return self._patience.call(seconds or CALL_SECONDS, call, *arguments)
        except GivenUp:
            message = "QEMU or libvirt at %s gave no answer within %d seconds, as with storage that is gone: look at the guest."
            raise Unavailable("no_answer", message % (self.uri, seconds or CALL_SECONDS)) from None

    def settle(self) -> None:
        """Wait for a call that this run was interrupted in: what libvirt still does for it is to be seen before it is undone. Raises Unavailable."""
        if not self._patience.settled(CALL_SECONDS):
            message = "libvirt at %s still works on a call that was given up, and may finish it: look at the guest again." % self.uri
            raise Unavailable("no_answer", message)

    def volume_path(self, pool: Optional[str], volume: Optional[str]) -> Optional[str]:
        """The path of a volume, None where libvirt does not know it (now)."""
        if (pool, volume) not in self._volumes:
            try:
                path = self._bounded(lambda: self._libvirt.storagePoolLookupByName(pool).storageVolLookupByName(volume).path())
            except libvirt.libvirtError:
                path = None
            self._volumes[pool, volume] = path
        return self._volumes[pool, volume]

    def volume_xml(self, path: str) -> Optional[str]:
        """What libvirt says of the storage volume at a path, None where no active pool has it."""
        try:
            return self._bounded(lambda: self._libvirt.storageVolLookupByPath(path).XMLDesc(0))
        except libvirt.libvirtError:
            return None

    def _resolved(self, layer: Layer) -> Layer:
        if layer.type != "volume":
            return layer
        return replace(layer, resolved=self.volume_path(layer.attribute("pool"), layer.attribute("volume")))

    @contextlib.contextmanager
    def calling(self, doing: str) -> Iterator[None]:
        """libvirtError to CallFailed, Busy or Unavailable with one sentence: could not ``doing``."""
        try:
            yield
        except libvirt.libvirtError as error:
            raise self._translated(error, doing) from error

    def _translated(self, error, doing: str):
        number = error.get_error_code()
        facts = {"libvirt_code": number}
        busy = number == libvirt.VIR_ERR_BLOCK_COPY_ACTIVE or "already in active block job" in str(error)
        if number in _denied():
            return Unavailable("permission", "libvirt at %s does not let this user %s (%s)." % (self.uri, doing, error), **facts)
        if not self.alive or error.get_error_domain() == libvirt.VIR_FROM_RPC:  # isAlive() may not know it yet (9.0)
            return Unavailable("connection_lost", "The connection to libvirt at %s broke; could not %s (%s)." % (self.uri, doing, error), **facts)
        if busy:
            return Busy("foreign_job", "libvirt could not %s, because a block job is active (%s)." % (doing, error), **facts)
        return CallFailed("libvirt_error", "libvirt could not %s: %s." % (doing, str(error).rstrip(".")), **facts)

    # Looks

    def select(self, selection: Selection) -> List:
        """The libvirt handles of the guests that a selection means, by name; a guest that vanishes meanwhile is left out."""
        with self.calling("list the guests"):
            if selection.single:
                handle = self.handle(selection)
                return [] if handle is None else [handle]
            found = self._libvirt.listAllDomains(0)
        names = [(handle.name(), handle) for handle in found]
        if selection.names is not None:
            names = [pair for pair in names if pair[0] in selection.names]
        if selection.pattern is not None:
            names = [pair for pair in names if re.search(selection.pattern, pair[0])]
        return [handle for dummy, handle in sorted(names, key=lambda pair: pair[0])]

    def handle(self, selection: Selection):
        """The handle of one guest by name or uuid, or None."""
        try:
            if selection.uuid is not None:
                return self._libvirt.lookupByUUIDString(selection.uuid)
            return self._libvirt.lookupByName(selection.name)
        except libvirt.libvirtError as error:
            if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                return None
            raise self._translated(error, "look up the guest") from error

    def read(self, handle, with_config: bool, with_jobs: bool = True, with_capacities: bool = False, with_paths: bool = False) -> Optional[Domain]:
        """One guest as it is now, or None when it vanished. One XML, a second one only ``with_config``."""
        domain = self._parsed(handle, with_config, with_paths)
        if domain is None or not domain.active or not with_jobs:
            return domain
        running = {disk.target: self.job(handle, disk.target, disk.mirror) for disk in domain.disks if disk.chain.layers}
        ended = any(running.get(record.disk) is None for record in domain.records)
        if ended or any(disk.mirror is not None and running.get(disk.target) is None for disk in domain.disks):
            domain = self._parsed(handle, with_config, with_paths)  # the job may have ended after the first XML: its chain would be the old one
        if domain is None:
            return None
        if not with_capacities and not any(running.values()):
            return domain
        disks = (replace(disk, job=running.get(disk.target)) for disk in domain.disks)
        return replace(domain, disks=tuple(self._with_capacity(handle, disk) if with_capacities else disk for disk in disks))

    def _parsed(self, handle, with_config: bool, with_paths: bool) -> Optional[Domain]:
        try:
            state = _STATES[handle.state()[0]]
            xml = handle.XMLDesc(0)
            active, persistent = bool(handle.isActive()), bool(handle.isPersistent())
            config = handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if with_config and active and persistent else None
            saved = not active and persistent and bool(handle.hasManagedSaveImage(0))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise self._translated(error, "read the guest %s" % handle.name()) from error
        domain = replace(parse_domain(xml, active, state, persistent, config), saved=saved)
        if "type='volume'" in xml or (config and "type='volume'" in config):
            domain = with_layers(domain, self._resolved)
        return replace(domain, mentioned=_real_too(mentioned(xml), domain)) if with_paths else domain

    def _with_capacity(self, handle, disk):
        if not disk.chain.layers:
            return disk
        with self.calling("read the size of disk %s of guest %s" % (disk.target, handle.name())):
            return replace(disk, capacity=self._bounded(handle.blockInfo, disk.target)[0])

    def job(self, handle, target: str, mirror=None) -> Optional[Job]:
        """The block job of a disk, None where there is none. A guest that stopped meanwhile has none either."""
        if self._jobless:
            return None
        try:
            facts = self._bounded(handle.blockJobInfo, target, libvirt.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
        except libvirt.libvirtError as error:
            if error.get_error_code() in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                return None
            if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                self._jobless = True
                return None
            raise self._translated(error, "read the job of disk %s of guest %s" % (target, handle.name())) from error
        if not facts:
            return None
        ready = mirror is not None and mirror.ready == "yes"
        return Job(_JOB_TYPES.get(facts["type"], "unknown"), facts["cur"], facts["end"], facts["bandwidth"], ready)

    def snapshots(self, handle) -> Iterable[Snapshot]:
        with self.calling("list the snapshots of guest %s" % handle.name()):
            return tuple(parse_snapshot(one.getXMLDesc(0), bool(one.isCurrent()), self._resolved) for one in handle.listAllSnapshots(0))

    def sizes(self, handles: List) -> Dict[Tuple[str, str, Optional[int]], Sizes]:
        """What libvirt's statistics know of every layer of running guests, by guest, disk and index; one call for all.

        ``block.N.physical`` is what the storage holds of a running guest's file (QEMU's actual-size); ``allocation`` is the
        highest offset written, which on a block device is the best that is known.
        """
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        flags |= libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
        with self.calling("read the sizes of the disks"):
            try:
                answer = self._bounded(self._libvirt.domainListGetStats, handles, libvirt.VIR_DOMAIN_STATS_BLOCK, flags)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                    return {}
                raise
        found = {}
        for handle, facts in answer:
            for number in range(facts.get("block.count", 0)):
                get = functools.partial(_fact, facts, number)
                found[handle.UUIDString(), get("name"), get("backingIndex")] = Sizes(get("capacity"), get("physical"), None)
        return found

    def qemu_view(self, handle) -> QemuView:
        """QEMU's own view of its storage, by reading commands of its monitor. libvirt marks the guest as tainted by them."""
        return parse_view(*(self._asked(handle, command) for command in QUESTIONS))

    def _asked(self, handle, question: str) -> str:
        return self._monitor(handle, json.dumps({"execute": question}))

    def _monitor(self, handle, command: str) -> str:
        if libvirt_qemu is None:
            raise Unavailable("missing_library", "The binding libvirt_qemu, a part of python3-libvirt, is not there: QEMU cannot be asked.")
        with self.calling("ask QEMU about the storage of guest %s" % handle.name()):
            return self._bounded(libvirt_qemu.qemuMonitorCommand, handle, command, 0)

    def bitmaps(self, handle) -> Iterable[Tuple[str, str]]:
        """The (disk, bitmap) pairs of a guest's checkpoints."""
        return [pair for dummy, pairs in self.checkpoints(handle) for pair in pairs]

    def checkpoints(self, handle) -> Tuple[Tuple[str, Tuple[Tuple[str, str], ...]], ...]:
        """The name and the (disk, bitmap) pairs of each of a guest's checkpoints; none where libvirt (before 5.6) has no checkpoints."""
        with self.calling("list the checkpoints of guest %s" % handle.name()):
            try:
                found = handle.listAllCheckpoints(0)
                return tuple((one.getName(), parse_checkpoint(one.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN))) for one in found)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                    return ()
                raise

    def points(self, handle, dirty: bool) -> List[Checkpoint]:
        """The checkpoints of a guest, each after the one before it. ``dirty``: with what was written since, which QEMU adds up for each of them."""
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN | (libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE if dirty else 0)
        with self.calling("list the checkpoints of guest %s" % handle.name()):
            try:
                found = self._bounded(handle.listAllCheckpoints, libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
                return [parse_points(self._bounded(one.getXMLDesc, flags), dirty) for one in found]
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                    return []
                raise

    def backup(self, handle) -> Optional[Backup]:
        """The backup that runs, None where there is none. A guest that stopped meanwhile has none either."""
        nothing = (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_SUPPORT)
        with self.calling("look at the backup of guest %s" % handle.name()):
            try:
                return parse_backup(self._bounded(handle.backupGetXMLDesc, 0))
            except libvirt.libvirtError as error:
                if error.get_error_code() in nothing:
                    return None
                raise

    def last_backup(self, handle) -> Optional[Ended]:
        """How the last job of a guest ended, if that was a backup. The daemon forgets it when it is restarted."""
        flags = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
        with self.calling("look at the last job of guest %s" % handle.name()):
            try:
                return parse_ended(self._bounded(handle.jobStats, flags))
            except libvirt.libvirtError as error:
                if error.get_error_code() in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_SUPPORT):
                    return None
                raise

    def versions(self) -> Versions:
        """Of the daemon and of the hypervisor that is installed (a guest may still run an older one)."""
        with self.calling("read the versions"):
            daemon, hypervisor = self._libvirt.getLibVersion(), self._libvirt.getVersion()
        return Versions(*((number // 1000000, number // 1000 % 1000, number % 1000) for number in (daemon, hypervisor)))

    def texts(self, handle) -> Tuple[str, str, bool]:
        """(XML for a migration, definition) of a running guest, and whether libvirt leaves secrets out of them, as the password of a console."""
        live = libvirt.VIR_DOMAIN_XML_MIGRATABLE
        both = tuple(self._xml(handle, flags) for flags in (live, libvirt.VIR_DOMAIN_XML_INACTIVE))
        secure = tuple(self._xml(handle, flags | libvirt.VIR_DOMAIN_XML_SECURE) for flags in (live, libvirt.VIR_DOMAIN_XML_INACTIVE))
        return both[0], both[1], both != secure

    def runner(self) -> Optional[Tuple[int, int]]:
        """(user, group) as whom libvirt starts QEMU, None where it does not say it."""
        with self.calling("read the capabilities"):
            return parse_runner(self._bounded(self._libvirt.getCapabilities))

    def volume(self, pool: str, name: str) -> Volume:
        """A storage volume, or where it would be in a pool of directories. What is wrong is told in ``problem``."""
        try:
            found = self._bounded(self._libvirt.storagePoolLookupByName, pool)
            kind, folder = parse_pool(self._bounded(found.XMLDesc, 0))
            if not self._bounded(found.isActive):
                return Volume(pool, name, problem="the pool is not active, start it first")
        except libvirt.libvirtError as error:
            return Volume(pool, name, problem=str(error).rstrip("."))
        try:
            return parse_named_volume(pool, name, self._bounded(lambda: found.storageVolLookupByName(name).XMLDesc(0)))
        except libvirt.libvirtError as error:
            if folder is None or kind not in DIRECTORY_POOLS:
                return Volume(pool, name, problem="%s, and a pool of type %s has no files that a copy could create" % (str(error).rstrip("."), kind))
            return Volume(pool, name, os.path.join(folder, name))

    # Calls

    def snapshot(self, handle, xml: str, metadata: bool, reuse: bool, memory: Optional[float] = None) -> None:
        """One transaction over all disks of the XML. ``memory``: with the guest's memory, which may take so many seconds; the guest goes on meanwhile."""
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY if memory is None else libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
        flags |= 0 if metadata else libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT if reuse else 0
        with self.calling("take the snapshot of guest %s" % handle.name()):
            self._bounded(handle.snapshotCreateXML, xml, flags, seconds=max(CALL_SECONDS, memory or 0))

    def forget_snapshot(self, handle, name: str) -> None:
        """Drop libvirt's metadata of a snapshot; its files stay.

        Those that come after it are put after the one before it by us: libvirt (9.0) would also let them stand for the image of the one that goes.
        """
        with self.calling("forget the snapshot %s of guest %s" % (name, handle.name())):
            for one in [one for one in handle.listAllSnapshots(0) if one.getName() == name]:
                parent = parse_snapshot(one.getXMLDesc(0)).parent
                for child in one.listAllChildren(0):
                    xml = under(child.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE), parent)
                    self._bounded(handle.snapshotCreateXML, xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
                one.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)

    def redefine_snapshot(self, handle, name: str, moved, overlays) -> List[str]:
        """Let a snapshot's metadata name other layers (see ``snapshot_xml.retold``). One that is gone is no error. What was changed, as it was before."""
        before = []
        with self.calling("put right the snapshot %s of guest %s" % (name, handle.name())):
            for one in [one for one in handle.listAllSnapshots(0) if one.getName() == name]:
                old = one.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
                xml = retold(old, moved, overlays)
                flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
                flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT if overlays else 0
                if xml is not None:
                    self._bounded(handle.snapshotCreateXML, xml, flags)
                    before.append(old)
        return before

    def redefine_again(self, handle, xml: str) -> None:
        """Take ``redefine_snapshot`` back."""
        with self.calling("put back a snapshot of guest %s" % handle.name()):
            self._bounded(handle.snapshotCreateXML, xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)

    def revert(self, handle, name: str) -> None:
        """Let libvirt (9.9) take a running guest back to an external snapshot; it restarts QEMU. (Without the flag one of disks alone leaves it off.)"""
        with self.calling("revert guest %s to its snapshot %s" % (handle.name(), name)):
            found = self._bounded(handle.snapshotLookupByName, name)
            self._bounded(handle.revertToSnapshot, found, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING, seconds=REVERT_SECONDS)

    def freeze(self, handle, seconds: float) -> None:
        """Freeze the guest's file systems. libvirt gives the agent up after ``seconds`` (5.10), and we the call a little later."""
        self._agent(handle, seconds, "freeze", handle.fsFreeze)

    def thaw(self, handle, seconds: float) -> None:
        self._agent(handle, seconds, "thaw", handle.fsThaw)

    def _agent(self, handle, seconds: float, word: str, call: Callable) -> None:
        with self.calling("%s the file systems of guest %s" % (word, handle.name())):
            with contextlib.suppress(libvirt.libvirtError):  # older ones have the deadline of the call alone
                self._bounded(handle.agentSetResponseTimeout, max(1, int(seconds)), 0)
            self._bounded(call, seconds=seconds + 5)

    def pull(self, handle, target: str, base: Optional[str], bandwidth: int, relative: bool) -> None:
        """``bandwidth`` in bytes per second. The BYTES bit of a pull is 1 << 6, not that of a commit."""
        flags = libvirt.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES
        flags |= libvirt.VIR_DOMAIN_BLOCK_REBASE_RELATIVE if relative else 0
        with self.calling("start the pull on disk %s of guest %s" % (target, handle.name())):
            self._bounded(handle.blockRebase, target, base, bandwidth, flags)

    def commit(self, handle, target: str, top: Optional[str], base: str, bandwidth: int, active: bool, relative: bool) -> None:
        """``bandwidth`` in bytes per second. The BYTES bit of a commit is 1 << 4."""
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES
        flags |= libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE if active else 0
        flags |= libvirt.VIR_DOMAIN_BLOCK_COMMIT_RELATIVE if relative else 0
        with self.calling("start the commit on disk %s of guest %s" % (target, handle.name())):
            self._bounded(handle.blockCommit, target, base, top, bandwidth, flags)

    def copy(self, handle, target: str, xml: str, params: Dict[str, int], flags: Iterable[str]) -> None:
        """Start a copy. ``params`` as libvirt names them (bytes per second, bytes); ``flags``: the ends of VIR_DOMAIN_BLOCK_COPY_*."""
        names = ["VIR_DOMAIN_BLOCK_COPY_" + flag for flag in flags]
        missing = [name for name in names if not hasattr(libvirt, name)]
        if missing:
            raise CallFailed("too_old", "The Python binding of libvirt here does not know %s: update it, or leave the option out." % ", ".join(missing))
        bits = functools.reduce(lambda found, name: found | getattr(libvirt, name), names, 0)
        with self.calling("start the copy of disk %s of guest %s" % (target, handle.name())):
            self._bounded(handle.blockCopy, target, xml, params, bits)

    def set_speed(self, handle, target: str, bandwidth: int) -> None:
        """Limit a job to so many bytes per second, 0: no limit. The BYTES bit is 1 << 0 here."""
        with self.calling("limit the job on disk %s of guest %s" % (target, handle.name())):
            self._bounded(handle.blockJobSetSpeed, target, bandwidth, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)

    def create_checkpoint(self, handle, xml: str) -> None:
        with self.calling("create the checkpoint of guest %s" % handle.name()):
            self._bounded(handle.checkpointCreateXML, xml, 0)

    def delete_checkpoint(self, handle, name: str, metadata_only: bool) -> None:
        """What was written since is then told by the checkpoint before it. One that is gone is no error."""
        with self.calling("delete the checkpoint %s of guest %s" % (name, handle.name())):
            try:
                found = self._bounded(handle.checkpointLookupByName, name)
                self._bounded(found.delete, libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY if metadata_only else 0)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
                    raise

    def begin_backup(self, handle, xml: str, checkpoint: Optional[str]) -> None:
        """One transaction over all disks of the XML, with the checkpoint. libvirt formats the targets before, which takes its time on slow storage."""
        with self.calling("begin the backup of guest %s" % handle.name()):
            self._bounded(handle.backupBegin, xml, checkpoint, 0, seconds=BEGIN_SECONDS)

    def abort_backup(self, handle) -> None:
        """End the backup of a guest, over all its disks: libvirt ends no single one."""
        with self.calling("end the backup of guest %s" % handle.name()):
            self._bounded(handle.abortJob)

    def write_through(self, handle, target: str) -> None:
        """Let QEMU (8.2) complete each write of the guest on both sides of a copy. Raises CallFailed; libvirt has no call for it."""
        name = parse_job_name(self._asked(handle, "query-block-jobs"), target)
        change = {"execute": "block-job-change", "arguments": {"id": name, "type": "mirror", "copy-mode": "write-blocking"}}
        problem = parse_word(self._monitor(handle, json.dumps(change)))
        if problem is not None:
            raise CallFailed("qemu_error", "QEMU refused to change the copy of disk %s of guest %s: %s." % (target, handle.name(), problem))

    def define_as_running(self, handle, target: str, known: Sequence[Layer] = ()) -> None:
        """Give a disk in the definition of the next start the chain that it has now. ``known``: layers with data files that libvirt may have forgotten."""
        live = self._xml(handle, libvirt.VIR_DOMAIN_XML_SECURE)
        self._define(handle, target, lambda config: as_running(config, live, target, known))

    def define_image(self, handle, target: str, layer: Layer) -> None:
        """Give a disk in the definition of the next start that active layer."""
        self._define(handle, target, lambda config: on_image(config, target, layer))

    def define_chains(self, handle, chains: Mapping[str, Chain]) -> Optional[Tuple[str, str]]:
        """Give disks in the definition of the next start these chains. The definition before and after; None where it was so already."""
        before = self._definition(handle)
        if not self._define(handle, " and ".join(sorted(chains)), lambda config: with_chains(config, chains)):
            return None
        return before, self._definition(handle)

    def define_again(self, handle, before: str, after: str) -> None:
        """Take ``define_chains`` back. Raises Moved where the guest is running, or somebody has changed its definition since."""
        with self.calling("look at the definition of guest %s" % handle.name()):
            active = self._bounded(handle.isActive)
        if active or self._definition(handle) != after:
            raise Moved("moved", "The guest %s was started or changed meanwhile: its definition was left as it is." % handle.name())
        with self.calling("put back the definition of guest %s" % handle.name()):
            self._bounded(self._libvirt.defineXML, before)

    def _define(self, handle, target: str, change: Callable[[str], Optional[str]]) -> bool:
        """Was there anything to change?"""
        with self.calling("look at the definition of guest %s" % handle.name()):
            persistent = self._bounded(handle.isPersistent)
        if not persistent:  # to define it would make it persistent
            raise Moved("transient", "The guest %s is transient, it has no definition." % handle.name())
        xml = change(self._definition(handle))
        if xml is not None:
            with self.calling("change disk %s in the definition of guest %s" % (target, handle.name())):
                self._bounded(self._libvirt.defineXML, xml)
        return xml is not None

    def _definition(self, handle) -> str:
        return self._xml(handle, libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)

    def _xml(self, handle, flags: int) -> str:
        with self.calling("read the definition of guest %s" % handle.name()):
            return self._bounded(handle.XMLDesc, flags)

    def save(self, handle, seconds: float) -> None:
        """Stop a guest and keep its memory in libvirt's own place; the next start goes on from there."""
        with self.calling("save guest %s" % handle.name()):
            self._bounded(handle.managedSave, 0, seconds=seconds)

    def saved(self, handle) -> bool:
        """Is the memory of a guest kept so that its next start goes on? (The reason of its state does not tell it.)"""
        with self.calling("look at guest %s" % handle.name()):
            return bool(self._bounded(handle.hasManagedSaveImage))

    def drop_saved(self, handle) -> None:
        with self.calling("remove what is left of the save of guest %s" % handle.name()):
            self._bounded(handle.managedSaveRemove, 0)

    def start(self, handle, seconds: float) -> None:
        with self.calling("start guest %s" % handle.name()):
            self._bounded(handle.create, seconds=seconds)

    def resave(self, handle, chains: Mapping[str, Chain]) -> Optional[str]:
        """Give disks of a saved guest these chains. Its XML before; None where it was so already."""
        with self.calling("read what guest %s was saved with" % handle.name()):
            before = self._bounded(handle.managedSaveGetXMLDesc, libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
        after = with_chains(before, chains)
        if after is None:
            return None
        self.resave_again(handle, after)
        return before

    def resave_again(self, handle, xml: str) -> None:
        with self.calling("change what guest %s was saved with" % handle.name()):
            self._bounded(handle.managedSaveDefineXML, xml, 0)

    def note_conversion(self, handle, target: str, note: Optional[Conversion]) -> None:
        """Write the note of a conversion into the definition of the next start, or take it away (None); that there is none is no error."""
        xml = None if note is None else conversion_xml(note)
        with self.calling("note the conversion of disk %s in the definition of guest %s" % (target, handle.name())):
            try:
                arguments = (libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml, RECORD_PREFIX, CONVERSION_URI % target, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
                self._bounded(handle.setMetadata, *arguments)
            except libvirt.libvirtError as error:
                if note is not None or error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
                    raise

    def create_volume(self, pool: str, xml: str) -> None:
        with self.calling("create the volume in the pool %s" % pool):
            self._bounded(lambda: self._libvirt.storagePoolLookupByName(pool).createXML(xml, 0))

    def refresh_pool(self, pool: str) -> None:
        """Let libvirt look at the volumes of a pool again."""
        with self.calling("refresh the pool %s" % pool):
            self._bounded(lambda: self._libvirt.storagePoolLookupByName(pool).refresh(0))

    def abort(self, handle, target: str, later: bool = False) -> None:
        """End a job and wait for its end, unless ``later``. A job that is gone already (error 8) is no error here."""
        self._end(handle, target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC if later else 0, "end the job")

    def pivot(self, handle, target: str) -> None:
        self._end(handle, target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT, "pivot")

    def _end(self, handle, target: str, flags: int, doing: str) -> None:
        with self.calling("%s on disk %s of guest %s" % (doing, target, handle.name())):
            try:
                self._bounded(handle.blockJobAbort, target, flags)
            except libvirt.libvirtError as error:
                pivots = flags & libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
                if pivots or error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
                    raise

    def write_record(self, handle, record: Record) -> None:
        """Leave a note in the guest's live metadata (gone with the guest's process, as the job is)."""
        self._metadata(handle, record.disk, record_xml(record))

    def clear_record(self, handle, target: str) -> None:
        """Take the note away; that there is none is no error."""
        with contextlib.suppress(CallFailed):
            self._metadata(handle, target, None)

    def write_noted(self, handle, shots: Iterable[Snapshot]) -> None:
        """Write our note about a guest's snapshots, for now and for its next start; an empty one is taken away."""
        found = tuple(shots)
        with self.calling("note the snapshots of guest %s in its metadata" % handle.name()):
            flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if handle.isActive() else 0
            flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG if handle.isPersistent() else 0
            xml = noted_xml(found) if found else None
            try:
                self._bounded(handle.setMetadata, libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml, RECORD_PREFIX, NOTED_URI, flags)
            except libvirt.libvirtError as error:
                if found or error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
                    raise

    def _metadata(self, handle, target: str, xml: Optional[str]) -> None:
        with self.calling("note the job on disk %s in the metadata of guest %s" % (target, handle.name())):
            self._bounded(handle.setMetadata, libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml, RECORD_PREFIX, RECORD_URI % target, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _real_too(paths: frozenset, domain: Domain) -> frozenset:
    """Paths, those of storage volumes, and where the links among them lead: what a process is seen to hold open."""
    volumes = {layer.path for disk in domain.disks for layer in disk.chain.images() if layer.resolved}
    found = paths | {path for path in volumes if path}
    real = RealPaths()
    return found | {real.of(path) for path in found}


def _fact(facts: dict, number: int, name: str):
    return facts.get("block.%d.%s" % (number, name))


def _silent(context, error) -> None:
    """libvirt prints to stderr unless it is told not to; every error is raised as well."""


def _denied() -> tuple:
    return (libvirt.VIR_ERR_OPERATION_DENIED, libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_CANCELLED, libvirt.VIR_ERR_ACCESS_DENIED)
