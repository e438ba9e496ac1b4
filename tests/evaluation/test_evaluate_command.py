"""`engine evaluate` on a real run: what it prints, what it leaves, and that the run's own evaluation says the same."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.session import RecordingSession

from engine.cli import main
from engine.config import from_mapping, to_mapping
from engine.evaluation.baselines import Baselines
from engine.protocol.events import EvalCompleted, LogLine, StepProgress
from engine.recipes.fine_tune import train
from engine.runs.journal import JournalWriter
from engine.runs.run_directory import RunDirectory
from engine.runs.run_index import STATE_VARIABLE

ASYNCIO = Path(asyncio.__file__).parent


class JournallingSession(RecordingSession):
    """Also writes the journal, as the training process does."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self._writer = JournalWriter(self.run.journal_path, self.run.id)

    def emit(self, event):
        super().emit(event)
        self._writer.append(event)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    repository = folder / "repository"
    repository.mkdir()
    for name in ("queues.py", "locks.py", "mixins.py", "timeouts.py", "runners.py", "threads.py"):
        (repository / name).write_text((ASYNCIO / name).read_text())
    config = from_mapping(
        {
            "model": {"name": "demo", "device": "cpu"},
            "data": {"repositories": [str(repository)], "held_out_fraction": 0.3, "chat_template": "plain"},
            "lora": {"rank": 4},
            "training": {"context": 128, "tokens_per_update": 512, "learning_rate": 5e-4, "max_steps": 3,
                         "evaluate_tokens": 128},
            "evaluation": {"at_end": True, "tokens": 500, "functions": 2, "function_tokens": 64, "lines": 2},
            "output": {"directory": str(folder / "out")},
        }
    )  # fmt: skip
    session = JournallingSession(config=config, run=RunDirectory.create(config), script={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STATE_VARIABLE, str(folder / "state"))
        train(session)
    session._writer.close()
    return session


def test_the_run_evaluates_itself_and_the_command_finds_the_same(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path))
    kept = json.loads((run.run.path / "evaluation.json").read_text())
    assert kept["perplexity_after"] < kept["perplexity_before"]
    assert {event.stage for event in run.of(StepProgress)} >= {"windows, base model", "windows, tuned model"}
    assert len(run.of(EvalCompleted)) == 2
    report = run.run.report_path.read_text()
    assert {row["arm"] for row in kept["arms"]} == {
        "base + snippets", "base + files", "base + its chat template", "adapter + snippets",
        "adapter + its chat template",
    }  # fmt: skip
    assert [task["task"] for task in kept["tasks"]] == [
        "next token", "next name", "next line", "completion", "fill-in-the-middle", "asked",
    ]  # fmt: skip
    assert [row["name"] for row in kept["general"]] == ["general code", "general text"]
    assert "With text of the repository in the prompt" in report

    assert main(["evaluate", str(run.run.path), "--json"]) == 0
    printed = capsys.readouterr()
    assert "base model, scored in an earlier evaluation" in printed.err
    found = json.loads(printed.out)
    assert found["arms"] == kept["arms"]
    again = json.loads((run.run.path / "evaluation.json").read_text())
    for name in ("perplexity_before", "perplexity_after", "compile_rate_before", "compile_rate_after"):
        assert found[name] == pytest.approx(kept[name], rel=1e-4)
        assert again[name] == found[name]
    assert [s["after"] for s in found["samples"]] == [s["after"] for s in kept["samples"]]
    assert found["tokens"] == 500

    # The report is written anew from what the folder holds, with the same figures.
    rewritten = run.run.report_path.read_text()
    assert _without_duration(rewritten) == _without_duration(report)
    for picture in re.findall(r"\((charts/[\w-]+\.svg)\)", rewritten):
        ElementTree.parse(run.run.path / picture)
    assert "charts/completion.svg" in rewritten


def _without_duration(report):
    """Leaves out what a run cannot say yet while it saves its report."""
    unknown = ("| time", "| tokens trained on", "| host", "| — saving")
    return [line for line in report.splitlines() if not line.startswith(unknown)]


def _on_terminal(arguments, columns, state):
    """Runs a command on a terminal of its own; returns the lines on its screen."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    environment |= {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        STATE_VARIABLE: str(state),
        "TERM": "xterm",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", *arguments], stdout=theirs, stderr=subprocess.DEVNULL, env=environment
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # raised once the process has closed its side
        while part := os.read(ours, 1 << 16):
            written += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", written.decode()).splitlines()]


@pytest.mark.parametrize("columns", [80, 120])
def test_every_figure_stands_on_a_line_of_its_own(run, columns, tmp_path):
    lines = _on_terminal(["evaluate", str(run.run.path)], columns, tmp_path)
    start = next(n for n, line in enumerate(lines) if line.split()[:2] == ["base", "tuned"])
    table = [line for line in lines[start + 1 :] if line and not line.startswith("! ")]
    kept = json.loads((run.run.path / "evaluation.json").read_text())
    rows = [line for line in table if line.startswith("  ")]
    assert max(map(len, table)) <= columns
    assert len(rows) >= sum(len(task["rows"]) for task in kept["tasks"]) + 1 + len(kept["by_position"])
    # Each row: a name, two figures, a difference and an interval, in columns that end at the same place everywhere.
    assert {len(line) for line in rows} == {len(lines[start])}
    for line in rows:
        assert re.fullmatch(
            r"  \S.*?  +[\d.,%]+  *[\d.,%]+  *[+-][\d.,%]+( points)?  *(too few|[+-][\d.,%]+ to [+-][\d.,%]+)", line
        )
    assert "next tokens, over" in "\n".join(table)


def test_other_repositories_are_scored_whole_and_leave_nothing(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    before = (run.run.path / "evaluation.json").read_bytes()
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        for module in ("base_futures.py", "constants.py"):
            (folder / module).write_text(f"# {name}\n" + (ASYNCIO / module).read_text())
    arguments = ["evaluate", str(run.run.path), "--functions", "0", "--lines", "0", "--json"]
    assert main([*arguments, "--repo", str(tmp_path / "one"), "--repo", str(tmp_path / "two")]) == 0
    found = json.loads(capsys.readouterr().out)["evaluations"]
    assert [e["files"] for e in found] == [2, 2]
    assert [{task["task"] for task in e["tasks"]} for e in found] == [{"next token", "next name"}] * 2
    assert "two" in found[1]["data"]
    assert (run.run.path / "evaluation.json").read_bytes() == before


def test_the_base_model_is_scored_once(run, tmp_path, monkeypatch, capsys):
    """Its kept scores give the same evaluation, for the same settings alone; damaged ones are scored again."""
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path))
    folder = run.run.path.parent.parent / "cache" / "baselines"
    kept = "base model, scored in an earlier evaluation"

    few = ("--functions", "1", "--set", "evaluation.function_tokens=8", "--lines", "1")

    def evaluate(*more):
        assert main(["evaluate", str(run.run.path), "--json", *few, *more]) == 0
        printed = capsys.readouterr()
        found = json.loads(printed.out)
        for name in ("seconds", "time"):
            found.pop(name, None)
        return found, kept in printed.err

    first, from_kept = evaluate()
    assert not from_kept
    assert evaluate() == (first, True)
    assert {task["task"]: task["functions"] for task in first["tasks"]}["next line"] == 1
    assert not evaluate("--tokens", "300")[1]
    assert evaluate("--top-p", "0.5") == (first, True)  # nothing is drawn
    drawn, from_kept = evaluate("--temperature", "0.7", "--top-p", "0.9")
    assert not from_kept
    assert "completed text was drawn at temperature 0.7, top-p 0.9: another draw has other marks" in drawn["notes"]
    assert evaluate("--temperature", "0.7", "--top-p", "0.9") == (drawn, True)
    assert not evaluate("--temperature", "0.8", "--top-p", "0.9")[1]
    assert drawn["perplexity"] == first["perplexity"]
    for path in folder.glob("evaluation-*.json"):
        text = path.read_text()
        path.write_text(text.replace("0.0", "1.0", 1))
    again, from_kept = evaluate()
    assert (again, from_kept) == (first, False)


def test_another_run_over_the_same_files_takes_the_base_models_loss(run, tmp_path, monkeypatch):
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path))
    data = to_mapping(run.config)
    data["training"]["max_steps"], data["evaluation"]["at_end"] = 1, False
    config = from_mapping(data)
    other = JournallingSession(config=config, run=RunDirectory.create(config), script={})
    train(other)
    other._writer.close()
    assert any("an earlier run with the same files" in event.text for event in other.of(LogLine))
    assert not any("an earlier run with the same files" in event.text for event in run.of(LogLine))
    assert other.of(EvalCompleted)[0].loss == run.of(EvalCompleted)[0].loss
    assert other.of(EvalCompleted)[1].loss != run.of(EvalCompleted)[1].loss


def test_a_kept_score_is_read_only_whole(tmp_path):
    baselines = Baselines(folder=tmp_path / "baselines", model="m")
    assert baselines.read("loss", {"most": 5}) is None
    baselines.keep("loss", {"most": 5}, {"loss": 1.25})
    assert baselines.read("loss", {"most": 5}) == {"loss": 1.25}
    assert baselines.read("loss", {"most": 6}) is None
    assert Baselines(folder=tmp_path / "baselines", model="n").read("loss", {"most": 5}) is None
    (path,) = baselines.folder.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", b"{}", b"[1]", whole[:-9], whole.replace(b"1.25", b"1.75"), b"\xff" * 40):
        path.write_bytes(damaged)
        assert baselines.read("loss", {"most": 5}) is None
    for number in range(70):
        baselines.keep("loss", {"most": number}, {"loss": 1.0})
    assert len(list(baselines.folder.iterdir())) == 64
    assert baselines.read("loss", {"most": 69}) == {"loss": 1.0}


def test_a_run_without_a_result_is_refused(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    empty = RunDirectory.create(from_mapping({"output": {"directory": str(tmp_path)}}))
    (empty.plan_path).write_text((run.run.plan_path).read_text())
    assert main(["evaluate", str(empty.path), "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"] == "run-without-result"
    assert "--resume" in captured.err
    for option in ("functions", "lines"):
        assert main(["evaluate", str(empty.path), f"--{option}", "-1"]) == 2
        assert f"evaluation.{option}" in capsys.readouterr().err


def test_a_run_that_trained_every_weight_is_compared_with_a_base_that_is_loaded_apart(
    run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    data = to_mapping(run.config)
    data["training"] |= {"method": "full", "learning_rate": 1e-4}
    data["output"]["directory"] = str(tmp_path)
    config = from_mapping(data)
    session = JournallingSession(config=config, run=RunDirectory.create(config), script={})
    train(session)
    session._writer.close()
    assert not (session.run.path / "evaluation.json").exists()
    capsys.readouterr()
    assert any("not evaluated at the end" in event.text for event in session.of(LogLine))
    arguments = ("--functions", "1", "--set", "evaluation.function_tokens=8", "--set", "evaluation.lines=0")
    assert main(["evaluate", str(session.run.path), "--json", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["perplexity_before"] == pytest.approx(
        json.loads((run.run.path / "evaluation.json").read_text())["perplexity_before"], rel=1e-4
    )
    assert found["perplexity_after"] < found["perplexity_before"]
    assert main(["generate", str(session.run.path), "--prompt", "def", "--max-tokens", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"name", "device", "base", "tuned"}
