"""Text to token ids, in batches, on all cores, whatever the text contains."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from engine.assets import asset
from engine.data.fim import find_tokens
from engine.data.pieces import cut

if TYPE_CHECKING:
    import numpy.typing as npt

_END_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|end▁of▁sentence|>")
_FILE_TOKENS = ("<|file_sep|>", "<file_sep>", "<filename>")


class Encoder:
    """A tokenizer made safe for files: a special token's name inside a file is text and never becomes that token.

    Attributes:
        vocabulary: One more than the highest id.
        fim: Its tokens for fill-in-the-middle, or None where the model has none.
        newlines: Line ends in the text of each token. Shape (vocabulary,), uint8.
        end: Id of the token that ends a document.
        file_mark: Id of the token that starts a file ("<|file_sep|>"), or None where the model has none.
        fingerprint: SHA-256, in hex, of all that determines the ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Takes a copy, so that settings changed here or there do not meet.

        Args:
            tokenizer: A tokenizers.Tokenizer, or a fast tokenizer of transformers.

        Raises:
            ValueError: it is neither, or has no token that ends a text.
        """
        backend = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer")
        serialised = backend.to_str()
        self._tokenizer = Tokenizer.from_str(serialised)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        end = getattr(tokenizer, "eos_token_id", None)
        end = self._first_of(_END_TOKENS) if end is None else int(end)
        if end is None:
            raise ValueError("the tokenizer has no token that ends a text")
        self.end: int = end
        self.file_mark = self._first_of(_FILE_TOKENS)
        self.vocabulary = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.fim = find_tokens(self._tokenizer.token_to_id)
        self.newlines = self._count_newlines()
        self.fingerprint = hashlib.sha256(f"{serialised}\0{self.end}\0{self.file_mark}".encode()).hexdigest()

    def encode_documents(self, documents: Sequence[tuple[str, str]]) -> list[npt.NDArray[np.uint32]]:
        """Token ids of each (path line, text): file mark if there is one, path, line end, text, end token."""
        return self.encode_middles([(path, text, None) for path, text in documents])

    def encode_middles(
        self, documents: Sequence[tuple[str, str, tuple[int, int] | None]]
    ) -> list[npt.NDArray[np.uint32]]:
        """Token ids of each (path line, text, cut): as `encode_documents`, the text rearranged where there is a cut.

        With a cut, the text from its first position to its second stands behind the rest:
        path, line end, <prefix> text before it, <suffix> text after it, <middle> the text itself, end token.

        Raises:
            ValueError: a cut, but no tokens for it.
        """
        pieces: list[str] = []
        plans: list[list[int | slice]] = []  # of each document: single tokens, and pieces
        for path, text, middle in documents:
            plan: list[int | slice] = [] if self.file_mark is None else [self.file_mark]
            head = path if self.file_mark is not None else f"# {path}"
            for part in self._parts(head, text, middle):
                if isinstance(part, int):
                    plan.append(part)
                else:
                    first = len(pieces)
                    pieces += cut(part)
                    plan.append(slice(first, len(pieces)))
            plans.append([*plan, self.end])
        encoded = [
            np.array(encoding.ids, dtype=np.uint32)
            for encoding in self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        ]

        def ids_of(part: int | slice) -> list[npt.NDArray[np.uint32]]:
            return encoded[part] if isinstance(part, slice) else [np.array([part], dtype=np.uint32)]

        return [np.concatenate([ids for part in plan for ids in ids_of(part)]) for plan in plans]

    def _parts(self, head: str, text: str, middle: tuple[int, int] | None) -> list[int | str]:
        if middle is None:
            return [f"{head}\n{text}"]
        if self.fim is None:
            raise ValueError("the tokenizer has no tokens for fill-in-the-middle")
        begin, end = middle
        fim = self.fim
        return [f"{head}\n", fim.prefix, text[:begin], fim.suffix, text[end:], fim.middle, text[begin:end]]

    def lines_to_tokens(
        self, ids: npt.NDArray[np.uint32], text: str, lines: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.int64]:
        """The first token of each line of a document's text.

        Args:
            ids: The document, as `encode_documents` gives it. Shape (tokens,).
            text: Its text, without the path line.
            lines: Counted from 0, ascending.
        """
        ends = np.cumsum(self.newlines[ids], dtype=np.int64)
        if not len(lines) or ends[-1] != text.count("\n") + 1:
            # The tokenizer changes line ends: where a line begins cannot be told.
            return np.empty(0, dtype=np.int64)
        first: npt.NDArray[np.int64] = np.searchsorted(ends, lines.astype(np.int64) + 1) + 1
        return np.unique(first[first < len(ids)])

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that is wrapped."""
        return self._tokenizer

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """Ids behind which nothing of the same text comes: the end, a file's mark, and all other special tokens."""
        added = self._tokenizer.get_added_tokens_decoder()
        marks = {self.end, *(token for token, what in added.items() if what.special)}
        return frozenset(marks if self.file_mark is None else {*marks, self.file_mark})

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def _count_newlines(self) -> npt.NDArray[np.uint8]:
        texts = self._tokenizer.decode_batch([[token] for token in range(self.vocabulary)], skip_special_tokens=False)
        return np.array([min(text.count("\n"), 255) for text in texts], dtype=np.uint8)

    def _first_of(self, names: Sequence[str]) -> int | None:
        found = (self._tokenizer.token_to_id(name) for name in names)
        return next((token for token in found if token is not None), None)


def demo_encoder() -> Encoder:
    """The embedded demo model's tokenizer."""
    return Encoder(Tokenizer.from_file(str(asset("demo-model", "tokenizer.json"))))
