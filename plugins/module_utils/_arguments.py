# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options that several modules share, as argument specs; their documentation is in the doc fragments of the same names."""

from __future__ import annotations

from ansible.module_utils.basic import env_fallback

CONNECTION = {"uri": {"type": "str", "default": "qemu:///system", "fallback": (env_fallback, ["LIBVIRT_DEFAULT_URI"])}}

GUEST = {"name": {"type": "str", "aliases": ["guest", "domain"]}, "uuid": {"type": "str"}}
GUEST_RULES = {"mutually_exclusive": [("name", "uuid")], "required_one_of": [("name", "uuid")]}

IMAGES = {"images": {"type": "list", "elements": "str"}, "format": {"type": "str", "choices": ["qcow2", "raw", "qed"]}}
GUEST_OR_IMAGES = dict(GUEST, **IMAGES)
GUEST_OR_IMAGES_RULES = {
    "mutually_exclusive": [("name", "uuid"), ("images", "name"), ("images", "uuid")],
    "required_one_of": [("name", "uuid", "images")],
}
IMAGES_RULES = {"images": ["format"]}  # a format that is guessed would be the choice of whoever wrote the image

DISK_OF_GUEST = {"disk": {"type": "str"}}
DISK_OF_GUEST_RULES = {"required_by": dict(IMAGES_RULES, name=["disk"], uuid=["disk"])}
DISK = {"disk": {"type": "str", "required": True}}

BANDWIDTH = {"bandwidth": {"type": "str"}}

WAIT = {
    "wait": {"type": "bool", "default": True},
    "wait_timeout": {"type": "int", "default": 86400},
    "poll_interval": {"type": "float", "default": 1.0},
    "on_timeout": {"type": "str", "default": "leave", "choices": ["leave", "abort"]},
}
WATCHED = {
    "progress": {"type": "bool", "default": True},  # for the action plugin
    "phase": {"type": "str", "default": "whole", "choices": ["whole", "start", "finish", "adopt"]},
}
