"""Windows filled up to lengths that repeat: few lengths, little filling, and not a bit of it in losses or gradients."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steps.test_whole_step import FAMILIES, Quiet, adapted, gradients
from support.tiny import patterned_windows
from training.test_packing import documents, packed

from engine.data.windows import Window
from engine.models.adapter import trainable
from engine.models.fine_tuning import AdapterTuning
from engine.plan.stream_plan import StreamPlan
from engine.steps.padding import filled, filled_length, labels_of, longest_filled, model_inputs
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import WholeSequenceStep
from engine.streaming.loss import IGNORED

CPU = torch.device("cpu")
MOST = 96
WINDOWS = [*patterned_windows([90, 37, 2, 71]), packed(documents())]


@given(tokens=st.integers(1, 5_000_000), most=st.integers(1, 5_000_000))
def test_neither_shorter_nor_much_longer_nor_beyond_the_longest_window(tokens, most):
    length = filled_length(tokens, most)
    assert tokens <= length <= max(tokens, most)
    assert length - tokens < max(tokens / 16, 1)
    assert filled_length(length, most) == length


@pytest.mark.parametrize("context", [2048, 8192, 32768])
def test_windows_that_fall_a_little_short_have_few_lengths(context):
    lengths = range(context * 9 // 10, context + 1)
    assert len({filled_length(tokens, context) for tokens in lengths}) <= 4


def test_a_context_between_two_lengths_is_not_exceeded():
    assert filled_length(4_990, 5_000) == 5_000
    assert filled_length(5_000, 5_000) == 5_000


def test_what_is_filled_up_is_the_last_documents_end_and_predicts_nothing():
    window = Window(np.arange(5, 42), (0, 30))
    whole = filled(window, MOST)
    assert (len(whole), whole.starts) == (38, (0, 30))
    assert whole.ids[:37].tolist() == window.ids.tolist()
    labels = labels_of(window, 38)
    assert labels[28:].tolist() == [34, IGNORED, *range(36, 42), IGNORED, IGNORED]
    assert filled(window, None) is window
    inputs = model_inputs(window, MOST, CPU)
    assert inputs.positions.tolist() == [*range(30), *range(8)]
    assert model_inputs(Window(window.ids), MOST, CPU).positions is None


@pytest.mark.parametrize(("device", "longest"), [("cuda", 8192), ("cpu", None)])
def test_windows_are_filled_up_where_kernels_plan_for_each_length(device, longest):
    assert longest_filled(8192, torch.device(device)) == longest


def assert_same(way, plain, model, reference):
    found, expected = (step.run(WINDOWS, 0.01, Quiet()) for step in (way, plain))
    assert found.tokens == expected.tokens
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, gradients(reference)[name], rtol=1e-4, atol=1e-7)
    for window in WINDOWS:
        assert way.loss(window) == pytest.approx(plain.loss(window), rel=1e-6)
        scores, expected = way.token_scores(window), plain.token_scores(window)
        assert scores.losses.shape == scores.likeliest.shape == (len(window) - 1,)
        np.testing.assert_allclose(scores.losses, expected.losses, rtol=1e-4, atol=1e-5)
        predicted = window.predicted[1:]
        np.testing.assert_array_equal(scores.likeliest[predicted], expected.likeliest[predicted])


@pytest.mark.parametrize("micro_batch", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_windows_keep_their_losses_and_gradients(family, micro_batch):
    model, reference = adapted(family), adapted(family)
    seen = []

    def see(_module, _args, kwargs):
        if kwargs.get("input_ids") is not None:  # the head is examined without tokens
            seen.append(kwargs["input_ids"].shape[1])

    model.get_base_model().base_model.register_forward_pre_hook(see, with_kwargs=True)
    assert_same(
        WholeSequenceStep(model, recompute=False, micro_batch=micro_batch, fill_up_to=MOST),
        WholeSequenceStep(reference, recompute=False),
        model,
        reference,
    )
    # Three windows together: 129 tokens are filled up to 136, and those of the other two to 176.
    assert set(seen[:2]) == ({92, 38} if micro_batch == 1 else {136, 176})


@pytest.mark.parametrize("tile", [16, 40, 128])
def test_streamed_windows_keep_their_losses_and_gradients(tmp_path, tile):
    model, reference = adapted(), adapted()
    plan = StreamPlan(tile=tile, key_block=128)
    assert_same(
        StreamedWindows(AdapterTuning(model), plan, device=CPU, spill_directory=tmp_path, fill_up_to=MOST),
        StreamedWindows(AdapterTuning(reference), plan, device=CPU, spill_directory=tmp_path),
        model,
        reference,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("streamed", [False, True])
def test_on_a_gpu_in_bf16_too(tmp_path, streamed):
    """As close to the windows as they are as bf16 is to itself."""
    windows = patterned_windows([1000, 1011, 1024])
    found = {}
    for longest in (None, 1024):
        model = adapted().to("cuda", torch.bfloat16)
        for parameter in trainable(model).values():
            parameter.data = parameter.data.float()
        if streamed:
            plan = StreamPlan(tile=512, key_block=1024)
            device = torch.device("cuda")
            way = StreamedWindows(
                AdapterTuning(model), plan, device=device, spill_directory=tmp_path, fill_up_to=longest
            )
        else:
            autocast = functools.partial(torch.autocast, "cuda", torch.bfloat16)
            way = WholeSequenceStep(model, recompute=False, autocast=autocast, fill_up_to=longest)
        found[longest] = way.run(windows, 0.01, Quiet()).loss_sum, gradients(model)
    assert found[1024][0] == pytest.approx(found[None][0], rel=1e-2)
    for name, gradient in found[1024][1].items():
        expected = found[None][1][name]
        assert (gradient - expected).norm() < 5e-2 * expected.norm() + 1e-5
