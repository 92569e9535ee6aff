#!/usr/bin/python

# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: datafile_convert
short_description: Put a qcow2 layer over a raw image, which stays its data file, and back
version_added: 0.1.0
author: Contributors to livestorage.libvirt (@livestorage)
description:
  - Gives a disk on a raw image a qcow2 layer over that same raw file (C(data_file) with C(data_file_raw=on)), so that checkpoints and
    incremental backups become possible, in seconds whatever the size of the disk, or takes that layer away again. Nothing of the disk is
    copied, and the raw file alone stays the whole disk all the time.
  - The layer is always made anew, over another file of the same size, and is only then given the raw image, which is never opened for
    writing. What are holes in the raw image are marked as zeros, so that a full backup of a disk that is nearly empty stays small.
  - A layer that is dropped is removed. Used again after its data file was used alone, it would show what is no longer so, and its
    bitmaps would miss what was written meanwhile. Make a full backup after each conversion.
  - A guest that is off, or an image that belongs to none (O(path)), is converted at once. A running guest has to be paused for it, because
    libvirt has no call that does it live. Its memory is saved and read again (O(method=saved)), so it needs O(allow_pause). With O(dest)
    the disk is copied to a new data file instead, without a pause.
  - If anything fails, the guest runs again on the disk that it had, and the new files are removed. A run that was killed leaves a note in
    the definition of the guest. The next run goes on from there, also where the guest was paused.
  - Refused are disks whose data file would not be, or is not, what the guest sees, and those where libvirt or a backup would be wrong about it
    afterwards. These are disks with snapshots, checkpoints or jobs, with a backing image, with a data file that is not raw, shared
    ones, those of a transient guest, and sizes that are not equal or no multiple of 512 bytes.
options:
  name:
    description:
      - The name of the guest, running or off. Exactly one of O(name), O(uuid) and O(path) is needed.
    type: str
    aliases: [guest, domain]
    version_added: 0.1.0
  uuid:
    description:
      - The UUID of the guest. Exactly one of O(name), O(uuid) and O(path) is needed.
    type: str
    version_added: 0.1.0
  path:
    description:
      - The absolute path of the raw image, of one that belongs to no guest. Also with O(state=absent) this is the raw image, not the layer.
      - Exactly one of O(name), O(uuid) and O(path) is needed.
    type: str
    version_added: 0.1.0
  state:
    description:
      - With V(present) a qcow2 layer stands over the raw image. With V(absent) the raw image is used alone, and the layer is removed.
    type: str
    choices: [present, absent]
    default: present
    version_added: 0.1.0
  metadata:
    description:
      - The absolute path of the qcow2 layer. By default the path of the data file with V(.qcow2) behind it. Needed if that is a block device.
      - Nothing may be there yet, nor at the same path with V(.adopting) behind it, where the file is that the layer is made over.
      - With O(state=absent) a layer at this path is also removed if the disk is on its raw image already.
    type: str
    version_added: 0.1.0
  method:
    description:
      - V(auto) is V(offline) for a guest that is off and for O(path), V(copy) with O(dest), and otherwise V(saved) if O(allow_pause)
        is set. If not, the task is refused and says what the pause would cost.
      - V(offline) works on images that no QEMU has open. They are locked meanwhile as QEMU itself locks them. The layer and the image are
        compared, byte by byte.
      - V(saved) makes the layer, lets libvirt save the guest with its memory (managed save), puts the layer over the raw image, changes the
        disk in what was saved and in the definition, and starts the guest. A guest that was paused is paused again. The result tells how long
        it was stopped. That both show the same is proven by the layer's own tables, and by reading the raw image only where the layer shows zeros.
      - V(copy) copies the disk to the new data file O(dest) with a new layer over it, live by a job of QEMU, or by C(qemu-img) where the guest is
        off. It works for qcow2 images that hold their data themselves, too, whose dirty bitmaps are kept. The old image is left as it is.
      - V(migrate_xml) only makes the layer, and returns the RV(xml) with which a live migration of the guest brings it onto the layer.
        See RV(xml). The holes are not marked then, as the guest goes on writing.
    type: str
    choices: [auto, offline, saved, copy, migrate_xml]
    default: auto
    version_added: 0.1.0
  allow_pause:
    description:
      - Whether a running guest may be stopped for as long as it takes to write its memory to a file and to read it again.
      - It takes about 1.5 seconds more than that.
    type: bool
    default: false
    version_added: 0.1.0
  dest:
    description:
      - The absolute path of a new data file to copy the disk to. Nothing may be there yet.
      - By default nothing is copied. Needed if O(method=copy), or if the image is qcow2 and holds its data itself.
    type: str
    version_added: 0.1.0
  cluster_size:
    description:
      - The cluster size of the layer, from V(512) to V(2MiB).
      - By default V(64KiB), and V(2MiB) from 1 TiB on, where the tables of smaller clusters would take long to be written.
      - The size of the disk has to be a multiple of it, or QEMU would let the raw image grow. So the default is smaller where it has to be.
    type: str
    version_added: 0.1.0
  preserve_holes:
    description:
      - Mark as zeros what are holes in the raw image. Otherwise everything counts as data, so that a full backup is as big as the disk.
      - A block device has no holes that could be told from data.
    type: bool
    default: true
    version_added: 0.1.0
extends_documentation_fragment:
  - livestorage.libvirt._connection
  - livestorage.libvirt._disk.of_guest
  - livestorage.libvirt._wait
  - livestorage.libvirt._wait.bandwidth
  - livestorage.libvirt._attributes
  - livestorage.libvirt._attributes.changes
  - livestorage.libvirt._attributes.actiongroup
notes:
  - libvirt before 10.10 cannot name a data file in its XML. It neither labels nor locks it, and does not count it as used. So the data file is
    given to the user as whom QEMU runs, and a warning says so. Where SELinux or AppArmor confine guests, they have to let QEMU open it.
  - Discards of the guest reach the raw image too, whether or not C(discard) is set in the definition of the disk.
    The raw image and what the layer shows stay the same, but for C(discard=unmap) on storage that takes no holes, as a block device or NFS before
    4.2. That is refused.
seealso:
  - module: livestorage.libvirt.block_copy
  - module: livestorage.libvirt.disk_chain_info
"""

EXAMPLES = r"""
- name: Make incremental backups of a raw guest possible, with a pause of some seconds
  livestorage.libvirt.datafile_convert:
    name: vm1
    disk: vda
    allow_pause: true

- name: The same without a pause, on a new data file
  livestorage.libvirt.datafile_convert:
    name: vm1
    disk: vda
    dest: /srv/fast/vm1-vda.raw

- name: Back to the raw image
  livestorage.libvirt.datafile_convert:
    name: vm1
    disk: vda
    state: absent
    allow_pause: true

- name: An image that belongs to no guest
  livestorage.libvirt.datafile_convert:
    path: /srv/images/appliance.raw
    metadata: /srv/images/appliance.qcow2
"""

RETURN = r"""
method:
  description: How it was done, or would be. V(null) where it was so already.
  type: str
  returned: always
  sample: saved
pause:
  description: How long the guest was stopped, in seconds. V(null) where it was not.
  type: float
  returned: always
  sample: 1.412
metadata:
  description: The path of the qcow2 layer, also of one that is dropped. V(null) where there is none.
  type: str
  returned: always
  sample: /var/lib/libvirt/images/vm1.raw.qcow2
data_file:
  description: The path of the data file, which is the raw image.
  type: str
  returned: always
  sample: /var/lib/libvirt/images/vm1.raw
xml:
  description: What a live migration of the guest is to be given (C(virsh migrate --xml FILE --persistent-xml FILE)). V(null) but with O(method=migrate_xml).
  type: dict
  returned: always
  contains:
    live:
      description: The XML of the running guest with the other image on its disk.
      type: str
    persistent:
      description: The same for its next start.
      type: str
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
  description: The layer and the raw image of O(path), each with the chain that it begins. Empty where a guest was named.
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
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import datafile_convert


def main():
    module = AnsibleModule(
        argument_spec=dict(
            _arguments.CONNECTION,
            **_arguments.GUEST,
            **_arguments.DISK_OF_GUEST,
            **_arguments.BANDWIDTH,
            **_arguments.WAIT,
            path={"type": "str"},
            state={"type": "str", "default": "present", "choices": ["present", "absent"]},
            metadata={"type": "str"},
            method={"type": "str", "default": "auto", "choices": ["auto", "offline", "saved", "copy", "migrate_xml"]},
            allow_pause={"type": "bool", "default": False},
            dest={"type": "str"},
            cluster_size={"type": "str"},
            preserve_holes={"type": "bool", "default": True},
        ),
        supports_check_mode=True,
        mutually_exclusive=[("name", "uuid", "path")],
        required_one_of=[("name", "uuid", "path")],
        required_by={"name": ["disk"], "uuid": ["disk"]},
    )
    _pipeline.run(module, datafile_convert)


if __name__ == "__main__":
    main()
