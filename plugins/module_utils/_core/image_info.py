# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What ``qemu-img info --output=json`` says of one image, as a value, and what a name in a header means.

The law: a header is a claim of whoever wrote the image. It is reported, and never followed from here.
"""

from __future__ import annotations

import json
import posixpath
from typing import Optional

from .errors import Unavailable
from .model import Image

# The formats whose header qemu-img reads without opening anything else. A VMDK descriptor names extents, which are opened
# (CVE-2022-47951); raw has no header.
SAFE_FORMATS = frozenset(["qcow2", "qcow", "qed", "vdi", "vhdx", "vpc", "parallels", "luks"])

# First bytes, and where they stand. A LUKS header is not among them: a guest that encrypts its own raw disk writes one.
MAGIC_BYTES = 512
_MAGIC = (
    (0, b"QFI\xfb\x00\x00\x00\x01", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\x00", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"conectix", "vpc"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
)

_SHOWN_KEYS = frozenset(["driver", "filename", "file", "path", "host", "port", "server", "export", "pool", "image", "volume", "backing", "type"])


def magic_format(head: bytes) -> Optional[str]:
    """The format of which a file's first ``MAGIC_BYTES`` are, None where they tell nothing (as with raw)."""
    return next((name for offset, magic, name in _MAGIC if head[offset : offset + len(magic)] == magic), None)


def parse_image(path: str, text: str) -> Image:
    """The Image at ``path``. Raises Unavailable (code qemu_img) when ``text`` is not what qemu-img writes."""
    try:
        facts = json.loads(text)
        backing = facts.get("backing-filename")
        special = facts.get("format-specific", {}).get("data", {})
        data = special.get("data-file")
        return Image(
            path=path,
            format=facts["format"],
            virtual_size=int(facts["virtual-size"]),
            actual_size=int(facts.get("actual-size", 0)),
            backing=backing,
            backing_path=resolve_backing(path, backing),
            backing_format=facts.get("backing-filename-format"),
            data=data,
            data_path=resolve_backing(path, data),
            data_raw=bool(special.get("data-file-raw")) if data else None,
            bitmaps=tuple((one["name"], int(one["granularity"])) for one in special.get("bitmaps", ())),
            snapshots=tuple(str(one["name"]) for one in facts.get("snapshots", ())),
            broken_bitmaps=tuple(one["name"] for one in special.get("bitmaps", ()) if "in-use" in one.get("flags", ())),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unavailable("qemu_img", "qemu-img said something about %s that cannot be read: check its version." % path) from error


def resolve_backing(path: str, backing: Optional[str]) -> Optional[str]:
    """The absolute path that a name in the header of ``path`` means (relative names start at the image), None for json: and protocol names."""
    if not backing or backing.startswith("json:"):
        return None
    head = backing.split("/", 1)[0]
    if ":" in head and not backing.startswith("file:"):
        return None
    if backing.startswith("file:"):
        backing = backing[len("file:") :]
    # As QEMU does it: ".." may lead through a link, and is the kernel's to resolve.
    parts = posixpath.join(posixpath.dirname(path), backing).split("/")
    return "/" + "/".join(part for part in parts if part not in ("", "."))


def shown_name(name: str) -> str:
    """A json: or protocol name for people: what may be a user, a password, a key or a token is left out. A path stays."""
    if name.startswith(("/", "./", "../")) or ":" not in name:
        return name
    if name.startswith("json:"):
        try:
            return "json:" + json.dumps(_shown(json.loads(name[len("json:") :])), sort_keys=True)
        except (ValueError, RecursionError):
            return "json: (not readable)"
    scheme, slashes, rest = name.partition("://")
    if not slashes:  # rbd:pool/image:id=admin:key=... and nbd:host:port:exportname=...
        parts = name.split(":")
        return ":".join(part for part in parts if "=" not in part or part.startswith("exportname="))
    rest = rest.partition("?")[0].partition("#")[0]
    server, slash, what = rest.partition("/")
    return "%s://%s%s%s" % (scheme, server.rpartition("@")[2], slash, what)


def _shown(value):
    if isinstance(value, dict):
        return {key: _shown(one) for key, one in value.items() if key.rpartition(".")[2] in _SHOWN_KEYS or key.rpartition(".")[2].isdigit()}
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return shown_name(value) if isinstance(value, str) else value
