"""DPO in two streamed passes equals DPO in one graph over whole sequences, in plain transformers and PEFT, fp64."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from steps.test_token_weights import step_of, wide_model
from steps.test_whole_step import Quiet, gradients
from support.mounts import needs_mount, run_mounted
from support.tiny import VOCABULARY

from engine.data.pairs import Pair
from engine.models.fine_tuning import AdapterTuning
from engine.plan.stream_plan import StreamPlan
from engine.protocol.events import LogLine, RecoveryTaken
from engine.steps.partial_checkpoint import PartialCheckpointStore
from engine.steps.preference_step import PreferenceLoss, PreferenceStep
from engine.steps.reference_losses import ReferenceLosses
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import StepAbandonedError

CPU = torch.device("cpu")

SETTINGS = {
    "plain": {"beta": 0.3},
    "smoothed, with cross-entropy": {"beta": 0.7, "label_smoothing": 0.2, "sft_weight": 0.5},
}


def pair(seed, prompt=9, chosen=40, rejected=57):
    """A common prompt, and two answers that are predicted in part."""
    random = np.random.RandomState(seed)
    asked = random.randint(0, VOCABULARY, prompt)
    ids = np.concatenate([asked, random.randint(0, VOCABULARY, chosen), asked, random.randint(0, VOCABULARY, rejected)])
    learnt = random.rand(len(ids)) < 0.7
    for start in (0, prompt + chosen):
        learnt[start : start + prompt] = False
    return Pair(ids, (0, prompt + chosen), learnt)


PAIRS = [pair(1), pair(2, chosen=3, rejected=20), pair(3, prompt=30, chosen=33, rejected=2)]


def log_probability(model, side):
    """Of the predicted tokens of a side, given those before them."""
    ids = torch.as_tensor(side.ids)
    logs = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(dim=-1)
    taken = logs[:-1].gather(1, ids[1:, None])[:, 0]
    return taken[torch.as_tensor(side.learnt[1:])]


def dpo_in_one_graph(model, pairs, beta, label_smoothing=0.0, sft_weight=0.0):
    """Mean loss of the pairs, and their margins, as the papers write them (arXiv 2305.18290, equation 7)."""
    losses, margins = [], []
    for one in pairs:
        with torch.no_grad(), model.disable_adapter():
            reference = [log_probability(model, side).sum() for side in (one.chosen, one.rejected)]
        chosen, rejected = log_probability(model, one.chosen), log_probability(model, one.rejected)
        margin = beta * ((chosen.sum() - reference[0]) - (rejected.sum() - reference[1]))
        positive, negative = torch.nn.functional.logsigmoid(margin), torch.nn.functional.logsigmoid(-margin)
        losses.append(-(1 - label_smoothing) * positive - label_smoothing * negative - sft_weight * chosen.mean())
        margins.append(margin.item())
    return torch.stack(losses).mean(), margins


def preference_step(kind, model, folder, settings):
    reference = ReferenceLosses(folder / "reference.jsonl")
    step = PreferenceStep(
        AdapterTuning(model),
        None,
        build=lambda _: step_of(kind, model, folder),
        smaller=lambda *_: None,
        notify=lambda *_: None,
        preference=PreferenceLoss(**settings),
        reference=reference,
    )
    with model.disable_adapter():
        reference.add(iter(PAIRS), step, lambda _: None)
    return step, reference


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", ["whole", "tiles of 16", "one tile"])
def test_loss_and_gradient_are_those_of_one_graph(kind, settings, tmp_path):
    expected = wide_model()
    loss, margins = dpo_in_one_graph(expected, PAIRS, **settings)
    loss.backward()
    assert min(margins) < 0 < max(margins)  # both signs of the margin occur
    model = wide_model()
    step, _ = preference_step(kind, model, tmp_path, settings)
    found = step.run(PAIRS, 1 / len(PAIRS), Quiet())
    assert found.loss_sum / len(PAIRS) == pytest.approx(loss.item(), rel=1e-12)
    assert found.preferences.loss == pytest.approx(loss.item(), rel=1e-12)
    assert found.preferences.margin == pytest.approx(sum(margins) / len(margins), rel=1e-10)
    assert found.preferences.accuracy == pytest.approx(sum(m > 0 for m in margins) / len(margins))
    for name, gradient in gradients(expected).items():
        torch.testing.assert_close(gradients(model)[name], gradient, rtol=1e-8, atol=1e-13)


def test_before_any_update_the_margin_is_zero(tmp_path):
    model = wide_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    step, _ = preference_step("tiles of 16", model, tmp_path, {"beta": 0.1})
    found = step.run(PAIRS, 1.0, Quiet()).preferences
    assert (found.margin, found.accuracy) == (0.0, 0.5)
    assert found.loss == pytest.approx(np.log(2), rel=1e-12)


def test_margins_rise_and_a_stop_leaves_the_reference(tmp_path):
    model = wide_model()
    step, reference = preference_step("tiles of 16", model, tmp_path, {"beta": 0.5})
    before = dict(reference)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    figures = []
    for _ in range(6):
        optimizer.zero_grad()
        figures.append(step.run(PAIRS, 1 / len(PAIRS), Quiet()).preferences)
        optimizer.step()
    assert figures[-1].margin > figures[0].margin + 1
    assert figures[-1].loss < figures[0].loss
    assert figures[-1].accuracy == 1.0
    with pytest.raises(StepAbandonedError):
        step.run(PAIRS, 1.0, Quiet(patience=0))
    assert dict(reference) == before


def test_the_reference_is_kept_and_a_torn_line_is_scored_again(tmp_path):
    class Counting:
        def __init__(self):
            self.asked = 0

        def loss(self, window):
            self.asked += 1
            return float(window.ids.sum())

    path, step = tmp_path / "reference.jsonl", Counting()
    first = ReferenceLosses(path)
    assert first.add(iter(PAIRS), step, lambda _: None) == 3
    assert step.asked == 6
    again = ReferenceLosses(path)
    assert dict(again) == dict(first)
    assert again.add(iter(PAIRS), step, lambda _: None) == 0
    path.write_bytes(path.read_bytes()[:-9])
    torn = ReferenceLosses(path)
    assert len(torn) == 2
    assert torn.add(iter(PAIRS), step, lambda _: None) == 1
    assert dict(ReferenceLosses(path)) == dict(first)
    assert all(len(json.loads(line)) == 3 for line in path.read_text().splitlines() if line.endswith("]"))


FULL_DISK = """
import errno, sys
from pathlib import Path
from steps.test_preference_step import PAIRS
from engine.steps.reference_losses import ReferenceLosses

class Sums:
    def loss(self, window):
        return float(window.ids.sum())

folder = Path(sys.argv[1])
path, ballast = folder / "reference.jsonl", folder / "ballast"
path.touch()
with ballast.open("wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC
reference = ReferenceLosses(path)
try:
    reference.add(iter(PAIRS), Sums(), lambda _: None)
except OSError as error:
    assert error.errno == errno.ENOSPC
else:
    raise SystemExit("the disk was not full")
ballast.unlink()
reference.add(iter(PAIRS), Sums(), lambda _: None)
print(len(PAIRS), len(reference), dict(ReferenceLosses(path)) == dict(reference))
"""


@needs_mount
def test_what_a_full_disk_did_not_take_is_scored_again(tmp_path):
    assert run_mounted(FULL_DISK, tmp_path, "64k").split() == ["3", "3", "True"]


def test_pairs_differ_by_their_border_and_their_answers():
    one = PAIRS[0]
    moved = Pair(one.ids, (0, one.starts[1] + 1), one.learnt)
    other = copy.copy(one.learnt)
    other[-1] = not other[-1]
    assert len({one.digest, moved.digest, Pair(one.ids, one.starts, other).digest}) == 3
    assert Pair(one.ids.copy(), one.starts, one.learnt.copy()).digest == one.digest
    assert (one.divisor, len(one.chosen), len(one.rejected)) == (1.0, 49, 66)


@pytest.mark.parametrize("boundary", [1, 3, 5])
def test_killed_within_an_update_and_resumed(tmp_path, boundary):
    """Two pairs are four sides of two layers. The sides weigh as before, so the saved state is of the same step."""

    class Killed(BaseException):
        pass

    def start(folder, kills_at):
        model, saved = wide_model(), []
        store = PartialCheckpointStore(folder / "in-step", 0.0, saved.append)
        write = store.at_boundary

        def at_boundary(*arguments, **options):
            write(*arguments, **options)
            if sum(isinstance(event, LogLine) for event in saved) == kills_at:
                raise Killed

        store.at_boundary = at_boundary
        (folder / "spill").mkdir(parents=True, exist_ok=True)
        step = PreferenceStep(
            AdapterTuning(model),
            None,
            build=lambda _: StreamedWindows(
                AdapterTuning(model), StreamPlan(tile=16, key_block=32), device=CPU, spill_directory=folder, store=store
            ),
            smaller=lambda *_: None,
            notify=lambda *_: None,
            preference=PreferenceLoss(beta=0.3),
            reference={one.digest: (100.0, 120.0) for one in PAIRS},
        )
        return model, step, saved

    whole, step, _ = start(tmp_path / "whole", 0)
    expected = step.run(PAIRS[:2], 0.5, Quiet())
    _, step, _ = start(tmp_path / "cut", boundary)
    with pytest.raises(Killed):
        step.run(PAIRS[:2], 0.5, Quiet())
    model, step, events = start(tmp_path / "cut", 0)
    assert step.run(PAIRS[:2], 0.5, Quiet()) == expected
    assert [event for event in events if isinstance(event, RecoveryTaken)]
    for name, gradient in gradients(whole).items():
        assert torch.equal(gradients(model)[name], gradient), name
