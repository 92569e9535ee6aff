# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guests.py LAB add NAME[:raw]... | verify NAME... | remove NAME...: many guests of the lab at once, by its own code (on PYTHONPATH).

They have four small disks without an overlay, and write all the time. verify fails unless every guest has every write that it acknowledged.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import cli
import guest
import verify
from host import Lab, LabError


def add(lab, word):
    name, dummy, kind = word.partition(":")
    shape = "--disks 4 --size 6 --slots 16 --fill 1 --layers l0 --dir /srv/fast --base-format %s" % (kind or "qcow2")
    guest.add(lab, cli.parser().parse_args(["guest", lab.name, "add", name, *shape.split()]))


def remove(lab, name):
    try:
        guest.remove(lab, name)
    except LabError as error:
        if "has no guest" not in str(error):
            raise


name, action = sys.argv[1:3]
host = Lab.named(name)
with ThreadPoolExecutor(2) as pool:
    if action == "verify":
        results = [verify.verify(host, one, None, None, False) for one in sys.argv[3:]]
    else:
        guest.assembled(host)
        results = list(pool.map(lambda one: {"add": add, "remove": remove}[action](host, one), sys.argv[3:]))
sys.exit(action == "verify" and not all(results))
