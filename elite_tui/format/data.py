"""Formats a dataset report: included and excluded files, secrets, near-duplicates, order and windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content

from elite_tui.format.figures import (
    bytes_in_words,
    context_in_words,
    count_in_words,
    duration_in_words,
    percent_in_words,
    printable,
)
from elite_tui.format.layout import hanging, line_bar
from engine.data.fim import share_in_words
from engine.quantities import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.data.report import ConversationsRow, DataReport, OrderRow, SkippedRow, WindowsRow

SHOWN = 10
"Rows shown of a list that may be long; `engine data --json` has all of them."
_NAME = 16
_COUNT = 8


def summary(report: DataReport) -> Content:
    """Summarises the dataset in one line."""
    held_out = report.held_out
    return Content.assemble(
        (counted(report.files, "file"), "bold"),
        f" · {bytes_in_words(report.bytes)} · ",
        (f"{report.tokens:,} tokens", "bold"),
        f": {count_in_words(report.train_tokens)} to train on, {count_in_words(held_out.tokens)} "
        f"({percent_in_words(held_out.share)}) in {counted(held_out.files, 'held-out file')}",
    )


def _reading_order(order: OrderRow) -> str:
    """Explains the order in which the files are read."""
    if not order.imports:
        return "no file imports another one here, so they are read by path"
    linked = counted(order.linked, "file")
    cycles = f", but for {order.backward:,} in cycles" if order.backward else ""
    imports = counted(order.imports, "import")
    return f"{linked} import one another ({imports}); each is read after those that it imports{cycles}"


def _conversations(found: ConversationsRow, share: float) -> str:
    """Says which tiers hold the conversations whole, and how much of them counts in the loss."""
    fits = f"tier {found.fits} holds all" if found.fits else "no tier holds all"
    tiers = [f"tier {row.tier} {row.whole:,}" for row in found.tiers if 0 < row.whole < found.count]
    whole = f"{', '.join(tiers)}, {fits}" if tiers else fits
    return (
        f"{found.count:,}, the longest of {found.longest:,} tokens; whole: {whole}; "
        f"{percent_in_words(share)} of the tokens count in the loss"
    )


def footnote(report: DataReport) -> Content:
    """Formats the dataset's origin and further notes."""
    how = "taken from the store" if report.reused else "built"
    lines = [Content.styled(f"{how} in {duration_in_words(report.seconds)}: {printable(report.store)}", "$muted")]
    lines += [Content.assemble(("! ", "$text-warning"), printable(note)) for note in report.notes]
    if report.submodules:
        names = ", ".join(map(printable, report.submodules[:SHOWN]))
        lines.append(Content.assemble(("! ", "$text-warning"), f"repositories inside, left out: {names}"))
    return Content("\n").join(lines)


def what_is_in(report: DataReport, width: int) -> Content:
    """Formats the languages by size and the reading order."""
    lines = [_title("In", counted(report.files, "file"))]
    whole = report.bytes or 1
    bar_width = max(6, min(30, width - _NAME - _COUNT - 18))
    for row in report.languages[:SHOWN]:
        share = row.bytes / whole
        lines.append(
            Content.assemble(
                f"{printable(row.language):<{_NAME}.{_NAME}} ",
                (line_bar(share, bar_width), "$primary"),
                f"{percent_in_words(share):>5}",
                (f"{row.files:>{_COUNT},} {bytes_in_words(row.bytes):>9}", "$muted"),
            )
        )
    lines += _more(len(report.languages), "language")
    if report.conversations is not None:
        words = _conversations(report.conversations, report.loss_tokens / (report.tokens or 1))
        lines += [Content(""), *hanging(Content.styled("conversations  ", "$muted"), Content(words), width)]
    order = report.order
    if order.by == "imports":
        words = _reading_order(order)
        lines += [Content(""), *hanging(Content.styled("order  ", "$muted"), Content(words), width)]
    if report.fim is not None and (rearranged := share_in_words(report.fim.share, report.fim.files)):
        lines += hanging(Content.styled("rearranged  ", "$muted"), Content(rearranged), width)
    leak = report.held_out.leak
    words = f"{100 * leak:.1f}% of the held-out files' runs of six lines are in training files too"
    lines += hanging(Content.styled("held out  ", "$muted"), Content(words), width)
    if report.licence_headers:
        lines.append(Content.styled(f"{report.licence_headers:,} repeated licence headers were taken out", "$muted"))
    if report.crlf_files:
        lines.append(Content.styled(f"{counted(report.crlf_files, 'file')} with CRLF line ends: read as LF", "$muted"))
    return Content("\n").join(lines)


def what_is_out(report: DataReport, width: int) -> Content:
    """Formats every reason for leaving a file out, with examples and the setting that keeps such files."""
    lines = [_title("Out", counted(report.skipped_files, "file"))]
    if not report.skipped:
        lines.append(Content.styled("nothing was left out", "$muted"))
    roots = [row.path for row in report.repositories]
    for row in report.skipped:
        lines += _skipped(row, roots, width)
    return Content("\n").join(lines)


def _skipped(row: SkippedRow, roots: Sequence[str], width: int) -> list[Content]:
    head = Content.assemble((f"{row.files:>6,}  ", "bold"), (f"{printable(row.reason):<{_NAME}}", "$text-accent"))
    lines = hanging(head, Content(printable(row.explanation)), width)
    indent = Content(" " * 8)
    if row.examples:
        names = ", ".join(_below(name, roots) for name in row.examples[:2])
        lines.append(indent.append(Content.styled(f"such as {names}", "$muted")).truncate(width, ellipsis=True))
    if row.kept_by:
        lines.append(Content.assemble(indent, ("kept by ", "$muted"), (printable(row.kept_by), "$text-primary")))
    return lines


def secrets(report: DataReport, policy: str, width: int) -> Content:
    """Formats where a key or password was found, by which rule, and what allows it; never the secret itself."""
    found = report.secrets
    fate = {"mask": "each replaced by a placeholder", "skip": "their files left out", "keep": "trained on as they are"}
    lines = [_title("Secrets", f"{len(found):,} found, {fate.get(policy, policy)}" if found else "none found")]
    roots = [row.path for row in report.repositories]
    for row in found[:SHOWN]:
        place = f"{_below(row.file, roots)}:{row.line}"
        head = Content.assemble(
            ("✓ " if policy != "keep" else "! ", "$text-success" if policy != "keep" else "$text-warning")
        )
        lines.append(Content.assemble(head, place).truncate(width, ellipsis=True))
        rule = Content.assemble(
            "  ",
            (printable(row.fingerprint), "$text-primary"),
            ("  by rule ", "$muted"),
            (printable(row.kind), "$text-accent"),
            (f"  {printable(row.hint)}", "$muted"),
        )
        lines.append(rule.truncate(width, ellipsis=True))
    return Content("\n").join([*lines, *_more(len(found), "secret")])


def twins(report: DataReport, width: int) -> Content:
    """Formats near-duplicate files and their treatment."""
    found = report.near_duplicates
    lines = [_title("Near-duplicates", counted(len(found), "file") if found else "none found")]
    roots = [row.path for row in report.repositories]
    for row in found[:SHOWN]:
        line = Content.assemble(
            _below(row.file, roots), (" is like ", "$muted"), _below(row.like, roots), (f"  {row.side}", "$text-accent")
        )
        lines.append(line.truncate(width, ellipsis=True))
    return Content("\n").join([*lines, *_more(len(found), "file")])


def windows(report: DataReport, chosen: int | None, width: int, *, packing: bool) -> Content:
    """Formats the contents of each tier's windows and the savings from packing."""
    lines = [_title("Windows", "documents are packed" if packing else "one document a window")]
    heads = "".join(f"{head:>{width}}" for head, width in _WINDOW_COLUMNS)
    lines.append(Content.styled(heads, "$muted"))
    lines += [_window(row, row.tier == chosen) for row in report.windows]
    words = "cut: ends inside a definition; empty: places unused; unpacked: unused without packing"
    lines += Content.styled(words, "$muted").wrap(width)
    shown = [row for row in report.windows if row.tier == chosen] or report.windows[:1]
    lines += [line for row in shown for line in Content.styled(_cuts(row), "$muted").wrap(width)]
    return Content("\n").join(lines)


def _cuts(row: WindowsRow) -> str:
    """Says what the windows of a tier end after."""
    return (
        f"at {context_in_words(row.context)}, {percent_in_words(row.cut_inside / max(row.train, 1))} end inside a "
        f"definition: {row.cut_after_statement:,} after a statement, {row.cut_after_line:,} after another line, "
        f"{row.cut_after_token:,} within a line; {row.cut_before_definition:,} end before a definition, "
        f"{row.cut_before_file:,} before a file"
    )


_WINDOW_COLUMNS = (
    ("tier", 5),
    ("context", 8),
    ("train", 7),
    ("held out", 9),
    ("cut", 5),
    ("empty", 7),
    ("unpacked", 9),
)


def _window(row: WindowsRow, chosen: bool) -> Content:
    cells = (
        f"{'●' if chosen else ' '} {row.tier}",
        context_in_words(row.context),
        f"{row.train:,}",
        f"{row.held_out:,}",
        f"{row.cut_inside:,}",
        f"{100 * row.waste:.1f}%",
        f"{100 * row.padded:.1f}%",
    )
    text = "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _WINDOW_COLUMNS, strict=True))
    return Content.styled(text, "bold $text-accent" if chosen else "")


def _title(name: str, what: str) -> Content:
    return Content.assemble((name, "bold $primary"), (f"  {what}", "$muted"))


def _more(count: int, what: str) -> list[Content]:
    rest = count - SHOWN
    return (
        [Content.styled(f"and {counted(rest, f'more {what}')}: `engine data --json` has all", "$muted")]
        if rest > 0
        else []
    )


def _below(path: str, roots: Sequence[str]) -> str:
    """Makes a path printable, and relative to its repository if there is only one."""
    shown = next((path[len(root) + 1 :] for root in roots if path.startswith(f"{root}/")), path)
    return printable(shown if len(roots) == 1 else path)
