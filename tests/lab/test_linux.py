# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Linux guests, for real: their agent, their file systems, and what the verifier tells about a freeze."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import ext4
import linux
import pytest
from host import LabError
from test_lab import IMAGES, LabCase


class LinuxGuests(LabCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # The labs of a test are elsewhere, but what was built once serves all.
        cls.enterClassContext(mock.patch.dict(os.environ, LAB_CACHE=str(linux.cache())))
        cls.lab("up", "host")

    def add(self, name: str, *args: str) -> dict:
        """Add a Linux guest to the host, removed again after the test; return its facts."""
        facts = json.loads(self.lab("guest", "host", "add", name, "--linux", *args))
        self.addCleanup(self.lab, "guest", "host", "remove", name)
        return facts

    def snapshot(self, facts: dict, name: str) -> list[tuple[str, str]]:
        """Put an overlay on each disk in one transaction; return the images below, as targets and paths."""
        facts["tops"] = facts.get("tops") or [(disk["target"], disk["chain"][0]) for disk in facts["disks"]]
        below, facts["tops"] = facts["tops"], [(target, f"{IMAGES}/{facts['name']}-{name}-{target}.qcow2") for target, dummy in facts["tops"]]
        specs = [word for target, path in facts["tops"] for word in ("--diskspec", f"{target},file={path}")]
        self.virsh("host", "snapshot-create-as", facts["name"], name, "--disk-only", "--atomic", "--no-metadata", *specs)
        for dummy, path in facts["tops"]:
            self.addCleanup((self.base / "host" / "images" / Path(path).name).unlink)
        return below

    def frozen(self, name: str) -> str:
        """Return what the agent says about the file systems."""
        return json.loads(self.virsh("host", "qemu-agent-command", name, '{"execute": "guest-fsfreeze-status"}'))["return"]

    def answers(self, name: str) -> bool:
        """Say whether the agent answers."""
        ping = [str(self.base / "host" / "enter"), "virsh", "qemu-agent-command", name, '{"execute": "guest-ping"}']
        return subprocess.run(ping, check=False, capture_output=True).returncode == 0

    def acks(self, name: str, *args: str) -> int:
        return int(self.lab("guest", "host", "acks", name, *args))

    def assert_journal(self, name: str, target: str, image: str, after: int, journal: str):
        """The image is of a moment after so many writes, all sound, and its journal is as stated and not otherwise."""
        question = (name, "--disk", target, "--image", image, "--after", str(after))
        for other in ("clean", "recovery"):
            acknowledged, lost = self.verified("host", *question, f"--expect-{other}", code=0 if other == journal else 1)
            assert acknowledged >= after and lost == 0

    def test_a_freeze_is_seen_on_every_disk(self):
        facts = self.add("twin", "--disks", "2", "--fill", "1", "--delay", "1", "--slots", "64", "--size", "16")
        before = self.acks("twin", "--wait", "20")
        for target, image in self.snapshot(facts, "crash"):
            self.assert_journal("twin", target, image, before, "recovery")

        self.acks("twin", "--wait", "20")
        assert self.frozen("twin") == "thawed"
        self.virsh("host", "domfsfreeze", "twin")
        assert self.frozen("twin") == "frozen"
        held = self.acks("twin")
        assert "acknowledged 0 writes" in self.lab("guest", "host", "acks", "twin", "--wait", "1", "--timeout", "2", code=2)
        below = self.snapshot(facts, "quiet")
        self.virsh("host", "domfsthaw", "twin")
        assert self.frozen("twin") == "thawed"
        self.acks("twin", "--wait", "60")
        for target, image in below:
            self.assert_journal("twin", target, image, held, "clean")
            assert self.verified("host", "twin", "--disk", target, "--image", image, "--expect-loss")[1] > 0
            # More than it can hold.
            self.verified("host", "twin", "--disk", target, "--image", image, "--after", str(held + 30), code=1)
        self.verified("host", "twin", "--expect-recovery")

    def test_a_cold_restart(self):
        facts = self.add("cold", "--slots", "32", "--base-format", "raw")
        template = facts["disks"][0]["chain"][1]
        self.virsh("host", "destroy", "cold")
        before, lost = self.verified("host", "cold", "--expect-recovery")
        assert before > 0 and lost == 0
        self.virsh("host", "start", "cold")
        self.acks("cold", "--wait", str(before + 1), "--timeout", "90")
        assert self.verified("host", "cold")[0] > before
        second = self.add("second", "--template", template, "--agent", "stopped", "--no-start")
        assert (second["slots"], second["linux"]) == (32, True)
        self.verified("host", "cold", "--image", template, "--expect-clean", "--expect-loss")
        assert "of a Linux guest" in self.lab("guest", "host", "add", "other", "--template", template, code=2)

    def test_guests_without_an_agent(self):
        for agent, problem in {"stopped": "agent is not connected", "none": "agent is not configured"}.items():
            self.add(agent, "--agent", agent)
            assert problem in self.lab("exec", "host", "--", "virsh", "domfsfreeze", agent, code=1)
            self.verified("host", agent)

    def test_a_freeze_that_comes_when_nobody_waits_for_it_any_more(self):
        self.add("late", "--freeze-takes", "6")
        self.virsh("host", "guest-agent-timeout", "late", "--timeout", "2")
        assert "not responding" in self.lab("exec", "host", "--", "virsh", "domfsfreeze", "late", code=1)
        deadline = time.monotonic() + 60
        # It answers when it is through with the freeze.
        while not self.answers("late") and time.monotonic() < deadline:
            time.sleep(0.5)
        assert self.frozen("late") == "frozen"
        self.lab("guest", "host", "acks", "late", "--wait", "1", "--timeout", "2", code=2)
        self.virsh("host", "domfsthaw", "late")
        assert self.frozen("late") == "thawed"
        self.verified("host", "late")

    def test_what_has_no_answer_is_refused(self):
        self.add("asked", "--no-start")
        assert "--image of an earlier moment" in self.lab("verify", "host", "asked", "--after", "1", code=2)
        assert "for a guest with --linux" in self.lab("guest", "host", "add", "bare", "--agent", "stopped", code=2)
        assert "need 16 MiB" in self.lab("guest", "host", "add", "small", "--linux", "--size", "8", "--slots", "224", code=2)
        self.lab("guest", "host", "add", "bare")
        self.addCleanup(self.lab, "guest", "host", "remove", "bare")
        assert "is no Linux guest" in self.lab("verify", "host", "bare", "--expect-clean", code=2)

    def test_no_network_is_needed_twice(self):
        linux.build(linux.cache())
        with tempfile.TemporaryDirectory() as work, mock.patch.object(linux, "fetch", side_effect=AssertionError("fetched again")):
            (Path(work) / "packages").symlink_to(linux.cache() / "packages")
            kernel, initrd = linux.build(Path(work))
            assert kernel.stat().st_size > 1 << 20
            assert initrd.read_bytes().startswith(b"070701")


class FileSystems(unittest.TestCase):
    """The reader of images, on file systems that no guest has seen."""

    def setUp(self):
        self.work = Path(self.enterContext(tempfile.TemporaryDirectory()))
        content = self.work / "content"
        content.write_bytes(os.urandom(1 << 20))
        self.content = content.read_bytes()
        self.image = ext4.wrap(content, 16 << 20)

    def debugfs(self, request: str) -> None:
        subprocess.run(["debugfs", "-w", "-R", request, str(self.image)], check=True, capture_output=True)

    def test_a_clean_one(self):
        ring, recovery, complaints = ext4.unwrap(self.image, 1 << 20)
        assert (ring.read_bytes(), recovery, complaints) == (self.content, False, [])

    def test_one_to_be_recovered(self):
        self.debugfs("feature needs_recovery")
        ring, recovery, complaints = ext4.unwrap(self.image, 1 << 20)
        assert (ring.read_bytes(), recovery, complaints) == (self.content, True, [])

    def test_one_that_lacks_the_file(self):
        self.debugfs("rm ring")
        ring, dummy, complaints = ext4.unwrap(self.image, 1 << 20)
        assert ring.read_bytes() == bytes(1 << 20)
        assert "lacks the file 'ring'" in complaints[-1]

    def test_a_damaged_one(self):
        self.debugfs("clri <2>")
        assert any("is damaged" in complaint for complaint in ext4.unwrap(self.image, 1 << 20)[2])

    def test_none(self):
        self.image.write_bytes(bytes(16 << 20))
        ring, recovery, complaints = ext4.unwrap(self.image, 1 << 20)
        assert (ring.stat().st_size, recovery, complaints[0]) == (1 << 20, False, "there is no ext4")

    def test_missing_tools_are_named(self):
        with pytest.raises(LabError, match="not found: mke3fs; a Linux guest needs the packages: e3fsprogs"):
            linux.require({"mke3fs": "e3fsprogs", "sh": "dash"})


if __name__ == "__main__":
    unittest.main()
