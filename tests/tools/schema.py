# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""schema.py NAME: is the JSON on standard input as docs/schema/NAME.json says? Prints what is not, and fails then."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schema"


def main() -> int:
    """Read the standard input."""
    schema = json.loads((SCHEMAS / f"{sys.argv[1]}.json").read_text(encoding="utf-8"))
    wrong = sorted(jsonschema.Draft202012Validator(schema).iter_errors(json.load(sys.stdin)), key=lambda error: error.json_path)
    for error in wrong:
        print(f"{error.json_path}: {error.message}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
