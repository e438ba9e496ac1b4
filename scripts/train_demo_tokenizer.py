"""Trains the embedded demo model's tokenizer on the Python standard library's sources.

    python scripts/train_demo_tokenizer.py [--out assets/demo-model] [--sources DIR]

Byte-level BPE without a normaliser, so that decoding gives back every text exactly. The same sources give the
same files: the committed ones come from the CPython named in assets/demo-model/README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sysconfig
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
# Tables of characters, generated documentation, and tests full of odd literals would spend the vocabulary.
LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3", "__pycache__"}


def sources(folder: Path) -> list[Path]:
    """The files to learn from, in a fixed order."""
    found = [path for path in folder.rglob("*.py") if not LEFT_OUT & set(path.relative_to(folder).parts)]
    return sorted(path for path in found if not path.name.startswith("_sysconfigdata"))


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
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return serialised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "assets" / "demo-model")
    parser.add_argument("--sources", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    options = parser.parse_args()
    paths = sources(options.sources)
    tokenizer = train(paths)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"{tokenizer.get_vocab_size()} entries instead of {VOCABULARY}: too little text")
    serialised = save(tokenizer, options.out)
    read = sum(path.stat().st_size for path in paths)
    digest = hashlib.sha256(serialised.encode()).hexdigest()
    print(f"{len(paths)} files, {read:,} bytes; {VOCABULARY} entries; sha256 {digest}")


if __name__ == "__main__":
    main()
