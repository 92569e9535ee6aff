# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""AppArmor's profile of a guest: what it lets QEMU write to, and the way out where it does not.

The law: only that is said which the text says for certain; a rule with a variable in it, or for the owner of a file alone, leaves it
open. A rule that denies wins over every rule that allows, wherever they stand, and in complain mode too; a higher priority (AppArmor 4.1)
alone lifts it. A permission that is merely missing is no obstacle to libvirt, which adds it when a commit starts: a rule that denies is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterator, List, NamedTuple, Optional, Tuple

APPARMOR = "apparmor"
ENFORCE, COMPLAIN, UNCONFINED = "enforce", "complain", "unconfined"
FIXED = (12, 1, 0)  # the first libvirt that denies nothing of the layers below the active one

_MANAGED = re.compile(r"libvirt-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")  # whose rules libvirt writes
_MODES = {ENFORCE: ENFORCE, "kill": ENFORCE, COMPLAIN: COMPLAIN, UNCONFINED: UNCONFINED}
_INCLUDE = re.compile(r"""\s*\#?include\s+(?P<optional>if\s+exists\s+)?(?:<(?P<magic>[^>]+)>|"?(?P<path>[^\s"<>,]+))""")
_LEFT = (".dpkg-new", ".dpkg-old", ".dpkg-dist", ".dpkg-bak", ".dpkg-remove", ".pacsave", ".pacnew", ".rpmnew", ".rpmsave", ".orig", ".rej", "~")
_TOKENS = re.compile(
    r"""(?P<comment>\#.*|^[@$]\{[^}]*\}\s*\+?=.*)  # values of variables are not looked at either
    | "(?:\\.|[^"\\])*"
    | [/@](?:\\.|,(?=[^\s"])|[^\s",\\])*  # a path: a comma ends it only where nothing follows
    | [{},]
    | (?:\\.|\([^)]*\)|[^\s",\\(])+""",
    re.VERBOSE | re.MULTILINE,
)
_QUALIFIERS = frozenset(["audit", "allow", "deny", "owner"])
_PRIORITY = re.compile(r"priority=([+-]?\d+)\Z")
_PERMISSIONS = re.compile(r"[rwaxlkmiupc]+\Z", re.IGNORECASE)
_PARTS = re.compile(
    r"\\(?P<octal>[0-7]{3})|\\(?P<coded>[acdefx0-9][0-9A-Fa-f]*)|\\(?P<escaped>.)|(?P<variable>@\{[^}]*\})|(?P<stars>\*+)|(?P<set>\[[^\]]*\])"
    r"|(?P<mark>[?{},])|(?P<plain>.)",
    re.DOTALL,
)
_MARKS = {"?": ("[^/]", 0), "{": ("(?:", 1), "}": (")", -1), ",": ("|", 0)}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t"}
_SLASHES = re.compile("(?<!^)/+|^/{3,}")  # two at the start are a name space
_ANYTHING = ".*"


@dataclass(frozen=True)
class Confinement:
    """What a running QEMU is confined by.

    ``mode`` is the one in which the kernel has the profile: enforce, complain or unconfined, None where that is not known. ``rules`` are the
    lines of the profile's file and, in their places, of all that it includes; ``unreadable`` the files of these that could not be read.
    """

    model: str
    profile: str
    mode: Optional[str] = None
    rules: Tuple[str, ...] = ()
    unreadable: Tuple[str, ...] = ()


class Include(NamedTuple):
    """A line that includes a file or a directory; ``magic``: below /etc/apparmor.d."""

    path: str
    magic: bool
    optional: bool


def included(line: str) -> Optional[Include]:
    """What a line of a profile includes, None where it is another line."""
    match = _INCLUDE.match(line)
    if match is None:
        return None
    return Include(match.group("magic") or match.group("path"), match.group("magic") is not None, match.group("optional") is not None)


def left_out(name: str) -> bool:
    """Does AppArmor pass over a file of that name in a directory that is included?"""
    return name.startswith((".", "README")) or name.endswith(_LEFT)


def loaded_mode(listing: str, profile: str) -> Optional[str]:
    """The mode of a profile by the kernel's list of them; one that it does not have confines nobody."""
    modes = {name: mode.rstrip(")") for name, dummy, mode in (line.rpartition(" (") for line in listing.splitlines())}
    return _MODES.get(modes.get(profile, UNCONFINED))


def writable(confinement: Confinement, path: str) -> Optional[bool]:
    """Does the profile as it is let QEMU write to a path (its links resolved)? None where that cannot be known."""
    return True if confinement.mode == UNCONFINED else _verdict(confinement, path)[0]


def obstacle(confinement: Confinement, libvirt_version: Optional[tuple], path: str) -> Optional[str]:
    """Why QEMU could not write to a path (its links resolved) though libvirt asked it to, and the way out; None where nothing is known to hinder it."""
    if confinement.model != APPARMOR or confinement.mode == UNCONFINED:
        return None
    profile, managed = confinement.profile, _MANAGED.match(confinement.profile) is not None
    allowed, denying = _verdict(confinement, path)
    if denying is not None:
        why = "forbids QEMU to write to %s (the rule %s of the profile %s wins over every rule that allows it" % (path, denying, profile)
        if managed and denying == 'deny "%s" w,' % path:  # as virt-aa-helper writes it
            stale = libvirt_version is not None and libvirt_version >= FIXED
            origin = "a libvirt before 12.1 has left it there" if stale else "libvirt before 12.1 makes it anew after each commit"
            todo = "; %s): take that line out of /etc/apparmor.d/libvirt/%s.files" % (origin, profile)
        else:
            todo = "): narrow that rule, in the file of that profile or in one that it includes"
    elif allowed is False and not managed:
        why = "does not let QEMU write to %s (no rule of the profile %s allows it, and that is not one of libvirt's own)" % (path, profile)
        todo = ': add the rule "%s" rwk, to that profile' % path
    else:
        return None
    file = "/etc/apparmor.d/libvirt/%s" % profile if managed else "and its file"
    return "AppArmor %s%s, load the profile afresh (apparmor_parser -r %s) and run this task again; the guest stays confined and runs on." % (why, todo, file)


class _Block(NamedTuple):
    """A pair of braces: does it hold rules of the profile, for certain, and with which qualifiers?"""

    ours: bool
    qualifiers: Tuple[str, ...] = ()
    sure: bool = True


class _Rule(NamedTuple):
    """A rule about writing: ``glob`` None means every file."""

    deny: bool
    glob: Optional[str]
    priority: int
    sure: bool
    text: str


def _verdict(confinement: Confinement, path: str) -> Tuple[Optional[bool], Optional[str]]:
    """May QEMU write (None: not known), and the rule that denies it for certain."""
    statements = _statements(confinement)
    if statements is None:
        return None, None
    rules = [rule for rule in (_rule(words, sure) for words, sure in statements) if rule is not None]
    found = [(rule, hit and rule.sure) for rule, hit in ((rule, _matches(rule.glob, path)) for rule in rules) if hit is not False]
    if not found:
        return (None if confinement.unreadable else confinement.mode == COMPLAIN), None
    first = max(rule.priority for rule, dummy in found)
    denying = [(rule, sure) for rule, sure in found if rule.deny and rule.priority == first]
    certain = next((rule for rule, sure in denying if sure), None)
    if certain is not None:
        return False, certain.text
    allowed = any(sure for rule, sure in found if not rule.deny and rule.priority == first)
    return (True if allowed and not denying and not confinement.unreadable else None), None


def _statements(confinement: Confinement) -> Optional[List[Tuple[Tuple[str, ...], bool]]]:
    """(words, sure) of each statement of the profile itself; None where the text has no such profile."""
    found, words, blocks, seen = [], [], [_Block(False)], False
    for token in _tokens(confinement.rules):
        if token == "{":
            blocks.append(_block(blocks, words, confinement.profile))
            seen = seen or blocks[-1].ours
        elif token == "}":
            blocks = blocks[:-1] or blocks
        elif token == "," and blocks[-1].ours:
            found.append((blocks[-1].qualifiers + tuple(words), blocks[-1].sure))
        words = [] if token in ("{", "}", ",") else words + [token]
    return found if seen else None


def _tokens(lines: Tuple[str, ...]) -> Iterator[str]:
    for match in _TOKENS.finditer("\n".join(lines)):
        if match.lastgroup != "comment":
            yield match.group()


def _block(outside: List[_Block], words: List[str], profile: str) -> _Block:
    """What the braces after these words are."""
    outer = outside[-1]
    if len(outside) == 1:
        start = len(words) - words[::-1].index("profile") if "profile" in words else 0
        return _Block(profile in [word.strip('"') for word in (words[start : start + 1] if start else words)])
    if not outer.ours or "".join(words[:1]).startswith("^") or words[:1] in (["profile"], ["hat"]):
        return _Block(False)
    # A condition, or qualifiers, of which AppArmor 4.1 takes a rule that denies for one that allows.
    return _Block(True, outer.qualifiers + tuple(word for word in words if _qualifies(word)), False)


def _qualifies(word: str) -> bool:
    return word in _QUALIFIERS or _PRIORITY.match(word) is not None


def _rule(words: Tuple[str, ...], sure: bool) -> Optional[_Rule]:
    """A statement as a rule about writing to files, None where it is about something else."""
    start = next((place for place, word in enumerate(words) if not _qualifies(word)), len(words))
    qualifiers, rest = words[:start], words[start:]
    priorities = [int(match.group(1)) for match in map(_PRIORITY.match, qualifiers) if match]
    facts = {"deny": "deny" in qualifiers, "priority": priorities[-1] if priorities else 0, "sure": sure and "owner" not in qualifiers}
    text = " ".join(words) + ","
    if rest in (("file",), ("all",)):
        return _Rule(glob=None, text=text, **facts)
    rest = rest[1:] if rest[:1] == ("file",) else rest
    if len(rest) < 2:
        return None
    path, permissions = rest[:2] if _is_path(rest[0]) else rest[1::-1]
    if not _is_path(path) or not _PERMISSIONS.match(permissions) or "w" not in permissions.lower():
        return None
    return _Rule(glob=path[1:-1] if path.startswith('"') else path, text=text, **facts)


def _is_path(word: str) -> bool:
    return word.lstrip('"').startswith(("/", "@{"))


def _matches(glob: Optional[str], path: str) -> Optional[bool]:
    """Does AppArmor's pattern match a path? None where it may. AppArmor compares bytes, not characters."""
    if glob is None:
        return True
    pattern, sure = _pattern(_in_bytes(_SLASHES.sub("/", glob)))
    try:
        hit = re.compile(pattern, re.DOTALL).fullmatch(_in_bytes(path)) is not None
    except re.error:  # such a profile could not have been loaded
        return None
    return None if hit and not sure else hit


def _in_bytes(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _pattern(glob: str) -> Tuple[str, bool]:
    """The regular expression of a pattern, and whether it says all."""
    found, depth, sure = [], 0, True
    for part in _PARTS.finditer(glob):
        text, kind = part.group(part.lastgroup), part.lastgroup
        if kind == "mark" and (text != "," or depth):
            expression, step = _MARKS[text]
            depth += step
        elif kind == "stars":
            # Between slashes, and at the end, a star stands for at least one character.
            alone = glob[: part.start()].endswith("/") and glob[part.end() :][:1] in ("", "/")
            expression = ("[^/]" if alone else "") + ("[^/]*" if text == "*" else _ANYTHING)
        else:
            expression = _literal(kind, text)
            sure = sure and expression != _ANYTHING
        found.append(expression)
    return "".join(found), sure


def _literal(kind: Optional[str], text: str) -> str:
    """One character, or anything where AppArmor's reading is not certain."""
    if kind == "octal":
        return re.escape(chr(int(text, 8)))
    if kind == "set":
        inside = text[1:-1].partition("^")[2] if text[1:2] == "^" else text[1:-1]
        return _ANYTHING if not inside.isascii() or re.search(r"[]*?[{}\\@,^]|^$", inside) else text
    if kind in ("variable", "coded"):
        return _ANYTHING
    return re.escape(_CONTROLS.get(text, text) if kind == "escaped" else text)
