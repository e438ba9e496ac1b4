"""Weights of a model's folder: those that do not match its configuration are refused by name."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from support.model_folders import CPU, edit, edit_json, loading_refusal

from engine.models.catalogue import find_model
from engine.models.loading import load_model, open_weights


def rename(change):
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def without(*parts):
    return lambda tensors: {k: v for k, v in tensors.items() if not any(part in k for part in parts)}


WEIGHTS = {
    "missing tensor": (without("layers.1.mlp.up_proj"), "model.layers.1.mlp.up_proj.weight of the model's weights is"),
    "missing layer": (without("layers.1."), "and 7 more of the model's weights are missing"),
    "missing head": (without("lm_head"), "lm_head.weight of the model's weights is missing"),
    "another shape": (
        lambda tensors: {**tensors, "model.layers.0.self_attn.q_proj.weight": torch.zeros(3, 5)},
        "model.layers.0.self_attn.q_proj.weight has shape (3, 5), and config.json makes it (32, 32)",
    ),
    "fewer rows": (
        lambda tensors: {k: v[:-8].clone() if v.shape[0] == 8192 else v for k, v in tensors.items()},
        "has shape (8184, 32)",
    ),
    "biases": (
        lambda tensors: {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.zeros(32)},
        "model.layers.0.self_attn.q_proj.bias of its files would be ignored",
    ),
    "a part for speculation": (
        lambda tensors: {**tensors, "mtp.fc.weight": torch.zeros(4, 4)},
        "mtp.fc.weight of its files would be ignored: a llama has no such weight",
    ),
    "language_model.": (rename(lambda name: f"language_model.{name}"), "would be ignored"),
    "two names": (
        lambda tensors: {**tensors, "norm.weight": torch.ones(32)},
        "are both its model.norm.weight",
    ),
}


@pytest.mark.parametrize("case", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_do_not_match_are_refused_by_name(case, make):
    path = make()
    edit(path, case[0])
    assert case[1] in loading_refusal(path)


def test_more_rows_in_config_json_than_in_the_files_are_refused(make):
    path = make()
    edit_json(path, "config.json", vocab_size=9000)
    assert "config.json makes it (9000, 32)" in loading_refusal(path)


def test_rotary_tables_are_left_out(make):
    path = make()
    edit(path, lambda tensors: {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert len(open_weights(find_model(str(path)))[0].names) == len(load_file(path / "model.safetensors")) - 1


def test_names_without_the_decoder_s_prefix_are_its_weights(make):
    path = make()
    expected = load_file(path / "model.safetensors")
    edit(path, rename(lambda name: name.removeprefix("model.")))
    weights, _ = open_weights(find_model(str(path)))
    assert set(weights.names) == set(expected)
    model = load_model(find_model(str(path)), CPU)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in expected.items())


def test_a_head_of_its_own_beside_a_config_that_ties_is_refused(make):
    path = make(tie_word_embeddings=True)
    embedding = load_file(path / "model.safetensors")["model.embed_tokens.weight"]
    edit(path, lambda tensors: {**tensors, "lm_head.weight": embedding + 0.1})
    assert "lm_head.weight differs from model.embed_tokens.weight" in loading_refusal(path)


@pytest.mark.parametrize("kept", ["both", "head"])
def test_a_tied_weight_may_be_stored_under_either_name(kept, make):
    path = make(tie_word_embeddings=True)
    name = "model.embed_tokens.weight"
    expected = load_file(path / "model.safetensors")[name]
    edit(path, lambda tensors: {**tensors, "lm_head.weight": expected.clone()})
    if kept == "head":
        edit(path, without("embed_tokens"))
    weights, _ = open_weights(find_model(str(path)))
    assert name in weights.names
    assert "lm_head.weight" not in weights.names
    model = load_model(find_model(str(path)), CPU)
    assert torch.equal(model.get_input_embeddings().weight, expected)
    assert torch.equal(model.get_output_embeddings().weight, expected)


def test_files_of_several_number_formats_load(make):
    path = make()
    edit(path, lambda tensors: {k: v.bfloat16() if "proj" in k else v.double() for k, v in tensors.items()})
    model = load_model(find_model(str(path)), CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_library_that_reads_other_numbers_is_caught(make, monkeypatch):
    """As an error in a release's renaming of weights would: the values are compared, not the names."""
    from engine.models import loading

    path = make()
    real = loading._from_library

    def swapped(spec, loader, source, arguments):
        found = real(spec, loader, source, arguments)
        if isinstance(found, tuple):
            layers = found[0].model.layers
            layers[0].mlp.up_proj, layers[1].mlp.up_proj = layers[1].mlp.up_proj, layers[0].mlp.up_proj
        return found

    monkeypatch.setattr(loading, "_from_library", swapped)
    assert "it put other numbers into model.layers.0.mlp.up_proj.weight" in loading_refusal(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_weights_that_are_no_finite_numbers_are_refused_before_a_run_learns_nothing(make, value, name):
    path = make()
    edit(path, lambda tensors: {**tensors, name: torch.full_like(tensors[name], value)})
    assert f"{name} holds numbers that are no finite ones" in loading_refusal(path)


def test_one_number_of_a_norm_is_enough(make):
    path = make()

    def one(tensors):
        tensors["model.norm.weight"][3] = float("nan")
        return tensors

    edit(path, one)
    assert "model.norm.weight holds numbers" in loading_refusal(path)
