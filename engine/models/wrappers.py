"""Takes the text model out of a multimodal one (Gemma 3 and 4, Mistral 3, Qwen 3.5): its settings and its tensors.

config.json of a wrapper holds the text model's settings in `text_config`. Its files hold the text model's tensors under
`language_model.`, outside the wrapper's own model or inside it, beside those of a vision tower and a projector, which
are left alone. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_SHARED = (
    "quantization_config",
    "compression_config",
    "quantization",
    "dtype",
    "torch_dtype",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Keys that a wrapper may keep outside `text_config`."""
_TIED = "tie_word_embeddings"
"""The key by which a wrapper ties its head; what `text_config` says of it counts only where the wrapper is silent."""
_TEXT_TYPES = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "mistral3": "mistral",
}
"""model_type of `text_config` where a wrapper's file leaves it out."""
_RENAMES = {
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^model\.language_model\.": "model.",
}
"""Prefixes of a text model's tensors in a wrapper's files → their names in the text model alone."""
_HEAD = "lm_head."


def is_wrapper(config: Mapping[str, Any]) -> bool:
    """Tells whether a config.json describes a model around a text model."""
    return isinstance(config.get("text_config"), dict)


def text_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of the text model of a config.json; all of them where it is one itself."""
    if not is_wrapper(config):
        return dict(config)
    inner = dict(config["text_config"])
    inner.setdefault("model_type", _TEXT_TYPES.get(str(config.get("model_type"))))
    own = {_TIED: config[_TIED]} if _TIED in config else {}
    shared = {key: config[key] for key in _SHARED if config.get(key) is not None and inner.get(key) is None}
    return {**inner, **shared, **own}


def text_renames(names: Iterable[str]) -> dict[str, str]:
    """Returns the rules that turn stored names into the text model's, as `key_mapping` of transformers takes them."""
    found = list(names)
    return {pattern: new for pattern, new in _RENAMES.items() if any(re.match(pattern, name) for name in found)}


def is_of_text(name: str) -> bool:
    """Tells whether a tensor of a wrapper's files belongs to its text model."""
    return name.startswith(_HEAD) or any(re.match(pattern, name) for pattern in _RENAMES)


def text_name(name: str, renames: Mapping[str, str]) -> str:
    """Returns the name in the text model of a stored tensor."""
    for pattern, new in renames.items():
        if re.match(pattern, name):
            return re.sub(pattern, new, name)
    return name
