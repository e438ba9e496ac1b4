"""Proves every causal model_type of the installed transformers on a small copy, and writes docs/families.md.

    python scripts/family_docs.py [--all] [--check] [model_type ...]

The configuration of each is its default one. Without a name only what is not in benchmarks/results/families.json is
proven, and the page is written: seconds. A proof takes about five seconds on an idle core (`make families` makes them
all, and then the comparison apart from them, scripts/family_reference.py).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
_ROOT = Path(__file__).parents[1]
PAGE = _ROOT / "docs" / "families.md"
PROOFS = _ROOT / "benchmarks" / "results" / "families.json"
REFERENCE = _ROOT / "benchmarks" / "results" / "family_reference.json"
_LONGEST = 300
_ABILITIES = ("streamed", "whole", "generated", "exported", "planned")
_SETTINGS: dict[str, dict[str, Any]] = {
    "gemma4_text, E2B": {
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 35,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 30.0,
        "layer_types": ([*["sliding_attention"] * 4, "full_attention"]) * 7,
    },
    "gemma4_text": {
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 2,
        "enable_moe_block": True,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
    },
}
"""What is set beside a default configuration that is none of the family's models, here as in Gemma 4 26B-A4B; and
models of a family whose layers have what others do not have, after a comma."""
_HEAD = """# Families of models

What transformers {version} calls a causal language model, and what was proven of each `model_type`: a small copy of its
default configuration (every kind of its layers, narrow, the same flags), compared in fp64 with the model's own forward
and ordinary backpropagation: all weights and an adapter, one document and several, two tile sizes, whole windows, text
with a cache, exported weights read back. `engine verify --model DIR` does the same with a model's own config.json;
`engine plan` and `engine train` do it by themselves where a model_type is not listed.

Made by `make families` (`scripts/family_docs.py`). Of {all} model types {admitted} are admitted to the streamed step.

A proof shares the engine's code, so it is no second opinion. `scripts/family_reference.py` compares every admitted
family apart from it: sizes and inputs of its own, plain transformers in fp64, whole sequences, each document alone. Its
largest relative difference of a gradient stands in the column "apart": {equal} of {compared} families are equal within
{within:.0e}. Where eager attention's fp32 softmax shows (Granite's scores are large), both compare with SDPA, which is
in fp64. Recurrent layers (Gated DeltaNet, Mamba2, short convolutions) are compared with all their rules in fp64.
Default configurations leave out what larger models of a family add, such as LFM2's convolutions: the proof of a model's
own config.json, which is made in any case, has them. gemma4_text stands for Gemma 4 26B-A4B (31B is its dense kind, 12B
is gemma4_unified_text); E2B, with E4B, shares keys and values between layers, and each layer takes an embedding of its
own. Ranks do not divide a sequence of such a model, nor of one whose attention scores are capped (gemma2, vaultgemma).
Capped scores are written out in torch, many times slower than a kernel; the predicted times assume a rate that was not
measured. The heads of Gemma 4's full layers are 512 wide, which only torch's memory-efficient kernel takes on a GPU:
not run there yet, and the predicted times do not know it.

A plan takes the shapes of a family that no table lists from its modules. Every parameter is counted, and so are the
tensors that a layer holds, where it runs without numbers (`engine/verify/observed_bytes.py`).

A multimodal wrapper (gemma3, mistral3, llava, internvl and others whose config.json has a `text_config`) trains its
text model, where that is admitted.

"""


def main() -> int:
    """Makes what proofs are missing, and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="make every proof anew")
    parser.add_argument("--check", action="store_true", help="compare the page with the stored proofs; write nothing")
    parser.add_argument("model_types", nargs="*")
    args = parser.parse_args()
    rows = {row["model_type"]: row for row in _read(PROOFS)}
    if args.check:
        return int(PAGE.read_text(encoding="utf-8") != _page([rows[name] for name in sorted(rows)]))
    for model_type in args.model_types or _model_types():
        if args.all or args.model_types or model_type not in rows:
            rows[model_type] = _prove(model_type)
            _write([rows[name] for name in sorted(rows)])
            print(model_type, _state(rows[model_type]), file=sys.stderr, flush=True)
    PAGE.write_text(_page([rows[name] for name in sorted(rows)]), encoding="utf-8")
    return 0


def _read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["families"] if path.exists() else []
    return found


def _write(rows: list[dict[str, Any]]) -> None:
    import transformers

    stored = {"command": "make families", "transformers": transformers.__version__, "families": rows}
    PROOFS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def _model_types() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *(name for name in _SETTINGS if "," in name)])


def _prove(model_type: str) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig
    from transformers.utils import logging

    from engine.verify.family_proof import prove_family

    logging.set_verbosity_error()
    torch.set_num_threads(1)

    def late(*_: Any) -> None:
        raise TimeoutError(f"its proof takes more than {_LONGEST} s of a processor")

    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, _LONGEST)  # of the processor's time: a busy machine refuses no family
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = AutoConfig.for_model(model_type.partition(",")[0], **_SETTINGS.get(model_type, {}))
            _complete(config)
            proof = prove_family(config)
        refused, differences = proof.refused, proof.differences
    except Exception as problem:
        refused, differences = dict.fromkeys(_ABILITIES, str(problem).splitlines()[0][:200] or "it fails"), {}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {"model_type": model_type, "refused": refused, "differences": differences}


def _complete(config: Any) -> None:
    """Sets what the default configuration of some families leaves open, and their files do not."""
    settings = config.to_dict()
    if settings.get("num_key_value_heads", 1) is None:
        config.num_key_value_heads = config.num_attention_heads
    if settings.get("head_dim", 1) is None:
        config.head_dim = config.hidden_size // config.num_attention_heads
    if settings.get("num_experts_per_tok", 1) is None:
        config.num_experts_per_tok = 6  # DeepSeek-V2


def _state(row: dict[str, Any]) -> str:
    admitted = [ability for ability in _ABILITIES if not row["refused"].get(ability, "not proven")]
    return ", ".join(admitted) or "nothing"


def _page(rows: list[dict[str, Any]]) -> str:
    stored = json.loads(PROOFS.read_text(encoding="utf-8"))
    apart = json.loads(REFERENCE.read_text(encoding="utf-8"))
    found = {row["model_type"]: row for row in apart["families"]}
    admitted = [row for row in rows if not row["refused"]["streamed"]]
    refused = [row for row in rows if row["refused"]["streamed"]]
    compared = [found[row["model_type"]] for row in admitted if row["model_type"] in found]
    text = _HEAD.format(
        version=stored["transformers"],
        all=sum("," not in row["model_type"] for row in rows),
        admitted=sum("," not in row["model_type"] for row in admitted),
        compared=len(compared),
        equal=sum(row["equal"] for row in compared),
        within=apart["within"],
    )
    text += "## Admitted to the streamed step\n\n"
    text += "| model_type | also | largest difference | apart | not, and why |\n|---|---|---|---|---|\n"
    for row in admitted:
        others = [name for name in _ABILITIES[1:] if not row["refused"].get(name, "not proven")]
        worst = max(value for name, value in row["differences"].items() if name.startswith("streamed"))
        problems = [f"{name}: {row['refused'][name]}" for name in _ABILITIES[1:] if row["refused"].get(name)]
        own = found.get(row["model_type"], {})
        other = f"{own['gradient']:.0e}" if own.get("equal") else own.get("problem", "not compared")
        cells = (row["model_type"], ", ".join(others), f"{worst:.0e}", other, _cell("; ".join(problems)))
        text += f"| {' | '.join(cells)} |\n"
    text += "\n## Refused\n\n| model_type | admitted to | why the streamed step is not |\n|---|---|---|\n"
    for row in refused:
        text += f"| {row['model_type']} | {_state(row)} | {_cell(row['refused']['streamed'])} |\n"
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
