# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The layer over a raw image, and the steps that make it, put it there, and take it away."""

from __future__ import annotations

from dataclasses import replace
from typing import Tuple

from ..chain import HEADER, XML, Chain, Layer
from ..headers import probe_of
from ..model import Disk, Domain, Observed
from ..plan import ADOPT, METADATA, PROVE, Step
from . import _datafile_rules as rules
from ._datafile_request import QCOW2, RAW, UNFINISHED, Request, cluster_size


def new(wanted: Request, domain: Domain, disk: Disk, seen: Observed) -> Layer:
    """The new layer over the raw image."""
    raw = disk.chain[0]
    return layer_over(wanted.layer_over(raw.path or ""), data_layer(raw, seen), not domain.bare and rules.names_data(seen))


def data_layer(raw: Layer, seen: Observed) -> Layer:
    """A raw image as a data file: by its path, also where it was named as a volume."""
    probe = probe_of(raw, seen.probes)
    kind = probe.kind if probe is not None and probe.kind else "file"
    return Layer(kind, (("dev" if kind == "block" else "file", raw.path or ""),), RAW)


def layer_over(path: str, data: Layer, named: bool) -> Layer:
    """``named``: libvirt's XML is to name the data file."""
    return Layer("file", (("file", path),), QCOW2, store=replace(data, known_from=XML if named else HEADER, raw=True))


def made(wanted: Request, domain: Domain, disk: Disk, layer: Layer, seen: Observed) -> Tuple[Step, ...]:
    raw, path = disk.chain[0], layer.path or ""
    size = rules.size_of(raw, seen)
    detail = {"path": path, "over": path + UNFINISHED, "size": size, "cluster_size": cluster_size(wanted, size), "mode_of": raw.path, "keeps": False}
    return (Step(METADATA, disk.target, dict(detail, creates=(path, path + UNFINISHED))),)


def adopted(wanted: Request, domain: Domain, disk: Disk, layer: Layer, compare: bool, seen: Observed) -> Step:
    raw, path = disk.chain[0], layer.path or ""
    size = rules.size_of(raw, seen)
    detail = {"path": path, "over": path + UNFINISHED, "raw": data_layer(raw, seen), "size": size, "cluster_size": cluster_size(wanted, size)}
    owner = rules.owner_for(domain, raw.path or "", seen)
    return Step(ADOPT, disk.target, dict(detail, holes=wanted.preserve_holes, compare=compare, owner=owner, timeout=wanted.waiting.timeout))


def proven(domain: Domain, disk: Disk, seen: Observed) -> Step:
    active = disk.chain[0]
    image = rules.image_of(active, seen)
    return Step(PROVE, disk.target, {"path": active.path, "raw": active.store, "size": image.virtual_size if image is not None else 0})


def onto(action: str, disk: Disk, layer: Layer) -> Step:
    """What is below the layer, its own header tells: an end that is written down would hide the data file from libvirt (10.10)."""
    return Step(action, None, {"chains": ((disk.target, Chain((layer,), None)),)})
