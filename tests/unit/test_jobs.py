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
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.jobs import Convergence, advance, arrived

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


MiB = 1 << 20


def verdicts(window, looks, bandwidth=0):
    """The verdict at each (second, cur, end)."""
    watch = Convergence(window)
    return [watch.stalls(second, cur, end, bandwidth) for second, cur, end in looks]


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        # What remains becomes less: however slowly, it converges.
        ([(second * 5, second, 100) for second in range(5)], [False] * 5),
        # It stays: the window counts from the last time that it became less.
        ([(0, 0, 100), (5, 1, 100), (10, 1, 100), (14, 1, 100), (15, 1, 100)], [False, False, False, False, True]),
        # The guest writes as fast as the copy: much is done, and as much remains.
        ([(0, 0, 100), (9, 500, 600), (10, 600, 700)], [False, False, True]),
        # And faster.
        ([(0, 0, 100), (10, 10, 200), (20, 20, 900)], [False, True, True]),
        # Less than ever before, if only by a byte, is another window.
        ([(0, 0, 100), (9, 1, 100), (18, 2, 100), (27, 3, 100)], [False] * 4),
        # Less than at the last look is not less than ever before.
        ([(0, 50, 100), (4, 0, 100), (8, 40, 100), (10, 49, 100)], [False, False, False, True]),
        # All is done, and it is not ready: nothing remains, and that does not become less.
        ([(0, 100, 100), (10, 120, 100)], [False, True]),
    ],
)
def test_convergence(looks, expected):
    assert verdicts(10, looks) == expected


@pytest.mark.parametrize(("bandwidth", "patience"), [(0, 10), (100 * MiB, 10), (MiB, 32), (512 * 1024, 64)])
def test_a_limited_copy_is_given_the_time_for_two_of_its_steps(bandwidth, patience):
    """QEMU's mirror takes up to 16 MiB at once: in between, nothing seems to be done."""
    looks = [(0, 0, 100 * MiB), (patience - 0.1, 0, 100 * MiB), (patience, 0, 100 * MiB)]
    assert verdicts(10, looks, bandwidth) == [False, False, True]


def test_another_window():
    watch = Convergence(10)
    assert [watch.stalls(second, 0, 5) for second in (0, 10)] == [False, True]
    watch.again(10)
    assert [watch.stalls(second, 0, 5) for second in (19, 20)] == [False, True]


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=20), st.integers(1, 50))
def test_no_verdict_before_the_window_is_over(looks, window):
    watch, begun = Convergence(window), None
    least = None
    for second, (cur, end) in enumerate(looks):
        remaining = max(0, end - cur)
        if least is None or remaining < least:
            least, begun = remaining, second
        assert watch.stalls(second, cur, end) == (second - begun >= window)
