# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""chain_tree and chain_find, over what disk_chain_info really returns."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.livestorage.libvirt.plugins.filter.chains import FilterModule
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, Layer, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain, Job
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.render import domains_result

FILTERS = FilterModule().filters()
TEMPLATE = file_layer("/srv/template.qcow2", "qcow2", 3)
NBD = Layer("network", (("name", "exports/a"), ("protocol", "nbd")), "raw", 1, ((("name", "h"), ("port", "10809")),))
VM1 = Domain(
    "vm1",
    "u1",
    True,
    disks=(
        Disk("vda", Chain((file_layer("/srv/a.qcow2", "qcow2", 7), TEMPLATE), True), job=Job("pull", 1, 4)),
        Disk("vdb", Chain((NBD,), None)),
        Disk("hdc", Chain(), "cdrom"),
    ),
)
VM2 = Domain("vm2", "u2", False, "shutdown", disks=(Disk("sda", Chain((file_layer("/srv/template.qcow2", None),), None)),))
DOMAINS = domains_result([VM1, VM2])


def test_chain_tree():
    assert FILTERS["chain_tree"](DOMAINS).splitlines() == [
        "vm1 (running)",
        "└─ vda (pull job, 25.0 %)",
        "   └─ /srv/a.qcow2 (qcow2) [vda[7]]",
        "      └─ /srv/template.qcow2 (qcow2) [vda[3]]",
        "└─ vdb",
        "   └─ nbd:exports/a (raw) [vdb[1]] (what follows is not known)",
        "└─ hdc",
        "vm2 (shutdown)",
        "└─ sda",
        "   └─ /srv/template.qcow2 (format unknown) (what follows is not known)",
    ]


def test_chain_find():
    assert FILTERS["chain_find"](DOMAINS, "/srv/template.qcow2") == [
        {"guest": "vm1", "uuid": "u1", "disk": "vda", "depth": 1, "address": "vda[3]"},
        {"guest": "vm2", "uuid": "u2", "disk": "sda", "depth": 0, "address": None},
    ]
    assert FILTERS["chain_find"](DOMAINS, "/srv/other") == []


@pytest.mark.parametrize(("name", "arguments"), [("chain_tree", ()), ("chain_find", ("/srv/a.qcow2",))])
def test_the_whole_result_is_taken_too(name, arguments):
    assert FILTERS[name]({"changed": False, "domains": DOMAINS}, *arguments) == FILTERS[name](DOMAINS, *arguments)
    assert not FILTERS[name]([], *arguments)


@pytest.mark.parametrize("value", [None, "vm1", {}, {"domain": []}, ["vm1"], [{"name": "vm1"}], {"domains": None}, {"domains": [1]}])
@pytest.mark.parametrize(("name", "arguments"), [("chain_tree", ()), ("chain_find", ("/a",))])
def test_anything_else_is_an_error_of_the_filter(name, arguments, value):
    with pytest.raises(AnsibleFilterError, match="disk_chain_info"):
        FILTERS[name](value, *arguments)
