# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is written down beside a guest's disks: the notes of our jobs, libvirt's snapshots, and who uses which image.

The law: a note tells what was meant or what was so once. What is so now, only the chains tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional, Tuple


@dataclass(frozen=True)
class Record:
    """The note that a run leaves in the guest's live metadata before it starts a job (see ``write_xml.record_xml``).

    ``job`` is its type, ``layers`` the layers it was given (pull: the base; commit: top and base; copy and backup: the destination),
    ``indexes`` the identities of all layers at that time: the note speaks of today's job only while they are the same.
    What says no more about its meaning: ``since``, the second (Unix time) of the start, ``source``, the path of the layer that a
    copy leaves, ``creates``, the file that did not exist before it, ``merges``, the paths of the layers that a commit merges,
    ``checkpoint``, the one that was created with a backup, and ``data``, of each layer that leaves the chain and has a data file, both paths.
    """

    disk: str
    job: str
    layers: str
    indexes: str
    since: Optional[int] = field(default=None, compare=False)
    source: Optional[str] = field(default=None, compare=False)
    creates: Optional[str] = field(default=None, compare=False)
    merges: Tuple[str, ...] = field(default=(), compare=False)
    checkpoint: Optional[str] = field(default=None, compare=False)
    data: Tuple[Tuple[str, str], ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Conversion:
    """The note in a guest's definition of a conversion that was begun: between the raw image ``data`` and the qcow2 layer ``metadata`` over it.

    ``state`` is present (a layer is put over the image) or absent (it is taken away), ``ran`` whether the guest was running then.
    """

    disk: str
    metadata: str
    data: str
    state: str
    ran: bool = False


@dataclass(frozen=True)
class Use:
    """A layer that some guest's disk uses: in its live chain or in the chain of its next start.

    ``layer`` is the place as the XML writes it, where it was resolved to this one (a volume to its path, a link to its target).
    ``writes``: the guest may write to it, and does not declare it shareable.
    """

    place: tuple
    guest: str
    uuid: str
    disk: str
    layer: tuple = ()
    writes: bool = False


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of a guest: its external overlays, and the images below them then, as (disk, path) pairs.

    ``tracked``: libvirt keeps metadata of it; else only the note of the run that took it tells of it. ``state`` is the guest's at that time
    (disk-snapshot: only its disks), ``created`` in seconds of Unix time, ``memory`` the file with its memory; ``internal`` names the
    disks whose snapshot is inside their image. ``on_delete`` are (disk, forward or backward): how its deletion shall merge each disk.
    ``spoiled`` are (disk, path) of the images that hold the moment no more, because a deletion that was begun has written into them.
    """

    name: str
    files: Tuple[Tuple[str, str], ...] = ()
    bases: Tuple[Tuple[str, str], ...] = ()
    parent: Optional[str] = None
    current: bool = False
    tracked: bool = True
    description: Optional[str] = None
    state: Optional[str] = None
    created: Optional[int] = None
    memory: Optional[str] = None
    internal: Tuple[str, ...] = ()
    on_delete: Tuple[Tuple[str, str], ...] = ()
    spoiled: Tuple[Tuple[str, str], ...] = ()

    @property
    def paths(self) -> Tuple[str, ...]:
        """Every file that it names."""
        return tuple(path for dummy, path in self.files + self.bases if path.startswith("/")) + ((self.memory,) if self.memory else ())

    def overlay(self, target: str) -> Optional[str]:
        return dict(self.files).get(target)

    def base(self, target: str) -> Optional[str]:
        return dict(self.bases).get(target)
