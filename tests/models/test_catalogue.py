"""Catalogue: shapes against published counts and against transformers itself; what is said about a bad name."""

from __future__ import annotations

import http.server
import json
import re
import threading

import pytest

from engine.assets import asset
from engine.errors import EliteError
from engine.models.catalogue import catalogue, find_model
from engine.models.families import FAMILIES, supporting

PROMISED = {
    *(f"qwen2.5-coder-{size}" for size in ("0.5b", "1.5b", "3b", "7b", "14b")),
    *(f"qwen3-{size}" for size in ("0.6b", "1.7b", "4b", "8b")),
    *("phi-2", "starcoder2-3b", "deepseek-coder-1.3b", "codellama-7b", "demo"),
}


EFFECTIVE = {"gemma-4-e2b": 2.3e9, "gemma-4-e4b": 4.5e9}


def test_the_catalogue_holds_the_promised_models():
    assert set(catalogue()) >= PROMISED


@pytest.mark.parametrize("name", catalogue())
def test_parameters_computed_from_shapes_match_the_published_count(name):
    spec = find_model(name)
    if name in EFFECTIVE:  # their announcement names what is left without the per-layer embeddings
        table = spec.vocab_size * spec.layers * spec.layer_input
        assert spec.parameters - table == pytest.approx(EFFECTIVE[name], rel=0.04)
    elif spec.published_parameters is None:  # no source declares it; the size in its name is rounded
        size = re.search(r"-(\d+(?:\.\d+)?)b", "-33b" if name == "laguna-xs" else name)  # as its model card says
        assert name == "demo" or spec.parameters == pytest.approx(float(size[1]) * 1e9, rel=0.07)
    else:
        assert spec.parameters == pytest.approx(spec.published_parameters, rel=0.005)
    assert name == "demo" or spec.source or spec.published_parameters
    assert spec.licence != "unknown"
    assert spec.heads % spec.kv_heads == 0


def test_newer_models_stand_before_older_ones():
    dates = [spec.released for spec in catalogue().values() if spec.released]
    assert dates == sorted(dates, reverse=True)
    assert len(dates) >= 12


@pytest.mark.parametrize("name", [name for name, spec in catalogue().items() if spec.released])
def test_a_listed_model_is_the_one_that_transformers_builds(name):
    """Its row's shapes, and everything else by transformers' defaults for the family."""
    import torch
    from transformers import AutoModelForCausalLM

    from engine.models.random import _config

    spec = catalogue()[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(spec, spec.layers))
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    kinds = getattr(model.config, "layer_types", None) or []
    assert spec.windowed_layers == kinds.count("sliding_attention")


def test_the_demo_entry_is_the_shipped_config():
    config = asset("models.toml").parent / "demo-model" / "config.json"
    if not config.exists():
        pytest.skip("the demo model is not in this checkout")
    read, listed = find_model(str(config.parent)), catalogue()["demo"]
    shape = ("family", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "intermediate_size", "vocab_size")
    assert [getattr(read, field) for field in shape] == [getattr(listed, field) for field in shape]
    assert read.parameters == listed.parameters


TINY = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 128}
VARIANTS = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32, "num_key_value_heads": 2}),
    ("mistral", {"num_key_value_heads": 2}),
    ("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("qwen2", {"num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 4}),
    ("qwen3", {"num_key_value_heads": 2}),
    ("phi", {}),
    ("phi", {"qk_layernorm": True, "num_key_value_heads": 2}),
    ("phi3", {"num_key_value_heads": 2}),
    ("gemma3_text", {"num_key_value_heads": 2, "head_dim": 16}),
    ("starcoder2", {"num_key_value_heads": 2}),
    ("starcoder2", {"num_key_value_heads": 2, "use_bias": False}),
    ("mixtral", {"num_key_value_heads": 2}),
    ("ernie4_5", {"num_key_value_heads": 2, "use_bias": True}),
    ("exaone4", {"num_key_value_heads": 2}),
    ("gemma", {"num_key_value_heads": 1, "head_dim": 16}),
    ("gemma2", {"num_key_value_heads": 2, "head_dim": 16}),
    ("glm", {"num_key_value_heads": 2, "head_dim": 16}),
    ("glm4", {"num_key_value_heads": 2, "head_dim": 16}),
    ("granite", {"num_key_value_heads": 2, "mlp_bias": True}),
    ("ministral3", {"num_key_value_heads": 2, "head_dim": 16}),
    ("olmo2", {}),
    ("olmo3", {"num_key_value_heads": 2}),
    ("seed_oss", {"num_key_value_heads": 2, "head_dim": 16}),
    ("smollm3", {"num_key_value_heads": 2}),
    ("smollm3", {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 32}),
    (
        "qwen3_moe",
        {"num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [0]},
    ),
]


@pytest.mark.parametrize(("family", "keys"), VARIANTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_local_config_gives_the_model_that_transformers_builds(family, keys, tmp_path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    AutoConfig.for_model(family, **TINY, **special, **keys).save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    spec = find_model(str(tmp_path))
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert spec.path == tmp_path
    layer = model.model.layers[0]
    linears = {n.split(".")[-1]: m for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {linear.name: (linear.inputs, linear.outputs, linear.bias) for linear in spec.linears} == {
        name: (module.in_features, module.out_features, module.bias is not None) for name, module in linears.items()
    }
    kinds = getattr(model.config, "layer_types", None)
    if kinds:
        assert spec.full_attention_layers == kinds.count("full_attention")


def test_every_supported_family_is_compared_with_transformers():
    listed = {family for family in supporting("planned") if not FAMILIES[family].proof}
    assert {family for family, _ in VARIANTS} == listed


def test_lora_parameters_are_rank_times_the_sides():
    spec = find_model("qwen2.5-coder-1.5b")
    assert spec.lora_parameters(16) == 18_464_768  # peft prints this for r=16 on all linear layers
    assert spec.lora_parameters(8, ["q_proj", "v_proj"]) == 28 * 8 * (1536 + 1536 + 1536 + 256)


def _config(**keys):
    return json.dumps({"model_type": "llama", **TINY, **keys})


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("qwen2.5-coder-1.5", "model-unknown", "qwen2.5-coder-1.5b"),
        ("QWEN3_8B", "model-unknown", "qwen3-8b"),
        ("zzz", "model-unknown", "codellama-7b"),
        ("", "model-unknown", "''"),
        ("x" * 5000, "model-unknown", "codellama-7b"),
        ("~nobody-of-this-name", "model-unknown", "codellama-7b"),
        ("nul\0", "model-unknown", "\\x00"),
        ("../nowhere/at/all", "model-directory-invalid", "no such directory"),
        ("evil\x1b[31m\nname", "model-unknown", "\\x1b"),
    ],
)
def test_a_bad_name_gets_one_line(name, code, says):
    with pytest.raises(EliteError) as caught:
        find_model(name)
    assert caught.value.code == code
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (None, "model-directory-invalid", "no config.json"),
        ("{", "model-directory-invalid", "cannot be read"),
        ("[]", "model-directory-invalid", "not an object"),
        (_config(hidden_size=None), "model-directory-invalid", "hidden_size"),
        (_config(num_hidden_layers="six"), "model-directory-invalid", "num_hidden_layers"),
        (_config(num_key_value_heads=3), "model-directory-invalid", "share"),
        (_config(head_dim=-1), "model-directory-invalid", "head_dim"),
        (_config(model_type="mamba"), "model-family-unsupported", "qwen2"),
        (_config(model_type=["llama"]), "model-family-unsupported", "llama"),
    ],
)
def test_a_bad_directory_gets_one_line(content, code, says, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(EliteError) as caught:
        find_model(str(tmp_path))
    assert caught.value.code == code
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_hub_id_of_the_catalogue_needs_no_network():
    assert find_model("Qwen/Qwen2.5-Coder-7B") is catalogue()["qwen2.5-coder-7b"]


def test_another_hub_id_is_read_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--someone--model" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0123abcd")
    (snapshot / "config.json").write_text(_config())
    spec = find_model("someone/model", download=False)
    assert (spec.name, spec.hub_id, spec.path, spec.layers) == ("someone/model", "someone/model", None, 6)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine that serves one model's config.json, and an empty cache."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/someone/model/resolve/main/config.json"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(_config().encode() if found else b"")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield server
        server.shutdown()


def test_another_hub_id_is_read_from_the_hub(hub):
    assert find_model("someone/model").layers == 6


@pytest.mark.parametrize("case", ["missing", "not cached", "offline", "unreachable"])
def test_a_hub_id_that_cannot_be_read_is_not_available(case, hub, monkeypatch):
    if case == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if case == "unreachable":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    name = "someone/other" if case == "missing" else "someone/model"
    with pytest.raises(EliteError) as caught:
        find_model(name, download=case != "not cached")
    assert (caught.value.code, caught.value.exit_code) == ("model-not-available", 3)
    assert str(caught.value).isprintable()


RECURRENT = [name for name, spec in catalogue().items() if spec.settings]


def test_the_shapes_of_families_that_are_not_listed_are_what_their_settings_amount_to():
    """Of one of them; scripts/model_shapes.py --check compares all."""
    from transformers import AutoConfig

    from engine.models.spec import as_spec
    from engine.verify.observed_shape import observed_shape

    assert {"qwen3.5-0.8b", "qwen3.5-2b", "qwen3.5-4b", "qwen3.5-9b", "qwen3.5-27b"} <= set(RECURRENT)
    spec = catalogue()["qwen3.5-0.8b"]
    shape = observed_shape(AutoConfig.for_model(spec.family, **dict(spec.settings)), adapts_mlp=True)
    assert as_spec(shape, name=spec.name, family=spec.family).kinds == spec.kinds
    assert as_spec(shape, name=spec.name, family=spec.family).counted == spec.counted
    assert as_spec(shape, name=spec.name, family=spec.family).recurrent == spec.recurrent


def test_a_listed_name_does_not_admit_other_models_of_its_family(tmp_path, monkeypatch):
    """Their settings are proven by themselves."""
    from engine.models import catalogue as module
    from engine.models import families

    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    monkeypatch.setattr(module, "FAMILIES", families.FAMILIES)
    assert find_model("qwen3.5-2b").recurrent is not None
    assert find_model("Qwen/Qwen3.5-2B") == find_model("qwen3.5-2b")
    settings = {**dict(catalogue()["qwen3.5-2b"].settings), "model_type": "qwen3_5_text", "hidden_size": 1536}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(EliteError, match="has not admitted it"):
        find_model(str(tmp_path))


def test_a_snapshot_of_the_hubs_cache_is_named_after_its_model(tmp_path):
    model = tmp_path / "models--Acme--Tiny-1B"
    snapshot = model / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(asset("demo-model", "config.json").read_text())
    assert find_model(str(snapshot)).name == "Acme/Tiny-1B"
    with pytest.raises(EliteError) as raised:
        find_model(str(model))
    assert str(snapshot) in raised.value.message
