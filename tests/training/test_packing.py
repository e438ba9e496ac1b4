"""Packed windows: the losses and gradients of the documents alone, whole and streamed; a border that leaks shows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from steps.test_whole_step import FAMILIES, Quiet, adapted, gradients
from support.tiny import ListWindows, patterned_windows, tiny_model
from torch.nn import functional

from engine.attention.cpu import CpuFlash
from engine.attention.packed import AllDocuments
from engine.config import LoraSection
from engine.data.windows import Window
from engine.models.adapter import attach_adapter
from engine.models.fine_tuning import AdapterTuning
from engine.plan.stream_plan import StreamPlan
from engine.steps.held_out_loss import evaluate
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import WholeSequenceStep, count_targets

CPU = torch.device("cpu")
LENGTHS = (40, 2, 17, 1, 33, 5)


def documents(lengths=LENGTHS, seed=0):
    return list(patterned_windows(lengths, seed))


def packed(parts):
    starts = itertools.accumulate((len(part) for part in parts[:-1]), initial=0)
    return Window(np.concatenate([part.ids for part in parts]), tuple(starts))


def alone(parts):
    return [part for part in parts if part.targets]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_sequence_equals_the_documents_alone(family, recompute):
    model, parts = adapted(family), documents()
    step = WholeSequenceStep(model, recompute=recompute)
    expected = step.run(alone(parts), 0.01, Quiet())
    separate = gradients(model)
    model.zero_grad()
    found = step.run([packed(parts)], 0.01, Quiet())
    assert found.tokens == expected.tokens == count_targets(parts) == sum(LENGTHS) - len(LENGTHS)
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, separate[name], rtol=1e-4, atol=1e-7)


def test_streamed_equals_the_documents_alone(tmp_path):
    whole, tiled, parts = adapted(), adapted(), documents()
    expected = WholeSequenceStep(whole, recompute=False).run(alone(parts), 0.01, Quiet())
    way = StreamedWindows(AdapterTuning(tiled), StreamPlan(tile=16, key_block=32), device=CPU, spill_directory=tmp_path)
    found = way.run([packed(parts)], 0.01, Quiet())
    assert found.tokens == expected.tokens
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-6)
    for name, gradient in gradients(tiled).items():
        torch.testing.assert_close(gradient, gradients(whole)[name], rtol=1e-4, atol=1e-6)


def test_sliding_windows_stay_within_documents():
    from support.tiny import SHAPE
    from transformers import AutoModelForCausalLM, MistralConfig

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(MistralConfig(**SHAPE, sliding_window=8), attn_implementation="sdpa")
    model = attach_adapter(base.requires_grad_(False), LoraSection(rank=4), seed=1)
    step, parts = WholeSequenceStep(model, recompute=False), documents()
    expected = [step.loss(part) for part in alone(parts)]
    assert step.loss(packed(parts)) == pytest.approx(sum(expected), rel=1e-6)


def test_without_borders_the_loss_differs():
    """The comparison above would notice a document that saw the one before it."""
    step, parts = WholeSequenceStep(adapted(), recompute=False), documents()
    window = packed(parts)
    assert step.loss(Window(window.ids)) != pytest.approx(step.loss(window), rel=1e-3)


def test_the_models_own_attention_is_back_afterwards():
    model = adapted()
    config = model.get_base_model().config
    WholeSequenceStep(model, recompute=True).run([packed(documents())], 1.0, Quiet())
    assert config._attn_implementation == "sdpa"


def test_flash_attention_finds_documents_by_their_positions():
    """Nothing takes the place of kernels that read positions: those begin anew with each document."""
    model = attach_adapter(tiny_model(), LoraSection(rank=1), seed=0)
    seen = {}
    decoder = model.get_base_model().model
    decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    WholeSequenceStep(model, recompute=False).loss(packed(documents((3, 4))))
    assert seen["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert seen["use_cache"] is False


def test_held_out_loss_is_that_of_the_documents_alone():
    parts = documents((40, 17, 33, 5, 21, 60))
    step = WholeSequenceStep(adapted(), recompute=False)

    def score(windows, limit=10_000):
        return evaluate(step.loss, windows, max_tokens=limit, progress=lambda done, total: None)

    separate = score(ListWindows(parts))
    together = score(ListWindows([packed(parts[:3]), packed(parts[3:])]))
    assert together.tokens == separate.tokens
    assert together.loss == pytest.approx(separate.loss, rel=1e-6)
    for limit in (1, 39, 40, 54, 90):
        assert score(ListWindows([packed(parts)]), limit).tokens == limit


@pytest.mark.gpu
def test_on_a_gpu_too():
    model, parts = adapted().to("cuda"), documents()
    step = WholeSequenceStep(model, recompute=True)
    expected = step.run(alone(parts), 0.01, Quiet())
    separate = gradients(model)
    model.zero_grad()
    found = step.run([packed(parts)], 0.01, Quiet())
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-4)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, separate[name], rtol=1e-2, atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_in_bf16_documents_share_one_kernel_call(monkeypatch):
    """As close to the documents alone as bf16 is to itself, and no kernel is called a document at a time."""
    model, parts = adapted().to("cuda"), documents()
    step = WholeSequenceStep(model, recompute=True, autocast=lambda: torch.autocast("cuda", dtype=torch.bfloat16))
    expected = step.run(alone(parts), 0.01, Quiet())
    separate = gradients(model)
    model.zero_grad()
    monkeypatch.setattr(functional, "scaled_dot_product_attention", None)
    found = step.run([packed(parts)], 0.01, Quiet())
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-2)
    for name, gradient in gradients(model).items():
        assert (gradient - separate[name]).norm() < 5e-2 * separate[name].norm() + 1e-5


def test_all_documents_in_one_call_have_the_gradients_of_each_alone():
    """What a GPU's kernel is given, with a kernel for the CPU."""
    generator = torch.Generator().manual_seed(0)
    borders = [0, 3, 20, 21, 50]
    shapes = ((1, 6, 50, 8), (1, 2, 50, 8), (1, 2, 50, 8))
    leaves = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    weights = torch.randn(shapes[0], generator=generator)
    found = AllDocuments.apply(*leaves, borders, 0.3, CpuFlash())
    gradients_found = torch.autograd.grad((found * weights).sum(), leaves)
    parts = [
        functional.scaled_dot_product_attention(
            *(leaf[:, :, start:stop] for leaf in leaves), is_causal=True, scale=0.3, enable_gqa=True
        )
        for start, stop in itertools.pairwise(borders)
    ]
    expected = torch.cat(parts, dim=2)
    torch.testing.assert_close(found, expected)
    gradients_expected = torch.autograd.grad((expected * weights).sum(), leaves)
    for one, other in zip(gradients_found, gradients_expected, strict=True):
        torch.testing.assert_close(one, other)
