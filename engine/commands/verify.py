"""`engine verify`: proves every optimisation on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

import msgspec

from engine import config
from engine.commands.admission import prove
from engine.commands.output import print_json
from engine.commands.quiet_libraries import libraries_logged
from engine.errors import TRAINING_FAILED
from engine.home_folder import expand_home
from engine.launch.recipe_import import collector_at_rest
from engine.plan.optimizations import find_optimization, optimizations
from engine.quantities import format_seconds

if TYPE_CHECKING:
    from engine.verify.proof import Verdict


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001
    """Adds the options of `engine verify`."""
    parser.add_argument("ids", nargs="*", metavar="ID", help="Optimisations to prove; all of them by default.")
    parser.add_argument(
        "--model", metavar="DIR", help="Prove this model instead: a small copy of its config.json against transformers."
    )
    device = config.field_spec("model.device")
    parser.add_argument("--device", choices=device.choices, default="auto", help=device.description)
    parser.add_argument("--json", action="store_true", help="One JSON document on standard output.")


def run(args: argparse.Namespace) -> int:
    """Runs the proofs, and fails if one of them fails; unavailable ones do not count.

    Verdicts reached before an interruption are still printed.
    """
    if args.model is not None:
        return _prove_model(args)
    rows = [find_optimization(name) for name in args.ids] or list(optimizations())
    found: list[Verdict] = []
    interrupted: KeyboardInterrupt | None = None
    with libraries_logged() as terminal:
        with collector_at_rest():
            from engine.verify.proof import quieten

            quieten()
            from engine.models.placement import choose_placement
            from engine.verify.runner import verify

        device = choose_placement(args.device, "auto").device
        try:
            for verdict in verify(rows, device):
                found.append(verdict)
                terminal.speaks(_notify)(verdict, len(found), len(rows))
        except KeyboardInterrupt as pressed:
            interrupted = pressed
    if args.json:
        print_json([dataclasses.asdict(verdict) for verdict in found])
    if interrupted is not None:
        raise interrupted
    counts = {status: sum(v.status == status for v in found) for status in ("passed", "failed", "unavailable")}
    print(", ".join(f"{count} {status}" for status, count in counts.items()), file=sys.stderr)  # noqa: T201
    return TRAINING_FAILED if counts["failed"] else 0


def _prove_model(args: argparse.Namespace) -> int:
    """Fails where no way to compute a step is right for the model."""
    proof = prove(expand_home(args.model))
    if args.json:
        print_json(msgspec.to_builtins(proof))
    return 0 if proof.admitted & {"streamed", "whole"} else TRAINING_FAILED


def _notify(verdict: Verdict, done: int, total: int) -> None:
    mark = {"passed": "✓", "failed": "✗", "unavailable": "–"}[verdict.status]
    text = (
        f"{mark} {verdict.id} ({format_seconds(verdict.seconds)}, {done}/{total}): {verdict.evidence or verdict.reason}"
    )
    print(text, file=sys.stderr, flush=True)  # noqa: T201
