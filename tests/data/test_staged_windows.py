"""The updates of a run in stages: every stage its windows, no token twice in an epoch as far as possible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import TrainingSection
from engine.data.packing import Layout
from engine.data.stages import StagedWindows, plan_stages
from engine.data.windows import Windows


def windows_of(tokens: int, files: int, contexts: list[int]) -> StagedWindows:
    """Windows over a stream of counting numbers, so that a token is its own position."""
    stream = np.arange(tokens, dtype=np.uint32)
    starts = np.unique(np.linspace(0, tokens, files, endpoint=False, dtype=np.int64))
    layout = Layout(documents=starts[:1], files=starts, definitions=np.empty(0, dtype=np.int64))
    first = Windows(stream, contexts[0], layout)
    return StagedWindows([first, *(first.with_context(context) for context in contexts[1:])])


def counts(windows: StagedWindows, updates) -> np.ndarray:
    found = np.zeros(windows.stages[0].stream_tokens, dtype=np.int64)
    for update in updates:
        for index in update.windows:
            found[windows[index].ids] += 1
    return found


@given(
    tokens=st.integers(2_000, 40_000),
    files=st.integers(1, 40),
    made=st.tuples(st.integers(1, 60), st.integers(1, 6), st.integers(1, 4)),
    wanted=st.sampled_from([None, 64, 256, 700]),
    seed=st.integers(0, 3),
)
@settings(max_examples=60)
def test_each_stage_makes_its_updates_on_its_windows(tokens, files, made, wanted, seed):
    contexts = [64, 256, 1024]
    windows = windows_of(tokens, files, contexts)
    training = TrainingSection(tokens_per_update=wanted or 256, seed=seed)
    updates = plan_stages(windows, made, training)
    assert updates == plan_stages(windows, made, training)
    assert [update.stage for update in updates] == [stage for stage, count in enumerate(made) for _ in range(count)]
    for update in updates:
        first = windows.first(update.stage)
        assert all(first <= index < first + len(windows.stages[update.stage]) for index in update.windows)
        sizes = [len(windows[index]) for index in update.windows]
        assert max(sizes) <= contexts[update.stage]
        short = min(training.tokens_per_update, windows.stages[update.stage].token_count) - sum(sizes)
        assert short < max(sizes) / 2
    epochs = [update.epoch for update in updates]
    assert epochs == sorted(epochs)
    trained = sum(len(windows[index]) for update in updates for index in update.windows)
    assert epochs[-1] == pytest.approx(trained / windows.stages[-1].token_count, rel=1e-3)


@given(tokens=st.integers(8_000, 40_000), files=st.integers(1, 30), seed=st.integers(0, 5), long=st.integers(1, 5))
@settings(max_examples=40)
def test_within_an_epoch_long_windows_hardly_repeat_what_short_ones_had(tokens, files, seed, long):
    """Short and long windows drawn alone would share as many tokens as chance has it."""
    windows = windows_of(tokens, files, [64, 1024])
    training = TrainingSection(tokens_per_update=256, seed=seed)
    # About nine tenths of an epoch.
    short = int((0.9 * tokens - 1024 * long) // 256)
    updates = plan_stages(windows, [max(1, short), long], training)
    trained = counts(windows, updates)
    assert trained.max() <= 2
    # Only the short windows at the edges of long ones, of which there are two each.
    assert (trained == 2).sum() <= 2 * 64 * long


def test_many_epochs_visit_every_token_alike():
    windows = windows_of(20_000, 9, [64, 512])
    training = TrainingSection(tokens_per_update=256, seed=1)
    trained = counts(windows, plan_stages(windows, [300, 20], training))
    # 4.3 epochs.
    assert trained.min() >= 3
    assert trained.max() <= 7
    assert np.mean((trained >= 4) & (trained <= 5)) > 0.85


def test_another_seed_draws_other_windows_and_stages_do_not_shift():
    windows = windows_of(20_000, 9, [64, 512])
    one, other = (plan_stages(windows, [30, 4], TrainingSection(tokens_per_update=256, seed=seed)) for seed in (0, 1))
    assert [update.windows for update in one] != [update.windows for update in other]
    # A longer first stage leaves the last one as it was.
    more = plan_stages(windows, [60, 4], TrainingSection(tokens_per_update=256, seed=0))
    assert [update.windows for update in more[-4:]] == [update.windows for update in one[-4:]]
