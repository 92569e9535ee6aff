# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What ``qemu-img info --output=json`` says of one image, as a value.

The law: a header is a claim of whoever wrote the image. It is reported, and never followed from here.
"""

from __future__ import annotations

import json
import posixpath

from .errors import Unavailable
from .model import Image


def parse_image(path: str, text: str) -> Image:
    """The Image at ``path``. Raises Unavailable (code qemu_img) when ``text`` is not what qemu-img writes."""
    try:
        facts = json.loads(text)
        backing = facts.get("backing-filename")
        return Image(
            path=path,
            format=facts["format"],
            virtual_size=int(facts["virtual-size"]),
            actual_size=int(facts.get("actual-size", 0)),
            backing=backing,
            backing_path=resolve_backing(path, backing),
            backing_format=facts.get("backing-filename-format"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unavailable("qemu_img", "qemu-img said something about %s that cannot be read: check its version." % path) from error


def resolve_backing(path: str, backing):
    """The absolute path that a backing name means (relative names start at the image), None for json: and protocol names."""
    if not backing or backing.startswith("json:"):
        return None
    head = backing.split("/", 1)[0]
    if ":" in head and not backing.startswith("file:"):
        return None
    if backing.startswith("file:"):
        backing = backing[len("file:") :]
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), backing))
