#!/usr/bin/python

# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: block_job
short_description: End, pivot or slow down the block job of a running guest's disk
version_added: 0.1.0
author: Contributors to livestorage.libvirt (@livestorage)
description:
  - Works on the job that runs on a disk, whoever started it and of any kind, such as a copy, a pull, a commit or a backup.
  - The chain after it is predicted, and verified by a fresh look.
options:
  state:
    description:
      - V(absent) ends the job without its work. A copy and an active commit leave the disk where it is. A backup is ended on all disks of the
        guest, and libvirt removes what it has written. Without a job nothing is done.
      - V(pivoted) waits until a copy or an active commit is ready, lets the guest go on in its destination, and lets the definition of the next start
        have the same chain. Without a job nothing is done.
      - V(throttled) limits the speed of the job to O(bandwidth). Without a job the module fails.
    type: str
    choices: [absent, pivoted, throttled]
    required: true
    version_added: 0.1.0
  bandwidth:
    description:
      - The highest speed of the job, as a size per second such as V(100MiB). V(KiB) and V(K) are 1024 bytes, V(KB) is 1000.
      - V(0) means no limit. Needed if O(state=throttled), and refused otherwise.
    type: str
    version_added: 0.1.0
extends_documentation_fragment:
  - livestorage.libvirt._connection
  - livestorage.libvirt._disk
  - livestorage.libvirt._disk.guest
  - livestorage.libvirt._wait
  - livestorage.libvirt._wait.watched
  - livestorage.libvirt._attributes
  - livestorage.libvirt._attributes.changes
  - livestorage.libvirt._attributes.actiongroup
seealso:
  - module: livestorage.libvirt.block_job_info
  - module: livestorage.libvirt.block_copy
"""

EXAMPLES = r"""
- name: Slow down whatever runs on the disk during office hours
  livestorage.libvirt.block_job:
    name: vm1
    disk: vda
    state: throttled
    bandwidth: 20MiB

- name: Pivot to a mirror that was prepared before
  livestorage.libvirt.block_job:
    name: vm1
    disk: vda
    state: pivoted

- name: End a copy, and stay on the source
  livestorage.libvirt.block_job:
    name: vm1
    disk: vda
    state: absent
"""

RETURN = r"""
domains:
  description: The guest. After a real run it is as it was read back, in check mode as it would be, and after a failure as it stands.
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
    active:
      description: Whether the guest has a QEMU process.
      type: bool
      sample: true
    persistent:
      description: Whether libvirt keeps a definition for the next start.
      type: bool
      sample: true
    state:
      description: V(running), V(paused), V(shutdown) or V(crashed).
      type: str
      sample: running
    disks:
      description: The disks of the guest, cdroms and floppies included.
      type: list
      elements: dict
      contains:
        disk:
          description: The target of the disk in the guest.
          type: str
          sample: vda
        device:
          description: V(disk), V(cdrom), V(floppy) or V(lun).
          type: str
          sample: disk
        bus:
          description: The bus of the disk.
          type: str
          sample: virtio
        readonly:
          description: Whether the disk is read-only for the guest.
          type: bool
          sample: false
        shareable:
          description: Whether the disk may be shared between guests.
          type: bool
          sample: false
        transient:
          description: Whether changes are dropped when the guest stops.
          type: bool
          sample: false
        chain:
          description: The layers of the disk, active layer first. Empty for an empty drive.
          type: list
          elements: dict
          returned: always
          contains:
            depth:
              description: The position in the chain, V(0) is the active layer.
              type: int
              sample: 1
            index:
              description: libvirt's identity of the layer, which is not its depth. V(null) outside a running guest.
              type: int
              sample: 2
            address:
              description: How libvirt addresses the layer. V(null) where it has no index.
              type: str
              sample: vda[2]
            parent:
              description: The depth of the layer that this one backs, V(null) for the active layer.
              type: int
              sample: 0
            type:
              description: libvirt's type of the source, such as V(file), V(block), V(network) or V(volume).
              type: str
              sample: file
            protocol:
              description: The protocol of a source of type V(network).
              type: str
              sample: nbd
            path:
              description: The path on the hypervisor, for sources that have one.
              type: str
              sample: /var/lib/libvirt/images/template.qcow2
            name:
              description: The name on the server for type V(network), C(POOL/VOLUME) for type V(volume).
              type: str
              sample: exports/disk1
            host:
              description: The servers of a source of type V(network), as libvirt writes them.
              type: list
              elements: dict
              sample: [{"name": "127.0.0.1", "port": "10809"}]
            format:
              description: The image format, V(null) where libvirt does not say it.
              type: str
              sample: qcow2
            data_store:
              description: The data file of a qcow2 layer that keeps its data in one of its own, V(null) where there is none or nobody has looked.
              type: dict
              contains:
                type:
                  description: libvirt's type of the source.
                  type: str
                  sample: file
                path:
                  description: The path on the hypervisor. V(null) for sources that have none.
                  type: str
                  sample: /srv/disk1.raw
                name:
                  description: The name on the server, or what the header says where that is no path. V(null) where there is a path.
                  type: str
                protocol:
                  description: The protocol of a source of type V(network), V(null) for any other.
                  type: str
                format:
                  description: The image format, V(null) where libvirt does not say it.
                  type: str
                  sample: raw
                index:
                  description: libvirt's identity of the data file. V(null) where libvirt gave none.
                  type: int
                  sample: 3
                raw:
                  description:
                    - Whether the data file by itself is what the guest sees (C(data_file_raw)), V(null) where
                      the header was not read.
                  type: bool
                  sample: true
                relative:
                  description:
                    - Whether the header names the data file without its directory. Its path is shown in that of the image then, where libvirt 10.10 looks for
                      it, but QEMU by itself looks in its own.
                  type: bool
                  sample: false
                known_from:
                  description: V(xml) where libvirt names the data file, V(header) where only the header of its image does, V(both) where they agree.
                  type: str
                  sample: both
            terminated:
              description:
                - Whether the chain ends at this layer. V(false) where another layer follows.
                - V(null) means unknown. libvirt's XML has no terminator there, so only the image's header could tell.
              type: bool
              sample: false
            readonly:
              description: Whether the guest's writes can never reach this layer. Backing layers always are.
              type: bool
              sample: true
        job:
          description: The block job on this disk, V(null) where there is none.
          type: dict
          contains:
            type:
              description: The kind of job, V(pull), V(copy), V(commit), V(active-commit) or V(backup).
              type: str
              sample: pull
            cur:
              description: Bytes done.
              type: int
              sample: 33554432
            end:
              description: Bytes to do. It may grow, and QEMU versions count sparse images differently.
              type: int
              sample: 67108864
            percent:
              description: Bytes done of the bytes to do. 100 does not mean that the job is done or ready.
              type: float
              sample: 50.0
            ready:
              description: Whether a copy or an active commit can be pivoted.
              type: bool
              sample: false
            bandwidth:
              description: The speed limit in bytes per second, V(0) is none.
              type: int
              sample: 0
        mirror:
          description: The other side of a copy or of an active commit, V(null) where there is none.
          type: dict
          contains:
            job:
              description: V(copy) or V(active-commit).
              type: str
              sample: copy
            ready:
              description: V(yes) when it can be pivoted, V(abort) or V(pivot) while it ends, V(null) while it copies.
              type: str
              sample: "yes"
            chain:
              description: The layers of the mirror, with the same keys as the layers of the disk.
              type: list
              elements: dict
steps:
  description: The plan, step by step.
  type: list
  elements: dict
  returned: always
  contains:
    action:
      description: The word for the step, such as V(snapshot), V(pull), V(commit), V(copy), V(wait), V(pivot), V(define) or V(delete).
      type: str
      sample: pull
    disk:
      description: The disk that the step is about, V(null) for a step over several.
      type: str
      sample: vda
    does:
      description: The step in words.
      type: str
      sample: pull vda down to vda[3]
    fence:
      description: Whether nothing can be undone any more once this step is done.
      type: bool
      sample: false
    begun:
      description: Whether the step was begun. Always V(false) in check mode.
      type: bool
      sample: true
spoils:
  description: Layers whose content is harmed for anyone else as soon as the job has started, even if it is undone.
  type: list
  elements: str
  returned: always
  sample: []
job:
  description: The job that still runs when the module ends, or the last that was seen of one that failed. V(null) where there is none.
  type: dict
  returned: always
  contains:
    type:
      description: The kind of job, V(pull), V(copy), V(commit), V(active-commit) or V(backup).
      type: str
      sample: pull
    cur:
      description: Bytes done.
      type: int
      sample: 33554432
    end:
      description: Bytes to do. It may grow, and QEMU versions count sparse images differently.
      type: int
      sample: 67108864
    percent:
      description: Bytes done of the bytes to do. 100 does not mean that the job is done or ready.
      type: float
      sample: 50.0
    ready:
      description: Whether a copy or an active commit can be pivoted.
      type: bool
      sample: false
    bandwidth:
      description: The speed limit in bytes per second, V(0) is none.
      type: int
      sample: 0
rolled_back:
  description:
    - After a failure, V(true) when a fresh look showed that the guest is as it was before, and V(false) when it is not.
    - V(null) when nothing was begun, or when the guest could not be looked at.
  type: bool
  returned: always
  sample: null
code:
  description: A stable word for the reason of a failure, such as V(not_in_chain), V(foreign_job), V(timeout) or V(guest_stopped).
  type: str
  returned: failure
  sample: not_in_chain
diff:
  description: The chains before and after, a line for each layer.
  type: dict
  returned: always
  contains:
    before:
      description: The chains before.
      type: str
    after:
      description: The chains after, in check mode as predicted.
      type: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.livestorage.libvirt.plugins.module_utils import _arguments, _pipeline
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import block_job


def main():
    module = AnsibleModule(
        argument_spec=dict(
            _arguments.CONNECTION,
            **_arguments.GUEST,
            **_arguments.DISK,
            **_arguments.BANDWIDTH,
            **_arguments.WAIT,
            **_arguments.WATCHED,
            state={"type": "str", "required": True, "choices": ["absent", "pivoted", "throttled"]},
        ),
        supports_check_mode=True,
        **_arguments.GUEST_RULES,
    )
    _pipeline.run(module, block_job)


if __name__ == "__main__":
    main()
