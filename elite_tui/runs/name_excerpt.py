"""Formats lines of a held-out file with the names that each model guesses. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content

from elite_tui.format.figures import printable

if TYPE_CHECKING:
    from elite_tui.runs.report import NamedLines

LONGEST_LINE = 400
"""Characters shown of a line."""
TAB = 4
STYLES = {
    (True, True): "bold",
    (False, True): "bold underline $text-success",
    (True, False): "underline $text-warning",
    (False, False): "$muted",
}
"""Of a name, by whether base and tuned model guess it."""
_LEGEND = ((False, True), "fine-tuned alone"), ((True, False), "base alone"), ((True, True), "both")


def name_excerpt(found: NamedLines, width: int) -> list[Content]:
    """Formats an excerpt, its names in the style of who guesses them, below a legend with their numbers.

    Args:
        found: The excerpt, untrusted.
        width: Available columns.
    """
    marks = [(base, tuned) for _, _, base, tuned in found.names]
    parts: list[tuple[str, str] | str] = [("next name guessed by  ", "$muted")]
    for which, who in _LEGEND:
        parts += [(f"{who}: {marks.count(which)}", STYLES[which]), "  "]
    parts.append((f"of {len(marks)} in {printable(found.file)}", "$muted"))
    lines = Content.assemble(*parts).fold(width)
    styled, done = Content(""), 0
    for start, stop, base, tuned in found.names:
        styled = styled.append(_shown(found.text[done:start]))
        styled = styled.append(Content.styled(_shown(found.text[start:stop]), STYLES[base, tuned]))
        done = stop
    styled = styled.append(_shown(found.text[done:]))
    for line in styled.split("\n"):
        cut = line[:LONGEST_LINE].append(Content.styled("…", "$muted")) if len(line) > LONGEST_LINE else line
        lines += [Content.assemble("  ", cut)] if not len(cut) else Content.assemble("  ", cut).fold(width)
    return lines


def _shown(text: str) -> str:
    return "\n".join(printable(line.replace("\t", " " * TAB)) for line in text.split("\n"))
