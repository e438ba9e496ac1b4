"""Prints a command's results on standard output."""

from __future__ import annotations

import json
import sys

from engine.standard_streams import writes_unicode


def print_json(value: object) -> None:
    """Prints the one JSON document of a `--json` call."""
    escaped = not writes_unicode(sys.stdout)
    print(json.dumps(value, ensure_ascii=escaped, allow_nan=False), flush=True)  # noqa: T201
