"""`engine generate`: runs the base model and the tuned one on a prompt, or at a place in a file."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from engine import config
from engine.commands.option_values import number, whole_number
from engine.commands.output import print_json
from engine.commands.quiet_libraries import Terminal, libraries_logged
from engine.errors import one_line
from engine.errors.generation import PROMPT_MISSING, SAMPLING_INVALID
from engine.launch.recipe_import import collector_at_rest
from engine.quantities import format_seconds

if TYPE_CHECKING:
    from engine.generation.request import Side, TextRequest
    from engine.generation.writer import Writer


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001
    """Adds the options of `engine generate`."""
    parser.add_argument(
        "reference",
        nargs="?",
        default="",
        metavar="RUN|MODEL",
        help="A run by id, by the beginning of one, or by its folder; or a model. The newest run if none is named.",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="Text to go on with; - reads standard input.")
    source.add_argument("--file", metavar="PATH[:LINE]", help="A file to go on with, after its end or after a line.")
    source.add_argument(
        "--serve", action="store_true", help="Answer requests from standard input, a JSON object a line each way."
    )
    parser.add_argument("--fill", action="store_true", help="Fill in: let the model see what follows PATH:LINE, too.")
    parser.add_argument(
        "--only", choices=("base", "tuned"), help="One of the models; both, one after the other, if not given."
    )
    parser.add_argument(
        "--max-tokens", type=whole_number(1, 1_000_000), default=128, metavar="N", help="Tokens at most (128)."
    )
    parser.add_argument(
        "--temperature",
        type=number(least=0, most=10),
        default=0.0,
        metavar="T",
        help="0 takes the likeliest token (0).",
    )
    parser.add_argument(
        "--top-p",
        type=number(above=0, most=1),
        default=1.0,
        metavar="P",
        help="Draw from the likeliest that sum to P (1).",
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="Of the drawing (0).")
    for field in ("model.device", "model.precision"):
        spec = config.field_spec(field)
        flag = field.partition(".")[2]
        parser.add_argument(f"--{flag}", choices=spec.choices, default="", help=f"{spec.description} (the run's)")
    parser.add_argument("--json", action="store_true", help="One JSON document on standard output.")


def run(args: argparse.Namespace) -> int:
    """Streams the generated text."""
    request = None if args.serve else _request(args)
    with libraries_logged() as terminal:
        with collector_at_rest():
            from engine.generation.writer import open_writer

        note = terminal.speaks(_note)
        writer = open_writer(args.reference, device=args.device, precision=args.precision, notify=note)
        if request is None:
            from engine.generation.serving import serve

            serve(writer, sys.stdin, terminal.speaks(_say))
            return 0
        sides: tuple[Side, ...] = (args.only,) if args.only else writer.sides
        answers: dict[str, Any] = {
            side: _write(writer, request, side, terminal, quiet=args.json, headed=len(sides) > 1) for side in sides
        }
    if args.json:
        print_json({"name": writer.name, "device": writer.device, **answers})
    return 0


def _request(args: argparse.Namespace) -> TextRequest:
    """Builds the request from the options.

    Raises:
        EliteError: PROMPT_MISSING, PROMPT_UNREADABLE, PROMPT_LINE, SAMPLING_INVALID.
    """
    import msgspec

    from engine.generation.request import TextRequest, read_place

    path = suffix = ""
    if args.file is not None:
        path, prompt, suffix = read_place(args.file)
    elif args.prompt is not None:
        prompt = _standard_input() if args.prompt == "-" else args.prompt
    else:
        raise PROMPT_MISSING()
    values: dict[str, Any] = {
        "prompt": prompt,
        "path": path,
        "suffix": suffix if args.fill else "",
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "seed": args.seed,
    }
    try:
        return msgspec.convert(values, TextRequest)
    except msgspec.ValidationError as error:
        raise SAMPLING_INVALID(problem=error) from error


def _standard_input() -> str:
    """Reads the prompt from standard input.

    Raises:
        EliteError: PROMPT_MISSING, where it is closed or empty.
    """
    # A process whose standard input is closed has None there.
    prompt = sys.stdin.read() if sys.stdin is not None else ""
    if not prompt:
        raise PROMPT_MISSING()
    return prompt


def _write(
    writer: Writer, request: TextRequest, side: Side, terminal: Terminal, *, quiet: bool, headed: bool
) -> dict[str, Any]:
    from engine.generation.text import printable

    out = terminal.speaks(_out)
    if headed and not quiet:
        out(f"── {side} ──\n")
    began, pieces, count = time.monotonic(), [], 0
    for text in writer.write(request, side):
        count += 1
        pieces.append(text)
        if not quiet:
            out(printable(text))
    seconds = time.monotonic() - began
    if not quiet:
        out("\n")
        terminal.speaks(_note)(f"{side}: {count:,} tokens in {format_seconds(seconds)} on {writer.device}")
    return {"text": "".join(pieces), "tokens": count, "seconds": seconds}


def _out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(text: str) -> None:
    sys.stderr.write(f"{one_line(text)}\n")


def _say(event: dict[str, Any]) -> None:
    _out(json.dumps(event) + "\n")
