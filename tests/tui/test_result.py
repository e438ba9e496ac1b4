"""The result: metrics, cost and next steps, with any part of it missing."""

from __future__ import annotations

import json

import pytest

from elite_tui.runs.files import read_plan
from elite_tui.runs.finish_line import finish_line
from elite_tui.runs.function_diffs import function_diffs
from elite_tui.runs.name_excerpt import name_excerpt
from elite_tui.runs.report import Sample, read_report
from elite_tui.runs.result_panels import change_words, compile_rate, names_guessed
from elite_tui.runs.view import RunView
from engine.commands.summaries import SUMMARIES
from engine.launch.handle import RunHandle
from engine.protocol.events import EvalCompleted, RunFinished
from engine.runs.run_index import remember_output
from tests.tui.recording import RUN_ID, recorded
from tests.tui.support import Replay, copy_recording, make_app, screen_of, settled, text_of, until

EVALUATION = {
    "perplexity_before": 60.34,
    "compile_rate_before": 0.61,
    "compile_rate_after": 0.83,
    "samples": [
        {
            "file": "src/[/bold]cart.py",
            "prompt": "def total(self):\n",
            "before": "    return 0 \x1b[31m\n",
            "after": "    return sum(self.prices)\n",
            "truth": "    return sum(self.prices)\n",
        },
        {"before": 7},
        "not a sample",
    ],
}


async def shown(pilot, run):
    app = pilot.app
    await settled(pilot)
    await until(pilot, lambda: app.state.run is not None and app.state.run.ended)
    await pilot.press("enter")
    await until(pilot, lambda: screen_of(app) == "result")
    await until(pilot, lambda: app.state.report.value is not None and not app.state.report.loading)


async def test_everything_that_a_folder_can_hold(tmp_path):
    run = copy_recording(tmp_path / "out")
    remember_output(tmp_path / "out")
    (run.path / "report.json").write_text(json.dumps(EVALUATION))
    run.report_path.write_text("# report")
    run.plan_path.write_text(json.dumps({"step_seconds": 2.5, "host_peak_bytes": 2_000_000_000}))
    app = make_app("monitor", handle=RunHandle.attach(run))
    async with app.run_test(size=(140, 60)) as pilot:
        await shown(pilot, run)
        assert "▼ −89.0%" in text_of(app, "#change")
        assert "▲ +22 points" in text_of(app, "#compile-rate")
        foreseen = text_of(app, "#foreseen").splitlines()
        assert foreseen[1].split() == ["a", "step", "2.5s", "2.0s", "-20%"]
        assert foreseen[2].split() == ["all", "steps", "2m", "30s", "2m", "-20%"]
        assert foreseen[3].split() == ["RAM", "peak", "1.96", "GiB", "1.82", "GiB", "-7%"]
        assert "src/[/bold]cart.py" in text_of(app, "#functions")
        assert "\\x1b[31m" in text_of(app, "#functions")
        assert "function 1 of 1" in text_of(app, "#functions")
        assert "report.md" in text_of(app, "#paths")
        await until(pilot, lambda: f"elite-tui monitor {RUN_ID}" in text_of(app, "#next"))


async def test_nothing_beyond_the_events():
    app = make_app("monitor", handle=Replay(recorded()))
    async with app.run_test(size=(80, 24)) as pilot:
        await shown(pilot, None)
        assert not app.screen.query_one("#functions-title").display
        assert not app.screen.query_one("#compile-rate").display
        assert "n/a" in text_of(app, "#foreseen")
        # Commands that this engine lacks are not offered.
        for command in ("export", "generate", "evaluate"):
            assert (f"engine {command}" in text_of(app, "#next")) is (command in SUMMARIES)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '{"samples": 3}',
        '{"compile_rate_before": "high", "compile_rate_after": 61}',
        '{"tasks": 3, "arms": [3, {"rows": {}}], "general": [{"name": 3}, "x"]}',
        '{"arms": [{"task": "completion", "arm": "x", "rows": [{"name": "parses", "tuned": "all"}, 7]}]}',
        "[" * 100_000,
    ],
)
def test_a_report_of_any_kind_is_read(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    (tmp_path / "plan.json").write_text(text)
    report = read_report(tmp_path)
    assert report.samples == ()
    assert report.compile_rate_before is None
    assert report.compile_rate_after is None
    assert (report.ways, report.forgotten, report.compile_rate_by_chance) == ((), (), False)


def test_what_chance_explains_has_no_arrow_and_other_ways_stand_beside(tmp_path):
    def task(arm, low, share):
        row = {"name": "parses", "tuned": share, "difference_interval": {"low": low, "high": 0.4}}
        return {"task": "completion", "arm": arm, "rows": [row]}

    general = {"name": "general text", "change": 0.07, "change_interval": {"low": 0.02, "high": 0.1}}
    document = {**EVALUATION, "arms": [task("base + snippets", 0.1, 0.9)], "general": [general]}
    for low, said in ((-0.1, "= +22 points, too few to tell"), (0.1, "▲ +22 points")):
        (tmp_path / "evaluation.json").write_text(json.dumps({**document, "tasks": [task("adapter", low, 0.83)]}))
        shown = "\n".join(line.plain for line in compile_rate(read_report(tmp_path), 60))
        assert said in shown
        assert "base + snippets: 90%" in shown
        assert "7.0% higher on general text" in shown


def test_guessed_names_stand_beside_what_chance_explains(tmp_path):
    def evaluation(low, **row):
        row = {"name": "guessed", "base": 0.25, "tuned": 0.32, "difference_interval": {"low": low, "high": 0.1}, **row}
        return {**EVALUATION, "tasks": [{"task": "next token", "rows": [row]}, {"task": "next name", "rows": [row]}]}

    for low, said in ((-0.1, "= +7 points, too few to tell"), (0.02, "▲ +7 points")):
        (tmp_path / "evaluation.json").write_text(json.dumps(evaluation(low)))
        shown = [line.plain for line in names_guessed(read_report(tmp_path), 60)]
        assert shown[0].startswith("Names guessed")
        assert shown[-1].startswith(said)
    assert names_guessed(read_report(tmp_path), 60, steps=2)[-1].plain.startswith("= +7 points, 2 updates: too few")
    for bad in ({"base": 25}, {"tuned": None}, {"name": "else"}):
        (tmp_path / "evaluation.json").write_text(json.dumps(evaluation(0.1, **bad)))
        assert names_guessed(read_report(tmp_path), 60) == []


def names(*spans):
    return [{"start": start, "stop": stop, "base": base, "tuned": tuned} for start, stop, base, tuned in spans]


def test_an_excerpt_shows_who_guesses_which_name(tmp_path):
    text = "a = \x1b[31mbad\tc\n\nend"
    entry = {"file": "x\x07.py", "text": text, "names": names((0, 1, False, True), (15, 18, True, True))}
    (tmp_path / "evaluation.json").write_text(json.dumps({**EVALUATION, "excerpts": [entry]}))
    [found] = read_report(tmp_path).excerpts
    for width in (20, 60, 200):
        lines = name_excerpt(found, width)
        assert all(len(line.plain) <= width for line in lines)
        shown = "".join(line.plain for line in lines)
        assert "\x1b" not in shown
        assert "\x07" not in shown
        assert "fine-tuned alone: 1" in shown.replace("  ", " ")


@pytest.mark.parametrize(
    "bad",
    [
        None,
        3,
        [3],
        [{}],
        [{"text": "a b", "names": 3}],
        [{"text": "a b", "names": names((0, 9, True, True))}],
        [{"text": "a b", "names": names((-1, 1, True, True), (1, 1, True, True), ("0", 1, True, True))}],
        [{"text": 7, "names": names((0, 1, True, True))}],
    ],
)
def test_excerpts_of_any_kind_are_read(tmp_path, bad):
    (tmp_path / "evaluation.json").write_text(json.dumps({**EVALUATION, "excerpts": bad}))
    assert read_report(tmp_path).excerpts == ()


def test_names_of_an_excerpt_that_overlap_are_left_out(tmp_path):
    entry = {"text": "abc def", "names": names((0, 3, True, True), (2, 5, True, True), (4, 7, 1, True))}
    (tmp_path / "evaluation.json").write_text(json.dumps({**EVALUATION, "excerpts": [entry]}))
    assert read_report(tmp_path).excerpts[0].names == ((0, 3, True, True), (4, 7, False, True))


def test_a_plan_is_read_with_care(tmp_path):
    path = tmp_path / "plan.json"
    assert read_plan(path) is None
    path.write_text('{"step_seconds": true, "gpu_peak_bytes": 7, "host_peak_bytes": "x", "note": 3, "promise": "x"}')
    plan = read_plan(path)
    assert (plan.step_seconds, plan.gpu_bytes, plan.host_bytes, plan.note) == (None, 7.0, None, "")


SAMPLE = Sample(
    prompt="def f():\n", before="    return 1\n    # 界界界", after="    return 2\n" * 30, truth="    return 3\n"
)


@pytest.mark.parametrize("width", [40, 90, 140])
def test_functions_fit_beside_each_other_or_stand_below(width):
    lines = function_diffs([SAMPLE], 0, width)
    assert all(line.cell_length <= width for line in lines)
    text = "\n".join(line.plain for line in lines)
    assert ("│" in text) is (width >= 88)
    beside = next(line.plain for line in lines if "base model" in line.plain)
    assert ("the file's own" in beside) is (width >= 132)
    assert text.count("return 2") == 30


@pytest.mark.parametrize("value", [-9e18, -1.0, 0.0, 1e-320, 9e18])
@pytest.mark.parametrize("other", [-9e18, 1e-320, 0.0, 9e18, None])
def test_perplexities_of_any_size_and_sign_are_drawn(value, other):
    view = RunView(finished=RunFinished(status="completed", steps=1, seconds=1.0, perplexity_after=value))
    view.first_evaluation = EvalCompleted(step=0, loss=0.0, perplexity=other, tokens=1)
    line = finish_line(view, None)
    assert line is None or change_words(line).plain
