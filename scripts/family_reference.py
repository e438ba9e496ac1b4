"""Compares the streamed step of every admitted family with plain transformers, apart from the engine's own proof.

    python scripts/family_reference.py [--json benchmarks/results/family_reference.json] [model_type ...]

The proof (engine.verify.family_proof) shrinks a configuration, draws inputs and compares by code of the engine. Nothing
of it is used here: the sizes below are written out, the weights are transformers' own initialisation with noise on
every parameter, each document is computed alone by the model's own forward and SDPA (eager where a family has no
other), and gradients are autograd's, all in fp64. Only the streamed step itself comes from the engine. Families with
recurrent layers cast to fp32 inside, and so does the softmax of those that attend eagerly; there both sides keep fp64,
since their chunks begin elsewhere and round otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "family_reference.json"
WITHIN = 2e-5
"""Relative difference of a gradient that is still rounding: parts of some families compute in fp32 in any case."""

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "intermediate_size": 44,
    "max_position_embeddings": 300,
    "sliding_window": 13,
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "moe_num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 28,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 20,
    "linear_conv_kernel_dim": 4,
    "mamba_n_heads": 6,
    "mamba_d_head": 32,
    "mamba_d_state": 10,
    "mamba_chunk_size": 16,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
}
"""Values that a configuration gets where it has such a key."""
KINDS = ("sliding_attention", "full_attention", "full_attention", "sliding_attention", "full_attention")
"""Of layers, where a family lists them."""
_LATENT = {
    "kv_lora_rank": 22,
    "q_lora_rank": 26,
    "qk_nope_head_dim": 14,
    "qk_rope_head_dim": 10,
    "v_head_dim": 12,
    "num_key_value_heads": 6,
    "head_dim": 10,
}
_WIDE_HEADS = {
    "layer_types": ["sliding_attention"] * 2 + ["full_attention", "sliding_attention", "full_attention"],
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 2,
    "global_head_dim": 24,
    "final_logit_softcapping": 30.0,
    "hidden_size_per_layer_input": 0,
}
_TOWER = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 2}
OWN: dict[str, dict[str, Any]] = {
    "falcon_h1": {"mamba_d_ssm": 192, "mamba_n_groups": 2},
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"), _LATENT),
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2, "topk_method": "greedy", "q_lora_rank": None},
    "kimi_linear": {
        **_LATENT,
        "num_experts_per_token": 2,
        "layer_types": ["linear_attention", "full_attention"] * 2 + ["full_attention"],
        "linear_head_dim": 12,
        "linear_num_heads": 3,
    },
    "llama4_text": {
        "attention_chunk_size": 11,
        "floor_scale": 7,
        "no_rope_layers": [1, 0, 1, 1, 0],
        "intermediate_size_mlp": 36,
        "num_experts_per_tok": 1,
    },
    "mimo_v2_flash": {"v_head_dim": 12, "num_attention_heads": 6, "num_key_value_heads": 3},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "mamba", "attention"]},
    "gemma4_text": {**_WIDE_HEADS, "enable_moe_block": True, "num_experts": 6, "top_k_experts": 2},
    "gemma4_text, E2B": {
        "layer_types": [*KINDS[:2], "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_hidden_layers": 6,
        "global_head_dim": 24,
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 30.0,
        "hidden_size_per_layer_input": 10,
        "vocab_size_per_layer_input": 101,
    },
    "gemma4_unified_text": _WIDE_HEADS,
    "gemma3n_text": {
        "layer_types": [
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "full_attention",
            "sliding_attention",
        ],
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.8, 0.0, 0.0, 0.0, 0.0],
        "altup_num_inputs": 3,
        "laurel_rank": 5,
        "hidden_size_per_layer_input": 10,
        "vocab_size_per_layer_input": 101,
    },
    "gemma2": {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 3},
    "vaultgemma": {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 3},
    "gpt_bigcode": {"num_key_value_heads": 1},
    "phi4_multimodal": {
        "vision_config": {**_TOWER, "num_hidden_layers": 3, "image_size": 28, "crop_size": 28},
        "audio_config": {
            **_TOWER,
            "num_blocks": 2,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 32,
            "nemo_final_size": 10,
        },
    },
}
"""What a family needs beside these."""
DOCUMENTS = ((0,), (0, 8, 9, 33))
TOKENS = 57
PLANS = (
    {"tile": 10, "key_block": 16, "loss_piece": 9},
    {"tile": 24, "key_block": 24, "loss_piece": 60, "stash": False},
)


def small(model_type: str) -> Any:
    """The configuration that a family is compared with."""
    from transformers import AutoConfig

    family = model_type.partition(",")[0]
    default = AutoConfig.for_model(family)
    keys = default.to_dict()
    named = {
        key: value for key, value in SIZES.items() if key in keys and not (key == "sliding_window" and not keys[key])
    }
    kinds = keys.get("layer_types")
    if kinds and set(kinds) <= {"sliding_attention", "full_attention"}:
        named["layer_types"] = [kind if kind in kinds else kinds[0] for kind in KINDS]
    return AutoConfig.for_model(family, **{**named, **OWN.get(model_type, {})})


def compare(model_type: str) -> dict[str, Any]:
    """The largest relative difference of loss and gradients of one family, over documents and layouts of tiles."""
    import torch
    from transformers import AutoModelForCausalLM

    from engine.models import families
    from engine.plan.stream_plan import StreamPlan
    from engine.streaming.step import StreamedStep

    torch.manual_seed(sum(map(ord, model_type)))
    config = small(model_type)
    try:
        if getattr(config, "attn_logit_softcapping", None):
            raise ValueError("SDPA leaves the cap out")
        model, attention = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"), "sdpa"
    except ValueError:
        model, attention = AutoModelForCausalLM.from_config(config, attn_implementation="eager"), "eager"
    model.config._experts_implementation = "eager"
    model = model.double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.07 * torch.randn_like(parameter))
    ids = torch.randint(3, SIZES["vocab_size"], (TOKENS,))
    families.admit(config.model_type, families.Family())  # what is tested here
    worst = {"loss": 0.0, "gradient": 0.0}
    where = ""
    casts = attention == "eager" or any(isinstance(part, torch.nn.Conv1d) for part in model.modules())
    for starts in DOCUMENTS:
        with _wide() if casts else nullcontext():
            total, wanted = _alone(model, ids, starts)
        if not total == total:
            raise ValueError("its loss is not finite")
        scale = sum(float(gradient.norm()) ** 2 for gradient in wanted.values()) ** 0.5
        for plan in PLANS:
            model.zero_grad()
            with (
                _wide() if casts else nullcontext(),
                StreamedStep(model, StreamPlan(**plan), device=torch.device("cpu")) as step,
            ):
                found = step.run(ids, document_starts=starts).loss_sum
            worst["loss"] = max(worst["loss"], abs(found - total) / abs(total))
            for name, parameter in model.named_parameters():
                want = wanted.get(name, torch.zeros(()).double())
                got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                error = float((got - want).norm() / (want.norm() + 1e-3 * scale))
                if not error <= worst["gradient"]:
                    worst["gradient"], where = error, name
    parameters = sum(parameter.numel() for parameter in model.parameters())
    kinds = sorted({type(layer).__name__ for layer in model.modules() if type(layer).__name__.endswith("Layer")})
    return {
        "model_type": model_type,
        "attention": attention,
        "loss": worst["loss"],
        "gradient": worst["gradient"],
        "where": where,
        "parameters": parameters,
        "layers": kinds,
        "equal": bool(max(worst.values()) < WITHIN),
    }


def _wide() -> Any:
    """Keeps fp64 tensors from being cast to fp32, in forward and backward passes within the block.

    A product of one with positions in fp32, as older rotary embeddings compute it, widens these.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Wide(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            options = kwargs or {}
            if function is torch.ops.aten._to_copy.default and args[0].dtype is torch.float64:
                options = {key: value for key, value in options.items() if key != "dtype" or value is not torch.float32}
            if function is torch.ops.aten.bmm.default and args[0].dtype is not args[1].dtype:
                args = tuple(factor.double() for factor in args)
            return function(*args, **options)

    return Wide()


def _alone(model: Any, ids: Any, starts: tuple[int, ...]) -> tuple[float, dict[str, Any]]:
    """Summed loss, and gradients of its mean, of documents that are each computed by themselves."""
    import torch
    from torch.nn import functional

    ends = [*starts[1:], len(ids)]
    losses = []
    for start, end in zip(starts, ends, strict=True):
        if end - start > 1:
            logits = model(input_ids=ids[None, start:end], use_cache=False).logits[0, :-1].double()
            losses.append(functional.cross_entropy(logits, ids[start + 1 : end], reduction="sum"))
    total = torch.stack(losses).sum()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    mean = total / (len(ids) - len(starts))
    gradients = torch.autograd.grad(mean, list(trained.values()), allow_unused=True)
    return float(total.detach()), {n: g for n, g in zip(trained, gradients, strict=True) if g is not None}


def admitted(also: str = "") -> list[str]:
    """Model types that docs/families.md lists as admitted to the streamed step, and to another use as well."""
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    table = page.partition("## Admitted to the streamed step")[2].partition("## Refused")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")]
    return [row[1].strip() for row in rows if row[1].strip() != "model_type" and also in row[2]]


def main() -> int:
    """Compares the families, and stores what was found; 1 where one differs."""
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("model_types", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    before = json.loads(args.json.read_text(encoding="utf-8"))["families"] if args.json.exists() else []
    rows = {row["model_type"]: row for row in before}
    for model_type in args.model_types or admitted():
        began = time.monotonic()
        try:
            rows[model_type] = compare(model_type)
        except Exception as problem:
            said = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            rows[model_type] = {"model_type": model_type, "equal": False, "problem": said[:200]}
        row = rows[model_type]
        shown = row.get("problem") or f"{row['gradient']:.1e} {row['where']}"
        print(
            f"{model_type}: {'equal' if row['equal'] else 'DIFFERS'} {shown} ({time.monotonic() - began:.1f} s)",
            flush=True,
        )
        found = {
            "command": "python scripts/family_reference.py",
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "within": WITHIN,
            "families": [rows[name] for name in sorted(rows)],
        }
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["equal"] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
