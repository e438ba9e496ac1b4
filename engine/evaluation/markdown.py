"""Markdown for untrusted text, and for figures."""

from __future__ import annotations

from collections.abc import Sequence


def code(text: str) -> str:
    """Renders untrusted text in backquotes, on one line."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return f"`{shown.replace('`', chr(39))}`"


def code_block(text: str, language: str = "") -> str:
    """Renders untrusted text in a fence that it cannot close; control characters become question marks."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text).strip("\n")
    fence = "```"
    while fence in shown:
        fence += "`"
    return f"{fence}{language}\n{shown}\n{fence}"


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ("", ""), *, figures: bool = False) -> str:
    """Renders a table; `figures` right-aligns all columns but the first."""
    rule = ["---", *("---:" if figures else "---" for _ in head[1:])]
    cells = [[cell.strip().replace("|", chr(92) + "|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *cells))
