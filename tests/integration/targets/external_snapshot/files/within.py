# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs modules inside a lab host, as tests/faults/inside.py does (on PYTHONPATH), and strikes before a chosen step or call, or in the middle of one."""

from __future__ import annotations

import contextlib
import glob
import os
import signal
import subprocess
import threading
import time

import inside
import libvirt

from ansible_collections.livestorage.libvirt.plugins.module_utils._edge import conversions, host

HOLDERS = {"conversions": conversions, "domain": libvirt.virDomain}


class Moment(inside.Fault):
    """What is to happen at one moment of a run: a ``shell`` command, then ``kill`` (daemon, module, with ``away`` as in Fault).

    ``before``: an (action, disk) of a step, which is done after that unless the module was killed. Or ``call``: the (holder, name) of a
    function in HOLDERS, before it or, with ``delay``, so many seconds after it was begun. Or ``work``: as soon as the file
    ``grows`` has so many bytes, while the module's qemu-img writes to it. That is stopped first, and stays so, or is killed (``ends``).
    """

    def arm(self) -> None:
        if "work" in self.spec:
            self.thread = threading.Thread(target=self.lie_in_wait, daemon=True)
            self.thread.start()
            return
        if "call" in self.spec:
            self.watch(HOLDERS[self.spec["call"][0]], self.spec["call"][1])
            return
        action, disk = self.spec["before"]
        do = host.Host.do

        def watched(own, step):
            if (step.action, step.disk) == (action, disk) and not self.struck.is_set():
                self.strike()
            do(own, step)

        host.Host.do = watched

    def watch(self, holder, name: str) -> None:
        call = getattr(holder, name)

        def watched(*arguments, **more):
            if not self.struck.is_set() and "delay" not in self.spec:
                self.strike()
            elif not self.struck.is_set():
                self.struck.set()
                self.thread = threading.Thread(target=self.strike, args=(self.spec["delay"],))
                self.thread.start()
            return call(*arguments, **more)

        setattr(holder, name, watched)

    def strike(self, delay: float = 0.0) -> None:
        self.struck.set()
        time.sleep(delay)
        if self.spec.get("shell"):
            subprocess.run(self.spec["shell"], check=True, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.kill()

    def kill(self) -> None:
        kill = self.spec.get("kill", {})
        for victim in [one for one in ("daemon", "module") if one in kill]:
            os.kill(self.pids[victim], getattr(signal, "SIG" + kill[victim]))
        if "daemon" in kill:
            self.thread = threading.Thread(target=self.revive)
            self.thread.start()

    def lie_in_wait(self) -> None:
        path, size = self.spec["work"]
        worker, until = 0, time.monotonic() + inside.SECONDS
        while not worker or os.stat(path).st_blocks * 512 < size:
            time.sleep(0.001)
            worker = worker or at_work()
            if time.monotonic() > until or (worker and not inside.alive(worker)):
                return  # it was too fast
        os.kill(worker, signal.SIGSTOP)
        if self.spec.get("ends"):
            os.kill(worker, signal.SIGKILL)
        self.strike()


def at_work() -> int:
    """The qemu-img that this process has started to write, or 0."""
    for children in glob.glob("/proc/self/task/*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(children, encoding="ascii") as file:
            for pid in file.read().split():
                with open("/proc/%s/cmdline" % pid, "rb") as words:
                    if words.read().split(b"\0")[:2] in ([b"qemu-img", b"commit"], [b"qemu-img", b"rebase"]):
                        return int(pid)
    return 0


inside.Fault = Moment
if __name__ == "__main__":
    inside.main()
