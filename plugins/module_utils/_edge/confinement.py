# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What this host's AppArmor has to say of a running guest: read from the kernel and from the profile's files, and never changed."""

from __future__ import annotations

import os
import re
import stat
from typing import List, Optional

from .._core.apparmor import APPARMOR, Confinement, Include, included, left_out, loaded_mode

PROFILES, POLICY = "sys/kernel/security/apparmor/profiles", "etc/apparmor.d"
DEEPEST, MOST_FILES, MOST_BYTES = 12, 400, 4 * 1024 * 1024

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


def confinement(model: str, label: str, root: str = "/") -> Confinement:
    """What a QEMU with this label is confined by; of another model than AppArmor only the label. Raises nothing: what cannot be read is named."""
    if model != APPARMOR:
        return Confinement(model, label)
    policy = _Policy(root)
    lines = policy.profile(label)
    return Confinement(model, label, _mode(root, label), tuple(lines), tuple(dict.fromkeys(policy.unreadable)))


def _mode(root: str, label: str) -> Optional[str]:
    """The kernel shows its list to root alone."""
    try:
        with open(os.path.join(root, PROFILES), encoding="utf-8", errors="replace") as file:
            return loaded_mode(file.read(MOST_BYTES), label)
    except OSError:
        return None


class _Policy:
    """The files of a policy, as many and as much as a profile has need of."""

    def __init__(self, root: str):
        self._root, self._base = root, os.path.join(root, POLICY)
        self._files, self._bytes = 0, 0
        self.unreadable: List[str] = []

    def profile(self, label: str) -> List[str]:
        """The lines of the profile of that name: libvirt's are in a directory of their own."""
        places = [os.path.join(self._base, *folder, label) for folder in (["libvirt"], [])] if _PLAIN.match(label) else []
        found = next((place for place in places if os.path.exists(place)), None)
        if found is None:
            self.unreadable.append(places[0] if places else os.path.join(self._base, "libvirt"))
            return []
        return self._lines(found, 0)

    def _lines(self, path: str, depth: int) -> List[str]:
        """The lines of a file, each include replaced by what it includes."""
        text = self._read(path) if depth <= DEEPEST else None
        if text is None:
            self.unreadable.append(path)
            return []
        found: List[str] = []
        for line in text.split("\n"):
            include = included(line)
            found += [line.strip()] if include is None else self._included(include, depth)
        return [line for line in found if line]

    def _included(self, include: Include, depth: int) -> List[str]:
        path = os.path.join(self._base, include.path) if include.magic else os.path.join(self._root, include.path.lstrip("/"))
        if include.optional and not os.path.exists(path):
            return []
        return [line for one in self._files_at(path) for line in self._lines(one, depth + 1)]

    def _files_at(self, path: str) -> List[str]:
        """A file, or those of a directory, without what is in directories below it."""
        if not os.path.isdir(path):
            return [path]
        try:
            names = sorted(name for name in os.listdir(path) if not left_out(name))
        except OSError:
            self.unreadable.append(path)
            return []
        return [one for one in (os.path.join(path, name) for name in names) if os.path.isfile(one)]

    def _read(self, path: str) -> Optional[str]:
        """None where it is no file, cannot be read, or is too much. (What is no file is not waited for.)"""
        self._files += 1
        if self._files > MOST_FILES:
            return None
        try:
            with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
                content = file.read(MOST_BYTES - self._bytes + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
        except (OSError, ValueError):
            return None
        self._bytes += len(content or b"")
        return None if content is None or self._bytes > MOST_BYTES else content.decode(errors="replace")
