"""Encodes text without ever producing a control token, even if the text spells one."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from engine.errors import one_line
from engine.errors.model import TOKENIZER_FAILED
from engine.tokenization.repeated_lines import ids_of, repeated_lines

if TYPE_CHECKING:
    import numpy.typing as npt

_WORD = re.compile(r"[\w ]+")
_FEW_CHARACTERS = 1 << 14
"Of texts in which lines are hardly repeated."
_HTML_TAG = re.compile(
    r"</?(?:a|b|blockquote|br|caption|code|em|h[1-6]|hr|i|li|ol|p|pre|strong|sub|sup|s|table|tbody|td|tfoot|th|thead|tr"
    r"|u|ul)>"
)
"HTML tags that Gemma adds as tokens, and was trained on wherever a page had them."


def is_plain_text(content: str, *, special: bool) -> bool:
    """Tells whether text may encode to an added token.

    White space always may, because CodeGen, Phi and Gemma add runs of it. Words and HTML tags may unless they are
    flagged, because they extend the vocabulary. All other tokens are control tokens, such as "<|im_start|>", "[INST]"
    and "|||EMAIL|||".

    Args:
        content: The token's text in tokenizer.json.
        special: Its flag there.
    """
    shown = content.replace("▁", " ")
    if shown.isspace():
        return True
    return not special and bool(_WORD.fullmatch(shown) or _HTML_TAG.fullmatch(shown))


def control_tokens(stored: dict[str, Any]) -> dict[int, str]:
    """Returns id → text of the added tokens that no text may encode to.

    Args:
        stored: The content of a tokenizer.json.
    """
    return {
        int(token["id"]): str(token["content"])
        for token in stored.get("added_tokens") or ()
        if not is_plain_text(token["content"], special=bool(token.get("special")))
    }


@dataclass(frozen=True, slots=True)
class Part:
    """Piece of a text."""

    text: str
    begins: bool
    "Whether a text begins with it. SentencePiece puts a space before a text, but not before a later piece."


class PlainText:
    """Tokenizer that never emits a control token.

    Attributes:
        tokenizer: Tokenizer for decoding.
        control: Id → text of the control tokens.
        strips: Id → whether a control token takes the white space before it, and behind it, with it.
        begins_anew: Whether a text behind a control token begins like a text of its own, with a space before it.
    """

    def __init__(self, stored: dict[str, Any], marks: Iterable[int] = ()) -> None:
        """Builds the tokenizers.

        Args:
            stored: The content of a tokenizer.json.
            marks: Ids of further control tokens, regardless of their names.

        Raises:
            ValueError: tokenizers cannot read it.
        """
        added = {int(token["id"]): str(token["content"]) for token in stored.get("added_tokens") or ()}
        self.control = {**control_tokens(stored), **{token: added[token] for token in marks if token in added}}
        tokens = {int(token["id"]): token for token in stored.get("added_tokens") or ()}
        self.strips = {
            token: (bool(tokens[token].get("lstrip")), bool(tokens[token].get("rstrip"))) for token in self.control
        }
        self.begins_anew = not any(
            step["type"] == "Metaspace" and step.get("prepend_scheme") == "first"
            for step in _steps(stored.get("pre_tokenizer"), "pretokenizers")
        )
        stored = _without_dropout(_flagged(stored, self.control))
        _check_growth(stored)
        self.tokenizer = _built(stored)
        inner = _without_prefix(stored)
        self._inner = self.tokenizer if inner == stored else _built(inner)
        self._lines = repeated_lines(stored, self.tokenizer.get_vocab(with_added_tokens=False))
        self._is_control = np.zeros(max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=0) + 1, bool)
        self._is_control[list(self.control)] = True
        model = stored["model"]
        name = model.get("unk_token")
        self._unknown: int | None = model.get("unk_id") if name is None else self.tokenizer.token_to_id(name)

    def encode(self, parts: Sequence[Part]) -> list[npt.NDArray[np.uint32]]:
        """Encodes each part to token ids of shape (tokens,)."""
        found: list[npt.NDArray[np.uint32]] = [np.empty(0, dtype=np.uint32)] * len(parts)
        for begins in (True, False):
            numbers = [number for number, part in enumerate(parts) if part.begins is begins]
            tokenizer = self.tokenizer if begins else self._inner
            texts = [parts[number].text for number in numbers]
            for number, ids in zip(numbers, self._ids(tokenizer, texts), strict=True):
                found[number] = ids
        return [
            self._spelled(part) if self._may_hold_control(part.text, ids) else ids
            for part, ids in zip(parts, found, strict=True)
        ]

    def _ids(self, tokenizer: Tokenizer, texts: list[str]) -> list[npt.NDArray[np.uint32]]:
        encoded = functools.partial(_encoded, tokenizer)
        if self._lines is None or sum(map(len, texts)) < _FEW_CHARACTERS:
            return list(map(ids_of, encoded(texts)))
        return self._lines.encode(texts, encoded)

    def _may_hold_control(self, text: str, ids: npt.NDArray[np.uint32]) -> bool:
        present = np.unique(ids[self._is_control[ids]]).tolist()
        # The unknown token also stands for characters that are not in the vocabulary.
        return any(token != self._unknown or self.control[token] in text for token in present)

    def _spelled(self, part: Part) -> npt.NDArray[np.uint32]:
        """Encodes a part that spells a control token, by cutting it within that token.

        The flags of `_flagged` keep added tokens out of a text. A model may still have them in its vocabulary, where
        Unigram takes the longest word and BPE with `ignore_merges` whole words.
        """
        tokenizer = self.tokenizer if part.begins else self._inner
        encoding = tokenizer.encode(part.text, add_special_tokens=False)
        cuts = [
            (start + stop) // 2
            for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
            if stop - start > 1 and token in self.control and self._is_named(token, part.text[start:stop])
        ]
        if not cuts:
            return np.array(encoding.ids, dtype=np.uint32)
        borders = [0, *cuts, len(part.text)]
        texts = [part.text[start:stop] for start, stop in itertools.pairwise(borders)]
        pieces = [Part(text, part.begins and number == 0) for number, text in enumerate(texts)]
        return np.concatenate([self._spelled(piece) for piece in pieces])

    def _is_named(self, token: int, text: str) -> bool:
        return token != self._unknown or self.control[token] in text


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> list[Any]:
    try:
        return tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    except BaseException as error:
        # A regular expression that gives up on a text makes the library panic, which is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise TOKENIZER_FAILED(problem=one_line(error)) from None


_MOST_GROWTH = 256
"""Times that a text's characters may multiply before they are tokens. Tokenizers in use replace one by one to three."""


def _check_growth(stored: dict[str, Any]) -> None:
    """Refuses replacements that together would make a text too long for any memory.

    Raises:
        EliteError: TOKENIZER_FAILED.
    """
    growth = 1.0
    waiting = [stored.get("normalizer"), stored.get("pre_tokenizer")]
    while waiting:
        step = waiting.pop()
        if isinstance(step, list):
            waiting += step
        elif isinstance(step, dict):
            waiting += [step.get("normalizers"), step.get("pretokenizers")]
            pattern = step.get("pattern")
            if step.get("type") == "Replace" and isinstance(pattern, dict) and isinstance(step.get("content"), str):
                # A regular expression may match a single character, or none at all.
                taken = len(text) if isinstance(text := pattern.get("String"), str) else 0
                growth *= max(1.0, len(step["content"]) / taken if taken else len(step["content"]) + 1.0)
    if growth > _MOST_GROWTH:
        raise TOKENIZER_FAILED(problem=f"its replacements make a text up to {growth:,.0f} times longer")


def _built(stored: dict[str, Any]) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(json.dumps(stored))
    except Exception as error:  # tokenizers raises nothing more precise
        raise ValueError(str(error)) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _flagged(stored: dict[str, Any], control: dict[int, str]) -> dict[str, Any]:
    """Flags exactly the control tokens, because `encode_special_tokens` skips only flagged tokens."""
    tokens = [{**token, "special": token["id"] in control} for token in stored.get("added_tokens") or ()]
    return {**stored, "added_tokens": tokens}


def _without_dropout(stored: dict[str, Any]) -> dict[str, Any]:
    """Removes BPE's dropout (arXiv 1910.13267), which skips merges at random.

    The library applies it to every text: a resumed run would see other tokens, and two scores of one text would differ.
    """
    model = stored["model"]
    return {**stored, "model": {**model, "dropout": None}} if model.get("dropout") else stored


def _without_prefix(stored: dict[str, Any]) -> dict[str, Any]:
    """Removes the space that the tokenizer puts before a text, for pieces within one."""
    stored = {**stored, "normalizer": copy.deepcopy(stored.get("normalizer"))}
    stored["pre_tokenizer"] = copy.deepcopy(stored.get("pre_tokenizer"))
    for step in _steps(stored["normalizer"], "normalizers"):
        if step["type"] == "Sequence":
            step["normalizers"] = [inner for inner in step["normalizers"] if inner["type"] != "Prepend"]
    if (stored["normalizer"] or {}).get("type") == "Prepend":
        stored["normalizer"] = None
    for step in _steps(stored["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
        elif step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
    return stored


def _steps(step: dict[str, Any] | None, inner: str) -> Iterator[dict[str, Any]]:
    """Yields a step and the steps nested in it."""
    if step:
        yield step
        for one in step.get(inner) or ():
            yield from _steps(one, inner)
