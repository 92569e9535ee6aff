#!/usr/bin/python

# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: checkpoint
short_description: Create or delete a checkpoint, from which incremental backups start
version_added: 0.1.0
author: Contributors to livestorage.libvirt (@livestorage)
description:
  - A checkpoint is a moment from which on libvirt and QEMU note, in a bitmap in the image of each disk, what the guest writes. A later backup
    copies only that, see M(livestorage.libvirt.block_backup).
  - It is no snapshot. It keeps no data, and nothing can be reverted to it.
  - It needs a running guest and qcow2 images. M(livestorage.libvirt.datafile_convert) puts a qcow2 layer over a raw image without copying it.
  - A checkpoint that was created together with a full backup, by M(livestorage.libvirt.block_backup), is mostly what one wants. One by itself starts at
    its own moment, of which there is no backup.
  - M(livestorage.libvirt.checkpoint_info) lists them.
options:
  checkpoint_name:
    description:
      - The name of the checkpoint. Letters, digits, hyphens, underscores and dots.
    type: str
    required: true
    version_added: 0.1.0
  state:
    description:
      - V(present) creates it. One of that name with the same disks is left as it is, and one of other disks is refused, as is one whose bitmap is broken.
      - V(absent) deletes it. Its bitmap is merged into that of the checkpoint before it, so that a backup since that one misses nothing.
    type: str
    choices: [present, absent]
    default: present
    version_added: 0.1.0
  disks:
    description:
      - The disks, by their targets in the guest (V(vda)) or by the paths of their active layers.
      - By default every disk that can have a checkpoint, which is those with a qcow2 image that the guest alone writes to.
    type: list
    elements: str
    version_added: 0.1.0
  description:
    description:
      - A text that libvirt keeps with a new checkpoint. Without it, there is none.
    type: str
    version_added: 0.1.0
  metadata_only:
    description:
      - Let only libvirt forget the checkpoint, with O(state=absent). The bitmaps stay in the images.
      - This is for a guest that is off, whose bitmaps libvirt does not touch, and for a checkpoint whose bitmap is gone.
      - C(qemu-img bitmap --remove) takes such a bitmap away while the guest is off.
    type: bool
    default: false
    version_added: 0.1.0
extends_documentation_fragment:
  - livestorage.libvirt._connection
  - livestorage.libvirt._disk.guest
  - livestorage.libvirt._attributes
  - livestorage.libvirt._attributes.changes
  - livestorage.libvirt._attributes.actiongroup
attributes:
  diff_mode:
    details:
      - The chains before and after, a line for each layer, and a line for each checkpoint.
seealso:
  - module: livestorage.libvirt.checkpoint_info
  - module: livestorage.libvirt.block_backup
  - module: livestorage.libvirt.datafile_convert
"""

EXAMPLES = r"""
- name: Note from now on what the guest writes
  livestorage.libvirt.checkpoint:
    name: vm1
    checkpoint_name: monday

- name: The same for one disk, with a word why
  livestorage.libvirt.checkpoint:
    name: vm1
    checkpoint_name: before-import
    disks: [vdb]
    description: Before the import of the customers' data

- name: Delete the oldest one, once its backup is not needed any more
  livestorage.libvirt.checkpoint:
    name: vm1
    checkpoint_name: monday
    state: absent

- name: Let libvirt forget the checkpoint of a guest that is off
  livestorage.libvirt.checkpoint:
    name: vm1
    checkpoint_name: monday
    state: absent
    metadata_only: true
"""

RETURN = r"""
checkpoint:
  description: The checkpoint that exists, or would. With O(state=absent) the one that was deleted. V(null) where there is none.
  type: dict
  returned: always
  contains:
    name:
      description: Its name.
      type: str
      sample: monday
    parent:
      description: The checkpoint before it. V(null) for the first one.
      type: str
      sample: sunday
    created:
      description: When it was created, in seconds of Unix time. V(null) for one that is created by this task.
      type: int
      sample: 1795219200
    disks:
      description: Its bitmaps.
      type: list
      elements: dict
      contains:
        disk:
          description: The target of the disk in the guest.
          type: str
          sample: vda
        bitmap:
          description: The name of the bitmap in the image.
          type: str
          sample: monday
        size:
          description: The bytes that were written since, in whole clusters. V(null) where that is not known, as of a guest that is off.
          type: int
          sample: 1048576
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
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import checkpoint


def main():
    module = AnsibleModule(
        argument_spec=dict(
            _arguments.CONNECTION,
            **_arguments.GUEST,
            checkpoint_name={"type": "str", "required": True},
            state={"type": "str", "default": "present", "choices": ["present", "absent"]},
            disks={"type": "list", "elements": "str"},
            description={"type": "str"},
            metadata_only={"type": "bool", "default": False},
        ),
        supports_check_mode=True,
        **_arguments.GUEST_RULES,
    )
    _pipeline.run(module, checkpoint)


if __name__ == "__main__":
    main()
