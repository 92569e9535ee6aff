# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""As much of the libvirt binding as looks need: guests that are only their XML, and a host that counts what it is asked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

NO_SUPPORT, OPERATION_INVALID, NO_DOMAIN, NO_STORAGE_VOL = 3, 55, 42, 50
STATES = {"running": 1, "paused": 3, "shutdown": 5, "crashed": 6}
JOBS = {"pull": 1, "copy": 2, "commit": 3, "active-commit": 4, "backup": 5}


class LibvirtError(Exception):
    def __init__(self, code, text="No.", domain=10):
        super().__init__(text)
        self.code, self.domain = code, domain

    def get_error_code(self):
        return self.code

    def get_error_domain(self):
        return self.domain


@dataclass
class Guest:
    """``errors`` is by method; ``sizes`` is (disk, index) -> (capacity, physical); ``qemu`` the answers of QEMU's monitor by command."""

    xml: str
    config: str | None = None
    active: bool = True
    word: str = "running"
    persistent: bool = True
    saved: bool = False
    jobs: dict = field(default_factory=dict)
    later: dict | None = None
    shots: list = field(default_factory=list)
    checkpoints: dict = field(default_factory=dict)
    sizes: dict = field(default_factory=dict)
    qemu: dict = field(default_factory=dict)
    errors: dict = field(default_factory=dict)
    calls: list = field(default_factory=list)

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if what in self.errors:
            raise self.errors[what]

    def name(self):
        return re.search("<name>(.*?)</name>", self.xml).group(1)

    def UUIDString(self):
        return re.search("<uuid>(.*?)</uuid>", self.xml).group(1)

    def state(self):
        self._called("state")
        return [STATES[self.word], 0]

    def isActive(self):
        return self.active

    def isPersistent(self):
        return self.persistent

    def hasManagedSaveImage(self, flags=0):
        return int(self.saved)

    def XMLDesc(self, flags):
        self._called("XMLDesc")
        return self.config if flags == Binding.VIR_DOMAIN_XML_INACTIVE else self.xml

    def blockJobInfo(self, target, flags):
        self._called("blockJobInfo")
        job = self.jobs.get(target)
        return {} if job is None else {"type": JOBS[job["type"]], "cur": job.get("cur", 0), "end": job.get("end", 0), "bandwidth": job.get("bandwidth", 0)}

    def listAllSnapshots(self, flags):
        self._called("listAllSnapshots")
        return [Shot(one) for one in self.shots]

    def listAllCheckpoints(self, flags):
        self._called("listAllCheckpoints")
        return [Checkpoint(*one) for one in self.checkpoints.items()]

    def stats(self) -> dict:
        found = {"block.count": len(self.sizes)}
        for number, ((disk, index), (capacity, physical)) in enumerate(self.sizes.items()):
            facts = {"name": disk, "backingIndex": index, "capacity": capacity, "allocation": 7, "physical": physical}
            found.update({"block.%d.%s" % (number, key): value for key, value in facts.items() if value is not None})
        return found


class Checkpoint:
    """A checkpoint: its name and the (disk, bitmap) pairs."""

    def __init__(self, name, pairs):
        self._name, self._pairs = name, pairs

    def getName(self):
        return self._name

    def getXMLDesc(self, flags):
        disks = "".join("<disk name='%s' checkpoint='bitmap' bitmap='%s'/>" % tuple(pair) for pair in self._pairs)
        return "<domaincheckpoint><name>%s</name><disks>%s</disks></domaincheckpoint>" % (self._name, disks)


class Shot:
    """A snapshot: its name and the (disk, path) pairs of its overlays (files) and of what was active then (bases).

    And more, where a case says it: ``internal`` (disks), ``memory`` (a path), ``parent``, ``description``, ``created`` and ``state``.
    """

    def __init__(self, facts):
        self.facts = facts

    def isCurrent(self):
        return int(self.facts.get("current", False))

    def getXMLDesc(self, flags):
        disks = "".join("<disk name='%s' snapshot='external'><source file='%s'/></disk>" % tuple(pair) for pair in self.facts["files"])
        then = "".join("<disk><source file='%s'/><target dev='%s'/></disk>" % (path, disk) for disk, path in self.facts.get("bases", ()))
        disks += "".join("<disk name='%s' snapshot='internal'/>" % disk for disk in self.facts.get("internal", ()))
        words = {"description": "description", "created": "creationTime", "state": "state"}
        more = "".join("<%s>%s</%s>" % (word, self.facts[key], word) for key, word in words.items() if key in self.facts)
        more += "<parent><name>%s</name></parent>" % self.facts["parent"] if "parent" in self.facts else ""
        more += "<memory snapshot='external' file='%s'/>" % self.facts["memory"] if "memory" in self.facts else "<memory snapshot='no'/>"
        parts = (self.facts["name"], more, disks, then)
        return "<domainsnapshot><name>%s</name>%s<disks>%s</disks><domain><devices>%s</devices></domain></domainsnapshot>" % parts


class Volume:
    def __init__(self, path, xml):
        self._path, self._xml = path, xml

    def path(self):
        return self._path

    def XMLDesc(self, flags):
        return self._xml


class Hypervisor:
    """What libvirt.open gives. ``volumes`` is by path, ``pools`` by pool and volume."""

    def __init__(self, guests=(), volumes=None, pools=None, uri="qemu:///system"):
        self.guests, self.volumes, self.pools, self.uri = list(guests), volumes or {}, pools or {}, uri
        self.alive, self.closed, self.calls, self.errors, self.version = True, False, [], {}, 9000000

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if what in self.errors:
            raise self.errors[what]

    def getURI(self):
        return self.uri

    def getLibVersion(self):
        return self.version

    def getVersion(self):
        return 7002022

    def isAlive(self):
        return self.alive

    def close(self):
        self.closed = True

    def listAllDomains(self, flags):
        self._called("listAllDomains")
        return self.guests

    def lookupByName(self, name):
        return self._one([guest for guest in self.guests if guest.name() == name])

    def lookupByUUIDString(self, uuid):
        return self._one([guest for guest in self.guests if guest.UUIDString() == uuid])

    def _one(self, found):
        if not found:
            raise LibvirtError(NO_DOMAIN)
        return found[0]

    def storagePoolLookupByName(self, pool):
        self._called("storagePoolLookupByName")
        if pool not in self.pools:
            raise LibvirtError(49)
        self._pool = self.pools[pool]
        return self

    def storageVolLookupByName(self, name):
        if name not in self._pool:
            raise LibvirtError(NO_STORAGE_VOL)
        return Volume(self._pool[name], None)

    def storageVolLookupByPath(self, path):
        self._called("storageVolLookupByPath")
        if path not in self.volumes:
            raise LibvirtError(NO_STORAGE_VOL)
        return Volume(path, self.volumes[path])

    def domainListGetStats(self, handles, stats, flags):
        self._called("domainListGetStats")
        return [(handle, handle.stats()) for handle in handles]


class Binding:
    """The modules libvirt and libvirt_qemu in one."""

    libvirtError = LibvirtError
    VIR_ERR_OPERATION_DENIED, VIR_ERR_AUTH_FAILED, VIR_ERR_AUTH_CANCELLED, VIR_ERR_ACCESS_DENIED = 29, 45, 79, 88
    VIR_ERR_BLOCK_COPY_ACTIVE, VIR_ERR_NO_DOMAIN, VIR_ERR_INVALID_ARG = 83, NO_DOMAIN, 8
    VIR_ERR_OPERATION_INVALID, VIR_ERR_NO_SUPPORT, VIR_FROM_RPC = OPERATION_INVALID, NO_SUPPORT, 7
    VIR_DOMAIN_XML_INACTIVE, VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES, VIR_DOMAIN_STATS_BLOCK = 2, 1, 32
    VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING, VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT = 1 << 30, 1 << 29
    VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE, VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN = 1, 2

    def __init__(self, hypervisor):
        self.hypervisor, self.commands = hypervisor, []

    def registerErrorHandler(self, handler, context):
        pass

    def open(self, uri):
        return self.hypervisor

    def qemuMonitorCommand(self, handle, text, flags):
        command = json.loads(text)["execute"]
        self.commands.append(command)
        handle._called("qemuMonitorCommand")
        answer = handle.qemu[command]
        return answer if isinstance(answer, str) else json.dumps({"return": answer, "id": "libvirt-1"})
