"""`engine optimizations`: lists the optimisations, and whether each acts in a run here."""

from __future__ import annotations

import argparse
from typing import Any

from engine.commands.output import print_json
from engine.commands.run_options import add_run_options, read_run_config
from engine.errors import EliteError
from engine.hardware.target import target_machine
from engine.models.catalogue import find_model
from engine.plan.choice import Choice, choose_plan
from engine.plan.optimization_states import states
from engine.plan.optimizations import OptimizationState, optimizations, papers
from engine.quantities import format_bytes, format_seconds


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001
    """Adds the options of `engine optimizations`."""
    add_run_options(parser)
    parser.add_argument("--hardware", default="auto", metavar="NAME", help="auto is this machine; or a known card.")
    parser.add_argument("--json", action="store_true", help="One JSON document on standard output.")


def run(args: argparse.Namespace) -> int:
    """Prints the registry with its states."""
    run_config = read_run_config(args)
    machine, spec = target_machine(args.hardware), find_model(run_config.model.name)
    choice: Choice | None = None
    problem = ""
    try:
        choice = choose_plan(run_config, machine, spec, None)
    except EliteError as error:
        problem = str(error)  # the list of switches is useful even if nothing fits
    found = states(run_config, machine, spec, choice)
    if args.json:
        print_json([_described(state) for state in found])
    else:
        _print(found, choice, problem)
    return 0


def _described(state: OptimizationState) -> dict[str, Any]:
    row = {row.id: row for row in optimizations()}[state.id]
    return {
        "id": row.id,
        "name": row.name,
        "group": row.group,
        "sentence": row.sentence,
        "exact": row.exact,
        "paper": row.paper,
        "papers": [papers()[arxiv].url for arxiv in row.papers],
        "requires": list(row.requires),
        "conflicts": dict(row.conflict_reasons),
        "switch_on": dict(row.switch_on),
        "switch_off": dict(row.switch_off),
        "implemented_in": row.implemented_in,
        "default": row.default,
        "effect": row.effect,
        "state": state.state,
        "reason": state.reason,
        "gpu_bytes": state.gpu_bytes,
        "host_bytes": state.host_bytes,
        "step_seconds": state.step_seconds,
    }


_TITLES = {"extreme": "Extreme: long contexts", "standard": "Standard", "beyond": "Beyond"}


def _print(found: tuple[OptimizationState, ...], choice: Choice | None, problem: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False)
    console.print(choice.note if choice else f"no plan: {problem}")
    rows = {row.id: row for row in optimizations()}
    for group, title in _TITLES.items():
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("  optimisation", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("why, and the predicted effect")
        for state in found:
            row = rows[state.id]
            if row.group == group:
                style = {"on": "bold", "off": None, "unavailable": "dim"}[state.state]
                effect = effect_in_words(state)
                why = f"{state.reason}; {effect}" if effect else state.reason
                table.add_row(f"{' ' if row.exact else '≈'} {row.id}", state.state, why, style=style)
        console.print(f"\n{title}", style="bold")
        console.print(table)
    console.print("\n≈ approximate, or a random disturbance. Effects are predicted, of on against off.", style="dim")


def effect_in_words(state: OptimizationState) -> str:
    """Formats predicted effects as "GPU −1.2 GiB, RAM +3.0 GiB, +2.0 s a step"; empty where there are none."""

    def signed(value: float, text: str) -> str:
        return f"{'−' if value < 0 else '+'}{text}"

    parts = []
    for place, count in (("GPU", state.gpu_bytes), ("RAM", state.host_bytes)):
        if count:
            parts.append(f"{place} {signed(count, format_bytes(abs(count)))}")
    if state.step_seconds:
        parts.append(f"{signed(state.step_seconds, format_seconds(abs(state.step_seconds)))} a step")
    return ", ".join(parts)
