# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab command, for real. Without root these tests fail; they are not skipped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

LAB = Path(__file__).resolve().parent / "lab"
IMAGES = "/var/lib/libvirt/images"


class LabCase(unittest.TestCase):
    """Runs the lab command on labs of its own."""

    @classmethod
    def setUpClass(cls):
        cls.base = Path(tempfile.mkdtemp(prefix="lab-test-")) / "base"
        cls.addClassCleanup(shutil.rmtree, cls.base.parent)
        cls.addClassCleanup(cls.lab, "down", "--all")

    @classmethod
    def lab(cls, *args: str, code: int = 0, via: tuple[str, ...] = (), **environment: str) -> str:
        """Run the lab command; return what it printed, errors included."""
        done = subprocess.run([*via, str(LAB), *args], text=True, check=False, timeout=120, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env={**os.environ, "LAB_BASE": str(cls.base), **environment})
        if done.returncode != code:
            raise AssertionError(f"lab {' '.join(args)}: exit code {done.returncode}, not {code}\n{done.stdout}")
        return done.stdout

    def virsh(self, name: str, *args: str) -> str:
        """Run virsh inside a lab."""
        return self.lab("exec", name, "--", "virsh", "-q", *args)

    def verified(self, name: str, guest: str, *args: str, code: int = 0) -> tuple[int, int]:
        """Verify a guest; return how many writes were acknowledged and lost, from the last line."""
        last = self.lab("verify", name, guest, *args, code=code).splitlines()[-1]
        assert re.fullmatch(r"\d+ writes acknowledged, \d+ lost", last)
        return int(last.split()[0]), int(last.split()[3])

    def init(self, name: str) -> int:
        """Return the pid of a lab's init."""
        return json.loads((self.base / name / "init.json").read_text())["pid"]


def inhabitants(namespace: str) -> list[int]:
    """Return the processes in a mount or pid namespace, given as the target of its /proc link."""
    kind = namespace.partition(":")[0]
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "ns" / kind) == namespace:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


class Hosts(LabCase):
    def test_up_twice_and_down_twice(self):
        assert self.lab("up", "twice") == "lab host twice is up\n"
        init = self.init("twice")
        assert self.lab("up", "twice") == "lab host twice is up already\n"
        assert self.init("twice") == init
        assert f"twice\tup\t{self.base}/twice\n" in self.lab("list")
        self.lab("down", "twice")
        assert not (self.base / "twice").exists()
        self.lab("down", "twice")

    def test_two_hosts_side_by_side(self):
        for name in ("left", "right"):
            self.lab("up", name)
            self.lab("guest", name, "add", f"of-{name}")
        for name in ("left", "right"):
            assert self.virsh(name, "list", "--all", "--name").split() == [f"of-{name}"]
            assert self.lab("exec", name, "hostname") == f"{name}\n"
            self.verified(name, f"of-{name}")
        self.lab("down", "left")
        self.verified("right", "of-right")

    def test_a_host_is_private(self):
        before = Path("/proc/self/mountinfo").read_text()
        self.lab("up", "private")
        assert Path("/proc/self/mountinfo").read_text() == before
        inside = self.lab("exec", "private", "--", "cat", "/proc/self/mountinfo")
        for path in ("/run", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt", "/srv/fast"):
            assert f" {path} " in inside
        assert self.lab("exec", "private", "ls", "/sys/class/net") == "lo\n"
        ours = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "mnt", "net", "uts", "ipc")}
        theirs = self.lab("exec", "private", "--", "readlink", *(f"/proc/self/ns/{kind}" for kind in ours)).split()
        assert not set(ours.values()) & set(theirs)

    def test_what_is_in_srv_stays(self):
        script = """set -e; mount -t tmpfs tmpfs /srv; mkdir /srv/kept
            echo deep > /srv/kept/file; echo flat > /srv/file
            "$0" up srv; "$0" exec srv -- sh -c 'cat /srv/kept/file /srv/file; ls /srv'; "$0" down srv; ls /srv"""
        out = self.lab(via=("unshare", "--mount", "sh", "-c", script))
        assert out.split()[5:-7] == ["deep", "flat", "fast", "file", "kept"]
        assert out.split()[-2:] == ["file", "kept"]

    def test_a_chroot_that_is_no_mount_point(self):
        with tempfile.TemporaryDirectory() as top:
            script = f"""set -e; mount -t tmpfs tmpfs {top}; mount --make-shared {top}; mkdir {top}/root; cd {top}/root
                for dir in bin sbin lib lib64; do [ ! -L /$dir ] || ln -s usr/$dir; done
                for dir in /*; do [ -L .$dir ] || [ ! -d $dir ] || mkdir .$dir; done
                for dir in usr etc var dev root tmp run {str(LAB).split('/')[1]}; do mount --rbind /$dir $dir; done
                mount -t proc proc proc; mounts=$(wc -l < /proc/self/mountinfo)
                chroot . "$0" up plain; chroot . "$0" guest plain add vm1 > /dev/null; chroot . "$0" verify plain vm1
                [ $mounts = $(wc -l < /proc/self/mountinfo) ]; chroot . "$0" down plain"""
            out = self.lab(via=("unshare", "--mount", "sh", "-c", script))
        assert " writes acknowledged, 0 lost\n" in out

    def test_inventory(self):
        self.lab("up", "one")
        lines = self.lab("inventory", "one", "two").splitlines()
        assert [line for line in lines if not line.startswith("      ")] == ["all:", "  hosts:", "    one:", "    two:"]
        assert lines[3] == "      ansible_connection: local"
        python = json.loads(lines[4].partition(": ")[2])
        code = "import socket, libvirt; print(socket.gethostname(), libvirt.open().getHostname())"
        assert subprocess.run([python, "-c", code], text=True, capture_output=True, check=True).stdout == "one one\n"

    def test_exec(self):
        self.lab("up", "exec")
        self.lab("exec", "exec", "--", "sh", "-c", "exit 37", code=37)
        self.lab("exec", "exec", "--", "sh", "-c", "kill -9 $$", code=-signal.SIGKILL)
        seen = self.lab("exec", "exec", "--", "sh", "-c", "echo $WORD; virsh uri", WORD="kept")
        assert seen.split() == ["kept", "qemu:///system"]
        assert self.lab("exec", "exec", "pwd").strip() == os.getcwd()
        self.lab("exec", "absent", "true", code=2)
        self.lab("exec", "exec", code=2)

    def test_what_runs_inside_dies_with_the_caller(self):
        self.lab("up", "caller")
        child = subprocess.Popen([self.base / "caller" / "enter", "sh", "-c", "echo $$; exec sleep 600"],
                                 stdout=subprocess.PIPE, text=True)
        with child.stdout:
            pid = child.stdout.readline().strip()
        self.lab("exec", "caller", "kill", "-0", pid)
        child.kill()
        child.wait()
        time.sleep(0.2)
        # A zombie is dead; it is the caller's init that reaps it, whenever that may be.
        state = subprocess.run(["cat", f"/proc/{self.init('caller')}/root/proc/{pid}/stat"], text=True,
                               capture_output=True, check=False).stdout
        assert state.split()[2:3] in ([], ["Z"])

    def test_daemon(self):
        self.lab("up", "daemon")
        self.lab("guest", "daemon", "add", "vm1")
        for end in ("stop", "kill"):
            self.lab("daemon", "daemon", end)
            assert "failed to connect" in self.lab("exec", "daemon", "--", "virsh", "list", code=1)
            self.lab("guest", "daemon", "acks", "vm1", "--wait", "2")
            self.lab("daemon", "daemon", "start")
            assert self.virsh("daemon", "domstate", "vm1").strip() == "running"
        pid = Path(f"/proc/{self.init('daemon')}/root/run/libvirtd.pid")
        before = pid.read_text()
        self.lab("daemon", "daemon", "restart")
        assert pid.read_text() != before
        self.verified("daemon", "vm1")

    def test_refusals(self):
        assert "is no name for a lab" in self.lab("up", "../x", code=2)
        assert "is not running" in self.lab("exec", "absent", "true", code=2)
        assert "either the name of a lab host or --all" in self.lab("down", code=2)
        assert "would be hidden" in self.lab("up", "hidden", code=2, LAB_BASE="/run/lab")
        assert not Path("/run/lab").exists()

    def test_not_root(self):
        readable = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
        somebody = ("setpriv", "--reuid=65534", "--clear-groups", *readable)
        assert "needs root" in self.lab("up", "rootless", code=2, via=somebody)
        assert not (self.base / "rootless").exists()
        self.lab("up", "rooted")
        assert "needs root" in self.lab("exec", "rooted", "true", code=2, via=somebody)
        assert "needs root" in self.lab("down", "rooted", code=2, via=somebody)
        assert "rooted\tup\t" in self.lab("list", via=somebody)

    def test_what_is_missing_is_named(self):
        script = 'for tool in virsh qemu-img; do mount --bind /dev/null $(command -v $tool); done; "$0" up bare'
        said = self.lab(via=("unshare", "--mount", "sh", "-c", script), code=2)
        assert said == "lab: not found: virsh, qemu-img; install the packages: libvirt-clients qemu-utils\n"
        assert not (self.base / "bare").exists()

    def test_a_foreign_directory_is_left_alone(self):
        (self.base / "foreign").mkdir(parents=True)
        (self.base / "foreign" / "letter").write_text("dear")
        for command in ("up", "down"):
            assert "nothing in it was touched" in self.lab(command, "foreign", code=2)
        self.lab("down", "--all")
        assert (self.base / "foreign" / "letter").read_text() == "dear"
        shutil.rmtree(self.base / "foreign")


class Crashes(LabCase):
    def crash(self, name: str) -> list[str]:
        """Kill the init of a lab with a guest at work; return its pid and mount namespaces."""
        self.lab("up", name)
        self.lab("guest", name, "add", "vm1")
        namespaces = [os.readlink(f"/proc/{self.init(name)}/ns/{kind}") for kind in ("pid", "mnt", "net")]
        for namespace in namespaces:
            assert len(inhabitants(namespace)) > 2
        os.kill(self.init(name), signal.SIGKILL)
        for dummy in range(100):
            if not any(map(inhabitants, namespaces)):
                break
            time.sleep(0.05)
        return namespaces

    def test_everything_dies_with_init(self):
        mounts = Path("/proc/self/mountinfo").read_text()
        for namespace in self.crash("killed"):
            assert inhabitants(namespace) == []
        assert "killed\tcrashed\t" in self.lab("list")
        assert "is not running" in self.lab("exec", "killed", "true", code=2)
        assert "is not running" in self.lab("guest", "killed", "add", "vm2", code=2)
        assert (self.base / "killed" / "log" / "libvirtd.log").stat().st_size
        self.lab("down", "killed")
        assert not self.base.exists()
        assert Path("/proc/self/mountinfo").read_text() == mounts

    def test_up_after_a_crash(self):
        self.crash("again")
        assert self.lab("up", "again") == "lab host again is up\n"
        assert self.virsh("again", "list", "--all", "--name").split() == []
        self.lab("guest", "again", "add", "vm1")
        self.verified("again", "vm1")
        self.lab("down", "again")

    def test_a_recorded_pid_that_is_somebody_else_now(self):
        self.crash("reused")
        with subprocess.Popen(["sleep", "600"]) as other:
            record = self.base / "reused" / "init.json"
            record.write_text(json.dumps({**json.loads(record.read_text()), "pid": other.pid}))
            assert "is not running" in self.lab("exec", "reused", "true", code=2)
            self.lab("down", "reused")
            assert other.poll() is None
            other.kill()

    def test_a_host_ends_when_its_directory_is_deleted(self):
        self.lab("up", "deleted")
        namespace = os.readlink(f"/proc/{self.init('deleted')}/ns/pid")
        shutil.rmtree(self.base / "deleted")
        deadline = time.monotonic() + 20
        while inhabitants(namespace) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert inhabitants(namespace) == []


class Guests(LabCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.lab("up", "host")

    def add(self, name: str, *args: str) -> dict:
        """Add a guest to the host, removed again after the test; return its facts."""
        facts = json.loads(self.lab("guest", "host", "add", name, *args))
        self.addCleanup(self.lab, "guest", "host", "remove", name)
        return facts

    def image(self, path: str) -> Path:
        """Return where an image of the images directory lies outside."""
        return self.base / "host" / "images" / Path(path).name

    def test_chain_and_facts(self):
        facts = self.add("chain", "--layers", "template,one,two", "--fill", "2")
        paths = [f"{IMAGES}/chain-{layer}.qcow2" for layer in ("two", "one", "template")]
        assert [(disk["target"], disk["chain"]) for disk in facts["disks"]] == [("vda", paths)]
        info = ("qemu-img", "info", "-U", "--backing-chain", "--output=json")
        chain = json.loads(self.lab("exec", "host", "--", *info, paths[0]))
        assert [layer["filename"] for layer in chain] == paths
        assert [layer.get("full-backing-filename") for layer in chain] == [*paths[1:], None]
        assert [layer.get("backing-filename-format") for layer in chain] == ["qcow2", "qcow2", None]
        assert chain[-1]["actual-size"] > 2 << 20

    def test_remove_leaves_nothing(self):
        before = set(os.listdir(self.base / "host" / "images"))
        json.loads(self.lab("guest", "host", "add", "gone", "--disks", "2"))
        self.lab("guest", "host", "remove", "gone")
        assert set(os.listdir(self.base / "host" / "images")) == before
        assert "gone" not in self.virsh("host", "list", "--all", "--name").split()
        self.lab("verify", "host", "gone", code=2)

    def test_a_failed_add_leaves_nothing(self):
        before = set(os.listdir(self.base / "host" / "images"))
        assert "MiB" in self.lab("guest", "host", "add", "big", "--fill", "100", code=2)
        assert "no name for a guest" in self.lab("guest", "host", "add", "a/b", code=2)
        assert "different names" in self.lab("guest", "host", "add", "x", "--layers", "a,a", code=2)
        assert set(os.listdir(self.base / "host" / "images")) == before

    def test_every_disk_of_several_is_written_and_verified(self):
        facts = self.add("four", "--disks", "4", "--slots", "16", "--delay", "0", "--fill", "1", "--size", "8")
        self.lab("guest", "host", "acks", "four", "--wait", "200")
        assert [disk["target"] for disk in facts["disks"]] == ["vda", "vdb", "vdc", "vdd"]
        out = self.lab("verify", "host", "four").splitlines()
        assert [line.split()[0] for line in out[:4]] == ["vda", "vdb", "vdc", "vdd"]
        for disk in facts["disks"]:
            target, base = disk["target"], disk["chain"][-1]
            assert self.verified("host", "four", "--disk", target, "--image", base, code=1)[1] == 16
            assert self.verified("host", "four", "--disk", target)[1] == 0
        assert "--disk" in self.lab("verify", "host", "four", "--image", facts["disks"][0]["chain"][0], code=2)

    def test_verify_after_snapshot_and_pull_and_its_control(self):
        facts = self.add("moved", "--delay", "1", "--fill", "8")
        current1, template = facts["disks"][0]["chain"]
        current2 = "/srv/fast/moved-current2.qcow2"
        self.virsh("host", "snapshot-create-as", "moved", "s", "--disk-only", "--atomic", "--no-metadata",
                   "--diskspec", f"vda,file={current2}")
        self.virsh("host", "blockpull", "moved", "vda", "--base", template, "--wait")
        self.lab("guest", "host", "acks", "moved", "--wait", "20")
        acknowledged, lost = self.verified("host", "moved")
        assert acknowledged > 20
        assert lost == 0
        assert self.verified("host", "moved", "--image", current1, "--expect-loss")[1] >= 20
        self.verified("host", "moved", "--image", current1, code=1)
        self.verified("host", "moved", "--image", f"{template},qcow2", "--expect-loss")
        self.verified("host", "moved", "--expect-loss", code=1)

    def test_full_speed(self):
        self.add("fast", "--delay", "0")
        # At the default pace these take 33 s.
        self.lab("guest", "host", "acks", "fast", "--wait", "300", "--timeout", "25")
        for dummy in range(3):
            self.verified("host", "fast")

    def test_failed_writes_are_repeated(self):
        self.lab("exec", "host", "--", "sh", "-c", "mkdir /srv/small && mount -t tmpfs -o size=2M tmpfs /srv/small")
        facts = self.add("full", "--no-start", "--dir", "/srv/small", "--slots", "128", "--delay", "0")
        self.lab("exec", "host", "--", "sh", "-c", "virsh dumpxml full > /run/full.xml && "
                 "sed -i \"s/type='qcow2'/& error_policy='report'/\" /run/full.xml && virsh define /run/full.xml")
        self.virsh("host", "start", "full")
        log = self.image(facts["acks"])
        deadline = time.monotonic() + 60
        while log.read_bytes().count(b"!\n") < 2:
            assert time.monotonic() < deadline, "the file system is not full yet"
            time.sleep(0.1)
        assert self.verified("host", "full", code=1)[1] == 0
        self.lab("exec", "host", "--", "mount", "-o", "remount,size=32M", "/srv/small")
        self.lab("guest", "host", "acks", "full", "--wait", "300")
        assert self.verified("host", "full")[1] == 0

    def test_power_off_and_cold_restarts(self):
        self.add("cold", "--delay", "0", "--slots", "64")
        for dummy in range(3):
            self.lab("guest", "host", "acks", "cold", "--wait", "50")
            self.virsh("host", "destroy", "cold")
            self.verified("host", "cold")
            self.virsh("host", "start", "cold")
            self.lab("guest", "host", "acks", "cold", "--wait", "1")
        self.verified("host", "cold")

    def test_a_start_from_older_data_is_found(self):
        facts = self.add("older")
        active = self.image(facts["disks"][0]["chain"][0])
        self.virsh("host", "destroy", "older")
        saved = active.read_bytes()
        self.virsh("host", "start", "older")
        self.lab("guest", "host", "acks", "older", "--wait", "5")
        self.virsh("host", "destroy", "older")
        active.write_bytes(saved)
        assert self.verified("host", "older", code=1)[1] >= 5
        self.virsh("host", "start", "older")
        self.lab("guest", "host", "acks", "older", "--wait", "20")
        assert self.verified("host", "older", code=1)[1] >= 5

    def test_a_damaged_base_is_found(self):
        facts = self.add("spoilt", "--base-format", "raw", "--fill", "4", "--slots", "16")
        self.verified("host", "spoilt")
        with self.image(facts["disks"][0]["chain"][1]).open("r+b") as base:
            base.seek(4 << 20)
            base.write(b"spoilt")
        out = self.lab("verify", "host", "spoilt", code=1)
        assert "fill of the base image has changed" in out

    def test_a_guest_that_stands_still_is_no_success(self):
        self.add("still", "--slots", "0")
        assert "nothing to verify" in self.lab("verify", "host", "still", code=2)
        self.add("mute", "--no-start")
        assert self.verified("host", "mute", code=1) == (0, 0)
        self.verified("host", "mute", "--expect-loss", code=1)

    def test_verify_leaves_the_guest_as_it_was(self):
        self.add("state")
        for change, state in (("suspend", "paused"), ("resume", "running"), ("destroy", "shut off")):
            self.virsh("host", change, "state")
            self.verified("host", "state")
            assert self.virsh("host", "domstate", "state").strip() == state

    def test_a_shared_template(self):
        first = self.add("first", "--slots", "32", "--fill", "2", "--base-format", "raw")
        template = first["disks"][0]["chain"][1]
        before = self.image(template).read_bytes()
        second = self.add("second", "--template", template, "--delay", "0", "--dir", "/srv/fast/deep/down")
        assert second["slots"] == 32
        assert second["disks"][0]["chain"] == ["/srv/fast/deep/down/second-current1.qcow2", template]
        self.verified("host", "first")
        self.verified("host", "second")
        assert self.image(template).read_bytes() == before
        foreign = f"{IMAGES}/foreign.raw"
        self.lab("exec", "host", "--", "qemu-img", "create", "-q", "-f", "raw", foreign, "1M")
        self.addCleanup(self.image(foreign).unlink)
        for problem, options in {"was not made by": (foreign,), "is no absolute path": ("x.raw",),
                                 "as many --template": (template, "--disks", "2")}.items():
            assert problem in self.lab("guest", "host", "add", "third", "--template", *options, code=2)

    def test_transient(self):
        self.add("passing", "--transient")
        assert self.virsh("host", "dominfo", "passing").split("Persistent:")[1].split()[0] == "no"
        self.verified("host", "passing")


if __name__ == "__main__":
    unittest.main()
