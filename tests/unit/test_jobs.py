# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The life of a block job: the whole table, and the laws that it has to obey."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.livestorage.libvirt.plugins.module_utils._core import jobs
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.jobs import advance, arrived

STATES = ("running", "ready", "completed", "failed", "canceled", "vanished", "guest_gone")
WORDS = ("progress", "ready", "completed", "failed", "canceled", "gone", "stopped")
# A row for each state, a column for each word, in the order above.
TABLE = {
    "running": ("running", "ready", "completed", "failed", "canceled", "vanished", "guest_gone"),
    "ready": ("ready", "ready", "completed", "failed", "canceled", "vanished", "guest_gone"),
    "completed": ("completed",) * 7,
    "failed": ("failed",) * 7,
    "canceled": ("canceled",) * 7,
    "vanished": ("vanished", "vanished", "completed", "failed", "canceled", "vanished", "guest_gone"),
    "guest_gone": ("guest_gone",) * 7,
}
FINAL = {"completed", "failed", "canceled", "guest_gone"}
words = st.lists(st.sampled_from(WORDS), max_size=8)


@pytest.mark.parametrize(("state", "word"), list(itertools.product(STATES, WORDS)))
def test_table(state, word):
    assert advance(state, word) == TABLE[state][WORDS.index(word)]


def test_the_table_is_whole():
    assert set(WORDS) == jobs.WORDS
    assert FINAL | {"vanished"} == jobs.ENDS


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("until", ["ready", "completed"])
def test_arrived(state, until):
    assert arrived(state, until) == (state == until or state in FINAL | {"vanished"})


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("word", ["", "READY", "done", "vanished", "guest_gone", "running", None])
def test_an_unknown_word_is_an_error_in_every_state(state, word):
    with pytest.raises(ValueError, match="unknown word"):
        advance(state, word)


def run(heard, state="running"):
    for word in heard:
        state = advance(state, word)
    return state


@given(words, words)
def test_an_end_stays(before, after):
    state = run(before)
    if state in FINAL:
        assert run(after, state) == state


@given(words)
def test_only_ready_makes_ready(heard):
    """However often progress is seen, whatever its numbers say: nothing but the word opens the pivot."""
    if "ready" not in heard:
        assert run(heard) != "ready"
    assert run(["progress"] * 50) == "running"


@given(words)
def test_completed_is_never_guessed(heard):
    assert run(heard) != "completed" or "completed" in heard


@given(words, st.sampled_from(["completed", "failed", "canceled", "stopped"]))
def test_a_late_word_tells_what_became_of_a_vanished_job(heard, late):
    if run(heard) == "vanished":
        assert advance("vanished", late) == TABLE["running"][WORDS.index(late)]
