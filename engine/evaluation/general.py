"""A check for forgetting: general code and text that no repository is the source of, scored before and after.

The code is the standard library of the Python that runs this, as it is installed; the text is assets/general_text.md,
which this project wrote. Both are small: they show that something was lost, not how much of what.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.assets import asset
from engine.data.windows import Window
from engine.evaluation.functions import SourceText
from engine.evaluation.tally import LossTally, PerplexityRow, ScoresOf, part

if TYPE_CHECKING:
    from engine.tokenization.encoder import Encoder

CODE, TEXT = "general code", "general text"
_MODULES = ("bisect", "colorsys", "fnmatch", "graphlib", "heapq", "linecache", "shlex", "statistics", "textwrap", "uu")
_CHARACTERS = 4000
"Of a module, from its middle on: its licence and imports say little."
_LONGEST = 2048
"Tokens of a piece that are scored."


def general_texts() -> Iterator[SourceText]:
    """Yields the pieces; `language` says which kind each is. Modules that this Python lacks are left out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in _MODULES:
        try:
            text = (library / f"{name}.py").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        start = text.find("\n\n", max(0, len(text) // 2 - _CHARACTERS // 2)) + 2
        yield SourceText(f"{name}.py", CODE, text[start : start + _CHARACTERS])
    pieces = asset("general_text.md").read_text(encoding="utf-8").split("\n## ")
    for number, piece in enumerate(pieces):
        yield SourceText(f"text-{number}.md", TEXT, piece)


def tally_general(
    token_scores: ScoresOf, encoder: Encoder, *, context: int, progress: Callable[[int, int, str], None]
) -> LossTally:
    """Scores every piece with the model.

    Args:
        token_scores: Scores one window with the model.
        encoder: Its tokenizer.
        context: Tokens that a window may have.
        progress: Called with pieces done and their total; may raise to abort.
    """
    found = list(general_texts())
    sums, counts = np.zeros((len(found), 1)), np.zeros((len(found), 1))
    for number, piece in enumerate(found):
        progress(number, len(found), "general texts")
        [ids] = encoder.encode_documents([(piece.path, piece.text)])
        window = Window(ids[: min(context, _LONGEST)].astype(np.int64))
        losses = token_scores(window).losses
        sums[number], counts[number] = losses.sum(dtype=np.float64), len(window) - 1
    progress(len(found), len(found), "general texts")
    return LossTally(sums, counts)


def general_rows(base: LossTally, tuned: LossTally) -> tuple[PerplexityRow, ...]:
    """Returns a row a kind: what training cost on text that is not the repository's."""
    kinds = np.array([piece.language for piece in general_texts()])
    rows = (part(name, base, tuned, kinds == name) for name in (CODE, TEXT))
    return tuple(row for row in rows if row is not None)
