#!/usr/bin/python

# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: disk_chain_info
short_description: Read the disk chains of guests
version_added: 0.1.0
author: Contributors to livestorage.libvirt (@livestorage)
description:
  - Returns the backing chain of every disk of one, several or all guests of a hypervisor, as libvirt knows it now, with the
    block jobs and mirrors on them.
  - For a running guest this is what is in use. For a guest that is off it is its definition, in which libvirt often does not
    know what follows below the first layer.
  - Uses one connection, and reads one XML document for each guest.
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
extends_documentation_fragment:
  - livestorage.libvirt._connection
  - livestorage.libvirt._attributes
  - livestorage.libvirt._attributes.info
  - livestorage.libvirt._attributes.actiongroup
seealso:
  - module: livestorage.libvirt.block_rebase
  - plugin: livestorage.libvirt.chain_tree
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Read the chains of all guests
  livestorage.libvirt.disk_chain_info:
  register: chains

- name: Show them as trees
  ansible.builtin.debug:
    msg: "{{ (chains.domains | livestorage.libvirt.chain_tree).splitlines() }}"

- name: Read the chains of the running web servers
  livestorage.libvirt.disk_chain_info:
    filter: ^web
    state: running

- name: Read one guest of another host
  livestorage.libvirt.disk_chain_info:
    uri: qemu+ssh://kvm1/system
    name: vm1
  delegate_to: localhost
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
code:
  description: A stable word for the reason of a failure, such as V(no_guest) or V(no_daemon).
  type: str
  returned: failure
  sample: no_guest
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.livestorage.libvirt.plugins.module_utils import _arguments, _pipeline
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import disk_chain_info


def main():
    module = AnsibleModule(
        argument_spec=dict(
            _arguments.CONNECTION,
            **_arguments.GUEST,
            names={"type": "list", "elements": "str"},
            filter={"type": "str"},
            state={"type": "str", "choices": ["running", "paused", "shutdown", "crashed"]},
        ),
        mutually_exclusive=[("name", "uuid"), ("name", "names"), ("uuid", "names"), ("name", "filter"), ("uuid", "filter")],
        supports_check_mode=True,
    )
    _pipeline.run(module, disk_chain_info)


if __name__ == "__main__":
    main()
