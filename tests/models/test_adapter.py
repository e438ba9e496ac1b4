"""The adapter: attached without changing the model, seeded, saved so that PEFT loads it."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from support.tiny import VOCABULARY, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from engine.config import LoraSection
from engine.errors import EliteError
from engine.models.adapter import attach_adapter, save_adapter, trainable
from engine.models.catalogue import find_model
from engine.models.loading import load_tokenizer

IDS = torch.arange(1, 40)[None] % VOCABULARY


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def trained(family="qwen2"):
    """An adapter that does something."""
    model = attach_adapter(tiny_model(family), LoraSection(rank=4), seed=1)
    torch.manual_seed(2)
    for parameter in trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "phi", "starcoder2"])
def test_a_fresh_adapter_changes_nothing_and_covers_every_linear_layer_but_the_head(family):
    base = tiny_model(family)
    before = logits(base)
    model = attach_adapter(base, LoraSection(rank=4), seed=0)
    torch.testing.assert_close(logits(model), before)
    names = {name for name, module in tiny_model(family).named_modules() if isinstance(module, torch.nn.Linear)}
    covered = {
        name.split(".lora_A")[0].removeprefix("base_model.model.") for name in trainable(model) if "lora_A" in name
    }
    assert covered == names - {"lm_head"}
    assert all(parameter.dtype == torch.float32 for parameter in trainable(model).values())


def test_the_seed_decides_the_adapter_and_leaves_the_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, two, other = (attach_adapter(tiny_model(), LoraSection(rank=4), seed=seed) for seed in (1, 1, 2))
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), state)
    name = next(name for name in trainable(one) if "lora_A" in name)
    assert torch.equal(trainable(one)[name], trainable(two)[name])
    assert not torch.equal(trainable(one)[name], trainable(other)[name])


def test_master_weights_are_fp32_over_a_bf16_base():
    model = attach_adapter(tiny_model().bfloat16(), LoraSection(rank=4), seed=0)
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}


def test_unknown_targets_are_one_clear_error():
    with pytest.raises(EliteError) as caught:
        attach_adapter(tiny_model(), LoraSection(targets=["q_proj", "w_pack"]), seed=0)
    assert "w_pack" in caught.value.message
    assert "q_proj" in caught.value.remedy


@pytest.mark.parametrize("family", ["qwen2", "llama", "phi"])
def test_peft_loads_what_was_saved_with_equal_logits_and_generates(family, tmp_path):
    model = trained(family)
    expected = logits(model)
    save_adapter(model, tmp_path / "adapter", load_tokenizer(find_model("demo")))

    loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=0)
    out = loaded.generate(input_ids=IDS, max_new_tokens=5, do_sample=False)
    assert out.shape == (1, IDS.shape[1] + 5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    text = "def main(argv):\n    return 0\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_saving_again_replaces_the_folder_and_names_the_base(tmp_path):
    base = tiny_model()
    base.name_or_path = "some/base"
    tokenizer = load_tokenizer(find_model("demo"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "stale").write_text("x")
    model = attach_adapter(base, LoraSection(rank=4), seed=1)
    save_adapter(model, tmp_path / "adapter", tokenizer)
    assert not (tmp_path / "adapter" / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert config["base_model_name_or_path"] == "some/base"
    assert config["task_type"] == "CAUSAL_LM"


@pytest.mark.parametrize(("family", "refused"), [("falcon_h1", {"out_proj"}), ("granitemoehybrid", set())])
def test_all_linear_leaves_out_what_peft_refuses(family, refused):
    """PEFT raises for the output projection of Mamba layers of some families, whose kernels read past an adapter."""
    from tests.streaming.test_recurrent import FAMILIES, SHAPE

    config = AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config)
    adapted = attach_adapter(model, LoraSection(rank=2), seed=0)
    names = {name.partition(".lora_")[0].rpartition(".")[2] for name in trainable(adapted)}
    assert "in_proj" in names
    assert {"out_proj"} - names == refused
