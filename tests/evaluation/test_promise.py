"""What was promised beside what happened, and what later plans learn from it."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elite_tui.runs.finish_line import finish_line
from elite_tui.runs.view import RunView
from engine.commands.event_words import describe_ending
from engine.config import from_mapping
from engine.evaluation.curve import curve_of
from engine.evaluation.promise import Promise, _claim, compare, past_run, read_timeline
from engine.evaluation.words import too_few_updates
from engine.hardware import past_run_files
from engine.hardware.past_runs import PastRun, PastRuns
from engine.models.catalogue import find_model
from engine.plan.choice import choose_plan
from engine.protocol.events import CheckpointSaved, EvalCompleted, PhaseChanged, RunFinished, RunStarted, StepCompleted
from engine.protocol.wire import Envelope
from engine.runs.run_directory import RunDirectory
from tests.plan.machines import with_card

CODER = find_model("qwen2.5-coder-1.5b")
CONFIG = from_mapping({"training": {"stages": ["8192:6", "131072:4"]}})
STAGES = [0] * 6 + [1] * 4


def step(number, seconds):
    return StepCompleted(
        step=number, total_steps=10, epoch=0.1, loss=1.0, lr=1e-4, grad_norm=1.0, tokens=100, tokens_per_second=1.0,
        seconds=seconds,
    )  # fmt: skip


def journal(choice, slower, first=40.0):
    """A run whose updates and scorings took `slower` times what the plan says, and whose start took 24 s."""
    events = [(0.0, PhaseChanged(phase="starting"))]
    now = 24.0
    events += [(now, RunStarted(model="m", context=1, total_steps=10)), (now, PhaseChanged(phase="data"))]
    now += 7.0
    events.append((now, PhaseChanged(phase="model")))
    now += 5.0
    events.append((now, PhaseChanged(phase="baseline")))
    seconds = {part.name: part.seconds for part in choice.whole.phases}
    now += slower * seconds["baseline"]
    events.append((now, EvalCompleted(step=0, loss=2.0, perplexity=7.4, tokens=9)))
    events.append((now, PhaseChanged(phase="training", detail="stage 1 of 2")))
    for number, stage in enumerate(STAGES, start=1):
        took = slower * choice.plans[stage].step_seconds + (first if number == 1 else 0.0)
        now += took
        events.append((now, step(number, took)))
        if number == 4:
            now += 3.0
            events.append((now, EvalCompleted(step=4, loss=1.8, perplexity=6.0, tokens=9, seconds=3.0)))
            now += 0.5
            events.append((now, CheckpointSaved(step=4, path="c", bytes=1, seconds=0.5)))
        if number == 6:
            events.append((now, PhaseChanged(phase="training", detail="stage 2 of 2")))
    events.append((now, PhaseChanged(phase="evaluation")))
    now += slower * seconds["evaluation"]
    events.append((now, EvalCompleted(step=10, loss=1.5, perplexity=4.5, tokens=9)))
    events.append((now, PhaseChanged(phase="saving")))
    now += 2.0
    events.append((now, PhaseChanged(phase="finished")))
    return [Envelope(run="r", seq=seq, time=1e9 + time, event=event) for seq, (time, event) in enumerate(events)]


FINISHED = RunFinished(status="completed", steps=10, seconds=1.0, host_peak=2**34, gpu_peak=2**33)


def test_the_times_of_phases_and_of_the_whole_run_are_read_from_the_journal():
    choice = choose_plan(CONFIG, with_card("rtx-4090"), CODER, None)
    timeline = read_timeline(journal(choice, 2.0))
    assert timeline.phases["starting"] == pytest.approx(24)
    assert timeline.phases["data"] == pytest.approx(7)
    assert timeline.phases["saving"] == pytest.approx(2)
    # Both stages are one phase.
    assert timeline.phases["training"] == pytest.approx(2 * choice.schedule.step_seconds + 40 + 3.5)
    assert (timeline.scores, timeline.checkpoints) == (pytest.approx((3.0,)), pytest.approx((0.5,)))
    assert timeline.updates == pytest.approx(sum(timeline.steps.values()))
    assert timeline.seconds == pytest.approx(sum(timeline.phases.values()))


@pytest.mark.parametrize(("seconds", "late", "own"), [(6.0, 4.0, 2.0), (6.0, 6.0, 0.0), (6.0, 0.0, 6.0)])
def test_a_checkpoint_counts_only_where_nothing_else_runs(seconds, late, own):
    """It begins between two updates of 10 seconds, or `late` of its seconds are those of the second one."""
    events = [(0.0, RunStarted(model="m", context=1, total_steps=2)), (0.0, PhaseChanged(phase="training"))]
    begin = 10.0 + seconds - late
    events += [(10.0, step(1, 10.0)), (10.0 + seconds, CheckpointSaved(step=1, path="c", bytes=1, seconds=seconds))]
    events += [(begin + 10.0, step(2, 10.0)), (begin + 10.0, PhaseChanged(phase="finished"))]
    events.sort(key=lambda pair: pair[0])
    timeline = read_timeline([Envelope(run="r", seq=n, time=1e9 + t, event=e) for n, (t, e) in enumerate(events)])
    assert timeline.updates == pytest.approx(20.0)
    assert sum(timeline.checkpoints) == pytest.approx(own, abs=1e-5)
    assert timeline.updates + sum(timeline.checkpoints) == pytest.approx(timeline.seconds)


def test_a_resumed_run_is_no_measure_of_a_promise():
    choice = choose_plan(CONFIG, with_card("rtx-4090"), CODER, None)
    events = journal(choice, 1.0)
    again = [dataclasses.replace(event, time=event.time + 1e5) for event in events]
    assert read_timeline([*events, *again]) is None


@pytest.mark.parametrize("back", [3600.0, 3e7])
def test_a_clock_that_was_set_back_is_no_measure(back):
    """Once, a report said that a phase took minus a year, and later plans took a tenth of its promise."""
    events = journal(choose_plan(CONFIG, with_card("rtx-4090"), CODER, None), 1.0)
    for first in range(1, len(events)):
        late = [dataclasses.replace(event, time=event.time - back) for event in events[first:]]
        # The clock of a long run may have passed more time than it was set back by.
        assert read_timeline([*events[:first], *late]) is None or late[0].time >= events[first - 1].time
    slightly = [*events[:5], *(dataclasses.replace(event, time=event.time - 0.01) for event in events[5:])]
    assert read_timeline(slightly) is not None


def test_odd_runs_do_not_carry_predictions_away():
    """Nights in suspend, clocks at a stand and updates a million times too slow; then ordinary runs again."""
    machine, draw, runs = with_card("rtx-4090"), random.Random(7), []
    usual = choose_plan(CONFIG, machine, CODER, None)

    def plan():
        return choose_plan(CONFIG, dataclasses.replace(machine, past=PastRuns(tuple(runs))), CODER, None)

    def keep(choice, events):
        finished = dataclasses.replace(FINISHED, host_peak=draw.choice([None, 1, 2**60]))
        if (took := read_timeline(events)) is not None:
            runs.append(past_run(str(len(runs)), CODER.name, choice, STAGES, took, finished))

    for _ in range(50):
        choice = plan()
        assert 0.1 * usual.seconds <= choice.seconds <= 10 * usual.seconds
        events = journal(choice, draw.choice([1e-9, 1e-3, 1.0, 1e6]), first=draw.choice([0.0, 40.0, 1e5]))
        pause = draw.choice([-events[-1].time, 0.0, 3600.0 * 12])
        at = draw.randrange(len(events))
        keep(choice, [dataclasses.replace(e, time=e.time + pause * (n >= at)) for n, e in enumerate(events)])
    for _ in range(3):
        keep(plan(), journal(usual, 1.0, first=5.0))
    assert plan().seconds == pytest.approx(usual.seconds, rel=0.1)


def test_a_comparison_holds_every_promised_phase_and_the_loss_that_past_runs_let_expect():
    choice = choose_plan(CONFIG, with_card("rtx-4090"), CODER, None)
    events = journal(choice, 1.0)
    promise = Promise.of(choice, STAGES)
    assert promise.seconds == pytest.approx(choice.schedule.seconds)
    assert promise == Promise.from_json(dataclasses.asdict(promise))
    assert Promise.from_json({"no": "promise"}) is None
    compared = compare(promise, events, curve_of(events), (0.8, 0.9, 0.85))
    assert compared.loss == pytest.approx(0.85 * 2.0, rel=0.05)
    parts = {kept.name: kept for kept in compared.parts}
    assert list(parts) == [
        "starting", "data", "model", "baseline", "updates", "scoring", "checkpoints", "evaluation", "saving"
    ]  # fmt: skip
    # Every promised second is in one of them.
    assert sum(kept.predicted for kept in parts.values()) == pytest.approx(promise.seconds)
    assert parts["updates"].measured == pytest.approx(choice.schedule.step_seconds + 40)
    assert (parts["scoring"].measured, parts["checkpoints"].measured, parts["saving"].measured) == (3.0, 0.5, 2.0)
    assert compare(promise, events, curve_of(events), ()).loss is None


def test_the_promise_of_an_earlier_version_is_compared_as_far_as_it_goes():
    choice = choose_plan(CONFIG, with_card("rtx-4090"), CODER, None)
    events = journal(choice, 1.0)
    kept = dataclasses.asdict(Promise.of(choice, STAGES))
    earlier = Promise.from_json({name: kept[name] for name in ("seconds", "step_seconds", "phases")})
    parts = [part.name for part in compare(earlier, events, curve_of(events), ()).parts]
    assert parts == ["starting", "data", "model", "baseline", "evaluation", "saving"]


def test_a_phase_that_has_not_ended_is_measured_up_to_now():
    choice = choose_plan(CONFIG, with_card("rtx-4090"), CODER, None)
    whole = journal(choice, 1.0)
    events = whole[:-1]  # the report is made before the run says that it has finished
    assert "saving" not in read_timeline(events).phases
    seen = read_timeline(events, until=events[-1].time + 7.0)
    assert seen.phases["saving"] == pytest.approx(7)
    assert seen.seconds == pytest.approx(sum(seen.phases.values()))
    # A finished run stays as it was, whenever its report is written again.
    assert read_timeline(whole, until=whole[-1].time + 1e6) == read_timeline(whole)


def test_the_next_promise_is_what_the_last_run_took():
    """A machine twice as slow as its data sheet: the second promise is right, and so is the third."""
    machine = with_card("rtx-4090")
    first = choose_plan(CONFIG, machine, CODER, None)
    events = journal(first, 2.0)
    took = read_timeline(events)
    runs = []
    for number in range(3):
        known = dataclasses.replace(machine, past=PastRuns(tuple(runs)) if runs else None)
        choice = choose_plan(CONFIG, known, CODER, None)
        if runs:
            without_scoring = took.seconds - 3.0  # which no plan of these settings has on the way
            assert choice.seconds == pytest.approx(without_scoring, rel=0.02)
            assert choice.whole.checkpoint == pytest.approx(0.5)
            assert choice.host_factor >= 1.0
        runs.append(past_run(str(number), CODER.name, choice, STAGES, took, FINISHED))
    assert runs[0].steps == pytest.approx(runs[1].steps)
    assert runs[0].phases == pytest.approx(runs[2].phases)


def test_past_runs_are_kept_once_each_and_a_damaged_file_counts_as_none(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = with_card("rtx-4090")
    assert past_run_files.load(machine) is None
    for run, ratio in (("a", 1.0), ("b", 3.0), ("a", 2.0), ("c", 9.0)):
        past_run_files.add(machine, PastRun(run=run, model="m", steps={"m, bf16, whole": ratio}))
    found = past_run_files.load(machine)
    assert [run.run for run in found.runs] == ["b", "a", "c"]
    assert found.step_factors() == {"m, bf16, whole": 3.0}
    assert past_run_files.load(with_card("rtx-3090")) is None
    [path] = tmp_path.rglob("*.runs.json")
    path.write_text("[{")
    assert past_run_files.load(machine) is None


@pytest.mark.parametrize(("updates", "said"), [(1, "one update"), (29, "29 updates"), (30, ""), (4_000, "")])
def test_two_updates_are_no_proof(tmp_path, updates, said):
    """Once, a green arrow stood after two of them."""
    assert too_few_updates(updates).startswith(said)
    ending = dataclasses.replace(FINISHED, steps=updates, perplexity_before=20.0, perplexity_after=19.0)
    lines = describe_ending(RunDirectory(tmp_path), ending)
    assert any("too few to tell" in line for line in lines) == bool(said)
    view = RunView(run_id="r")
    view.apply(Envelope(run="r", seq=0, time=1.0, event=ending))
    shown = finish_line(view, None)
    assert shown is not None
    assert ("too few to tell" in shown.sureness) == bool(said)
    assert shown.change.startswith("▼") != bool(said)
    assert shown.style != "$text-success"  # nothing has said how sure it is


@given(st.lists(st.tuples(st.integers(-5, 60), st.integers(0, 20)), max_size=14))
def test_a_part_claims_the_seconds_that_no_other_has(spans):
    free, taken = [(0.0, 60.0)], set()
    for start, length in spans:
        seconds = set(range(max(start, 0), min(start + length, 60)))
        assert _claim(free, (start, start + length)) == len(seconds - taken)
        taken |= seconds
    assert free == sorted(free)


@pytest.mark.timeout(30)
def test_a_run_of_very_many_updates_is_compared_in_time_in_line_with_their_number():
    """Each update leaves a gap; looking at all of them for each would take hours."""
    free = [(0.0, 200_000.0)]
    assert sum(_claim(free, (step + 0.25, step + 0.75)) for step in range(200_000)) == 100_000
