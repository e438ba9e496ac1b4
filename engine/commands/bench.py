"""`engine bench`: measures the documents' tables on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import config
from engine.commands.option_values import number, whole_number
from engine.commands.output import print_json
from engine.commands.quiet_libraries import libraries_logged
from engine.errors import one_line
from engine.errors.planning import PLAN_INVALID, StreamPlanError
from engine.errors.runs import OUTPUT_UNWRITABLE
from engine.errors.usage import FILE_UNWRITABLE, USAGE_INVALID
from engine.launch.recipe_import import collector_at_rest
from engine.plan.stream_plan import StreamPlan, base_weights
from engine.quantities import counted, format_bytes, format_timing

_PACKING_CONTEXTS = (1024, 2048, 4096, 8192)


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001
    """Adds the options of `engine bench`."""
    parser.add_argument(
        "what",
        choices=("streaming", "packing", "all"),
        help="streaming: full steps at a context, tile by tile. packing: packed windows against padded rows. all: "
        "the suite that fills the documents' tables, as far as --minutes last.",
    )
    parser.add_argument("--model", metavar="M", help="Catalogue name (default: qwen2.5-coder-0.5b; demo for packing).")
    parser.add_argument(
        "--context",
        type=whole_number(1),
        action="append",
        metavar="N",
        help="Tokens (default: 131072; for packing 1024 to 8192). packing takes several.",
    )
    parser.add_argument(
        "--repo", type=Path, default=Path(), metavar="DIR", help="packing: folder whose files are packed (default: .)."
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("bench"),
        metavar="DIR",
        help="all: results, one file a case (default: bench).",
    )
    parser.add_argument(
        "--minutes", type=number(above=0), default=30.0, metavar="M", help="all: about how long (default: 30)."
    )
    parser.add_argument("--layers", type=whole_number(1), metavar="K", help="Decoder layers, if not all.")
    parser.add_argument(
        "--vram-cap", type=number(above=0), metavar="GIB", help="Refuse more GPU memory: emulates a smaller card."
    )
    precision = config.field_spec("model.precision")
    parser.add_argument("--precision", choices=precision.choices, default="auto", help=precision.description)
    device = config.field_spec("model.device")
    parser.add_argument("--device", choices=device.choices, default="auto", help=device.description)
    parser.add_argument(
        "--rank", type=whole_number(1), default=16, metavar="R", help="Rank of the adapter (default: 16)."
    )
    parser.add_argument("--repeats", type=whole_number(1), default=2, metavar="N", help="Steps; the fastest counts.")
    fields = ", ".join(f.name for f in dataclasses.fields(StreamPlan))
    parser.add_argument(
        "--plan", action="append", default=[], metavar="FIELD=VALUE", help=f"Layout of the step: {fields}."
    )
    parser.add_argument("--no-fused", action="store_true", help="Leave fused kernels out.")
    parser.add_argument("--no-floor", action="store_true", help="Do not measure attention and matrix products alone.")
    parser.add_argument(
        "--spill", type=Path, default=Path(), metavar="DIR", help="Folder of the files of homes on disk."
    )
    parser.add_argument("--json", action="store_true", help="One JSON document on standard output.")


Tell = Callable[[str], None]
"""Takes a message for the user."""
Report = Callable[[], None]
"""Prints the measurements."""


def run(args: argparse.Namespace) -> int:
    """Measures, and prints a few lines or one JSON document."""
    measure = {"all": _run_suite, "packing": _run_packing}.get(args.what, _run_streaming)
    with libraries_logged() as terminal:
        report = measure(args, terminal.speaks(_notify))
    report()
    return 0


def _run_suite(args: argparse.Namespace, notify: Tell) -> Report:
    from engine.benchmarking.suite import run_suite, suite, suite_table
    from engine.hardware.target import target_machine

    cases = suite(target_machine("auto"), minutes=args.minutes)
    try:
        run_suite(cases, args.output, notify)
        table = suite_table(args.output)
        (args.output / "report.md").write_text(table + "\n", encoding="utf-8")
    except OSError as error:
        raise OUTPUT_UNWRITABLE(path=args.output, problem=error.strerror or error) from error
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(args.output.glob("*.json"))}
    return functools.partial(_print, args, found, lambda _: table)


def _notify(text: str) -> None:
    print(one_line(text), file=sys.stderr, flush=True)  # noqa: T201


def _run_packing(args: argparse.Namespace, notify: Tell) -> Report:
    from engine.models.catalogue import find_model

    spec = find_model(args.model or "demo")
    with collector_at_rest():
        from engine.benchmarking.packing import measure_packing
        from engine.models.placement import choose_placement

    measured = measure_packing(
        spec,
        args.context or _PACKING_CONTEXTS,
        choose_placement(args.device, args.precision),
        args.repo,
        repeats=args.repeats,
        rank=args.rank,
        fused=not args.no_fused,
        notify=lambda row: notify(_packing_row(row)),
    )
    return functools.partial(_print, args, measured, _describe_packing)


def _describe_packing(measured: dict[str, Any]) -> str:
    lines = [
        f"{measured['model']} {measured['precision']}, {measured['repository_files']:,} files as documents of "
        f"{measured['repository_tokens'] / measured['repository_files']:,.0f} tokens; targets a second:",
        " context  documents/window   packed   padded  one by one   gain  empty packed  empty padded",
    ]
    return "\n".join([*lines, *(_packing_row(row) for row in measured["rows"])])


def _packing_row(row: dict[str, Any]) -> str:
    return (
        f"{row['context']:>8,}  {row['documents'] / row['windows']:>16.1f} {row['packed_per_second']:>8,.0f} "
        f"{row['padded_per_second']:>8,.0f}  {row['alone_per_second']:>10,.0f} "
        f"{row['packed_per_second'] / row['padded_per_second']:>5.1f}x  {row['empty_packed']:>12.1%}  "
        f"{row['empty_padded']:>12.1%}"
    )


def _print(args: argparse.Namespace, measured: dict[str, Any], describe: Callable[[dict[str, Any]], str]) -> None:
    if args.json:
        print_json(measured)
    else:
        from rich.console import Console

        Console(soft_wrap=True).print(describe(measured), markup=False, highlight=False)


def _run_streaming(args: argparse.Namespace, notify: Tell) -> Report:
    from engine.models.catalogue import find_model

    spec = find_model(args.model or "qwen2.5-coder-0.5b")
    context = (args.context or [131_072])[-1]
    chosen = _plan_fields(args.plan)
    if args.layers is not None and args.layers > spec.layers:
        raise USAGE_INVALID(
            problem=f"argument --layers: {spec.name} has {counted(spec.layers, 'layer')}", command="engine bench"
        )

    with collector_at_rest():
        from engine.benchmarking.streaming import measure_floors, measure_step
        from engine.models.placement import choose_placement

    placement = choose_placement(args.device, args.precision)
    if args.vram_cap is not None and placement.device.type != "cuda":
        raise USAGE_INVALID(
            problem="argument --vram-cap: it limits a GPU's memory, and this runs on a CPU", command="engine bench"
        )
    if not args.spill.is_dir():
        raise FILE_UNWRITABLE(path=args.spill, problem="it is not a folder", option="--spill")
    plan = _plan(chosen, nf4=placement.precision == "nf4")
    notify(f"{spec.name}, {context:,} tokens on {placement.device}: {counted(args.repeats, 'step')}")
    try:
        measured = measure_step(
            spec,
            context,
            plan,
            placement,
            layers=args.layers,
            vram_cap=args.vram_cap,
            repeats=args.repeats,
            rank=args.rank,
            fused=not args.no_fused,
            spill_directory=args.spill,
        )
    except StreamPlanError as error:
        raise PLAN_INVALID(text=" ".join(args.plan), problem=error) from error
    if not args.no_floor:
        notify("attention and matrix products alone")
        measured |= measure_floors(spec, context, measured, placement)
    return functools.partial(_print, args, measured, _describe)


def _plan_fields(texts: list[str]) -> dict[str, Any]:
    """Parses StreamPlan fields from "name=value" texts."""
    known = {field.name for field in dataclasses.fields(StreamPlan)}
    fields: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise PLAN_INVALID(text=text, problem=f"known fields are {', '.join(sorted(known))}")
        fields[name] = config.parse_value(value)
    return fields


def _plan(fields: dict[str, Any], *, nf4: bool) -> StreamPlan:
    """Builds the plan; weights=streamed are streamed in the format that --precision stores."""
    streamed = fields.get("weights") == "streamed"
    if streamed or "weights" not in fields:
        fields = {**fields, "weights": base_weights(four_bit=nf4, streamed=streamed)}
    try:
        return StreamPlan(**fields)
    except StreamPlanError as error:
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        raise PLAN_INVALID(text=text, problem=error) from error


def _describe(measured: dict[str, Any]) -> str:
    seconds = measured["seconds"]
    layers = f"{measured['layers']} of {measured['all_layers']} layers"
    lines = [
        f"{measured['model']} {measured['precision']}, {measured['context']:,} tokens, {layers}, {measured['backend']}",
        f"  step         {format_timing(seconds['total'])}: forward {format_timing(seconds['forward'])}, "
        f"loss {format_timing(seconds['loss'])}, backward {format_timing(seconds['backward'])}",
    ]
    if "gpu_peak_allocated" in measured:
        lines.append(
            f"  GPU peak     {format_bytes(measured['gpu_peak_allocated'])} allocated, "
            f"{format_bytes(measured['gpu_peak_reserved'])} reserved"
        )
    lines.append(f"  host         {format_bytes(measured['host_rss_bytes'])} more than before")
    if "attention_floor" in measured:
        floor = measured["attention_floor"]
        both = floor + measured["matrix_floor"]
        lines.append(
            f"  floor        attention {format_timing(floor)} ({floor / seconds['total']:.0%} of the step), "
            f"with matrix products {format_timing(both)} ({both / seconds['total']:.0%})"
        )
    return "\n".join(lines)
