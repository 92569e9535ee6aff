# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible.errors import AnsibleFilterError


def chain_tree(result):
    """Text: each guest, its disks, and the layers of each disk, active layer first and what backs it indented below."""
    lines = []
    domains, images = _parts(result)
    for domain in domains:
        lines.append("%s (%s)" % (domain["name"], domain["state"]))
        for disk in domain["disks"]:
            lines.append("└─ %s%s" % (disk["disk"], _job(disk.get("job"))))
            lines.extend(_layers(disk["chain"], disk["disk"], 1))
            lines.extend(_mirror(disk.get("mirror"), disk["disk"]))
            lines.extend(_findings(disk, 1))
    for image in images:
        lines.append("image %s" % image["path"])
        lines.extend(_layers(image["chain"], None, 0))
        lines.extend(_findings(image, 0))
    return "".join(line + "\n" for line in lines)


def _layers(chain, target, indent):
    """The lines of a flat list in the order of the tree, without recursion: a chain may be deeper than Python's stack."""
    below = {}
    for position, layer in enumerate(chain):
        below.setdefault(layer["parent"], []).append(position)
    todo = below.get(None, [])[::-1]
    while todo:
        position = todo.pop()
        layer = chain[position]
        yield "%s└─ %s%s" % ("   " * (indent + layer["depth"]), _image(layer, layer["address"]), _not_known(layer))
        store = layer.get("data_store")
        if store:
            yield "%s└─ data store %s" % ("   " * (indent + layer["depth"] + 1), _image(store, _address(store, target)))
        todo.extend(below.get(position, [])[::-1])


def _image(image, address):
    where = image["path"] or image["name"] or image["type"]
    if image["protocol"]:
        where = "%s:%s" % (image["protocol"], where)
    return "%s (%s)%s" % (where, image["format"] or "format unknown", " [%s]" % address if address else "")


def _address(store, target):
    return None if store["index"] is None or target is None else "%s[%d]" % (target, store["index"])


def _not_known(layer):
    reason = layer.get("unread")
    if layer["terminated"] is None:
        return " (what follows is not known%s)" % (": " + reason if reason else "")
    return " (not read: %s)" % reason if reason else ""


def _job(job):
    return " (%s job, %s %%)" % (job["type"], job["percent"]) if job else ""


def _mirror(mirror, target):
    if mirror:
        yield "   └─ mirror (%s, %s)" % (mirror["job"], {None: "not ready", "yes": "ready"}.get(mirror["ready"], mirror["ready"]))
        yield from _layers(mirror["chain"], target, 2)


def _findings(holder, indent):
    for one in holder.get("findings") or ():
        yield "%s! %s: %s%s" % ("   " * indent, one["severity"], one["code"], " at " + one["layer"] if one["layer"] else "")


def chain_find(result, path):
    """Every image with that path, as a list of dicts: guest, uuid, disk, image, where, depth, address."""
    return [dict(owner, where=where, depth=layer["depth"], address=address) for owner, where, layer, image, address in _images(result) if image["path"] == path]


def chain_paths(result):
    """The paths of all layers, data stores and mirrors, each once, sorted."""
    return sorted({image["path"] for dummy, dummy, dummy, image, dummy in _images(result) if image["path"]})


def _images(result):
    """(its owner, where it is, its layer, the layer or its data store, its address) of every image there is."""
    domains, images = _parts(result)
    for domain in domains:
        for disk in domain["disks"]:
            owner = {"guest": domain["name"], "uuid": domain["uuid"], "disk": disk["disk"], "image": None}
            yield from _images_of(owner, "chain", disk["chain"])
            yield from _images_of(owner, "mirror", (disk.get("mirror") or {"chain": []})["chain"])
    for image in images:
        yield from _images_of({"guest": None, "uuid": None, "disk": None, "image": image["path"]}, "chain", image["chain"])


def _images_of(owner, where, chain):
    for layer in chain:
        yield owner, where, layer, layer, layer["address"]
        store = layer.get("data_store")
        if store:
            yield owner, "data_store", layer, store, _address(store, owner["disk"])


def chain_depth(result, guest=None, disk=None):
    """The number of layers of the deepest chain: of all, of one guest's disks, or of the disks of one name."""
    domains, images = _parts(result)
    domains = [domain for domain in domains if guest in (None, domain["name"], domain["uuid"])]
    disks = [one for domain in domains for one in domain["disks"] if disk in (None, one["disk"])]
    if (guest is not None and not domains) or (disk is not None and not disks):
        words = [word for word, asked in (("disk %s" % disk, disk), ("guest %s" % guest, guest)) if asked is not None]
        raise AnsibleFilterError("There is no %s in what chain_depth was given." % " of ".join(words))
    holders = disks + (images if guest is None and disk is None else [])
    return max((layer["depth"] + 1 for holder in holders for layer in holder["chain"]), default=0)


def _parts(value):
    """(the guests, the images) of a whole result, or of a list of one of them."""
    domains, images = [], []
    if isinstance(value, dict) and "domains" in value:
        domains, images = value["domains"], value.get("images", [])
    elif isinstance(value, list) and value and all(isinstance(one, dict) and "disks" not in one for one in value):
        images = value
    else:
        domains = value
    if not _all(domains, "disks") or not _all(images, "chain"):
        raise AnsibleFilterError("This filter takes what livestorage.libvirt.disk_chain_info returns: all of it, its domains, or its images.")
    return domains, images


def _all(values, key):
    return isinstance(values, list) and all(isinstance(one, dict) and key in one for one in values)


class FilterModule:
    def filters(self):
        return {"chain_tree": chain_tree, "chain_find": chain_find, "chain_depth": chain_depth, "chain_paths": chain_paths}
