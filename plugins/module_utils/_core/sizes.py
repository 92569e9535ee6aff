# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sizes as people write them. The suffixes are libvirt's (its "scaled integers"): KiB or K is 1024, KB is 1000."""

from __future__ import annotations

import re
from fractions import Fraction

from .errors import Refused

_PATTERN = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(?:([KMGTPE])(i?B)?|B|bytes?)?(?:/s)?\s*$", re.IGNORECASE)
_POWERS = "KMGTPE"
LARGEST_BANDWIDTH = 2**52  # QEMU and libvirt may reject more


def parse_size(text: str, option: str) -> int:
    """Bytes in ``text``, such as 100MiB, 1.5G or 4096. Raises Refused (code bad_size) naming the option."""
    match = _PATTERN.match(str(text))
    if not match:
        raise Refused("bad_size", "The option %s is %r, which is not a size: write a number with a unit, such as 100MiB." % (option, text))
    number, letter, rest = match.groups()
    unit = 1000 if rest is not None and rest.lower() == "b" else 1024
    power = _POWERS.index(letter.upper()) + 1 if letter else 0
    return int(Fraction(number) * unit**power)


def parse_bandwidth(text) -> int:
    """Bytes per second; None and 0 mean no limit. Raises Refused (codes bad_size, bad_bandwidth)."""
    if text in (None, ""):
        return 0
    value = parse_size(text, "bandwidth")
    if value > LARGEST_BANDWIDTH:
        raise Refused("bad_bandwidth", "The option bandwidth is %s, more than QEMU accepts: use at most 4PiB per second, or 0 for no limit." % text)
    return value
