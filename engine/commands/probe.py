"""`engine probe`: runs the most expensive part of a plan, and reports the error of the prediction."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import config
from engine.commands.option_values import whole_number
from engine.commands.output import print_json
from engine.commands.quiet_libraries import Terminal, libraries_logged
from engine.commands.run_options import add_stream_option, read_stream_options
from engine.commands.status_line import status_line
from engine.config import LoraSection, TrainingSection
from engine.errors.model import DEVICE_UNAVAILABLE
from engine.errors.planning import CONTEXT_DOES_NOT_FIT, PLAN_INVALID
from engine.launch.recipe_import import collector_at_rest
from engine.plan.tiers import tiers
from engine.quantities import format_bytes, format_seconds

if TYPE_CHECKING:
    from engine.benchmarking.probe import Probed
    from engine.hardware.machine import Machine
    from engine.plan.planner import TierPlan
    from engine.plan.request import PlanRequest

_TELLING = 2**30
"Least predicted bytes of RAM to compare; the process's own growth hides smaller ones."


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001
    """Adds the options of `engine probe`."""
    model = config.field_spec("model.name")
    parser.add_argument("--model", default=model.default, metavar="M", help="Whose shapes; weights are random.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--tier", type=whole_number(1, len(tiers())), metavar="N", help="Tier whose plan is run.")
    what.add_argument("--context", type=whole_number(1), metavar="TOKENS", help="Context whose plan is run.")
    precision = config.field_spec("model.precision")
    parser.add_argument("--precision", choices=precision.choices, default="auto", help=precision.description)
    device = config.field_spec("model.device")
    parser.add_argument("--device", choices=device.choices, default="auto", help=device.description)
    step = config.field_spec("training.step")
    parser.add_argument("--step", choices=step.choices, default="auto", help=step.description)
    add_stream_option(parser)
    rank = config.field_spec("lora.rank")
    parser.add_argument("--rank", type=whole_number(1, 1024), default=rank.default, metavar="R", help=rank.description)
    parser.add_argument(
        "--output", type=Path, default=Path("out"), metavar="DIR", help="Folder whose disk a plan may use."
    )
    parser.add_argument("--json", action="store_true", help="One JSON document on standard output.")


def run(args: argparse.Namespace) -> int:
    """Plans, runs, compares, and stores the correction for later plans.

    Raises:
        EliteError: CONTEXT_DOES_NOT_FIT, DEVICE_UNAVAILABLE, PRECISION_UNAVAILABLE, PLAN_INVALID, OUT_OF_MEMORY,
            MODEL_*, CONFIG_INVALID or OVERRIDE_MALFORMED.
    """
    planning, row = _planned(args)
    if not row.fits:
        raise CONTEXT_DOES_NOT_FIT(context=f"{row.context:,}", reason=row.reason, remedy=row.remedy)
    probed = _probe(args, planning, row)
    found = _compare(planning, row, probed)
    _keep(planning.machine, planning, row, found)
    if args.json:
        print_json(found)
    else:
        _print(row, found)
    return 0


def _planned(args: argparse.Namespace) -> tuple[PlanRequest, TierPlan]:
    from engine.hardware.inventory import take_inventory
    from engine.models.catalogue import find_model
    from engine.plan.planner import plan_context
    from engine.plan.request import PlanRequest, without_gpu
    from engine.plan.tiers import tier_of

    machine = take_inventory(args.output)
    if args.device == "cuda" and not machine.gpus:
        raise DEVICE_UNAVAILABLE(device="cuda", problem="no GPU was found")
    machine = without_gpu(machine) if args.device == "cpu" else machine
    planning = PlanRequest.of(
        machine,
        find_model(args.model),
        args.precision,
        lora=LoraSection(rank=args.rank),
        training=TrainingSection(step=args.step),
        stream=read_stream_options(args),
    )
    context = args.context or tier_of(args.tier).context
    return planning, keeping_nothing(planning, plan_context(planning, context, tier=args.tier))


def keeping_nothing(planning: PlanRequest, row: TierPlan) -> TierPlan:
    """Returns the row in the form that can be probed: every layer runs forward, then recompute and backward.

    A single tile's plan may keep layers instead of recomputing them; the measured rates apply to both.
    """
    from engine.plan.request import workload_of
    from engine.plan.speeds import speeds_of
    from engine.plan.time import streamed_time

    if row.layout.stream is None or not row.layout.stream.keep_layers:
        return row
    stream, work = dataclasses.replace(row.layout.stream, keep_layers=0), workload_of(planning, row.context)
    time_parts = streamed_time(work, stream, speeds_of(planning.machine, work))
    return dataclasses.replace(row, layout=dataclasses.replace(row.layout, stream=stream), time=time_parts)


def _probe(args: argparse.Namespace, planning: PlanRequest, row: TierPlan) -> Probed:
    with libraries_logged() as terminal:
        return _run_probe(args, planning, row, terminal)


def _run_probe(args: argparse.Namespace, planning: PlanRequest, row: TierPlan, terminal: Terminal) -> Probed:
    from rich.console import Console

    from engine.errors.planning import StreamPlanError

    with collector_at_rest():
        from engine.benchmarking.probe import probe_streamed, probe_window
        from engine.models.placement import choose_placement

    placement = choose_placement("cuda" if planning.on_gpu else "cpu", row.layout.precision)
    console = Console(file=terminal.err, markup=False, highlight=False, emoji=False)
    with status_line(console, "running"), tempfile.TemporaryDirectory(dir=_existing(args.output)) as spill:
        if row.layout.stream is None:
            return probe_window(planning.spec, row.context, placement, rank=args.rank, recompute=row.layout.recompute)
        try:
            return probe_streamed(
                planning.spec, row.context, row.layout.stream, placement, rank=args.rank, spill_directory=Path(spill)
            )
        except StreamPlanError as error:
            raise PLAN_INVALID(text=f"the plan for {row.context:,} tokens", problem=error) from error


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _compare(planning: PlanRequest, row: TierPlan, probed: Probed) -> dict[str, Any]:
    """Compares predicted with measured: for the part that ran, and extrapolated for the whole step."""
    from engine.plan.ledger_lines import NOT_ALLOCATED
    from engine.plan.memory import streamed_ledger, whole_sequence_ledger
    from engine.plan.request import workload_of

    full = min(planning.spec.full_attention_layers, probed.layers)
    kinds = [kind for kind in planning.spec.attended if (kind.window is None) == (full > 0)][:1]
    attended = tuple(dataclasses.replace(kind, layers=probed.layers, use="own") for kind in kinds)
    spec = dataclasses.replace(planning.spec, layers=probed.layers, full_attention_layers=full, attended=attended)
    work = workload_of(dataclasses.replace(planning, spec=spec), row.context)
    if row.layout.stream is None:
        ledger = whole_sequence_ledger(work, row.layout.weights, recompute=row.layout.recompute)
    else:
        ledger = streamed_ledger(work, row.layout.stream)
    # No optimizer runs, so the adapter has no Adam states. The process existed before.
    adam = 8 * work.lora_parameters
    device = "gpu" if planning.on_gpu else "host"
    outside = (*NOT_ALLOCATED, "allocator slack")
    parts = [part for part in ledger.parts if part.name not in outside]
    predicted = {where: sum(part.bytes for part in parts if part.where == where) for where in ("gpu", "host")}
    predicted[device] -= adam
    return {
        "model": planning.spec.name,
        "context": row.context,
        "plan": row.layout.as_json(),
        "layers_run": probed.layers,
        "gpu_allocated": {"predicted": predicted["gpu"], "measured": probed.gpu_allocated},
        "host": {"predicted": predicted["host"], "measured": probed.host},
        "window_seconds": {"predicted": _uncorrected(row), "measured": probed.step_seconds},
        "whole_plan": {"gpu_peak_bytes": row.gpu_peak_bytes, "host_peak_bytes": row.host_peak_bytes},
    }


def _uncorrected(row: TierPlan) -> float:
    """Seconds of one window by the rates alone, so that a second probe does not correct the first one's correction."""
    return sum(part.seconds for part in row.time if part.name != "correction by a probe")


def _keep(machine: Machine, planning: PlanRequest, row: TierPlan, found: dict[str, Any]) -> None:
    """Stores the correction for later plans on this machine. Ignores a cache that cannot be written."""
    import contextlib

    from engine.hardware import measured_files
    from engine.hardware.measured import Measured, correction_key

    if row.layout.stream is not None and row.layout.stream.spills:
        return  # two tiles do not represent a disk that a whole step waits for
    seconds = found["window_seconds"]
    key = correction_key(planning.spec.name, row.layout.precision, streamed=row.layout.stream is not None)
    before = machine.measured or Measured(time=time.time(), torch=str(machine.libraries.get("torch")))
    corrections = {**before.corrections, key: seconds["measured"] / seconds["predicted"]}
    with contextlib.suppress(OSError):
        measured_files.store(machine, dataclasses.replace(before, corrections=corrections))


def _print(row: TierPlan, found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False)
    ran = "the last tile" if row.layout.stream is not None else "the window"
    console.print(
        f"{found['model']}, {row.context:,} tokens: {ran} through {found['layers_run']} of the layers", style="bold"
    )
    console.print(", ".join(f"{name} {value}" for name, value in row.layout.as_json().items()))
    grid = Table("", "predicted", "measured", "off by", box=None, header_style="bold", pad_edge=False)
    for label, name, words in (
        ("GPU, allocated", "gpu_allocated", format_bytes),
        ("RAM, beside the process", "host", format_bytes),
        ("a window, all layers", "window_seconds", format_seconds),
    ):
        predicted, measured = found[name]["predicted"], found[name]["measured"]
        if measured is None:
            grid.add_row(label, "-", "n/a", "")
        elif name == "host" and predicted < _TELLING:
            grid.add_row(label, words(predicted), "-", "too little to tell from what libraries take")
        else:
            off = f"{predicted / measured - 1:+.1%}" if measured else ""
            grid.add_row(label, words(predicted), words(measured), off)
    console.print(grid)
    console.print("Later plans for this model on this machine are corrected by this.", style="dim")
