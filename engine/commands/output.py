"""Standard output of a command."""

from __future__ import annotations

import json


def print_json(value: object) -> None:
    """The one JSON document of a `--json` call, on standard output."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)  # noqa: T201
