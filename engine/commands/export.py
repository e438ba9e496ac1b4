"""`engine export`: writes a run's result in a format that other programs load."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.quantities import format_bytes

if TYPE_CHECKING:
    from engine.export.exporting import Exported

_SHOWN_SECONDS = 0.5
_SPELLINGS = {"f16": "fp16", "fp32": "f32"}
"""Other programs' names of the formats."""


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001 - one signature for all
    """Adds the options of `engine export`."""
    parser.add_argument("reference", metavar="RUN", help="id, unique beginning of an id, or path of a run")
    parser.add_argument(
        "--to",
        required=True,
        choices=("adapter", "merged", "gguf", "gguf-adapter", "gguf-base"),
        help="adapter: PEFT's format, for use with the base model; merged: safetensors that transformers loads; "
        "gguf: one file for llama.cpp, with a Modelfile for Ollama; gguf-adapter: the adapter alone, which llama.cpp "
        "adds to the base's GGUF file as it runs (--lora, /lora-adapters); gguf-base: that file",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="A new folder (default: exports/ in the run's own).")
    parser.add_argument(
        "--dtype",
        type=_dtype,
        choices=("bf16", "fp16", "f32", "q8_0", "q5_k_m", "q4_k_m"),
        help="Format of the weights (default: that of the base); Q4_K_M and F16 are understood too.",
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        help="Load the export again and compare its logits with the run's; takes RAM for the whole model in fp32 "
        "(default: where file and memory are of a size for it).",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def _dtype(text: str) -> str:
    """Returns a format's name here, whatever its case and whoever's name it is."""
    return _SPELLINGS.get(text.lower(), text.lower())


def run(args: argparse.Namespace) -> int:
    """Exports, and prints a summary."""
    import dataclasses

    from engine.commands.output import print_json
    from engine.commands.quiet_libraries import libraries_logged
    from engine.launch.recipe_import import collector_at_rest
    from engine.runs import run_index

    found = run_index.find_run(args.reference)
    notify = _Progress()
    with libraries_logged(found.log_path) as terminal:
        with collector_at_rest():
            from engine.export.exporting import export

        written = export(found, args.to, args.output, args.dtype, check=args.check, notify=terminal.speaks(notify))
    notify.end()
    if args.json:
        print_json({"run": found.id, **dataclasses.asdict(written), "path": str(written.path)})
    else:
        _print(written)
    return 0


class _Progress:
    """Counts tensors in a line on standard error, on a terminal only."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        import time

        if self._shown and (done == total or time.monotonic() - self._last > _SHOWN_SECONDS):
            self._last = time.monotonic()
            print(f"\r{done:,} of {total:,} tensors written", end="", file=sys.stderr, flush=True)  # noqa: T201

    def end(self) -> None:
        if self._shown and self._last:
            print(file=sys.stderr)  # noqa: T201


def _print(written: Exported) -> None:
    from engine.errors import one_line

    lines = [f"wrote {one_line(written.path)}"]
    lines += [f"  {format_bytes(size):>10}  {one_line(name)}" for name, size in written.files.items()]
    if written.base:
        lines.append(written.base)
    if written.unchecked:
        lines.append(f"not compared with the run's model: {one_line(written.unchecked)}")
    if written.difference is not None:
        found = written.difference
        lines.append(
            f"checked: over {found.tokens} tokens its logits differ by {found.relative:.2g} of their deviation from "
            f"the run's in fp32, and {found.same_choice:.0%} of the most likely tokens are the same"
        )
    lines += [f"use it: {one_line(command)}" for command in written.commands]
    print("\n".join(lines), file=sys.stderr)  # noqa: T201
