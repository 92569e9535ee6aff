# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Refused
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.sizes import LARGEST_BANDWIDTH, parse_bandwidth, parse_size

MiB = 1 << 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("4096", 4096),
        (4096, 4096),
        (" 7 B ", 7),
        ("7 bytes", 7),
        ("1K", 1024),
        ("1KiB", 1024),
        ("1KB", 1000),
        ("1kb", 1000),
        ("100MiB", 100 * MiB),
        ("100 mib", 100 * MiB),
        ("100MiB/s", 100 * MiB),
        ("1.5G", 3 << 29),
        ("0.5KB", 500),
        ("1.1KB", 1100),
        ("0.1M", 104857),
        ("2T", 2 << 40),
        ("3PB", 3 * 10**15),
        ("1E", 1 << 60),
        ("9007199254740993", 9007199254740993),
        ("9007199254740993KiB", 9007199254740993 * 1024),
    ],
)
def test_size(text, expected):
    assert parse_size(text, "size") == expected


@pytest.mark.parametrize(
    "text", ["", " ", "fast", "-1", "+1", "1,5M", "1.M", ".5M", "1Q", "1 2", "1iB", "0x10", "1e3", "nan", "inf", "1M/h", "1\nM\n1", None, True]
)
def test_what_is_no_size(text):
    with pytest.raises(Refused, match=r"option top_speed is .* not a size") as caught:
        parse_size(text, "top_speed")
    assert caught.value.code == "bad_size"


@given(st.integers(0, 10**30), st.sampled_from(range(7)))
def test_whole_numbers_lose_nothing(number, power):
    suffix = "BKMGTPE"[power]
    assert parse_size("%d%s" % (number, suffix), "x") == number * 1024**power
    assert power == 0 or parse_size("%d%sB" % (number, suffix), "x") == number * 1000**power


@pytest.mark.parametrize(("text", "expected"), [(None, 0), ("", 0), ("0", 0), ("1MiB", MiB), ("4PiB", LARGEST_BANDWIDTH)])
def test_bandwidth(text, expected):
    assert parse_bandwidth(text) == expected


@pytest.mark.parametrize("text", ["4503599627370497", "5P", "1E", "9" * 400])
def test_a_bandwidth_that_qemu_rejects(text):
    with pytest.raises(Refused) as caught:
        parse_bandwidth(text)
    assert caught.value.code == "bad_bandwidth"
