"""Layers that are offloaded fetch themselves: the text is that of the resident model, exactly."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.data.windows import Window
from engine.generation.forward import open_forward
from engine.generation.run_models import AdaptedPair, RunModels, scoring, writing, writing_layout
from engine.generation.sampling import Sampling, generate
from engine.models.catalogue import find_model
from engine.models.layers import decoder_layers
from engine.models.loading import _keep_differentiable
from engine.models.placement import Placement
from engine.plan.step_layout import StepLayout
from engine.plan.stream_plan import StreamPlan
from engine.streaming.fetched_layers import fetched_layers
from tests.streaming.models import tiny_model
from tests.streaming.test_adapters import _adapt, _quantise
from tests.streaming.test_four_bit_weights import mapped_from_files
from tests.support.side_streams import SCHEDULES, simulated

CPU = torch.device("cpu")
PROMPT = torch.randint(0, 97, (41,), generator=torch.Generator().manual_seed(2)).tolist()


def model(family="qwen2", *, four_bit=True, adapter=True):
    base = tiny_model(family, dtype=torch.float32)
    base = _quantise(base) if four_bit else base
    _keep_differentiable(base)
    return (_adapt(base) if adapter else base).eval().requires_grad_(False)


def text(of):
    forward = open_forward(of, len(PROMPT) + 12, tile=16, page=32)
    return list(generate(forward, PROMPT, Sampling(max_tokens=12), frozenset()))


def logits(of):
    with torch.no_grad():
        return of(input_ids=torch.tensor([PROMPT]), use_cache=False).logits


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("family", "settings"), [("qwen2", {}), ("llama", {"adapter": False}), ("qwen3", {"four_bit": False})]
)
def test_the_text_is_that_of_the_resident_model(family, settings, schedule):
    expected = model(family, **settings)
    wanted, values = text(expected), logits(expected)
    found = model(family, **settings)
    with simulated(schedule) as streams, fetched_layers(found, CPU):
        assert torch.equal(logits(found), values)
        assert text(found) == wanted
        assert streams[0].to_device.copies > 12 * len(decoder_layers(base_of(found)))
    # The model is whole again, and no layer fetches itself any more.
    copied = streams[0].to_device.copies
    assert torch.equal(logits(found), values)
    assert streams[0].to_device.copies == copied


def base_of(found):
    return found.get_base_model() if hasattr(found, "get_base_model") else found


@pytest.mark.parametrize("schedule", ["by chance", None])
def test_layers_mapped_to_files(schedule, tmp_path):
    expected = model()
    wanted = text(expected)
    found = model()
    mapped_from_files(base_of(found), tmp_path)
    before = [p.data_ptr() for layer in decoder_layers(base_of(found)) for p in layer.parameters()]
    if schedule is None:
        with fetched_layers(found, CPU, mapped=True):
            assert text(found) == wanted
    else:
        with simulated(schedule), fetched_layers(found, CPU, mapped=True):
            assert text(found) == wanted
    assert before == [p.data_ptr() for layer in decoder_layers(base_of(found)) for p in layer.parameters()]


def test_a_layout_that_offloads_nothing_leaves_the_model_alone():
    found = model()
    for layout in (StepLayout(), StepLayout(stream=StreamPlan(weights="nf4"), recompute=False, precision="nf4")):
        with writing(found, layout, CPU) as same:
            assert same is found
            assert not any(layer._forward_pre_hooks for layer in decoder_layers(base_of(found)))
    offloaded = StepLayout(stream=StreamPlan(weights="nf4-streamed"), recompute=False, precision="nf4")
    with writing(found, offloaded, CPU) as same:
        assert same is found
        assert all(layer._forward_pre_hooks for layer in decoder_layers(base_of(found)))


def test_an_interrupted_text_leaves_the_model_whole():
    found = model()
    values = logits(found)

    def interrupted():
        with simulated("by chance"), fetched_layers(found, CPU):
            logits(found)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(logits(found), values)


def run_models(layout, device=CPU, precision="nf4"):
    placement = Placement(device=device, precision=precision, compute="fp32" if device == CPU else "bf16")
    spec = dataclasses.replace(find_model("qwen2.5-coder-7b"), layers=3)
    return RunModels(spec=spec, placement=placement, layout=layout, context=64, result=Path())


def test_text_after_scoring_with_weights_from_the_host(tmp_path):
    """As `engine evaluate` does: the step scores, and then the same model writes."""
    layout = StepLayout(stream=StreamPlan(weights="nf4-streamed", tile=16, key_block=32), precision="nf4")
    expected = text(model())
    found = model()
    with simulated("by chance"):
        step = scoring(found, run_models(layout), notify=lambda _: None, spill=tmp_path)
        pair = AdaptedPair(found, step, CPU)
        for side in (pair.tuned, pair.base, pair.tuned):
            with side() as scored:
                losses = scored.step.token_scores(Window(np.asarray(PROMPT, dtype=np.int64))).losses
                assert np.isfinite(losses).all()
                with scored.writing() as writer:
                    written = text(writer)
    assert written == expected


@pytest.mark.parametrize(("free", "home", "streamed"), [(80, "gpu", False), (5, "host", False), (2, "host", True)])
def test_the_table_of_layers_inputs_leaves_before_the_layers_do(free, home, streamed, monkeypatch):
    """Gemma 4 E2B in 4 bits: 6.6 GB with its table, 1.9 without."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free << 30, 80 << 30))
    found = dataclasses.replace(run_models(StepLayout(), torch.device("cuda")), spec=find_model("gemma-4-e2b"))
    layout = writing_layout(found, lambda _: None)
    assert (layout.table_home, layout.streams_weights) == (home, streamed)


@pytest.mark.parametrize(
    ("free", "ram", "home"), [(80, 64, None), (3, 64, "host"), (3, 1, "disk")], ids=["resident", "host", "disk"]
)
def test_weights_that_do_not_fit_are_offloaded(free, ram, home, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free << 30, 80 << 30))
    memory = SimpleNamespace(available=ram << 30)
    monkeypatch.setattr("engine.generation.run_models.read_memory", lambda: memory)
    said = []
    found = run_models(StepLayout(), torch.device("cuda"))
    found = dataclasses.replace(found, spec=find_model("qwen2.5-coder-7b"))
    layout = writing_layout(found, said.append)
    if home is None:
        assert layout == StepLayout()
        assert not said
        return
    assert layout.weights == "nf4-streamed"
    assert layout.stream is not None
    assert layout.stream.weights_home == home
    assert len(said) == 1
    bf16 = dataclasses.replace(found, placement=dataclasses.replace(found.placement, precision="bf16"))
    assert writing_layout(bf16, said.append).weights == "streamed"
