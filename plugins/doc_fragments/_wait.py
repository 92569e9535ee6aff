# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  wait:
    description:
      - Wait for the job. If V(false), the job is started and returned, and the next run with the same options adopts it.
    type: bool
    default: true
    version_added: 0.1.0
  wait_timeout:
    description:
      - Seconds to wait for the job before O(on_timeout) is done.
    type: int
    default: 86400
    version_added: 0.1.0
  poll_interval:
    description:
      - Seconds between two looks at the job. Its end is noticed at once through libvirt's events. The looks are for events
        that were missed.
    type: float
    default: 1.0
    version_added: 0.1.0
  on_timeout:
    description:
      - What to do when O(wait_timeout) has passed. The module fails either way, and returns the job.
      - With V(leave) the job goes on, and the next run with the same options adopts it.
      - With V(abort) the job is ended, and the guest is as it was before.
    type: str
    choices: [leave, abort]
    default: leave
    version_added: 0.1.0
"""

    WATCHED = r"""
options:
  progress:
    description:
      - Show the progress of the job in the output of the play, a line every few seconds, with percent, rate and remaining time.
      - The job is then started by one call of the module, looked at by short ones, and finished by another, so that no connection is held
        for as long as the job takes. With V(false), without O(wait), in check mode and with C(async) it is one call.
      - The lines go to the standard error of the play, so that what callbacks write stays as it is.
    type: bool
    default: true
    version_added: 0.1.0
  phase:
    description:
      - Which part of the work is done. V(whole) is all of it.
      - V(start) checks everything, starts the job and returns. V(finish) waits for the job that runs and finishes the work. If none
        runs and the work is not done, it fails and starts none. V(adopt) is the same for a job that an earlier run began, so that it is
        not ended if something fails. These are what O(progress) uses.
    type: str
    choices: [whole, start, finish, adopt]
    default: whole
    version_added: 0.1.0
"""

    BANDWIDTH = r"""
options:
  bandwidth:
    description:
      - The highest speed of the job, as a size per second such as V(100MiB). V(KiB) and V(K) are 1024 bytes, V(KB) is 1000.
      - V(0) or leaving it out means no limit.
      - A job that is adopted keeps the speed that it was started with.
    type: str
    version_added: 0.1.0
"""
