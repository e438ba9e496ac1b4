"""Makes finished runs of tiny models of several families, with real tokenizers, for export tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers import AutoModelForCausalLM as AutoModel

from engine.config import from_mapping
from engine.models.adapter import attach_adapter, save_adapter, trainable
from engine.models.base_changes import NO_CHANGES, BaseChanges
from engine.models.base_fingerprint import fingerprint
from engine.models.catalogue import find_model
from engine.models.loading import load_model, load_tokenizer, open_weights
from engine.models.placement import choose_placement
from engine.runs.run_directory import RunDirectory

VOCABULARY = 640
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_TEXTS = [path.read_text(encoding="utf-8") for path in sorted(Path(json.__file__).parent.glob("*.py"))]
SPLITS = {
    "qwen2": r"\p{N}",
    "llama-bpe": r"\p{N}{1,3}",
}


def byte_level_tokenizer(numbers: str = r"\p{N}") -> Tokenizer:
    """Trains byte-level BPE with the word rule of Qwen2 or Llama 3, and fill-in-the-middle tokens."""
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + numbers + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(_TEXTS, BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    special = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """Makes SentencePiece's kind, as of Llama 2 and Phi-3: spaces are "▁", unknown text becomes bytes."""
    trained = Tokenizer(BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+|▁+"), behavior="isolated")
    trained.train_from_iterator(_TEXTS, BpeTrainer(vocab_size=340, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [tuple(pair) for pair in model["merges"]]
    learnt = sorted(model["vocab"], key=model["vocab"].__getitem__)
    vocabulary = {text: number for number, text in enumerate([*first, *learnt])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in first[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def save_base(
    path: Path, family: str, tokenizer: Tokenizer, *, tied: bool = False, seed: int = 0, **shape: Any
) -> Path:
    """Saves a tiny random model in Hugging Face format, with random biases and norms: zeros and ones hide mistakes."""
    torch.manual_seed(seed)
    head = {"head_dim": 16} if family in ("qwen3", "qwen3_moe", "mistral") else {}
    window = {"sliding_window": None} if family == "mistral" else {}
    config = AutoConfig.for_model(family, **{**_SHAPE, **head, **window, "tie_word_embeddings": tied, **shape})
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path)
    fallback = tokenizer.token_to_id("<s>") is not None
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} if fallback else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(names or {"eos_token": "<|endoftext|>"}))
    fast.save_pretrained(path)
    return path


def finished_run(
    path: Path,
    base: Path | str,
    *,
    lora: dict[str, Any] | None = None,
    changes: BaseChanges = NO_CHANGES,
    seed: int = 1,
    chat_template: str = "",
    **model: Any,
) -> RunDirectory:
    """Makes a run's folder as training leaves it, with an adapter of random updates."""
    config = from_mapping(
        {
            "model": {"name": str(base), **model},
            "data": {"repositories": ["."], "chat_template": chat_template},
            "lora": {"rank": 4, "alpha": 8.0, **(lora or {})},
            "output": {"directory": str(path), "model_name": "tiny"},
        }
    )
    run = RunDirectory.create(config)
    spec = find_model(str(base))
    adapted = attach_adapter(load_model(spec, choose_placement("cpu", "fp32"), changes), config.lora, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trainable(adapted).items():
            if re.search("lora_B", name):
                parameter.normal_(std=0.05)
            elif "magnitude" in name:
                parameter.mul_(1.1)
    save_adapter(adapted, run.adapter_path, load_tokenizer(spec), changes, fingerprint(open_weights(spec)[0]))
    return run


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits.float()
    return found


def adapter_logits(run: RunDirectory, ids: torch.Tensor, changes: BaseChanges = NO_CHANGES) -> torch.Tensor:
    """Returns fp32 logits (batch, tokens, vocabulary) of the run's base with its adapter, by PEFT."""
    from peft import PeftModel

    base = load_model(find_model(run.load_config().model.name), choose_placement("cpu", "fp32"), changes)
    return logits(PeftModel.from_pretrained(base, run.adapter_path), ids)
