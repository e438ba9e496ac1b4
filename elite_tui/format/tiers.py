"""Formats one tier: its settings, cost, breakdown of time, and remedies if it does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.content import Content

from elite_tui.format.figures import (
    bytes_in_words,
    context_in_words,
    count_in_words,
    duration_in_words,
    percent_in_words,
    printable,
)
from elite_tui.format.layout import bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from elite_tui.remote_data import RemoteData
    from elite_tui.wizard.plans import Plans
    from elite_tui.wizard.remedies import WaysToFit
    from engine.plan.planner import TierPlan, TierTable
    from engine.plan.time import TimePart

_TIME_BAR = 12


def machine_in_words(plans: Plans) -> str:
    """Describes the machine that a table is planned for."""
    machine = plans.machine
    ram = f"{bytes_in_words(machine.ram_total)} RAM"
    if not machine.gpus:
        return f"CPU with {machine.cpu_cores} cores, {ram}"
    gpu = machine.gpus[0]
    more = f" (and {len(machine.gpus) - 1} more)" if len(machine.gpus) > 1 else ""
    name = printable(gpu.name).removeprefix("NVIDIA ").removeprefix("GeForce ")
    return f"{name} {bytes_in_words(gpu.memory_total)}{more}, {ram}"


def short_places(plan: TierPlan, plans: Plans) -> list[str]:
    """Names the places where a plan needs more than its budget: GPU, RAM, disk."""
    usable = plans.usable
    needed = (
        ("GPU", plan.gpu_peak_bytes, usable.gpu),
        ("RAM", plan.host_peak_bytes, usable.host),
        ("disk", plan.disk_bytes, usable.disk),
    )
    return [place for place, size, limit in needed if size > limit]


def title(plan: TierPlan) -> Content:
    """Formats a tier's title in one line."""
    name = f"Tier {plan.tier}" if plan.tier is not None else "Context"
    head = Content.styled(f"{name} · {plan.context:,} tokens · {plan.layout.precision}", "bold")
    if plan.layout.stream is not None:
        exact = "exact" if plan.layout.stream.exact else "approximate"
        head = head.append(Content.styled(f" · streamed in tiles of {plan.layout.stream.tile:,}, {exact}", "$muted"))
    return head


def verdict(plan: TierPlan, table: TierTable) -> list[Content]:
    """Formats why a tier is recommended or the ceiling, and whether it fits, with further notes."""
    lines = []
    if plan.tier is not None and plan.tier == table.recommended:
        why = f"★ recommended for windows of one length: {printable(table.why)}"
        lines.append(Content.styled(why, "$text-accent"))
        if table.ceiling != plan.tier:
            lines.append(Content.styled(f"▲ tier {table.ceiling} is {table.why_ceiling}", "$muted"))
    elif plan.tier is not None and plan.tier == table.ceiling:
        lines.append(Content.styled(f"▲ {table.why_ceiling}", "$muted"))
    if not plan.fits:
        lines.append(Content.assemble(("✗ does not fit: ", "$text-error"), plan.reason, (f"; {plan.remedy}", "$muted")))
    elif plan.reason:
        lines.append(Content.assemble(("! ", "$text-warning"), plan.reason))
    if plan.fits and plan.warning:
        lines.append(Content.assemble(("! ", "$text-warning"), printable(plan.warning)))
    return lines


def costs(plan: TierPlan, epochs: object, *, can_probe: bool) -> Content:
    """Formats seconds per step, steps per epoch and total duration."""
    per_epoch = plan.steps_per_epoch
    items = [("a step", duration_in_words(plan.step_seconds))]
    if plan.windows_per_step > 1:
        items.append(("", f"of {plan.windows_per_step} windows"))
    if per_epoch is not None:
        items += [
            ("steps an epoch", count_in_words(per_epoch)),
            ("an epoch", duration_in_words(per_epoch * plan.step_seconds)),
        ]
        if isinstance(epochs, (int, float)) and epochs not in (0, 1):
            steps = max(1, round(per_epoch * epochs))
            items.append((f"{epochs:g} epochs", duration_in_words(steps * plan.step_seconds)))
    pieces: list[tuple[str, str]] = []
    for label, figure in items:
        pieces += [(f"{label} " if label else "", "$muted"), (figure, "bold"), ("   ", "")]
    line = Content.assemble(*pieces, ("predicted; p measures it" if can_probe else "predicted, not measured", "$muted"))
    if per_epoch == 1:
        line = Content("\n").join(
            [line, Content.styled("one step is a whole epoch: raise the epochs for more updates", "$muted")]
        )
    return line


def probed(plan: TierPlan, fetched: RemoteData[dict[str, Any]], progress: str) -> list[Content]:
    """Formats `engine probe` measurements of this tier against predictions, or its progress or error."""
    if fetched.loading:
        return [Content.assemble(("probing … ", "$text-accent"), printable(progress), ("  p stops", "$muted"))]
    if fetched.error is not None:
        return [Content.assemble(("✗ ", "$text-error"), printable(str(fetched.error)))]
    found = fetched.value
    if found is None or found.get("context") != plan.context:
        return []
    pieces: list[tuple[str, str]] = [("✓ probed here  ", "$text-success")]
    for label, name, words in (
        ("GPU", "gpu_allocated", bytes_in_words),
        ("RAM", "host", bytes_in_words),
        ("a window", "window_seconds", duration_in_words),
    ):
        figure = found.get(name) or {}
        if figure.get("measured") is not None and figure.get("predicted"):
            pieces += [
                (f"{label} ", "$muted"),
                (words(figure["measured"]), "bold"),
                (f" for {words(figure['predicted'])} predicted   ", "$muted"),
            ]
    return [Content.assemble(*pieces)]


def time_sum(parts: Sequence[TimePart], width: int) -> Content:
    """Breaks down the time of one window, longest part first."""
    total = sum(part.seconds for part in parts)
    if not total:
        return Content.styled("no time model for this plan", "$muted")
    lines = [Content.styled("Time of one window, predicted", "bold $primary")]
    for part in sorted(parts, key=lambda part: -part.seconds):
        share = part.seconds / total
        line = Content.assemble(
            Content.styled(bar(share, _TIME_BAR), "$secondary on $surface"),
            f"{duration_in_words(part.seconds):>9}",
            (f"{percent_in_words(share):>5}  ", "$muted"),
            printable(part.name),
        )
        lines.append(line)
        formula = Content.styled(printable(part.formula), "$muted")
        indent = _TIME_BAR + 16
        lines += [Content(" " * indent).append(piece) for piece in formula.wrap(max(20, width - indent))]
    lines.append(Content.assemble(f"{duration_in_words(total):>{_TIME_BAR + 9}}", ("       a window", "bold")))
    return Content("\n").join(lines)


def ways_in_words(plan: TierPlan, fetched: RemoteData[WaysToFit]) -> Content:
    """Formats the changes with which a tier fits."""
    head = Content.styled(f"What would make {context_in_words(plan.context)} tokens fit", "bold $primary")
    found = fetched.value
    if fetched.error is not None:
        return Content("\n").join([head, Content.assemble(("✗ ", "$text-error"), str(fetched.error))])
    if found is None or found.context != plan.context:
        return Content("\n").join([head, Content.styled("asking the planner …", "$muted")])
    if not found.ways:
        return Content("\n").join([head, Content.styled("no single change that is known here does", "$muted")])
    width = max(len(printable(way.change)) for way in found.ways)
    lines = [
        Content.assemble(
            ("→ ", "$text-success"),
            f"{printable(way.change):<{width}}",
            f"{duration_in_words(way.step_seconds):>9} a step",
            (f"   {printable(way.note)}" if way.note else "", "$muted"),
        )
        for way in found.ways
    ]
    return Content("\n").join([head, *lines])


def summary(plan: TierPlan, *, steps: bool = True) -> str:
    """Formats a tier in a few figures: tier 8, 512K tokens, 2h 21m a step, 1 step an epoch."""
    name = f"tier {plan.tier}, " if plan.tier is not None else ""
    per_epoch = plan.steps_per_epoch
    words = f"{name}{context_in_words(plan.context)} tokens, {duration_in_words(plan.step_seconds)} a step"
    if not steps or per_epoch is None:
        return words
    return f"{words}, {count_in_words(per_epoch)} step{'' if per_epoch == 1 else 's'} an epoch"


def epoch_seconds(plan: TierPlan) -> float | None:
    """Returns the seconds of an epoch, or None if the repository's size is unknown."""
    return plan.steps_per_epoch * plan.step_seconds if plan.steps_per_epoch is not None else None
