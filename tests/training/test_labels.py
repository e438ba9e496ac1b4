"""Labels of conversations: losses and gradients of plain transformers with -100, packed, in tiles, and in batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steps.test_whole_step import Quiet, adapted, gradients
from support.tiny import VOCABULARY, ListWindows

from engine.data.windows import Window, joined
from engine.models.fine_tuning import AdapterTuning
from engine.plan.stream_plan import StreamPlan
from engine.steps.held_out_loss import evaluate
from engine.steps.padding import filled
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import WholeSequenceStep, count_targets

CPU = torch.device("cpu")


def masked_windows(seed: int = 0) -> list[Window]:
    """Windows of several documents, of which some tokens are learnt, one of which has no learnt token."""
    draw = np.random.RandomState(seed)
    made = []
    for starts, length in (((0, 21, 60), 97), ((0,), 33), ((0, 2, 3), 40)):
        learnt = draw.rand(length) < 0.3
        if len(starts) == 3 and length == 97:
            learnt[21:60] = False
        made.append(Window(draw.randint(0, VOCABULARY, length).astype(np.int64), starts, learnt))
    return made


def reference(model, windows, scale):
    """Loss and gradients by transformers' own loss, a document at a time, with -100 where nothing is learnt."""
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for window in windows:
        for start, stop in zip(window.starts, (*window.starts[1:], len(window)), strict=True):
            ids = torch.as_tensor(window.ids[start:stop])[None]
            labels = torch.where(torch.as_tensor(window.learnt[start:stop])[None], ids, -100)
            count = int((labels[:, 1:] != -100).sum())
            if not count:
                continue
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
            loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum", ignore_index=-100)
            (loss * scale).backward()
            total += loss.detach()
    found = gradients(model)
    model.zero_grad()
    return float(total), found


def close(found, expected, tolerance):
    for name, wanted in expected.items():
        error = (found[name].double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30)
        assert error < tolerance, (name, float(error))


@pytest.mark.parametrize("plan", [StreamPlan(tile=16, key_block=32, loss_piece=8), StreamPlan(tile=512, key_block=512)])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_streamed_steps_equal_transformers_in_fp64(tmp_path, family, plan):
    model, windows = adapted(family).double(), masked_windows()
    scale = 1 / count_targets(windows)
    loss, expected = reference(model, windows, scale)
    way = StreamedWindows(AdapterTuning(model), plan, device=CPU, spill_directory=tmp_path)
    found = way.run(windows, scale, Quiet())
    assert found.tokens == sum(int(window.learnt[place]) for window in windows for place in inner(window))
    assert found.loss_sum == pytest.approx(loss, rel=1e-10)
    close(gradients(model), expected, 1e-9)
    assert sum(way.loss(window) for window in windows) == pytest.approx(loss, rel=1e-10)


def inner(window):
    return [place for place in range(len(window)) if place not in window.starts]


@pytest.mark.parametrize("micro_batch", [1, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_whole_sequences_equal_transformers(micro_batch, recompute):
    model, windows = adapted("qwen3"), masked_windows()
    scale = 1 / count_targets(windows)
    loss, expected = reference(model, windows, scale)
    step = WholeSequenceStep(model, recompute=recompute, micro_batch=micro_batch, fill_up_to=128)
    found = step.run(windows, scale, Quiet())
    assert found.loss_sum == pytest.approx(loss, rel=1e-6)
    close(gradients(model), expected, 1e-5)
    scored = evaluate(step.loss, ListWindows(windows), max_tokens=1000, progress=lambda *_: None)
    assert scored.tokens == count_targets(windows)
    assert scored.loss == pytest.approx(loss * scale, rel=1e-6)
    for window in windows:
        of_tokens = step.token_scores(window).losses
        assert np.count_nonzero(of_tokens) == window.targets
        assert set(np.flatnonzero(of_tokens) + 1) == set(np.flatnonzero(window.predicted))


def test_a_window_without_labels_would_differ():
    model, [window, *_] = adapted("qwen2"), masked_windows()
    step = WholeSequenceStep(model, recompute=False)
    assert step.loss(window) != pytest.approx(step.loss(Window(window.ids, window.starts)), rel=1e-2)


@given(st.data())
def test_parts_of_a_window_keep_their_labels(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 30))
    starts = (0, *sorted(data.draw(st.sets(st.integers(1, 30), max_size=4))))
    starts = tuple(start for start in starts if start < length)
    learnt = np.array(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)))
    window = Window(np.arange(length), starts, learnt)
    wanted = [place for place in range(length) if learnt[place] and place not in starts]
    assert np.flatnonzero(window.predicted).tolist() == wanted
    assert window.targets == len(wanted)
    first = data.draw(st.integers(0, length - 1))
    last = data.draw(st.integers(first + 1, length))
    part = window.part(first, last)
    assert part.ids[part.predicted].tolist() == [place for place in wanted if first < place < last]
    count = data.draw(st.integers(0, length + 2))
    assert window.first_targets(count).targets == min(count, len(wanted))
    assert filled(window, 40).targets == len(wanted)
    plain = Window(np.arange(5))
    both = joined([window, plain, window])
    assert both.targets == 2 * len(wanted) + 4
