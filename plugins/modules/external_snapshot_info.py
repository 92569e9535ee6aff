#!/usr/bin/python

# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: external_snapshot_info
short_description: List the snapshots of guests, and what their deletion would do
version_added: 0.1.0
author: Contributors to livestorage.libvirt (@livestorage)
description:
  - Lists the snapshots of one, several or all guests of a hypervisor as a tree, with the images of each disk, their sizes, and the
    merge that a deletion would do.
  - Says of each snapshot, and of each of its disks, whether M(livestorage.libvirt.external_snapshot) would delete it, and if not, why. The
    answer is that of its own check mode at this moment, in the same words. The same is told of going back to the snapshot.
  - Lists overlays that no snapshot knows, too, in the same way. So is every layer but the last one of a chain, as a guest's image on a template.
  - Nothing is changed. As for a deletion, QEMU itself is asked about a guest of which libvirt may be wrong after its daemon was killed, which
    libvirt marks as tainted then (custom-monitor).
options:
  name:
    description:
      - Only the guest of this name. It is an error if there is none.
    type: str
    aliases: [guest, domain]
    version_added: 0.1.0
  uuid:
    description:
      - Only the guest of this UUID. It is an error if there is none.
    type: str
    version_added: 0.1.0
  names:
    description:
      - Only the guests of these names. It is an error if one is missing, unless O(filter) or O(state) are given, too.
    type: list
    elements: str
    version_added: 0.1.0
  filter:
    description:
      - Only guests with a name in which this regular expression is found.
    type: str
    version_added: 0.1.0
  state:
    description:
      - Only guests in this state.
    type: str
    choices: [running, paused, shutdown, crashed]
    version_added: 0.1.0
  snapshot_name:
    description:
      - Only the snapshot of this name of each guest, and no untracked overlays. A guest without it has an empty list.
    type: str
    version_added: 0.1.0
  merge:
    description:
      - The direction of the merges, as for O(livestorage.libvirt.external_snapshot#module:merge). By default as each snapshot remembers, or else
        V(backward).
    type: str
    choices: [forward, backward]
    version_added: 0.1.0
extends_documentation_fragment:
  - livestorage.libvirt._connection
  - livestorage.libvirt._attributes
  - livestorage.libvirt._attributes.info
  - livestorage.libvirt._attributes.actiongroup
seealso:
  - module: livestorage.libvirt.external_snapshot
  - module: livestorage.libvirt.disk_chain_info
"""

EXAMPLES = r"""
- name: The snapshots of all guests
  livestorage.libvirt.external_snapshot_info:
  register: found

- name: Show those that cannot be deleted, and why
  ansible.builtin.debug:
    msg: "{{ found.domains | map(attribute='snapshots') | flatten | rejectattr('deletable') | map(attribute='delete_reason.message') }}"

- name: Can the web servers go back to the moment before the patch?
  livestorage.libvirt.external_snapshot_info:
    filter: ^web
    snapshot_name: before-patch

- name: What would forward merges move?
  livestorage.libvirt.external_snapshot_info:
    name: vm1
    merge: forward
"""

RETURN = r"""
domains:
  description: The guests, sorted by name.
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
    unread:
      description:
        - Why libvirt's answers about this guest are not complete. Then nothing of it is deletable or revertable, for this reason.
        - V(null) where they are.
      type: dict
      contains:
        code:
          description: The stable word of the failure.
          type: str
          sample: running
        message:
          description: The sentence of the failure.
          type: str
          sample: "Guest vm1 runs, and snapshot monday cannot be reverted to like that: shut it down first."
    snapshots:
      description:
        - The snapshots that libvirt keeps metadata of, and then those that only the guest's own metadata remembers.
      type: list
      elements: dict
      contains:
        name:
          description: The name of the snapshot.
          type: str
          sample: before-patch
        parent:
          description:
            - The snapshot that was taken before it. V(null) where there is none.
            - Where libvirt keeps no metadata it is the one whose overlay is the image below.
          type: str
          sample: monday
        children:
          description: The names of the snapshots whose parent it is.
          type: list
          elements: str
          sample: [tuesday]
        current:
          description: Whether libvirt says that it is the current one.
          type: bool
          sample: false
        tracked:
          description: Whether libvirt keeps metadata of it. If not, a note in the guest's own metadata remembers it.
          type: bool
          sample: true
        description:
          description: Its description. V(null) where there is none.
          type: str
          sample: Before the kernel update
        created:
          description: When it was taken, in seconds of Unix time. V(null) is not known, as without libvirt's metadata.
          type: int
          sample: 1795219200
        state:
          description:
            - The state of the guest at that time as libvirt writes it, such as C(disk-snapshot) (of the disks of a running guest) or C(shutoff).
            - V(null) is not known.
          type: str
          sample: disk-snapshot
        internal:
          description: The disks whose snapshot is inside their image, where there is nothing to merge.
          type: list
          elements: str
          sample: []
        memory:
          description: The file with the memory of the guest. V(null) where there is none.
          type: dict
          contains:
            path:
              description: Its path.
              type: str
              sample: /srv/memory/vm1.before-patch
            exists:
              description: Whether it is there. V(null) is not known, as on another host.
              type: bool
              sample: true
            size:
              description: Its length in bytes. V(null) is not known.
              type: int
              sample: 536870912
        disks:
          description: The disks with an overlay of their own.
          type: list
          elements: dict
          contains:
            disk:
              description: The target of the disk in the guest.
              type: str
              sample: vda
            on_delete:
              description: The direction that was recorded when the snapshot was taken. V(null) where none was.
              type: str
              sample: backward
            depth:
              description: The number of layers above the overlay. V(null) where it is not in the chain of the disk.
              type: int
              sample: 0
            in_chain:
              description:
                - Whether both the overlay and the image below it are in the chain. If not, nothing is left to be merged on this disk.
                - V(null) where it is not known to the end of the chain, as of a guest that is off on another host.
              type: bool
              sample: true
            spoiled:
              description:
                - Whether a deletion that was begun has written into the image below, so that it holds the moment no more. The next run of the same
                  deletion finishes it.
              type: bool
              sample: false
            overlay:
              description: The layer that was put on top.
              type: dict
              contains:
                path:
                  description: The path, or the address of a layer that has none.
                  type: str
                  sample: /var/lib/libvirt/images/vm1.before-patch
                format:
                  description: The image format. V(null) is not known.
                  type: str
                  sample: qcow2
                exists:
                  description: Whether the file is there. V(null) is not known, as on another host or on the network.
                  type: bool
                  sample: true
                virtual_size:
                  description: What a guest sees of the image, in bytes. V(null) is not known.
                  type: int
                  sample: 10737418240
                actual_size:
                  description: What the storage holds of the image, its data file included, in bytes. V(null) is not known, as for a block device.
                  type: int
                  sample: 1572864
                physical_size:
                  description: The length of the file or device, in bytes. V(null) is not known.
                  type: int
                  sample: 1703936
            base:
              description: The image that holds the moment. V(null) where that is not recorded.
              type: dict
              contains:
                path:
                  description: The path, or the address of a layer that has none.
                  type: str
                  sample: /var/lib/libvirt/images/vm1.before-patch
                format:
                  description: The image format. V(null) is not known.
                  type: str
                  sample: qcow2
                exists:
                  description: Whether the file is there. V(null) is not known, as on another host or on the network.
                  type: bool
                  sample: true
                virtual_size:
                  description: What a guest sees of the image, in bytes. V(null) is not known.
                  type: int
                  sample: 10737418240
                actual_size:
                  description: What the storage holds of the image, its data file included, in bytes. V(null) is not known, as for a block device.
                  type: int
                  sample: 1572864
                physical_size:
                  description: The length of the file or device, in bytes. V(null) is not known.
                  type: int
                  sample: 1703936
            merge:
              description: What a deletion merges. V(null) where nothing is, or the layers are not as they were.
              type: dict
              contains:
                direction:
                  description: V(backward) (the overlay into the layer below it) or V(forward) (that layer into the overlay).
                  type: str
                  sample: backward
                from:
                  description: The layer that is merged, and leaves the chain.
                  type: str
                  sample: /var/lib/libvirt/images/vm1.before-patch
                into:
                  description: The layer that stays.
                  type: str
                  sample: /var/lib/libvirt/images/vm1.qcow2
                bytes:
                  description: An estimate of the bytes that are moved, from what the storage holds of the layer that is merged. V(null) is not known.
                  type: int
                  sample: 1572864
            deletes:
              description:
                - The file that O(livestorage.libvirt.external_snapshot#module:delete_files) would remove.
                - V(null) where it would remove none, or the deletion is refused.
              type: str
              sample: /var/lib/libvirt/images/vm1.before-patch
            kept:
              description: Why the deletion is refused with that option alone, as where other guests need the file. V(null) where it is not.
              type: dict
              contains:
                code:
                  description: The stable word of the failure.
                  type: str
                  sample: in_use
                message:
                  description: The sentence of the failure.
                  type: str
                  sample: "The option delete_files for disk vda of guest vm1 names /t.qcow2, which disk vda of guest vm2 uses: leave it out."
            deletable:
              description: Whether the snapshot would be deleted if it had this disk alone.
              type: bool
              sample: true
            reason:
              description: Why not. V(null) where it would.
              type: dict
              contains:
                code:
                  description: The stable word of the failure.
                  type: str
                  sample: running
                message:
                  description: The sentence of the failure.
                  type: str
                  sample: "Guest vm1 runs, and snapshot monday cannot be reverted to like that: shut it down first."
        stale:
          description:
            - Whether no disk has the layers of the snapshot in its chain any more. They were merged by another hand, or the guest has gone back to
              an older moment and left them. Then the deletion merges nothing.
          type: bool
          sample: false
        deletable:
          description: Whether M(livestorage.libvirt.external_snapshot) with O(livestorage.libvirt.external_snapshot#module:state=absent) deletes it.
          type: bool
          sample: true
        delete_reason:
          description: Why not, which is the failure that there would be. V(null) where it does.
          type: dict
          contains:
            code:
              description: The stable word of the failure.
              type: str
              sample: running
            message:
              description: The sentence of the failure.
              type: str
              sample: "Guest vm1 runs, and snapshot monday cannot be reverted to like that: shut it down first."
        revertable:
          description: Whether M(livestorage.libvirt.external_snapshot) with O(livestorage.libvirt.external_snapshot#module:state=reverted) goes back to it now.
          type: bool
          sample: false
        revert_reason:
          description: Why not, which is the failure that there would be. V(null) where it does.
          type: dict
          contains:
            code:
              description: The stable word of the failure.
              type: str
              sample: running
            message:
              description: The sentence of the failure.
              type: str
              sample: "Guest vm1 runs, and snapshot monday cannot be reverted to like that: shut it down first."
    tree:
      description:
        - The names of all snapshots of the guest as a tree, those without a parent first.
        - Below its 64th level the tree is cut, since Ansible could not show it.
      type: list
      elements: dict
      contains:
        name:
          description: The name of the snapshot.
          type: str
          sample: monday
        current:
          description: Whether libvirt says that it is the current one.
          type: bool
          sample: false
        children:
          description: The same for the snapshots that were taken after it. V(null) where the tree is cut.
          type: list
          elements: dict
          sample: [{"name": "before-patch", "current": true, "children": []}]
    untracked:
      description: The layers with another one below them that no snapshot knows as an overlay. Empty with O(snapshot_name).
      type: list
      elements: dict
      contains:
        disk:
          description: The target of the disk in the guest.
          type: str
          sample: vda
        layer:
          description: The layer as O(livestorage.libvirt.external_snapshot#module:disks[].layer) takes it.
          type: str
          sample: /srv/images/vm1.leftover
        depth:
          description: The number of layers above it.
          type: int
          sample: 0
        overlay:
          description: The layer.
          type: dict
          contains:
            path:
              description: The path, or the address of a layer that has none.
              type: str
              sample: /var/lib/libvirt/images/vm1.before-patch
            format:
              description: The image format. V(null) is not known.
              type: str
              sample: qcow2
            exists:
              description: Whether the file is there. V(null) is not known, as on another host or on the network.
              type: bool
              sample: true
            virtual_size:
              description: What a guest sees of the image, in bytes. V(null) is not known.
              type: int
              sample: 10737418240
            actual_size:
              description: What the storage holds of the image, its data file included, in bytes. V(null) is not known, as for a block device.
              type: int
              sample: 1572864
            physical_size:
              description: The length of the file or device, in bytes. V(null) is not known.
              type: int
              sample: 1703936
        base:
          description: The layer below it.
          type: dict
          contains:
            path:
              description: The path, or the address of a layer that has none.
              type: str
              sample: /var/lib/libvirt/images/vm1.before-patch
            format:
              description: The image format. V(null) is not known.
              type: str
              sample: qcow2
            exists:
              description: Whether the file is there. V(null) is not known, as on another host or on the network.
              type: bool
              sample: true
            virtual_size:
              description: What a guest sees of the image, in bytes. V(null) is not known.
              type: int
              sample: 10737418240
            actual_size:
              description: What the storage holds of the image, its data file included, in bytes. V(null) is not known, as for a block device.
              type: int
              sample: 1572864
            physical_size:
              description: The length of the file or device, in bytes. V(null) is not known.
              type: int
              sample: 1703936
        merge:
          description: What its deletion merges.
          type: dict
          contains:
            direction:
              description: V(backward) (the overlay into the layer below it) or V(forward) (that layer into the overlay).
              type: str
              sample: backward
            from:
              description: The layer that is merged, and leaves the chain.
              type: str
              sample: /var/lib/libvirt/images/vm1.before-patch
            into:
              description: The layer that stays.
              type: str
              sample: /var/lib/libvirt/images/vm1.qcow2
            bytes:
              description: An estimate of the bytes that are moved, from what the storage holds of the layer that is merged. V(null) is not known.
              type: int
              sample: 1572864
        deletes:
          description:
            - The file that O(livestorage.libvirt.external_snapshot#module:delete_files) would remove.
            - V(null) where it would remove none, or the deletion is refused.
          type: str
          sample: /var/lib/libvirt/images/vm1.before-patch
        kept:
          description: Why the deletion is refused with that option alone, as where other guests need the file. V(null) where it is not.
          type: dict
          contains:
            code:
              description: The stable word of the failure.
              type: str
              sample: in_use
            message:
              description: The sentence of the failure.
              type: str
              sample: "The option delete_files for disk vda of guest vm1 names /t.qcow2, which disk vda of guest vm2 uses: leave it out."
        deletable:
          description: Whether M(livestorage.libvirt.external_snapshot) with O(livestorage.libvirt.external_snapshot#module:state=absent) merges it.
          type: bool
          sample: true
        reason:
          description: Why not, which is the failure that there would be. V(null) where it does.
          type: dict
          contains:
            code:
              description: The stable word of the failure.
              type: str
              sample: running
            message:
              description: The sentence of the failure.
              type: str
              sample: "Guest vm1 runs, and snapshot monday cannot be reverted to like that: shut it down first."
    checkpoints:
      description: The checkpoints, which are no snapshots, but bitmaps of what was written since then, for backups.
      type: list
      elements: dict
      contains:
        name:
          description: The name of the checkpoint.
          type: str
          sample: monday
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
code:
  description: A stable word for the reason of a failure, such as V(no_guest) or V(no_daemon).
  type: str
  returned: failure
  sample: no_guest
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.livestorage.libvirt.plugins.module_utils import _arguments, _pipeline
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import external_snapshot_info


def main():
    module = AnsibleModule(
        argument_spec=dict(
            _arguments.CONNECTION,
            **_arguments.GUEST,
            names={"type": "list", "elements": "str"},
            filter={"type": "str"},
            state={"type": "str", "choices": ["running", "paused", "shutdown", "crashed"]},
            snapshot_name={"type": "str"},
            merge={"type": "str", "choices": ["forward", "backward"]},
        ),
        mutually_exclusive=[("name", "uuid"), ("name", "names"), ("uuid", "names"), ("name", "filter"), ("uuid", "filter")],
        supports_check_mode=True,
    )
    _pipeline.run(module, external_snapshot_info)


if __name__ == "__main__":
    main()
