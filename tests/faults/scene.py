# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab host with one guest that writes, modules that are run inside of it, and whether what they say of the guest is true."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import verify  # the lab's own, which is on PYTHONPATH
from host import Lab

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[4]
LAB = HERE.parent / "lab" / "lab"
PYTHON = "/usr/bin/python3"
BEFORE = "The guest is as it was before"
# What a run may say whose guest is neither as before nor as planned.
UNSETTLED = frozenset(
    ["stale_pivot", "pivot_lost", "connection_lost", "no_daemon", "orphaned_guest", "interrupted", "guest_stopped", "timeout", "job_failed", "verify_failed"]
)


class Wrong(Exception):
    """A module said what is not true, or data was lost."""


@dataclass
class Move:
    """A disk that is to go from one image to another."""

    disk: str
    old: str
    new: str
    creates: bool = True


@dataclass
class Tally:
    """How the tries of a part ended, and what was wrong with them."""

    kinds: dict = field(default_factory=dict)
    wrong: list = field(default_factory=list)

    def add(self, kind: str) -> None:
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def __str__(self) -> str:
        return ", ".join("%s %d" % pair for pair in sorted(self.kinds.items()))


class Scene:
    """The process inside of the lab host, and the guest."""

    def __init__(self, lab: str, ansible: str, scratch: Path):
        self.lab = Lab.named(lab)
        (scratch / "ansible").symlink_to(ansible)
        environment = dict(os.environ, PYTHONPATH="%s:%s" % (scratch, TREE), PYTHONDONTWRITEBYTECODE="1")
        self.process = subprocess.Popen(
            [self.lab.enter, PYTHON, str(HERE / "inside.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.guest = ""
        self.serial = itertools.count(1)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def ask(self, do: str, **request) -> dict:
        self.process.stdin.write(json.dumps(dict(request, do=do)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process inside has ended"}
        if "error" in answer:
            raise Wrong(answer["error"])
        return answer

    def shell(self, command: str) -> str:
        answer = self.ask("shell", command=command)
        if answer["status"]:
            raise Wrong("%s: %s" % (command, answer["err"]))
        return answer["out"]

    def fresh_guest(self, name: str, *options: str) -> None:
        self.remove_guest()
        subprocess.run([LAB, "guest", self.lab.name, "add", name, *options], check=True, stdout=subprocess.DEVNULL)
        self.guest = name

    def remove_guest(self) -> None:
        if self.guest:
            subprocess.run([LAB, "daemon", self.lab.name, "start"], check=True)
            subprocess.run([LAB, "guest", self.lab.name, "remove", self.guest], check=True)
            self.shell("rm -rf /srv/fast/*")
            self.guest = ""

    def path(self, suffix: str) -> str:
        return "/srv/fast/%s-%d.%s" % (self.guest, next(self.serial), suffix)

    def run(self, module: str, fault: dict | None = None, more: dict | None = None, **arguments) -> dict:
        """What a module says (its result, or None if it was killed), how long it took, and more."""
        if fault:
            fault = dict(fault, guest=self.guest)
        return self.ask("run", module=module, args=dict(arguments, name=self.guest, disk=arguments.get("disk", "vda")), fault=fault, **(more or {}))

    def facts(self, disk: str = "vda") -> dict:
        return self.ask("facts", guest=self.guest, disk=disk)

    def acks(self, more: int) -> None:
        verify.guests.wait_acks(self.lab, verify.guests.record(self.lab, self.guest), more, 30)

    def verified(self, image: str | None = None) -> None:
        """Every write that was acknowledged is there."""
        with contextlib.redirect_stdout(io.StringIO()) as told:
            sound = verify.verify(self.lab, self.guest, image, None, False)
        if not sound:
            raise Wrong("the verifier: %s" % told.getvalue())

    def cold_start(self, facts: dict, image: str | None = None) -> None:
        """End the guest, or the process that libvirt has lost, as the module's message says; start it; nothing was lost."""
        self.acks(2)
        end = "virsh destroy %s" % self.guest if facts["active"] else "kill -TERM %s" % " ".join(map(str, facts["pids"]))
        wait = "".join(" && while [ -e /proc/%d ]; do sleep 0.05; done" % pid for pid in facts["pids"])
        self.shell(end + wait)
        self.shell("virsh start %s" % self.guest)
        self.verified(image)

    def remains(self, move: Move, image_format: str) -> str:
        """Which image of a guest that stopped in its pivot has every write: the one of its next start or, if that lacks some, the new one."""
        try:
            self.verified()
            return "next"
        except Wrong:
            self.verified("%s,%s" % (move.new, image_format))
            return "new"

    def exists(self, path: str) -> bool:
        return "://" not in path and bool(self.ask("exists", paths=[path])["exists"])

    def tidy(self, path: str) -> None:
        """Remove an image that was left."""
        if path.startswith("/srv/fast/"):
            self.shell("rm -f %s" % path)

    def caught(self, tally: Tally, attempt, name: str, *options: str) -> str:
        """One try. One that went wrong is told, and the next has another guest."""
        try:
            return attempt()
        except Wrong as error:
            tally.wrong.append(str(error))
            print("WRONG: %s" % error, flush=True)
            self.fresh_guest(name, *options)
            return "wrong"

    # What is true

    def kind(self, answer: dict, facts: dict, move: Move) -> str:
        """What the daemon's death made of a pivot."""
        words = [word for word, dummy in answer["words"]]
        if "orphaned" in words or (not facts["active"] and facts["pids"]):
            return "orphan"
        if "stale" in words or (facts["written"] == move.new != facts["live"]):
            return "stale" if facts["mirror"] == "pivot" else "silent"
        if facts["job"]:
            return "open"
        if not words:
            return "after" if facts["live"] == move.new else "before"
        if words[0] == "pivoted":
            return "pivoted" if answer["words"][0][1] else "config"
        return words[0]

    def judge(self, result: dict, facts: dict, move: Move) -> None:
        """Raises Wrong where a module's word is not true."""
        there = facts["live"] == facts["written"] == facts["config"] == move.new and not facts["job"] and facts["mirror"] is None
        same = facts["live"] == facts["written"] == facts["config"] == move.old and not facts["job"] and facts["mirror"] is None
        same = same and not (move.creates and self.exists(move.new))
        if not result.get("failed"):
            self.true(there, "it says that all is well", result, facts, move)
            return
        self.true(result["code"] in UNSETTLED or result["rolled_back"] is True, "the code is one for this", result, facts, move)
        self.true(result["rolled_back"] is not True or same, "it says that the guest is as before", result, facts, move)
        self.true(result["rolled_back"] is not True or BEFORE in result["msg"], "the sentence and rolled_back agree", result, facts, move)
        self.true(result["rolled_back"] is True or BEFORE not in result["msg"], "the sentence and rolled_back agree", result, facts, move)
        self.true(result["rolled_back"] is not False or not same, "it says that the guest is not as before", result, facts, move)
        self.true(not result["changed"] or not same, "it says changed", result, facts, move)
        protected = result["code"] != "stale_pivot" or facts["config"] == move.new == facts["written"]
        self.true(protected, "it says stale_pivot, and the next start would have the image that is written", result, facts, move)

    def true(self, holds: bool, claim: str, result: dict | None, facts: dict, move: Move) -> None:
        if not holds:
            said = {key: (result or {}).get(key) for key in ("changed", "failed", "code", "rolled_back", "msg", "exception")}
            raise Wrong("not true: %s. Said: %s. Is: %s, %s, the new file is %s" % (claim, said, facts, move, "there" if self.exists(move.new) else "gone"))


def spent(begun: float) -> str:
    return "%.1f s" % (time.monotonic() - begun)
