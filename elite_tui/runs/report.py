"""Reads a run's results from its folder; any file may be missing, or of another engine version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elite_tui.runs.files import PlannedRun, number, read_json, read_plan, text
from engine.commands.summaries import SUMMARIES

FILE_NAMES = ("report.json", "evaluation.json")
"""Files with an evaluation's figures; the first existing one is used."""
SAMPLES_KEPT = 20


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt with the completions of the base and the fine-tuned model. All text is untrusted."""

    prompt: str
    before: str
    after: str
    truth: str = ""
    "The true continuation in the repository."
    file: str = ""


@dataclass(frozen=True, kw_only=True)
class ScoredPerplexity:
    """Perplexity of both models on the same held-out tokens, as the evaluation compares them."""

    before: float
    after: float
    change: float
    "Relative: -0.1 is ten percent lower."
    low: float | None
    high: float | None
    "Ends of the 95% interval of the change; None with too few files."
    tokens: float | None
    files: float | None


@dataclass(frozen=True, kw_only=True)
class ScoredNames:
    """Shares (0 to 1) of the same held-out names that both models guess."""

    before: float
    after: float
    by_chance: bool
    "Whether the interval of their difference holds 0."


@dataclass(frozen=True, kw_only=True)
class NamedLines:
    """Lines of a held-out file with names in them. All text is untrusted."""

    file: str
    text: str
    names: tuple[tuple[int, int, bool, bool], ...]
    "First character, the one behind the last, whether the base model guesses it, and whether the fine-tuned one does."


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Results beyond those in the run's events; None is not measured."""

    reference: str
    "The run's reference on the command line."
    planned: PlannedRun | None = None
    perplexity: ScoredPerplexity | None = None
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    compile_rate_before: float | None = None
    "Share (0 to 1) of the completions that parse."
    compile_rate_after: float | None = None
    compile_rate_by_chance: bool = False
    "Whether the interval of their difference holds 0."
    names: ScoredNames | None = None
    excerpts: tuple[NamedLines, ...] = ()
    ways: tuple[tuple[str, float], ...] = ()
    "Other ways to complete the same functions, and the share that parses; names are untrusted."
    forgotten: tuple[tuple[str, float], ...] = ()
    "General texts whose perplexity changed by more than chance explains, and by which share; names are untrusted."
    samples: tuple[Sample, ...] = ()
    page: bool = False
    "Whether report.md exists."
    commands: frozenset[str] = frozenset()
    "Available sub-commands of `engine`."


def read_report(path: Path) -> RunReport:
    """Reads a run directory's results. Never raises for malformed contents."""
    data = next((found for name in FILE_NAMES if (found := read_json(path / name)) is not None), {})
    return RunReport(
        reference=_reference(path),
        planned=read_plan(path / "plan.json"),
        perplexity=_perplexity(data),
        perplexity_before=number(data, "perplexity_before"),
        perplexity_after=number(data, "perplexity_after"),
        compile_rate_before=_share(data, "compile_rate_before"),
        compile_rate_after=_share(data, "compile_rate_after"),
        compile_rate_by_chance=_rate_by_chance(data),
        names=_names(data),
        excerpts=tuple(_excerpts(data)),
        ways=tuple(_ways(data)),
        forgotten=tuple(_forgotten(data)),
        samples=tuple(_samples(data)),
        page=(path / "report.md").is_file(),
        commands=frozenset(SUMMARIES),
    )


def _perplexity(data: Mapping[str, Any]) -> ScoredPerplexity | None:
    row = data.get("perplexity")
    if not isinstance(row, dict):
        return None
    before, after, change = (number(row, name) for name in ("base", "tuned", "change"))
    if before is None or after is None or change is None:
        return None
    ends = row.get("change_interval")
    low, high = (number(ends, "low"), number(ends, "high")) if isinstance(ends, dict) else (None, None)
    return ScoredPerplexity(
        before=before,
        after=after,
        change=change,
        low=low,
        high=high,
        tokens=number(row, "tokens"),
        files=number(row, "files"),
    )


def _share(data: Mapping[str, Any], name: str) -> float | None:
    value = number(data, name)
    return value if value is not None and 0.0 <= value <= 1.0 else None


def _entries(data: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    entries = data.get(name)
    yield from (entry for entry in entries if isinstance(entry, dict)) if isinstance(entries, list) else ()


def _rows(
    data: Mapping[str, Any], name: str, task: str = "completion", mark: str = "parses"
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the rows of one mark of a task, and how it was done."""
    for found in _entries(data, name):
        for row in _entries(found, "rows"):
            if found.get("task") == task and row.get("name") == mark:
                yield text(found, "arm"), row


def _rate_by_chance(data: Mapping[str, Any]) -> bool:
    # Of a chat model the rate is that of functions asked for through its template.
    rows = [*_rows(data, "tasks", "asked"), *_rows(data, "tasks")]
    return bool(rows) and _by_chance(rows[0][1])


def _by_chance(row: Mapping[str, Any]) -> bool:
    ends = row.get("difference_interval")
    low, high = (number(ends, "low"), number(ends, "high")) if isinstance(ends, dict) else (None, None)
    return low is None or high is None or low <= 0 <= high


def _names(data: Mapping[str, Any]) -> ScoredNames | None:
    for _, row in _rows(data, "tasks", "next name", "guessed"):
        before, after = _share(row, "base"), _share(row, "tuned")
        if before is not None and after is not None:
            return ScoredNames(before=before, after=after, by_chance=_by_chance(row))
    return None


def _excerpts(data: Mapping[str, Any]) -> Iterator[NamedLines]:
    for entry in _entries(data, "excerpts"):
        lines, names, done = text(entry, "text"), [], 0
        for name in _entries(entry, "names"):
            start, stop, base, tuned = (name.get(key) for key in ("start", "stop", "base", "tuned"))
            if type(start) is int and type(stop) is int and done <= start < stop <= len(lines):
                names.append((start, stop, base is True, tuned is True))
                done = stop
        if names:
            yield NamedLines(file=text(entry, "file"), text=lines, names=tuple(names))


def _ways(data: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for arm, row in _rows(data, "arms"):
        share = _share(row, "tuned")
        if arm and share is not None:
            yield arm, share


def _forgotten(data: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for row in _entries(data, "general"):
        name, change, ends = text(row, "name"), number(row, "change"), row.get("change_interval")
        low = number(ends, "low") if isinstance(ends, dict) else None
        if name and change is not None and low is not None and low > 0:
            yield name, change


def _samples(data: Mapping[str, Any]) -> list[Sample]:
    entries = data.get("samples")
    if not isinstance(entries, list):
        return []
    found = []
    for entry in entries[:SAMPLES_KEPT]:
        if not isinstance(entry, dict):
            continue
        before, after = text(entry, "before", "base"), text(entry, "after", "tuned")
        if before or after:
            found.append(
                Sample(
                    prompt=text(entry, "prompt", "prefix"),
                    before=before,
                    after=after,
                    truth=text(entry, "truth", "expected"),
                    file=text(entry, "file", "path"),
                )
            )
    return found


def _reference(path: Path) -> str:
    """Returns the run's id if it resolves to this folder, else the path."""
    from engine.errors import EliteError
    from engine.runs.run_index import find_run

    try:
        return path.name if find_run(path.name).path == path else str(path)
    except EliteError:
        return str(path)
