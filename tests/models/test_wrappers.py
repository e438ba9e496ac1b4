"""Multimodal wrappers: their text model is planned, trained, exported and read by plain transformers."""

from __future__ import annotations

import bisect
import heapq
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import _tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from engine import cli
from engine.errors import EliteError
from engine.models.catalogue import find_model
from engine.models.loading import load_model
from engine.models.placement import choose_placement
from engine.verify.admission import prove_folder

_TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "head_dim": 16,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_KINDS = ["sliding_attention", "full_attention"] * 2
_GEMMA4 = {
    "model_type": "gemma4_text",
    "sliding_window": 20,
    "layer_types": _KINDS,
    "global_head_dim": 24,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
    "use_bidirectional_attention": "vision",
}
WRAPPERS = {
    "gemma3": ({"model_type": "gemma3_text", "sliding_window": 20, "layer_types": _KINDS}, {}, {}),
    "gemma4": (_GEMMA4, {"head_dim": 16, "num_key_value_heads": 2}, {"audio_config": None}),
    "gemma4 with experts": (
        {**_GEMMA4, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
        {"head_dim": 16, "num_key_value_heads": 2},
        {"audio_config": None},
    ),
    "mistral3": ({"model_type": "ministral3"}, {"model_type": "pixtral", "head_dim": 16}, {}),
    "mistral3 of its own head": ({"model_type": "mistral"}, {"model_type": "pixtral"}, {"tie_word_embeddings": False}),
    "llava": ({"model_type": "qwen2"}, {"model_type": "clip_vision_model", "projection_dim": 32}, {}),
    "internvl": ({"model_type": "qwen3"}, {"image_size": [28, 28], "patch_size": [14, 14]}, {}),
}
"""What is added to the settings of the text model, of the tower and of the wrapper."""


def save_wrapper(path, name):
    """Saves a wrapper of random weights with a tokenizer, as transformers writes it, and returns it."""
    text, tower, outer = WRAPPERS[name]
    torch.manual_seed(4)
    inner = {**_TEXT, "vocab_size": len(_tokenizer()), **text}
    config = AutoConfig.for_model(name.split()[0], text_config=inner, vision_config={**_TOWER, **tower}, **outer)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("layer_scalar"):  # stored with the weights
                buffer.uniform_(0.5, 1.5)
    model.save_pretrained(path)
    _tokenizer().save_pretrained(path)
    return model


def _stored_inside(path):
    """Renames the text model's tensors as newer files have them."""
    stored = load_file(path / "model.safetensors")
    renamed = {
        name.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head", "lm_head"
        ): each
        for name, each in stored.items()
    }
    assert any(name.startswith("model.language_model.") for name in renamed)
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", WRAPPERS)
def test_the_text_model_computes_what_the_wrapper_computes(name, inside, tmp_path):
    wrapper = save_wrapper(tmp_path, name)
    if inside:
        _stored_inside(tmp_path)
    if name.startswith("gemma4"):  # in no list: `engine plan` and `engine train` prove it by themselves
        prove_folder(tmp_path)
    spec = find_model(str(tmp_path))
    loaded = load_model(spec, choose_placement("cpu", "fp32")).eval()
    ids = torch.arange(20, 70)[None]
    wanted = wrapper(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.allclose(loaded(input_ids=ids, use_cache=False).logits, wanted, atol=1e-5)
    assert spec.family == loaded.config.model_type == WRAPPERS[name][0]["model_type"]
    assert spec.parameters == sum(parameter.numel() for parameter in loaded.parameters())


def test_a_published_file_leaves_out_what_its_class_knows(tmp_path):
    """config.json of google/gemma-3-4b-it names six keys of its text model."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    spec = find_model(str(tmp_path))
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(tmp_path).get_text_config()
        model = AutoModelForCausalLM.from_config(config)
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (spec.sliding_window, spec.full_attention_layers) == (1024, config.layer_types.count("full_attention"))


def test_a_wrapper_without_a_language_model_is_refused_in_one_line(tmp_path):
    save_wrapper(tmp_path, "llava")
    stored = load_file(tmp_path / "model.safetensors")
    others = {name.replace("language_model", "decoder"): each for name, each in stored.items()}
    save_file(others, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EliteError, match="no language_model in it"):
        load_model(find_model(str(tmp_path)), choose_placement("cpu", "fp32"))


@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
def test_a_run_trains_the_text_model_and_plain_transformers_reads_its_exports(name, tmp_path, capsys):
    save_wrapper(tmp_path / "model", name)
    code = tmp_path / "code"
    code.mkdir()
    for module in (json.decoder, json.encoder, bisect, heapq):
        shutil.copy(module.__file__, code)
    out = tmp_path / "out"
    settings = ["model.device=cpu", "model.precision=fp32", "lora.rank=4", "training.context=128"]
    settings += ["training.tokens_per_update=256", "training.evaluate_tokens=256", "evaluation.at_end=false"]
    given = [part for setting in settings for part in ("--set", setting)]
    command = ["train", "--model", str(tmp_path / "model"), "--repo", str(code), "--output", str(out)]
    assert cli.main([*command, "--max-steps", "1", *given]) == 0
    [run] = (out / "runs").iterdir()
    for target in ("merged", "adapter"):
        capsys.readouterr()
        assert cli.main(["export", str(run), "--to", target, "--output", str(tmp_path / target), "--check"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert merged.config.model_type == WRAPPERS[name][0]["model_type"]
    # The exported adapter, by the lines that its card shows.
    lines = (tmp_path / "adapter" / "README.md").read_text().partition("```python\n")[2].partition("ids =")[0]
    lines = lines.replace("'model'", repr(str(tmp_path / "model"))).replace('"."', repr(str(tmp_path / "adapter")))
    found: dict = {}
    exec(lines, found)
    ids = torch.arange(20, 70)[None]
    adapted = found["model"].float().eval()(input_ids=ids, use_cache=False).logits
    assert torch.allclose(adapted, merged.eval()(input_ids=ids, use_cache=False).logits, atol=1e-4)
