"""The head is what a model does after its decoder: its last linear layer alone, or all of its own forward."""

from __future__ import annotations

import pytest
import torch
from support.families import VARIANTS, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM

from engine.models.config_reader import spec_from_config
from engine.models.lm_head import split_head, summed_cross_entropy
from engine.verify.observed_shape import observed_shape

SIZES = {
    "vocab_size": 53,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
}
CHANGED = [
    ("granite", {"logits_scaling": 3.0}),
    ("cohere", {"logit_scale": 0.25}),
    ("gemma2", {"final_logit_softcapping": 0.5}),
]


def _model(family, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **changes}))


def _refuse(*_, **__):
    raise ValueError("Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi", "gemma3_text", "mixtral", "starcoder2"])
def test_the_last_linear_layer_alone_where_it_makes_the_logits(family, tied):
    """No layer runs to see it: weights may wait on the host while fused kernels, which need a GPU, are in place."""
    model = _model(family, tie_word_embeddings=tied)
    ids = torch.arange(6)[None]
    before = model(input_ids=ids).logits
    for layer in model.get_decoder().layers:
        layer.forward = _refuse
    assert split_head(model)[1] is model.get_output_embeddings()
    for layer in model.get_decoder().layers:
        del layer.forward
    assert torch.equal(model(input_ids=ids).logits, before)


def test_no_weight_is_needed_to_see_it():
    with torch.device("meta"):
        model = _model("llama")
    assert split_head(model)[1] is model.get_output_embeddings()


@pytest.mark.parametrize("family", ["llama", "granite", "gemma2"])
def test_a_weight_may_lie_on_other_ranks(family):
    """ZeRO-3 leaves an empty tensor in each weight's place until a layer runs."""
    model = _model(family)
    expected = type(split_head(model)[1])
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    head = split_head(model)[1]
    assert type(head) is expected
    assert head.out_features == 53


@pytest.mark.parametrize(("family", "changes"), CHANGED)
def test_logits_that_change_after_the_last_layer_are_the_models_own(family, changes):
    model = _model(family, **{"initializer_range": 0.5, **changes})
    ids = torch.randint(0, 53, (1, 12), generator=torch.Generator().manual_seed(0))
    decoder, head = split_head(model)
    assert head is not model.get_output_embeddings()
    assert head.out_features == 53
    hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
    expected = model(input_ids=ids, use_cache=False).logits[0]
    assert torch.equal(head(hidden), expected)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits[0], expected), "the model is not as it was"
    loss = torch.nn.functional.cross_entropy(expected, ids[0], reduction="sum")
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    found = torch.autograd.grad(summed_cross_entropy(hidden, head, ids[0], piece=5), list(model.parameters()))
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_a_head_has_the_weights_between_the_decoder_and_the_last_layer():
    """Whoever asks whether a head is trained, as the streamed loss does, sees a layer before the last one."""
    model = _model("modernbert-decoder", pad_token_id=0, layer_types=None)
    decoder, head = split_head(model)
    assert not {id(p) for p in decoder.parameters()} & {id(p) for p in (model.lm_head.dense.weight,)}
    assert {id(p) for part in (decoder, head) for p in part.parameters()} == {id(p) for p in model.parameters()}
    model.requires_grad_(False)
    model.lm_head.dense.requires_grad_(True)
    assert any(p.requires_grad for p in head.parameters())


@torch.no_grad()
def _logits_change_after_the_last_layer(model):
    model.eval()
    ids = torch.randint(0, model.config.vocab_size, (1, 12), generator=torch.Generator().manual_seed(0))
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    return not torch.equal(model(input_ids=ids, use_cache=False).logits, model.get_output_embeddings()(hidden))


@pytest.mark.parametrize(("family", "number"), VARIANTS)
def test_the_plan_knows_which_listed_family_changes_its_logits(family, number):
    config = tiny_config(family, number)
    changed = _logits_change_after_the_last_layer(AutoModelForCausalLM.from_config(config))
    assert spec_from_config(config.to_dict(), name="").whole_head is changed
    if family in ("gemma2", "granite") and number == 0:  # as in most files of these families: by the default
        written = {key: value for key, value in config.to_dict().items() if key != "final_logit_softcapping"}
        assert spec_from_config(written, name="").whole_head is (family == "gemma2" or changed)


@pytest.mark.parametrize(
    ("family", "changes"), [*CHANGED, *((family, {}) for family in ("cohere", "qwen3", "gemma3_text"))]
)
def test_the_plan_sees_it_in_a_family_that_is_not_listed(family, changes):
    model = _model(family, **changes)
    assert observed_shape(model.config, adapts_mlp=True)["whole_head"] is _logits_change_after_the_last_layer(model)
