# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's XML of what is beside the guests, to values: its capabilities, pools and volumes."""

from __future__ import annotations

from typing import Optional, Tuple

from .domain_xml import parsed
from .host_facts import Image, Probe, Volume
from .image_info import SAFE_FORMATS, resolve_backing


def parse_runner(xml: str) -> Optional[Tuple[int, int]]:
    """(user, group) as whom libvirt starts QEMU, by its capabilities; None where they do not say it."""
    for model in parsed(xml).iterfind("host/secmodel"):
        labels = {one.get("type"): (one.text or "").strip() for one in model.iterfind("baselabel")}
        if model.findtext("model") == "dac" and labels:
            return numbers_of(labels.get("kvm") or next(iter(labels.values())))
    return None


def numbers_of(label: str) -> Optional[Tuple[int, int]]:
    """The user and the group of a label of the DAC driver, such as +64055:+108; None where it has names."""
    parts = [part.lstrip("+") for part in label.split(":")]
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(part.isdecimal() for part in parts) else None


def parse_pool(xml: str) -> Tuple[str, Optional[str]]:
    """(type, path) of a storage pool; the path is where its volumes are."""
    root = parsed(xml)
    return root.get("type", ""), root.findtext("target/path")


def parse_named_volume(pool: str, name: str, xml: str) -> Volume:
    """A storage volume as a possible destination."""
    root = parsed(xml)
    target = root.find("target/format")
    kind, capacity = root.get("type", "file"), int(root.findtext("capacity") or 0)
    return Volume(pool, name, root.findtext("target/path"), kind, True, None if target is None else target.get("type"), capacity)


def parse_volume(key: Tuple[str, Optional[str]], xml: str) -> Probe:
    """What a storage volume's XML says of the image with that path and format (sizes in bytes)."""
    root = parsed(xml)
    path, asked = key
    target, backing = root.find("target/format"), root.find("backingStore")
    told = None if target is None else target.get("type")
    sizes = {name: int(root.findtext(name) or 0) for name in ("capacity", "allocation", "physical")}
    below = None if backing is None else backing.findtext("path")
    format_ = None if backing is None or backing.find("format") is None else backing.find("format").get("type")
    image = Image(path, told or "raw", sizes["capacity"], sizes["allocation"], below, resolve_backing(path, below), format_)
    known = asked or told
    return Probe(
        path,
        known,
        kind="block" if root.get("type") == "block" else "file",
        image=image if told not in (None, "raw", "unknown") else None,
        problem=_volume_problem(asked, told),
        magic=told if told in SAFE_FORMATS else None,
        physical=sizes["physical"] or sizes["capacity"],
        allocated=sizes["allocation"],
        real=path,
    )


def _volume_problem(asked: Optional[str], told: Optional[str]) -> Optional[str]:
    """libvirt looks into the headers of files; of an LVM volume it says no format, or that of what a guest wrote on it."""
    if told in SAFE_FORMATS or (asked == "raw" and told == "raw"):
        return None
    return "format_unknown" if asked is None and told is None else "remote"
