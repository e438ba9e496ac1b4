"""Stand-ins for kernels without numbers: tensors of the shapes and types that the code in torch gives."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.models.layers import decoder_layers
from engine.models.recurrent_mixers import mixer_names
from engine.verify.observed_bytes import observed_bytes
from engine.verify.observed_kernels import kernels_stand_in
from tests.streaming.test_recurrent import FAMILIES, SHAPE

FAMILY = "qwen3_5_text"


def layers_of(family, dtype=torch.bfloat16):
    config = AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family]})
    with torch.device("meta"):
        return config, decoder_layers(AutoModelForCausalLM.from_config(config, dtype=dtype))


@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_next"])
def test_a_stand_in_gives_what_the_code_gives(family):
    _, layers = layers_of(family)
    mixer = layers[0].get_submodule(mixer_names(layers[0])[0])

    def computed():
        x = torch.empty((1, 70, SHAPE["hidden_size"]), dtype=torch.bfloat16, device="meta", requires_grad=True)
        with torch.device("meta"):
            y = mixer(x)
        return y, torch.autograd.grad(y, [x, *mixer.parameters()], torch.empty_like(y), allow_unused=True)

    own, own_gradients = computed()
    forward = type(mixer).forward
    with kernels_stand_in(layers[0]):
        y, gradients = computed()
    assert (y.shape, y.dtype) == (own.shape, own.dtype)
    assert gradients[0].shape == own_gradients[0].shape
    # Weights of norms and of the convolution have no gradient here; those of the products before them do.
    assert sum(gradient is not None for gradient in gradients) >= 4
    assert type(mixer).forward is forward
    assert not any("forward" in vars(part) for part in layers[0].modules())


def test_kernels_hold_less_than_the_code_in_torch():
    config, _ = layers_of(FAMILY)
    _, counted = observed_bytes(config, ["down_proj", "in_proj_qkv", "out_proj"])
    plain, wide, served = counted
    assert (plain.element, wide.element, served.element) == (2, 4, 2)
    assert (plain.kernels, wide.kernels, served.kernels) == (False, False, True)
    assert served.saved < 0.7 * plain.saved
    assert served.backward < 0.7 * plain.backward


def test_a_model_without_recurrent_layers_is_counted_as_before():
    config = AutoConfig.for_model("qwen3", **SHAPE)
    _, counted = observed_bytes(config, ["down_proj"])
    assert [each.kernels for each in counted] == [False, False]


def test_a_model_of_which_no_layer_attends_has_shapes():
    """Its configuration names heads, which nothing uses."""
    from engine.models.spec import as_spec
    from engine.verify.observed_shape import observed_shape

    config = AutoConfig.for_model(
        "granitemoehybrid", **{**SHAPE, **FAMILIES["granitemoehybrid"], "layer_types": ["mamba"] * 4}
    )
    spec = as_spec(observed_shape(config, adapts_mlp=False), name="", family="granitemoehybrid")
    assert (spec.attending_layers, spec.heads, spec.kv_heads) == (0, 4, 2)
    assert spec.recurrent is not None
    assert spec.recurrent.layers == spec.recurrent.without_attention == 4
