# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Calls that may never return, as with storage that is gone, made where they can be given up."""

from __future__ import annotations

import os
import queue
import threading
from typing import Any, Callable, Optional, Set, Tuple, Type

PATH_SECONDS = 3.0


class GivenUp(Exception):
    """No answer came in time; the call goes on by itself and is not waited for any more."""


class Patience:
    """Makes one call after the other in a thread. A thread that hangs is left alone, and the next call gets another.

    Neither a call into libvirt nor one into the kernel can be interrupted; the threads end with the process. ``errors`` are
    the exceptions that a call may raise: they are raised again where it was asked.
    """

    def __init__(self, errors: Tuple[Type[BaseException], ...]):
        self._errors = errors
        self._calls: Optional[queue.Queue] = None
        self._left: Optional[queue.Queue] = None

    def call(self, seconds: float, call: Callable, *arguments) -> Any:
        """What the call returns. Raises GivenUp after so many seconds."""
        if self._calls is None:
            self._calls = queue.Queue()
            threading.Thread(target=self._work, args=(self._calls,), daemon=True).start()
        answer: queue.Queue = queue.Queue()
        self._calls.put((answer, call, arguments))
        told: Optional[Tuple[Optional[BaseException], Any]] = None
        try:
            told = answer.get(timeout=seconds)
        except queue.Empty:
            raise GivenUp from None
        finally:
            if told is None:  # also where this run is interrupted: the call goes on, and what follows must not stand in line behind it
                self._calls, self._left = None, answer
        if told[0] is not None:
            raise told[0]
        return told[1]

    def settled(self, seconds: float) -> bool:
        """Has the last call that was given up come back, or does it within so many seconds? It is asked once."""
        left, self._left = self._left, None
        try:
            return left is None or bool(left.get(timeout=seconds))
        except queue.Empty:
            return False

    def _work(self, calls: queue.Queue) -> None:
        while True:
            answer, call, arguments = calls.get()
            try:
                answer.put((None, call(*arguments)))
            except self._errors as error:
                answer.put((error, None))


class Look:
    """Questions about paths, each given up after so many seconds (None: never); a folder on ``dead`` storage is waited for once."""

    def __init__(self, seconds: Optional[float]) -> None:
        self._seconds = seconds
        self._patience = Patience((OSError, ValueError))
        self.dead: Set[str] = set()

    def __call__(self, otherwise: Any, question: Callable, path: str, *more) -> Any:
        """The answer to ``question(path, *more)``, or ``otherwise``."""
        if self._seconds is None:
            return question(path, *more)
        folder = os.path.dirname(path)
        if folder in self.dead:
            return otherwise
        try:
            return self._patience.call(self._seconds, question, path, *more)
        except GivenUp:
            self.dead.add(folder)
            return otherwise


class RealPaths:
    """Paths with their links resolved, where the storage answers."""

    def __init__(self) -> None:
        self._look = Look(PATH_SECONDS)

    def of(self, path: str) -> str:
        """The real path, or the path itself where nothing answers."""
        try:
            return self._look(path, os.path.realpath, path)
        except (OSError, ValueError):
            return path
