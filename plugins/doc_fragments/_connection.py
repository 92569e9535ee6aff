# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  uri:
    description:
      - The libvirt connection URI of the hypervisor.
      - If the option is not set, the environment variable E(LIBVIRT_DEFAULT_URI) is used.
      - With a remote URI such as V(qemu+ssh://host/system) the files of the hypervisor cannot be seen. What needs them is
        refused with a message that says so.
    type: str
    default: qemu:///system
    version_added: 0.1.0
requirements:
  - libvirt-python (C(python3-libvirt) in Debian and EL) on the host that runs the module, for the interpreter that runs it
  - lxml (C(python3-lxml) in Debian and EL) there, too
  - C(qemu-img), C(timeout) and C(prlimit) there, where the headers of images have to be read
  - libvirt 6.0 and QEMU 4.2, or later. The tests run on libvirt 9.0 and QEMU 7.2
"""
