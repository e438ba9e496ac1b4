"""Updates that are launched before their loss is known change the same, and nothing where a figure is not finite."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from support.runs import build, new_session
from support.tiny import tiny_model

from engine.data.window_source import plan_updates
from engine.errors import EliteError
from engine.models.adapter import attach_adapter
from engine.models.fine_tuning import AdapterTuning
from engine.optim.build import build_updating
from engine.optim.guarded import can_guard
from engine.steps.whole_step import WholeSequenceStep
from engine.training.optimizer_step import take_optimizer_step


class Unbothered:
    def progress(self, *_, **__): ...

    def stop_requested(self):
        return False


class Spoilt(WholeSequenceStep):
    """Gives a loss, or a gradient, that is not finite in its third run."""

    spoils = ""
    count = 0

    def run(self, windows, scale, monitor):
        result = super().run(windows, scale, monitor)
        self.count += 1
        if self.count == 3 and self.spoils == "loss":
            return dataclasses.replace(result, summed=result.summed * math.nan)
        if self.count == 3 and self.spoils == "gradient":
            next(p for p in self._base.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf
        return result


def spoilt(what):
    return type("Spoilt", (Spoilt,), {"spoils": what})


def parts_of(path, spoils="", *, guarded=True):
    session = new_session(path, training={"epochs": 4})
    parts, progress = build(session, step_type=spoilt(spoils))
    weights = list(parts.tuning.weights.values())
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1, fused=True)
    prepared = parts.accelerator.prepare(optimizer)
    updates = list(plan_updates(parts.windows, session.config.training, parts.context))
    return dataclasses.replace(parts, optimizer=prepared, guarded=guarded), progress, updates


def state_of(parts):
    weights = [weight.detach().clone() for weight in parts.tuning.weights.values()]
    return weights, copy.deepcopy(parts.optimizer.optimizer.state_dict())


def assert_same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_the_weights_of_some_updates_are_the_same(tmp_path):
    ends = []
    for guarded in (True, False):
        parts, progress, updates = parts_of(tmp_path / str(guarded), guarded=guarded)
        figures = [take_optimizer_step(parts, progress, update, Unbothered()) for update in updates[:4]]
        ends.append((state_of(parts), [(each.loss, each.grad_norm) for each in figures]))
    assert_same(ends[0], ends[1])


@pytest.mark.parametrize(("what", "code"), [("loss", "loss-not-finite"), ("gradient", "gradient-not-finite")])
def test_nothing_changes_where_a_figure_is_not_finite(what, code, tmp_path):
    parts, progress, updates = parts_of(tmp_path / "spoilt", what)
    for update in updates[:2]:
        take_optimizer_step(parts, progress, update, Unbothered())
    before = state_of(parts)
    with pytest.raises(EliteError) as caught:
        take_optimizer_step(parts, progress, updates[2], Unbothered())
    assert caught.value.code == code
    assert_same(state_of(parts), before)
    assert progress.step == 2

    take_optimizer_step(parts, progress, updates[2], Unbothered())
    other, other_progress, _ = parts_of(tmp_path / "whole")
    for update in updates[:3]:
        take_optimizer_step(other, other_progress, update, Unbothered())
    assert_same(state_of(parts), state_of(other))


def test_the_first_update_may_be_the_one_that_is_not_finite(tmp_path):
    parts, progress, updates = parts_of(tmp_path, "loss")
    parts.step.count = 2
    before, _ = state_of(parts)
    with pytest.raises(EliteError):
        take_optimizer_step(parts, progress, updates[0], Unbothered())
    assert_same(state_of(parts)[0], before)


@pytest.mark.parametrize(("kind", "options", "guards"), [("AdamW", {"fused": True}, True), ("AdamW", {}, False)])
def test_what_can_guard_itself(kind, options, guards):
    made = getattr(torch.optim, kind)([torch.zeros(3, requires_grad=True)], lr=0.1, **options)
    assert can_guard(made) == guards


@pytest.mark.parametrize(
    ("training", "guarded"), [({}, True), ({"ema_decay": 0.9}, False), ({"lookahead_steps": 2}, False)]
)
def test_weights_that_follow_an_update_wait_for_its_loss(training, guarded, tmp_path):
    config = new_session(tmp_path, training=training).config
    tuning = AdapterTuning(attach_adapter(tiny_model(), config.lora, 0))
    tuning.optimizer = torch.optim.AdamW(tuning.weights.values(), lr=0.1, fused=True)
    made = build_updating(tuning, config, total_steps=4, tokens_per_update=64)
    assert made.guarded == guarded
