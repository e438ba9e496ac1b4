"""`engine serve`: an OpenAI-compatible endpoint for editors and other clients on this machine."""

from __future__ import annotations

import argparse
import secrets
import sys
import threading
from collections.abc import Mapping

from engine import config
from engine.commands.option_values import whole_number
from engine.commands.quiet_libraries import Terminal, libraries_logged
from engine.errors import one_line
from engine.errors.generation import SERVE_INVALID, SERVE_LIBRARY, SERVE_OPEN
from engine.launch.recipe_import import collector_at_rest

LONGEST = 32_768
"""Tokens of a request unless --context names another number."""


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001
    """Adds the options of `engine serve`."""
    parser.add_argument(
        "reference",
        nargs="?",
        default="",
        metavar="RUN|MODEL",
        help="A run by id, by the beginning of one, or by its folder; or a model. The newest run if none is named.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (127.0.0.1: this machine alone).")
    parser.add_argument(
        "--port", type=whole_number(0, 65_535), default=8080, metavar="N", help="Port, 0 for any free one (8080)."
    )
    access = parser.add_mutually_exclusive_group()
    access.add_argument("--token", default="", help="Token that clients send (a random one, printed at the start).")
    access.add_argument("--no-token", action="store_true", help="Let every program on this machine in.")
    parser.add_argument(
        "--context",
        type=whole_number(1),
        default=0,
        metavar="N",
        help=f"Tokens of a prompt and its text at most (the run's context, {LONGEST:,} at most).",
    )
    parser.add_argument(
        "--rows", type=whole_number(1, 256), default=8, metavar="N", help="Requests decoded together at most (8)."
    )
    for field in ("model.device", "model.precision"):
        spec = config.field_spec(field)
        flag = field.partition(".")[2]
        parser.add_argument(f"--{flag}", choices=spec.choices, default="", help=f"{spec.description} (the run's)")


def run(args: argparse.Namespace) -> int:
    """Serves until SIGINT or SIGTERM.

    Raises:
        EliteError: SERVE_*, GENERATION_UNKNOWN, RUN_*, MODEL_*, CHAT_TEMPLATE_UNUSABLE, OUT_OF_MEMORY.
    """
    _check(args)
    try:
        from engine.serving import guard, server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "anyio", "h11", "click"):
            raise
        raise SERVE_LIBRARY() from error
    loopback = guard.is_loopback(args.host)
    if args.no_token and not loopback:
        raise SERVE_OPEN(host=args.host)
    token = "" if args.no_token else args.token or secrets.token_urlsafe(24)
    opened = server.listen(args.host, args.port)
    with opened, libraries_logged() as terminal:
        with collector_at_rest():
            from engine.generation.writer import open_writer
            from engine.serving.app import make_app
            from engine.serving.prompts import Prompts
            from engine.serving.worker import Worker

        one_at_a_time = threading.Lock()  # `speaks` exchanges the process's streams

        def note(text: str) -> None:
            with one_at_a_time:
                terminal.speaks(_note)(text)

        writer = open_writer(args.reference, device=args.device, precision=args.precision, notify=note)
        models = writer.models
        capacity = args.context or min(models.context or models.spec.max_context, LONGEST)
        prompts = Prompts(writer, capacity)
        worker = Worker(writer, capacity=capacity, rows=args.rows, report=note)
        try:
            made = make_app(prompts, worker, writer.encoder.tokenizer, token=token, loopback=loopback, report=note)
            host, port = opened.getsockname()[:2]
            address = f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
            _greet(terminal, address, prompts.names, token, f"{writer.device}, {capacity:,} tokens a request")
            server.run(made, opened, worker.stop)
        finally:
            worker.close()
    return 0


def _check(args: argparse.Namespace) -> None:
    """Checks that the token can stand in a header.

    Raises:
        EliteError: SERVE_INVALID.
    """
    if not args.token.isascii() or not args.token.isprintable() or args.token != args.token.strip():
        raise SERVE_INVALID(problem="--token must be of ASCII characters, without spaces around it")


def _greet(terminal: Terminal, address: str, names: Mapping[str, str], token: str, about: str) -> None:
    lines = [f"serving on {address} ({about})"]
    lines += [f"model: {name} ({side})" for name, side in names.items()]
    lines.append(f"token: {token}" if token else "no token: every program on this machine may use it")
    terminal.speaks(_say)("\n".join(lines))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _note(text: str) -> None:
    sys.stderr.write(f"{one_line(text)}\n")
