"""DPO against what must hold of it, and against padded batches of both sides as other trainers compute it, in fp64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steps.test_preference_step import PAIRS, pair
from steps.test_token_weights import step_of, wide_model
from steps.test_whole_step import Quiet, gradients

from engine.data.pairs import Pair
from engine.models.fine_tuning import AdapterTuning
from engine.plan.stream_plan import StreamPlan
from engine.steps.preference_step import PreferenceLoss, PreferenceStep
from engine.steps.reference_losses import ReferenceLosses
from engine.steps.streamed_windows import StreamedWindows

CPU = torch.device("cpu")


def computed(pairs, folder, *, plan=None, **settings):
    """Result, margins, and gradients by name of one update over pairs."""
    model = wide_model()
    reference = ReferenceLosses(folder / f"{len(list(folder.iterdir()))}.jsonl")

    def build(_):
        if plan is None:
            return step_of("tiles of 16", model, folder)
        return StreamedWindows(AdapterTuning(model), plan, device=CPU, spill_directory=folder)

    step = PreferenceStep(
        AdapterTuning(model),
        None,
        build=build,
        smaller=lambda *_: None,
        notify=lambda *_: None,
        preference=PreferenceLoss(**settings),
        reference=reference,
    )
    with model.disable_adapter():
        reference.add(iter(pairs), step, lambda _: None)
    result = step.run(pairs, 1 / len(pairs), Quiet())
    return result.preferences, gradients(model)


def swapped(one):
    border = one.starts[1]
    halves = [np.concatenate([part[border:], part[:border]]) for part in (one.ids, one.learnt)]
    return Pair(halves[0], (0, len(one) - border), halves[1])


@pytest.mark.parametrize("one", PAIRS, ids=lambda one: f"{len(one.chosen)} and {len(one.rejected)} tokens")
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_swapped_sides_turn_the_margin_and_the_gradient_round(one, beta, tmp_path):
    """With m the margin, d(-ln σ(m)) = -σ(-m) dm and d(-ln σ(-m)) = σ(m) dm, so they are as 1 to -exp(m)."""
    found, gradient = computed([one], tmp_path, beta=beta)
    turned, other = computed([swapped(one)], tmp_path, beta=beta)
    assert turned.margin == pytest.approx(-found.margin, rel=1e-10)
    assert turned.loss == pytest.approx(found.loss + found.margin, rel=1e-9)
    assert turned.accuracy == 1 - found.accuracy
    for name, value in gradient.items():
        # Transformers' norms compute in fp32, and so round gradients.
        assert (other[name] + math.exp(found.margin) * value).norm() < 1e-6 * other[name].norm()


def test_equal_sides_pull_nowhere(tmp_path):
    for length in (1, 2, 40):
        side = pair(5, chosen=length, rejected=length)
        ids, learnt = (np.concatenate([part[: side.starts[1]]] * 2) for part in (side.ids, side.learnt))
        found, gradient = computed([Pair(ids, side.starts, learnt)], tmp_path, beta=3.0)
        assert (found.loss, found.margin, found.accuracy) == (pytest.approx(math.log(2), rel=1e-12), 0.0, 0.5)
        assert all(float(value.abs().max()) < 1e-12 for value in gradient.values())


def test_a_small_beta_is_half_the_difference_of_the_cross_entropies(tmp_path):
    _, gradient = computed(PAIRS, tmp_path, beta=1e-7)
    model = wide_model()
    total = torch.zeros((), dtype=torch.float64)
    for one in PAIRS:
        for sign, side in ((1, one.chosen), (-1, one.rejected)):
            ids = torch.as_tensor(side.ids)
            logs = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logs, ids[1:], reduction="none")
            total = total + sign * losses[torch.as_tensor(side.learnt[1:])].sum() / 2 / len(PAIRS)
    total.backward()
    for name, value in gradients(model).items():
        assert (gradient[name] / 1e-7 - value).norm() < 1e-5 * value.norm()


@pytest.mark.parametrize("answers", [(1, 1), (1, 30), (17, 1), (16, 16), (15, 33)])
@pytest.mark.parametrize("prompt", [1, 15, 16, 17])
def test_answers_of_one_token_and_at_the_edges_of_tiles(prompt, answers, tmp_path):
    one = pair(7, prompt, *answers)
    one.learnt[prompt], one.learnt[prompt + answers[0] + prompt] = True, True
    settings = {"beta": 0.4, "label_smoothing": 0.1, "sft_weight": 0.3}
    found, gradient = computed([one], tmp_path, **settings)
    loss, expected = padded([one], **settings)
    assert found.loss == pytest.approx(loss, rel=1e-12)
    for name, value in expected.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-8, atol=1e-13)


def padded(pairs, beta, label_smoothing=0.0, sft_weight=0.0):
    """Loss and gradients as trainers of short texts compute them: all sides as rows of one padded batch."""
    sides = [one.chosen for one in pairs] + [one.rejected for one in pairs]
    width = max(map(len, sides))
    ids = torch.zeros(len(sides), width, dtype=torch.long)
    seen, counted = torch.zeros_like(ids), torch.zeros(len(sides), width, dtype=torch.bool)
    for row, side in enumerate(sides):
        ids[row, : len(side)] = torch.as_tensor(side.ids)
        seen[row, : len(side)] = 1
        counted[row, : len(side)] = torch.as_tensor(side.learnt)
    counted[:, 0] = False

    def sums():
        logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return -(losses * counted[:, 1:]).sum(dim=1)

    model = wide_model()
    with torch.no_grad(), model.disable_adapter():
        reference = sums()
    policy, half = sums(), len(pairs)
    # Losses "sigmoid" and "sft" of TRL's documentation: https://huggingface.co/docs/trl/dpo_trainer.
    ratios = (policy[:half] - policy[half:]) - (reference[:half] - reference[half:])
    losses = -torch.log(torch.sigmoid(beta * ratios)) * (1 - label_smoothing)
    losses = losses - torch.log(1 - torch.sigmoid(beta * ratios)) * label_smoothing
    losses = losses - sft_weight * policy[:half] / counted[:half].sum(dim=1)
    losses.mean().backward()
    return losses.mean().item(), gradients(model)


@pytest.mark.parametrize(
    ("lengths", "tile"),
    [((1100, 700), 256), pytest.param((16_384, 12_000), 2048, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_two_long_sequences_in_tiles_are_a_padded_batch(lengths, tile, tmp_path):
    one = pair(11, 100, *lengths)
    # Untrained answers of a thousand tokens are so unlike each other that a usual beta would leave no gradient.
    settings = {"beta": 1e-3, "label_smoothing": 0.1, "sft_weight": 0.5}
    found, gradient = computed([one], tmp_path, plan=StreamPlan(tile=tile, key_block=2 * tile), **settings)
    loss, expected = padded([one], **settings)
    assert found.loss == pytest.approx(loss, rel=1e-11)
    for name, value in expected.items():
        error = (gradient[name] - value).norm() / value.norm()
        assert error < 1e-8, (name, float(error))


@given(
    st.floats(-700, 700),
    st.floats(1e-3, 100),
    st.floats(0, 0.49),
    st.floats(0, 100),
    st.integers(1, 10**6),
    st.floats(0, 1e7),
)
def test_value_and_factors_are_those_of_a_graph(margin, beta, smoothing, weight, targets, chosen):
    loss = PreferenceLoss(beta=beta, label_smoothing=smoothing, sft_weight=weight)
    sums = torch.tensor([chosen, chosen + margin / beta], dtype=torch.float64, requires_grad=True)
    inner = torch.tensor(margin, dtype=torch.float64) + beta * ((sums[1] - sums[0]) - (sums[1] - sums[0]).detach())
    graph = -(1 - smoothing) * torch.nn.functional.logsigmoid(inner)
    graph = graph - smoothing * torch.nn.functional.logsigmoid(-inner) + weight * sums[0] / targets
    graph.backward()
    assert loss.value(margin, chosen, targets) == pytest.approx(graph.item(), rel=1e-12, abs=1e-300)
    factors = loss.factors(margin, targets)
    assert factors == pytest.approx(sums.grad.tolist(), rel=1e-9, abs=1e-15 * (beta + weight))
    if not weight and not smoothing and abs(margin) < 600:
        assert factors[0] == pytest.approx(beta / (1 + math.exp(margin)), rel=1e-12)
