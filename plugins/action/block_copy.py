# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The progress of a copy, in the output of the play."""

from __future__ import annotations

from ansible_collections.livestorage.libvirt.plugins.plugin_utils.progress import Watched


class ActionModule(Watched):
    """A copy is waited for; the end of one is done at once."""

    def watchable(self, arguments: dict) -> bool:
        return arguments.get("state") != "absent"
