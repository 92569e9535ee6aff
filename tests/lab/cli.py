# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab command: private libvirt hosts with tiny guests that prove their own writes. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys

import guest
import host
import linux
import verify
from host import Lab, LabError


def main(argv: list[str] | None = None) -> int:
    """Run one lab command; 0 done, 1 a verification failed, 2 it could not be done."""
    # A TERM in the middle must still resume a suspended guest and remove what is half made.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    options = parser().parse_args(argv)
    try:
        return options.run(options) or 0
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def up(options) -> None:
    """lab up"""
    lab = Lab.named(options.name)
    print(f"lab host {lab.name} {host.up(lab)}")


def down(options) -> None:
    """lab down"""
    if options.all == bool(options.name):
        raise LabError("down wants either the name of a lab host or --all")
    for lab in Lab.all() if options.all else [Lab.named(options.name)]:
        host.down(lab)
        print(f"lab host {lab.name} is down")


def show(_options) -> None:
    """lab list"""
    for lab in Lab.all():
        print(f"{lab.name}\t{'up' if lab.pid else 'crashed'}\t{lab.state}")


def execute(options) -> None:
    """lab exec: becomes the command"""
    lab = Lab.named(options.name)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise LabError("exec wants a command")
    lab.inside("/")
    os.execv(lab.enter, [lab.enter, *command])


def daemon(options) -> None:
    """lab daemon"""
    lab = Lab.named(options.name)
    lab.inside("/")
    if options.action != "start":
        host.daemon_end(lab, "KILL" if options.action == "kill" else "TERM")
    if options.action in ("start", "restart"):
        host.daemon_start(lab)


def guest_add(options) -> None:
    """lab guest NAME add"""
    if not options.linux and (options.agent != "runs" or options.freeze_takes):
        raise LabError("--agent and --freeze-takes are for a guest with --linux")
    print(json.dumps(guest.add(Lab.named(options.name), options), indent=2))


def guest_remove(options) -> None:
    """lab guest NAME remove"""
    guest.remove(Lab.named(options.name), options.guest)


def guest_acks(options) -> None:
    """lab guest NAME acks"""
    lab = Lab.named(options.name)
    print(guest.wait_acks(lab, guest.record(lab, options.guest), options.wait, options.timeout))


def check(options) -> int:
    """lab verify"""
    good = verify.verify(Lab.named(options.name), options.guest, options.image, options.disk, options.expect_loss,
                         options.after, options.recovery)
    return 0 if good else 1


def inventory(options) -> None:
    """lab inventory"""
    print("all:\n  hosts:")
    for name in options.name:
        lab = Lab.named(name)
        print(f"    {name}:\n      ansible_connection: local\n"
              f"      ansible_python_interpreter: {json.dumps(str(lab.state / 'python'))}")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(prog="lab", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, summary: str, into=commands) -> argparse.ArgumentParser:
        made = into.add_parser(name, help=summary, description=summary)
        made.set_defaults(run=run)
        return made

    command("up", up, "start a lab host; fine if it is up already").add_argument("name")
    sub = command("down", down, "remove a lab host with all that is in it, also after a crash")
    sub.add_argument("name", nargs="?")
    sub.add_argument("--all", action="store_true", help="every lab host below $LAB_BASE")
    command("list", show, "list the lab hosts below $LAB_BASE (build/lab in the checkout, unless set)")
    sub = command("exec", execute, "run a command inside, in this directory and with this environment")
    sub.add_argument("name")
    sub.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    sub = command("daemon", daemon, "start, stop, kill or restart the lab host's libvirtd; guests run on")
    sub.add_argument("name")
    sub.add_argument("action", choices=["start", "stop", "kill", "restart"])
    sub = command("verify", check, "compare a guest's disks with the writes that it has acknowledged")
    sub.add_argument("name")
    sub.add_argument("guest")
    sub.add_argument("--image", metavar="PATH[,FORMAT]", help="look at this image instead of the active layer")
    sub.add_argument("--disk", help="look at this disk only, such as vda")
    sub.add_argument("--after", type=natural, metavar="N",
                     help="the --image is of an earlier moment, but after the first N acknowledged writes (see acks)")
    sub.add_argument("--expect-loss", action="store_true", help="succeed only if acknowledged writes are missing")
    journal = sub.add_mutually_exclusive_group()
    journal.add_argument("--expect-clean", dest="recovery", action="store_false", default=None,
                         help="of a Linux guest: succeed only if no journal has to be recovered, as after a freeze")
    journal.add_argument("--expect-recovery", dest="recovery", action="store_true", help="succeed only if each has to be")
    command("inventory", inventory, "print an Ansible inventory of lab hosts").add_argument("name", nargs="+")
    sub = commands.add_parser("guest", help="add, remove or watch a guest")
    sub.add_argument("name")
    add_guest_commands(sub.add_subparsers(required=True, metavar="COMMAND"), command)
    return top


def natural(text: str) -> int:
    """Return a number that is not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 up")
    return int(text)


def add_guest_commands(actions, command) -> None:
    """Add the commands of `lab guest NAME`."""
    sub = command("add", guest_add, "make a guest and print its facts as JSON", actions)
    sub.add_argument("guest")
    sub.add_argument("--disks", type=int, default=1, choices=range(1, len(guest.TARGETS) + 1), help="how many (1)")
    sub.add_argument("--size", type=natural, default=64, metavar="MIB", help="size of each disk (64)")
    sub.add_argument("--slots", type=natural, default=256, metavar="N",
                     help="chunks of 32 KiB in each disk's ring (256); 0 makes a guest that never writes")
    sub.add_argument("--delay", type=natural, default=2, metavar="TICKS",
                     help="pause after each write, in ticks of 55 ms (2); 0 writes as fast as it can")
    sub.add_argument("--layers", metavar="NAME,...",
                     help="the chain, base first (template,current1; only current1 on a --template)")
    sub.add_argument("--base-format", choices=["qcow2", "raw"], default="qcow2", help="format of the base (qcow2)")
    sub.add_argument("--fill", type=natural, default=0, metavar="MIB", help="incompressible data in the base (0)")
    sub.add_argument("--template", action="append", metavar="PATH",
                     help="share this base of another guest; once for each disk")
    sub.add_argument("--dir", default=guest.IMAGES, help=f"directory of the images, made if need be ({guest.IMAGES})")
    sub.add_argument("--linux", action="store_true",
                     help="a Linux that writes to a file on ext4; the first one downloads 30 MB, see README.md")
    sub.add_argument("--agent", choices=linux.AGENTS, default="runs",
                     help="of a Linux guest: runs (the default), is stopped, or has no channel at all")
    sub.add_argument("--freeze-takes", type=natural, default=0, metavar="SECONDS",
                     help="how long the agent takes before it freezes (0), and answers nobody meanwhile")
    sub.add_argument("--transient", action="store_true", help="leave no persistent definition")
    sub.add_argument("--no-start", dest="start", action="store_false", help="define it only")
    sub = command("remove", guest_remove, "end a guest and delete the images made for it", actions)
    sub.add_argument("guest")
    sub = command("acks", guest_acks, "print how many writes a guest has acknowledged", actions)
    sub.add_argument("guest")
    sub.add_argument("--wait", type=natural, default=0, metavar="N", help="wait for N further ones first")
    sub.add_argument("--timeout", type=float, default=30, metavar="SECONDS", help="how long to wait at most (30)")


if __name__ == "__main__":
    sys.exit(main())
