"""Loading: the demo, directories, the hub without a network, precisions, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.tiny import tiny_model

from engine.assets import asset
from engine.config import LoraSection
from engine.errors import EliteError
from engine.models.adapter import attach_adapter, trainable
from engine.models.catalogue import find_model
from engine.models.loading import load_model, load_tokenizer
from engine.models.placement import choose_placement

CPU = choose_placement("cpu", "fp32")
IDS = torch.arange(40)[None]


@pytest.fixture
def directory(tmp_path):
    """A tiny model in Hugging Face format."""
    path = tmp_path / "tiny"
    tiny_model(vocab_size=8192).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(asset("demo-model", name), path / name)
    return path


def code_of(call):
    with pytest.raises(EliteError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value.code


def test_the_demo_is_frozen_and_has_every_weight_that_ships():
    model = load_model(find_model("demo"), CPU)
    assert model.name_or_path == "demo"
    assert not model.config.use_cache
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == find_model("demo").parameters
    shipped = load_file(asset("demo-model", "model.safetensors"))
    weights = model.state_dict()
    assert set(weights) - set(shipped) == {"lm_head.weight"}  # tied
    for name, weight in shipped.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weights[name], weight.float())


def test_the_demo_has_learnt_python():
    """Random weights would give log(8192) = 9.0 nats a token, whatever the text; this one is in no package."""
    text = "def total(prices):\n    result = 0\n    for price in prices:\n        result += price\n    return result\n"
    ids = torch.tensor([load_tokenizer(find_model("demo"))(text)["input_ids"]])
    with torch.no_grad():
        assert load_model(find_model("demo"), CPU)(input_ids=ids, labels=ids).loss < 4


def test_the_demo_tokenizer_gives_every_text_back():
    tokenizer = load_tokenizer(find_model("demo"))
    text = "def f(x):\n\treturn 'é\u0301 → \U0001d518' # \x00\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_directory_loads_with_its_tokenizer(directory):
    spec = find_model(str(directory))
    model = load_model(spec, CPU)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, tiny_model(vocab_size=8192)(input_ids=IDS).logits)
    assert load_tokenizer(spec).is_fast


def test_a_directory_of_pickled_weights_is_refused(directory):
    spec = find_model(str(directory))
    torch.save({}, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(EliteError, match="pickled") as caught:
        load_model(spec, CPU)
    assert caught.value.code == "model-directory-invalid"


def test_broken_directories_are_one_line_each(directory):
    spec = find_model(str(directory))
    (directory / "model.safetensors").write_bytes(b"not safetensors")
    assert code_of(lambda: load_model(spec, CPU)) == "model-directory-invalid"
    (directory / "model.safetensors").unlink()
    assert code_of(lambda: load_model(spec, CPU)) == "model-directory-invalid"
    (directory / "config.json").write_text("{")
    assert code_of(lambda: load_model(spec, CPU)) == "model-directory-invalid"


def test_a_directory_without_a_tokenizer_is_one_line(directory):
    spec = find_model(str(directory))
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    assert code_of(lambda: load_tokenizer(spec)) == "model-directory-invalid"


def test_code_in_a_model_directory_is_not_run(directory, tmp_path):
    spec = find_model(str(directory))
    witness = tmp_path / "was-run"
    (directory / "evil.py").write_text(f"open({str(witness)!r}, 'w')\n")
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (directory / "config.json").write_text(json.dumps(config))
    assert code_of(lambda: load_model(spec, CPU)) == "model-family-unsupported"
    assert not witness.exists()


def test_the_hub_without_a_network_is_one_line(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    spec = find_model("qwen2.5-coder-0.5b")
    assert code_of(lambda: load_tokenizer(spec)) == "model-not-available"
    assert code_of(lambda: load_model(spec, CPU)) == "model-not-available"


# --- precisions --------------------------------------------------------------------------------------------


def test_auto_is_fp32_on_a_cpu():
    placement = choose_placement("cpu", "auto")
    assert (placement.precision, placement.dtype) == ("fp32", torch.float32)
    assert choose_placement("cpu", "bf16").dtype == torch.bfloat16


def test_fp16_on_a_cpu_and_a_gpu_that_is_not_there_are_refused():
    assert code_of(lambda: choose_placement("cpu", "fp16")) == "precision-unavailable"
    if not torch.cuda.is_available():
        assert code_of(lambda: choose_placement("cuda", "auto")) == "device-unavailable"


def test_nf4_without_bitsandbytes_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # what an import of a missing package finds
    with pytest.raises(EliteError, match="pip install") as caught:
        choose_placement("cpu", "nf4")
    assert caught.value.code == "precision-unavailable"


def test_weights_are_quantised_on_the_named_device_one_at_a_time(directory):
    """The device is a CPU by another name, so that its codes can be compared, and what is sent there can be seen."""
    from bitsandbytes.nn import Linear4bit

    spec, placement = find_model(str(directory)), choose_placement("cpu", "nf4")
    expected = load_model(spec, placement)
    sent, to = [], torch.Tensor.to

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), named=None):
            if function is to and type(args[0]) is torch.Tensor and torch.device("cpu", 0) in args:
                sent.append(args[0].shape)
            return function(*args, **(named or {}))

    with Seen():
        found = load_model(spec, placement, quantise_on=torch.device("cpu", 0))
    linears = [module for module in found.modules() if isinstance(module, Linear4bit)]
    assert len(sent) == len(linears)
    others = [module for module in expected.modules() if isinstance(module, Linear4bit)]
    for module, other in zip(linears, others, strict=True):
        assert module.weight.device == torch.device("cpu")
        assert torch.equal(module.weight.data, other.weight.data)
        for name, value in other.weight.quant_state.as_dict(packed=True).items():
            assert torch.equal(module.weight.quant_state.as_dict(packed=True)[name], value), name
    for (name, parameter), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(parameter.data, other.data), name
    assert all(not parameter.requires_grad for parameter in found.parameters())


@pytest.mark.parametrize("source", ["demo", "directory"])
def test_nf4_qlora_trains_on_a_cpu_and_its_loss_falls(source, directory):
    pytest.importorskip("bitsandbytes")
    import bitsandbytes

    spec = find_model("demo" if source == "demo" else str(directory))
    base = load_model(spec, choose_placement("cpu", "nf4"))
    quantised = [m for m in base.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(quantised) == spec.layers * len(spec.linears)
    assert all(m.weight.quant_state.nested and m.weight.quant_type == "nf4" for m in quantised)
    model = attach_adapter(base, LoraSection(rank=4), seed=0)
    ids = torch.arange(1, 33)[None]
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=5e-3)
    losses = []
    with torch.no_grad():
        model.eval()(input_ids=ids, use_cache=False)  # an evaluation must not cut the gradient off
    for _ in range(12):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        bottom = next(p for name, p in trainable(model).items() if "layers.0.self_attn.q_proj.lora_B" in name)
        assert bottom.grad.abs().max() > 0
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
