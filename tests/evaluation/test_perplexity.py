"""Held-out loss: the right mean, the right tokens, the same at every call."""

from __future__ import annotations

import math

import pytest
import torch
from support.tiny import ListWindows, patterned_windows, tiny_model

from engine.config import LoraSection
from engine.models.adapter import attach_adapter, trainable
from engine.steps.held_out_loss import evaluate, perplexity
from engine.steps.whole_step import WholeSequenceStep

WINDOWS = patterned_windows([50, 50, 50, 50, 7])


def model_with_dropout():
    model = attach_adapter(tiny_model(), LoraSection(rank=4, dropout=0.5), seed=0)
    torch.manual_seed(1)
    for parameter in trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def whole(model):
    return WholeSequenceStep(model, recompute=False).loss


def quiet(done, total):
    pass


def test_every_token_weighs_the_same():
    model = model_with_dropout()
    found = evaluate(whole(model), WINDOWS, max_tokens=10_000, progress=quiet)
    model.eval()
    each = []
    for index in range(len(WINDOWS)):
        ids = torch.as_tensor(WINDOWS[index].ids)
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        each.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none"))
    expected = torch.cat(each)
    assert found.tokens == len(expected) == 4 * 49 + 6
    assert found.loss == pytest.approx(expected.mean().item(), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(expected.mean().item()), rel=1e-4)


def test_repeats_exactly_draws_no_random_number_and_keeps_the_mode():
    model = model_with_dropout().train()
    state = torch.get_rng_state()
    one, two = (evaluate(whole(model), WINDOWS, max_tokens=100, progress=quiet) for _ in range(2))
    assert one.loss == two.loss
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


@pytest.mark.parametrize("limit", [1, 49, 60, 98, 150])
def test_scores_no_more_than_it_may(limit):
    assert evaluate(whole(model_with_dropout()), WINDOWS, max_tokens=limit, progress=quiet).tokens == limit


def test_takes_windows_from_everywhere():
    taken = []

    class Watched(ListWindows):
        def __getitem__(self, index):
            taken.append(index)
            return super().__getitem__(index)

    windows = Watched([WINDOWS[0]] * 10)
    taken.clear()
    evaluate(whole(model_with_dropout()), windows, max_tokens=98, progress=quiet)
    assert {0, 5} <= set(taken[-2:])


def test_the_base_model_is_scored_with_the_adapter_off():
    model = model_with_dropout()
    with model.disable_adapter():
        off = evaluate(whole(model), WINDOWS, max_tokens=500, progress=quiet)
    bare = attach_adapter(tiny_model(), LoraSection(rank=4), seed=0)
    assert off.loss == pytest.approx(evaluate(whole(bare), WINDOWS, max_tokens=500, progress=quiet).loss, rel=1e-6)
    assert off.loss != evaluate(whole(model), WINDOWS, max_tokens=500, progress=quiet).loss


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 1.0), (math.nan, math.inf), (1e6, math.inf)])
def test_perplexity_never_raises(loss, expected):
    assert perplexity(loss) == expected
