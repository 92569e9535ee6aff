# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filters, over what disk_chain_info and the changing modules really return."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.livestorage.libvirt.plugins.filter.chains import FilterModule
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, Layer, file_layer
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import Image, Probe
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain, Job, Mirror, Observed
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.ops import disk_chain_info
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.render import domains_result
from ansible_collections.livestorage.libvirt.tests.unit.support import ROOT, params_for

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

# What only disk_chain_info knows: data stores, siblings, mirrors with a chain, findings, images without a guest.
STORE = file_layer("/srv/b.raw", "raw", 9)
TWIN = Chain((replace(file_layer("/srv/b.qcow2", "qcow2", 3), store=STORE), file_layer("/srv/c.raw", "raw", 4)), True)
QUORUM = Layer("quorum", format="quorum", branches=(TWIN,))
COPY = Mirror("copy", "yes", Chain((replace(file_layer("/srv/new.qcow2", "qcow2", 6), store=file_layer("/srv/new.raw", "raw", 7)), TEMPLATE), True))
VM3 = Domain(
    "vm3",
    "u3",
    True,
    disks=(
        Disk("vda", Chain((QUORUM, file_layer("/srv/a.qcow2", "qcow2", 1), file_layer("/srv/base.qcow2", "qcow2", 2)), True)),
        Disk("vdb", Chain((file_layer("/srv/old.qcow2", "qcow2", 5), TEMPLATE), True), mirror=COPY),
        Disk("vdc", Chain((file_layer("/srv/gone.qcow2", "qcow2", 8),), None)),
        Disk("vdd", Chain((file_layer("/srv/gone.raw", "raw", 11),), True)),
    ),
)
BARE = Image("/srv/bare.qcow2", "qcow2", 1 << 20, 4096, "base.raw", "/srv/base.raw", "raw", "bare.raw", "/srv/bare.raw", False)
PROBES = {
    ("/srv/bare.qcow2", "qcow2"): Probe("/srv/bare.qcow2", "qcow2", "file", BARE),
    ("/srv/base.raw", "raw"): Probe("/srv/base.raw", "raw", "file", mode=0o666),
    ("/srv/gone.qcow2", "qcow2"): Probe("/srv/gone.qcow2", "qcow2", problem="missing"),
    ("/srv/gone.raw", "raw"): Probe("/srv/gone.raw", "raw", problem="missing"),
}
PARAMS = {"filter": ".", "images": ["/srv/bare.qcow2"], "format": "qcow2", "validate": True}
FULL = disk_chain_info.report(disk_chain_info.request(params_for("disk_chain_info", PARAMS)), Observed((VM3,), probes=PROBES))


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


def test_chain_tree_of_all_that_there_is():
    assert FILTERS["chain_tree"](FULL).splitlines() == [
        "vm3 (running)",
        "└─ vda",
        "   └─ quorum (quorum)",
        "      └─ /srv/a.qcow2 (qcow2) [vda[1]]",
        "         └─ /srv/base.qcow2 (qcow2) [vda[2]]",
        "      └─ /srv/b.qcow2 (qcow2) [vda[3]]",
        "         └─ data store /srv/b.raw (raw) [vda[9]]",
        "         └─ /srv/c.raw (raw) [vda[4]]",
        "└─ vdb",
        "   └─ /srv/old.qcow2 (qcow2) [vdb[5]]",
        "      └─ /srv/template.qcow2 (qcow2) [vdb[3]]",
        "   └─ mirror (copy, ready)",
        "      └─ /srv/new.qcow2 (qcow2) [vdb[6]]",
        "         └─ data store /srv/new.raw (raw) [vdb[7]]",
        "         └─ /srv/template.qcow2 (qcow2) [vdb[3]]",
        "   ! warning: job_left at vdb[6]",
        "└─ vdc",
        "   └─ /srv/gone.qcow2 (qcow2) [vdc[8]] (what follows is not known: missing)",
        "   ! critical: missing_file at vdc[8]",
        "└─ vdd",
        "   └─ /srv/gone.raw (raw) [vdd[11]] (not read: missing)",
        "   ! critical: missing_file at vdd[11]",
        "image /srv/bare.qcow2",
        "└─ /srv/bare.qcow2 (qcow2)",
        "   └─ data store /srv/bare.raw (raw)",
        "   └─ /srv/base.raw (raw)",
        "! warning: data_store_missing at /srv/bare.qcow2",
        "! warning: data_store_relative at /srv/bare.qcow2",
        "! warning: writable_by_others at /srv/base.raw",
    ]


@pytest.mark.parametrize(("ready", "words"), [(None, "not ready"), ("yes", "ready"), ("pivot", "pivot")])
def test_chain_tree_of_a_mirror(ready, words):
    disk = replace(VM3.disks[1], mirror=replace(COPY, ready=ready))
    assert "   └─ mirror (copy, %s)\n" % words in FILTERS["chain_tree"](domains_result([replace(VM3, disks=(disk,))]))


def test_a_chain_may_be_deeper_than_pythons_stack():
    chain = Chain(tuple(file_layer("/srv/%d" % number, "qcow2", number) for number in range(3000)), True)
    domains = domains_result([Domain("vm1", "u1", True, disks=(Disk("vda", chain),))])
    lines = FILTERS["chain_tree"](domains).splitlines()
    assert len(lines) == 3002 and lines[-1].endswith("/srv/2999 (qcow2) [vda[2999]]")
    assert FILTERS["chain_depth"](domains) == 3000


def found(guest, disk, where, depth, address, image=None):
    uuid = {"vm1": "u1", "vm2": "u2", "vm3": "u3", None: None}[guest]
    return {"guest": guest, "uuid": uuid, "disk": disk, "image": image, "where": where, "depth": depth, "address": address}


@pytest.mark.parametrize(
    ("value", "path", "expected"),
    [
        (DOMAINS, "/srv/template.qcow2", [found("vm1", "vda", "chain", 1, "vda[3]"), found("vm2", "sda", "chain", 0, None)]),
        (DOMAINS, "/srv/other", []),
        (FULL, "/srv/template.qcow2", [found("vm3", "vdb", "chain", 1, "vdb[3]"), found("vm3", "vdb", "mirror", 1, "vdb[3]")]),
        (FULL, "/srv/c.raw", [found("vm3", "vda", "chain", 2, "vda[4]")]),
        (FULL, "/srv/b.raw", [found("vm3", "vda", "data_store", 1, "vda[9]")]),
        (FULL, "/srv/new.raw", [found("vm3", "vdb", "data_store", 0, "vdb[7]")]),
        (FULL, "/srv/bare.raw", [found(None, None, "data_store", 0, None, "/srv/bare.qcow2")]),
        (FULL, "/srv/base.raw", [found(None, None, "chain", 1, None, "/srv/bare.qcow2")]),
    ],
)
def test_chain_find(value, path, expected):
    assert FILTERS["chain_find"](value, path) == expected


def test_chain_paths():
    assert FILTERS["chain_paths"](DOMAINS) == ["/srv/a.qcow2", "/srv/template.qcow2"]
    names = ["a.qcow2", "b.qcow2", "b.raw", "bare.qcow2", "bare.raw", "base.qcow2", "base.raw", "c.raw", "gone.qcow2", "gone.raw"]
    assert FILTERS["chain_paths"](FULL) == ["/srv/" + name for name in names + ["new.qcow2", "new.raw", "old.qcow2", "template.qcow2"]]


@pytest.mark.parametrize(
    ("value", "arguments", "depth"),
    [
        (DOMAINS, {}, 2),
        (DOMAINS, {"guest": "vm1"}, 2),
        (DOMAINS, {"guest": "u2"}, 1),
        (DOMAINS, {"guest": "vm1", "disk": "vdb"}, 1),
        (DOMAINS, {"disk": "hdc"}, 0),
        (FULL, {}, 3),
        (FULL, {"disk": "vdb"}, 2),
        (FULL["images"], {}, 2),
        (domains_result([Domain("vm1", "u1", True)]), {"guest": "vm1"}, 0),
        ([], {}, 0),
    ],
)
def test_chain_depth(value, arguments, depth):
    assert FILTERS["chain_depth"](value, **arguments) == depth


@pytest.mark.parametrize(
    ("arguments", "what"),
    [({"guest": "vm9"}, "guest vm9"), ({"disk": "vdz"}, "disk vdz"), ({"guest": "vm1", "disk": "sda"}, "disk sda of guest vm1")],
)
def test_chain_depth_of_what_is_not_there(arguments, what):
    with pytest.raises(AnsibleFilterError, match="There is no %s in" % what):
        FILTERS["chain_depth"](DOMAINS, **arguments)


EVERY = [("chain_tree", ()), ("chain_find", ("/srv/a.qcow2",)), ("chain_depth", ()), ("chain_paths", ())]


def test_every_filter_is_documented_and_tested():
    assert set(FILTERS) == {name for name, dummy in EVERY} == {path.stem for path in (ROOT / "plugins" / "filter").glob("*.yml")}


@pytest.mark.parametrize(("name", "arguments"), EVERY)
def test_the_whole_result_is_taken_too(name, arguments):
    call = FILTERS[name]
    assert call({"changed": False, "domains": DOMAINS}, *arguments) == call(DOMAINS, *arguments)
    assert not call([], *arguments) and not call({"domains": [], "images": []}, *arguments)


@pytest.mark.parametrize("name", ["chain_tree", "chain_paths"])
def test_images_are_taken_too(name):
    call = FILTERS[name]
    parts = [call(FULL["domains"]), call(FULL["images"])]
    assert all(parts)
    assert call(FULL) == ("".join(parts) if name == "chain_tree" else sorted(parts[0] + parts[1]))


@pytest.mark.parametrize(
    "value",
    [
        None,
        "vm1",
        {},
        {"domain": []},
        ["vm1"],
        [{"name": "vm1"}],
        {"domains": None},
        {"domains": [1]},
        {"domains": [], "images": None},
        [DOMAINS[0], *FULL["images"]],
    ],
)
@pytest.mark.parametrize(("name", "arguments"), EVERY)
def test_anything_else_is_an_error_of_the_filter(name, arguments, value):
    with pytest.raises(AnsibleFilterError, match="disk_chain_info"):
        FILTERS[name](value, *arguments)
