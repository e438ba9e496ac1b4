"""Prints a command's results on standard output."""

from __future__ import annotations

import json


def print_json(value: object) -> None:
    """Prints the one JSON document of a `--json` call."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)  # noqa: T201
