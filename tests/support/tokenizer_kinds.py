"""Makes tokenizers of every kind that models use, with the tokenizers library alone."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [path.read_text(encoding="utf-8") for path in sorted(Path(json.__file__).parent.glob("*.py"))]
CODE_LLAMA = ("▁<PRE>", "▁<SUF>", "▁<MID>")
QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<tool_call>", "</tool_call>", "<think>")


def added(name: str, *, special: bool = False, **how: bool) -> AddedToken:
    return AddedToken(name, special=special, normalized=how.pop("normalized", False), **how)


def byte_level(tokens: Sequence[AddedToken] = (), *, ignore_merges: bool = False) -> Tokenizer:
    """Makes GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>", "<in_vocabulary>"]
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def byte_fallback(tokens: Sequence[AddedToken] = (), scheme: str = "legacy") -> Tokenizer:
    """Makes the kind of Llama 2, CodeLlama and Gemma: SentencePiece's BPE.

    Args:
        tokens: Additional tokens.
        scheme: Source of a text's leading space: the normaliser ("legacy"), or Metaspace ("always", "first", "never").
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁\n]+|\n|▁+"), behavior="isolated")
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learnt = sorted(model["vocab"], key=model["vocab"].__getitem__)
    vocabulary = {text: number for number, text in enumerate([*first, *learnt])}
    merges = [tuple(pair) for pair in model["merges"]]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if scheme == "legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Sequence(spaces if scheme == "never" else [*spaces, decoders.Strip(" ", 1, 0)])
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in first[:3]])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.add_tokens(list(tokens))
    return made


def unigram(tokens: Sequence[AddedToken] = (), scheme: str = "first") -> Tokenizer:
    """Makes SentencePiece's other kind, whose vocabulary holds the control tokens as words."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    letters = sorted(set("".join(TEXTS)) | set(map(chr, range(32, 127))))
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        unk_token="<unk>",
        special_tokens=["<unk>", "<s>", "</s>", "<control>"],
        initial_alphabet=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, "".join(letters)], trainer)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def word_piece(tokens: Sequence[AddedToken] = ()) -> Tokenizer:
    """Makes BERT's kind. It loses spaces, so encoded text cannot be restored."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens(list(tokens))
    return tokenizer


VARIANTS = (
    *(added(name) for name in QWEN),
    added("<plain>", normalized=True),
    added("<left>", lstrip=True),
    added("<right>", rstrip=True, normalized=True),
    added("<alone>", single_word=True),
    added("[INST]"),
    added("|||EMAIL|||"),
    added("<flagged>", special=True),
)
KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": functools.partial(byte_level, VARIANTS),
    "byte level, whole words": functools.partial(byte_level, VARIANTS, ignore_merges=True),
    "legacy": functools.partial(byte_fallback, [*VARIANTS, *(added(name, special=True) for name in CODE_LLAMA)]),
    **{scheme: functools.partial(byte_fallback, VARIANTS, scheme) for scheme in ("always", "first", "never")},
    "unigram": functools.partial(unigram, VARIANTS),
}
