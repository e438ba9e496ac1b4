"""A run's last lines say what its evaluation found, and how far chance can explain it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from elite_tui.runs.report import read_report
from engine.commands.event_words import describe_ending
from engine.evaluation.completions import Completion, Marks
from engine.evaluation.intervals import Interval
from engine.evaluation.report_sections import verdict
from engine.evaluation.result import Evaluation, task_result
from engine.evaluation.result_files import keep_evaluation
from engine.evaluation.tally import PerplexityRow
from engine.protocol.events import RunFinished
from engine.runs.run_directory import RunDirectory

FINISHED = RunFinished(status="completed", steps=160, seconds=160.0, perplexity_before=20.0, perplexity_after=16.0)
ROW = PerplexityRow(
    name="all", tokens=32_768, files=60, base=20.0, tuned=16.0, change=-0.2,
    base_interval=None, tuned_interval=None, change_interval=Interval(-0.22, -0.18),
)  # fmt: skip


def written(parse):
    marks = Marks(parses=parse, ends=parse, exact=False, edit_similarity=0.5, identifier_hits=None)
    return Completion(text="pass", marks=marks)


def line(hits):
    marks = Marks(parses=True, ends=True, exact=False, edit_similarity=0.5, identifier_hits=hits)
    return Completion(text="x = y", marks=marks)


def evaluation(**tasks):
    """One mark a task: (functions, parsed by the base model, parsed by the tuned one)."""
    results = tuple(
        task_result(name, [written(n < base) for n in range(count)], [written(n < tuned) for n in range(count)])
        for name, (count, base, tuned) in tasks.items()
    )
    return Evaluation(
        run="r", model="demo", device="cpu", context=64, data="x", files=60, tokens=32_768, seconds=1.0,
        perplexity=ROW, by_language=(ROW,), by_position=(), tasks=results,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "said", "by_chance"),
    [
        ((64, 24, 48), "37.5% → 75.0% (+37.5 points, 95% interval", False),
        ((64, 30, 33), "a difference that chance can explain", True),
        ((64, 48, 24), "fewer, and not by chance", False),
    ],
)
def test_the_ending_tells_both_figures_with_their_intervals(tmp_path, counts, said, by_chance):
    run = RunDirectory(tmp_path)
    keep_evaluation(run, evaluation(completion=counts))
    lines = "\n".join(describe_ending(run, FINISHED))
    assert "-20.0% over 32,768 tokens, 95% interval -22.0% to -18.0%" in lines
    assert said in lines
    assert "over 64 functions" in lines
    assert said in verdict(evaluation(completion=counts))
    assert read_report(tmp_path).compile_rate_by_chance == by_chance


def test_the_ending_says_why_there_is_no_interval(tmp_path):
    run = RunDirectory(tmp_path)
    keep_evaluation(run, replace(evaluation(completion=(64, 24, 48)), perplexity=replace(ROW, change_interval=None)))
    assert "-20.0% over 32,768 tokens, too few files for an interval" in "\n".join(describe_ending(run, FINISHED))


def test_the_ending_tells_how_many_names_of_lines_were_right(tmp_path):
    run = RunDirectory(tmp_path)
    lines = task_result("next line", [line(n % 4 == 0) for n in range(80)], [line(n % 2 == 0) for n in range(80)])
    found = evaluation(completion=(64, 24, 48))
    keep_evaluation(run, replace(found, tasks=(*found.tasks, lines)))
    said = "\n".join(describe_ending(run, FINISHED))
    assert "names in next lines 25.0% → 50.0% (+25.0 points, 95% interval" in said
    assert "over 80 lines; more, and not by chance" in said


def test_a_chat_model_is_judged_by_what_it_answers_when_asked(tmp_path):
    """It continues a bare file with prose, which parses for neither."""
    run = RunDirectory(tmp_path)
    keep_evaluation(run, evaluation(completion=(64, 0, 1), asked=(64, 24, 48)))
    assert "37.5% → 75.0%" in "\n".join(describe_ending(run, FINISHED))
    shown = read_report(tmp_path)
    assert (shown.compile_rate_before, shown.compile_rate_after) == (0.375, 0.75)
    assert not shown.compile_rate_by_chance


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"perplexity": 1}'])
def test_an_ending_without_a_readable_evaluation_has_its_own_figures(tmp_path, content):
    if content is not None:
        (tmp_path / "evaluation.json").write_text(content)
    lines = describe_ending(RunDirectory(tmp_path), FINISHED)
    assert any("20.000 before, 16.000 after (-20.0%)" in line for line in lines)
    assert not any("files that parse" in line for line in lines)


def test_a_run_that_was_stopped_before_any_score_tells_of_none(tmp_path):
    lines = describe_ending(RunDirectory(tmp_path), RunFinished(status="stopped", steps=0, seconds=9.0))
    assert lines[0].startswith("stopped")
    assert not any("perplexity" in line or "n/a" in line for line in lines)


def test_a_stopped_run_shows_no_evaluation_of_before(tmp_path):
    import dataclasses

    run = RunDirectory(tmp_path)
    keep_evaluation(run, evaluation(completion=(64, 24, 48)))
    stopped = dataclasses.replace(FINISHED, status="stopped")
    assert not any("files that parse" in line for line in describe_ending(run, stopped))
