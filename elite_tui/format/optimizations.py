"""Formats one optimisation as a row of the list and as its detail text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content

from elite_tui.format.figures import printable, signed_bytes, signed_duration
from elite_tui.wizard.draft import text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from engine.plan.optimizations import Optimization, OptimizationState

GROUPS = {"extreme": "EXTREME: long contexts", "standard": "Standard", "beyond": "Beyond"}
MARKS = {
    "on": ("● on ", "$text-success"),
    "off": ("○ off", "$muted"),
    "unavailable": ("– n/a", "$faint"),
}
"Mark and colour of each state; the word stands beside it."
_EFFECT_WIDTH = 9
EFFECTS_FROM = 66
"Width of the list from which the effects stand beside the names."


def heading(group: str, states: Iterable[OptimizationState], width: int) -> Content:
    """Formats a group's title with the column headings."""
    found = list(states)
    on = sum(state.state == "on" for state in found)
    name = Content.assemble((GROUPS[group], "bold $primary"), (f"  {on} of {len(found)} on", "$muted"))
    if width < EFFECTS_FROM:
        return name
    heads = "".join(f"{head:>{_EFFECT_WIDTH}} " for head in ("GPU", "RAM", "a step"))
    return name.append(Content.styled(heads.rjust(width - name.cell_length), "$muted"))


def row_line(row: Optimization, state: OptimizationState, width: int) -> Content:
    """Formats an optimisation's state, approximation mark, name and effects on this machine."""
    mark, style = MARKS[state.state]
    faint = "$faint" if state.state == "unavailable" else ""
    line = Content.assemble(
        (f"{mark} ", style), ("  " if row.exact else "≈ ", "$text-warning"), (printable(row.name), faint)
    )
    chosen = Content.styled("" if row.switch_on or faint else f"  {_chosen_by(state)}", "$faint")
    if width < EFFECTS_FROM:
        return line.append(chosen)
    effects = Content("")
    for text in (signed_bytes(state.gpu_bytes), signed_bytes(state.host_bytes), signed_duration(state.step_seconds)):
        style = "$text-success" if text.startswith("−") else "$text-warning" if text else ""
        effects = effects.append(Content.styled(f"{text:>{_EFFECT_WIDTH}} ", style))
    free = width - effects.cell_length
    if line.cell_length + chosen.cell_length < free:
        line = line.append(chosen)
    line = line.truncate(free - 1, ellipsis=True)
    return Content.assemble(line.pad_right(free - line.cell_length), effects)


def _chosen_by(state: OptimizationState) -> str:
    return "always" if state.reason == "always at work" else "by the plan"


def detail(
    row: Optimization,
    state: OptimizationState,
    others: Mapping[str, tuple[Optimization, OptimizationState]],
    papers: Mapping[str, str],
    width: int,
) -> Content:
    """Formats the full detail of one row.

    Args:
        row: The row.
        state: Its current state.
        others: Every row and state by id, for its requirements and conflicts.
        papers: arXiv identifier → title and authors.
        width: Cells of a line.
    """
    mark, style = MARKS[state.state]
    lines = [
        Content.assemble((printable(row.name), "bold"), (f"  {row.id}", "$muted")),
        Content.assemble((mark.rstrip(), f"{style} bold"), (f"  {printable(state.reason)}", "")),
        Content(""),
        Content(printable(row.sentence)),
    ]
    kind = (
        ("exact", "$text-success") if row.exact else ("≈ approximate, or a disturbance that is meant", "$text-warning")
    )
    facts: list[tuple[str, Content]] = [("result", Content.styled(*kind)), ("effect", Content(printable(row.effect)))]
    if here := effect_here(state):
        facts.append(("here", here))
    facts.append(("default", Content(printable(row.default))))
    if row.switch_on:
        switch = ", ".join(f"{path} = {text_of(value) or 'unset'}" for path, value in row.switch_on.items())
        facts.append(("switch", Content(printable(switch))))
    facts += [("part of", _other(other, others, "")) for other in row.requires]
    facts += [("conflicts", _other(other, others, row.conflict_reasons[other])) for other in row.conflicts]
    facts += [
        ("paper", Content.assemble(papers.get(arxiv, ""), (f"  arXiv {arxiv}", "$text-primary")))
        for arxiv in row.papers
    ]
    if row.source:
        facts.append(("source", Content(printable(row.source))))
    facts.append(("code", Content.styled(row.implemented_in, "$muted")))
    lines.append(Content(""))
    for name, text in facts:
        lines += _fact(name, text, width)
    return Content("\n").join(lines)


def effect_here(state: OptimizationState) -> Content:
    """Formats the effect of on versus off on this machine; empty if no number is known."""
    figures = [
        ("GPU", signed_bytes(state.gpu_bytes)),
        ("RAM", signed_bytes(state.host_bytes)),
        ("a step", signed_duration(state.step_seconds)),
    ]
    shown = [f"{name} {text}" for name, text in figures if text]
    return Content.assemble(", ".join(shown), ("  on instead of off, predicted", "$muted")) if shown else Content("")


def _other(name: str, others: Mapping[str, tuple[Optimization, OptimizationState]], reason: str) -> Content:
    row, state = others[name]
    mark, style = MARKS[state.state]
    return Content.assemble(
        (f"{mark.strip()} ", style), printable(row.name), (f": {printable(reason)}" if reason else "", "$muted")
    )


_LABEL = 11


def _fact(label: str, text: Content, width: int) -> list[Content]:
    """Formats a label with its text beside it, hanging."""
    pieces = text.wrap(max(16, width - _LABEL))
    heads = [f"{label:<{_LABEL}}", *[" " * _LABEL] * (len(pieces) - 1)]
    return [Content.assemble((head, "$muted"), piece) for head, piece in zip(heads, pieces, strict=True)]
