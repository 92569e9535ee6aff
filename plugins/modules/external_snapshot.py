#!/usr/bin/python

# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: external_snapshot
short_description: Take external snapshots of a guest, delete them in either direction, and go back to them
version_added: 0.1.0
author: Contributors to livestorage.libvirt (@livestorage)
description:
  - With O(state=present), takes an external snapshot. Each disk gets a new active layer (the overlay), and the layer
    that was active until now becomes its backing file. All disks of a running guest are done in one transaction of QEMU, so that the lower
    layers hold one moment of the guest.
  - With O(state=absent), deletes one. On each disk the overlay is merged into the layer below it (backward), or what that layer holds
    is pulled into the overlay (forward). The disks are done one after the other, each in its own direction, and RV(disk_results) tells of
    each. What is done stays done if a later disk fails, and the next run
    goes on from there. At last libvirt's metadata of the snapshot goes, and that of the other snapshots names the layers that are there
    then, so that libvirt can still delete them and revert to them.
  - A deletion writes into the layers below its overlays from its first moment on. Once it was begun there is no way back to the snapshot, which
    is remembered, and O(state=reverted) refuses it.
  - With O(state=reverted), goes back to one. Each of its disks gets a new overlay on the layer that holds the moment, which is
    never written to, so that one can go back again. Below libvirt 9.9 the guest has to be off. From 9.9 on libvirt itself reverts one that
    runs, if it keeps the snapshot's metadata, and restarts it.
  - If a snapshot cannot be taken, the guest is as it was before. If a fresh look contradicts the plan, the overlays are merged back.
  - Guests that are off, and O(images) that belong to no guest, get their overlays by qemu-img, with the owner, group and mode of the layer
    below, and their merges as with M(livestorage.libvirt.block_commit) and M(livestorage.libvirt.block_rebase).
options:
  state:
    description:
      - V(present) takes the snapshot, V(absent) deletes it, V(reverted) goes back to it.
    type: str
    choices: [present, absent, reverted]
    default: present
    version_added: 0.1.0
  snapshot_name:
    description:
      - The name of the snapshot. Needed if O(metadata) is set or a disk has no path, and for O(state=reverted).
      - For O(state=absent) it is the snapshot with all its disks. Without it, O(disks) name the layers.
    type: str
    version_added: 0.1.0
  disks:
    description:
      - For O(state=present) the disks to snapshot. By default every writable disk. Either all of them are on their overlay already (nothing
        is done) or none is. Anything between is refused, because a moment that has passed cannot be completed.
      - For O(state=absent) the directions of single disks. Without O(snapshot_name), the overlays to merge, whoever made them.
    type: list
    elements: dict
    version_added: 0.1.0
    suboptions:
      disk:
        description:
          - The disk, by its target in the guest (V(vda)) or by the path of its active layer. With O(images), the path of the image.
        type: str
        required: true
        version_added: 0.1.0
      path:
        description:
          - The absolute path of the overlay. Its directory has to exist, and the file must not, unless O(reuse_existing) is set.
            An empty file counts as absent.
          - By default the path of the active layer with its suffix replaced by O(snapshot_name), as libvirt does it.
        type: str
        version_added: 0.1.0
      type:
        description:
          - What the overlay is in. By default V(network) where there is a protocol, else V(file).
          - A V(block) device is formatted by QEMU, and what was on it is lost. One that the host itself uses is refused.
          - A V(network) export is formatted, too, unless O(reuse_existing) is set. It needs a running guest.
        type: str
        choices: [file, block, network]
        version_added: 0.1.0
      protocol:
        description:
          - The protocol of an overlay on the network. Needed if the type is V(network).
        type: str
        choices: [nbd, iscsi, rbd, nfs, gluster, ssh]
        version_added: 0.1.0
      name:
        description:
          - The name of the export or image on the server. By default the server's default export.
        type: str
        version_added: 0.1.0
      host:
        description:
          - The servers of an overlay on the network. Needed if the protocol is V(nbd), exactly one then.
        type: list
        elements: dict
        version_added: 0.1.0
        suboptions:
          name:
            description:
              - The name or address of the server. Needed if there is no socket.
            type: str
            version_added: 0.1.0
          port:
            description:
              - The port. By default 10809 for V(nbd), else that of libvirt.
            type: int
            version_added: 0.1.0
          socket:
            description:
              - The absolute path of a UNIX socket. Needed if there is no name.
            type: str
            version_added: 0.1.0
      format:
        description:
          - The format of the overlay.
        type: str
        choices: [qcow2, qed]
        default: qcow2
        version_added: 0.1.0
      on_delete:
        description:
          - How the deletion of this snapshot shall merge this disk. By default as O(on_delete) says.
        type: str
        choices: [forward, backward]
        version_added: 0.1.0
      merge:
        description:
          - For O(state=absent), how this disk is merged. By default as O(merge) says.
        type: str
        choices: [forward, backward]
        version_added: 0.1.0
      layer:
        description:
          - For O(state=absent), the overlay by its path or by libvirt's address (V(vda[2])). Needed if there is no O(snapshot_name).
          - An overlay of a snapshot with metadata is refused here, since its snapshot has to be deleted as a whole. One that is not in the
            chain was merged before.
        type: str
        version_added: 0.1.0
  metadata:
    description:
      - Whether libvirt keeps metadata of the snapshot, so that it can be listed and deleted there.
      - Set it to V(false) for an overlay that is part of other work, such as moving a disk. If it has a O(snapshot_name), a note in the
        guest's own metadata remembers it, so that it can be deleted by that name.
    type: bool
    default: true
    version_added: 0.1.0
  reuse_existing:
    description:
      - The overlays were prepared. Each has to be an image of the stated format and of the disk's size, whose header names the
        disk's active layer as backing file. What is on the network is not looked at.
    type: bool
    default: false
    version_added: 0.1.0
  description:
    description:
      - A text that libvirt keeps with the snapshot. By default none.
    type: str
    version_added: 0.1.0
  memory:
    description:
      - The absolute path of a file that the memory of the running guest is written to, while it goes on. By default only the disks are
        snapshotted. The time for it is O(wait_timeout).
      - An existing file is refused, since libvirt would overwrite it. It needs O(metadata), and goes without O(quiesce).
    type: str
    version_added: 0.1.0
  quiesce:
    description:
      - Let the guest agent freeze the file systems of the running guest before the snapshot, and thaw them after it, whatever becomes of
        it. A guest without a connected agent is refused. Of one that is off nothing has to be frozen.
    type: bool
    default: false
    version_added: 0.1.0
  quiesce_fallback:
    description:
      - Take the snapshot without a freeze where that is not possible, with a warning. RV(quiesced) tells.
    type: bool
    default: false
    version_added: 0.1.0
  quiesce_timeout:
    description:
      - Seconds that the guest agent is given to freeze, and to thaw.
    type: int
    default: 30
    version_added: 0.1.0
  on_delete:
    description:
      - How the deletion of this snapshot shall merge its disks, which is remembered in the guest's own metadata. By default nothing is
        remembered, and the deletion merges backward.
    type: str
    choices: [forward, backward]
    version_added: 0.1.0
  merge:
    description:
      - For O(state=absent), how each disk is merged. By default as its snapshot remembers (O(on_delete)), or else V(backward).
      - V(backward) writes the overlay into the layer below it, V(forward) pulls that layer into the overlay. Forward into an overlay that
        has others above it only works while the guest is off, see O(livestorage.libvirt.block_rebase#module:top).
    type: str
    choices: [forward, backward]
    version_added: 0.1.0
  resize_base:
    description:
      - For O(state=absent), let a layer that is smaller than the overlay grow when the overlay is merged into it. It is refused otherwise.
    type: bool
    default: false
    version_added: 0.1.0
  delete_files:
    description:
      - Remove the files that leave the chains, once the result is verified. For O(state=absent) those that were merged into others, and that
        of the memory. For O(state=reverted) the overlays that the guest has left.
      - Refused before anything starts where a disk of any guest or another snapshot needs one of them.
      - The data file of a layer that has one is removed after it, unless some disk still needs that file or it is no regular file.
        The step of the layer says so then.
    type: bool
    default: false
    version_added: 0.1.0
attributes:
  idempotent:
    support: partial
    details:
      - A guest that runs is reverted each time, since it has written in between.
      - A forward merge of a layer that is named by O(disks[].layer) merges one layer more each time.
extends_documentation_fragment:
  - livestorage.libvirt._connection
  - livestorage.libvirt._disk.guest_or_images
  - livestorage.libvirt._wait
  - livestorage.libvirt._wait.bandwidth
  - livestorage.libvirt._attributes
  - livestorage.libvirt._attributes.changes
  - livestorage.libvirt._attributes.actiongroup
seealso:
  - module: livestorage.libvirt.external_snapshot_info
  - module: livestorage.libvirt.block_commit
  - module: livestorage.libvirt.block_rebase
"""

EXAMPLES = r"""
- name: Snapshot all writable disks of a guest at a moment when its file systems are at rest
  livestorage.libvirt.external_snapshot:
    name: vm1
    snapshot_name: before-patch
    quiesce: true

- name: Keep what was written since then, and remove the overlays
  livestorage.libvirt.external_snapshot:
    name: vm1
    snapshot_name: before-patch
    state: absent
    delete_files: true

- name: Take the guest, which is off, back to that moment
  livestorage.libvirt.external_snapshot:
    name: vm1
    snapshot_name: before-patch
    state: reverted

- name: Let a disk go on in a new file on faster storage
  livestorage.libvirt.external_snapshot:
    name: vm1
    metadata: false
    disks:
      - disk: vda
        path: /srv/fast/vm1.qcow2

- name: Merge each disk in its own direction
  livestorage.libvirt.external_snapshot:
    name: vm1
    snapshot_name: nightly
    state: absent
    disks:
      - disk: vda
        merge: forward
      - disk: vdb
        merge: backward

- name: Merge an overlay that somebody else made
  livestorage.libvirt.external_snapshot:
    name: vm1
    state: absent
    disks:
      - disk: vda
        layer: /srv/images/vm1.leftover
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
images:
  description: The O(images), each with the chain that it begins, or that took its place. Empty where a guest was named.
  type: list
  elements: dict
  returned: always
  contains:
    path:
      description: The path as it was given.
      type: str
      sample: /srv/build/template-new.qcow2
    chain:
      description: The layers, with the same keys as the layers of a guest's disk.
      type: list
      elements: dict
disk_results:
  description: How far each disk is that this run works on, also after a failure.
  type: list
  elements: dict
  returned: always
  contains:
    disk:
      description: The target of the disk in the guest, or the path of the image.
      type: str
      sample: vda
    result:
      description:
        - V(done) is as planned, V(as_before) is as it was before, V(other) is neither of them. In check mode V(done) is what would be.
      type: str
      sample: done
    msg:
      description: What is not as planned, empty where all is.
      type: str
      sample: ""
quiesced:
  description: Whether the file systems of the guest were frozen for the snapshot. V(null) where that was not asked for, or the guest is off.
  type: bool
  returned: always
  sample: true
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
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import external_snapshot


def main():
    direction = {"type": "str", "choices": ["forward", "backward"]}
    host = {"name": {"type": "str"}, "port": {"type": "int"}, "socket": {"type": "str"}}
    overlay = {
        "disk": {"type": "str", "required": True},
        "path": {"type": "str"},
        "type": {"type": "str", "choices": ["file", "block", "network"]},
        "protocol": {"type": "str", "choices": ["nbd", "iscsi", "rbd", "nfs", "gluster", "ssh"]},
        "name": {"type": "str"},
        "host": {"type": "list", "elements": "dict", "options": host},
        "format": {"type": "str", "choices": ["qcow2", "qed"], "default": "qcow2"},
        "on_delete": direction,
        "merge": direction,
        "layer": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec=dict(
            _arguments.CONNECTION,
            **_arguments.GUEST_OR_IMAGES,
            **_arguments.BANDWIDTH,
            **_arguments.WAIT,
            disks={"type": "list", "elements": "dict", "options": overlay},
            snapshot_name={"type": "str"},
            metadata={"type": "bool", "default": True},
            reuse_existing={"type": "bool", "default": False},
            description={"type": "str"},
            memory={"type": "str"},
            quiesce={"type": "bool", "default": False},
            quiesce_fallback={"type": "bool", "default": False},
            quiesce_timeout={"type": "int", "default": 30},
            on_delete=direction,
            merge=direction,
            resize_base={"type": "bool", "default": False},
            delete_files={"type": "bool", "default": False},
            state={"type": "str", "choices": ["present", "absent", "reverted"], "default": "present"},
        ),
        supports_check_mode=True,
        required_by=_arguments.IMAGES_RULES,
        **_arguments.GUEST_OR_IMAGES_RULES,
    )
    _pipeline.run(module, external_snapshot)


if __name__ == "__main__":
    main()
