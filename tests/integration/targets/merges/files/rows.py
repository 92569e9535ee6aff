# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""rows.py LAB LAYERS: takes rows on stdin, each of them through its module in the lab.

{"chains": ..., "nothing": [row, ...], "refused": [...], "merges": [...]}: chains as layers.py (LAYERS) prints them, and rows as in
vars/main.yml. Of a merge, what is predicted, what the module says afterwards and what every other reader (layers.py) finds has to be the
one chain that such a merge gives. Where there is nothing to do, or it is refused, all has to stay as it is.

The modules run in the process that the fault matrix has for that (tests/faults and tests/lab are on PYTHONPATH): a run takes a tenth of
the time that it takes as a task.
"""

import json
import os
import shlex
import sys
import tempfile
from pathlib import Path

import ansible
from scene import Scene

# The guests whose definition names only the active layer of each chain when their rows are taken.
FIRST = ("off4", "off5", "off6")


class Row:
    def __init__(self, facts, chains):
        self.facts = facts
        self.guest, self.disk, self.module, top, base = (facts[key] for key in ("guest", "disk", "does", "top", "base"))
        self.before = chains[self.guest][self.disk]
        self.after = self.before[: top + (self.module == "block_rebase")] + self.before[base:]
        self.bare = self.guest == "bare"
        self.arguments = {"images": self.before[:1], "format": "qcow2"} if self.bare else {"name": self.guest, "disk": self.disk}
        # A merge from the active layer that is not named would take one layer more each time; a pull would not.
        self.arguments.update({"top": self.before[top]} if top or self.module == "block_commit" else {})
        self.arguments.update({"base": self.before[base]} if base < len(self.before) else {})

    def __str__(self):
        return "{guest} {disk}: {does} from {top} to {base}".format(**self.facts)

    def run(self, scene, check=False):
        return scene.ask("run", module=self.module, args=dict(self.arguments, _ansible_check_mode=check))["result"]

    def chain(self, result):
        found = result["images"] if self.bare else [one for one in result["domains"][0]["disks"] if one["disk"] == self.disk]
        return [layer["path"] for layer in found[0]["chain"]]


class Table:
    """The rows of one guest, or of the images that belong to none."""

    def __init__(self, scene, layers, rows):
        self.scene, self.rows, self.layers, self.wrong = scene, rows, layers, []
        images = [path + ":0" for row in rows if row.bare for path in (row.before[0], row.after[0])]
        self.looks = list(dict.fromkeys(images)) or [rows[0].guest]

    def tell(self, *words):
        return self.scene.shell(shlex.join(["/usr/bin/python3", "-B", self.layers, *words]))

    def look(self):
        return json.loads(self.tell("look", *self.looks))

    def true(self, holds, row, claim, found):
        if not holds:
            self.wrong.append("%s: not true: %s; found %s" % (row, claim, json.dumps(found)))

    def merges(self):
        if self.rows[0].guest in FIRST:
            self.tell("define", self.rows[0].guest + "=first")
        before = self.look()
        for row in self.rows:
            result = row.run(self.scene, check=True)
            holds = not result.get("failed") and result["changed"] and row.chain(result) == row.after
            self.true(holds, row, "check mode predicts %s" % row.after, result)
        self.true(self.look() == before, "the previews", "they change nothing", "a change")
        for row in self.rows:
            result = row.run(self.scene)
            holds = not result.get("failed") and result["changed"] and row.chain(result) == row.after and all(step["begun"] for step in result["steps"])
            self.true(holds, row, "it is done, and the module says %s" % row.after, result)
        found = self.look()
        for row in self.rows:
            self.read(row, found[row.guest][row.after[0] if row.bare else row.disk])
        for row in self.rows:
            result = row.run(self.scene)
            self.true(not result.get("failed") and not result["changed"] and not result["steps"], row, "nothing is left to do", result)
        self.true(self.look() == found, "the second runs", "they change nothing", "a change")

    def read(self, row, found):
        """Does every reader have that chain? A definition may name only a part of it, if it does not say that this is all."""
        self.true(found["headers"] == row.after, row, "the headers say %s" % row.after, found)
        if row.bare:
            return
        named = found["next"]["paths"]
        self.true(named == row.after[: len(named)], row, "the definition says %s" % row.after, found)
        self.true(not found["next"]["ends"] or named == row.after, row, "the definition ends with it", found)
        self.true(found["quiet"], row, "no job and no mirror is left", found)
        if found["live"] is not None:
            self.true(found["live"] == found["qemu"] == row.after, row, "libvirt and QEMU have %s" % row.after, found)

    def nothing(self):
        self.kept(None)

    def refused(self):
        self.kept("offline_only")

    def kept(self, code):
        """Runs that leave all as it is, to the byte of the XML; ``code`` of the refusal, None where there is none."""
        xml = "; ".join("virsh dumpxml %s && virsh dumpxml --inactive %s" % (name, name) for name in self.looks)
        before = self.look(), self.scene.shell(xml)
        for row in self.rows:
            for check in (True, False):
                result = row.run(self.scene, check)
                holds = result.get("code") == code and bool(result.get("failed")) == bool(code) and not result["changed"] and not result["steps"]
                self.true(holds, row, "the answer is %s" % code, result)
        self.true((self.look(), self.scene.shell(xml)) == before, "these runs", "they change nothing", "a change")


def main():
    lab, layers = sys.argv[1:]
    given, wrong = json.load(sys.stdin), []
    with tempfile.TemporaryDirectory() as scratch:
        scene = Scene(lab, os.path.dirname(ansible.__file__), Path(scratch))
        try:
            for what in ("nothing", "refused", "merges"):
                rows = [Row(facts, given["chains"]) for facts in given.get(what, [])]
                for guest in dict.fromkeys(row.guest for row in rows):
                    table = Table(scene, layers, [row for row in rows if row.guest == guest])
                    getattr(table, what)()
                    wrong += table.wrong
        finally:
            scene.close()
    return "\n".join(wrong) or None


sys.exit(main())
