# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images by their headers, node by node: on this host with qemu-img, elsewhere by what libvirt's storage volumes say."""

from __future__ import annotations

from typing import Callable, Collection, Dict, Iterable, Optional, Set

from .._core.headers import Key, below, stores
from .._core.host_facts import Probe
from .._core.host_xml import parse_volume
from .qemu_img import SECONDS, probe_all

DEEPEST = 200  # libvirt's own limit for a chain


class Images:
    """What was found of images during one look; each is read once."""

    def __init__(self, local: bool, volume_xml: Optional[Callable[[str], Optional[str]]] = None, seconds: float = SECONDS):
        """``volume_xml`` gives the XML of the volume at a path, for where files cannot be read; ``seconds`` is for each chain."""
        self._local, self._volume_xml, self._seconds = local, volume_xml, seconds
        self._probes: Dict[Key, Probe] = {}

    def read(self, named: Iterable[Key], deepest: int, guessed: Collection[str] = (), deadline: Optional[float] = None) -> Dict[Key, Probe]:
        """The probes of ``named`` (paths that libvirt or the user names), of what their headers name, and so on.

        ``guessed``: the paths of which the format may be taken from the first bytes, where it is not said. At most
        ``deepest`` images of a chain are read, in so many seconds together, and none after ``deadline`` (monotonic).
        Data files are measured, and not opened.
        """
        todo: Dict[Key, float] = dict.fromkeys(named, 0.0)  # and the seconds that the images above took
        paths = frozenset(path for path, dummy in todo)
        seen: Set[Key] = set()
        for dummy in range(deepest):
            new = {key: spent for key, spent in todo.items() if key not in self._probes}
            self._probes.update(self._look(new, paths, guessed, deadline))
            seen.update(todo)
            todo = self._following(todo, seen)
            if not todo:
                break
        files = dict.fromkeys((key for key in stores(self._probes.values()) if key not in self._probes), 0.0)
        self._probes.update(self._look(files, (), (), None))
        return dict(self._probes)

    def _following(self, read: Dict[Key, float], seen: Set[Key]) -> Dict[Key, float]:
        """What the headers that were just read name, with the seconds that the way there took."""
        found: Dict[Key, float] = {}
        for key, spent in read.items():
            probe = self._probes[key]
            following = below(probe)
            if following is not None and following not in seen:
                found[following] = min(spent + probe.seconds, found.get(following, self._seconds))
        return found

    def _look(self, keys: Dict[Key, float], named: Collection[str], guessed: Collection[str], deadline: Optional[float]) -> Dict[Key, Probe]:
        if self._local:
            return probe_all({key: self._seconds - spent for key, spent in keys.items()}, named, guessed, deadline)
        return {key: self._volume(key) for key in keys}

    def _volume(self, key: Key) -> Probe:
        xml = self._volume_xml(key[0]) if self._volume_xml is not None else None
        return Probe(key[0], key[1], problem="remote") if xml is None else parse_volume(key, xml)
