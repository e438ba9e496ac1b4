"""`engine replay`: lets a base model write text, once, which its fine-tuning replays so that it forgets less."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import config
from engine.commands.option_values import whole_number
from engine.commands.output import print_json
from engine.commands.quiet_libraries import libraries_logged
from engine.errors import one_line
from engine.errors.generation import REPLAY_UNAVAILABLE
from engine.errors.usage import FILE_UNWRITABLE


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001 - one signature for all
    """Adds the options of `engine replay`."""
    parser.add_argument("--model", default=config.field_spec("model.name").default, metavar="MODEL", help="The base.")
    parser.add_argument(
        "--tokens", type=whole_number(1), default=100_000, metavar="N", help="Tokens to write (100000)."
    )
    parser.add_argument(
        "--longest", type=whole_number(1), default=512, metavar="N", help="Tokens of a text or an answer (512)."
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="Of the drawing (0).")
    parser.add_argument(
        "--template",
        default="",
        metavar="NAME",
        help="How conversations are written, as data.chat_template; the tokenizer's own if not given; none for texts.",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="A new file; one in the cache if not given.")
    for field in ("model.device", "model.precision"):
        spec = config.field_spec(field)
        parser.add_argument(
            f"--{field.partition('.')[2]}", choices=spec.choices, default=spec.default, help=spec.description
        )
    parser.add_argument("--json", action="store_true", help="One JSON document on standard output.")


def run(args: argparse.Namespace) -> int:
    """Writes the data set, unless it is there already.

    Raises:
        EliteError: REPLAY_UNAVAILABLE, CHAT_TEMPLATE_UNUSABLE, MODEL_*, FILE_UNWRITABLE.
    """
    if args.out is not None and args.out.exists():
        raise FILE_UNWRITABLE(option="--out", path=args.out, problem="it exists already")
    with libraries_logged() as terminal:
        path = args.out or _cached(args)
        reused = path.exists()
        found = _counted(path) if reused else _write(args, path, terminal.speaks(_note))
    document = {"path": str(path), "reused": reused, **found}
    if args.json:
        print_json(document)
        return 0
    done = "is there already, with" if reused else "now holds"
    sys.stdout.write(
        f"{path} {done} {found['rows']:,} texts of {args.model}\n"
        f"train with: --dataset {path} --set 'data.mixture=[code=0.95, {path.name}=0.05]'\n"
    )
    return 0


def _cached(args: argparse.Namespace) -> Path:
    """Returns the file in the cache that holds, or will hold, what the options describe."""
    from engine.data.preview import user_cache
    from engine.models.base_fingerprint import fingerprint
    from engine.models.catalogue import find_model
    from engine.models.loading import open_weights

    base = fingerprint(open_weights(find_model(args.model))[0])
    return user_cache().parent / "replay" / f"{_key(args, base.parts)}.jsonl"


def _key(args: argparse.Namespace, parts: Any) -> str:
    """Names the text by all that it follows from."""
    from engine.generation.replay import REVISION

    told = [REVISION, dict(parts), args.tokens, args.longest, args.seed, args.template]
    name = "".join(c if c.isalnum() else "-" for c in Path(args.model).name)[:40]
    return f"{name}-{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]}"


def _counted(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"rows": sum(1 for _ in file)}


def _write(args: argparse.Namespace, path: Path, note: Callable[[str], None]) -> dict[str, Any]:
    """Writes the file, which appears whole."""
    from engine.generation.replay import NothingWrittenError, self_written
    from engine.generation.writer import open_writer
    from engine.whole_file import replace_text

    shown = 0

    def progress(tokens: int) -> None:
        nonlocal shown
        if tokens >= min(shown + args.tokens / 10, args.tokens):
            shown = tokens
            note(f"{tokens:,} of {args.tokens:,} tokens written")

    writer = open_writer(args.model, device=args.device, precision=args.precision, notify=note)
    rows = self_written(
        writer,
        tokens=args.tokens,
        longest=args.longest,
        seed=args.seed,
        template=args.template,
        progress=progress,
    )
    try:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    except NothingWrittenError:
        raise REPLAY_UNAVAILABLE(model=args.model) from None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_text(path, "".join(lines))
    except OSError as error:
        raise FILE_UNWRITABLE(option="--out", path=path, problem=error.strerror or error) from error
    return {"rows": len(lines)}


def _note(text: str) -> None:
    sys.stderr.write(f"{one_line(text)}\n")
