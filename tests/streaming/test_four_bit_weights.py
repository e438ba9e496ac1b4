"""4-bit weights on the host: codes and scales are copied, and the step is the resident one's bit by bit."""

from __future__ import annotations

import copy

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors import safe_open
from safetensors.torch import save_file

from engine.models.layers import decoder_layers
from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StreamedStep
from engine.streaming.weights import _parts as parts_of
from engine.streaming.weights import travels
from tests.streaming.models import tiny_model
from tests.streaming.reference import streamed, whole_sequence, worst_error
from tests.streaming.test_adapters import _adapt, _quantise
from tests.support.side_streams import SCHEDULES, simulated

CPU = torch.device("cpu")
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_attention_heads": 4}
TOKENS = torch.randint(0, 97, (93,), generator=torch.Generator().manual_seed(1))


def model(family="qwen2", dtype=torch.float32, settings=(), **shape):
    return _adapt(_quantise(tiny_model(family, dtype=dtype, **shape)), **dict(settings))


def plan(weights, **options):
    return StreamPlan(**{"tile": 19, "key_block": 31, "loss_piece": 20, **options, "weights": weights})


def steps(base, weights, folder, **options):
    """Losses and gradients of two steps, with an update of the adapter between them."""
    found = []
    with StreamedStep(base, plan(weights, **options), device=CPU, spill_directory=folder) as step:
        for _ in range(2):
            loss, gradients = streamed(step, TOKENS, document_starts=(0, 40))
            found.append((loss, {name: gradient.clone() for name, gradient in gradients.items()}))
            with torch.no_grad():
                for name, parameter in base.named_parameters():
                    if name in gradients:
                        parameter -= 0.1 * gradients[name]
    return found


def assert_same(found, expected):
    for (loss, gradients), (expected_loss, expected_gradients) in zip(found, expected, strict=True):
        assert loss == expected_loss
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in gradients.items():
            assert torch.equal(gradient, expected_gradients[name]), name


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({}, {}),
        (WIDE, {"stash": False, "checkpoint_every": 2}),  # scales that the resident step dequantises together
        ({}, {"kv_home": "host", "hidden_home": "disk", "checkpoint_every": 3}),
        (WIDE, {"tile": 93, "key_block": 93}),
    ],
)
def test_bit_by_bit_the_resident_step(shape, options, tmp_path):
    with simulated("by chance") as streams:
        expected = steps(model(**shape), "nf4", tmp_path, **options)
    (resident,) = (stream.to_device.copies for stream in streams)
    for schedule in SCHEDULES:
        with simulated(schedule) as streams:
            found = steps(model(**shape), "nf4-streamed", tmp_path, **options)
        (offloaded,) = (stream.to_device.copies for stream in streams)
        assert offloaded > resident, schedule
        assert_same(found, expected)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"exclude_modules": ["q_proj", "down_proj"]}])
def test_adapters_that_leave_some_layers_to_others(settings, tmp_path):
    """DoRA dequantises by itself, and bare 4-bit layers have no adapter."""
    expected = steps(model(settings=settings.items()), "nf4", tmp_path)
    with simulated("by chance"):
        found = steps(model(settings=settings.items()), "nf4-streamed", tmp_path)
    assert_same(found, expected)


def test_gradient_of_the_whole_sequence():
    base = model()
    expected_loss, expected = whole_sequence(base, TOKENS)
    with simulated("by chance"), StreamedStep(base, plan("nf4-streamed"), device=CPU) as step:
        loss, gradients = streamed(step, TOKENS)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert worst_error(gradients, expected)[0] < 1e-5


def test_weights_are_unchanged_after_the_step(tmp_path):
    """A run that falls back passes the model from one step to the next, and each finds the same weights."""
    base = model(**WIDE)
    layers = [module for layer in decoder_layers(base) for module in layer.modules()]
    linears = [module for module in layers if hasattr(getattr(module, "weight", None), "quant_state")]
    assert len(linears) > 7
    before = [dequantize_4bit(m.weight.data.clone(), copy.deepcopy(m.weight.quant_state)) for m in linears]
    for weights in ("nf4", "nf4-streamed", "nf4-streamed", "nf4"):
        with simulated("by chance"):
            steps(base, weights, tmp_path)
        for module, expected in zip(linears, before, strict=True):
            assert torch.equal(dequantize_4bit(module.weight.data, module.weight.quant_state), expected)


@pytest.mark.parametrize("nested", [True, False])
def test_nothing_of_an_entered_layer_is_left_on_the_host(nested):
    """On a CPU host memory would serve as well: it is overwritten while a layer is entered."""
    base = model(**WIDE)
    layers = decoder_layers(base)
    linears = [[m for m in layer.modules() if hasattr(getattr(m, "weight", None), "quant_state")] for layer in layers]
    for module in (module for own in linears for module in own):
        if not nested:  # scales of a model that was stored without double quantisation
            codes, state = quantize_4bit(torch.randn(module.out_features, module.in_features), quant_type="nf4")
            module.weight.data, module.weight.quant_state = codes, state
    before = [[dequantize_4bit(m.weight.data, m.weight.quant_state).clone() for m in own] for own in linears]
    norms = [layer.input_layernorm.weight.clone() for layer in layers]
    with simulated("by chance"), StreamedStep(base, plan("nf4-streamed"), device=CPU) as step:
        weights = step.streamed.weights
        for number in (0, 1, 2, 1, 0):
            step.streamed.enter(number)
            weights.prefetch(number + 1)
            home = weights._packed._home.buffers[number]
            kept = home.clone()
            home.fill_(0xFF)
            for module, expected in zip(linears[number], before[number], strict=True):
                assert torch.equal(dequantize_4bit(module.weight.data, module.weight.quant_state), expected)
            assert torch.equal(layers[number].input_layernorm.weight, norms[number])
            home.copy_(kept)


def test_the_device_holds_two_packed_layers():
    """The buffers are a quarter of those of the same layers in 16 bits; biases and norms are not packed."""
    shape = {**WIDE, "hidden_size": 512, "intermediate_size": 2048}
    sizes = {}
    for weights in ("streamed", "nf4-streamed"):
        base = tiny_model("llama", dtype=torch.bfloat16, **shape)
        base = _adapt(_quantise(base) if weights == "nf4-streamed" else base)
        with StreamedStep(base, plan(weights), device=CPU) as step:
            sizes[weights] = step.streamed.weights.device_bytes
    assert sizes["nf4-streamed"] < 0.28 * sizes["streamed"]


MAPPED = {"weights_home": "disk"}


def mapped_from_files(base, folder):
    """Points the weights of the decoder layers to files, as the library does that loads a 4-bit folder on the host."""
    for number, layer in enumerate(decoder_layers(base)):
        parts = [part for p in layer.parameters() if travels(p) for part in parts_of(p)]
        save_file({str(i): part.tensor.clone().reshape(-1) for i, part in enumerate(parts)}, folder / f"{number}.st")
        with safe_open(folder / f"{number}.st", "pt") as file:
            for i, part in enumerate(parts):
                part.point_to(file.get_tensor(str(i)).view(part.tensor.shape))
    return base


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("shape", "options"), [({}, {}), (WIDE, {"stash": False, "checkpoint_every": 2})])
def test_weights_from_files_give_the_resident_step(schedule, shape, options, tmp_path):
    with simulated(schedule):
        expected = steps(model(**shape), "nf4", tmp_path, **options)
        found = steps(mapped_from_files(model(**shape), tmp_path), "nf4-streamed", tmp_path, **MAPPED, **options)
    assert_same(found, expected)


def test_weights_from_files_stay_there(tmp_path):
    """Between the uses of a layer the model holds the mapped tensors, and nothing of their size is allocated."""
    base = mapped_from_files(model(**WIDE), tmp_path)
    before = [p.data_ptr() for layer in decoder_layers(base) for p in layer.parameters() if travels(p)]
    with StreamedStep(base, plan("nf4-streamed", **MAPPED), device=CPU, spill_directory=tmp_path) as step:
        streamed(step, TOKENS)
    assert before == [p.data_ptr() for layer in decoder_layers(base) for p in layer.parameters() if travels(p)]


def test_packed_layers_are_not_packed_again(tmp_path):
    """A second step on the same model finds the pinned buffers of the first."""
    base = model(**WIDE)
    steps(base, "nf4-streamed", tmp_path)
    where = [p.data_ptr() for layer in decoder_layers(base) for p in layer.parameters() if travels(p)]
    kept = steps(base, "nf4-streamed", tmp_path)
    assert where == [p.data_ptr() for layer in decoder_layers(base) for p in layer.parameters() if travels(p)]
    expected = model(**WIDE)
    steps(expected, "nf4", tmp_path)
    assert_same(kept, steps(expected, "nf4", tmp_path))
