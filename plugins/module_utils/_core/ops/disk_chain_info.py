# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of disk_chain_info: no steps, before equals after; and the report of what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Tuple

from ..chain import OPTION, Layer
from ..check_disk import Evidence, chain_now, disk_findings, image_findings
from ..errors import FindingsMet, Refused
from ..findings import CODES, SEVERITIES, Finding, counted, failing
from ..headers import Key, follow, probe_of
from ..model import Disk, Domain, Needs, Observed, Selection
from ..plan import Plan
from ..report import LayerReport, data_moved, disk_head, qemu_result, source_result, tree
from . import _common as common
from ._files import absolute

CHANGES = False
NOTHING = {"domains": [], "images": []}  # what is returned where nothing could be read
LIVE, INACTIVE, IMAGES = "live", "inactive", "images"
SHOWN = 5  # images in a warning


@dataclass(frozen=True)
class Request:
    selection: Selection
    sources: Tuple[str, ...]
    validate: bool
    fail_on: Tuple[str, ...]
    max_depth: int
    images: Tuple[Key, ...]
    guests: bool
    estimate: bool
    qemu_nodes: bool

    @property
    def needs(self) -> Needs:
        return Needs(
            self.selection,
            config=INACTIVE in self.sources,
            tolerant=True,
            guests=self.guests,
            headers=self.max_depth if IMAGES in self.sources or self.images else 0,
            bare=self.images,
            sizes=True,
            uses=self.validate and self.guests,
            shots=self.validate,
            qemu=self.qemu_nodes,
            processes=self.validate and self.guests,
        )


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused (codes bad_filter, bad_depth, bad_fail_on, bad_sources, not_absolute)."""
    selection = common.several_guests(params)
    if params["max_depth"] < 1:
        raise Refused("bad_depth", "The option max_depth is %d: give a number of layers, 1 or more." % params["max_depth"])
    wrong = [word for word in params["fail_on"] if word not in CODES and word not in SEVERITIES]
    if wrong:
        words = (", ".join(wrong), ", ".join(SEVERITIES))
        raise Refused("bad_fail_on", "The option fail_on has %s, which is neither a code of a finding nor a severity (%s)." % words)
    if not params["sources"]:
        raise Refused("bad_sources", "The option sources is empty: give at least one of live, inactive and images.")
    images = tuple((absolute(path, "images"), params["format"]) for path in params["images"] or ())
    return Request(
        selection,
        tuple(params["sources"]),
        params["validate"] or bool(params["fail_on"]),
        tuple(params["fail_on"]),
        params["max_depth"],
        images,
        params["images"] is None or selection != Selection(),
        params["estimate"],
        params["qemu_nodes"],
    )


def plan(wanted: Request, seen: Observed) -> Plan:
    """Nothing to do. Raises Refused for a guest (code no_guest) or an image (code no_image) that was named and is not there."""
    common.none_missing(wanted.selection, seen)
    gone = [path for path, format_ in wanted.images if seen.probes[path, format_].problem == "missing"]
    if gone and not wanted.validate:  # a validation has a finding for it
        raise Refused("no_image", "There is no image %s: correct the option images." % ", ".join(gone))
    warnings = ["The jobs of guest %s cannot be read now: what is returned of it has none." % name for name in seen.silent]
    others = _unread_elsewhere(wanted, seen)
    if others:
        text = "Images of other guests could not be read (%s): whether they share an image with these is not known."
        warnings.append(text % ", ".join(others[:SHOWN] + (["..."] if len(others) > SHOWN else [])))
    if wanted.qemu_nodes and seen.qemu:
        names = ", ".join(domain.name for domain in seen.domains if domain.uuid in seen.qemu)
        warnings.append("QEMU was asked directly (qemu_nodes), so libvirt marks as tainted (custom-monitor): %s." % names)
    return Plan(seen.domains, seen.domains, warnings=tuple(warnings) + seen.troubles)


def _unread_elsewhere(wanted: Request, seen: Observed) -> List[str]:
    """The unread images that are no layer of the guests asked for: those have findings of their own."""
    chains = [disk.chain for domain in seen.domains for disk in domain.disks + domain.config] if seen.unread else []
    own = {str(layer) for chain in chains for layer in chain_now(chain, seen.probes, wanted.max_depth).chain.layers}
    return [one for one in seen.unread if one not in own]


def report(wanted: Request, seen: Observed) -> dict:
    """What the module returns. Raises FindingsMet, with all of it, where fail_on asks for that."""
    met: List[Finding] = []
    look = Evidence(seen, wanted.max_depth) if wanted.validate else None
    domains = [_domain(wanted, domain, seen, look, met) for domain in seen.domains]
    images = [_bare(wanted, path, format_, seen, met) for path, format_ in wanted.images]
    result = {"changed": False, "domains": domains, "images": images}
    wrong = failing(met, wanted.fail_on)
    if wrong:
        codes = ", ".join(dict.fromkeys(one.code for one in wrong))
        message = "The validation has %s that fail_on does not allow (%s), of which the first is: %s"
        raise FindingsMet("findings", message % (counted(len(wrong), "finding"), codes, wrong[0].message), **result)
    return result


def _domain(wanted: Request, domain: Domain, seen: Observed, look: Optional[Evidence], met: List[Finding]) -> dict:
    found = {
        "name": domain.name,
        "uuid": domain.uuid,
        "active": domain.active,
        "persistent": domain.persistent,
        "state": domain.state,
        "disks": [_disk(wanted, domain, disk, seen, look, met) for disk in domain.disks],
    }
    if wanted.qemu_nodes:
        found["qemu"] = qemu_result(seen.qemu.get(domain.uuid))
    return found


def _disk(wanted: Request, domain: Domain, disk: Disk, seen: Observed, look: Optional[Evidence], met: List[Finding]) -> dict:
    view = seen.qemu.get(domain.uuid)
    nodes = {one.name: one.name for one in view.nodes} if view is not None else {} if wanted.qemu_nodes else None
    writer = LayerReport(seen.probes, seen.sizes, domain.uuid, disk.target, nodes)
    walk = chain_now(disk.chain, seen.probes if IMAGES in wanted.sources else {}, wanted.max_depth)
    found = disk_head(disk)
    found["chain"] = writer.chain(walk, disk.readonly)
    found["tree"] = tree(walk.chain)
    found["sources"] = _sources(wanted, domain, disk, seen)
    mirror = disk.mirror
    if mirror is not None:
        below = chain_now(mirror.chain, seen.probes, wanted.max_depth)
        found["mirror"] = {"job": mirror.job, "ready": mirror.ready, "chain": writer.chain(below)}
    else:
        found["mirror"] = None
    if look is not None:
        findings = disk_findings(domain, disk, look)
        met.extend(findings)
        found["findings"] = [one.result() for one in findings]
    if wanted.estimate:
        found["data_moved"] = data_moved(found["chain"][: len(walk.chain)], walk.chain.ends)
    return found


def _sources(wanted: Request, domain: Domain, disk: Disk, seen: Observed) -> dict:
    """What each source that was asked for tells; null where it tells nothing, as the live XML of a guest that is off."""
    found = {}
    if LIVE in wanted.sources:
        found[LIVE] = source_result(disk.chain) if domain.active else None
    if INACTIVE in wanted.sources:
        config = domain.config_disk(disk.target)
        found[INACTIVE] = source_result(config.chain) if config is not None else None
    if IMAGES in wanted.sources:
        walk = _by_headers(disk, seen, wanted.max_depth)
        found[IMAGES] = source_result(walk.chain) if walk is not None else None
    return found


def _by_headers(disk: Disk, seen: Observed, deepest: int):
    """The chain below the active layer as the headers tell it, or None where not even its own header is known."""
    active = disk.chain.active
    if active is None:
        return None
    probe = probe_of(active, seen.probes)
    if probe is None or (probe.problem is not None and probe.image is None):
        return None
    return follow(Layer(active.type, active.source, active.format, active.index, active.hosts, resolved=active.resolved), seen.probes, deepest)


def _bare(wanted: Request, path: str, format_: Optional[str], seen: Observed, met: List[Finding]) -> dict:
    probe = seen.probes[path, format_]
    kind = probe.kind or "file"
    layer = Layer(kind, (("dev" if kind == "block" else "file", path),), probe.format, known_from=OPTION)
    walk = follow(layer, seen.probes, wanted.max_depth)
    chain = LayerReport(seen.probes, {}).chain(walk)
    found = {"path": path, "format": probe.format, "chain": chain, "tree": tree(walk.chain)}
    if wanted.validate:
        findings = image_findings(walk, path, seen.probes, wanted.max_depth)
        met.extend(findings)
        found["findings"] = [one.result() for one in findings]
    if wanted.estimate:
        found["data_moved"] = data_moved(chain, walk.chain.ends)
    return found
