# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A prediction against a fresh look, and values as a module returns them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given

from ansible_collections.livestorage.libvirt.plugins.module_utils._core import render
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, Layer, file_layer, pull
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.image_info import resolve_backing
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import (
    Disk,
    Domain,
    File,
    Job,
    Mirror,
    Observed,
    Snapshot,
    Use,
    with_chain,
)
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.plan import Plan, Step
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.verify import covers, mismatches, needed_again, same_as_before
from ansible_collections.livestorage.libvirt.tests.unit.strategies import chains, disks

A, B, C = file_layer("/a", "qcow2", 1), file_layer("/b", "qcow2", 2), file_layer("/c", "raw", 3)
LONG, SHORT = Chain((A, B, C), True), Chain((A, C), True)


def guest(chain=LONG, config=LONG, **facts):
    """A guest with vda, and vdb that only the next start has."""
    disks_ = (Disk("vda", chain),) if chain is not None else ()
    configs = (Disk("vda", config),) if config is not None else ()
    return Domain("vm1", "u1", True, disks=disks_, config=configs + (Disk("vdb", Chain((file_layer("/d", "raw"),), None)),), **facts)


def with_job(domain):
    return replace(domain, disks=tuple(replace(disk, job=Job("pull")) for disk in domain.disks))


BEFORE, AFTER = guest(), guest(SHORT, SHORT)
PLAN = Plan((BEFORE,), (AFTER,), (Step("pull"),))
LOOSE = replace(PLAN, settles=False)
AT_ONCE = "the job on disk vda of guest vm1 ended at once without its work, see the log of the guest"
NOW = "disk vda of guest vm1 has the chain /c <- /b <- /a, where /c <- /a was expected"
NEXT = "the persistent definition of guest vm1 gives disk vda the chain %s, where /c <- /a was expected"


@pytest.mark.parametrize(
    ("plan", "seen", "expected"),
    [
        (PLAN, guest(SHORT, SHORT), []),
        (PLAN, guest(Chain((A, replace(C, format=None, index=9)), None), SHORT), []),
        (PLAN, with_job(guest(SHORT, SHORT)), []),
        (PLAN, BEFORE, [NOW, NEXT % "/c <- /b <- /a"]),
        (PLAN, guest(SHORT, LONG), [NEXT % "/c <- /b <- /a"]),
        (PLAN, guest(Chain((A, C), False), SHORT), ["disk vda of guest vm1 has the chain (not known) <- /c <- /a, where /c <- /a was expected"]),
        # The next start may be written down less far, but not end too early.
        (PLAN, guest(SHORT, Chain((A,), None)), []),
        (PLAN, guest(SHORT, Chain((A,), True)), [NEXT % "/a"]),
        (PLAN, guest(SHORT, Chain()), [NEXT % "empty"]),
        (PLAN, guest(SHORT, None), ["disk vda is not in the persistent definition of guest vm1 any more"]),
        (PLAN, guest(None, SHORT), ["disk vda of guest vm1 is not there any more"]),
        (PLAN, replace(AFTER, active=False, state="shutdown"), ["guest vm1 is shutdown"]),
        (PLAN, replace(AFTER, state="paused"), []),
        (PLAN, replace(AFTER, uuid="u2"), ["guest vm1 is not there any more"]),
        # Not waited for: a job on the old chain is on its way, one on any other is not, and without a job the result counts.
        (LOOSE, with_job(BEFORE), []),
        (LOOSE, with_job(guest(Chain((B, C), True), LONG)), ["disk vda of guest vm1 has the chain /c <- /b, where /c <- /a was expected"]),
        (LOOSE, guest(SHORT, SHORT), []),
        (LOOSE, BEFORE, [AT_ONCE, NEXT % "/c <- /b <- /a"]),
        (PLAN, with_job(BEFORE), [NOW, NEXT % "/c <- /b <- /a"]),
    ],
)
def test_mismatches(plan, seen, expected):
    assert mismatches(plan, (seen,)) == expected


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (BEFORE, BEFORE, []),
        (BEFORE, with_job(BEFORE), ["a pull job is running on disk vda of guest vm1"]),
        (with_job(BEFORE), with_job(BEFORE), []),
        (with_job(BEFORE), BEFORE, []),
        (
            BEFORE,
            replace(BEFORE, disks=(replace(BEFORE.disks[0], mirror=Mirror("copy", "pivot", SHORT)),)),
            ["a mirror (copy) is left without a job on disk vda of guest vm1, find out which image QEMU writes to before the guest is restarted"],
        ),
        (BEFORE, guest(SHORT), ["disk vda of guest vm1 has the chain /c <- /a, where /c <- /b <- /a was expected"]),
        (BEFORE, guest(LONG, SHORT), ["the persistent definition of guest vm1 gives disk vda the chain /c <- /a, where /c <- /b <- /a was expected"]),
    ],
)
def test_same_as_before(before, now, expected):
    assert same_as_before(Plan((before,), (guest(SHORT),)), (now,)) == expected


TO_A, TO_B = Mirror("copy", "yes", Chain((file_layer("/m", "qcow2", 9),), True)), Mirror("copy", "yes", Chain((file_layer("/n", "qcow2", 9),), True))


def mirrored(mirror, job=True):
    return replace(BEFORE, disks=(replace(BEFORE.disks[0], mirror=mirror, job=Job("copy") if job else None),))


@pytest.mark.parametrize(
    ("wanted", "now", "settles", "expected"),
    [
        (TO_A, mirrored(TO_A), True, []),
        (TO_A, BEFORE, True, ["disk vda of guest vm1 has no mirror to /m, where one was expected"]),
        (TO_A, mirrored(TO_B), True, ["disk vda of guest vm1 has no mirror to /m, where one was expected"]),
        (TO_A, mirrored(replace(TO_A, ready=None)), True, ["the mirror of disk vda of guest vm1 is not ready"]),
        (TO_A, mirrored(replace(TO_A, ready="abort")), True, ["the mirror of disk vda of guest vm1 is not ready"]),
        (replace(TO_A, ready=None), mirrored(TO_A), True, []),
        # Not waited for: on its way.
        (replace(TO_A, ready=None), mirrored(replace(TO_A, ready=None)), False, []),
        (replace(TO_A, ready=None), BEFORE, False, ["disk vda of guest vm1 has no mirror to /m, where one was expected"]),
    ],
)
def test_a_mirror_that_is_to_stay(wanted, now, settles, expected):
    plan = Plan((BEFORE,), (mirrored(wanted),), (Step("copy", "vda"),), settles=settles)
    assert mismatches(plan, (now,)) == expected


def test_a_mirror_that_ran_before_and_is_over_has_changed_nothing():
    """An adopted copy that fails leaves the guest as it was."""
    assert same_as_before(Plan((mirrored(TO_A),), (guest(SHORT),), (Step("wait", "vda"),)), (BEFORE,)) == []


def test_other_disks_are_other_runs_work():
    """Two runs on two disks of a guest: neither compares, or counts as a failure, what the other did."""
    two = replace(BEFORE, disks=(*BEFORE.disks, Disk("vdb", LONG)))
    done = replace(two, disks=(Disk("vda", SHORT), replace(two.disks[1], chain=SHORT, job=Job("pull"))), config=())
    plan = Plan((replace(two, config=()),), (replace(done, disks=(done.disks[0], two.disks[1])),), (Step("pull", "vda"),))
    assert mismatches(plan, (done,)) == []
    assert same_as_before(plan, (replace(done, disks=(two.disks[0], done.disks[1])),)) == []


def test_who_needs_a_file_by_now():
    step = Step("delete", "vda", {"path": "/a"})
    assert needed_again(step, Observed(())) == []
    assert needed_again(step, Observed((), uses=(Use(("path", "/a"), "vm9", "u9", "vdc"),))) == ["disk vdc of guest vm9 uses it"]
    linked = Observed((), {"/a": File("/a", True, real="/r")}, uses=(Use(("path", "/r"), "vm9", "u9", "vdc"),))
    assert needed_again(step, linked) == ["disk vdc of guest vm9 uses it"]
    assert needed_again(step, Observed((), unread=("/x",))) == ["the chain below /x cannot be read"]


@given(chains())
def test_a_beginning_covers(chain):
    """libvirt may write the next start's chain as far as it likes, as long as it says nothing wrong."""
    for length in range(1, len(chain) + 1):
        start = Chain(chain.layers[:length], None)
        assert covers(start, chain)
        assert covers(replace(start, ends=True), replace(chain, ends=True)) == (length == len(chain))
        assert not covers(Chain(start.layers[::-1] + (C, A), None), chain)
    assert not covers(Chain(), chain) and covers(Chain(), Chain())


def test_the_next_start_follows_only_its_own_active_layer():
    chain = pull(LONG, 2)
    assert with_chain(BEFORE, "vda", chain).config_disk("vda").chain == chain
    other = guest(config=Chain((B, C), True))
    assert with_chain(other, "vda", chain).config == other.config
    busy = replace(BEFORE, disks=(replace(BEFORE.disks[0], job=Job("pull"), mirror=Mirror("copy", None, LONG)),))
    assert with_chain(busy, "vda", chain).disks == (Disk("vda", chain),)


SEEN = Observed(
    (with_job(BEFORE),),
    files={"/a": File("/a", True, "file", 1, 2, 3, "/a", "dir")},
    uses=(Use(("path", "/a"), "vm1", "u1", "vda"), Use(("path", "/x"), "vm2", "u2", "vda")),
    snapshots=(Snapshot("s", (("vda", "/a"),)),),
)


def with_file(**facts):
    return replace(SEEN, files={"/a": replace(SEEN.files["/a"], **facts)})


def with_guest(change):
    return replace(SEEN, domains=(change(SEEN.domain),))


def with_vda(**facts):
    return with_guest(lambda domain: replace(domain, disks=(replace(domain.disks[0], **facts),)))


@pytest.mark.parametrize(
    "other",
    [
        with_vda(job=None),
        with_vda(job=Job("commit")),
        with_vda(chain=SHORT),
        with_vda(chain=Chain((replace(A, index=9), B, C), True)),
        with_vda(mirror=Mirror("copy", None, SHORT)),
        with_guest(lambda domain: replace(domain, uuid="u2")),
        with_guest(lambda domain: replace(domain, active=False)),
        with_guest(lambda domain: replace(domain, persistent=False)),
        with_guest(lambda domain: replace(domain, config=())),
        with_guest(lambda domain: replace(domain, disks=())),
        with_file(exists=False),
        with_file(device=9),
        with_file(inode=9),
        replace(SEEN, files={}),
        replace(SEEN, snapshots=()),
    ],
)
def test_two_looks_differ(other):
    assert other.identity != SEEN.identity


@pytest.mark.parametrize(
    "other",
    [
        with_vda(job=Job("pull", 7, 8, 9)),
        with_guest(lambda domain: replace(domain, state="paused")),
        with_file(size=9),
        replace(SEEN, uses=SEEN.uses[:1]),  # other guests come and go; the plan is made anew from what they use
    ],
)
def test_what_moves_by_itself_is_no_difference(other):
    assert other.identity == SEEN.identity


@pytest.mark.parametrize(("one", "two"), [(None, "yes"), ("yes", "pivot"), ("yes", "abort")])
def test_a_mirror_that_becomes_ready_is_a_difference(one, two):
    assert with_vda(mirror=Mirror("copy", one, SHORT)).identity != with_vda(mirror=Mirror("copy", two, SHORT)).identity


# Rendering

KEYS = ["depth", "index", "address", "parent", "type", "protocol", "path", "name", "host", "format", "data_store", "terminated", "readonly"]


@given(disks())
def test_a_disk_is_returned_as_plain_data(disk):
    result = render.disk_result(disk)
    assert json.loads(json.dumps(result)) == result
    assert [list(layer) for layer in result["chain"]] == [KEYS] * len(disk.chain)
    assert [layer["depth"] for layer in result["chain"]] == list(range(len(disk.chain)))
    assert [layer["parent"] for layer in result["chain"]] == ([None] + list(range(len(disk.chain) - 1)))[: len(disk.chain)]
    assert [layer["readonly"] for layer in result["chain"]] == [disk.readonly or depth > 0 for depth in range(len(disk.chain))]
    for layer, row in zip(disk.chain.layers, result["chain"]):
        assert row["address"] == (None if layer.index is None else "vda[%d]" % layer.index)
        assert row["path"] == layer.path and row["protocol"] == layer.protocol and row["host"] == [dict(host) for host in layer.hosts]
    assert (result["mirror"] is None) == (disk.mirror is None)


@pytest.mark.parametrize(("cur", "end", "percent"), [(0, 0, 0.0), (5, 0, 0.0), (1, 3, 33.3), (3, 3, 100.0)])
def test_percent(cur, end, percent):
    assert render.job_result(Job("copy", cur, end, 7, False)) == {"type": "copy", "cur": cur, "end": end, "percent": percent, "ready": False, "bandwidth": 7}


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (file_layer("/a", None), "/a"),
        (Layer("volume", (("pool", "p"), ("volume", "v"))), "p/v"),
        (Layer("network", (("name", "/x/y"), ("protocol", "nbd")), hosts=((("name", "h"), ("port", "1")), (("name", "i"),))), "nbd://h:1,i/x/y"),
        (Layer("network", (("name", "x"), ("protocol", "nbd")), hosts=((("socket", "/run/s"), ("transport", "unix")),)), "nbd:///run/s/x"),
        (Layer("nvme", (("namespace", "1"),)), "nvme"),
    ],
)
def test_a_layer_in_words(layer, text):
    assert str(layer) == text


def test_diff_keeps_the_line_of_a_layer_that_stays():
    """No depth and no index, so that --diff shows what leaves and what comes, and nothing else."""
    before, after = (render.diff_text([replace(domain, disks=domain.disks + (Disk("hdc", Chain(), "cdrom"),))]).splitlines() for domain in (BEFORE, AFTER))
    assert before == [
        "guest vm1, disk vda",
        "  /a (file, qcow2)",
        "  /b (file, qcow2)",
        "  /c (file, raw)",
        "  the chain ends here",
        "guest vm1, disk hdc",
        "  empty",
    ]
    assert [line for line in before if line not in after] == ["  /b (file, qcow2)"] and len(after) == len(before) - 1
    assert render.chain_lines(Chain((replace(A, format=None),), None)) == ["  /a (file, format unknown)", "  what follows is not known"]


def test_a_data_file_is_shown_with_its_layer():
    """In the diff, in messages, and as data: a conversion that took another one is found."""
    split = Chain((replace(A, store=replace(file_layer("/d", "raw", 7), known_from="both", raw=True)), B), True)
    other = Chain((replace(A, store=file_layer("/e", "raw")), B), True)
    assert render.chain_lines(split)[:2] == ["  /a (file, qcow2, data in /d)", "  /b (file, qcow2)"]
    assert render.mirror_lines(Mirror("copy", None, split)) == ["  mirrored (copy) to /a (qcow2, data in /d)"]
    told = {"type": "file", "path": "/d", "name": None, "protocol": None, "format": "raw", "index": 7, "raw": True, "relative": False, "known_from": "both"}
    assert [one["data_store"] for one in render.chain_result("vda", split)] == [told, None]
    plan = Plan((guest(Chain((B,), True)),), (guest(split, None),), (Step("define", "vda"),))
    assert mismatches(plan, (guest(split, None),)) == []
    assert mismatches(plan, (guest(other, None),)) == [
        "disk vda of guest vm1 has the chain /b <- /a (data in /e), where /b <- /a (data in /d) was expected"
    ]


def test_a_data_file_that_is_removed_or_stays_is_told():
    file = {"path": "/m", "device": 1, "inode": 2}
    steps = [dict(file, stays=("/d", "disk vda of guest vm2 uses it")), dict(file, path="/d", of="/m"), file]
    rows = render.steps_result(Plan((), (), tuple(Step("delete", "vda", one) for one in steps)), ())
    assert [row["does"] for row in rows] == [
        "remove /m; its data file /d stays (disk vda of guest vm2 uses it)",
        "remove /d, the data file of /m",
        "remove /m",
    ]


@pytest.mark.parametrize(("chain", "text"), [(LONG, "/c <- /b <- /a"), (Chain((A, B), None), "(not known) <- /b <- /a"), (Chain(), "empty")])
def test_a_chain_in_a_message(chain, text):
    assert render.chain_text(chain) == text


def test_steps_say_what_was_begun_and_where_the_fence_is():
    steps = (Step("pull", "vda", {"base": None}), Step("wait", "vda", {"job": "pull", "until": "completed"}), Step("delete", "vda", {"path": "/b"}))
    rows = render.steps_result(Plan((), (), steps, fence=1), steps[:2])
    assert [(row["action"], row["disk"], row["fence"], row["begun"]) for row in rows] == [
        ("pull", "vda", False, True),
        ("wait", "vda", True, True),
        ("delete", "vda", False, False),
    ]
    assert [row["does"] for row in rows] == ["pull vda down to nothing (flatten)", "wait until the pull job is completed", "remove /b"]


@pytest.mark.parametrize(
    ("backing", "expected"),
    [
        (None, None),
        ("", None),
        ("b.qcow2", "/srv/b.qcow2"),
        ("../t/b", "/srv/../t/b"),
        ("/x//y/../b", "/x/y/../b"),
        ("file:/x/b", "/x/b"),
        ("file:b", "/srv/b"),
        ("dir:with/b", None),
        ("d/a:b", "/srv/d/a:b"),
        ('json:{"file.filename": "/etc/shadow"}', None),
        ("nbd://h/x", None),
        ("nbd:unix:/s", None),
    ],
)
def test_a_backing_name_is_reported_and_never_followed_elsewhere(backing, expected):
    assert resolve_backing("/srv/a.qcow2", backing) == expected
