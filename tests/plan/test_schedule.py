"""The schedule of a run in given hours keeps them, grows, has enough updates, and never shrinks with more hours."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import CheckpointSection, EvaluationSection, TrainingSection, from_mapping
from engine.errors import EliteError
from engine.hardware.measured import correction_key
from engine.hardware.past_runs import PastRun, PastRuns
from engine.models.catalogue import find_model
from engine.plan.choice import choose_plan
from engine.plan.planner import plan_tiers
from engine.plan.request import PlanRequest
from engine.plan.schedule import make_schedule
from tests.plan.machines import with_card, without_card

CARDS = ("rtx-2060-super", "rtx-3060-12gb", "rtx-4090", "a100-80gb", "h200")
MODELS = ("demo", "qwen2.5-coder-1.5b", "qwen2.5-coder-7b", "phi-2", "starcoder2-3b")
cards, models = st.sampled_from(CARDS), st.sampled_from(MODELS)
tokens = st.one_of(st.none(), st.integers(2_000, 30_000_000))
hours = st.floats(0.05, 200)


def scheduled(card, model, repository_tokens, for_hours, tier=None, **changes):
    machine = without_card() if card is None else with_card(card)
    planning = PlanRequest.of(machine, find_model(model), repository_tokens=repository_tokens, **changes)
    return make_schedule(planning, for_hours, tier)


def attempted(*args, **changes):
    """A schedule, or the error that refuses it."""
    try:
        return scheduled(*args, **changes)
    except EliteError as error:
        return error


def checked(schedule, for_hours, repository_tokens, passes=3.0):
    contexts = [stage.context for stage in schedule.stages]
    assert contexts == sorted(set(contexts))
    assert all(stage.updates >= 1 and stage.plan.fits for stage in schedule.stages)
    assert len({stage.plan.layout.weights for stage in schedule.stages}) == 1
    assert for_hours is None or schedule.seconds <= for_hours * 3600
    # The parts of the promise make up the whole of it.
    parts = sum(stage.updates * stage.plan.step_seconds for stage in schedule.stages)
    assert parts + sum(part.seconds for part in schedule.whole.phases) <= schedule.seconds
    trained = sum(s.updates * s.plan.windows_per_step * s.context for s in schedule.stages)
    if repository_tokens is not None:
        most = passes * 0.9 * repository_tokens
        assert trained <= max(most, 512)
        if schedule.updates < 30:
            assert most < 31 * 512
            assert re.match(rf"only {schedule.updates} updates? of [\d,]+ tokens: the [\d,]+ tokens", schedule.note)
    else:
        assert schedule.updates >= 30
    assert schedule.stages[0].updates >= max(stage.updates for stage in schedule.stages[1:]) if contexts[1:] else True


@given(cards, models, tokens, hours)
@settings(max_examples=12)
def test_a_schedule_keeps_its_hours_grows_and_has_updates(card, model, repository_tokens, for_hours):
    schedule = attempted(card, model, repository_tokens, for_hours)
    if isinstance(schedule, EliteError):
        assert schedule.code == "hours-too-few"
    else:
        checked(schedule, for_hours, repository_tokens)


@given(st.one_of(st.none(), cards), models, st.integers(200, 30_000_000))
@settings(max_examples=12)
def test_a_schedule_without_hours_grows_and_has_updates_that_the_tokens_allow(card, model, repository_tokens):
    schedule = attempted(card, model, repository_tokens, None)
    if isinstance(schedule, EliteError):
        assert schedule.code == "tier-does-not-fit"
        return
    checked(schedule, None, repository_tokens)
    assert schedule.hours is None
    # Nothing that more hours would add is left out, where a window does not take longer than anybody waits.
    if card is not None:
        weeks = scheduled(card, model, repository_tokens, 10_000)
        assert schedule.updates >= weeks.updates or schedule.longest.context > weeks.longest.context


def test_a_schedule_without_hours_and_tokens_has_no_end():
    with pytest.raises(ValueError, match="known size"):
        scheduled("rtx-4090", "qwen2.5-coder-1.5b", None, None)


def test_a_run_without_tier_and_hours_follows_a_schedule_and_stops_where_it_is_told_to():
    machine, spec = with_card("rtx-3060-12gb"), find_model("qwen2.5-coder-1.5b")
    choice = choose_plan(from_mapping({}), machine, spec, 400_000)
    assert choice.updates == choice.schedule.updates >= 30
    assert choice.schedule.longest.context > choice.schedule.stages[0].context
    stopped = choose_plan(from_mapping({"training": {"max_steps": 2}}), machine, spec, 400_000)
    assert stopped.schedule.stages == choice.schedule.stages
    assert stopped.updates == 2
    assert "stops after 2" in stopped.note
    two = 2 * choice.schedule.stages[0].plan.step_seconds
    assert stopped.seconds == pytest.approx(choice.whole.around(two, 2))
    pairs = choose_plan(from_mapping({"training": {"objective": "dpo"}}), machine, spec, 400_000)
    assert pairs.schedule is None


@given(cards, models, tokens, hours, st.floats(1, 20))
@settings(max_examples=8)
def test_more_hours_never_shorten_the_longest_windows(card, model, repository_tokens, for_hours, times):
    def longest(of):
        schedule = attempted(card, model, repository_tokens, of)
        return 0 if isinstance(schedule, EliteError) else schedule.longest.context

    assert longest(for_hours * times) >= longest(for_hours)


@given(cards, st.sampled_from(MODELS[:3]), tokens, st.integers(1, 11), hours)
@settings(max_examples=8)
def test_a_tier_that_is_asked_for_is_the_last_one_or_the_hours_that_it_takes_are_said(card, model, tokens, tier, of):
    schedule = attempted(card, model, tokens, of, tier)
    if not isinstance(schedule, EliteError):
        assert schedule.longest.tier == tier
        assert schedule.seconds <= of * 3600
    elif schedule.code == "hours-too-few":
        enough = float(schedule.remedy.split("--hours ")[1].split(",")[0])
        assert enough > of
        assert scheduled(card, model, tokens, enough, tier).longest.tier == tier
    else:
        assert schedule.code == "tier-does-not-fit"


def test_too_few_hours_say_how_many_are_enough():
    with pytest.raises(EliteError) as caught:
        scheduled(None, "qwen2.5-coder-1.5b", 400_000, 0.01)
    assert (caught.value.code, caught.value.exit_code, caught.value.field) == ("hours-too-few", 3, "training.hours")
    enough = float(caught.value.remedy.split("--hours ")[1].split(",")[0])
    assert scheduled(None, "qwen2.5-coder-1.5b", 400_000, enough).updates >= 30


def test_max_is_the_announcements_rule():
    table = plan_tiers(with_card("rtx-3060-12gb"), find_model("qwen2.5-coder-1.5b"), repository_tokens=400_000)
    schedule = scheduled("rtx-3060-12gb", "qwen2.5-coder-1.5b", 400_000, 48, "max")
    assert schedule.longest.tier == table.ceiling
    config = from_mapping({"training": {"tier": "max"}})
    choice = choose_plan(config, with_card("rtx-3060-12gb"), find_model("qwen2.5-coder-1.5b"), 400_000)
    assert choice.plan.tier == table.ceiling


def test_epochs_and_tokens_an_update_are_kept():
    training = TrainingSection(epochs=1.0, tokens_per_update=4096)
    schedule = scheduled("rtx-4090", "qwen2.5-coder-1.5b", 1_000_000, 8, training=training)
    checked(schedule, 8, 1_000_000, passes=1.0)
    assert schedule.tokens_per_update == 4096
    assert 0.8 < schedule.epochs <= 1.0


def test_scoring_evaluation_and_checkpoints_take_their_share_of_the_hours():
    bare = scheduled("rtx-3060-12gb", "qwen2.5-coder-1.5b", 7_000_000, 2)
    full = scheduled(
        "rtx-3060-12gb",
        "qwen2.5-coder-1.5b",
        7_000_000,
        2,
        training=TrainingSection(evaluate_every=10),
        evaluation=EvaluationSection(at_end=True),
        checkpoint=CheckpointSection(every_minutes=1),
    )
    assert full.step_seconds < bare.step_seconds
    assert full.seconds <= 2 * 3600
    assert full.seconds - full.step_seconds > bare.seconds - bare.step_seconds


@given(cards, models, tokens, st.one_of(st.none(), hours))
@settings(max_examples=8)
def test_windows_beyond_the_trained_length_are_for_a_tier_that_is_asked_for(card, model, repository_tokens, for_hours):
    if for_hours is None and repository_tokens is None:
        return
    schedule = attempted(card, model, repository_tokens, for_hours)
    if not isinstance(schedule, EliteError):
        assert schedule.longest.context <= max(find_model(model).max_context, 512)
        assert not schedule.longest.warning


def test_a_tier_beyond_the_trained_length_is_taken_where_it_is_asked_for():
    assert scheduled("h200", "phi-2", 30_000_000, 100).longest.context == 2048
    assert scheduled("h200", "phi-2", 30_000_000, 100, 7).longest.warning


def test_stages_that_are_named_are_planned_as_they_are():
    config = from_mapping({"training": {"stages": ["8192:40", "131072:4"]}})
    choice = choose_plan(config, with_card("rtx-4090"), find_model("qwen2.5-coder-1.5b"), None)
    assert [(stage.context, stage.updates) for stage in choice.schedule.stages] == [(8192, 40), (131_072, 4)]
    assert choice.context == 131_072
    assert choice.gpu_peak_bytes == max(stage.plan.gpu_peak_bytes for stage in choice.schedule.stages)
    assert choice.seconds > choice.schedule.step_seconds


@pytest.mark.parametrize(
    ("training", "field"),
    [
        ({"stages": ["8192:4", "4096:4"]}, "training.stages"),
        ({"stages": ["32:4"]}, "training.stages"),
        ({"stages": ["8192"]}, "training.stages"),
        ({"stages": ["8192:4"], "tier": 3}, "training.stages"),
        ({"stages": ["8192:4"], "hours": 3}, "training.stages"),
        ({"hours": 3, "context": 4096}, "training.hours"),
        ({"hours": 0}, "training.hours"),
        ({"hours": 3, "curriculum": True}, "training.curriculum"),
        ({"tier": "most"}, "training.tier"),
    ],
)
def test_what_cannot_be_together_is_refused_by_name(training, field):
    with pytest.raises(EliteError) as caught:
        from_mapping({"training": training})
    assert caught.value.code == "config-invalid"
    assert caught.value.values["field"] == field


def test_a_promise_learns_from_what_past_runs_took():
    machine, spec = with_card("rtx-3060-12gb"), find_model("qwen2.5-coder-1.5b")
    before = make_schedule(PlanRequest.of(machine, spec, repository_tokens=400_000), 8)
    base = before.stages[0].plan
    precision = base.layout.precision
    steps = {correction_key(spec.name, precision, streamed=base.layout.stream is not None): 2.0}
    past = PastRuns(tuple(PastRun(run=f"{n}", model=spec.name, steps=steps, phases={"data": 3.0}) for n in range(3)))
    after = make_schedule(PlanRequest.of(dataclasses.replace(machine, past=past), spec, repository_tokens=400_000), 8)
    seconds = [{part.name: part.seconds for part in schedule.whole.phases} for schedule in (before, after)]
    assert seconds[1]["data"] == pytest.approx(3 * seconds[0]["data"])
    assert after.stages[0].plan.step_seconds == pytest.approx(2 * base.step_seconds)
