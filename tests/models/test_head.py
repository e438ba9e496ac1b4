"""The head is checked without the layers: fused kernels refuse the CPU, on which streamed weights wait."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import EliteError
from engine.models.lm_head import check_head

SIZES = {
    "vocab_size": 53,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
}


def _model(family, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **changes}))


def _refuse(*_, **__):
    raise ValueError("Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi", "gemma3_text", "mixtral", "starcoder2"])
def test_no_layer_runs_on_the_host(family, tied):
    model = _model(family, tie_word_embeddings=tied)
    ids = torch.arange(6)[None]
    before = model(input_ids=ids).logits
    for layer in model.get_decoder().layers:
        layer.forward = _refuse
    check_head(model)
    for layer in model.get_decoder().layers:
        del layer.forward
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("granite", {"logits_scaling": 3.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("gemma2", {"final_logit_softcapping": 0.5}),
    ],
)
def test_logits_that_change_after_the_head_are_refused(family, changes):
    model = _model(family, **{"initializer_range": 0.5, **changes})
    with pytest.raises(EliteError, match="logits after the head"):
        check_head(model)
