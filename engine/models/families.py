"""Registry of model families by transformers' model_type, with each family's abilities and its config.json keys.

Planner, steps, generation and export ask `refusal`, `require` or `supporting` each time, and keep no list of their
own. A proof on a small copy of a family's configuration may add a row or override one (`admit`). Keys of config.json
and their defaults are those of transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.errors import EliteError
from engine.errors.model import MODEL_FAMILY_UNSUPPORTED

Config = Mapping[str, Any]
"""A config.json."""

Ability = Literal["planned", "whole", "streamed", "fused", "generated", "exported", "gguf"]
"""A supported use of a model. In order: plan a run, train on whole windows, train tile by tile (streamed), use fused
kernels, generate text, export an adapter or a merged model, export as GGUF."""

_FEATURES: dict[Ability, tuple[str, str]] = {
    "planned": ("planning", "its shapes are not known"),
    "whole": ("training", "its gradient has not been shown to be right"),
    "streamed": ("the streamed step", "its gradient has not been shown to be exact"),
    "fused": ("fused kernels", "its gradient with them has not been shown to be right"),
    "generated": ("generation", "its text has not been compared with transformers'"),
    "exported": ("export", "its exported weights have not been compared with the run's"),
    "gguf": ("GGUF export", "llama.cpp's names for its tensors are not known here"),
}
"""Each ability's name in errors, and the default reason why a family lacks it."""

_PROVED: frozenset[Ability] = frozenset({"planned", "whole", "streamed", "generated", "exported"})
"""Abilities that tests prove for every family that does not say otherwise (tests/models/test_families.py)."""
_FUSED: frozenset[Ability] = _PROVED | {"fused"}
"""Abilities of families whose gradient with fused kernels was compared on a GPU with the one without."""


@dataclass(frozen=True, kw_only=True)
class GgufNames:
    """A family's names in a GGUF file."""

    architecture: str
    interleaved: bool = False
    "Whether its rotary embedding rotates neighbouring values, not those half a head apart. Export reorders q and k."
    norm_offset: float = 0.0
    "What norms add to their weights: a file holds the sums."


@dataclass(frozen=True, kw_only=True)
class Family:
    """Shared properties of all models of one transformers `model_type`."""

    does: frozenset[Ability] = _PROVED
    "Abilities proved for the family, except GGUF export, which depends on `gguf`."
    because: str = ""
    "Why the family lacks the abilities that are not in `does`; empty for each ability's default reason."
    gguf: GgufNames | None = None
    shape: Mapping[str, Any] = field(default_factory=dict)
    "ModelSpec fields that are the same for all its models."
    kv_heads: int | None = None
    "Default of num_key_value_heads; None means as many as query heads."
    head_dim: int | None = None
    "Default of head_dim; None means hidden_size / num_attention_heads."
    tied_embeddings: bool = False
    max_context: int = 32768
    rope_defaults: Mapping[str, Any] = field(default_factory=dict)
    "Defaults of other keys that rotary positions depend on."
    defaults: Mapping[str, Any] = field(default_factory=dict)
    "Defaults of keys that config.json must have in other families; a wrapper's file leaves them out."
    from_config: Callable[[Config], dict[str, Any]] = lambda _: {}
    "ModelSpec fields that depend on keys of this family's config.json alone."
    proof: str = ""
    "The settings that a proof admitted it for (engine.models.proofs); empty for what is listed here."


def admit(model_type: str, family: Family) -> None:
    """Adds a row to the registry, or overrides the existing one, for the rest of the process."""
    FAMILIES[model_type] = family


def refusal(model_type: str, ability: Ability) -> str | None:
    """Returns why a family lacks an ability, as the second half of a sentence; None if it has it."""
    family = FAMILIES.get(model_type)
    has = family is not None and (family.gguf is not None if ability == "gguf" else ability in family.does)
    if has:
        return None
    return (family.because if family is not None else "") or _FEATURES[ability][1]


def supporting(ability: Ability) -> tuple[str, ...]:
    """Lists the families that have an ability, by name."""
    return tuple(sorted(name for name in FAMILIES if refusal(name, ability) is None))


def refuse(model_type: str, ability: Ability, problem: str) -> EliteError:
    """Builds the error for a model that lacks an ability, with the families that have it."""
    others = ", ".join(supporting(ability))
    supported = f"{others}, or --to merged" if ability == "gguf" else others
    return MODEL_FAMILY_UNSUPPORTED(
        family=model_type, feature=_FEATURES[ability][0], problem=problem, supported=supported
    )


def require(model_type: str, ability: Ability) -> None:
    """Makes sure that a family has an ability.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
    """
    if (problem := refusal(model_type, ability)) is not None:
        raise refuse(model_type, ability, problem)


def adapts_mlp(model_type: str) -> bool:
    """Tells whether adapters go on the linear layers of a family's MLPs.

    Where layers can hold experts, PEFT takes the name of such a layer for that of the experts' weights and would put
    an adapter on every expert, which the streamed step, the plan and the export do not support.
    """
    family = FAMILIES.get(model_type)
    return family is None or bool(family.shape.get("adapts_mlp", True))


def gguf_names(model_type: str) -> GgufNames:
    """Returns a family's names in a GGUF file.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
    """
    require(model_type, "gguf")
    names = FAMILIES[model_type].gguf
    assert names is not None
    return names


def _attention_bias(config: Config) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    return {"attention_bias": bias, "output_bias": bias}


def _llama(config: Config) -> dict[str, Any]:
    return {**_attention_bias(config), "mlp_bias": bool(config.get("mlp_bias", False))}


def _windowed_after(config: Config) -> dict[str, Any]:
    """Reads Qwen's sliding window, which holds for the layers from max_window_layers on if it is switched on."""
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None
    full = min(config.get("max_window_layers", 28), config["num_hidden_layers"])
    return {"sliding_window": window, "full_attention_layers": full}


def _qwen3(config: Config) -> dict[str, Any]:
    return {**_windowed_after(config), **_attention_bias(config)}


def _windowed(default: int | None) -> Callable[[Config], dict[str, Any]]:
    def read(config: Config) -> dict[str, Any]:
        return {"sliding_window": config.get("sliding_window", default), "full_attention_layers": 0}

    return read


def _alternating(pattern: int, window: int) -> Callable[[Config], dict[str, Any]]:
    """Reads Gemma's pattern. Every `pattern`-th layer has full attention, the others the sliding window."""

    def read(config: Config) -> dict[str, Any]:
        every = config.get("sliding_window_pattern") or pattern
        return {
            **_attention_bias(config),
            "sliding_window": config.get("sliding_window", window),
            "full_attention_layers": config["num_hidden_layers"] // every,
        }

    return read


def _starcoder2(config: Config) -> dict[str, Any]:
    bias = bool(config.get("use_bias", True))
    return {**_windowed(None)(config), "attention_bias": bias, "output_bias": bias, "mlp_bias": bias}


def _mixtral(config: Config) -> dict[str, Any]:
    """Reads Mixtral's experts, which replace the MLP of every layer and are each as wide as a dense one."""
    return {**_windowed(None)(config), **_experts(config, "num_local_experts", 8, 2), **_every_layer_sparse(config)}


def _every_layer_sparse(config: Config) -> dict[str, Any]:
    return {"expert_size": config["intermediate_size"], "sparse_layers": config["num_hidden_layers"]}


def _qwen3_moe(config: Config) -> dict[str, Any]:
    """Reads Qwen3's experts, in each decoder_sparse_step-th layer not in mlp_only_layers; all layers share a window."""
    layers, dense = range(config["num_hidden_layers"]), config.get("mlp_only_layers") or ()
    step = config.get("decoder_sparse_step", 1)
    # The key was renamed within transformers 5; a file may have either.
    name = "num_experts" if "num_experts" in config else "num_local_experts"
    experts = _experts(config, name, 128, 8)
    sparse = [layer for layer in layers if layer not in dense and experts["experts"] and (layer + 1) % step == 0]
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None
    return {
        **_attention_bias(config),
        **experts,
        "expert_size": config.get("moe_intermediate_size", 768),
        "sparse_layers": len(sparse),
        "sliding_window": window,
        "full_attention_layers": 0,
    }


def _experts(config: Config, name: str, experts: int, chosen: int) -> dict[str, Any]:
    return {"experts": config.get(name, experts), "experts_per_token": config.get("num_experts_per_tok", chosen)}


def _exaone4(config: Config) -> dict[str, Any]:
    """Reads EXAONE's pattern. Every n-th layer attends to everything; a word of L and G stands in layer_types too."""
    pattern, layers = config.get("sliding_window_pattern", 4), config["num_hidden_layers"]
    every = pattern if isinstance(pattern, int) and pattern > 0 else len(pattern or "") or layers
    return {"sliding_window": config.get("sliding_window", 4096), "full_attention_layers": layers // every}


def _seed_oss(config: Config) -> dict[str, Any]:
    return {
        "attention_bias": bool(config.get("attention_bias", True)),
        "output_bias": bool(config.get("attention_out_bias", False)),
        "mlp_bias": bool(config.get("mlp_bias", False)),
    }


def _use_bias(config: Config) -> dict[str, Any]:
    return dict.fromkeys(("attention_bias", "output_bias", "mlp_bias"), bool(config.get("use_bias", False)))


def _smollm3(config: Config) -> dict[str, Any]:
    """Reads SmolLM3's pattern. Layers without rotary positions attend through the window, where it is switched on."""
    layers = config["num_hidden_layers"]
    rotates = config.get("no_rope_layers")
    if rotates is None:
        every = config.get("no_rope_layer_interval", 4)
        rotates = [(layer + 1) % every != 0 for layer in range(layers)]
    window = config.get("sliding_window") if config.get("use_sliding_window", False) else None
    return {**_llama(config), "sliding_window": window, "full_attention_layers": sum(map(bool, rotates))}


def _qkv_bias(config: Config) -> dict[str, Any]:
    return {"attention_bias": bool(config.get("attention_bias", True))}


_LAYER_NORM = {"norm_bias": True, "gated_mlp": False}
_ALL_BIASES = {"attention_bias": True, "output_bias": True, "mlp_bias": True}

FAMILIES: dict[str, Family] = {
    "ernie4_5": Family(kv_heads=2, head_dim=128, tied_embeddings=True, max_context=131_072, from_config=_use_bias),
    "exaone4": Family(shape={"qk_norm": True}, kv_heads=32, max_context=2048, from_config=_exaone4),
    "gemma": Family(
        gguf=GgufNames(architecture="gemma", norm_offset=1.0),
        kv_heads=16,
        head_dim=256,
        tied_embeddings=True,
        max_context=8192,
        from_config=_attention_bias,
    ),
    "gemma2": Family(
        defaults={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        shape={"norms_per_layer": 4},
        kv_heads=4,
        head_dim=256,
        tied_embeddings=True,
        max_context=8192,
        from_config=_alternating(2, 4096),
    ),
    "gemma3_text": Family(
        gguf=GgufNames(architecture="gemma3", norm_offset=1.0),
        shape={"norms_per_layer": 4, "qk_norm": True},
        kv_heads=4,
        head_dim=256,
        tied_embeddings=True,
        max_context=131_072,
        defaults={"num_attention_heads": 8, "vocab_size": 262_208},
        from_config=_alternating(6, 4096),
    ),
    "glm": Family(shape={"fused_mlp": True}, kv_heads=2, head_dim=128, max_context=131_072, from_config=_qkv_bias),
    "glm4": Family(
        shape={"fused_mlp": True, "norms_per_layer": 4},
        kv_heads=2,
        head_dim=128,
        max_context=131_072,
        from_config=_qkv_bias,
    ),
    "granite": Family(gguf=GgufNames(architecture="granite", interleaved=True), max_context=2048, from_config=_llama),
    "llama": Family(
        does=_FUSED,
        gguf=GgufNames(architecture="llama", interleaved=True),
        max_context=2048,
        from_config=_llama,
    ),
    "ministral3": Family(
        shape={"takes_yarn": False}, kv_heads=8, head_dim=128, max_context=262_144, from_config=_windowed(None)
    ),
    "mistral": Family(
        does=_FUSED,
        gguf=GgufNames(architecture="llama", interleaved=True),
        kv_heads=8,
        max_context=131_072,
        from_config=_windowed(4096),
    ),
    "mixtral": Family(shape={"adapts_mlp": False}, kv_heads=8, max_context=131_072, from_config=_mixtral),
    "olmo2": Family(
        gguf=GgufNames(architecture="olmo2"),
        shape={"qk_norm": True, "qk_norm_of_all_heads": True},
        max_context=2048,
        from_config=_attention_bias,
    ),
    "olmo3": Family(
        shape={"qk_norm": True, "qk_norm_of_all_heads": True}, max_context=2048, from_config=_alternating(4, 4096)
    ),
    "phi": Family(
        shape={**_LAYER_NORM, **_ALL_BIASES, "head_bias": True, "norms_per_layer": 1},
        max_context=2048,
        from_config=lambda config: {"qk_norm": bool(config.get("qk_layernorm", False))},
    ),
    "phi3": Family(
        gguf=GgufNames(architecture="phi3"),
        # transformers takes YaRN in a file of this family for LongRoPE, so a stretched model could not be loaded again.
        shape={"fused_projections": True, "takes_yarn": False},
        max_context=4096,
        rope_defaults={"original_max_position_embeddings": 4096},
        from_config=_windowed(None),
    ),
    "qwen2": Family(
        does=_FUSED,
        gguf=GgufNames(architecture="qwen2"),
        shape={"attention_bias": True},
        kv_heads=32,
        from_config=_windowed_after,
    ),
    "qwen3": Family(
        does=_FUSED,
        gguf=GgufNames(architecture="qwen3"),
        shape={"qk_norm": True},
        kv_heads=32,
        head_dim=128,
        from_config=_qwen3,
    ),
    "qwen3_moe": Family(
        gguf=GgufNames(architecture="qwen3moe"),
        shape={"qk_norm": True, "adapts_mlp": False},
        kv_heads=4,
        from_config=_qwen3_moe,
    ),
    "seed_oss": Family(
        gguf=GgufNames(architecture="seed_oss"),
        kv_heads=8,
        head_dim=128,
        max_context=524_288,
        from_config=_seed_oss,
    ),
    "smollm3": Family(
        gguf=GgufNames(architecture="smollm3", interleaved=True),
        kv_heads=4,
        tied_embeddings=True,
        max_context=32_768,
        from_config=_smollm3,
    ),
    "starcoder2": Family(
        gguf=GgufNames(architecture="starcoder2"),
        shape={**_LAYER_NORM, **_ALL_BIASES},
        kv_heads=2,
        tied_embeddings=True,
        max_context=4096,
        from_config=_starcoder2,
    ),
}
"""The registry. tests/models/test_families.py loads, plans, trains, generates and exports every row as it claims."""


DROPOUTS = (
    "activation_dropout",
    "attention_dropout",
    "attn_dropout",
    "attn_pdrop",
    "dropout",
    "embd_pdrop",
    "embedding_dropout",
    "ffn_dropout",
    "hidden_dropout",
    "layerdrop",
    "resid_dropout",
    "resid_pdrop",
    "residual_dropout",
)
"""Keys of config.json for the dropout of pretraining, which fine-tuning switches off (engine.models.loading). The
streamed step would draw other numbers in its recomputation, and both kinds of step must give the same gradient."""


_WITHOUT_KERNEL = {
    "use_bidirectional_attention": "it does not attend causally",
    "index_topk": "an indexer chooses the keys of each query among all of them",
}
"""Settings that neither way to compute a step knows, where they are set, and why."""
_OF_IMAGES = {"use_bidirectional_attention": "vision"}
"""Values of such settings that concern an image's tokens alone, which no text here holds."""


def setting_refusals(config: Config) -> dict[Ability, str]:
    """Returns the abilities that a model's own settings rule out, with the reason for each.

    Args:
        config: config.json, or `to_dict()` of a transformers configuration.
    """
    denied: dict[Ability, str] = {}
    for name, problem in _WITHOUT_KERNEL.items():
        if config.get(name) and config[name] != _OF_IMAGES.get(name):
            denied |= dict.fromkeys(("whole", "streamed"), f"{name}: {problem}")
    return denied
