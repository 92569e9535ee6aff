#!/usr/bin/python

# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: block_job_info
short_description: List the block jobs of guests, with their progress
version_added: 0.1.0
author: Contributors to livestorage.libvirt (@livestorage)
description:
  - Lists every block job that runs now, of one, several or all guests, whoever started it.
  - Nothing is changed, and QEMU is asked nothing that would taint a guest.
options:
  name:
    description:
      - The name of one guest. By default the jobs of all guests are listed. Mutually exclusive with O(uuid), O(names) and O(filter).
    type: str
    aliases: [guest, domain]
    version_added: 0.1.0
  uuid:
    description:
      - The UUID of one guest. By default the jobs of all guests are listed.
    type: str
    version_added: 0.1.0
  names:
    description:
      - The names of several guests. By default the jobs of all guests are listed.
    type: list
    elements: str
    version_added: 0.1.0
  filter:
    description:
      - A regular expression that the names have to match (C(re.search)). By default they need not match anything.
    type: str
    version_added: 0.1.0
  disk:
    description:
      - Only the jobs on this disk, by its target in the guest (V(vda)) or by the path of its active layer.
    type: str
    version_added: 0.1.0
  interval:
    description:
      - Seconds between two looks at the jobs, from which RV(jobs[].rate) and RV(jobs[].eta) are taken. V(0) looks once, and returns none of them.
      - Without a job nothing is waited for.
    type: float
    default: 1.0
    version_added: 0.1.0
extends_documentation_fragment:
  - livestorage.libvirt._connection
  - livestorage.libvirt._attributes
  - livestorage.libvirt._attributes.info
  - livestorage.libvirt._attributes.actiongroup
seealso:
  - module: livestorage.libvirt.block_job
  - module: livestorage.libvirt.disk_chain_info
"""

EXAMPLES = r"""
- name: What runs on this hypervisor?
  livestorage.libvirt.block_job_info:
  register: running

- name: Show the copies that wait for their pivot
  ansible.builtin.debug:
    msg: "{{ running.jobs | selectattr('ready') | map(attribute='name') }}"
"""

RETURN = r"""
jobs:
  description: The jobs, by the names of their guests.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: The name of the guest.
      type: str
      sample: vm1
    uuid:
      description: The UUID of the guest.
      type: str
      sample: 6fbd1c9e-2f0e-4f3e-8a66-7b8a3c6cf3a1
    disk:
      description: The target of the disk in the guest.
      type: str
      sample: vda
    type:
      description: The kind of job, V(pull), V(copy), V(commit), V(active-commit) or V(backup).
      type: str
      sample: copy
    cur:
      description: Bytes done.
      type: int
      sample: 33554432
    end:
      description: Bytes to do. It grows with what the guest writes during a copy, and QEMU versions count sparse images differently.
      type: int
      sample: 67108864
    percent:
      description: Bytes done of the bytes to do. 100 does not mean that the job is done or ready.
      type: float
      sample: 50.0
    rate:
      description: Bytes per second between the two looks. V(null) with an O(interval) of V(0). A limited copy moves in steps of up to 16 MiB.
      type: int
      sample: 104857600
    eta:
      description: Seconds until the bytes that remain are done at that rate. V(null) if it is not known, or the job is ready.
      type: int
      sample: 12
    ready:
      description: Whether a copy or an active commit can be pivoted.
      type: bool
      sample: false
    bandwidth:
      description: The speed limit in bytes per second, V(0) is none.
      type: int
      sample: 0
    since:
      description: When it was started, in seconds of Unix time. V(null) for a job that was not started by a module of this collection.
      type: int
      sample: 1795219200
    dest:
      description: Where a copy or an active commit goes, V(null) for other jobs.
      type: str
      sample: /srv/fast/vm1.qcow2
code:
  description: A stable word for the reason of a failure, such as V(no_guest) or V(no_daemon).
  type: str
  returned: failure
  sample: no_guest
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.livestorage.libvirt.plugins.module_utils import _arguments, _pipeline
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import block_job_info


def main():
    module = AnsibleModule(
        argument_spec=dict(
            _arguments.CONNECTION,
            **_arguments.GUEST,
            names={"type": "list", "elements": "str"},
            filter={"type": "str"},
            disk={"type": "str"},
            interval={"type": "float", "default": 1.0},
        ),
        mutually_exclusive=[("name", "uuid", "names"), ("name", "filter"), ("uuid", "filter")],
        supports_check_mode=True,
    )
    _pipeline.run(module, block_job_info)


if __name__ == "__main__":
    main()
