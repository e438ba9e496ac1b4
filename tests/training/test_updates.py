"""Which windows an update takes, and at which rate it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import ListWindows, tiny_model

from engine.config import LoraSection, TrainingSection
from engine.data.window_source import count_updates, plan_updates, tokens_per_update
from engine.hardware.machine import GIB, Machine
from engine.models.adapter import attach_adapter
from engine.models.catalogue import find_model
from engine.models.config_reader import spec_from_config
from engine.optim.schedule import make_schedule, warmup_cosine_factor
from engine.plan.request import PlanRequest
from engine.steps.micro_batch import whole_window_bytes
from engine.steps.whole_step import WholeSequenceStep, Window


@given(
    lengths=st.lists(st.integers(2, 50), min_size=1, max_size=30),
    wanted=st.integers(1, 200),
    epochs=st.floats(0.1, 4),
    seed=st.integers(0, 5),
)
def test_updates_cover_each_epoch_evenly_in_the_same_order_every_time(lengths, wanted, epochs, seed):
    windows = ListWindows([np.zeros(length) for length in lengths])
    training = TrainingSection(tokens_per_update=wanted, epochs=epochs, seed=seed)
    updates = list(plan_updates(windows, training, 50))
    assert updates == list(plan_updates(windows, training, 50))
    assert len(updates) == count_updates(windows, training, 50)
    visited = [index for update in updates for index in update.windows]
    assert len(visited) == max(1, round(epochs * len(lengths)))
    counts = np.bincount(visited, minlength=len(lengths))
    assert counts.max() - counts.min() <= 1
    assert updates[-1].epoch == pytest.approx(len(visited) / len(lengths))
    for update in updates[:-1]:
        tokens = [lengths[index] for index in update.windows]
        assert wanted - sum(tokens) < max(tokens) / 2
        if len(tokens) > 1:
            assert wanted - sum(tokens[:-1]) >= max(tokens[:-1]) / 2


def test_windows_that_fall_short_of_the_context_do_not_make_an_update_larger():
    windows = ListWindows([np.zeros(length) for length in (4096, 4000, 4050, 4090, 3990, 4096)])
    for wanted, each in ((4096, 1), (8192, 2), (12288, 3)):
        updates = plan_updates(windows, TrainingSection(tokens_per_update=wanted), 4096)
        assert [len(update.windows) for update in updates] == [each] * (6 // each)


@given(context=st.integers(2, 300), wanted=st.integers(1, 2000))
def test_the_planner_counts_the_windows_of_an_update_as_training_does(context, wanted):
    planning = PlanRequest(
        machine=Machine(cpu_cores=4, ram_total=GIB, ram_available=GIB, disk_total=GIB, disk_free=GIB),
        spec=find_model("demo"),
        compute_type="fp32",
        weights=("fp32",),
        training=TrainingSection(tokens_per_update=wanted),
    )
    windows = ListWindows([np.zeros(context)] * 2000)
    first = next(plan_updates(windows, TrainingSection(tokens_per_update=wanted), context))
    assert len(first.windows) == planning.windows_per_update(context)


def test_max_steps_ends_in_mid_epoch():
    windows = ListWindows([np.zeros(10)] * 10)
    training = TrainingSection(tokens_per_update=10, max_steps=3)
    assert count_updates(windows, training, 10) == 3


def test_an_update_holds_8192_tokens_or_one_window_unless_told():
    assert tokens_per_update(TrainingSection(), 512) == 8192
    assert tokens_per_update(TrainingSection(), 32768) == 32768
    assert tokens_per_update(TrainingSection(tokens_per_update=100), 512) == 100


def test_the_rate_rises_linearly_then_falls_as_a_cosine():
    factors = [warmup_cosine_factor(step, 100, 10) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] > 0 == factors[100]
    assert factors[10:] == sorted(factors[10:], reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "polynomial", "one_cycle"])
@pytest.mark.parametrize(("total", "fraction"), [(1, 0.0), (1, 0.99), (2, 0.5), (1000, 0.05)])
def test_every_update_learns(total, fraction, schedule):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    training = TrainingSection(warmup_fraction=fraction, schedule=schedule)
    schedule = make_schedule(optimizer, training, total)
    rates = []
    for _ in range(total):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert all(0 < rate <= 0.5 for rate in rates)


class Quiet:
    def progress(self, *args, **kwargs):
        pass

    def stop_requested(self):
        return False


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_predicted_activations_are_near_what_autograd_keeps(family):
    base = tiny_model(family)
    spec = spec_from_config(base.config.to_dict(), name="tiny", hub_id=None, path=None)
    step = WholeSequenceStep(attach_adapter(base, LoraSection(rank=1), seed=0), recompute=False)
    kept = {}

    def note(tensor):
        if not isinstance(tensor, torch.nn.Parameter) and tensor.shape[-1:] != (base.config.vocab_size,):
            kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step.run([Window(np.arange(1, 130))], 1.0, Quiet())
    measured = sum(size for size, _ in kept.values())
    assert 0.5 * measured < whole_window_bytes(spec, 128, 4) < 1.5 * measured
