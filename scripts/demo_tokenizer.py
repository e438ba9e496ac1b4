"""The embedded model's tokenizer: byte-level BPE with Qwen2's way of splitting words.

Without a normaliser, so that decoding gives back every text exactly. The same sources give the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

VOCABULARY = 8192
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
# Qwen2's split: words, single digits, runs of signs with their line ends, runs of white space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def texts(paths: list[Path]) -> Iterator[str]:
    """Their contents."""
    for path in paths:
        yield path.read_text(encoding="utf-8")


def train(paths: list[Path]) -> Tokenizer:
    """A byte-level BPE tokenizer whose vocabulary, special tokens included, has VOCABULARY entries."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(SPLIT), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(paths), trainer)
    # Added last, so that they are the highest ids, as in Qwen2.
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"{tokenizer.get_vocab_size()} entries instead of {VOCABULARY}: too little text")
    return tokenizer


def save(tokenizer: Tokenizer, out: Path) -> str:
    """Writes the files that transformers loads; returns the text of tokenizer.json without its last line end."""
    out.mkdir(parents=True, exist_ok=True)
    serialised = tokenizer.to_str(pretty=False)
    (out / "tokenizer.json").write_text(serialised + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return serialised
