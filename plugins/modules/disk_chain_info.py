#!/usr/bin/python

# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: disk_chain_info
short_description: Read the disk chains of guests and of images
version_added: 0.1.0
author: Contributors to livestorage.libvirt (@livestorage)
description:
  - Returns the backing chain of every disk of one, several or all guests of a hypervisor, with the block jobs and mirrors on
    them, from three sources side by side - the running guest, the definition of its next start, and the images' own headers.
  - With O(validate), compares the three and reports where they diverge, and more that endangers the data. A divergence is
    reported, and is no failure unless O(fail_on) says so.
  - For a running guest, the chain returned is what is in use. For a guest that is off it is the definition, completed from the
    headers where libvirt does not know what follows.
  - Headers are read one image at a time with C(qemu-img info), several at once, under limits of time, memory and processor.
    Only regular files and block devices are opened. What a header names is followed only if it is a path; C(json:) and protocol
    names are reported, and data files are measured but never opened. Images of format vmdk are not opened, as their header makes
    qemu-img open other files.
  - On another host (a remote O(uri)) no file can be read. There, the statistics of running guests and libvirt's storage volumes
    answer what they can, and the rest has its reason in RV(ignore:domains[].disks[].chain[].unread).
  - Uses one connection, and one XML document for each guest and each source of XML.
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
  sources:
    description:
      - What is read. V(live) is the XML of the running guest, V(inactive) that of its next start, V(images) are the headers.
      - V([live]) is the fastest way to know the chains of many running guests.
    type: list
    elements: str
    choices: [live, inactive, images]
    default: [live, inactive, images]
    version_added: 0.1.0
  validate:
    description:
      - Whether to compare the O(sources) and to return the findings of each disk and image. What a source would tell that was not
        asked for is not compared.
      - Reads the snapshots of the guests, the images of all other guests of the host (to find shared ones), and the open files of
        the QEMU processes of this host, too.
    type: bool
    default: false
    version_added: 0.1.0
  fail_on:
    description:
      - Codes of findings, and severities (V(info), V(warning) or V(critical), each with all that is worse), with which the task
        fails. The result is then returned with the failure. Turns O(validate) on. By default no finding is a failure.
    type: list
    elements: str
    default: []
    version_added: 0.1.0
  max_depth:
    description:
      - The number of layers above which a chain is a finding, and after which headers are not followed any further. The default is
        the limit of libvirt; before libvirt 12.0, guests with more than about 25 layers failed to start.
    type: int
    default: 200
    version_added: 0.1.0
  images:
    description:
      - Absolute paths of images that belong to no guest, to be read by their headers. It is an error if one is not there; with
        O(validate) it is a finding.
      - Without O(name), O(uuid), O(names), O(filter) and O(state), no guest is read then, and on this host libvirt's daemon is not
        needed. By default no image is read.
    type: list
    elements: path
    version_added: 0.1.0
  format:
    description:
      - The format of all O(images). By default it is taken from the first bytes of each image where these leave no doubt; raw has
        no such bytes and is never guessed. A guest can write such bytes on a raw disk of its own, so say the format of every image
        that a guest has written to.
    type: str
    choices: [raw, qcow2, qcow, qed, vdi, vhdx, vpc, parallels, luks]
    version_added: 0.1.0
  estimate:
    description:
      - Whether to return how many bytes a pull or a commit would move.
    type: bool
    default: false
    version_added: 0.1.0
  qemu_nodes:
    description:
      - Whether to ask QEMU itself with the reading commands C(query-named-block-nodes), C(query-block-jobs) and C(query-block), through
        libvirt's passthrough to its monitor.
      - libvirt marks a guest as tainted (custom-monitor) by this until it is stopped. Nothing else changes.
    type: bool
    default: false
    version_added: 0.1.0
extends_documentation_fragment:
  - livestorage.libvirt._connection
  - livestorage.libvirt._attributes
  - livestorage.libvirt._attributes.info
  - livestorage.libvirt._attributes.actiongroup
seealso:
  - module: livestorage.libvirt.block_rebase
  - module: livestorage.libvirt.block_commit
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

- name: The chains of thousands of running guests, fast
  livestorage.libvirt.disk_chain_info:
    state: running
    sources: [live]

- name: Compare libvirt, the next start and the images, and stop at what endangers data
  livestorage.libvirt.disk_chain_info:
    fail_on: [critical, config_differs]

- name: What would a merge of this guest's layers move?
  livestorage.libvirt.disk_chain_info:
    name: vm1
    estimate: true

- name: Read an image that belongs to no guest
  livestorage.libvirt.disk_chain_info:
    images: [/srv/backup/vm1.qcow2]
    format: qcow2
    validate: true

- name: Read one guest of another host
  livestorage.libvirt.disk_chain_info:
    uri: qemu+ssh://kvm1/system
    name: vm1
  delegate_to: localhost
"""

RETURN = r"""
domains:
  description: The guests, sorted by name. Empty where only O(images) were asked for.
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
          description: The bus of the disk. V(null) where libvirt names none.
          type: str
          sample: virtio
        driver:
          description: The attributes of the disk's C(<driver>), as libvirt writes them.
          type: dict
          sample: {"name": "qemu", "type": "qcow2", "cache": "none"}
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
          description: The layers, active layer first; then those of further siblings. Empty for an empty drive.
          type: list
          elements: dict
          returned: always
          contains:
            depth:
              description: The number of layers above it, V(0) is the active layer.
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
              description: The position in this list of the layer that this one backs, V(null) for the active layer.
              type: int
              sample: 0
            type:
              description:
                - libvirt's type of the source, such as V(file), V(block), V(network), V(volume), V(nvme), V(vhostuser) or V(vhostvdpa).
              type: str
              sample: file
            protocol:
              description: The protocol of a source of type V(network), V(null) for any other.
              type: str
              sample: nbd
            path:
              description: The path on the hypervisor. The path of a storage volume is looked up. V(null) for sources that have none.
              type: str
              sample: /var/lib/libvirt/images/template.qcow2
            name:
              description:
                - The name on the server for type V(network), C(POOL/VOLUME) for type V(volume), the socket for
                  V(vhostuser), the PCI address and the namespace for V(nvme). V(null) for any other.
              type: str
              sample: exports/disk1
            host:
              description: The servers of a source of type V(network), as libvirt writes them.
              type: list
              elements: dict
              sample: [{"name": "127.0.0.1", "port": "10809"}]
            source:
              description:
                - What else libvirt says of the place, such as pool, volume and mode, snapshot, config and
                  initiator, or namespace and address. V(null) where it says nothing. Queries, cookies and secrets
                  are never returned.
              type: dict
              sample: {"pool": "default", "volume": "vm1.qcow2"}
            format:
              description: The image format, V(null) where neither libvirt nor a header says it.
              type: str
              sample: qcow2
            terminated:
              description:
                - Whether the chain ends at this layer. V(false) where another layer follows.
                - V(null) means unknown, since libvirt's XML has no terminator there, and no header could be read.
              type: bool
              sample: false
            readonly:
              description: Whether the guest's writes can never reach this layer. Backing layers always are.
              type: bool
              sample: true
            known_from:
              description:
                - V(xml) where libvirt names the layer, V(header) where only the header of the image above does, V(option) for an image
                  that O(images) names.
              type: str
              sample: xml
            unread:
              description:
                - Why the header of this layer, or what follows it, is not known. V(missing), V(not_a_file),
                  V(permission), V(unreadable), V(unsafe) (a format that is not opened), V(timeout),
                  V(format_unknown), V(protocol) (a C(json:) or protocol name), V(remote), V(slices), V(too_deep) or
                  V(loop).
                - V(null) where it was read, where there is none to read, or where it was not asked for - without C(images) in
                  O(sources), and on another host where libvirt knows what follows and nothing is validated.
              type: str
              sample: missing
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
            slices:
              description: The parts of the file or device that the layer is in, as libvirt writes them. V(null) for all of it.
              type: list
              elements: dict
              sample: [{"type": "storage", "offset": "1048576", "size": "2097152"}]
            reservations:
              description: Persistent reservations. V(null) where there are none.
              type: dict
              contains:
                managed:
                  description: Whether libvirt runs the helper.
                  type: bool
                  sample: true
            encryption:
              description: The kind of encryption. V(null) where libvirt names none. Secrets are never returned.
              type: str
              sample: luks
            auth:
              description: The user for the storage. V(null) where libvirt names none.
              type: str
              sample: libvirt
            seclabel:
              description:
                - Security labels of this layer, with model, relabel and label as far as libvirt says them. V(null) where there are
                  none.
              type: list
              elements: dict
              sample: [{"model": "dac", "relabel": "no"}]
            startup_policy:
              description: V(mandatory), V(requisite) or V(optional). V(null) where libvirt names none.
              type: str
              sample: optional
            node_name:
              description: The name of QEMU's block node. V(null) where QEMU has none of libvirt's name for the layer, or did not answer.
              type: str
              returned: when O(qemu_nodes) is set
              sample: libvirt-2-format
        tree:
          description:
            - The same layers as a tree, built from the same facts. V(null) for an empty drive.
            - Below its 64th level the tree is cut, since Ansible could not show it. RV(ignore:backing) is V(null) there.
          type: dict
          contains:
            layer:
              description: The position of the layer in the flat list.
              type: int
              sample: 0
            source:
              description: The path or address of the layer.
              type: str
              sample: /var/lib/libvirt/images/vm1.qcow2
            backing:
              description: The same for every layer below. More than one for siblings (a quorum), none for the last layer.
              type: list
              elements: dict
              sample: [{"layer": 1, "source": /var/lib/libvirt/images/template.qcow2, "backing": []}]
        sources:
          description: What each source that was asked for tells.
          type: dict
          contains:
            live:
              description: The chain that the running guest has. V(null) for a guest that is off.
              type: dict
              returned: when V(live) is in O(sources)
              contains:
                layers:
                  description: The layers, active layer first.
                  type: list
                  elements: dict
                  contains:
                    source:
                      description: The path or address of the layer.
                      type: str
                      sample: /var/lib/libvirt/images/vm1.qcow2
                    format:
                      description: The format of the layer. V(null) where this source does not say it.
                      type: str
                      sample: qcow2
                    data_store:
                      description: The path or address of its data file. V(null) where this source names none.
                      type: str
                      sample: /srv/disk1.raw
                terminated:
                  description: Whether this source says that the chain ends there. V(null) where it does not know.
                  type: bool
                  sample: true
            inactive:
              description: The chain that libvirt has for the next start. V(null) for a guest that is not persistent.
              type: dict
              returned: when V(inactive) is in O(sources)
              contains:
                layers:
                  description: The layers, active layer first.
                  type: list
                  elements: dict
                  contains:
                    source:
                      description: The path or address of the layer.
                      type: str
                      sample: /var/lib/libvirt/images/vm1.qcow2
                    format:
                      description: The format of the layer. V(null) where this source does not say it.
                      type: str
                      sample: qcow2
                    data_store:
                      description: The path or address of its data file. V(null) where this source names none.
                      type: str
                      sample: /srv/disk1.raw
                terminated:
                  description: Whether this source says that the chain ends there. V(null) where it does not know.
                  type: bool
                  sample: true
            images:
              description: The chain as the headers tell it, from the active layer down. V(null) where that header is not known.
              type: dict
              returned: when V(images) is in O(sources)
              contains:
                layers:
                  description: The layers, active layer first.
                  type: list
                  elements: dict
                  contains:
                    source:
                      description: The path or address of the layer.
                      type: str
                      sample: /var/lib/libvirt/images/vm1.qcow2
                    format:
                      description: The format of the layer. V(null) where this source does not say it.
                      type: str
                      sample: qcow2
                    data_store:
                      description: The path or address of its data file. V(null) where this source names none.
                      type: str
                      sample: /srv/disk1.raw
                terminated:
                  description: Whether this source says that the chain ends there. V(null) where it does not know.
                  type: bool
                  sample: true
        job:
          description: The block job on this disk, V(null) where there is none.
          type: dict
          contains:
            type:
              description: The kind of job, V(pull), V(copy), V(commit), V(active-commit) or V(backup), or V(unknown) if it is a newer one.
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
        findings:
          description:
            - What the validation found. A divergence is a fact, and no error by itself.
          type: list
          elements: dict
          returned: when O(validate) or O(fail_on) are set
          contains:
            code:
              description:
                - A stable word for the kind of finding, one of V(backing_differs), V(base_smaller), V(config_differs),
                  V(data_store_differs), V(data_store_missing), V(data_store_relative), V(format_differs), V(format_missing),
                  V(format_unknown), V(hidden_backing), V(hidden_data_store), V(job_left), V(loop), V(mirror_format), V(missing_file), V(not_a_file),
                  V(orphaned_guest), V(protocol_backing), V(raw_with_header), V(shared_image), V(snapshot_stale), V(stale_pivot),
                  V(too_deep), V(unknown), V(unreadable), V(writable_by_others).
              type: str
              sample: config_differs
            severity:
              description: V(critical) (data are lost, hidden or shared if nothing is done), V(warning), or V(info) (something is not known).
              type: str
              sample: warning
            layer:
              description: libvirt's address of the layer, or its path where it has none. V(null) where the finding is about the whole disk.
              type: str
              sample: vda[2]
            expected:
              description: What one side says, such as libvirt's XML - a path, a format, a size in bytes, or a chain. V(null) is nothing.
              type: raw
              sample: /var/lib/libvirt/images/template.qcow2
            actual:
              description: What the other side says, such as the image's header. V(null) is nothing.
              type: raw
              sample: /var/lib/libvirt/images/other.qcow2
            message:
              description: One sentence with the guest, the disk, the layer, and what to do.
              type: str
              sample: "At its next start, disk vda of guest vm1 will have the chain /a, but /b is in use: define the guest with the chain in use."
        data_moved:
          description:
            - An estimate of the bytes that a pull or a commit would move, from what the storage holds of each layer.
          type: dict
          returned: when O(estimate) is set
          contains:
            flatten:
              description: Bytes that a pull of all layers into the active one moves. V(null) is not known.
              type: int
              sample: 104857600
            pull:
              description:
                - By position of the base, the bytes that a pull down to it moves. An element is V(null) where that is not known, and for the
                  active layer.
              type: list
              elements: int
              sample: [null, 0, 1572864]
            commit:
              description:
                - By position of the layer, the bytes that its merge into the one below moves. An element is V(null) where that is not known,
                  and for the last layer.
              type: list
              elements: int
              sample: [1572864, 196608, null]
    qemu:
      description: QEMU's own view of the guest's storage. V(null) for a guest that is off or did not answer.
      type: dict
      returned: when O(qemu_nodes) is set
      contains:
        nodes:
          description: The block nodes.
          type: list
          elements: dict
          contains:
            node_name:
              description: Its name.
              type: str
              sample: libvirt-1-format
            driver:
              description: QEMU's driver for the format or the storage.
              type: str
              sample: qcow2
            file:
              description: The file or address, as QEMU writes it. What may be a secret is left out.
              type: str
              sample: /var/lib/libvirt/images/vm1.qcow2
            readonly:
              description: Whether QEMU has it open for reading only.
              type: bool
              sample: false
        jobs:
          description: The answer to C(query-block-jobs), as QEMU writes it.
          type: list
          elements: dict
          sample: []
        devices:
          description: The devices with a medium.
          type: list
          elements: dict
          contains:
            qdev:
              description: QEMU's path of the device.
              type: str
              sample: /machine/peripheral/virtio-disk0/virtio-backend
            node_name:
              description: The block node that it reads and writes.
              type: str
              sample: libvirt-1-format
            file:
              description: The image that it reads and writes, whatever libvirt believes.
              type: str
              sample: /var/lib/libvirt/images/vm1.qcow2
images:
  description: The images of O(images), in that order.
  type: list
  elements: dict
  returned: always
  contains:
    path:
      description: The path.
      type: str
      sample: /srv/backup/vm1.qcow2
    format:
      description: The format, V(null) where it is not known.
      type: str
      sample: qcow2
    chain:
      description: The layers by their headers, with the same keys as the layers of a disk.
      type: list
      elements: dict
    tree:
      description: The same as a tree, with the same keys as that of a disk.
      type: dict
    findings:
      description: What the validation found, with the same keys as for a disk.
      type: list
      elements: dict
      returned: when O(validate) or O(fail_on) are set
    data_moved:
      description: The estimate, with the same keys as for a disk.
      type: dict
      returned: when O(estimate) is set
code:
  description: A stable word for the reason of a failure, such as V(no_guest), V(no_daemon), or V(findings) for O(fail_on).
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
            sources={"type": "list", "elements": "str", "choices": ["live", "inactive", "images"], "default": ["live", "inactive", "images"]},
            validate={"type": "bool", "default": False},
            fail_on={"type": "list", "elements": "str", "default": []},
            max_depth={"type": "int", "default": 200},
            images={"type": "list", "elements": "path"},
            format={"type": "str", "choices": ["raw", "qcow2", "qcow", "qed", "vdi", "vhdx", "vpc", "parallels", "luks"]},
            estimate={"type": "bool", "default": False},
            qemu_nodes={"type": "bool", "default": False},
        ),
        required_by={"format": ["images"]},
        mutually_exclusive=[("name", "uuid"), ("name", "names"), ("uuid", "names"), ("name", "filter"), ("uuid", "filter")],
        supports_check_mode=True,
    )
    _pipeline.run(module, disk_chain_info)


if __name__ == "__main__":
    main()
