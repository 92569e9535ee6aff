# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a step means for the chains as they are: the request to a module, and what has to come of it. It knows nothing of the collection's code.

A step is a dict of numbers and words that mean something for any chain (see steps.py): ``pick`` turns a number from 0 to 1 into one of
what is there. So a step may be left out of a sequence, and the rest still is one.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field

NEEDED = frozenset(["snapshot_needs"])
FORWARD, BACKWARD = "forward", "backward"


@dataclass(frozen=True)
class Shot:
    """A snapshot: {disk: (overlay, base)}, and the directions that were asked for when it was taken."""

    name: str
    tracked: bool
    disks: dict
    on_delete: dict = field(default_factory=dict)


@dataclass
class State:
    """A guest as it was read. ``shared``: images that another guest needs; ``files``: every file that is there.

    ``exact``: the snapshots of which it is known how many writes the guest had acknowledged.
    """

    guest: str
    running: bool
    chains: dict
    shots: list
    shared: frozenset
    files: frozenset
    exact: frozenset

    def intact(self, shot: Shot, target: str) -> bool:
        """Is the overlay directly above the base still?"""
        overlay, base = shot.disks[target]
        chain = self.chains.get(target, [])
        return overlay in chain and base in chain and chain.index(base) == chain.index(overlay) + 1

    def stands(self, shot: Shot) -> bool:
        """Does anything tell of a snapshot that libvirt does not keep: an overlay in a chain, or an image that is on another branch?"""
        pairs = [(target, *pair) for target, pair in shot.disks.items() if target in self.chains]
        return any(overlay in self.chains[target] or (base in self.files and base not in self.chains[target]) for target, overlay, base in pairs)

    def about(self, target: str) -> list:
        return [shot for shot in self.shots if target in shot.disks]


@dataclass
class Want:
    """A request, and what has to come of it.

    ``must``: the codes of refusals one of which has to come; ``may``: those that may come instead of a success. ``chains``: all of the
    guest's after a success. ``again``: is there nothing left for a second run? ``gone``: the files that are removed, and ``spare`` those that may be.
    """

    module: str
    args: dict
    chains: dict
    must: set = field(default_factory=set)
    may: set = field(default_factory=set)
    again: bool = True
    gone: list = field(default_factory=list)
    spare: list = field(default_factory=list)
    new: list = field(default_factory=list)
    # Whether a success changes anything; None: as the chains do.
    changes: bool | None = None
    removes: str | None = None
    reverts: str | None = None

    def instead(self, target: str, chain: list) -> None:
        self.chains = dict(self.chains, **{target: chain})


def pick(number: float, of: list):
    return of[min(int(number * len(of)), len(of) - 1)]


def beside(path: str, name: str) -> str:
    """libvirt's name for an overlay."""
    folder, base = posixpath.split(path)
    return posixpath.join(folder, "%s.%s" % (base.rpartition(".")[0] or base, name))


def want(state: State, step: dict) -> Want:
    return globals()["_" + step["op"]](state, step)


def _new(state: State, step: dict, target: str, suffix: str = "qcow2") -> str:
    return "/srv/fast/%s-%s-%d.%s" % (state.guest, target, step["n"], suffix)


def _wanted(now: State, module: str, /, **args) -> Want:
    return Want(module, dict(args, name=now.guest), dict(now.chains))


def _target(state: State, step: dict) -> str:
    return pick(step["disk"], sorted(state.chains))


# Snapshots


def _snapshot(state: State, step: dict) -> Want:
    name = "s%d" % step["n"]
    targets = [target for target, number in zip(sorted(state.chains), step["disks"]) if number < 0.7] or sorted(state.chains)[:1]
    named = step["tracked"] or step["named"]
    entries = []
    found = _wanted(state, "external_snapshot", metadata=step["tracked"])
    for target in targets:
        path = _new(state, step, target) if step["place"] or not named else beside(state.chains[target][0], name)
        entries.append(dict({"disk": target}, **({"path": path} if step["place"] or not named else {})))
        found.instead(target, [path, *state.chains[target]])
        found.new.append(path)
    found.args["disks"] = entries
    if named:
        found.args["snapshot_name"] = name
        found.args.update({"on_delete": step["on_delete"]} if step["on_delete"] else {})
    return found


def directions(want_: Want) -> dict:
    """What a snapshot that was just taken remembers of directions."""
    whole = want_.args.get("on_delete")
    return {entry["disk"]: whole for entry in want_.args["disks"]} if whole else {}


def _delete(state: State, step: dict) -> Want:
    """By the name."""
    found = _wanted(state, "external_snapshot", state="absent")
    if not state.shots and step["wild"] < 0.9:
        return _snapshot(state, step)
    if not state.shots:
        found.args["snapshot_name"] = "nobody"
        found.changes = False
        return found
    shot = pick(step["shot"], state.shots)
    found.args.update(snapshot_name=shot.name, **({"merge": step["merge"]} if step["merge"] else {}))
    said = {target: way for target, way in zip(sorted(shot.disks), step["ways"]) if way}
    if said:
        found.args["disks"] = [{"disk": target, "merge": way} for target, way in said.items()]
    for target in shot.disks:
        _taken_away(state, found, shot, target, said.get(target) or step["merge"] or shot.on_delete.get(target) or BACKWARD)
    found.changes, found.removes = True, shot.name
    if step["files"]:
        _remove(state, found)
    else:
        found.gone = []
    return found


def _taken_away(state: State, found: Want, shot: Shot, target: str, way: str) -> None:
    overlay, base = shot.disks[target]
    chain = state.chains[target]
    if overlay not in chain or base not in chain:
        found.may |= NEEDED
        found.spare += [base] if overlay in chain else []  # pulled before, into the overlay
        return
    over = chain.index(overlay)
    if chain[over + 1 :][:1] != [base]:
        found.must.add("not_as_recorded")
        return
    _border(state, found, target, over, way, [one for one in state.about(target) if one.name != shot.name])


def _border(state: State, found: Want, target: str, over: int, way: str, others: list) -> None:
    """The border between a layer and the one below is taken away; ``others``: the snapshots that stay."""
    chain = state.chains[target]
    base = chain[over + 1]
    if way == FORWARD and over and state.running:
        found.must.add("offline_only")
    if way == BACKWARD and base in state.shared:
        found.must |= {"base_shared", "in_use"}
    if any(one.disks[target][1] == base or one.disks[target][0] not in chain for one in others):
        found.may |= NEEDED
    leaves = over if way == BACKWARD else over + 1
    found.instead(target, chain[:leaves] + chain[leaves + 1 :])
    found.gone.append(chain[leaves])


def _remove(state: State, found: Want) -> None:
    """The files that leave are removed, too, where nobody needs them."""
    if any(path in state.shared for path in found.gone):
        found.must.add("in_use")
    found.args["delete_files"] = True


def _merge_layer(state: State, step: dict) -> Want:
    """By the disk and the overlay, whoever made it."""
    target, way = _target(state, step), step["merge"]
    chain = state.chains[target]
    over = int(step["a"] * len(chain))
    found = _wanted(state, "external_snapshot", state="absent", disks=[dict({"disk": target, "layer": chain[over]}, **({"merge": way} if way else {}))])
    if over + 1 == len(chain):
        found.must.add("nothing_below")
        return found
    way = way or BACKWARD
    shots = state.about(target)
    if any(one.disks[target][0] == chain[over] for one in shots):
        found.must |= NEEDED
    if any(set(one.disks[target]) & set(chain[over : over + 2]) for one in shots):
        found.may |= NEEDED
    _border(state, found, target, over, way, shots)
    found.again = way == BACKWARD
    if step["files"]:
        _remove(state, found)
    else:
        found.gone = []
    return found


def _revert(state: State, step: dict) -> Want:
    shots = [shot for shot in state.shots if shot.name in state.exact and set(shot.disks) == set(state.chains)]
    if not state.running and not shots:
        return _snapshot(state, step)
    if not state.shots:
        return _refused(state, {"no_snapshot"}, "external_snapshot", state="reverted", snapshot_name="nobody")
    shot = pick(step["shot"], shots if not state.running else state.shots)
    found = _wanted(state, "external_snapshot", state="reverted", snapshot_name=shot.name)
    if state.running:
        found.must.add("running")
        return found
    found.reverts = shot.name
    for target, (dummy, base) in shot.disks.items():
        chain = state.chains[target]
        if base not in chain:
            found.must.add("not_in_chain")
            continue
        path = next(one for one in (beside(base, "%s-%d" % (shot.name, number)) for number in range(1, 10)) if one not in state.files)
        found.instead(target, [path, *chain[chain.index(base) :]])
        found.new.append(path)
        found.gone += chain[: chain.index(base)]
    if step["files"]:
        _remove(state, found)
        found.must |= NEEDED if any(set(pair) & set(found.gone) for one in state.shots if one is not shot for pair in one.disks.values()) else set()
    else:
        found.gone = []
    return found


# Merges and copies


def _commit(state: State, step: dict) -> Want:
    target = _target(state, step)
    chain = state.chains[target]
    found = _wanted(state, "block_commit", disk=target)
    if len(chain) == 1 and step["wild"] < 0.9:
        return _snapshot(state, step)
    if len(chain) == 1:
        found.must.add("nothing_below")
        return found
    top = int(step["a"] * (len(chain) - 1))
    base = top + 1 + int(step["b"] * (len(chain) - top - 1))
    found.args.update(top=chain[top], base=chain[base])
    shots = state.about(target)
    overlays, written = set(chain[top:base]), set(chain[top + 1 : base + 1])
    if chain[base] in state.shared:
        found.must |= {"base_shared", "in_use"}
    if any(state.intact(one, target) and (one.disks[target][0] in overlays or one.disks[target][1] in written) for one in shots):
        found.must |= NEEDED
    if any(set(one.disks[target]) & (overlays | written) or one.disks[target][0] not in chain for one in shots):
        found.may |= NEEDED
    found.instead(target, chain[:top] + chain[base:])
    if step["files"]:
        found.args["delete_merged"] = True
        found.gone = chain[top:base]
    return found


def _pull(state: State, step: dict) -> Want:
    target = _target(state, step)
    chain = state.chains[target]
    top = int(step["a"] * len(chain)) if step["wild"] < 0.3 or not state.running else 0
    base = top + 1 + int(step["b"] * (len(chain) - top))
    found = _wanted(state, "block_rebase", disk=target)
    found.args.update({"top": chain[top]} if top else {}, **({"base": chain[base]} if base < len(chain) else {}))
    dropped = chain[top + 1 : base]
    if len(chain) == 1 and step["wild"] < 0.9:
        return _snapshot(state, step)
    if not dropped:
        return found
    found.instead(target, chain[: top + 1] + chain[base:])
    if state.running and top:
        found.must.add("offline_only")
    if any(set(one.disks[target]) & set(dropped) for one in state.about(target)):
        found.may |= NEEDED
    if step["files"]:
        found.args["delete_dropped"] = found.gone = dropped
        if state.shared & set(dropped):
            found.must.add("in_use")
    return found


def _copy(state: State, step: dict) -> Want:
    target = _target(state, step)
    chain = state.chains[target]
    suffix = "raw" if step["raw"] and not step["shallow"] else "qcow2"
    path = _new(state, step, target, suffix)
    found = _wanted(state, "block_copy", disk=target, dest={"path": path, "format": suffix}, shallow=step["shallow"])
    if not state.running:
        found.must.add("not_running")
        return found
    below = []
    if step["shallow"] and len(chain) > 1:
        depth = 1 + int(step["b"] * (len(chain) - 1)) if step["wild"] < 0.5 else 1
        found.args.update({"backing": chain[depth]} if depth > 1 else {})
        below = chain[depth:]
    found.instead(target, [path, *below])
    found.new.append(path)
    if step["files"]:
        found.args["delete_source"] = True
        found.gone = chain[:1]
        found.must |= {"in_use"} if chain[0] in state.shared else set()
        found.may |= NEEDED if any(chain[0] in one.disks[target] for one in state.about(target)) else set()
    return found


# What is never right


def _wrong(state: State, step: dict) -> Want:
    target = _target(state, step)
    chain = state.chains[target]
    return pick(step["kind"], WRONG)(state, target, chain, step)


def _refused(now: State, codes: set, module: str, /, **args) -> Want:
    found = _wanted(now, module, **args)
    found.must = codes
    return found


def _above(state, target, chain, step):
    return _refused(state, {"base_not_below"}, "block_commit", disk=target, top=chain[-1], base=chain[0])


def _strange_base(state, target, chain, step):
    return _refused(state, {"not_in_chain"}, "block_rebase", disk=target, base="/srv/fast/nothing.qcow2")


def _other_disk(state, target, chain, step):
    other = [one for one in state.chains if one != target]
    layer = state.chains[other[0]][0] if other else "/srv/fast/nothing.qcow2"
    return _refused(state, {"not_in_chain"}, "block_commit", disk=target, base=layer)


def _onto_itself(state, target, chain, step):
    return _refused(state, {"base_is_active"}, "block_rebase", disk=target, base=chain[0])


def _onto_a_file(state, target, chain, step):
    path = "/var/lib/libvirt/images/%s.acks" % state.guest
    return _refused(state, {"exists"}, "external_snapshot", metadata=False, disks=[{"disk": target, "path": path}])


def _onto_a_layer(state, target, chain, step):
    path = chain[-1]
    if len(chain) == 1:
        path = "/var/lib/libvirt/images/%s.acks" % state.guest
    return _refused(state, {"exists", "in_use"}, "external_snapshot", metadata=False, disks=[{"disk": target, "path": path}])


def _copy_onto_a_layer(state, target, chain, step):
    if len(chain) == 1:
        return _strange_base(state, target, chain, step)
    codes = {"same_image"} if state.running else {"not_running"}
    return _refused(state, codes, "block_copy", disk=target, dest={"path": chain[-1], "format": "qcow2"})


def _name_taken(state, target, chain, step):
    taken = [shot.name for shot in state.shots if shot.tracked]
    if not taken:
        return _refused(state, {"no_name"}, "external_snapshot", disks=[{"disk": target}])
    path = _new(state, step, target)
    return _refused(state, {"name_taken"}, "external_snapshot", snapshot_name=taken[0], disks=[{"disk": target, "path": path}])


def _no_disk(state, target, chain, step):
    return _refused(state, {"no_disk"}, "block_commit", disk="vdz")


WRONG = [_above, _strange_base, _other_disk, _onto_itself, _onto_a_file, _onto_a_layer, _copy_onto_a_layer, _name_taken, _no_disk]
