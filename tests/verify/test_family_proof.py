"""The proof admits what is right and nothing else: shown by a reference of its own, and by faults that are planted."""

from __future__ import annotations

import json

import msgspec
import pytest
import torch
import transformers
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel

from engine import cli
from engine.errors import EliteError
from engine.models import families
from engine.models.catalogue import find_model
from engine.models.proofs import find_proof, keep_proof
from engine.plan.stream_plan import StreamPlan
from engine.streaming import recurrent_mixing
from engine.streaming.step import StreamedStep
from engine.verify.admission import prove_folder
from engine.verify.family_proof import prove_family
from engine.verify.small_copy import small_config

SIZES = {
    "vocab_size": 83,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
TWO_WIDTHS = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 12,
    "head_dim": 16,
    "global_head_dim": 40,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
}
ADMITTED = {
    "apertus": {},
    "arcee": {},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"sliding_window": 12},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_start_index": 1},
    "gemma4_text": {**TWO_WIDTHS, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, **EXPERTS},
    "gemma4_unified_text": {**TWO_WIDTHS, "final_logit_softcapping": 3.0},
    "glm4_moe": {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, **EXPERTS},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_neox": {},
    "granite": {"logits_scaling": 5.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.3},
    "granitemoe": {"num_local_experts": 4, "logits_scaling": 5.0, **EXPERTS},
    "helium": {"head_dim": 16},
    "nemotron": {},
    "olmoe": {"num_experts": 4, **EXPERTS},
    "stablelm": {},
}


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    for module in ("engine.models.catalogue", "engine.verify.family_proof", "engine.commands.admission"):
        monkeypatch.setattr(f"{module}.FAMILIES", families.FAMILIES)


@pytest.mark.parametrize("family", ADMITTED)
def test_the_streamed_gradient_of_an_unlisted_family_is_that_of_plain_transformers(family, registry):
    """fp64, transformers' fused attention, all documents in one batch of rows that are filled up at their ends."""
    torch.manual_seed(5)
    config = AutoConfig.for_model(family, **SIZES, **ADMITTED[family])
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa").train()
    plain.config._experts_implementation = "eager"
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ids = torch.randint(3, 83, (64,))
    starts = (0, 9, 30)
    lengths = [9, 21, 34]
    rows = torch.zeros(3, 34, dtype=torch.long)
    labels = torch.full((3, 34), -100)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        rows[row, :length] = ids[start : start + length]
        labels[row, : length - 1] = ids[start + 1 : start + length]
    # Causal attention: what fills a row up comes after all that is predicted.
    logits = plain(input_ids=rows, use_cache=False).logits
    wanted = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    trained = {name: parameter for name, parameter in plain.named_parameters() if parameter.requires_grad}
    expected = torch.autograd.grad(wanted / 61, list(trained.values()), allow_unused=True)
    families.admit(family, families.Family())
    with StreamedStep(plain, StreamPlan(tile=11, key_block=16, loss_piece=9), device=torch.device("cpu")) as step:
        outcome = step.run(ids, document_starts=starts)
    assert outcome.loss_sum == pytest.approx(float(wanted.detach()), rel=1e-6)
    scale = torch.stack([gradient.norm() for gradient in expected if gradient is not None]).norm()
    for (name, parameter), gradient in zip(trained.items(), expected, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        want = torch.zeros_like(parameter) if gradient is None else gradient
        assert (found - want).norm() < 1e-5 * (want.norm() + 1e-3 * scale), name


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("deepseek_v32", {}, "index_topk"),
        ("doge", {}, ""),
        ("diffllama", {}, "2 times"),
        ("bloom", {}, "0 times"),
        ("mixtral", {"router_jitter_noise": 0.1}, "random numbers"),
    ],
)
def test_what_tiles_would_get_wrong_is_refused(family, changes, says):
    proof = prove_family(AutoConfig.for_model(family, **changes))
    assert says in proof.refused["streamed"]
    assert proof.refused["streamed"]
    assert not proof.admitted & {"streamed"}


def test_an_adapter_on_weights_stored_the_other_way_round_is_merged():
    """GPT-2 keeps its matrices as (inputs, outputs)."""
    proof = prove_family(AutoConfig.for_model("gpt2", n_layer=2))
    assert proof.refused["exported"] == ""
    assert proof.differences["exported, merged"] < 1e-4


RECURRENT = {
    "qwen3_5_text": {},
    "lfm2": {"num_hidden_layers": 16, "layer_types": ["conv", "full_attention"] * 8},
}


@pytest.mark.parametrize("family", [pytest.param("qwen3_5_text", marks=pytest.mark.slow), "lfm2"])
def test_recurrent_layers_are_admitted_to_everything(family):
    proof = prove_family(AutoConfig.for_model(family, **RECURRENT[family]))
    assert proof.admitted >= {"streamed", "whole", "generated", "exported"}
    streamed = [error for name, error in proof.differences.items() if name.startswith("streamed")]
    assert max(streamed) < 1e-9


@pytest.mark.parametrize("fault", ["reset", "gradient"])
def test_a_fault_in_the_states_is_found(fault, monkeypatch):
    """A state that crosses a document's border, and one that gives no gradient back."""
    if fault == "reset":
        monkeypatch.setattr(recurrent_mixing, "borders_within", lambda start, stop, _: [start, stop])
    else:
        own = recurrent_mixing.RecurrentMixing.backward

        def forgets(self, tile, y, gradient):
            self._gradients = {}
            own(self, tile, y, gradient)

        monkeypatch.setattr(recurrent_mixing.RecurrentMixing, "backward", forgets)
    proof = prove_family(AutoConfig.for_model("lfm2", **RECURRENT["lfm2"]))
    assert "differs" in proof.refused["streamed"]


# --- planted faults -------------------------------------------------------------------------------------------


LATE_LAYER = 10
"""Beyond the layers of a small copy of a model whose layers are all alike."""


class PlantedConfig(LlamaConfig):
    """Llama with a fault that only a tile shows."""

    model_type = "planted"
    num_hidden_layers: int = LATE_LAYER + 2
    fault: str = ""
    late: int = 8192


class PlantedAttention(LlamaAttention):
    """Attention with the fault of its configuration."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        count, fault = hidden_states.shape[1], self.config.fault
        if fault == "mean":
            hidden_states = hidden_states + 0.1 * hidden_states.cumsum(1) / torch.arange(1, count + 1)[:, None]
        elif fault == "order":
            hidden_states = hidden_states * (1 + 0.01 * torch.arange(count)[:, None])
        elif fault == "late order":
            hidden_states = hidden_states * (1 + torch.log1p(torch.arange(count)[:, None] // self.config.late))
        elif fault == "some layers" and self.layer_idx == LATE_LAYER:
            hidden_states = hidden_states * (1 + 0.01 * torch.arange(count)[:, None])
        return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)


class PlantedModel(LlamaModel):
    """Its decoder."""

    config_class = PlantedConfig

    def __init__(self, config):
        super().__init__(config)
        for number, layer in enumerate(self.layers):
            layer.self_attn = PlantedAttention(config, number)
            layer.self_attn.faulty = config.fault == "some layers" and number == LATE_LAYER
        self.post_init()


class PlantedForCausalLM(LlamaForCausalLM):
    """Its causal language model."""

    config_class = PlantedConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = PlantedModel(config)
        self.post_init()


@pytest.fixture(scope="module")
def planted():
    AutoConfig.register("planted", PlantedConfig, exist_ok=True)
    AutoModelForCausalLM.register(PlantedConfig, PlantedForCausalLM, exist_ok=True)


@pytest.mark.parametrize("fault", ["mean", "order", "late order", "some layers"])
def test_a_planted_fault_is_found(fault, planted):
    proof = prove_family(PlantedConfig(fault=fault))
    assert "differs" in proof.refused["streamed"]


def test_the_same_model_without_the_fault_is_admitted(planted):
    proof = prove_family(PlantedConfig())
    assert {ability for ability, problem in proof.refused.items() if not problem} >= {"streamed", "whole", "exported"}


# --- the small copy -------------------------------------------------------------------------------------------


def test_a_small_copy_keeps_kinds_scales_and_switches():
    config = AutoConfig.for_model("cohere2", logit_scale=0.3, sliding_window=4096, num_hidden_layers=40)
    small = small_config(config)
    assert small.logit_scale == 0.3
    assert set(small.layer_types) == set(config.layer_types)
    assert small.num_hidden_layers < 8
    assert small.sliding_window < 40
    assert small.vocab_size < 100


@pytest.mark.parametrize("family", ["gemma4_text", "gemma4_unified_text"])
def test_a_small_copy_of_many_layers_has_one_of_each_kind(family, monkeypatch):
    """Before 5.23 the last layers of a type were marked as those whose keys later layers read, where none does."""
    sizes = {"num_hidden_layers": 36, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    config = AutoConfig.for_model(family, **sizes)
    with torch.device("meta"):
        attention = type(AutoModelForCausalLM.from_config(config).model.layers[0].self_attn)
    own = attention.__init__

    def marked(self, config, layer_idx):
        own(self, config, layer_idx)
        self.store_full_length_kv = config.layer_types[layer_idx] not in config.layer_types[layer_idx + 1 :]

    monkeypatch.setattr(attention, "__init__", marked)
    small = small_config(config)
    assert small.layer_types == ["sliding_attention", "full_attention"] * 2
    with torch.device("meta"):
        layers = AutoModelForCausalLM.from_config(small).model.layers
    assert [layer.self_attn.store_full_length_kv for layer in layers] == [False, False, True, True]


# --- through the commands -------------------------------------------------------------------------------------


def test_a_folder_is_proven_once_and_planned(tmp_path, monkeypatch, capsys, registry):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    AutoConfig.for_model("arcee", num_hidden_layers=2).save_pretrained(folder)
    with pytest.raises(EliteError, match="engine verify --model"):
        find_model(str(folder))
    assert cli.main(["verify", "--model", str(folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["refused"]["streamed"] == ""
    assert max(shown["differences"].values()) < 2e-5
    kept = find_proof(json.loads((folder / "config.json").read_text()))
    assert kept is not None
    spec = find_model(str(folder))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cli.main(["plan", "--model", str(folder), "--hardware", "rtx-3060-12gb", "--json"]) == 0


def test_another_configuration_of_an_admitted_family_needs_its_own_proof(tmp_path, monkeypatch, registry):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, heads in (("one", 32), ("other", 16)):
        AutoConfig.for_model("arcee", num_hidden_layers=2, num_attention_heads=heads).save_pretrained(tmp_path / name)
    prove_folder(tmp_path / "one")
    assert find_model(str(tmp_path / "one")).family == "arcee"
    with pytest.raises(EliteError, match="engine verify --model"):
        find_model(str(tmp_path / "other"))


@pytest.mark.parametrize("made_with", [{"transformers": "5.17.1"}, {"engine": "0.0"}, {"version": 1}])
def test_a_proof_that_was_made_with_other_code_admits_nothing(made_with, tmp_path, monkeypatch, registry):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    AutoConfig.for_model("arcee", num_hidden_layers=2).save_pretrained(folder)
    proof = prove_folder(folder)
    assert proof.transformers == transformers.__version__
    assert find_model(str(folder)).family == "arcee"
    keep_proof(msgspec.structs.replace(proof, **made_with))
    with pytest.raises(EliteError, match="engine verify --model"):
        find_model(str(folder))
    assert cli.main(["plan", "--model", str(folder), "--hardware", "rtx-3060-12gb", "--json"]) == 0  # proven again
    assert find_proof(json.loads((folder / "config.json").read_text())).transformers == transformers.__version__
