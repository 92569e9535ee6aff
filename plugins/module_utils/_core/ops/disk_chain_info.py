# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planner of disk_chain_info: no steps, before equals after."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import Refused
from ..model import Needs, Observed, Selection
from ..plan import Plan

CHANGES = False


@dataclass(frozen=True)
class Request:
    selection: Selection

    @property
    def needs(self) -> Needs:
        return Needs(self.selection, config=False, tolerant=True)


def request(params: dict) -> Request:
    """Module parameters to a Request. Raises Refused (code bad_filter) for a filter that is no regular expression."""
    if params["filter"] is not None:
        try:
            re.compile(params["filter"])
        except re.error as error:
            raise Refused("bad_filter", "The filter %r is not a regular expression (%s)." % (params["filter"], error)) from error
    names = params["names"]
    return Request(Selection(params["name"], params["uuid"], None if names is None else tuple(names), params["filter"], params["state"]))


def plan(wanted: Request, seen: Observed) -> Plan:
    """Nothing to do. Raises Refused (code no_guest) for a guest that was named and is not there."""
    found = {domain.name for domain in seen.domains}
    selection = wanted.selection
    if selection.uuid is not None and not found:
        raise Refused("no_guest", "libvirt knows no guest with the uuid %s." % selection.uuid)
    asked = (selection.name,) if selection.name is not None else selection.names or ()
    missing = [name for name in asked if name not in found]
    if missing and selection.state is None and selection.pattern is None:
        raise Refused("no_guest", "libvirt knows no guest named %s: leave the name out to list all guests." % ", ".join(missing))
    warnings = tuple("The jobs of guest %s cannot be read now: what is returned of it has none." % name for name in seen.silent)
    return Plan(seen.domains, seen.domains, warnings=warnings)
