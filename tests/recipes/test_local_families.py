"""Models of many families in local folders: `engine train`, export, and what plain transformers and PEFT then read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models.test_wrappers import save_wrapper
from peft import PeftModel
from support.families import save_family, save_unlisted
from transformers import AutoModelForCausalLM

from engine import cli
from engine.models.catalogue import find_model
from engine.models.loading import load_model
from engine.models.placement import choose_placement

LATENT = {
    "kv_lora_rank": 24,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
UNLISTED = {
    "gpt_oss": {"head_dim": 16, "sliding_window": 20, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {**LATENT, "first_k_dense_replace": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
}
"""Families that a proof admits when training begins."""
WRAPPED = ["gemma3", "gemma4", "gemma4 with experts"]
"""Wrappers, with a tower for images."""
MODELS = ["gpt_oss", "deepseek_v3", "ministral3", "olmo3", "granite", *WRAPPED, "glm4"]


def save(path: Path, name: str) -> Path:
    if name in UNLISTED:
        return save_unlisted(path, name, **UNLISTED[name])
    if name in WRAPPED:
        save_wrapper(path, name)
        return path
    return save_family(path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_run_on_a_folder_is_read_by_plain_transformers_and_peft(name, tmp_path, capsys):
    model = save(tmp_path / "model", name)
    code = tmp_path / "code"
    code.mkdir()
    for module in (json.decoder, json.encoder):
        (code / Path(module.__file__).name).write_text(Path(module.__file__).read_text())
    settings = {
        "training.step": "streamed",
        "training.context": 128,
        "training.tokens_per_update": 256,
        "training.evaluate_tokens": 128,
        "training.learning_rate": 0.01,
        "model.device": "cpu",
        "model.precision": "fp32",
        "evaluation.at_end": "false",
        "lora.rank": 4,
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    where = ["--model", str(model), "--repo", str(code), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "engine", "train", *where, "--max-steps", "2", *options],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [run] = (tmp_path / "out" / "runs").iterdir()
    for kind in ("adapter", "merged"):
        assert cli.main(["export", str(run), "--to", kind, "--output", str(tmp_path / kind)]) == 0, kind
    capsys.readouterr()

    ids = torch.arange(20, 70)[None]
    with torch.no_grad():
        base = load_model(find_model(str(model)), choose_placement("cpu", "fp32")).eval()
        before = base(input_ids=ids, use_cache=False).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
        found = merged(input_ids=ids, use_cache=False).logits
        if name not in WRAPPED:  # plain transformers reads the wrapper's text model by itself
            base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
            assert torch.allclose(base.eval()(input_ids=ids, use_cache=False).logits, before, atol=1e-4)
        adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
        wanted = adapted(input_ids=ids, use_cache=False).logits
    assert (wanted - before).norm() > 1e-3 * before.norm(), "the adapter changes something"
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
