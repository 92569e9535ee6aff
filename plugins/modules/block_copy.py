#!/usr/bin/python

# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: block_copy
short_description: Copy a running guest's disk to another place and pivot to it
version_added: 0.1.0
author: Contributors to livestorage.libvirt (@livestorage)
description:
  - Mirrors a disk to O(dest) while the guest runs, and lets the guest go on there. The format and the kind of storage may change
    (file, block device, network), and the chain may be kept, replaced or collapsed.
  - All is checked before anything starts. That is the kind of disk, other jobs, who uses the destination, its size and format, the free space,
    and what the versions of libvirt and QEMU can do.
  - The end is proven by libvirt's events and by the chain read again. The definition of the next start is made to have the same chain.
  - A copy to the same destination that runs already is adopted, whoever started it. A copy to another destination is left alone, and the module fails.
  - While the copy runs, a note in the guest's live metadata says which one it is, when it began and what it created.
  - If the daemon dies during the pivot, libvirt and QEMU may disagree about the image that the guest writes to. The module asks
    QEMU itself, lets the next start have that image, fails with the code V(stale_pivot), and says what leads out. See the guide.
options:
  dest:
    description:
      - Where the disk is to be copied to. Exactly one of a path, a volume of a storage pool, and a network source.
      - Needed if O(state) is not V(absent).
    type: dict
    version_added: 0.1.0
    suboptions:
      path:
        description:
          - The absolute path of a file or a block device on the hypervisor. Without it, a volume or a network source says where.
        type: str
        version_added: 0.1.0
      type:
        description:
          - What the destination is. By default it is V(file) for a path and V(network) with a O(dest.protocol).
        type: str
        choices: [file, block, network]
        version_added: 0.1.0
      pool:
        description:
          - The storage pool. Needed if O(dest.volume) is given.
        type: str
        version_added: 0.1.0
      volume:
        description:
          - The name of a storage volume. Without it, a path or a network source says where.
          - In a pool of directories it need not exist. In others it has to.
          - A volume in a file that exists needs O(reuse_existing).
        type: str
        version_added: 0.1.0
      protocol:
        description:
          - The protocol of a network source, such as V(nbd). Without it, a path or a volume says where.
          - What the server exports now is overwritten.
        type: str
        version_added: 0.1.0
      name:
        description:
          - The name of the image on the server, such as the export of an NBD server. By default it is the server's default export.
        type: str
        version_added: 0.1.0
      host:
        description:
          - The servers of a network source. Needed if O(dest.protocol=nbd), which takes exactly one.
        type: list
        elements: dict
        version_added: 0.1.0
        suboptions:
          name:
            description:
              - The name or address of the server. Exactly one of it and O(dest.host[].socket).
            type: str
            version_added: 0.1.0
          port:
            description:
              - Its port. By default it is 10809 for NBD.
            type: int
            version_added: 0.1.0
          socket:
            description:
              - The absolute path of a UNIX socket. Exactly one of it and O(dest.host[].name).
            type: str
            version_added: 0.1.0
      format:
        description:
          - The format of the copy. By default it is the format that the disk has.
          - Needed with O(reuse_existing), since a format that is guessed from the image would trust what was written there.
        type: str
        choices: [qcow2, raw]
        version_added: 0.1.0
      cluster_size:
        description:
          - The cluster size of a new qcow2 volume, such as V(128KiB). Only for a volume that is created (libvirt 7.4).
        type: str
        version_added: 0.1.0
      extended_l2:
        description:
          - Whether a new qcow2 volume has subclusters. Only for a volume that is created (libvirt 8.0).
        type: bool
        version_added: 0.1.0
      lazy_refcounts:
        description:
          - Whether a new qcow2 volume has lazy reference counts. Only for a volume that is created.
        type: bool
        version_added: 0.1.0
  state:
    description:
      - V(pivoted) copies the disk and lets the guest go on in the copy, now and at its next start.
      - V(mirrored) copies the disk and keeps the mirror. The guest stays where it is, and a later run pivots.
      - V(absent) ends a copy. The guest stays where it is, and so does the file of the copy, which is a consistent image if the mirror was ready.
    type: str
    choices: [pivoted, mirrored, absent]
    default: pivoted
    version_added: 0.1.0
  shallow:
    description:
      - Copy only what the active layer holds, and keep the layers below it. By default everything is copied, and the copy stands alone.
    type: bool
    default: false
    version_added: 0.1.0
  backing:
    description:
      - What is to be below a shallow copy. By default it is what is below the active layer now. Needs O(shallow).
      - A layer of the chain, by its path or by libvirt's address (V(vda[2])). The layers between collapse into the copy.
      - Or the absolute path of another image, with O(backing_format), such as one of a parallel chain in another format.
      - The copy is made beforehand to hold what differs from that backing (C(qemu-img rebase)), so that the guest sees what it saw.
        The backing is not written to. With O(reuse_existing) the prepared image is taken as it is.
    type: str
    version_added: 0.1.0
  backing_format:
    description:
      - The format of O(backing). Needed if that is no layer of the chain.
    type: str
    choices: [qcow2, raw]
    version_added: 0.1.0
  reuse_existing:
    description:
      - Copy into an image that was prepared, with its size, options and (if O(shallow)) its backing. Its virtual size has to be that of the disk.
      - A block device and a network source exist anyway. For them this says that the image on them is of that format already.
    type: bool
    default: false
    version_added: 0.1.0
  granularity:
    description:
      - How much is copied at once where the guest has written, as a power of two from 512 bytes to V(64MiB). By default QEMU chooses.
    type: str
    version_added: 0.1.0
  buf_size:
    description:
      - How much may be in flight, such as V(16MiB). By default QEMU chooses.
    type: str
    version_added: 0.1.0
  synchronous_writes:
    description:
      - Complete each write of the guest on both sides, so that the copy always catches up (libvirt 8.0). The guest writes more slowly.
    type: bool
    default: false
    version_added: 0.1.0
  target_zeroed:
    description:
      - Say that the destination reads as zeros already, so that none are written (libvirt 12.2, QEMU 10.1).
    type: bool
    default: false
    version_added: 0.1.0
  stall_window:
    description:
      - Seconds in which the bytes that remain have to become fewer than ever before. If they do not, the guest writes faster than the copy,
        and the module warns. A limited copy is given at least the time for 32 MiB.
    type: int
    default: 60
    version_added: 0.1.0
  converge:
    description:
      - Let QEMU (8.2) complete each write of the guest on both sides from then on, if the copy does not catch up. Without it, or with an older
        QEMU, the module goes on waiting until O(on_timeout).
    type: bool
    default: false
    version_added: 0.1.0
  delete_source:
    description:
      - Remove the file of the layer that was active before, once the pivot is verified. Layers below it stay.
      - It is refused before anything starts if any other disk of any guest uses that file, running or not, or if it is no regular file.
      - The data file of a layer that has one is removed after it, unless some disk still needs that file or it is no regular file.
        The step of the layer says so then.
    type: bool
    default: false
    version_added: 0.1.0
extends_documentation_fragment:
  - livestorage.libvirt._connection
  - livestorage.libvirt._disk
  - livestorage.libvirt._disk.guest
  - livestorage.libvirt._wait
  - livestorage.libvirt._wait.watched
  - livestorage.libvirt._wait.bandwidth
  - livestorage.libvirt._attributes
  - livestorage.libvirt._attributes.changes
  - livestorage.libvirt._attributes.actiongroup
seealso:
  - module: livestorage.libvirt.block_job
  - module: livestorage.libvirt.block_job_info
  - module: livestorage.libvirt.block_rebase
"""

EXAMPLES = r"""
- name: Move a disk to faster storage, and keep the template that it is based on
  livestorage.libvirt.block_copy:
    name: vm1
    disk: vda
    dest:
      path: /srv/fast/vm1.qcow2
    shallow: true

- name: Turn a qcow2 disk into a raw block device, and remove the old file
  livestorage.libvirt.block_copy:
    name: vm1
    disk: vda
    dest:
      path: /dev/vg0/vm1
      type: block
      format: raw
    delete_source: true
    bandwidth: 200MiB

- name: Let all the layers between collapse, and keep the raw base
  livestorage.libvirt.block_copy:
    name: vm1
    disk: vda
    dest:
      path: /srv/fast/vm1.qcow2
      format: qcow2
    shallow: true
    backing: /var/lib/libvirt/images/base.raw

- name: Mirror a disk to an NBD server today
  livestorage.libvirt.block_copy:
    name: vm1
    disk: vda
    dest:
      protocol: nbd
      name: vm1
      host:
        - name: 192.0.2.7
      format: raw
    state: mirrored

- name: Pivot to it tonight
  livestorage.libvirt.block_copy:
    name: vm1
    disk: vda
    dest:
      protocol: nbd
      name: vm1
      host:
        - name: 192.0.2.7
      format: raw
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
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import block_copy

HOST = {"name": {"type": "str"}, "port": {"type": "int"}, "socket": {"type": "str"}}
DEST = {
    "path": {"type": "str"},
    "type": {"type": "str", "choices": ["file", "block", "network"]},
    "pool": {"type": "str"},
    "volume": {"type": "str"},
    "protocol": {"type": "str"},
    "name": {"type": "str"},
    "host": {"type": "list", "elements": "dict", "options": HOST},
    "format": {"type": "str", "choices": ["qcow2", "raw"]},
    "cluster_size": {"type": "str"},
    "extended_l2": {"type": "bool"},
    "lazy_refcounts": {"type": "bool"},
}


def main():
    module = AnsibleModule(
        argument_spec=dict(
            _arguments.CONNECTION,
            **_arguments.GUEST,
            **_arguments.DISK,
            **_arguments.BANDWIDTH,
            **_arguments.WAIT,
            **_arguments.WATCHED,
            dest={"type": "dict", "options": DEST},
            state={"type": "str", "default": "pivoted", "choices": ["pivoted", "mirrored", "absent"]},
            shallow={"type": "bool", "default": False},
            backing={"type": "str"},
            backing_format={"type": "str", "choices": ["qcow2", "raw"]},
            reuse_existing={"type": "bool", "default": False},
            granularity={"type": "str"},
            buf_size={"type": "str"},
            synchronous_writes={"type": "bool", "default": False},
            target_zeroed={"type": "bool", "default": False},
            stall_window={"type": "int", "default": 60},
            converge={"type": "bool", "default": False},
            delete_source={"type": "bool", "default": False},
        ),
        supports_check_mode=True,
        **_arguments.GUEST_RULES,
    )
    _pipeline.run(module, block_copy)


if __name__ == "__main__":
    main()
