# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Values to what a module returns: plain data for machines, and readable lines for --diff.

The law: the same keys on success, in check mode and on failure; no XML.
"""

from __future__ import annotations

from typing import Callable, Iterable, List, Mapping, Optional, Sequence

from .chain import Chain, Layer
from .model import Disk, Domain, Job, Mirror
from .plan import (
    ABORT,
    ADOPT,
    AWAIT,
    BACK,
    BEGIN,
    CHECKPOINT,
    COMMIT,
    CONVERT,
    COPY,
    CREATE,
    DEFINE,
    DELETE,
    DISCARD,
    DISOWN,
    DROP,
    FREEZE,
    INSPECT,
    LOCK,
    MERGE,
    METADATA,
    NOTE,
    OVERLAY,
    PIVOT,
    PREPARE,
    PROTECT,
    PROVE,
    PULL,
    REBASE,
    REDEFINE,
    RESAVE,
    RESTART,
    RETELL,
    REVERT,
    SAVE,
    SNAPSHOT,
    SPEED,
    THAW,
    UNCHECK,
    UNNOTE,
    WAIT,
    Plan,
    Step,
)


def domains_result(domains: Iterable[Domain]) -> List[dict]:
    return [domain_result(domain) for domain in domains if not domain.bare]


def images_result(domains: Iterable[Domain]) -> List[dict]:
    """The images that were asked for by themselves, each with the chain that it begins (or that took its place)."""
    return [{"path": domain.name, "chain": chain_result("", domain.disks[0].chain)} for domain in domains if domain.bare]


def domain_result(domain: Domain) -> dict:
    return {
        "name": domain.name,
        "uuid": domain.uuid,
        "active": domain.active,
        "persistent": domain.persistent,
        "state": domain.state,
        "disks": [disk_result(disk) for disk in domain.disks],
    }


def disk_result(disk: Disk) -> dict:
    return {
        "disk": disk.target,
        "device": disk.device,
        "bus": disk.bus,
        "readonly": disk.readonly,
        "shareable": disk.shareable,
        "transient": disk.transient,
        "chain": chain_result(disk.target, disk.chain, disk.readonly),
        "job": job_result(disk.job),
        "mirror": mirror_result(disk.target, disk.mirror),
    }


def chain_result(target: str, chain: Chain, readonly: bool = False) -> List[dict]:
    return [
        {
            "depth": depth,
            "index": layer.index,
            "address": None if layer.index is None else "%s[%d]" % (target, layer.index),
            "parent": depth - 1 if depth else None,
            "type": layer.type,
            "protocol": layer.protocol,
            "path": layer.path,
            "name": layer.name,
            "host": [dict(host) for host in layer.hosts],
            "format": layer.format,
            "data_store": store_result(layer.store),
            "terminated": chain.terminated(depth),
            "readonly": readonly or depth > 0,
        }
        for depth, layer in enumerate(chain.layers)
    ]


def store_result(store: Optional[Layer]) -> Optional[dict]:
    """The data file of a layer."""
    if store is None:
        return None
    return {
        "type": store.type,
        "path": store.path,
        "name": store.name,
        "protocol": store.protocol,
        "format": store.format,
        "index": store.index,
        "raw": store.raw,
        "relative": store.relative,
        "known_from": store.known_from,
    }


def job_result(job: Optional[Job]) -> Optional[dict]:
    if job is None:
        return None
    percent = round(100.0 * job.cur / job.end, 1) if job.end else 0.0
    return {"type": job.type, "cur": job.cur, "end": job.end, "percent": percent, "ready": job.ready, "bandwidth": job.bandwidth}


def mirror_result(target: str, mirror: Optional[Mirror]) -> Optional[dict]:
    if mirror is None:
        return None
    return {"job": mirror.job, "ready": mirror.ready, "chain": chain_result(target, mirror.chain)}


def steps_result(plan: Plan, done: Sequence[Step]) -> List[dict]:
    """The steps of a plan: what each does, whether undo ends with it (the fence), and whether it was begun."""
    return [
        {"action": step.action, "disk": step.disk, "does": _sentence(step), "fence": plan.is_fence(position), "begun": position < len(done)}
        for position, step in enumerate(plan.steps)
    ]


def _snapshot(disk: Optional[str], detail: Mapping) -> str:
    memory = " and write the memory to %s" % detail["memory"] if detail.get("memory") else ""
    return "put an overlay on %s%s" % (", ".join("%s: %s" % (target, layer) for target, layer in detail["overlays"]), memory)


_SENTENCES: Mapping[str, Callable[[Optional[str], Mapping], str]] = {
    SNAPSHOT: _snapshot,
    PULL: lambda disk, detail: "pull %s down to %s" % (disk, detail["base"] or "nothing (flatten)"),
    COMMIT: lambda disk, detail: "merge %s into %s" % (detail["top"] or disk, detail["base"]),
    COPY: lambda disk, detail: "copy %s to %s (%s)" % ("the active layer of %s" % disk if detail["shallow"] else disk, detail["to"], detail["to"].format),
    WAIT: lambda disk, detail: "wait until the %s job is %s" % (detail["job"], detail["until"]),
    PIVOT: lambda disk, detail: "pivot %s to %s" % (disk, detail["to"]),
    ABORT: lambda disk, detail: "end the %s job on %s" % (detail["job"], disk),
    SPEED: lambda disk, detail: "limit the %s job on %s to %d bytes per second (0: no limit)" % (detail["job"], disk, detail["bandwidth"]),
    CREATE: lambda disk, detail: "create the volume %s in the pool %s" % (detail["volume"], detail["pool"]),
    PREPARE: lambda disk, detail: "create %s on %s with what the layers between hold" % (detail["path"], detail["below"]),
    DISCARD: lambda disk, detail: "remove %s, which an earlier run left" % detail["path"],
    DELETE: lambda disk, detail: _removal(detail),
    DROP: lambda disk, detail: "remove %s" % detail["path"],
    DEFINE: lambda disk, detail: "let the definition of the next start have the chain of %s" % disk,
    LOCK: lambda disk, detail: "hold the images of %s, so that nobody else opens them" % disk,
    MERGE: lambda disk, detail: "merge %s into %s" % (", ".join(str(layer) for layer in detail["chain"][:-1]), detail["chain"][-1]),
    REBASE: lambda disk, detail: _rebase(detail),
    OVERLAY: lambda disk, detail: "create %s on %s" % (detail["path"], detail["on"]),
    REDEFINE: lambda disk, detail: "define %s" % ", ".join("%s on %s" % (target, chain.active) for target, chain in detail["chains"]),
    FREEZE: lambda disk, detail: "freeze the file systems of the guest",
    THAW: lambda disk, detail: "thaw the file systems of the guest",
    REVERT: lambda disk, detail: "let libvirt revert the guest to the snapshot %s" % detail["name"],
    RETELL: lambda disk, detail: "write down which layers the snapshots of the guest stand for now",
    METADATA: lambda disk, detail: "create %s as a qcow2 layer%s" % (detail["path"], " with the data file %s" % detail["over"] if detail["keeps"] else ""),
    ADOPT: lambda disk, detail: "let %s stand over %s, and prove that both show the same" % (detail["path"], detail["raw"]),
    PROVE: lambda disk, detail: "prove that %s shows just what %s holds" % (detail["path"], detail["raw"]),
    CONVERT: lambda disk, detail: "copy %s to %s with the data file %s" % (detail["source"], detail["path"], detail["over"]),
    SAVE: lambda disk, detail: "go on with the guest that an earlier run has saved" if detail.get("already") else "pause the guest and save its memory",
    RESAVE: lambda disk, detail: "let the saved guest have %s" % ", ".join("%s on %s" % (target, chain.active) for target, chain in detail["chains"]),
    RESTART: lambda disk, detail: "start the guest with its memory",
    NOTE: lambda disk, detail: "note in the definition of the guest what is begun with %s" % disk,
    UNNOTE: lambda disk, detail: "take away the note about the conversion of %s" % disk,
    DISOWN: lambda disk, detail: "let libvirt forget the snapshot %s" % detail["name"],
    CHECKPOINT: lambda disk, detail: "create the checkpoint %s of %s" % (detail["name"], ", ".join(detail["targets"])),
    UNCHECK: lambda disk, detail: "%s the checkpoint %s" % ("let libvirt forget" if detail["metadata_only"] else "delete", detail["name"]),
    BEGIN: lambda disk, detail: "begin the %s%s" % (detail["backup"], ", with the checkpoint %s" % detail["checkpoint"] if detail["checkpoint"] else ""),
    AWAIT: lambda disk, detail: "wait until the backup of %s is completed" % ", ".join(detail["targets"]),
    BACK: lambda disk, detail: "let %s stand on %s" % (detail["path"], detail["backing"] or "nothing, and not on the image of the guest"),
    INSPECT: lambda disk, detail: "look at what was written to %s" % ", ".join(path for dummy, path, *more in detail["images"]),
    PROTECT: lambda disk, detail: "let the next start have %s on %s" % (detail["to"], disk),
}


def _removal(detail: Mapping) -> str:
    of = ", the data file of %s" % detail["of"] if "of" in detail else ""
    return "remove %s%s%s" % (detail["path"], of, "; its data file %s stays (%s)" % detail["stays"] if "stays" in detail else "")


def _rebase(detail: Mapping) -> str:
    to = "nothing" if detail["to"] is None else detail["to"]
    words = "pull what %s needs into it, and put it on %s" if detail["safe"] else "put %s on %s"
    return words % (detail["layer"], to)


def _sentence(step: Step) -> str:
    words = _SENTENCES.get(step.action)
    return words(step.disk, step.detail) if words is not None else "take away the note about the job on %s" % step.disk


def diff_text(domains: Iterable[Domain]) -> str:
    """The chains of all disks, a line a layer, active layer first."""
    lines = []
    for domain in domains:
        for disk in domain.disks:
            lines.append("image %s" % domain.name if domain.bare else "guest %s, disk %s" % (domain.name, disk.target))
            lines.extend(chain_lines(disk.chain))
            lines.extend(mirror_lines(disk.mirror))
    return "".join(line + "\n" for line in lines)


def chain_lines(chain: Chain) -> List[str]:
    """One line a layer and one for the end, without depths or indexes: a layer that stays keeps its line."""
    lines = ["  %s (%s, %s%s)" % (layer, layer.type, layer.format or "format unknown", data_of(layer)) for layer in chain.layers]
    if not lines:
        return ["  empty"]
    return lines + ["  the chain ends here" if chain.ends else "  what follows is not known"]


def mirror_lines(mirror: Optional[Mirror]) -> List[str]:
    """Where a mirror goes, whether or not it is ready, which changes by itself."""
    if mirror is None or mirror.chain.active is None:
        return []
    to = mirror.chain.active
    return ["  mirrored (%s) to %s (%s%s)" % (mirror.job, to, to.format or "format unknown", data_of(to))]


def data_of(layer: Layer) -> str:
    """Where a layer has its data, after its format."""
    return "" if layer.store is None else ", data in %s" % layer.store


def chain_text(chain: Chain) -> str:
    """The chain in one line, for messages: base first, so that the arrows point at what is built on."""
    text = " <- ".join(str(layer) + (" (data in %s)" % layer.store if layer.store is not None else "") for layer in reversed(chain.layers)) or "empty"
    return text if chain.ends or not chain.layers else "(not known) <- " + text
