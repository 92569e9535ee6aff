# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files that are only a table, for cases: what does not stand there is as the guests' XML says.

``changed`` is for single paths: null for a path that leads nowhere, else what differs, for example
{"problem": "not_a_file", "detail": "a FIFO"}, {"image": {"backing": "json:{}"}}, {"link": "/another"}, {"magic": "qcow2"}.
"""

from __future__ import annotations

from dataclasses import fields

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import File, Image, Probe
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.image_info import SAFE_FORMATS, resolve_backing

GiB, MiB = 1 << 30, 1 << 20
IMAGE = {one.name for one in fields(Image)}


class Storage:
    """Files that are only a table: path -> facts."""

    def __init__(self, domains, changed):
        self.table: dict = {}
        for domain in domains:
            for disk in domain.disks + domain.config:
                for chain in [disk.chain] + ([disk.mirror.chain] if disk.mirror else []):
                    self._add(chain)
        for path, facts in changed.items():
            self._change(path, facts)
        self.asked: list = []

    def _add(self, chain) -> None:
        for place in chain.walk():
            layer = place.layer
            if layer.path is None or layer.type not in ("file", "block"):
                continue
            facts = self.table.setdefault(layer.path, {"format": layer.format or "qcow2", "kind": layer.type, "image": {}})
            below = chain[place.depth + 1] if place.position < len(chain) - 1 else None
            if below is not None and below.path and not layer.branches:
                facts["image"].update(backing=below.path, backing_format=below.format)
            if layer.store is not None and layer.store.path:
                facts["image"].update(data=layer.store.path, data_raw=True)
                self.table.setdefault(layer.store.path, {"format": "raw", "kind": layer.store.type, "image": {}})

    def _change(self, path, facts) -> None:
        if facts is None:
            self.table.pop(path, None)
            return
        known = self.table.setdefault(path, {"format": "qcow2", "kind": "file", "image": {}})
        header = dict(known["image"], **(facts.get("image") or {}))
        known.update(facts, image=None if facts.get("image", {}) is None else header)

    def table_keys(self):
        """Every path with the format that a header above it may name, and without one."""
        return [(path, format_) for path, facts in self.table.items() for format_ in (None, facts.get("format"))]

    def read_file(self, path) -> File:
        """As files.read_file."""
        real = self.real(path)
        facts = self.table.get(real)
        if facts is None or "link" in facts:
            return File(path, False, parent="dir", real=real)
        inode = sorted(self.table).index(real)
        return File(path, True, facts["kind"], facts.get("physical", MiB), 1, inode, real, "dir", protected=facts.get("protected"))

    def real(self, path):
        seen = set()
        while path in self.table and "link" in self.table[path] and path not in seen:
            seen.add(path)
            path = self.table[path]["link"]
        return path

    def probe_all(self, keys, named=(), guessed=(), deadline=None):
        """As qemu_img.probe_all: by the file's own facts, which the asked format does not change."""
        self.asked += list(keys)
        return {key: self._probe(key, key[0] in named, key[0] in guessed) for key in keys}

    def _probe(self, key, named, guessed):
        path, asked = key
        real = self.real(path)
        if real not in self.table or "link" in self.table[real]:
            return Probe(path, asked, problem="missing", detail="No such file or directory", real=real)
        facts = self.table[real]
        if facts.get("problem") in ("not_a_file", "permission"):
            return Probe(path, asked, problem=facts["problem"], detail=facts.get("detail", ""), real=real)
        header = facts.get("magic", None if facts["format"] == "raw" else facts["format"])
        magic = header if named else None
        length = facts.get("physical", GiB if facts["format"] == "raw" else MiB)
        found = {
            "kind": facts["kind"],
            "magic": magic,
            "physical": length,
            "allocated": facts.get("allocated", MiB),
            "mode": int(facts.get("mode", "0600"), 8),
            "identity": (1, sorted(self.table).index(real)),
            "real": real,
        }
        used = asked or (magic if guessed else None)
        if used is None:
            return Probe(path, None, problem="format_unknown", **found)
        if used == "raw":
            return Probe(path, used, **found)
        if used not in SAFE_FORMATS:
            return Probe(path, used, problem="unsafe", detail="images of format %s are not opened" % used, **found)
        if facts.get("problem") or used != facts["format"]:
            return Probe(path, used, problem=facts.get("problem", "unreadable"), detail=facts.get("detail", "Image is not in %s format" % used), **found)
        return Probe(path, used, image=self._image(path, facts), **found)

    def _image(self, path, facts) -> Image:
        told = {name: value for name, value in facts["image"].items() if name in IMAGE}
        told = dict({"virtual_size": GiB, "actual_size": MiB}, **told)
        paths = {name + "_path": resolve_backing(path, told.get(name)) for name in ("backing", "data")}
        return Image(path, facts["format"], **dict(paths, **told))
