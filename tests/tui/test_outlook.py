"""The projection in the monitor appears after enough evaluations, is labelled, and disappears at the end."""

from __future__ import annotations

from elite_tui.runs.open_runs import OpenRun
from elite_tui.runs.panels import figures, projected_perplexity
from elite_tui.runs.view import RunView
from engine.protocol import Envelope, EvalCompleted, RunFinished, RunStarted, StepCompleted
from tests.tui.recording import FOLDER, RUN_ID, START


def view_of(scores, ended=False):
    view = RunView(run_id=RUN_ID)
    events = [
        RunStarted(model="demo", context=64, total_steps=100),
        EvalCompleted(step=0, loss=4.0, perplexity=54.6, tokens=9),
    ]
    for step in range(1, 61):
        events.append(
            StepCompleted(
                step=step,
                total_steps=100,
                epoch=0.1,
                loss=3.0,
                lr=1e-4,
                grad_norm=1.0,
                tokens=1000,
                tokens_per_second=1.0,
            )
        )
        if step % 10 == 0 and step // 10 <= scores:
            events.append(EvalCompleted(step=step, loss=2 + 2 * step**-0.5, perplexity=9.0, tokens=9))
    if ended:
        events.append(RunFinished(status="completed", steps=60, seconds=1.0))
    for number, event in enumerate(events):
        view.apply(Envelope(run=RUN_ID, seq=number, time=START + number, event=event))
    return view


def test_a_projection_is_shown_once_there_are_scores_and_called_one():
    assert projected_perplexity(view_of(3)) == ()
    long, short = projected_perplexity(view_of(6))
    # exp(2 + 2·100^-1/2) is 9.03.
    assert short in ("9.02 projected", "9.03 projected", "9.04 projected", "9.05 projected", "9.01 projected")
    assert long.endswith("projected")
    run = OpenRun(key="k", path=FOLDER, view=view_of(6))
    lines = [line.plain for line in figures(run, (60, 40))]
    assert any(line.startswith("  at the end") and "projected" in line for line in lines)


def test_it_is_gone_when_the_run_has_ended():
    assert projected_perplexity(view_of(6, ended=True)) == ()
