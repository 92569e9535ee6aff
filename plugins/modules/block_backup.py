#!/usr/bin/python

# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: block_backup
short_description: Back up the disks of a running guest, full or since a checkpoint
version_added: 0.1.0
author: Contributors to livestorage.libvirt (@livestorage)
description:
  - Backs up several disks of a guest as they are at one moment, while the guest goes on. Either all that they hold, or only what was written since
    a checkpoint.
  - With O(mode=push) QEMU writes the disks to files or block devices. With O(mode=pull) it serves them read-only over NBD, and a backup tool fetches what
    it wants.
  - All is checked before anything starts. That is the kind of disk, other jobs, the targets and who uses them, the checkpoint and its bitmaps, and the free
    space. No file that exists is ever overwritten. What a block device holds is overwritten.
  - A push that fails leaves nothing. Its targets are removed, and the checkpoint that was created with it is deleted, which loses nothing, as its bitmap is
    merged into that of the one before.
  - A push that runs already with the same options is adopted, whoever started it. While it runs, a note in the guest's live metadata says what it created.
  - A push is taken to be done already, and nothing is changed, if its O(checkpoint) exists with the same disks and every target is an image as asked for.
    Without O(checkpoint), targets that exist are refused.
  - libvirt does one backup of a guest at a time, and lets other work on its storage wait meanwhile.
  - libvirt writes the guest's own image into the header of an incremental backup, as what is below it. That is wrong as soon as the guest writes, so that
    this module replaces it by O(disks[].backing), or takes it away.
  - The file systems of the guest are not frozen. A backup is like a disk after a loss of power.
options:
  state:
    description:
      - V(present) makes the backup, or starts its export.
      - V(absent) ends the backup that runs, in whichever mode. A push leaves nothing, and the scratch files of a pull are removed. Without one nothing is
        done. With O(disks), a backup of other disks or to other targets is left alone, and the module fails.
    type: str
    choices: [present, absent]
    default: present
    version_added: 0.1.0
  mode:
    description:
      - V(push) lets QEMU write to the targets. The module waits for it, see O(wait).
      - V(pull) starts the export and returns where it is. It runs until O(state=absent), or until the guest stops.
    type: str
    choices: [push, pull]
    default: push
    version_added: 0.1.0
  disks:
    description:
      - The disks that are backed up, all as they are at the same moment. Needed if O(state=present).
    type: list
    elements: dict
    version_added: 0.1.0
    suboptions:
      disk:
        description:
          - The disk, by its target in the guest (V(vda)) or by the path of its active layer.
        type: str
        required: true
        version_added: 0.1.0
      path:
        description:
          - The absolute path of the target on the hypervisor. Needed if O(mode=push).
        type: str
        version_added: 0.1.0
      type:
        description:
          - What the target is. A file must not exist, a block device must.
        type: str
        choices: [file, block]
        default: file
        version_added: 0.1.0
      format:
        description:
          - The format of the target. An incremental backup has to be V(qcow2), as a raw image does not tell what it lacks.
          - A block device has to be just as large as the disk for V(raw).
        type: str
        choices: [qcow2, raw]
        default: qcow2
        version_added: 0.1.0
      backing:
        description:
          - The absolute path of the earlier backup of that disk, which is written into the header of an incremental one. Then the newest one shows the
            whole disk. By default the header names nothing, and the backup alone shows only what was written since.
        type: str
        version_added: 0.1.0
      backing_format:
        description:
          - The format of O(disks[].backing). Needed if that is given.
        type: str
        choices: [qcow2, raw]
        version_added: 0.1.0
      export:
        description:
          - The name of the export with O(mode=pull). By default the target of the disk.
        type: str
        version_added: 0.1.0
  since:
    description:
      - The checkpoint since which the backup is. It has to have a valid bitmap on each of the disks. Without it, the backup is a full one.
    type: str
    version_added: 0.1.0
  checkpoint:
    description:
      - The name of a new checkpoint, which is created at the very moment of the backup. The next backup can be based on it. Without it, none is created.
    type: str
    version_added: 0.1.0
  server:
    description:
      - Where the disks are served. Needed if O(mode=pull). Either a socket or a host.
    type: dict
    version_added: 0.1.0
    suboptions:
      socket:
        description:
          - The absolute path of a Unix socket, which must not exist. Without it, O(server.host) says where.
        type: str
        version_added: 0.1.0
      host:
        description:
          - A loopback address of the hypervisor, such as V(127.0.0.1). Without it, O(server.socket) says where.
          - Others are refused, since whoever reaches the port reads the whole disk. Use a tunnel.
        type: str
        version_added: 0.1.0
      port:
        description:
          - The TCP port. By default 10809.
        type: int
        version_added: 0.1.0
  scratch_dir:
    description:
      - The directory for the scratch files of a pull, one for each disk, which libvirt creates and removes. They hold what the guest overwrites meanwhile.
      - Needed if O(mode=pull) and O(state=present).
    type: str
    version_added: 0.1.0
extends_documentation_fragment:
  - livestorage.libvirt._connection
  - livestorage.libvirt._disk.guest
  - livestorage.libvirt._wait
  - livestorage.libvirt._wait.watched
  - livestorage.libvirt._attributes
  - livestorage.libvirt._attributes.changes
  - livestorage.libvirt._attributes.actiongroup
attributes:
  diff_mode:
    details:
      - The chains before and after, a line for each layer, and a line for each checkpoint and for the backup.
  idempotent:
    support: partial
    details:
      - A push without O(checkpoint) is refused when its targets exist.
seealso:
  - module: livestorage.libvirt.checkpoint
  - module: livestorage.libvirt.checkpoint_info
  - module: livestorage.libvirt.datafile_convert
  - module: livestorage.libvirt.block_job_info
"""

EXAMPLES = r"""
- name: A full backup of both disks, and the checkpoint for the next one
  livestorage.libvirt.block_backup:
    name: vm1
    disks:
      - disk: vda
        path: /backup/vm1-vda-monday.qcow2
      - disk: vdb
        path: /backup/vm1-vdb-monday.qcow2
    checkpoint: monday

- name: What was written since then, on top of it
  livestorage.libvirt.block_backup:
    name: vm1
    disks:
      - disk: vda
        path: /backup/vm1-vda-tuesday.qcow2
        backing: /backup/vm1-vda-monday.qcow2
        backing_format: qcow2
      - disk: vdb
        path: /backup/vm1-vdb-tuesday.qcow2
        backing: /backup/vm1-vdb-monday.qcow2
        backing_format: qcow2
    since: monday
    checkpoint: tuesday

- name: A raw copy to a logical volume
  livestorage.libvirt.block_backup:
    name: vm1
    disks:
      - disk: vda
        path: /dev/vg0/vm1-copy
        type: block
        format: raw

- name: Serve what was written since tuesday to a backup tool
  livestorage.libvirt.block_backup:
    name: vm1
    mode: pull
    disks:
      - disk: vda
    since: tuesday
    checkpoint: wednesday
    server:
      socket: /run/backup-vm1.sock
    scratch_dir: /var/tmp
  register: export

- name: Fetch it
  ansible.builtin.command: my-backup-tool {{ export.backup.disks[0].uri }} {{ export.backup.disks[0].bitmap }}

- name: End the export
  livestorage.libvirt.block_backup:
    name: vm1
    mode: pull
    state: absent
"""

RETURN = r"""
backup:
  description: The backup as it was made, or is to be, or runs. V(null) with O(state=absent), and where nothing was planned.
  type: dict
  returned: always
  contains:
    mode:
      description: V(push) or V(pull).
      type: str
      sample: push
    since:
      description: The checkpoint that it is based on. V(null) for a full one.
      type: str
      sample: monday
    checkpoint:
      description: The checkpoint that was created with it. V(null) without one.
      type: str
      sample: tuesday
    bytes:
      description: The bytes that QEMU copied, of all disks. V(null) before it is done, and where libvirt has forgotten it.
      type: int
      sample: 1048576
    server:
      description: Where a pull is served. V(null) for a push.
      type: dict
      contains:
        socket:
          description: The path of the Unix socket, or V(null).
          type: str
          sample: /run/backup-vm1.sock
        host:
          description: The address, or V(null).
          type: str
          sample: 127.0.0.1
        port:
          description: The TCP port, or V(null).
          type: int
          sample: 10809
    disks:
      description: The disks of it.
      type: list
      elements: dict
      contains:
        disk:
          description: The target of the disk in the guest.
          type: str
          sample: vda
        path:
          description: The target of a push.
          type: str
          sample: /backup/vm1-vda-tuesday.qcow2
        type:
          description: V(file) or V(block). V(null) for a pull.
          type: str
          sample: file
        format:
          description: The format of the target. V(null) for a pull.
          type: str
          sample: qcow2
        virtual_size:
          description: What the target shows, in bytes, by its header. V(null) while there is none.
          type: int
          sample: 67108864
        actual_size:
          description: What the storage holds of it, in bytes. V(null) while there is none.
          type: int
          sample: 1376256
        backing:
          description: The earlier backup that an incremental one stands on, by its header, or V(null).
          type: str
          sample: /backup/vm1-vda-monday.qcow2
        backing_format:
          description: The format of that.
          type: str
          sample: qcow2
        scratch:
          description: The scratch file of a pull.
          type: str
          sample: /var/tmp/vm1-vda.scratch
        export:
          description: The name of the export of a pull.
          type: str
          sample: vda
        bitmap:
          description:
            - The bitmap of an incremental pull. A client asks the export for the context C(qemu:dirty-bitmap:) and this name, which tells what was written.
          type: str
          sample: backup-vda
        uri:
          description: Where an NBD client finds the export.
          type: str
          sample: nbd+unix:///vda?socket=/run/backup-vm1.sock
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
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import block_backup

DISKS = {
    "disk": {"type": "str", "required": True},
    "path": {"type": "str"},
    "type": {"type": "str", "default": "file", "choices": ["file", "block"]},
    "format": {"type": "str", "default": "qcow2", "choices": ["qcow2", "raw"]},
    "backing": {"type": "str"},
    "backing_format": {"type": "str", "choices": ["qcow2", "raw"]},
    "export": {"type": "str"},
}
SERVER = {"socket": {"type": "str"}, "host": {"type": "str"}, "port": {"type": "int"}}


def main():
    module = AnsibleModule(
        argument_spec=dict(
            _arguments.CONNECTION,
            **_arguments.GUEST,
            **_arguments.WAIT,
            **_arguments.WATCHED,
            state={"type": "str", "default": "present", "choices": ["present", "absent"]},
            mode={"type": "str", "default": "push", "choices": ["push", "pull"]},
            disks={"type": "list", "elements": "dict", "options": DISKS},
            since={"type": "str"},
            checkpoint={"type": "str"},
            server={"type": "dict", "options": SERVER},
            scratch_dir={"type": "str"},
        ),
        supports_check_mode=True,
        **_arguments.GUEST_RULES,
    )
    _pipeline.run(module, block_backup)


if __name__ == "__main__":
    main()
