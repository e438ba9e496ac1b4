"""Encodes each line of several texts once, where a tokenizer cuts texts at line ends anyway.

A fifth to two fifths of the bytes of a megabyte of source repeat a line of it. Byte-level BPE encodes the words that a
regular expression cuts out of a text, each for itself. Of the expressions below, a word that holds a line end goes on
over line ends and white space alone, and ends with the last line end of them. So a text may be cut behind a line end
wherever a line that is not blank follows: its parts encode to the same ids alone, and in any order. White space without
a line end is a word up to its last character, which may belong to the next word: there a text may be cut, too, so that
a line is the same one however far it is indented.
"""

from __future__ import annotations

import array
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Ids = npt.NDArray[np.uint32]

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
"Of Qwen and of Llama 3, which differ in how many digits are a word."
_EXPRESSIONS = frozenset(digits.join(_WORDS) for digits in (r"\p{N}", r"\p{N}{1,2}", r"\p{N}{1,3}"))
_NORMALIZERS = frozenset({None, "NFC"})
"What changes no line end, and composes nothing with the ASCII character that a line begins with."
_CUT = re.compile(r"\n(?:(?=[!-~])|([ \t]*)(?=[ \t][!-~]))")
"""A line end before a line that is not blank, whatever counts as white space, and all but the last character of what
the line is indented by. A carriage return would go on with a line end."""
_BEGIN = re.compile(r"[ \t]*[!-~]")
_TOGETHER = 1024
"Lines that make one text: several of them keep all cores busy."
_NEWLINE = "Ċ"
"A line end in the vocabulary of byte-level BPE."


class RepeatedLines:
    """Encodes texts by their distinct lines."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        """Counts the line ends of each token."""
        self._newlines = np.zeros(max(vocabulary.values(), default=0) + 1, dtype=np.int32)
        for token, number in vocabulary.items():
            self._newlines[number] = token.count(_NEWLINE)

    def encode(self, texts: Sequence[str], encoded: Callable[[list[str]], list[Any]]) -> list[Ids]:
        """Encodes texts to ids of shape (tokens,), the same as each text alone gives.

        Args:
            texts: Of any kind.
            encoded: Returns an encoding for each text, with its `ids`.
        """
        numbers: dict[str, int] = {}
        plans: list[list[int]] = []
        rests: list[str] = []
        for text in texts:
            cuttable = "\r" not in text and _BEGIN.match(text) is not None
            # Lines, and between them what the next one is indented by.
            lines = _CUT.split(text) if cuttable else [text]
            rest = lines.pop()
            if cuttable and rest.endswith("\n"):
                lines.append(rest[:-1])
                rest = ""
            plans.append([numbers.setdefault(line or "", len(numbers)) for line in lines])
            rests.append(rest)
        indents = {line: number for line, number in numbers.items() if not line or line.isspace()}
        distinct = [line for line in numbers if line not in indents]
        blocks = ["\n".join([*distinct[n : n + _TOGETHER], ""]) for n in range(0, len(distinct), _TOGETHER)]
        found = [ids_of(one) for one in encoded([*blocks, *indents, *filter(None, rests)])]
        spaces = found[len(blocks) : len(blocks) + len(indents)]
        tail = iter(found[len(blocks) + len(indents) :])
        ids = np.concatenate([np.empty(0, dtype=np.uint32), *found[: len(blocks)]])
        there = np.cumsum(self._newlines[ids], dtype=np.int32)
        wanted = np.cumsum([line.count("\n") + 1 for line in distinct], dtype=np.int32)
        if there[-1:].tolist() != wanted[-1:].tolist():
            return list(map(ids_of, encoded(list(texts))))  # the vocabulary has no line end
        # Each line ends with the token that holds its last line end.
        ends = 1 + np.searchsorted(there, wanted)
        is_line = np.ones(len(numbers), dtype=bool)
        is_line[list(indents.values())] = False
        starts, lengths = np.zeros((2, len(numbers)), dtype=np.int64)
        starts[is_line] = np.append(0, ends)[: len(distinct)]
        starts[~is_line] = len(ids) + np.cumsum([0, *map(len, spaces)])[: len(indents)]
        lengths[is_line] = ends - starts[is_line]
        lengths[~is_line] = [len(one) for one in spaces]
        ids = np.concatenate([ids, *spaces])
        return [
            np.concatenate([_gathered(ids, starts, lengths, plan), next(tail)])
            if rest
            else _gathered(ids, starts, lengths, plan)
            for plan, rest in zip(plans, rests, strict=True)
        ]


def repeated_lines(stored: dict[str, Any], vocabulary: dict[str, int]) -> RepeatedLines | None:
    """Returns what encodes texts by their lines; None for a tokenizer that is not known to cut texts there.

    Args:
        stored: The content of its tokenizer.json, in which every added token that is flagged is passed over.
        vocabulary: Its tokens and their ids.
    """
    model, steps = stored["model"], (stored.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    split = steps[0]
    expected = [
        {"type": "Split", "pattern": split.get("pattern"), "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    known = (
        model.get("type") == "BPE"
        and not model.get("dropout")
        and (stored.get("normalizer") or {}).get("type") in _NORMALIZERS
        and [{**step, "trim_offsets": True} if step.get("type") == "ByteLevel" else step for step in steps] == expected
        and (split["pattern"] or {}).get("Regex") in _EXPRESSIONS
        and all(token["special"] for token in stored.get("added_tokens") or ())
    )
    return RepeatedLines(vocabulary) if known else None


def ids_of(encoding: Any) -> Ids:
    """Returns the ids of an encoding. Shape (tokens,)."""
    # An array takes a list of integers three times as fast as numpy does.
    return np.frombuffer(array.array("I", encoding.ids), dtype=np.uint32)


def _gathered(ids: Ids, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], lines: list[int]) -> Ids:
    """Returns the ids of lines, one after the other."""
    chosen = np.array(lines, dtype=np.int64)
    sizes = lengths[chosen]
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    found: Ids = ids[np.arange(total) + np.repeat(starts[chosen] - (ends - sizes), sizes)]
    return found
