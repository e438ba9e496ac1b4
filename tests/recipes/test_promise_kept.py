"""A run's promise beside what it took, of real runs in processes of their own, summed from the journal's lines."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

PHASES = ("starting", "data", "model", "baseline", "evaluation", "saving")
BETWEEN = ("updates", "scoring", "checkpoints")


@pytest.fixture
def train(tmp_path):
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("queues.py", "locks.py", "runners.py"):
        (repository / name).write_text((Path(asyncio.__file__).parent / name).read_text())
    environment = {
        **os.environ,
        "ELITE_TUI_STATE_DIR": str(tmp_path / "state"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    settings = ("training.context=128", "training.tokens_per_update=512", "training.evaluate_tokens=512",
                "training.evaluate_every=2", "evaluation.at_end=false")  # fmt: skip

    def run(output):
        command = [sys.executable, "-m", "engine", "train", "--json", "--repo", str(repository), "--model", "demo"]
        command += ["--output", str(tmp_path / output), "--max-steps", "6"]
        command += [part for text in settings for part in ("--set", text)]
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert ended.returncode == 0, ended.stderr
        [journal] = (tmp_path / output).rglob("events.jsonl")
        return journal.parent

    return run


def lines_of(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def taken(folder):
    """Seconds of each part, from the times and figures of the journal's lines."""
    lines = lines_of(folder)
    borders = [line for line in lines if line["kind"] == "PhaseChanged"]
    parts = {}
    for border, following in pairwise(borders):
        name = border["phase"]
        parts[name] = parts.get(name, 0.0) + following["time"] - border["time"]
    training = next(n for n, line in enumerate(lines) if line.get("phase") == "training")
    evaluation = next(n for n, line in enumerate(lines) if line.get("phase") == "evaluation")

    def spans(kind, among):
        return [(line["time"] - line["seconds"], line["time"]) for line in among if line["kind"] == kind]

    busy = {
        "phases": [(a["time"], b["time"]) for a, b in pairwise(borders) if a["phase"] != "training"],
        "updates": spans("StepCompleted", lines),
        "scoring": spans("EvalCompleted", lines[training:evaluation]),
        "checkpoints": spans("CheckpointSaved", lines),
    }
    # Each instant is of the first of them that it lies in.
    ends = sorted({end for each in busy.values() for span in each for end in span})
    parts |= dict.fromkeys(BETWEEN, 0.0)
    for start, end in pairwise(ends):
        instant = (start + end) / 2
        owner = next((name for name, each in busy.items() if any(a <= instant < b for a, b in each)), None)
        if owner in BETWEEN:
            parts[owner] += end - start
    return parts


def rows(folder):
    """Predicted and measured seconds of each part, as the report says them."""
    found = {}
    for line in (folder / "report.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].startswith("— "):
            found[cells[0].removeprefix("— ")] = tuple(map(in_seconds, cells[1:3]))
    return found


def in_seconds(text):
    return float(text.removesuffix("ms")) / 1000 if text.endswith("ms") else float(text.removesuffix("s"))


def test_every_promised_part_is_compared_and_the_next_promise_learns_from_it(train):
    first = train("first")
    promise = json.loads((first / "plan.json").read_text())["promise"]
    measured, said = taken(first), rows(first)
    assert tuple(said) == (*PHASES[:4], *BETWEEN, *PHASES[4:])
    for name, (predicted, took) in said.items():
        promised = promise["phases"][name] if name in PHASES else promise[name]
        assert predicted == pytest.approx(promised, rel=0.01, abs=1e-3)
        # The report is written before saving has ended, and is a part of it.
        assert took == pytest.approx(measured[name], rel=0.02, abs=0.3 if name == "saving" else 0.02)
    # They add up to no more than the run, though checkpoints are written while it trains and saves.
    lines = lines_of(first)
    written = [line for line in lines if line["kind"] == "CheckpointSaved"]
    assert any(
        step["time"] - step["seconds"] < line["time"] and step["time"] > line["time"] - line["seconds"]
        for line in written
        for step in lines
        if step["kind"] in ("StepCompleted", "EvalCompleted", "PhaseChanged") and "seconds" in step
    )
    assert measured["checkpoints"] < sum(line["seconds"] for line in written)
    parts = sum(measured[name] for name in (*PHASES, *BETWEEN))
    assert parts <= lines[-1]["time"] - lines[0]["time"] + 1e-3
    # A checkpoint after each of two scorings, and one at the end.
    assert sum(line["kind"] == "CheckpointSaved" for line in lines_of(first)) == 3
    # The promise of the whole run is the sum of its parts, and the parts are nearly all of the run.
    assert sum(promise["phases"].values()) + sum(promise[name] for name in BETWEEN) == pytest.approx(promise["seconds"])
    lines = lines_of(first)
    whole = lines[-1]["time"] - lines[0]["time"]
    outside = whole - sum(measured[name] for name in (*PHASES, "training"))
    assert 0 <= outside < 0.05 * whole

    second = json.loads((train("second") / "plan.json").read_text())["promise"]
    for name in ("saving", "checkpoints", "scoring", "data", "starting"):
        before, after = (kept["phases"][name] if name in PHASES else kept[name] for kept in (promise, second))
        # Saving ends after the report, which is a part of it and knows only what was taken before.
        ratio = (said[name][1] if name == "saving" else measured[name]) / before
        if name == "scoring":  # modelled as a share of an update, whose seconds are corrected too
            assert after == pytest.approx(said[name][1], rel=0.25)
        else:
            assert after / before == pytest.approx(min(max(ratio, 0.1), 10.0), rel=0.15)
