"""Marks first guesses on held-out files: the next token, and the next name, behind the true text before it.

A token is guessed if the likeliest one is the true one (token-level completion, CodeXGLUE, arXiv 2102.04664). A name is
guessed if each of its tokens is, and the token guessed behind it does not go on with it: greedy decoding would have
written that name. Losses and guesses come from one pass, so that thousands of names are marked in the time in which a
few functions are written.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engine.data.syntax import grammar_name
from engine.evaluation.functions import KINDS
from engine.evaluation.intervals import Floats, Interval, bootstrap
from engine.evaluation.parsing import is_name, leaves
from engine.evaluation.result import Excerpt, GuessedName, MarkRow, TaskResult
from engine.generation.text import TextStream

if TYPE_CHECKING:
    from engine.evaluation.held_out import HeldOut
    from engine.evaluation.tally import Guesses
    from engine.tokenization.encoder import Encoder

TOKENS, NAMES = "next token", "next name"
"""Tasks."""
GUESSED, NEW = "guessed", "guessed, new"
"""Marks: of all, and of names that stand in their file for the first time."""
EXCERPTS = 3
_LINES = 12
"Of an excerpt, at most."
_FEWEST_NAMES = 12
"Of a file that excerpts are taken of."
_LARGEST_FILE = 400_000
"Bytes."
_BEFORE = 8
"Tokens that the text of the next may depend on, and more."


@dataclass(frozen=True)
class Name:
    """A name in a file, by the numbers of its first and last token."""

    first: int
    last: int
    ends: bool
    'Whether its last token ends with it: "__(" goes on behind the name `__init__`.'
    new: bool
    "Whether it stands in the file for the first time."
    start: int
    "Its first byte in the text of the file."
    stop: int


def mark_guesses(
    base: Guesses, tuned: Guesses, held_out: HeldOut, encoder: Encoder
) -> tuple[tuple[TaskResult, ...], tuple[Excerpt, ...]]:
    """Returns the shares that both models guess, and excerpts of some files.

    Shares are of the scored tokens, and of the names whose tokens were all scored.

    Args:
        base, tuned: Of the same tokens.
        held_out: Their files.
        encoder: Their tokenizer.
    """
    places = base.places
    if not len(places):
        return (), ()
    files = np.searchsorted(held_out.offsets, places, side="right") - 1
    right = np.stack([guesses.likeliest == held_out.tokens[places] for guesses in (base, tuned)])
    tokens = TaskResult(task=TOKENS, functions=len(places), rows=(_row(GUESSED, files, right),))
    names = [name for file in np.unique(files).tolist() for name in _marked(file, base, tuned, held_out, encoder)]
    if not names:
        return (tokens,), ()
    of, new = np.array([file for file, _, _ in names]), np.array([name.new for _, name, _ in names])
    marks = np.array([mark for _, _, mark in names]).T
    rows = [_row(GUESSED, of, marks)]
    if new.any():
        rows.append(_row(NEW, of[new], marks[:, new]))
    task = TaskResult(task=NAMES, functions=len(names), rows=tuple(rows))
    return (tokens, task), tuple(_excerpts(names, held_out, encoder))


def names_of(ids: Sequence[int], grammar: str | None, encoder: Encoder) -> Iterator[Name]:
    """Yields the names of a file in their order; none of one in an unknown language, rearranged or very large.

    Args:
        ids: Of the file as a document: its path line, and its text.
        grammar: Of its language.
        encoder: Its tokenizer.
    """
    if grammar not in KINDS or (encoder.fim is not None and encoder.fim.prefix in ids):
        return
    if len(ids) > _LARGEST_FILE:
        return
    text = encoder.decode([token for token in ids if token != encoder.end]).encode("utf-8", "replace")
    if len(text) > _LARGEST_FILE:
        return  # before its tokens are decoded one by one
    stream = TextStream(encoder.tokenizer)
    pieces = [b"" if token == encoder.end else stream.push(token).encode("utf-8", "replace") for token in ids]
    source = b"".join(pieces)
    if not text.startswith(source):
        return  # a run of U+FFFD looks like bytes of no character: their places are not known
    sizes = np.array([len(piece) for piece in pieces])
    # Of several tokens that make one character, only the last has a piece; all of them end with it. Those behind the
    # last piece, as the end token, are no part of a name that the file ends with.
    ends = np.where(sizes > 0, sizes.cumsum(), len(source) + 1)
    ends = np.minimum.accumulate(ends[::-1])[::-1]
    begin = source.find(b"\n") + 1
    seen: set[bytes] = set()
    for leaf in leaves(source[begin:], grammar):
        if is_name(leaf) and leaf.text is not None:
            first = int(np.searchsorted(ends, begin + leaf.start_byte, side="right"))
            reaching, past = (int(np.searchsorted(ends, begin + leaf.end_byte, side)) for side in ("left", "right"))
            of_name = first, max(reaching, past - 1)
            yield Name(*of_name, past > reaching, leaf.text not in seen, leaf.start_byte, leaf.end_byte)
            seen.add(leaf.text)


Marked = tuple[int, Name, tuple[bool, bool]]
"""Number of a file, one of its names, and whether base and tuned model guess it."""


def _excerpts(names: Sequence[Marked], held_out: HeldOut, encoder: Encoder) -> Iterator[Excerpt]:
    """Yields the lines with most names of some files, in an order that depends on their paths alone."""
    of_file: dict[int, list[Marked]] = defaultdict(list)
    for name in names:
        of_file[name[0]].append(name)
    chosen = sorted(of_file, key=lambda file: _rank(held_out.files[file].path))
    telling = (file for file in chosen if len(of_file[file]) >= _FEWEST_NAMES)
    for file in itertools.islice(telling, EXCERPTS):
        ids = held_out.tokens[held_out.offsets[file] : held_out.offsets[file + 1]].tolist()
        source = encoder.text_of(ids).encode("utf-8", "replace")
        lines = [0, *(match.end() for match in re.finditer(rb"\n", source))]
        "First byte of each line."
        on_line = np.searchsorted(lines, [name.start for _, name, _ in of_file[file]], side="right") - 1
        counts = np.bincount(on_line, minlength=len(lines))
        held = np.convolve(counts, np.ones(_LINES, dtype=np.int64))[_LINES - 1 :]
        "Names on a line and those that follow it in an excerpt."
        first = int(held.argmax())
        begin, end = lines[first], lines[first + _LINES] if first + _LINES < len(lines) else len(source)
        yield Excerpt(
            file=held_out.files[file].path,
            text=source[begin:end].decode("utf-8", "replace").rstrip("\n"),
            names=tuple(
                GuessedName(
                    start=len(source[begin : name.start].decode("utf-8", "replace")),
                    stop=len(source[begin : name.stop].decode("utf-8", "replace")),
                    base=base,
                    tuned=tuned,
                )
                for _, name, (base, tuned) in of_file[file]
                if begin <= name.start and name.stop <= end
            ),
        )


def _rank(path: str) -> bytes:
    return hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _marked(file: int, base: Guesses, tuned: Guesses, held_out: HeldOut, encoder: Encoder) -> Iterator[Marked]:
    """Yields the names of one file whose tokens were all scored, and whether base and tuned model guess them."""
    start, stop = held_out.offsets[file : file + 2].tolist()
    low, high = np.searchsorted(base.places, [start, stop]).tolist()
    guesses = np.full((2, stop - start), -1, dtype=np.int64)
    guesses[:, base.places[low:high] - start] = base.likeliest[low:high], tuned.likeliest[low:high]
    truth = held_out.tokens[start:stop].astype(np.int64)
    right = guesses == truth
    entry, ids = held_out.files[file], truth.tolist()
    for name in names_of(ids, grammar_name(entry.language, PurePosixPath(entry.path)), encoder):
        of_name, behind = slice(name.first, name.last + 1), name.last + 1
        if (guesses[0, of_name] < 0).any():
            continue

        def guessed(model: int, name: Name = name, of_name: slice = of_name, behind: int = behind) -> bool:
            if not right[model, of_name].all():
                return False
            if not name.ends or behind == len(ids) or right[model, behind] or guesses[model, behind] < 0:
                return True
            return not _goes_on(encoder, ids[max(0, behind - _BEFORE) : behind], int(guesses[model, behind]))

        yield file, name, (guessed(0), guessed(1))


def _goes_on(encoder: Encoder, ids: Sequence[int], guess: int) -> bool:
    """Whether a token behind a name makes it longer. A letter's first bytes do: no other sign adjoins a name so."""
    if encoder.decode([guess]).endswith("\ufffd"):
        return True
    begin = TextStream(encoder.tokenizer, ids).push(guess)[:1]
    return begin == "$" or (begin != "" and f"_{begin}".isidentifier())


def _row(mark: str, files: npt.NDArray[np.int64], right: npt.NDArray[np.bool_]) -> MarkRow:
    """Compares the shares of what is right, with intervals that resample files: what stands in one is alike.

    Args:
        mark: Name of the row.
        files: File of each token or name. Shape (n,).
        right: Of both models. Shape (2, n).
    """
    _, number = np.unique(files, return_inverse=True)
    counts = np.bincount(number).astype(np.float64)
    base, tuned = (np.bincount(number, one).astype(np.float64) for one in right)

    def interval(hits: Floats) -> Interval | None:
        return bootstrap(len(counts), lambda weights: weights @ hits / (weights @ counts))

    return MarkRow(
        name=mark,
        functions=len(files),
        base=float(right[0].mean()),
        tuned=float(right[1].mean()),
        base_interval=interval(base),
        tuned_interval=interval(tuned),
        difference_interval=interval(tuned - base),
    )
