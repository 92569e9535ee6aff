# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.errors import AnsibleFilterError


def chain_tree(domains):
    """Text: each guest, its disks, and the layers of each disk, active layer first and its backing indented below."""
    lines = []
    for domain in _domains(domains):
        lines.append("%s (%s)" % (domain["name"], domain["state"]))
        for disk in domain["disks"]:
            lines.append("└─ %s%s" % (disk["disk"], _job(disk.get("job"))))
            lines.extend(_layers(disk["chain"]))
    return "".join(line + "\n" for line in lines)


def _layers(chain):
    for layer in chain:
        where = layer["path"] or layer["name"] or layer["type"]
        if layer["protocol"]:
            where = "%s:%s" % (layer["protocol"], where)
        address = " [%s]" % layer["address"] if layer["address"] else ""
        end = {True: "", False: "", None: " (what follows is not known)"}[layer["terminated"]]
        yield "%s└─ %s (%s)%s%s" % ("   " * (layer["depth"] + 1), where, layer["format"] or "format unknown", address, end)


def _job(job):
    return " (%s job, %s %%)" % (job["type"], job["percent"]) if job else ""


def chain_find(domains, path):
    """Every layer with that path, as a list of dicts: guest, uuid, disk, depth, address."""
    return [
        {"guest": domain["name"], "uuid": domain["uuid"], "disk": disk["disk"], "depth": layer["depth"], "address": layer["address"]}
        for domain in _domains(domains)
        for disk in domain["disks"]
        for layer in disk["chain"]
        if layer["path"] == path
    ]


def _domains(value):
    if isinstance(value, dict) and "domains" in value:
        value = value["domains"]
    if not isinstance(value, list) or not all(isinstance(one, dict) and "disks" in one for one in value):
        raise AnsibleFilterError("This filter takes the domains that livestorage.libvirt.disk_chain_info returns.")
    return value


class FilterModule:
    def filters(self):
        return {"chain_tree": chain_tree, "chain_find": chain_find}
