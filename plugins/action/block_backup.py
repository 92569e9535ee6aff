# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The progress of a backup, in the output of the play."""

from __future__ import annotations

from ansible_collections.livestorage.libvirt.plugins.plugin_utils.progress import Watched


class ActionModule(Watched):
    """A push is waited for, over all its disks; a pull is only started, and the end of either is done at once."""

    def watchable(self, arguments: dict) -> bool:
        return arguments.get("state") != "absent" and arguments.get("mode") != "pull"

    def finished(self, first: dict) -> bool:
        return any(step["action"] == "inspect" and step["begun"] for step in first.get("steps", []))

    def jobs_of(self, found: list) -> list:
        """The jobs of all disks as one. A disk that is done has none any more."""
        jobs = [job for job in found if job["type"] == "backup"]
        if not jobs:
            return []
        cur, end = sum(job["cur"] for job in jobs), sum(job["end"] for job in jobs)
        return [dict(jobs[0], cur=cur, end=end, percent=round(100.0 * cur / end, 1) if end else 0.0)]

    def subject(self) -> str:
        disks = self._task.args.get("disks")
        names = [str(one.get("disk")) for one in disks if isinstance(one, dict)] if isinstance(disks, list) else []
        return "+".join(names)
