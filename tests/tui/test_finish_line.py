"""The finish line: large figures, how sure they are, diffs of completed functions, and its keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual.widgets import Digits

from elite_tui.runs.finish_line import finish_line
from elite_tui.runs.function_diffs import AT_ONCE, function_diffs
from elite_tui.runs.open_runs import OpenRun
from elite_tui.runs.panels import figures
from elite_tui.runs.report import RunReport, Sample, ScoredPerplexity, read_report
from elite_tui.runs.view import RunView
from elite_tui.screens.app_screen import EVERYTHING
from elite_tui.screens.export import ExportScreen
from elite_tui.themes import THEMES
from elite_tui.widgets.choice_bar import ChoiceBar
from engine.protocol.events import EvalCompleted, RunFinished, StepCompleted
from engine.protocol.wire import Envelope
from tests.tui.support import screen_of, settled, text_of, until
from tests.tui.test_run_snapshots import GPU_RUN, SAMPLES, result_of

ENOUGH = 30


def view_of(steps: int, before: float | None = 20.0, after: float | None = 19.0) -> RunView:
    view = RunView(run_id="r")
    done = RunFinished(status="completed", steps=steps, seconds=1.0, perplexity_before=before, perplexity_after=after)
    view.apply(Envelope(run="r", seq=0, time=1.0, event=done))
    return view


def scored(change: float, low: float | None, high: float | None) -> RunReport:
    row = ScoredPerplexity(
        before=20.0, after=20.0 * (1 + change), change=change, low=low, high=high, tokens=900, files=7
    )
    return RunReport(reference="r", perplexity=row)


@pytest.mark.parametrize(
    ("steps", "change", "low", "high", "sign", "said", "colour"),
    [
        (ENOUGH, -0.3, -0.4, -0.2, "▼", "not by chance", "$text-success"),
        (ENOUGH, 0.3, 0.2, 0.4, "▲", "training has hurt", "$text-warning"),
        (ENOUGH, -0.3, -0.7, 0.1, "=", "chance can explain", "$muted"),
        (ENOUGH, -0.3, None, None, "=", "too few files", "$muted"),
        (ENOUGH - 1, -0.3, -0.4, -0.2, "=", "too few to tell", "$muted"),
        (1, 0.3, 0.2, 0.4, "=", "too few to tell", "$muted"),
    ],
)
def test_only_what_chance_does_not_explain_is_green(steps, change, low, high, sign, said, colour):
    line = finish_line(view_of(steps), scored(change, low, high))
    assert line is not None
    assert (line.change[0], line.style) == (sign, colour)
    assert said in line.sureness
    assert (f"{100 * low:+.1f}%".replace("-", "−") in line.change) if low is not None else ("to" not in line.change)
    assert "900 tokens of 7 files" in line.sample


def test_without_an_evaluation_the_run_s_own_scores_stand_there_and_are_not_green():
    line = finish_line(view_of(ENOUGH), None)
    assert line is not None
    assert (line.before, line.after, line.change, line.style) == ("20.00", "19.00", "▼ −5.0%", "$muted")
    assert "engine evaluate" in line.sureness
    assert finish_line(view_of(ENOUGH, after=None), None) is None
    begun = RunView(run_id="r")
    begun.apply(Envelope(run="r", seq=0, time=1.0, event=EvalCompleted(step=0, loss=1.0, perplexity=3.0, tokens=1)))
    assert finish_line(begun, None) is None


@pytest.mark.parametrize(
    "row",
    ["x", {}, {"base": 1, "tuned": "y", "change": 0}, {"base": float("nan"), "tuned": 1.0, "change": 0.0}, [1], None],
)
def test_a_row_of_any_kind_is_read(tmp_path, row):
    (tmp_path / "evaluation.json").write_text(json.dumps({"perplexity": row}))
    assert read_report(tmp_path).perplexity is None


def test_the_evaluation_that_the_engine_writes_is_read(tmp_path):
    row = {"name": "all", "base": 9.0, "tuned": 8.1, "change": -0.1, "tokens": 10, "files": 2}
    row["change_interval"] = {"low": -0.2, "high": -0.05}
    (tmp_path / "evaluation.json").write_text(json.dumps({"perplexity": row}))
    found = read_report(tmp_path).perplexity
    assert found is not None
    assert (found.before, found.after, found.low, found.high, found.files) == (9.0, 8.1, -0.2, -0.05, 2)


@pytest.mark.parametrize(("steps", "shown"), [(29, "19.00  = -5%"), (30, "19.00  ▼ 5%")])
def test_the_monitor_has_no_arrow_after_too_few_updates_either(steps, shown):
    run = OpenRun(key="k", path=Path("/r"))
    for number, perplexity in ((0, 20.0), (steps, 19.0)):
        if number:
            done = StepCompleted(
                step=number, total_steps=99, epoch=0.1, loss=1.0, lr=1.0, grad_norm=1.0, tokens=1, tokens_per_second=1.0
            )
            run.view.apply(Envelope(run="r", seq=0, time=1.0, event=done))
        scored = EvalCompleted(step=number, loss=1.0, perplexity=perplexity, tokens=1)
        run.view.apply(Envelope(run="r", seq=1, time=1.0, event=scored))
    assert shown in "\n".join(line.plain for line in figures(run, (60, 40)))


# --- diffs -----------------------------------------------------------------------------------------------------


def marked(lines):
    """Returns the lines of bodies by their sign."""
    return {sign: [line.plain[2:] for line in lines if line.plain.startswith(f"{sign} ")] for sign in "+-"}


def test_a_diff_applied_to_the_file_s_own_body_gives_what_was_written():
    truth = "    a = 1\n    b = 2\n    return a + b\n"
    written = "    a = 1\n    return a\n"
    lines = function_diffs([Sample(prompt="def f():\n", before=written, after=truth, truth=truth, file="f.py")], 0, 60)
    texts = [line.plain for line in lines]
    base = texts[next(i for i, t in enumerate(texts) if t.startswith("base model")) + 1 :]
    base = base[: next(i for i, t in enumerate(base) if t.startswith("fine-tuned"))]
    assert [line[2:] for line in base if line[0] in " +"] == written.splitlines()
    assert [line[2:] for line in base if line[0] in " -"] == truth.splitlines()
    assert any("fine-tuned  as in the file" in text for text in texts)
    assert any("base model  2 lines missing, 1 other" in text for text in texts)


HOSTILE = "    \x1b]52;c;ZXZpbA==\x07[/bold] [link=x]界\u202e\x9b31m\n\treturn '\x00'\n"


@pytest.mark.parametrize("width", [40, 60, 100, 200])
@pytest.mark.parametrize("path", ["a.py", "b.rs", "c.unknown", "", "\x1b[31m.py", "d.html", "e.js"])
def test_what_a_model_wrote_is_drawn_as_text(width, path):
    sample = Sample(prompt=HOSTILE, before=HOSTILE, after=HOSTILE * 50 + "x" * 5000, truth=HOSTILE, file=path)
    for line in function_diffs([sample], 0, width):
        assert cell_len(line.plain) <= width
        assert all(c.isprintable() for c in line.plain)
    assert "[/bold] [link=x]" in "".join(line.plain for line in function_diffs([sample], 0, 200))


def test_code_has_syntax_colours_and_long_bodies_say_what_is_left_out():
    body = "    return 'text'  # why\n" * 100
    lines = function_diffs([Sample(prompt="", before=body, after="", file="a.py")], 0, 80)
    styles = {str(span.style) for line in lines for span in line.spans}
    assert {"bold $secondary", "$success", "$muted italic"} <= styles
    assert any("40 more lines" in line.plain for line in lines)
    assert any("(nothing)" in line.plain for line in lines)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_syntax_colours_are_those_of_the_themes(theme):
    """`tests/tui/test_themes.py` proves the contrast of these colours in every theme."""
    from elite_tui.runs.function_diffs import _STYLES, _Syntax

    used = {word for style in (*_Syntax.STYLES.values(), *_STYLES.values()) for word in style.split() if word[0] == "$"}
    assert used <= {"$secondary", "$success", "$accent", "$muted", "$text-warning", "$text-accent"}
    assert theme.variables["muted"]


# --- the screen ------------------------------------------------------------------------------------------------

REPORT = RunReport(
    reference=GPU_RUN,
    perplexity=ScoredPerplexity(
        before=60.34, after=6.611, change=-0.8904, low=-0.912, high=-0.86, tokens=65_536, files=12
    ),
    samples=SAMPLES * 2,
    commands=frozenset({"export", "generate", "serve"}),
)


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (100, 30), (200, 60)])
async def test_the_large_figures_are_whole_at_every_size(size):
    app, enter = result_of(REPORT)
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        await enter(pilot)
        for name, value in (("before", "60.34"), ("after", "6.611")):
            figure = app.screen.query_one(f"#{name}", Digits)
            await until(pilot, lambda figure=figure, value=value: figure.value == value)
            assert figure.size.height == 3
            assert figure.size.width == 3 * 4 + 1
            assert figure.region.right <= size[0]
            assert figure.region.bottom < size[1]
        change = app.screen.query_one("#change")
        assert change.region.right <= size[0]
        assert "−91.2% to −86.0%" in text_of(app, "#change").replace("\n", " ")


@pytest.mark.parametrize("by", ["key", "mouse"])
async def test_what_to_do_with_a_result_takes_one_key_or_one_click(by, monkeypatch):
    app, enter = result_of(REPORT)
    copied: list[str] = []
    monkeypatch.setattr(app, "copy_to_clipboard", copied.append)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await enter(pilot)

        async def do(key):
            if by == "key":
                await pilot.press(key)
                return
            bar = app.screen.query_one("#do", ChoiceBar)
            app.screen.query_one("#result").scroll_home(animate=False)
            await pilot.pause()
            place = next(place for place, choice in bar._places if choice.key == key)
            await pilot.click("#do", offset=(place.start, 0))

        await until(pilot, lambda: "function 1 of 4" in text_of(app, "#functions"))
        await do("f")
        assert f"function {AT_ONCE + 1} of 4" in text_of(app, "#functions")
        await do("f")
        assert "function 1 of 4" in text_of(app, "#functions")
        await do("c")
        assert copied == [text_of(app, "#use").split("  ")[0]]
        assert copied[0].startswith("engine serve ")
        await do("x")
        await until(pilot, lambda: isinstance(app.screen, ExportScreen))
        await pilot.press("escape")
        await until(pilot, lambda: screen_of(app) == "result")
        await do("g")
        await until(pilot, lambda: screen_of(app) == "generate")


async def test_the_command_reaches_the_terminal_by_osc_52():
    app, enter = result_of(REPORT)
    sent: list[str] = []
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await enter(pilot)
        app._driver.write = sent.append
        await pilot.press("c")
        await pilot.pause()
    import base64

    (sequence,) = [text for text in sent if "]52;c;" in text]
    command = base64.b64decode(sequence.partition("]52;c;")[2].rstrip("\a\x1b\\")).decode()
    assert command == f"engine serve {GPU_RUN}"


async def test_a_run_without_a_result_offers_nothing_to_do_with_it():
    app, enter = result_of(RunReport(reference=GPU_RUN))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await enter(pilot)
        app.state.run.finished = RunFinished(status="stopped", steps=3, seconds=1.0)
        app.state.run.first_evaluation = None
        app.screen.show(EVERYTHING)
        assert "not scored at both ends" in text_of(app, "#change")
        assert not app.screen.query_one("#before").display
        assert text_of(app, "#do") == ""
