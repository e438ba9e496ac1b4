"""Encodes any text to token ids, in batches and on all cores."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from engine.assets import asset
from engine.tokenization.fim_tokens import find_tokens
from engine.tokenization.pieces import cut
from engine.tokenization.plain_text import Part, PlainText

if TYPE_CHECKING:
    import numpy.typing as npt

REVISION = 1
"Increased when the same tokenizer gives other ids; part of every store's key."
_END_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|end▁of▁sentence|>")
_FILE_TOKENS = ("<|file_sep|>", "<file_sep>", "<filename>")


class Encoder:
    """Tokenizer for files. The name of a control token inside a file is encoded as text and never as that token.

    Attributes:
        vocabulary: Highest id plus one.
        fim: Tokens for fill-in-the-middle, or None if the model has none.
        newlines: Line ends in the text of each token, at most 255. Shape (vocabulary,), uint8.
        first: Ids that the tokenizer's post-processor puts before a text; often the BOS token, often none.
        end: Id of the token that ends a document.
        file_mark: Id of the token that starts a file ("<|file_sep|>"), or None if the model has none.
        fingerprint: SHA-256, in hex, of everything that determines the ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Copies the tokenizer, so that changed settings do not affect the original.

        Args:
            tokenizer: A tokenizers.Tokenizer, or a fast tokenizer of transformers.

        Raises:
            ValueError: it is neither, or has no token that ends a text.
        """
        backend = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer")
        named = getattr(tokenizer, "eos_token_id", None)
        end = find_end(backend) if named is None else int(named)
        if end is None:
            raise ValueError("the tokenizer has no token that ends a text")
        self.end: int = end
        self.first = first_tokens(backend)
        self.file_mark = _first_of(backend, _FILE_TOKENS)
        self.fim = find_tokens(backend.token_to_id)
        serialised = backend.to_str()
        fim = () if self.fim is None else (self.fim.prefix, self.fim.suffix, self.fim.middle)
        marks = [*self.first, end, *([] if self.file_mark is None else [self.file_mark]), *fim]
        self._text = PlainText(json.loads(serialised), marks)
        self._tokenizer = self._text.tokenizer
        self.vocabulary = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.newlines, self.depths = self._count_signs()
        about = f"{REVISION}\0{serialised}\0{self.first}\0{self.end}\0{self.file_mark}"
        self.fingerprint = hashlib.sha256(about.encode()).hexdigest()

    def encode_documents(self, documents: Sequence[tuple[str, str]]) -> list[npt.NDArray[np.uint32]]:
        """Encodes each (path line, text) to ids of shape (tokens,).

        Their order is first tokens, file mark if there is one, path, line end, text, end token.
        """
        return self.encode_middles([(path, text, None) for path, text in documents])

    def encode_middles(
        self, documents: Sequence[tuple[str, str, tuple[int, int] | None]]
    ) -> list[npt.NDArray[np.uint32]]:
        """Encodes each (path line, text, cut) as `encode_documents` does, with the text rearranged at a cut.

        With a cut, the text from its first position to its second moves behind the rest. The order is then first
        tokens, path, line end, <prefix> text before it, <suffix> text after it, <middle> the text itself, end token.

        Raises:
            ValueError: there is a cut, but the tokenizer has no tokens for fill-in-the-middle.
        """
        return self._encode([[*self._parts(path, text, middle), self.end] for path, text, middle in documents])

    def encode_prompt(self, text: str) -> list[int]:
        """Encodes a prompt to its first tokens and the text, or to the end token alone if both are empty."""
        [ids] = self._encode([[text]])
        return [int(token) for token in ids] or [self.end]

    def encode_fill(self, before: str, after: str) -> list[int]:
        """Encodes the prompt for the text between two others, in which no file is named.

        Raises:
            ValueError: the tokenizer has no tokens for fill-in-the-middle.
        """
        if self.fim is None:
            raise ValueError("the tokenizer has no tokens for fill-in-the-middle")
        [ids] = self._encode([[self.fim.prefix, before, self.fim.suffix, after, self.fim.middle]])
        return [int(token) for token in ids]

    def text_of(self, ids: Sequence[int]) -> str:
        """Decodes the ids of `encode_middles` to a document's text in its own order, without its path line."""
        begin = [*self.first, *([] if self.file_mark is None else [self.file_mark])]
        inner = list(ids[len(begin) :] if list(ids[: len(begin)]) == begin else ids)
        if inner[-1:] == [self.end]:
            inner.pop()
        if self.fim is not None and self.fim.prefix in inner:  # no text is encoded to these tokens
            prefix, suffix, middle = map(inner.index, (self.fim.prefix, self.fim.suffix, self.fim.middle))
            before, after = inner[prefix + 1 : suffix], inner[suffix + 1 : middle]
            inner = [*inner[:prefix], *before, *inner[middle + 1 :], *after]
        return self.decode(inner).partition("\n")[2]

    def _parts(self, path: str, text: str, middle: tuple[int, int] | None) -> list[int | str]:
        head: list[int | str] = [f"# {path}\n"] if self.file_mark is None else [self.file_mark, f"{path}\n"]
        if middle is None:
            return [*head[:-1], f"{head[-1]}{text}"]
        if self.fim is None:
            raise ValueError("the tokenizer has no tokens for fill-in-the-middle")
        begin, end = middle
        fim = self.fim
        return [*head, fim.prefix, text[:begin], fim.suffix, text[end:], fim.middle, text[begin:end]]

    def _encode(self, documents: Sequence[Sequence[int | str]]) -> list[npt.NDArray[np.uint32]]:
        """Encodes documents of single tokens and texts, and puts the first tokens before each."""
        pieces: list[Part] = []
        plans: list[list[int | slice]] = []  # of each document: single tokens, and pieces
        for document in documents:
            plan: list[int | slice] = [*self.first]
            for place, part in enumerate(document):
                if isinstance(part, int):
                    plan.append(part)
                    continue
                start = len(pieces)
                pieces += [Part(text, place == number == 0) for number, text in enumerate(cut(part))]
                plan.append(slice(start, len(pieces)))
            plans.append(plan)
        encoded = self._text.encode(pieces)

        def ids_of(part: int | slice) -> list[npt.NDArray[np.uint32]]:
            return encoded[part] if isinstance(part, slice) else [np.array([part], dtype=np.uint32)]

        return [np.concatenate([ids for part in plan for ids in ids_of(part)]) for plan in plans]

    def lines_to_tokens(
        self, ids: npt.NDArray[np.uint32], text: str, lines: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.int64]:
        """Finds the first token of each line of a document's text; none if the tokenizer changes line ends.

        Args:
            ids: The document's ids from `encode_documents`. Shape (tokens,).
            text: Its text, without the path line.
            lines: Line numbers from 0, ascending. Shape (lines,).
        """
        ends = np.cumsum(self.newlines[ids], dtype=np.int64)
        if not len(lines) or ends[-1] != text.count("\n") + 1:
            # The tokenizer changes line ends, so the first token of a line is unknown.
            return np.empty(0, dtype=np.int64)
        first: npt.NDArray[np.int64] = np.searchsorted(ends, lines.astype(np.int64) + 1) + 1
        return np.unique(first[first < len(ids)])

    @property
    def plain_text(self) -> PlainText:
        """Encodes text without its first and end tokens, and knows the control tokens."""
        return self._text

    @property
    def tokenizer(self) -> Tokenizer:
        """The wrapped tokenizer."""
        return self._tokenizer

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """Ids that end a text, which are the end token, the file mark, and all other control tokens."""
        marks = {self.end, *self._text.control}
        return frozenset(marks if self.file_mark is None else {*marks, self.file_mark})

    def ends_among(self, listed: int | list[int] | None) -> int | list[int]:
        """Corrects the end tokens in a model's settings to `end` and their other control tokens.

        The settings may hold a class's default, which can be an ordinary token that ends nothing.
        """
        before = listed if isinstance(listed, list) else [listed]
        ends = list(dict.fromkeys([self.end, *(token for token in before if token in self.ends)]))
        return ends if len(ends) > 1 else self.end

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes token ids to text, special tokens included."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def _count_signs(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int8]]:
        """Line ends in the text of each token id, and the brackets that it opens less those that it closes."""
        texts = self._tokenizer.decode_batch([[token] for token in range(self.vocabulary)], skip_special_tokens=False)
        newlines = np.array([min(text.count("\n"), 255) for text in texts], dtype=np.uint8)
        depths = [
            [sum(map(text.count, opening)) - sum(map(text.count, closing)) for text in texts]
            for opening, closing in (("([", ")]"), ("{", "}"))
        ]
        return newlines, np.clip(np.array(depths), -128, 127).astype(np.int8)


def first_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the ids that a tokenizer's post-processor puts before a text.

    Encoding probes finds them, because there are several kinds of post-processors and flags that contradict them.
    """
    if tokenizer.padding or tokenizer.truncation:
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.no_padding()
        tokenizer.no_truncation()
    for probe in ("a", "0", "x = 1\n"):
        encoding = tokenizer.encode(probe, add_special_tokens=True)
        if 0 in encoding.special_tokens_mask:
            return tuple(encoding.ids[: encoding.special_tokens_mask.index(0)])
    return ()


def find_end(tokenizer: Tokenizer) -> int | None:
    """Finds the id of the end-of-text token by its usual names, for tokenizers whose settings do not name it."""
    return _first_of(tokenizer, _END_TOKENS)


def _first_of(tokenizer: Tokenizer, names: Sequence[str]) -> int | None:
    found = (tokenizer.token_to_id(name) for name in names)
    return next((token for token in found if token is not None), None)


def demo_encoder() -> Encoder:
    """Loads the embedded demo model's tokenizer."""
    return Encoder(Tokenizer.from_file(str(asset("demo-model", "tokenizer.json"))))
