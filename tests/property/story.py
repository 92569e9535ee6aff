# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One guest and what happens to it, step by step: predicted, done, and looked at."""

from __future__ import annotations

import copy
import json

import model
import steps
from world import CELL, FIRST, NAME, World, Wrong


class Failed(Exception):
    """A sequence went wrong at its last step; ``lines`` tell what was done."""

    def __init__(self, position: int, lines: list, reason: str):
        super().__init__("step %d, %s: %s" % (position, lines[-1], reason))
        self.position, self.lines = position, lines


class Sequence:
    """One guest and what happens to it."""

    def __init__(self, world: World, told: list, verbose: bool):
        self.world, self.told, self.verbose = world, told, verbose
        self.lines: list = []
        self.fates: list = []  # (what, whether the guest ran, its end, the code) of each step
        self.cells: dict = {}
        self.formats: dict = {}
        self.on_delete: dict = {}
        self.moments: dict = {}  # {snapshot: {disk: what its base showed when it was taken}}
        self.exact: dict = {}  # {snapshot: (how long the guest's log was, the cells)}, of those that were taken while it did not write
        self.valid: set = set()  # (snapshot, disk), of those that showed their moment when they were looked at
        self.seen: dict = {}
        self.shared: frozenset = frozenset()

    def run(self) -> None:
        position = 0
        try:
            for position, step in enumerate(self.told):
                self.lines.append("guest %s" % step if step["op"] == "guest" else step["op"])
                running = self.seen.get("active", False)
                fate, dummy, code = self._step(step).partition(" ")
                self.fates.append((self.lines[-1].partition(" ")[0], running, fate, code))
                self.lines[-1] += ": %s %s" % (fate, code)
                if self.verbose:
                    print("  %d %s" % (position, self.lines[-1]), flush=True)
            self.lines.append("the end")
            self._end()
        except Wrong as error:
            raise Failed(position, self.lines, str(error)) from error

    def _step(self, step: dict) -> str:
        if step["op"] == "guest":
            self.shared = self.world.make(step)
            self.seen = self._read(None)
            self.cells = {target: [0] * steps.CELLS for target in self.seen["disks"]}
            return "done"
        self._write(step)
        by_hand = {"power": self._power, "pause": self._pause, "daemon": self._daemon, "native": self._native}
        return by_hand[step["op"]](step) if step["op"] in by_hand else self._asked(step)

    # Reading

    def _state(self) -> model.State:
        disks = self.seen["disks"]
        chains = {target: disk["headers"] for target, disk in disks.items()}
        files = frozenset(self.seen["files"])
        shots = [
            model.Shot(name, one["tracked"], {key: tuple(pair) for key, pair in one["disks"].items()}, self.on_delete.get(name, {}))
            for name, one in sorted(self.seen["shots"].items())
        ]
        state = model.State(NAME, self.seen["active"], chains, shots, self.shared, files, frozenset(self.exact))
        state.shots = [shot for shot in shots if shot.tracked or state.stands(shot)]
        return state

    def _read(self, chains: dict | None) -> dict:
        """How the guest stands; every reader has to have the same chains, and these if they are given."""
        seen = self.world.look()
        for target, disk in seen["disks"].items():
            chain = disk["headers"] if chains is None else chains[target]
            then = disk["next"]["paths"]
            wrong = disk["headers"] != chain or then != chain[: len(then)] or (disk["next"]["ends"] and then != chain)
            wrong = wrong or (seen["active"] and not disk["live"] == disk["qemu"] == chain) or not disk["quiet"]
            if wrong:
                raise Wrong("the chain of %s was to be %s, and is %s" % (target, chain, json.dumps(disk)))
            self.formats[chain[0]] = disk["format"]
            self.formats.setdefault(chain[-1], self.told[0]["base"])
        if seen["job_notes"]:
            raise Wrong("the note of a job was left")
        return seen

    def _same(self, what: str) -> None:
        now = self.world.look()
        differs = [key for key in now if now[key] != self.seen[key]]
        if differs:
            raise Wrong("%s changed %s: %s" % (what, differs, [(self.seen[key], now[key]) for key in differs if key != "xml"]))

    def _hashes(self) -> dict | None:
        """What a guest that is off would see."""
        if self.seen["active"]:
            return None
        images = [(disk["headers"][0], disk["format"]) for disk in self.seen["disks"].values()]
        found = self.world.ask("hashes", images=images)["hashes"]
        return {target: found[disk["headers"][0]] for target, disk in self.seen["disks"].items()}

    # Requests to the modules

    def _asked(self, step: dict) -> str:
        state = self._state()
        want = model.want(state, step)
        state_ = want.args.get("state", "")
        self.lines[-1] = "%s %s" % (want.module + ("-" + state_ if state_ else ""), {key: value for key, value in want.args.items() if key != "name"})
        said = self.world.run(want.module, want.args, check=True)
        if said.get("failed"):
            return self._refused(want, said)
        if want.must:
            raise Wrong("it was to be refused (%s), and check mode predicts %s" % (sorted(want.must), chains_of(said)))
        changes = want.chains != state.chains if want.changes is None else want.changes
        self._answers(want, said, changes, "check mode")
        self._same("check mode")
        content = self._hashes()
        said = self.world.run(want.module, want.args)
        self._answers(want, said, changes, "the module")
        before, self.seen = self.seen, self._read(want.chains)
        self._followed(want, state, before)
        if want.reverts:
            self._back(want.reverts)
        elif content is not None and content != self._hashes():
            raise Wrong("what the guest sees has changed")
        if want.again:
            said = self.world.run(want.module, want.args)
            self._answers(want, said, False, "a second run")
            self._same("a second run")
        return "done" if changes else "unneeded"

    def _refused(self, want: model.Want, said: dict) -> str:
        if said.get("code") not in want.must | want.may:
            raise Wrong("refused with %s: %s" % (said.get("code"), said.get("exception") or said.get("msg")))
        again = self.world.run(want.module, want.args)
        if [again.get(key) for key in ("failed", "code", "msg", "changed", "steps")] != [True, said["code"], said["msg"], False, []]:
            raise Wrong("refused in check mode (%s), and for real: %s" % (said["msg"], again))
        self._same("the refusal")
        return "refused " + said["code"]

    def _answers(self, want: model.Want, said: dict, changes: bool, who: str) -> None:
        if said.get("failed"):
            raise Wrong("%s failed: %s" % (who, said.get("exception") or said.get("msg")))
        if chains_of(said) != want.chains:
            raise Wrong("%s says %s, and it was to be %s" % (who, chains_of(said), want.chains))
        if said["changed"] != changes or bool(said["steps"]) != changes:
            raise Wrong("%s says changed %s, with the steps %s" % (who, said["changed"], said["steps"]))
        if who == "the module" and not all(step["begun"] for step in said["steps"]):
            raise Wrong("not all steps were begun: %s" % said["steps"])

    def _followed(self, want: model.Want, state: model.State, before: dict) -> None:
        """Files, snapshots and what they stand for are right after a success."""
        files = (set(before["files"]) | set(want.new)) - set(want.gone)
        spare = set(want.spare) if want.args.get("delete_files") else set()
        if not files - spare <= set(self.seen["files"]) <= files:
            raise Wrong("the files: too many %s, too few %s" % (set(self.seen["files"]) - files, files - set(self.seen["files"])))
        now = self._state()
        names = {shot.name for shot in state.shots} - {want.removes}
        if want.args.get("state", "present") == "present" and "snapshot_name" in want.args:
            names.add(want.args["snapshot_name"])
            self._taken(want, now)
        left = {shot.name for shot in now.shots}
        tracked = {shot.name for shot in state.shots if shot.tracked}
        if left - names - set(before["shots"]) or (tracked & names) - left:  # a note may come to mean something again
            raise Wrong("the snapshots were to be %s, and are %s" % (sorted(names), sorted(left)))
        self._kept(state, now, want)

    def _taken(self, want: model.Want, state: model.State) -> None:
        name = want.args["snapshot_name"]
        shot = next((shot for shot in state.shots if shot.name == name), None)
        if shot is None:
            raise Wrong("nothing tells of the snapshot %s" % name)
        if not all(state.intact(shot, target) for target in shot.disks):
            raise Wrong("the snapshot %s has %s" % (name, shot.disks))
        self.on_delete[name] = model.directions(want)
        shown = self._shown([shot])
        self.moments[name] = {target: shown[base] for target, (dummy, base) in shot.disks.items()}
        if self.seen["paused"] or not self.seen["active"]:
            self.exact[name] = self.world.log_size(), copy.deepcopy(self.cells)

    def _kept(self, before: model.State, now: model.State, want: model.Want | None) -> None:
        """Every snapshot has the border and the moment that it had. A pull and a copy may take both away, and a reversion the border."""
        drops = want is not None and want.module in ("block_rebase", "block_copy")
        leaves = drops or (want is not None and want.reverts is not None)
        old = {shot.name: shot for shot in before.shots}
        shown = self._shown(now.shots)
        for shot in now.shots:
            for target, (dummy, base) in shot.disks.items():
                valid = shown[base] == self.moments[shot.name][target]
                if not valid and (shot.name, target) in self.valid and not (drops and want.gone):
                    raise Wrong("%s on %s is not what snapshot %s stands for: %s" % (base, target, shot.name, shown[base][:200]))
                if shot.name in old and before.intact(old[shot.name], target) and not now.intact(shot, target) and not leaves:
                    raise Wrong("snapshot %s lost its border on %s: it has %s" % (shot.name, target, shot.disks[target]))
        self.valid = {(shot.name, key) for shot in now.shots for key, pair in shot.disks.items() if shown[pair[1]] == self.moments[shot.name][key]}

    def _shown(self, shots: list) -> dict:
        """What their bases show."""
        bases = {base for shot in shots for dummy, base in shot.disks.values()}
        return self.world.ask("hashes", images=[(base, self.formats.get(base, "qcow2")) for base in sorted(bases)])["hashes"]

    def _back(self, name: str) -> None:
        """The guest sees the moment of the snapshot, and knows of nothing that came later."""
        if self._hashes() != self.moments[name]:
            raise Wrong("the guest does not see the moment of %s" % name)
        size, self.cells = self.exact[name][0], copy.deepcopy(self.exact[name][1])
        self.world.cut_log(size)

    # By hand

    def _write(self, step: dict) -> None:
        writes = []
        for number, (target, disk) in enumerate(sorted(self.seen["disks"].items())):
            cell, byte = step["cells"][number]
            byte = byte % 255 + 1 if self.cells[target][cell] == byte else byte
            self.cells[target][cell] = byte
            writes.append([number, disk["headers"][0], disk["format"], "write -P %d %d %d" % (byte, FIRST + cell * CELL, CELL)])
        self.world.ask("write", guest=NAME, writes=writes)

    def _power(self, step: dict) -> str:
        chains = {target: disk["headers"] for target, disk in self.seen["disks"].items()}
        self.lines[-1] += " off" if self.seen["active"] else " on"
        if self.seen["active"]:
            self.world.shell("virsh destroy %s" % NAME)
            self.seen = self._read(chains)
            self._data()
        else:
            self.world.shell("virsh start %s" % NAME)
            self.world.acks(2)
            self.seen = self._read(chains)
        return "done"

    def _data(self) -> None:
        """What a guest that is off would see: its own writes, and the cells."""
        self.world.verified()
        for target, disk in self.seen["disks"].items():
            image = [disk["headers"][0], disk["format"]]
            found = self.world.ask("cells", image=image, first=FIRST, count=steps.CELLS, size=CELL)["cells"]
            if found != self.cells[target]:
                raise Wrong("the cells of %s were to be %s, and are %s" % (target, self.cells[target], found))

    def _pause(self, step: dict) -> str:
        if not self.seen["active"]:
            return "skipped"
        self.world.shell("virsh %s %s" % ("resume" if self.seen["paused"] else "suspend", NAME))
        self.seen = self.world.look()
        return "done"

    def _daemon(self, step: dict) -> str:
        self.world.restart_daemon()
        self.seen = self._read({target: disk["headers"] for target, disk in self.seen["disks"].items()})
        return "done"

    def _native(self, step: dict) -> str:
        """libvirt deletes one of the snapshots by itself: what the modules left of its metadata has to be right."""
        state = self._state()
        right = all(shot.tracked and all(state.intact(shot, target) for target in shot.disks) for shot in state.shots)
        if not state.running or not state.shots or not right:
            return "skipped"
        shot = model.pick(step["shot"], state.shots)
        if any(base in self.shared for dummy, base in shot.disks.values()):
            return "skipped"
        chains = dict(state.chains)
        for target, (overlay, dummy) in shot.disks.items():
            chains[target] = [path for path in chains[target] if path != overlay]
        self.lines[-1] = "virsh snapshot-delete %s" % shot.name
        self.world.shell("virsh snapshot-delete %s %s" % (NAME, shot.name))
        self.seen = self._read(chains)
        now = self._state()
        if {one.name for one in now.shots} != {one.name for one in state.shots} - {shot.name}:
            raise Wrong("libvirt deleted %s, and there are %s" % (shot.name, [one.name for one in now.shots]))
        self._kept(state, now, None)
        return "done"

    def _end(self) -> None:
        """Nothing is lost, also after a cold start."""
        if self.seen["paused"]:
            self._pause({})
        if self.seen["active"]:
            self.world.verified()
            self._power({})
        self._data()
        self._power({})
        self.world.verified()
        self._kept(self._state(), self._state(), None)


def chains_of(result: dict) -> dict:
    return {disk["disk"]: [layer["path"] for layer in disk["chain"]] for disk in result["domains"][0]["disks"]}
