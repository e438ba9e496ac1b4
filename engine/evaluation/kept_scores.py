"""Scores of one model in an evaluation, and their form for `Baselines`, which keep those of the base model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.evaluation.baselines import digest, digest_windows
from engine.evaluation.completions import Completion, judge
from engine.evaluation.functions import HeldOutFunction, SourceText
from engine.evaluation.general import general_texts
from engine.evaluation.held_out import HeldOut
from engine.evaluation.tally import Guesses, LossTally
from engine.evaluation.tasks import Task
from engine.steps.held_out_loss import choose_windows

if TYPE_CHECKING:
    from engine.config import EvaluationSection
    from engine.evaluation.asking import Asking
    from engine.tokenization.encoder import Encoder

PLAIN, ASKED = "", "its chat template"
"""Ways to answer a request: with its own file alone, and through the model's chat template."""
Requests = dict[Task, tuple[Sequence[HeldOutFunction], int]]
"""Bodies to complete in each task, and the tokens of one at most."""


@dataclass(frozen=True)
class Measured:
    """Scores of one model."""

    tally: LossTally
    written: dict[tuple[Task, str], list[Completion]]
    "By task, and by what the prompt held."
    general: LossTally | None
    "Of text that is not the repository's; None if it was not scored."


def asked(
    held_out: HeldOut,
    encoder: Encoder,
    settings: EvaluationSection,
    requests: Requests,
    trained: Sequence[SourceText],
    asking: Asking | None,
) -> dict[str, Any]:
    """Returns what a model's scores depend on besides the model and the lengths.

    Args:
        held_out: Scored files.
        encoder: Their tokenizer.
        settings: Extent of the evaluation.
        requests: Bodies to complete.
        trained: Files that prompts take text of.
        asking: Asks for functions through a chat template; None if nothing does.
    """
    bodies = {
        task: [digest([[one.path, one.prefix, one.body, one.suffix] for one in functions]), most]
        for task, (functions, most) in requests.items()
    }
    return {
        "tokenizer": encoder.fingerprint,
        "windows": digest_windows(choose_windows(held_out.windows, settings.tokens)),
        "files": digest([[file.path for file in held_out.files], held_out.offsets.tolist()]),
        "requests": bodies,
        "prompts": _digest_texts(trained),
        "chat": None if asking is None else asking.fingerprint,
        "general": _digest_texts(general_texts()) if settings.general else None,
    }


def _digest_texts(texts: Iterable[SourceText]) -> str:
    return digest([[text.path, text.text] for text in texts])


def as_json(measured: Measured) -> dict[str, Any]:
    """Returns scores in the form that `read` takes."""
    return {
        "tally": _sums(measured.tally),
        "general": None if measured.general is None else _sums(measured.general),
        "written": [
            [task, way, [[completion.text, completion.marks.ends] for completion in found]]
            for (task, way), found in measured.written.items()
        ],
    }


def read(value: Any, held_out: HeldOut, requests: Requests) -> Measured | None:
    """Reads kept scores; None if they are missing or not what `as_json` makes."""
    try:
        tally = _tally(value["tally"])
        general = None if value["general"] is None else _tally(value["general"])
        if len(tally.sums) != len(held_out.files) or tally.guesses is None:
            return None
        written = {
            (task, way): [
                judge(function, text, ends=ends)
                for function, (text, ends) in zip(_bodies(requests, task, way), found, strict=True)
            ]
            for task, way, found in value["written"]
        }
        if not {(task, PLAIN) for task in requests} <= written.keys():
            return None
    except (TypeError, KeyError, ValueError, AttributeError):
        return None
    return Measured(tally, written, general)


def _bodies(requests: Requests, task: Task, way: str) -> Sequence[HeldOutFunction]:
    return requests["completion" if way == ASKED else task][0]


def _sums(tally: LossTally) -> Mapping[str, Any]:
    sums = {"sums": tally.sums.tolist(), "counts": tally.counts.tolist()}
    if tally.guesses is None:
        return sums
    return {**sums, "places": tally.guesses.places.tolist(), "likeliest": tally.guesses.likeliest.tolist()}


def _tally(value: Mapping[str, Any]) -> LossTally:
    sums, counts = (np.array(value[name], dtype=np.float64) for name in ("sums", "counts"))
    if sums.shape != counts.shape:
        raise ValueError("sums and counts differ in shape")
    if "places" not in value:
        return LossTally(sums, counts)
    places, likeliest = (np.array(value[name], dtype=np.int64) for name in ("places", "likeliest"))
    if places.shape != likeliest.shape or len(places) != counts.sum():
        raise ValueError("not every scored token has a place and a likeliest token")
    return LossTally(sums, counts, Guesses(places, likeliest))
