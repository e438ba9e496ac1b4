"""Every admitted family is planned: its shapes and what its layers hold are seen in its modules, no table needed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from engine import __version__, cli
from engine.config import LoraSection
from engine.models import families
from engine.models.adapter import attach_adapter, trainable
from engine.models.catalogue import find_model
from engine.models.expert_stacks import stacks_of
from engine.models.families import Family, admit, refusal
from engine.models.layers import decoder_layers
from engine.models.proofs import Proof, keep_proof, library_version, settings_name
from engine.verify.family_proof import has_experts
from engine.verify.observed_bytes import observed_bytes
from engine.verify.observed_shape import observed_shape

_ROOT = Path(__file__).parents[2]
_ABILITIES = ("streamed", "whole", "generated", "exported", "planned")


def _script():
    spec = importlib.util.spec_from_file_location("family_reference", _ROOT / "scripts" / "family_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _script()
ADMITTED = reference.admitted()


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    for module in ("engine.models.catalogue", "engine.verify.family_proof", "engine.commands.admission"):
        monkeypatch.setattr(f"{module}.FAMILIES", families.FAMILIES)


def test_sixty_families_are_admitted_and_each_was_compared_apart_from_the_proof():
    assert len(ADMITTED) >= 60
    stored = json.loads(reference.RESULTS.read_text())
    assert {row["model_type"] for row in stored["families"] if row["equal"]} >= set(ADMITTED)


PLANNED = reference.admitted("planned")


@pytest.mark.parametrize("family", PLANNED)
def test_a_folder_of_every_admitted_family_is_planned(family, tmp_path, monkeypatch, capsys, registry):
    """The proof's comparisons are left out (scripts/family_docs.py runs them); all that a plan reads is made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = reference.small(family)
    folder = tmp_path / "model"
    config.save_pretrained(folder)
    adapts = not has_experts(config)
    if refusal(config.model_type, "planned"):
        keep_proof(
            Proof(
                engine=__version__,
                transformers=library_version(),
                model_type=config.model_type,
                settings=settings_name(json.loads((folder / "config.json").read_text())),
                refused=dict.fromkeys(_ABILITIES, ""),
                differences={},
                adapts_mlp=adapts,
                shape=observed_shape(config, adapts_mlp=adapts),
                seconds=0.0,
            )
        )
    assert cli.main(["plan", "--model", str(folder), "--hardware", "rtx-3060-12gb", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tiers"]
    spec = find_model(str(folder))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    layers = decoder_layers(model)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    assert spec.parameters == sum(p.numel() for p in model.parameters())
    assert (spec.decoder_parameters, spec.layer_parameters) == (sum(sizes), max(sizes))
    assert spec.largest_tensor == pytest.approx(max(p.numel() for e in layers for p in e.parameters()), rel=0.05)
    linears = [part for layer in layers for part in layer.modules() if isinstance(part, (torch.nn.Linear, Conv1D))]
    stacks = [stack for layer in layers for part in layer.modules() for stack in stacks_of(part).values()]
    packed = [*(p for part in linears for p in part.parameters(recurse=False)), *stacks]
    assert spec.quantised_parameters == sum(p.numel() for p in packed)
    admit(config.model_type, Family(shape={"adapts_mlp": spec.adapts_mlp}))
    with torch.device("meta"):
        targets = ["all-linear", *(["experts"] if stacks else [])]
        adapted = attach_adapter(model, LoraSection(rank=4, targets=targets), 0)
    assert spec.lora_parameters(4, targets) == sum(p.numel() for p in trainable(adapted).values())
    assert spec.with_layers(2).layers == 2


@pytest.mark.parametrize(
    ("family", "served"),
    [("llama", False), ("llama", True), ("qwen3", False), ("qwen3", True), ("phi", False), ("starcoder2", False)],
)
def test_what_a_layer_is_seen_to_hold_is_what_the_lists_of_listed_families_say(family, served):
    """Two ways to the same bytes: the lists, derived by hand and compared with real steps, and the observation."""
    from engine.plan.tile_peaks import tile_peaks
    from engine.plan.workload import Workload

    name = {"llama": "codellama-7b", "qwen3": "qwen3-1.7b", "phi": "phi-2", "starcoder2": "starcoder2-3b"}[family]
    spec = find_model(name)
    config = AutoConfig.for_model(
        family,
        hidden_size=spec.hidden_size,
        num_hidden_layers=2,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        intermediate_size=spec.intermediate_size,
        **({"sliding_window": spec.sliding_window} if spec.sliding_window else {}),
    )
    _, counted = observed_bytes(config, [linear.name for linear in spec.linears])
    seen = dataclasses.replace(spec, counted=counted)
    kernels = {"fused_kernels": False, "served_norms": served}
    work = {"context": 1, "compute_type": "bf16", "lora_parameters": 1, **kernels}
    for stash in (True, False):
        listed, observed = (tile_peaks(Workload(spec=each, **work), stash=stash) for each in (spec, seen))
        for phase in ("forward", "backward"):
            most, found = (max(p.token_bytes for p in peaks if p.phase == phase) for peaks in (listed, observed))
            assert found == pytest.approx(most, rel=0.04)


def test_layers_of_other_head_widths_are_planned_by_what_the_largest_stores():
    """Of gemma4_text, whose windowed layers have more KV heads than the others, each half as wide."""
    config = AutoConfig.for_model(
        "gemma4_text",
        vocab_size=128,
        vocab_size_per_layer_input=128,
        hidden_size_per_layer_input=0,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_kv_shared_layers=0,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        head_dim=16,
        global_head_dim=32,
    )
    shape = observed_shape(config, adapts_mlp=True)
    model = AutoModelForCausalLM.from_config(config)
    kept = model(input_ids=torch.arange(5)[None], use_cache=True).past_key_values
    most = max(layer.keys.shape[1] * layer.keys.shape[3] for layer in kept.layers)
    assert shape["kv_heads"] * shape["head_dim"] == most
