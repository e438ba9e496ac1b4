"""`engine data`: builds the dataset of a repository and shows its contents."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import config
from engine.commands.option_values import whole_number
from engine.commands.output import print_json
from engine.data.collect import describe_skipped
from engine.data.filters import PROBLEMS
from engine.data.fim import share_in_words
from engine.errors.data import REPOSITORY_UNSET
from engine.plan.tiers import tiers
from engine.quantities import counted, format_seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from engine.config import RunConfig
    from engine.data.reading import Progress as Report
    from engine.data.report import DataReport

_LINES_SHOWN = 20
_ORDER_SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001
    """Adds the options of `engine data`."""
    for path, metavar in (
        ("data.repositories", "DIR"),
        ("data.datasets", "PATH"),
        ("data.allowed_secrets", "FINGERPRINT"),
    ):
        spec = config.field_spec(path)
        parser.add_argument(
            str(spec.flag),
            dest=path,
            action="append",
            default=[],
            metavar=metavar,
            help=spec.description + " May be given several times.",
        )
    history = config.field_spec("data.history")
    parser.add_argument(
        "--history", dest=history.path, type=whole_number(0, 100_000), default=0, metavar="N", help=history.description
    )
    parser.add_argument(
        "--model", default="demo", metavar="MODEL", help="Whose tokenizer counts the tokens (default: %(default)s)."
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="Folder that receives the token store (default: the user's cache)."
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="Another option, such as data.order=path."
    )
    parser.add_argument("--json", action="store_true", help="One JSON document on standard output.")


def run(args: argparse.Namespace) -> int:
    """Builds or reuses the store, then prints its summary.

    Raises:
        EliteError: REPOSITORY_* (REPOSITORY_UNSET without a source), DATA_SET_*, CONFIG_INVALID, OVERRIDE_MALFORMED,
            CACHE_* or MODEL_*.
    """
    # Imported late: slow, and not needed for --help.
    from engine.data.dataset import build_dataset
    from engine.data.preview import kept_in
    from engine.data.report import describe

    options = vars(args)
    given: dict[str, Any] = {
        "data": {name: options[f"data.{name}"] for name in ("repositories", "datasets", "history", "allowed_secrets")}
    }
    for override in args.set:
        config.apply_override(given, override)
    asked = config.from_mapping(given, source="command line")
    data = asked.data
    if not (data.repositories or data.datasets):
        raise REPOSITORY_UNSET()
    with _progress_display() as progress, kept_in(args.out) as cache:
        dataset = build_dataset(
            data,
            tokenizer=_tokenizer(args.model),
            context=_limit(asked) or tiers()[0].context,
            cache=cache,
            progress=progress,
            limit=_limit(asked),
            preferences=asked.training.objective == "dpo",
        )
        report = describe(dataset)
    if args.json:
        print_json(dataclasses.asdict(report))
    else:
        _print_report(report)
    return 0


def _limit(asked: RunConfig) -> int | None:
    """The context that the data are for, where one is named and conversations do not have to fit it."""
    training = asked.training
    named = next((tier.context for tier in tiers() if tier.number == training.tier), training.context)
    return None if asked.data.overlong == "refuse" else named


def _tokenizer(model: str) -> Any:
    """Loads the model's tokenizer; the demo's without transformers, whose import takes seconds."""
    from engine.models.catalogue import find_model

    spec = find_model(model)
    if spec.name == "demo":
        from tokenizers import Tokenizer

        from engine.assets import asset

        return Tokenizer.from_file(str(asset("demo-model", "tokenizer.json")))
    from engine.models.loading import load_tokenizer

    return load_tokenizer(spec)


@contextlib.contextmanager
def _progress_display() -> Iterator[Report]:
    """Shows a bar on standard error if it is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, description=f"{done:,} of {total:,} {what}", completed=done, total=max(total, 1))

        yield show


def _print_report(report: DataReport) -> None:
    from rich.console import Console

    # Names of files come from the repository, so disable markup and highlighting.
    console = Console(markup=False, highlight=False, emoji=False)
    console.soft_wrap = not console.is_terminal  # of a file or a pipe every line is whole
    for repository in report.repositories:
        console.print(f"{repository.path} (files listed by {repository.listed_by})", soft_wrap=True)
    console.print(
        _table(
            ("language", "files", "bytes"),
            [(row.language, f"{row.files:,}", f"{row.bytes:,}") for row in report.languages]
            + [("together", f"{report.files:,}", f"{report.bytes:,}")],
        )
    )
    _print_left_out(console, report)
    held_out, order = report.held_out, report.order
    console.print(
        f"{report.tokens:,} tokens, {report.bytes / max(report.tokens, 1):.2f} bytes a token; "
        f"{held_out.tokens:,} of them ({held_out.share:.1%}) in {counted(held_out.files, 'held-out file')}, "
        f"{held_out.leak:.1%} of whose runs of six lines are in training files too"
    )
    if report.fim is not None and (text := share_in_words(report.fim.share, report.fim.files)):
        console.print(text)
    _print_sources(console, report)
    _print_conversations(console, report)
    among = f"{counted(order.imports, 'import')} among {counted(order.linked, 'file')}"
    linked = f": {among}, {order.backward:,} of them in cycles"
    console.print(f"order by {order.by}{linked if order.by == 'imports' else ''}; training begins with")
    for name in order.head[:_ORDER_SHOWN]:
        console.print(f"  {name}", soft_wrap=True)
    console.print(
        _table(
            ("tier", "context", "training windows", "held out", "documents", "cut inside", "empty", "if padded"),
            [
                (
                    str(row.tier),
                    f"{row.context:,}",
                    f"{row.train:,}",
                    f"{row.held_out:,}",
                    f"{row.documents:,}",
                    f"{row.cut_inside:,}",
                    f"{row.waste:.1%}",
                    f"{row.padded:.1%}",
                )
                for row in report.windows
            ],
        )
    )
    for row in report.windows[:1]:
        console.print(
            f"at {row.context:,} tokens {row.cut_inside / max(row.train, 1):.0%} of the training windows end within a "
            f"definition: {row.cut_after_statement:,} after a statement, {row.cut_after_line:,} after another line, "
            f"{row.cut_after_token:,} within a line; {row.cut_before_definition:,} end before a definition, "
            f"{row.cut_before_file:,} before a file"
        )
    for note in report.notes:
        console.print(f"note: {note}")
    how = "reused" if report.reused else "built"
    console.print(f"store {how} in {format_seconds(report.seconds)}: {report.store}", soft_wrap=True)


def _print_sources(console: Console, report: DataReport) -> None:
    if len(report.sources) < 2:
        return
    rows = [
        (
            row.name,
            f"{row.documents:,}",
            f"{row.tokens:,}",
            f"{row.loss_tokens:,}",
            f"{row.held_out_tokens:,}",
            "" if row.share is None else f"{row.share:.1%}",
            f"{row.passes:.3g}",
        )
        for row in report.sources
    ]
    names = ("source", "documents", "tokens", "in the loss", "held out", "share", "times a pass")
    console.print(_table(names, rows))


def _print_conversations(console: Console, report: DataReport) -> None:
    found = report.conversations
    if found is None:
        return
    share = report.loss_tokens / max(report.tokens, 1)
    console.print(
        f"{found.count:,} conversations with {found.tokens:,} tokens, the longest {found.longest:,}; "
        f"{report.loss_tokens:,} tokens of all ({share:.1%}) count in the loss"
    )
    rows = [(str(row.tier), f"{row.context:,}", f"{row.whole:,}", f"{row.longer:,}") for row in found.tiers]
    console.print(_table(("tier", "context", "conversations whole", "longer"), rows))
    fits = f"tier {found.fits} holds all whole" if found.fits else "no tier holds all whole"
    console.print(f"{fits}; data.overlong decides about longer ones")


def _table(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Table:
    from rich.table import Table

    table = Table(columns[0], box=None, header_style="bold")
    for name in columns[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _print_left_out(console: Console, report: DataReport) -> None:
    console.print(describe_skipped({row.reason: row.files for row in report.skipped}))
    for row in report.skipped:
        switch = f"; {row.kept_by} keeps them" if row.kept_by else ""
        console.print(f"  {row.files:>7,} {row.reason}: {row.explanation}{switch}")
        if row.reason in PROBLEMS:
            for example in row.examples[:_LINES_SHOWN]:
                console.print(f"          {example}", soft_wrap=True)
            if row.files > _LINES_SHOWN:
                console.print(f"          and {row.files - _LINES_SHOWN:,} more")
    if report.licence_headers:
        console.print(f"took out {report.licence_headers:,} repeated licence headers")
    if report.crlf_files:
        console.print(f"read {counted(report.crlf_files, 'file')} with CRLF line ends as LF, as git stores them")
    _print_some(
        console,
        f"found {len(report.near_duplicates):,} near-duplicates:",
        [f"{twin.file} is almost {twin.like} ({twin.side})" for twin in report.near_duplicates],
    )
    _print_some(
        console,
        f"kept out {counted(len(report.secrets), 'secret')}:",
        [
            f"{secret.file}:{secret.line}: {secret.kind} ({secret.hint}), fingerprint {secret.fingerprint}"
            for secret in report.secrets
        ],
    )
    if report.secrets:
        console.print("  --allow-secret FINGERPRINT trains on one that is no secret")
    if report.submodules:
        console.print(f"repositories inside, left out: {', '.join(report.submodules)}")


def _print_some(console: Console, heading: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    console.print(heading)
    for line in lines[:_LINES_SHOWN]:
        console.print(f"  {line}", soft_wrap=True)
    if len(lines) > _LINES_SHOWN:
        console.print(f"  and {len(lines) - _LINES_SHOWN:,} more (--json lists all)")
