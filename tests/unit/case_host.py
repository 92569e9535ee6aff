# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A whole host that is only a case: the real edge looks at a libvirt, at files and at processes that stand in a file.

What a case does not say is as it should be: every file that a guest's XML names is there, and its header says what the XML
says. ``files`` changes that for single paths (see ``storage.py``).
"""

from __future__ import annotations

import time
import types

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import NOTED_URI, parse_domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.snapshot_xml import noted_xml
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import host, images, libvirt_host, patience, uses
from ansible_collections.livestorage.libvirt.tests.unit.fake_libvirt import Binding, Guest, Hypervisor, LibvirtError
from ansible_collections.livestorage.libvirt.tests.unit.storage import Storage
from ansible_collections.livestorage.libvirt.tests.unit.support import headers_of, process_of, snapshot_of, texts


def guest_of(folder, facts: dict) -> Guest:
    xml, config = texts(folder, facts)
    found = Guest(xml, config, facts.get("active", True), facts.get("state", "running"), facts.get("persistent", True))
    found.jobs, found.shots = facts.get("jobs", {}), facts.get("snapshots", [])
    found.sizes = {(address.partition("[")[0], int(address.partition("[")[2][:-1])): tuple(pair) for address, pair in facts.get("sizes", {}).items()}
    found.qemu, found.later = facts.get("qemu", {}), facts.get("later")
    found.saved, found.checkpoints = facts.get("saved", False), facts.get("checkpoints", {})
    found.xml = _with_note(found.xml, facts.get("noted", ()))
    found.errors.update({question: LibvirtError(38, text) for question, text in facts.get("errors", {}).items()})
    if facts.get("silent"):
        found.errors["blockJobInfo"] = LibvirtError(38, "cannot acquire state change lock")
    return found


def _with_note(xml: str, noted) -> str:
    """What our note in the guest's metadata says of its snapshots."""
    if not noted:
        return xml
    note = noted_xml(map(snapshot_of, noted)).replace("<snapshots", "<snapshots xmlns='%s'" % NOTED_URI, 1)
    metadata = xml.replace("</metadata>", note + "</metadata>")
    return metadata if metadata != xml else xml.replace("</uuid>", "</uuid><metadata>%s</metadata>" % note)


class CaseHost:
    """``case``: guests (with jobs, snapshots, checkpoints, noted, saved, sizes, qemu, silent, errors), files, processes, volumes, pools,
    local, and ``chains`` (see ``support``).

    ``later`` are the jobs of a guest after somebody has slept. ``held`` is why an image cannot be locked, by path, ``libvirt`` the version
    of the daemon.
    """

    def __init__(self, monkeypatch, case: dict, folder):
        self.guests = [guest_of(folder, facts) for facts in case["guests"]]
        uri = "qemu:///system" if case.get("local", True) else "qemu+ssh://far/system"
        self.libvirt = Binding(Hypervisor(self.guests, case.get("volumes"), case.get("pools"), uri))
        domains = [parse_domain(one.xml, one.active, one.word, one.persistent, one.config) for one in self.guests]
        self.storage = Storage(domains, dict(headers_of(case), **case.get("files", {})))
        self.processes = tuple(process_of(one) for one in case.get("processes", ()))
        self.started, self.slept = time.monotonic(), 0.0
        monkeypatch.setattr(libvirt_host, "libvirt", self.libvirt)
        monkeypatch.setattr(libvirt_host, "libvirt_qemu", self.libvirt)
        monkeypatch.setattr(images, "probe_all", self.storage.probe_all)
        monkeypatch.setattr(host, "qemu_processes", lambda: self.processes)
        monkeypatch.setattr(host, "read_file", self.storage.read_file)
        monkeypatch.setattr(host, "in_use", lambda path, writes: case.get("held", {}).get(path))
        major, minor, micro = case.get("libvirt", (9, 0, 0))
        self.libvirt.hypervisor.version = major * 1000000 + minor * 1000 + micro
        path = types.SimpleNamespace(realpath=self.storage.real, isdir=lambda name: True, dirname=lambda name: name.rpartition("/")[0])
        for module in (uses, patience):
            monkeypatch.setattr(module, "os", types.SimpleNamespace(path=path))

    def clock(self) -> float:
        return self.started + self.slept

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        for guest in self.guests:
            if guest.later is not None:
                guest.jobs = guest.later

    def observe(self, needs):
        looking = host.Host(self.libvirt.hypervisor.uri, False, self.clock, self.sleep)
        try:
            return looking.observe(needs)
        finally:
            looking.close()
