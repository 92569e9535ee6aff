# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What holds for every merge of every chain: running and off the same comes out, and the definition that is left leads to it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.livestorage.libvirt.plugins.module_utils._core.chain import Chain, commit, file_layer, pull
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.domain_xml import parse_domain
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.errors import Refused
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.headers import wanted
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.host_facts import File
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.model import Disk, Domain, Observed, Snapshot
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.plan import LOCK, MERGE, REBASE, REDEFINE
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.verify import mismatches
from ansible_collections.livestorage.libvirt.plugins.module_utils._core.write_xml import chain_xml, with_chains
from ansible_collections.livestorage.libvirt.tests.unit.storage import Storage
from ansible_collections.livestorage.libvirt.tests.unit.support import operation, params_for


def chain_of(length: int, running: bool) -> Chain:
    return Chain(tuple(file_layer("/l%d" % depth, "qcow2", 10 + (depth * 3) % 7 if running else None) for depth in range(length)), True)


def definition(length: int, spelled: int) -> str:
    """The definition of a guest whose disk spells out so many of its layers, and leaves the rest to the headers (all: with the end)."""
    chain = Chain(chain_of(length, False).layers[:spelled], True if spelled == length else None)
    return "<domain><name>vm1</name><uuid>u</uuid><devices>%s</devices></domain>" % chain_xml(Disk("vda", chain))


def host(length: int, running: bool, spelled: int, snapshots=(), noted=()) -> Observed:
    """A guest with such a chain, and all that a planner asks for."""
    config = parse_domain(definition(length, spelled), False).disks
    domain = Domain("vm1", "u", running, "running" if running else "shutdown", disks=(Disk("vda", chain_of(length, running)),), config=config, noted=noted)
    paths = [layer.path for layer in domain.disks[0].chain.layers]
    files = {path: File(path, True, "file", 1, 1, number, path, "dir") for number, path in enumerate(paths)}
    return Observed((domain,), files, probes=Storage((domain,), {}).probe_all(wanted((domain,))), snapshots=tuple(snapshots))


def plan_of(name: str, seen: Observed, **params):
    planner = operation(name)
    return planner.plan(planner.request(params_for(name, dict(params, name="vm1"))), seen)


def chain_after(plan) -> list:
    return [str(layer) for layer in plan.after[0].disks[0].chain.layers]


def done(plan, length: int, spelled: int) -> Domain:
    """The guest, which is off, as its images and its definition are after the steps: the chain as the headers of what was written lead."""
    headers = {layer.path: below for layer, below in zip(chain_of(length, False).layers, chain_of(length, False).layers[1:])}
    xml = definition(length, spelled)
    for step in plan.steps:
        if step.action == REBASE:
            headers[step.detail["layer"].path] = step.detail["to"]
        if step.action == REDEFINE:
            xml = with_chains(xml, dict(step.detail["chains"])) or xml
    config = parse_domain(xml, False).disks
    layers = [config[0].chain[0]]
    while headers.get(layers[-1].path) is not None:
        layers.append(headers[layers[-1].path])
    return replace(plan.before[0], disks=(Disk("vda", Chain(tuple(layers), True)),), config=config)


def held_right(plan, write: set, length: int) -> None:
    """Everything is held before anything is written, and only what is written to is held for writing."""
    actions = [step.action for step in plan.steps]
    locks = [step for step in plan.steps if step.action == LOCK]
    assert actions[: len(locks)] == [LOCK] * len(locks) == [LOCK]
    for_writing, for_reading = ({layer.path for layer in locks[0].detail[which]} for which in ("write", "read"))
    written = {step.detail["chain"][-1].path for step in plan.steps if step.action == MERGE}
    written |= {step.detail["layer"].path for step in plan.steps if step.action == REBASE}
    assert written <= for_writing == write and not for_writing & for_reading
    assert for_writing | for_reading >= {"/l%d" % depth for depth in range(min(int(path[2:]) for path in write), length)}


@st.composite
def merges(draw):
    """(length, top, base, how many layers the definition spells out)"""
    length = draw(st.integers(2, 6))
    top = draw(st.integers(0, length - 2))
    return length, top, draw(st.integers(top + 1, length - 1)), draw(st.integers(1, length))


@given(merges())
def test_a_commit(drawn):
    length, top, base, spelled = drawn
    names = {"disk": "vda", "top": "/l%d" % top, "base": "/l%d" % base}
    live, off = (plan_of("block_commit", host(length, running, spelled), **names) for running in (True, False))
    expected = [str(layer) for layer in commit(chain_of(length, False), top, base).layers]
    assert chain_after(live) == chain_after(off) == expected and live.spoils == off.spoils == tuple("/l%d" % depth for depth in range(top + 1, base + 1))
    held_right(off, {"/l%d" % depth for depth in range(max(0, top - 1), base + 1)}, length)
    assert mismatches(off, (done(off, length, spelled),)) == []
    assert plan_of("block_commit", after(live), **names).steps == () == plan_of("block_commit", after(off), **names).steps


@given(merges(), st.booleans())
def test_a_pull(drawn, flat):
    length, top, base, spelled = drawn
    names = {"disk": "vda", "top": "/l%d" % top, "base": None if flat else "/l%d" % base}
    expected = pull(chain_of(length, False), None if flat else base, top)
    off = plan_of("block_rebase", host(length, False, spelled), **names)
    assert chain_after(off) == [str(layer) for layer in expected.layers]
    if off.steps:
        held_right(off, {"/l%d" % top}, length)
        assert mismatches(off, (done(off, length, spelled),)) == []
    assert plan_of("block_rebase", after(off), **names).steps == ()
    if top and off.steps:
        with pytest.raises(Refused) as caught:
            plan_of("block_rebase", host(length, True, spelled), **names)
        assert caught.value.code == "offline_only"
    else:
        live = plan_of("block_rebase", host(length, True, spelled), **names)
        assert chain_after(live) == chain_after(off) and bool(live.steps) == bool(off.steps)


def after(plan) -> Observed:
    """The host once the guest is as predicted, as the next run of the same task meets it."""
    domain = plan.after[0]
    paths = [layer.path for layer in domain.disks[0].chain.layers]
    files = {path: File(path, True, "file", 1, 1, number, path, "dir") for number, path in enumerate(paths)}
    return Observed((domain,), files, probes=Storage((domain,), {}).probe_all(wanted((domain,))))


@given(merges(), st.sampled_from(["forward", "backward"]), st.booleans())
def test_the_deletion_of_a_snapshot(drawn, direction, tracked):
    """It takes its own border away, and what is kept of the others names borders that are there."""
    length, over, dummy, spelled = drawn
    shots = tuple(Snapshot("s%d" % depth, (("vda", "/l%d" % depth),), (("vda", "/l%d" % (depth + 1)),), tracked=tracked) for depth in range(length - 1))
    known = {"snapshots": shots} if tracked else {"noted": shots}
    plan = plan_of("external_snapshot", host(length, False, spelled, **known), state="absent", snapshot_name="s%d" % over, merge=direction)
    gone = "/l%d" % (over if direction == "backward" else over + 1)
    assert chain_after(plan) == ["/l%d" % depth for depth in range(length) if "/l%d" % depth != gone]
    assert mismatches(plan, (done(plan, length, spelled),)) == []
    told = [step for step in plan.steps if step.action == "retell"][-1].detail if length > 2 or not tracked or direction == "backward" else None
    chain = chain_after(plan)
    borders = set(itertools.pairwise(chain))
    if not tracked:
        assert {(shot.overlay("vda"), shot.base("vda")) for shot in told["notes"]} == borders and len(told["notes"]) == len(shots) - 1
    elif told is not None:
        new = {path: str(layer) for dummy, path, layer in told["moved"]}
        left = [shot for shot in shots if shot.name != "s%d" % over]
        assert set(told["names"]) == {shot.name for shot in left}
        assert {(new.get(shot.overlay("vda"), shot.overlay("vda")), new.get(shot.base("vda"), shot.base("vda"))) for shot in left} == borders


@given(st.integers(2, 6), st.integers(1, 6), st.data())
def test_a_reversion(length, spelled, data):
    """The image that holds the moment is not written to, and the overlay above it is new."""
    spelled = min(spelled, length)
    depth = data.draw(st.integers(1, length - 1))
    shot = Snapshot("s", (("vda", "/l%d" % (depth - 1)),), (("vda", "/l%d" % depth),))
    seen = host(length, False, spelled, snapshots=[shot])
    new = "/l%d.s-1" % depth
    seen = replace(seen, files=dict(seen.files, **{new: File(new, False, parent="dir", real=new)}))
    plan = plan_of("external_snapshot", seen, state="reverted", snapshot_name="s")
    assert chain_after(plan) == [new] + ["/l%d" % number for number in range(depth, length)]
    assert all(not step.detail["write"] for step in plan.steps if step.action == LOCK)
    xml = with_chains(definition(length, spelled), dict(next(step for step in plan.steps if step.action == REDEFINE).detail["chains"]))
    real = replace(plan.before[0], disks=plan.after[0].disks, config=parse_domain(xml, False).disks)
    assert mismatches(plan, (real,)) == [] and real.config[0].chain[0].path == new
