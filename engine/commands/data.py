"""`engine data`: builds the dataset of a repository and shows what is in it."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import config, errors
from engine.cli import print_json
from engine.plan.tiers import tiers

if TYPE_CHECKING:
    from rich.console import Console

    from engine.data.dataset import Dataset
    from engine.data.reading import Progress as Report

NAMES = ("data",)
_SECRETS_SHOWN = 20
SUMMARY = "Build the dataset of a repository, and show what is in it."


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001
    """The options of `engine data`."""
    parser.add_argument(
        "--repo",
        action="append",
        default=[],
        metavar="DIR",
        help=config.field_spec("data.repositories").description + " May be given several times.",
    )
    parser.add_argument(
        "--model", default="demo", metavar="MODEL", help="Whose tokenizer counts the tokens (default: %(default)s)."
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="Folder that receives the token store (default: the user's cache)."
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="Another option, such as data.max_file_bytes."
    )
    parser.add_argument("--json", action="store_true", help="One JSON document on standard output.")


def run(args: argparse.Namespace) -> int:
    """Builds or reuses the store, then prints its summary."""
    # Slow to import, and not needed for --help.
    import platformdirs

    from engine.data.dataset import build_dataset

    given: dict[str, Any] = {"data": {"repositories": args.repo}}
    for override in args.set:
        config.apply_override(given, override)
    data = config.from_mapping(given, source="command line").data
    if not data.repositories:
        raise errors.REPOSITORY_UNSET()
    with _progress_display() as progress:
        dataset = build_dataset(
            data,
            tokenizer=_tokenizer(args.model),
            context=tiers()[0].context,
            cache=args.out or platformdirs.user_cache_path("elite-tui") / "datasets",
            progress=progress,
        )
    report = describe(dataset)
    if args.json:
        print_json(report)
    else:
        _print_report(report)
    return 0


def _tokenizer(model: str) -> Any:
    """The model's tokenizer; the demo's without the seconds that transformers takes to import."""
    from engine.models.catalogue import find_model

    spec = find_model(model)
    if spec.name == "demo":
        from tokenizers import Tokenizer

        from engine.assets import asset

        return Tokenizer.from_file(str(asset("demo-model", "tokenizer.json")))
    from engine.models.loading import load_tokenizer

    return load_tokenizer(spec)


def describe(dataset: Dataset) -> dict[str, Any]:
    """The dataset in figures, as `--json` prints them. Sizes in bytes, times in seconds."""
    summary = dataset.summary
    languages: dict[str, dict[str, int]] = {}
    for file in summary.files:
        row = languages.setdefault(file.language, {"files": 0, "bytes": 0})
        row["files"] += 1
        row["bytes"] += file.size
    return {
        "repositories": [
            {"path": _printable(path), "listed_by": _printable(how)}
            for path, how in summary.collection.listed_by.items()
        ],
        "submodules": [_printable(path) for path in summary.collection.submodules],
        "languages": dict(sorted(languages.items(), key=lambda item: -item[1]["bytes"])),
        "skipped": dict(summary.skipped),
        "secrets": [
            {
                "file": _printable(secret.file.repository / secret.file.path),
                "line": secret.line,
                "kind": secret.kind,
                "hint": _printable(secret.hint),
            }
            for secret in summary.secrets
        ],
        "files": len(summary.files),
        "bytes": summary.source_bytes,
        "tokens": summary.tokens,
        "train_tokens": summary.train_tokens,
        "held_out": {
            "files": summary.held_out_files,
            "tokens": summary.held_out_tokens,
            "share": summary.held_out_tokens / summary.tokens,
        },
        "windows": [
            {
                "tier": tier.number,
                "context": tier.context,
                "train": len(dataset.train.with_context(tier.context)),
                "held_out": len(dataset.held_out.with_context(tier.context)),
            }
            for tier in tiers()
        ],
        "store": _printable(summary.store),
        "reused": summary.reused,
        "seconds": round(summary.seconds, 3),
        "notes": list(summary.notes),
    }


@contextlib.contextmanager
def _progress_display() -> Iterator[Report]:
    """A bar on standard error while it is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, description=f"{done:,} of {total:,} {what}", completed=done, total=max(total, 1))

        yield show


def _print_report(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from engine.data.collect import describe_skipped

    # Names of files come from the repository: no markup, no highlighting of what looks like a number or a path.
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    for repository in report["repositories"]:
        console.print(f"{repository['path']} (files listed by {repository['listed_by']})")
    table = Table("language", box=None, header_style="bold")
    for name in ("files", "bytes"):
        table.add_column(name, justify="right")
    for language, row in report["languages"].items():
        table.add_row(language, f"{row['files']:,}", f"{row['bytes']:,}")
    table.add_row("together", f"{report['files']:,}", f"{report['bytes']:,}", style="bold")
    console.print(table)
    console.print(describe_skipped(report["skipped"]))
    _print_secrets(console, report["secrets"])
    if report["submodules"]:
        console.print(f"repositories inside, left out: {', '.join(report['submodules'])}")
    held_out = report["held_out"]
    console.print(
        f"{report['tokens']:,} tokens, {report['bytes'] / report['tokens']:.2f} bytes a token; "
        f"{held_out['tokens']:,} of them ({held_out['share']:.1%}) in {held_out['files']:,} held-out files"
    )
    windows = Table("tier", "context", box=None, header_style="bold")
    for name in ("training windows", "held-out windows"):
        windows.add_column(name, justify="right")
    for row in report["windows"]:
        windows.add_row(str(row["tier"]), f"{row['context']:,}", f"{row['train']:,}", f"{row['held_out']:,}")
    console.print(windows)
    for note in report["notes"]:
        console.print(f"note: {note}")
    how = "reused" if report["reused"] else "built"
    console.print(f"store {how} in {report['seconds']:.2f} s: {report['store']}")


def _print_secrets(console: Console, secrets: list[dict[str, Any]]) -> None:
    if not secrets:
        return
    console.print(f"kept out {len(secrets):,} secret{'s' if len(secrets) > 1 else ''}:")
    for secret in secrets[:_SECRETS_SHOWN]:
        console.print(f"  {secret['file']}:{secret['line']}: {secret['kind']} ({secret['hint']})")
    if len(secrets) > _SECRETS_SHOWN:
        console.print(f"  and {len(secrets) - _SECRETS_SHOWN:,} more (--json lists all)")


def _printable(path: object) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
