"""Messages that count say 1 thing and 2 things, and a duration is spelled in one way wherever one is shown."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from engine.commands.doctor import _conclude
from engine.commands.event_words import describe_ending
from engine.commands.plain_display import PlainDisplay
from engine.commands.plan_tables import tier_verdict
from engine.config import from_mapping
from engine.data.collect import describe_skipped
from engine.data.masking import Mask
from engine.evaluation.measure import _notes
from engine.evaluation.result import MarkRow
from engine.evaluation.words import mark_row, too_few_updates
from engine.hardware.cards import find_card, simulate
from engine.hardware.machine import GIB
from engine.launch.doctor import Check
from engine.launch.problem_report import _journal
from engine.models.catalogue import catalogue
from engine.plan.choice import request_of_run
from engine.plan.planner import tier_table
from engine.protocol.events import RunFinished
from engine.quantities import format_seconds, format_timing
from engine.runs.notices import notice_of
from engine.runs.run_directory import RunDirectory

ENDING = RunFinished(status="completed", steps=2, seconds=125.4)


def notice(count, folder):
    return notice_of(dataclasses.replace(ENDING, steps=count), "shop").text


def verdict(count, folder):
    machine = simulate(find_card("rtx-3060-12gb"), ram_bytes=32 * GIB, disk_bytes=400 * GIB)
    planning = request_of_run(from_mapping({}, source="test"), machine, catalogue()["qwen2.5-coder-0.5b"], 40_000)
    table = tier_table(planning)
    rows = tuple(dataclasses.replace(row, steps_per_epoch=count) for row in table.tiers)
    return tier_verdict(planning, dataclasses.replace(table, tiers=rows))


def damaged(count, folder):
    path = folder / "events.jsonl"
    path.write_text("".join(f'{{"broken": {number}\n' for number in range(count)), encoding="utf-8")
    return _journal(path, Mask({}))


def failed(count, folder):
    console = Console(file=io.StringIO(), width=200)
    _conclude(console, [Check(name="clock", status="failed", text="wrong")] * count, quick=True)
    return console.file.getvalue()


def scored(count, folder):
    return " ".join(_notes([], from_mapping({"evaluation": {"functions": 0}}, source="test").evaluation, count))


def marked(count, folder):
    row = MarkRow(
        name="exact",
        functions=count,
        base=0.5,
        tuned=0.5,
        base_interval=None,
        tuned_interval=None,
        difference_interval=None,
    )
    return " ".join(mark_row(row, "exact", "completion"))


MESSAGES = [
    (notice, "1 step", "2 steps"),
    (verdict, "1 step an epoch", "2 steps an epoch"),
    (lambda count, folder: describe_skipped({"vendored": count}), "skipped 1 file: 1 vendored", "skipped 2 files:"),
    (damaged, "1 damaged line in the last 1", "2 damaged lines in the last 2"),
    (failed, "1 of 1 check failed", "2 of 2 checks failed"),
    (scored, "1 file was scored", "2 files were scored"),
    (marked, "1 function", "2 functions"),
    (lambda count, folder: too_few_updates(count), "one update:", "2 updates:"),
]


@pytest.mark.parametrize(("message", "one", "two"), MESSAGES, ids=[two for _, _, two in MESSAGES])
def test_one_and_two(message, one, two, tmp_path):
    alone, several = message(1, tmp_path), message(2, tmp_path)
    assert one in alone
    assert two in several
    assert two.removeprefix("2 ") not in alone.replace(one, "")


def test_the_end_of_a_run_is_spoken_in_lines_and_short_in_a_display(tmp_path, capsys):
    run = RunDirectory(tmp_path / "runs" / "shop")
    assert "2 steps in 2m 5s" in describe_ending(run, ENDING)[0]
    PlainDisplay().finish(run, ENDING)
    spoken = capsys.readouterr().err
    assert "2 steps in 2 minutes 5 seconds" in spoken
    assert "2m 5s" not in spoken


def test_the_document_of_plans_spells_durations_as_the_product_does():
    page = (Path(__file__).parents[1] / "docs" / "planning.md").read_text(encoding="utf-8")
    stored = json.loads((Path(__file__).parents[1] / "benchmarks/results/schedules.json").read_text())["rows"]
    alone = [format_seconds(row["ceiling"]["step_seconds"]) for row in stored]
    rows = [line for line in page.splitlines() if re.match(r"\| [a-z0-9-]+ \| [0-9,]+ \|", line)]
    assert len(rows) == len(alone) > 10
    assert all(row.endswith(f" of {duration} |") for row, duration in zip(rows, alone, strict=True))
    assert not re.search(r"\d (h|min|s) \|", page)


# --- every message of the source -----------------------------------------------------------------------------

HERE = Path(__file__).parents[1]
UNIT = re.compile(r" ?(s|ms|sec|secs|kB|KB|MB|GB|TB)(?![\w/])")
"A unit behind a figure that format_seconds, format_timing or format_bytes would have written."
OTHER_WORDS = re.compile(r"\d ?(kB|KB|MB|GB|TB)\b(?!/s)|\b[Pp]rocessors?\b|\bfor good\b|\bto agree\b")
"Decimal sizes, and words for which the product has another one."
OTHER_SENSE = {"engine/hardware/cards.py", "engine/models/tokenizer_files.py"}
"Files that read what others wrote: names of cards, and keys of tokenizer files."


def messages(path):
    """Yields line and text of each message: string literals but docstrings, formatted values as "{}"."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    # A string that is a statement is documentation: a docstring, or the one below a constant.
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    inside = {id(part) for node in joined for part in ast.walk(node) if part is not node}
    for node in joined:
        yield node.lineno, "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (told | inside):
            yield node.lineno, node.value


def misspelled(text):
    return any(UNIT.match(rest) for rest in text.split("{}")[1:]) or OTHER_WORDS.search(text) is not None


def test_every_message_spells_sizes_durations_and_the_cpu_alike():
    found = []
    for package in ("engine", "elite_tui"):
        for path in sorted((HERE / package).rglob("*.py")):
            name = path.relative_to(HERE).as_posix()
            if name != "engine/quantities.py" and name not in OTHER_SENSE:
                found += [f"{name}:{line}: {text}" for line, text in messages(path) if misspelled(text)]
    assert found == []


@pytest.mark.parametrize(
    "text", ["{} MB free", "took {}s", "{} ms a step", "8 GB", "the processor trains", "it goes for good"]
)
def test_a_message_that_is_spelled_otherwise_is_found(text):
    assert misspelled(text)


@pytest.mark.parametrize(
    "text", ["{}/s", "448 GB/s", "{} GB/s", "{} steps", "{} GiB of RAM", "{}ers", "the CPU trains"]
)
def test_a_message_that_is_spelled_right_is_none(text):
    assert not misspelled(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.00ms"), (0.0482, "48.2ms"), (0.43, "430ms"), (0.9996, "1.00s"), (1.234, "1.23s"), (51.23, "51.2s"),
     (59.949, "59.9s"), (59.96, "1m"), (113.5, "1m 54s")],
)  # fmt: skip
def test_timings_have_three_digits_below_a_minute(seconds, text):
    assert format_timing(seconds) == text
