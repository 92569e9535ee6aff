# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A chain against the images' own headers, layer by layer."""

from __future__ import annotations

from typing import Iterator, Optional

from .chain import BOTH, HEADER, Layer, normal_path
from .findings import Finding, Subject
from .headers import Probes, Walk, probe_of
from .host_facts import Image, Probe
from .image_info import shown_name

_OTHERS_WRITE = 0o002


def chain_findings(subject: Subject, walk: Walk, probes: Probes, deepest: int) -> Iterator[Finding]:
    """What the headers contradict in a chain (completed by ``headers.completed``), and what is wrong with its images."""
    layers = walk.chain.layers
    if len(layers) > deepest or walk.problem == "too_deep":
        yield _too_deep(subject, walk, deepest)
    for depth, layer in enumerate(layers):
        below = layers[depth + 1] if depth + 1 < len(layers) else None
        probe = probe_of(layer, probes)
        if probe is None:
            continue
        yield from image_itself(subject, layer, probe)
        if probe.image is not None:
            yield from _backing(subject, layer, probe.image, below, walk.chain.terminated(depth), probes)
            yield from _store(subject, layer, probe.image, probes)
        yield from _sizes(subject, layer, probe, below, probes)
        for branch in layer.branches:
            yield from chain_findings(subject, Walk(branch), probes, deepest)
    if walk.problem in ("protocol", "slices") and probe_of(layers[-1], probes) is None:
        message = "What follows below %s is not known: libvirt does not say it, and its header cannot be read here."
        yield Finding("unknown", subject.label(layers[-1]), None, walk.problem, message % subject.on(layers[-1]))
    if walk.problem == "loop":
        last = layers[-1]
        yield Finding(
            "loop",
            subject.label(last),
            None,
            _named(last, probes),
            "The header of %s names %s, which is above it in the same chain: the guest cannot start so; put the right backing into the header."
            % (subject.on(last), _named(last, probes)),
        )


def _named(layer: Layer, probes: Probes) -> Optional[str]:
    probe = probe_of(layer, probes)
    return probe.image.backing_path if probe is not None and probe.image is not None else None


def _too_deep(subject: Subject, walk: Walk, deepest: int) -> Finding:
    deep = deepest + 1 if walk.problem == "too_deep" else len(walk.chain)  # at least: it was not followed any further
    words = "more than %d" % deepest if walk.problem == "too_deep" else str(deep)
    message = "The chain of %s is %s deep, where max_depth allows %d: merge layers with block_commit or block_rebase."
    return Finding("too_deep", subject.label(walk.chain.layers[-1]), deepest, deep, message % (subject.words, words, deepest))


def image_itself(subject: Subject, layer: Layer, probe: Probe) -> Iterator[Finding]:
    """What is wrong with one image, whatever the chain says."""
    name, label = subject.on(layer), subject.label(layer)
    if probe.magic and layer.format not in (None, probe.magic) and not layer.facts.encryption:
        if layer.format == "raw":
            message = (
                "%s is raw, but starts with the header of a %s image, as a guest may write it: never let a tool guess its format; "
                "always say raw, and find out who wrote the header."
            )
            yield Finding("raw_with_header", label, "raw", probe.magic, message % (name, probe.magic))
        else:
            message = "%s is used as %s, but its header is that of a %s image: correct the format where it is defined."
            yield Finding("format_differs", label, layer.format, probe.magic, message % (name, layer.format, probe.magic))
    elif probe.problem == "missing" and layer.facts.startup_policy == "optional":
        pass  # libvirt starts the guest without it
    elif probe.problem is not None and not (probe.problem == "format_unknown" and layer.known_from == HEADER):
        yield _problem(subject, layer, probe)
    if probe.mode & _OTHERS_WRITE:
        message = "%s may be written by every user of the host (mode %04o): take that right away." % (name, probe.mode)
        yield Finding("writable_by_others", label, "%04o" % (probe.mode & ~_OTHERS_WRITE), "%04o" % probe.mode, message)


def _problem(subject: Subject, layer: Layer, probe: Probe) -> Finding:
    name, label = subject.on(layer), subject.label(layer)
    if probe.problem == "missing":
        message = "%s is not there (%s): bring it back, or mount the storage that it is on." % (name, probe.detail)
        return Finding("missing_file", label, "a file or block device", probe.detail, message)
    if probe.problem == "not_a_file":
        message = "%s is %s, and was not opened: an image is a regular file or a block device." % (name, probe.detail)
        return Finding("not_a_file", label, "a file or block device", probe.detail, message)
    if probe.problem == "format_unknown":
        bytes_ = "; its first bytes are those of a %s image, but a guest may have written them" % probe.magic if probe.magic else ""
        message = "Nothing says which format %s has%s: say the format, raw is never guessed." % (name, bytes_)
        return Finding("format_unknown", label, None, probe.magic, message)
    if probe.problem in ("remote", "unsafe"):
        reason = "it is on another host and in none of its active storage pools" if probe.problem == "remote" else probe.detail
        return Finding("unknown", label, None, probe.problem, "The header of %s is not known: %s." % (name, reason))
    if probe.problem == "permission":
        message = "%s may not be read by this user (%s): use become, or give the user that right." % (name, probe.detail)
        return Finding("unreadable", label, layer.format, probe.detail, message)
    message = "The header of %s cannot be read as %s (%s): check the image with qemu-img, and who may read it."
    return Finding("unreadable", label, layer.format, probe.detail, message % (name, layer.format, probe.detail))


def _backing(subject: Subject, layer: Layer, image: Image, below: Optional[Layer], ended: Optional[bool], probes: Probes) -> Iterator[Finding]:
    """What the header names as backing against the layer that the chain has below."""
    name, label = subject.on(layer), subject.label(layer)
    if image.backing is None:
        if below is not None and below.known_from != HEADER:
            message = "libvirt has %s below %s, but the header of that image names no backing: find out which is right before the next start."
            yield Finding("backing_differs", label, str(below), None, message % (below, name))
        return
    shown = image.backing_path or shown_name(image.backing)
    if image.backing_format is None and image.backing_path is not None:
        message = "The header of %s names the backing %s without its format: add it with qemu-img rebase -u -F while the guest is off."
        yield Finding("format_missing", label, below.format if below else None, None, message % (name, shown))
    if ended:
        message = "libvirt ends the chain of %s at %s, whose header names %s: what is only there is hidden from the guest; define the whole chain."
        yield Finding("hidden_backing", label, None, shown, message % (subject.words, subject.name(layer), shown))
    elif image.backing_path is None:
        if below is None or below.path is not None:
            message = "The header of %s names the backing %s, no path, which was not opened: define the whole chain in the guest's XML if it is right."
            yield Finding("protocol_backing", label, str(below) if below else None, shown, message % (name, shown))
    elif below is not None and below.known_from != HEADER:
        yield from _against(subject, layer, image, below, probes)


def _against(subject: Subject, layer: Layer, image: Image, below: Layer, probes: Probes) -> Iterator[Finding]:
    name = subject.on(layer)
    if not _same_image(below, image, probes):
        message = "libvirt has %s below %s, the header of that image names %s: find out which is right before the next start."
        actual = image.backing_path
        yield Finding("backing_differs", subject.label(layer), str(below), actual, message % (below, name, actual))
    elif image.backing_format and below.format and image.backing_format != below.format:
        message = "libvirt uses %s as %s, the header of %s names it as %s: correct the one that is wrong."
        found = message % (subject.on(below), below.format, subject.name(layer), image.backing_format)
        yield Finding("format_differs", subject.label(below), below.format, image.backing_format, found)


def _same_image(below: Layer, image: Image, probes: Probes) -> bool:
    path = image.backing_path
    other = probes.get((path, image.backing_format)) or probes.get((path, None)) if path is not None else None
    return _same_file(below, path, other, probes)


def _same_file(layer: Layer, path: Optional[str], other: Optional[Probe], probes: Probes) -> bool:
    """Is the layer the file at that path, links resolved?"""
    if layer.path is None or path is None:
        return False
    if normal_path(layer.path) == normal_path(path):
        return True
    one = probe_of(layer, probes)
    return one is not None and other is not None and one.identity is not None and one.identity == other.identity


def _store(subject: Subject, layer: Layer, image: Image, probes: Probes) -> Iterator[Finding]:
    """The data file of the header against the ``<dataStore>`` of the XML."""
    name, label, store = subject.on(layer), subject.label(layer), layer.store
    actual = image.data_path or (shown_name(image.data) if image.data else None)
    if store is not None and store.known_from != HEADER:
        if store.known_from != BOTH:
            message = "libvirt has the data file %s for %s, the header names %s: find out which is right before the next start."
            yield Finding("data_store_differs", label, str(store), actual, message % (store, name, actual or "none"))
    elif image.data and layer.place in subject.spelled:
        message = (
            "The data of %s are in %s, which only the image's header says, and with a backingStore in the definition no libvirt looks for it there: nobody "
            "labels, locks or migrates that file; define it as the layer's dataStore (from libvirt 10.10 on), or take the backingStore away."
        )
        yield Finding("hidden_data_store", label, None, actual, message % (name, actual))
    elif image.data:
        message = (
            "The data of %s are in %s, which only the image's header says: libvirt neither labels nor locks that file; "
            "from libvirt 10.10 on, define it as the layer's dataStore."
        )
        yield Finding("data_store_missing", label, None, actual, message % (name, actual))
    if image.data_relative:
        message = "The header of %s names its data file as %s: QEMU looks for that in its own directory; write an absolute path with qemu-img amend."
        yield Finding("data_store_relative", label, image.data_path, image.data, message % (name, image.data))
    found = probes.get((image.data_path, "raw")) if image.data_path else None
    if found is not None:
        yield from image_itself(subject, Layer("file", (("file", found.path),), "raw"), found)


def _sizes(subject: Subject, layer: Layer, probe: Probe, below: Optional[Layer], probes: Probes) -> Iterator[Finding]:
    other = probe_of(below, probes) if below is not None else None
    if below is None or other is None or probe.virtual is None or other.virtual is None or other.virtual >= probe.virtual:
        return
    message = "%s has %d bytes, fewer than the %d of %s above it: a commit into it has to make it bigger first."
    found = message % (subject.on(below), other.virtual, probe.virtual, subject.name(layer))
    yield Finding("base_smaller", subject.label(below), probe.virtual, other.virtual, found)
