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

    # Where images by themselves can be named instead.
    OF_GUEST = r"""
options:
  disk:
    description:
      - The disk, by its target in the guest (V(vda)) or by the path of its active layer. Needed if O(name) or O(uuid) is given.
    type: str
    version_added: 0.1.0
"""

    GUEST_OR_IMAGES = r"""
options:
  name:
    description:
      - The name of the guest, running or off. Exactly one of O(name), O(uuid) and O(images) is needed.
    type: str
    aliases: [guest, domain]
    version_added: 0.1.0
  uuid:
    description:
      - The UUID of the guest. Exactly one of O(name), O(uuid) and O(images) is needed.
    type: str
    version_added: 0.1.0
  images:
    description:
      - Absolute paths of images that belong to no guest, each the active layer of its chain. Exactly one of O(name), O(uuid) and O(images)
        is needed.
      - An image that is a layer of any guest's disk, running or not, is refused, because that guest has to be named instead. So is one that
        any process has open.
    type: list
    elements: str
    version_added: 0.1.0
  format:
    description:
      - The format of the O(images). Needed if they are given. It is not guessed, because whoever wrote an image could then choose which
        files are worked on.
    type: str
    choices: [qcow2, raw, qed]
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
