# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  disk:
    description:
      - The disk, by its target in the guest (V(vda)) or by the path of its active layer.
    type: str
    required: true
    version_added: 0.1.0
"""

    GUEST = r"""
options:
  name:
    description:
      - The name of the guest. Exactly one of O(name) and O(uuid) is needed.
    type: str
    aliases: [guest, domain]
    version_added: 0.1.0
  uuid:
    description:
      - The UUID of the guest. Exactly one of O(name) and O(uuid) is needed.
    type: str
    version_added: 0.1.0
"""
