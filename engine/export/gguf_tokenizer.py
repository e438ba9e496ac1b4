"""Converts a fast tokenizer from tokenizer.json to GGUF.

GGUF has two kinds: "gpt2" is byte-level BPE with a list of merges and a named rule for splitting text into words;
"llama" is SentencePiece's BPE with byte fallback, which merges the pair with the highest score.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from engine import regular_file
from engine.errors import EliteError
from engine.errors.export import EXPORT_DAMAGED
from engine.errors.model import MODEL_FAMILY_UNSUPPORTED
from engine.export.source import read_json, trained_encoder

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from engine.tokenization.encoder import Encoder

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS: dict[tuple[str, ...], str] = {
    ("bytes by words",): "gpt-2",
    ("digits", "bytes by words"): "starcoder",
    (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_SIGNS}", "bytes"): "qwen2",
    (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}", "bytes"): "llama-bpe",
    ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", "digits", "bytes"): "deepseek-coder",
}
"""Rules for splitting text into words, as a list of steps, with llama.cpp's name for each rule."""
_FIM = {
    "FIM_PRE_ID": ("<|fim_prefix|>", "<fim_prefix>", "<｜fim▁begin｜>", "▁<PRE>"),
    "FIM_SUF_ID": ("<|fim_suffix|>", "<fim_suffix>", "<｜fim▁hole｜>", "▁<SUF>"),
    "FIM_MID_ID": ("<|fim_middle|>", "<fim_middle>", "<｜fim▁end｜>", "▁<MID>"),
    "FIM_PAD_ID": ("<|fim_pad|>",),
    "FIM_REP_ID": ("<|repo_name|>", "<reponame>"),
    "FIM_SEP_ID": ("<|file_sep|>",),
}
_WHOLE_WORDS = ("llama-bpe",)
"""Names under which llama.cpp takes a word of the vocabulary whole, whatever its merges (llama-vocab.cpp)."""
_UNUSED_SCORE = -1e6
_PREPEND = {"type": "Prepend", "prepend": "▁"}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
"""What llama.cpp does to a text before it looks for SentencePiece's tokens."""


@dataclass(frozen=True, kw_only=True)
class GgufTokenizer:
    """A tokenizer as GGUF stores it."""

    kind: str
    pre: str
    tokens: list[str]
    types: list[int]
    special: dict[str, int]
    "Token ids of bos, eos, unk and pad."
    add_bos: bool
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    space_prefix: bool = False
    fim: dict[str, int] = field(default_factory=dict)
    "Key of gguf.Keys.Tokenizer → token id."
    chat_template: str = ""

    def write(self, writer: GGUFWriter) -> None:
        """Adds the tokenizer to a file's metadata."""
        from gguf import Keys

        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.kind == "gpt2":
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_prefix)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(value=False)
        for name, number in self.fim.items():
            writer.add_uint32(getattr(Keys.Tokenizer, name), number)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_tokenizer(folder: Path, vocabulary: int) -> GgufTokenizer:
    """Reads the tokenizer in a folder.

    Args:
        folder: Holds tokenizer.json and tokenizer_config.json.
        vocabulary: Rows of the model's embedding; ids that the tokenizer lacks are padded.

    Raises:
        EliteError: EXPORT_DAMAGED, or MODEL_FAMILY_UNSUPPORTED for a tokenizer that GGUF cannot express.
    """
    stored, settings = read_json(folder / "tokenizer.json"), read_json(folder / "tokenizer_config.json")
    model = stored.get("model") or {}
    if model.get("type") != "BPE":
        raise _unsupported(f"its tokenizer is of type {model.get('type', 'unknown')}")
    encoder = trained_encoder(folder)
    if len(encoder.first) > 1:
        raise _unsupported(f"it begins texts with {len(encoder.first)} tokens, and llama.cpp puts one there")
    added = {entry["content"]: entry for entry in stored.get("added_tokens", [])}
    ids: dict[str, int] = {**model["vocab"], **{text: entry["id"] for text, entry in added.items()}}
    if max(ids.values()) >= vocabulary:
        raise EXPORT_DAMAGED(
            path=folder, problem=f"its tokenizer has token {max(ids.values())}, its model {vocabulary} tokens"
        )
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    unknown = model.get("unk_token")
    tokens, types = _tokens(ids, added, vocabulary, unknown)
    common: dict[str, Any] = {
        "tokens": tokens,
        "types": types,
        "special": _special(settings, ids, unknown, encoder),
        "add_bos": bool(encoder.first),
        "fim": {key: ids[text] for key, texts in _FIM.items() for text in texts if text in added and text in ids},
        "chat_template": _chat_template(folder, settings),
    }
    if model.get("byte_fallback"):
        _check_pieces(stored)
        _check_whole_words(stored, "llama")
        return GgufTokenizer(
            kind="llama", pre="default", scores=_scores(pairs, ids, tokens), space_prefix=_prefixes(stored), **common
        )
    _check_bytes(stored)
    pre = _pre(stored)
    _check_whole_words(stored, pre)
    return GgufTokenizer(kind="gpt2", pre=pre, merges=[" ".join(pair) for pair in pairs], **common)


def _tokens(
    ids: dict[str, int], added: dict[str, Any], vocabulary: int, unknown: str | None
) -> tuple[list[str], list[int]]:
    from gguf import TokenType

    tokens = [f"[PAD{number}]" for number in range(vocabulary)]
    types = [int(TokenType.UNUSED)] * vocabulary
    for text, number in ids.items():
        tokens[number], types[number] = text, int(TokenType.NORMAL)
        if text == unknown:
            types[number] = int(TokenType.UNKNOWN)
        elif text in added:
            types[number] = int(TokenType.CONTROL if added[text].get("special") else TokenType.USER_DEFINED)
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types[number] = int(TokenType.BYTE)
    return tokens, types


def _scores(pairs: list[list[str]], ids: dict[str, int], tokens: list[str]) -> list[float]:
    """Scores merges, since SentencePiece merges the highest-scoring pair: earlier merges score higher."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    return [-float(ranks[text]) if text in ranks and text in ids else _UNUSED_SCORE for text in tokens]


def _special(settings: dict[str, Any], ids: dict[str, int], unknown: str | None, encoder: Encoder) -> dict[str, int]:
    named = {}
    for name in ("bos", "eos", "unk", "pad"):
        token = settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        text = text or (unknown if name == "unk" else None)
        if text in ids:
            named[name] = ids[text]
    # Training began and ended every document with these, whatever the settings say.
    named["eos"] = encoder.end
    if encoder.first:
        named["bos"] = encoder.first[0]
    return named


def _prefixes(stored: dict[str, Any]) -> bool:
    """Whether the tokenizer prepends a space to a text."""
    steps = [*_flat(stored.get("normalizer"), "normalizers"), *_flat(stored.get("pre_tokenizer"), "pretokenizers")]
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _pre(stored: dict[str, Any]) -> str:
    """Returns llama.cpp's name for the tokenizer's rule for splitting text into words."""
    steps = tuple(filter(None, map(_step, _flat(stored.get("pre_tokenizer"), "pretokenizers"))))
    if steps not in _SPLITS:
        raise _unsupported(f"it splits text in a way that has no name there ({' then '.join(steps) or 'not at all'})")
    return _SPLITS[steps]


def _check_bytes(stored: dict[str, Any]) -> None:
    """Refuses settings of a byte-level tokenizer that GGUF has no field for, so that llama.cpp would not apply them.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
    """
    # llama.cpp does not normalise to NFC either, but nearly all text is in that form, and Qwen's tokenizers name it.
    others = [step["type"] for step in _flat(stored.get("normalizer"), "normalizers") if step["type"] != "NFC"]
    if others:
        raise _unsupported(f"it changes text before it splits it ({', '.join(others)})")
    if any(step.get("add_prefix_space") for step in _flat(stored.get("pre_tokenizer"), "pretokenizers")):
        raise _unsupported("it puts a space before a text (add_prefix_space)")
    marked = next(
        (name for name in ("continuing_subword_prefix", "end_of_word_suffix") if stored["model"].get(name)), ""
    )
    if marked:
        raise _unsupported(f"it marks parts of words ({marked})")


def _check_whole_words(stored: dict[str, Any], pre: str) -> None:
    """Refuses `ignore_merges` where llama.cpp, which ties it to the name of the split, would encode a word otherwise.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
    """
    model = stored["model"]
    takes, does = bool(model.get("ignore_merges")), pre in _WHOLE_WORDS
    if takes == does:
        return
    merging = Tokenizer.from_str(json.dumps({**stored, "model": {**model, "ignore_merges": False, "dropout": None}}))
    added = {token["content"] for token in stored.get("added_tokens", [])}
    # A word that its merges make is one token either way.
    odd = next((word for word in model["vocab"] if word not in added and len(merging.model.tokenize(word)) > 1), None)
    if odd is not None:
        raise _unsupported(
            f"its ignore_merges is {str(takes).lower()} and no merges make its token {odd!r}; "
            f"of this kind ({pre}) llama.cpp {'takes whole words' if does else 'always merges'}"
        )


def _check_pieces(stored: dict[str, Any]) -> None:
    """Refuses steps of SentencePiece's kind of tokenizer other than those that llama.cpp applies to every text.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
    """
    normalizers = [dict(step) for step in _flat(stored.get("normalizer"), "normalizers")]
    splits = [dict(step) for step in _flat(stored.get("pre_tokenizer"), "pretokenizers")]
    odd = [step for step in normalizers if step not in (_PREPEND, _REPLACE)]
    # Gemma's file splits at spaces, of which its normaliser leaves none.
    odd += [
        step
        for step in splits
        if not (step["type"] == "Metaspace" and step.get("replacement") == "▁")
        and not (step["type"] == "Split" and step["pattern"] == {"String": " "} and _REPLACE in normalizers)
    ]
    if odd:
        raise _unsupported(f"it has a step that does not exist there ({odd[0]['type']})")
    if _REPLACE not in normalizers and not any(step["type"] == "Metaspace" for step in splits):
        raise _unsupported("it keeps spaces, which are written as ▁ there")


def _step(step: dict[str, Any]) -> str:
    kind = step["type"]
    if kind == "Split":
        regex: str | None = step["pattern"].get("Regex")
        plain = regex is not None and step["behavior"] == "Isolated" and not step["invert"]
        return str(regex) if plain else f"{step['behavior']} {step['pattern']}"
    if kind == "ByteLevel":
        return "bytes by words" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    return str(kind)


def _flat(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if not step:
        return []
    return list(step[inner]) if step["type"] == "Sequence" else [step]


def _chat_template(folder: Path, settings: dict[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    if path.exists():
        return regular_file.read_text(path)
    template = settings.get("chat_template")
    return template if isinstance(template, str) else ""


def _unsupported(problem: str) -> EliteError:
    return MODEL_FAMILY_UNSUPPORTED(
        family="with this tokenizer",
        feature="GGUF export",
        problem=problem,
        supported="--to merged, or a model with the tokenizer of Qwen2, Llama, StarCoder, DeepSeek-Coder or GPT-2",
    )
