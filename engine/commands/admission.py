"""Admits a local model whose family is not listed, by a proof that is made when a command is first given it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine import regular_file
from engine.commands.quiet_libraries import libraries_logged
from engine.home_folder import expand_home
from engine.models.families import FAMILIES
from engine.models.proofs import find_proof
from engine.models.wrappers import text_settings
from engine.quantities import format_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.models.proofs import Proof


def admit_model(name: str) -> None:
    """Proves the model of a local folder, unless its family is listed or the proof is there already.

    A folder that is of no use is left to what reads it next.
    """
    try:
        folder = expand_home(name)
        settings = text_settings(regular_file.read_object(folder / "config.json", follow=True, bounded=False))
        family = settings["model_type"]
        if family in FAMILIES and not FAMILIES[family].proof:
            return
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError):
        return
    if find_proof(settings) is None and _made(folder, lambda _: None).admitted & {"streamed", "whole"}:
        said = f"{family} is admitted by a proof; `engine verify --model {name}` shows it"
        print(said, file=sys.stderr, flush=True)  # noqa: T201


def prove(folder: Path) -> Proof:
    """Makes the proof of a folder's model, and says on the terminal what it shows.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID, MODEL_FAMILY_UNSUPPORTED.
    """
    return _made(folder, _show)


def _made(folder: Path, show: Callable[[Proof], None]) -> Proof:
    with libraries_logged() as terminal:
        from engine.verify.admission import prove_folder
        from engine.verify.proof import quieten

        quieten()
        proof = prove_folder(folder)
        terminal.speaks(show)(proof)
    return proof


def _show(proof: Proof) -> None:
    for ability, problem in proof.refused.items():
        print(f"{'✗' if problem else '✓'} {ability}{': ' if problem else ''}{problem}", file=sys.stderr)  # noqa: T201
    worst = max(proof.differences.values(), default=0.0)
    compared = (
        f"{len(proof.differences)} comparisons in {format_seconds(proof.seconds)}, largest difference {worst:.0e}"
    )
    print(compared, file=sys.stderr, flush=True)  # noqa: T201
