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

    def call(self, seconds: float, call: Callable, *arguments) -> Any:
        """What the call returns. Raises GivenUp after so many seconds."""
        if self._calls is None:
            self._calls = queue.Queue()
            threading.Thread(target=self._work, args=(self._calls,), daemon=True).start()
        answer: queue.Queue = queue.Queue()
        self._calls.put((answer, call, arguments))
        try:
            error, value = answer.get(timeout=seconds)
        except queue.Empty:
            self._calls = None
            raise GivenUp from None
        if error is not None:
            raise error
        return value

    def _work(self, calls: queue.Queue) -> None:
        while True:
            answer, call, arguments = calls.get()
            try:
                answer.put((None, call(*arguments)))
            except self._errors as error:
                answer.put((error, None))


class RealPaths:
    """Paths with their links resolved, where the storage answers."""

    def __init__(self) -> None:
        self._patience = Patience((OSError, ValueError))
        self._dead: Set[str] = set()

    def of(self, path: str) -> str:
        """The real path, or the path itself where nothing answers; each folder is waited for once."""
        folder = os.path.dirname(path)
        if folder in self._dead:
            return path
        try:
            return self._patience.call(PATH_SECONDS, os.path.realpath, path)
        except GivenUp:
            self._dead.add(folder)
        except (OSError, ValueError):
            pass
        return path
