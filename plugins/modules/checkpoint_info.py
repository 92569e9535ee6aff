#!/usr/bin/python

# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: checkpoint_info
short_description: List the checkpoints of guests, and what backups can be based on
version_added: 0.1.0
author: Contributors to livestorage.libvirt (@livestorage)
description:
  - Lists the checkpoints of one, several or all guests of a hypervisor as a tree, with the bitmap on each disk, how much was written since, and whether
    a backup can be based on it.
  - Lists the bitmaps in the headers of the images, too, with the checkpoint that each belongs to. One without a checkpoint is of no use to libvirt, but
    takes time with each write of the guest.
  - Says what backup runs, and how a client reaches the export of a pull.
  - Nothing is changed.
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
  checkpoint_name:
    description:
      - Only the checkpoint of this name of each guest. A guest without it has an empty list.
    type: str
    version_added: 0.1.0
  sizes:
    description:
      - Ask running guests how much was written since each checkpoint, and with that whether its bitmaps are valid. QEMU adds up bitmaps for that. It is
        not asked while a backup runs.
    type: bool
    default: true
    version_added: 0.1.0
extends_documentation_fragment:
  - livestorage.libvirt._connection
  - livestorage.libvirt._attributes
  - livestorage.libvirt._attributes.info
  - livestorage.libvirt._attributes.actiongroup
seealso:
  - module: livestorage.libvirt.checkpoint
  - module: livestorage.libvirt.block_backup
"""

EXAMPLES = r"""
- name: The checkpoints of all guests
  livestorage.libvirt.checkpoint_info:
  register: found

- name: Which of them are of no use any more?
  ansible.builtin.debug:
    msg: "{{ found.domains | map(attribute='checkpoints') | flatten | selectattr('usable', 'false') | map(attribute='name') }}"

- name: Bitmaps that no checkpoint knows
  ansible.builtin.debug:
    msg: "{{ found.domains | map(attribute='bitmaps') | flatten | selectattr('checkpoint', 'none') }}"

- name: How much would a backup since monday copy?
  livestorage.libvirt.checkpoint_info:
    name: vm1
    checkpoint_name: monday
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
        - Why libvirt's answers about this guest are not complete. V(null) where they are.
      type: dict
      contains:
        code:
          description: The stable word of the failure.
          type: str
          sample: libvirt_error
        message:
          description: The sentence of the failure.
          type: str
          sample: "libvirt could not list the checkpoints of guest vm1: Timed out during operation."
    checkpoints:
      description: The checkpoints, each after the one before it.
      type: list
      elements: dict
      contains:
        name:
          description: Its name.
          type: str
          sample: monday
        parent:
          description: The checkpoint before it. V(null) for the first one.
          type: str
          sample: sunday
        children:
          description: Those that were created right after it.
          type: list
          elements: str
          sample: [tuesday]
        current:
          description: Whether it is the last one, which the next one will come after.
          type: bool
          sample: false
        created:
          description: When it was created, in seconds of Unix time.
          type: int
          sample: 1795219200
        description:
          description: The text that it was created with, or V(null).
          type: str
          sample: before the import
        size:
          description: The bytes that were written since, of all its disks, in whole clusters. V(null) where that is not known of each.
          type: int
          sample: 1048576
        usable:
          description: Whether a backup can be based on it. V(null) where libvirt could not be asked, as of a guest that is off.
          type: bool
          sample: true
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
              description: The bytes that were written since, in whole clusters. V(null) where that is not known.
              type: int
              sample: 1048576
            state:
              description:
                - V(valid), or V(broken) where the bitmap, or one of a later checkpoint, is missing or inconsistent, as after a QEMU that was killed.
                - V(unknown) where it was not asked, as of a guest that is off, and V(detached) where the guest has no such disk any more.
              type: str
              sample: valid
    tree:
      description: The checkpoints without a parent, each with its V(name) and its V(children).
      type: list
      elements: dict
      contains:
        name:
          description: Its name.
          type: str
          sample: sunday
        children:
          description: The same of those that come after it.
          type: list
          elements: dict
          sample: [{"name": "monday", "children": []}]
    backup:
      description: The backup that runs, or V(null).
      type: dict
      contains:
        mode:
          description: V(push) or V(pull).
          type: str
          sample: pull
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
            scratch:
              description: The scratch file of a pull.
              type: str
              sample: /var/tmp/vm1-vda.scratch
            format:
              description: The format of the target or the scratch file.
              type: str
              sample: qcow2
            since:
              description: The checkpoint that it is based on. V(null) for a full one.
              type: str
              sample: monday
            export:
              description: The name of the export of a pull.
              type: str
              sample: vda
            bitmap:
              description: The bitmap of an incremental pull.
              type: str
              sample: backup-vda
            uri:
              description: Where an NBD client finds the export.
              type: str
              sample: nbd+unix:///vda?socket=/run/backup-vm1.sock
    bitmaps:
      description:
        - The bitmaps in the headers of the disks' images. Of a running guest QEMU has those that were made since its start in its memory only, and they
          are not here.
      type: list
      elements: dict
      contains:
        disk:
          description: The target of the disk in the guest.
          type: str
          sample: vda
        layer:
          description: The image that it is in.
          type: str
          sample: /var/lib/libvirt/images/vm1.qcow2
        name:
          description: The name of the bitmap.
          type: str
          sample: monday
        granularity:
          description: The bytes that one bit is for.
          type: int
          sample: 65536
        checkpoint:
          description: The checkpoint that it belongs to, or V(null).
          type: str
          sample: monday
        broken:
          description: Whether it is inconsistent. V(null) of a running guest, where the header does not tell it.
          type: bool
          sample: false
code:
  description: A stable word for the reason of a failure, such as V(no_guest) or V(no_daemon).
  type: str
  returned: failure
  sample: no_guest
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.livestorage.libvirt.plugins.module_utils import _arguments, _pipeline
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import checkpoint_info


def main():
    module = AnsibleModule(
        argument_spec=dict(
            _arguments.CONNECTION,
            **_arguments.GUEST,
            names={"type": "list", "elements": "str"},
            filter={"type": "str"},
            state={"type": "str", "choices": ["running", "paused", "shutdown", "crashed"]},
            checkpoint_name={"type": "str"},
            sizes={"type": "bool", "default": True},
        ),
        mutually_exclusive=[("name", "uuid"), ("name", "names"), ("uuid", "names"), ("name", "filter"), ("uuid", "filter")],
        supports_check_mode=True,
    )
    _pipeline.run(module, checkpoint_info)


if __name__ == "__main__":
    main()
