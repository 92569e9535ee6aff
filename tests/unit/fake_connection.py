# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A connection to a libvirt that is only a timeline, and a clock that moves by itself when somebody waits."""

from __future__ import annotations

from dataclasses import replace

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Unavailable
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import host as edge
from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import pivots, steps

# The calls that are noted with what they were given.
TOLD = ("commit", "pull", "copy", "set_speed", "define_image", "define_as_running", "create_volume", "refresh_pool")
CALLS = (*TOLD, "snapshot", "forget_snapshot", "abort", "abort_backup", "pivot", "write_record", "clear_record", "write_through", "qemu_view")


class Handle:
    def name(self):
        return "vm1"


class Timeline:
    """What libvirt would show and tell at each second.

    ``states``: (second, guest or None or an error) from then on; ``events``: (second, word, disk). ``down``: (from, to), in
    which the daemon does not answer and its events are lost. ``refusals``: the errors of the next calls of each name (None: none),
    ``effects``: what a call changes, ``answers``: what it returns.
    """

    local = True

    def __init__(self, states=(), events=(), down=(0, 0), alive=True):
        self.states, self.queue, self.down, self.alive = list(states), sorted(events), down, alive
        self.now, self.calls, self.refusals, self.effects, self.answers = 0.0, [], {}, {}, {}
        self.events, self.broken = self, False

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def is_down(self) -> bool:
        return self.down[0] <= self.now < self.down[1]

    # Connection

    tracked = ()

    def close(self):
        self.calls.append("close")

    def settle(self):
        """No call is given up here."""

    def handle(self, selection):
        return Handle() if self._state() is not None else None

    def _state(self):
        return [guest for second, guest in self.states if second <= self.now][-1]

    def read(self, handle, with_config, with_jobs=True, with_capacities=False, with_paths=False):
        if self.is_down or self.broken:
            self.broken, self.alive = True, False
            raise Unavailable("connection", "The connection broke.")
        state = self._state()
        if isinstance(state, Exception):
            raise state
        return state

    def snapshots(self, handle):
        return self.tracked if "forget_snapshot" not in self.calls else ()

    def reopen(self, deadline):
        self.calls.append("reopen")
        if self.is_down and self.down[1] > deadline:
            self.now = max(self.now, deadline)
            raise Unavailable("no_daemon", "libvirt does not answer.")
        self.queue = [event for event in self.queue if event[0] >= self.down[1]]
        self.now = max(self.now, self.down[1])
        self.broken, self.alive = False, True

    def __getattr__(self, name):
        """Every other call is noted; it may be refused a number of times, and may change what is seen."""
        if name not in CALLS:
            raise AttributeError(name)

        def call(handle, *arguments):
            told = arguments if isinstance(handle, Handle) else (handle, *arguments)
            self.calls.append((name, *told) if name in TOLD else name)
            refusal = self.refusals[name].pop(0) if self.refusals.get(name) else None
            if refusal is not None:
                raise refusal
            if name in self.effects:
                self.effects[name](self)
            return self.answers.get(name)

        return call

    # Events

    def forget(self):
        self.calls.append("forget")

    def word(self, uuid, disk, seconds):
        if self.queue and not self.broken and self.queue[0][0] <= self.now + seconds:
            second, word, about = self.queue.pop(0)
            self.now = max(self.now, second)
            lost = self.down[0] <= second < self.down[1]
            return word if about in (disk, None) and not lost else None
        self.now += seconds
        return None


def host_on(monkeypatch, timeline, processes=(), monitor=None, holds=None, held=False):
    """A Host whose connection is the timeline, about the guest u1.

    ``processes`` are QEMU's, ``monitor`` what one of them says at its own monitor; ``holds``: does the guest's QEMU hold the destination,
    ``held``: does any QEMU hold a file that is to be removed?
    """
    monkeypatch.setattr(edge, "Connection", lambda uri, with_events: timeline)
    monkeypatch.setattr(pivots, "qemu_processes", lambda: tuple(processes))
    monkeypatch.setattr(pivots, "ask_monitor", lambda pid: monitor)
    monkeypatch.setattr(pivots, "holds_path", lambda uuid, path: holds)
    monkeypatch.setattr(steps, "held_open", lambda path: held)
    host = edge.Host("qemu:///system", True, clock=timeline.clock, sleep=timeline.sleep, now_of_day=lambda: 1795219200.5 + timeline.now)
    host._uuid = "u1"
    return host


def with_disk(domain, **facts):
    """The guest with other facts about its first disk."""
    return replace(domain, disks=(replace(domain.disks[0], **facts),) + domain.disks[1:])
