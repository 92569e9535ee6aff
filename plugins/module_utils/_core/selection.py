# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which guests are meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple


@dataclass(frozen=True)
class Selection:
    """Which guests: one by ``name`` or ``uuid``, or several by ``names``, ``pattern`` (re.search) and ``state``."""

    name: Optional[str] = None
    uuid: Optional[str] = None
    names: Optional[Tuple[str, ...]] = None
    pattern: Optional[str] = None
    state: Optional[str] = None

    @property
    def single(self) -> bool:
        return self.name is not None or self.uuid is not None
