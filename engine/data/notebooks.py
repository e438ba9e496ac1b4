"""Jupyter notebooks as text: the source of their cells, without outputs, pictures and metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

NOTEBOOK_BYTES = 32 << 20
"Larger notebooks are left out; what is learnt of one may be as large as any other file."
_CELL, _PROSE = "# %%", "# %% [markdown]"
"How editors mark cells in plain Python files."


class NotebookError(Exception):
    """It is no notebook."""


def cells_as_text(content: str) -> str:
    """The cells in order, each under its mark; prose as comments.

    Raises:
        NotebookError: not JSON, or not of a notebook's form.
    """
    try:
        notebook = json.loads(content)
        cells = notebook["cells"] if "cells" in notebook else notebook["worksheets"][0]["cells"]
        return "\n".join(_cell(cell) for cell in cells)
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise NotebookError(str(error)) from error


def _cell(cell: dict[str, Any]) -> str:
    source = cell.get("source", cell.get("input", ""))
    text = source if isinstance(source, str) else "".join(source)
    # JSON may spell out half of a character outside the basic plane, which is no text.
    text = text.encode("utf-8", "replace").decode()
    if cell["cell_type"] == "code":
        return f"{_CELL}\n{text}\n"
    return "\n".join([_PROSE, *_commented(text)]) + "\n"


def _commented(text: str) -> Iterator[str]:
    return (f"# {line}".rstrip() for line in text.split("\n"))
