"""Command lines drawn from the parsers themselves: every command, every option, with plausible and odd words."""

from __future__ import annotations

import argparse
import functools
import random
import shutil
from pathlib import Path

from engine.cli import build_parser
from engine.config import RunConfig, to_mapping
from tests.chaos.fuzzing import Bench
from tests.chaos.odd import WORDS, word

_LONG = ("probe", "bench", "verify", "ablate", "lr-range", "serve", "replay")
"""What takes minutes, or serves until it is stopped, when nothing is wrong with it: something always is."""
_LEFT_OUT = ("profile",)
"""Measures for seconds whatever else is said."""
_WRITTEN = ("output", "out", "output.directory", "spill")
"""Options that name what is written."""


@functools.cache
def _parsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = (found for found in build_parser()._actions if isinstance(found, argparse._SubParsersAction))
    return {name: parser for name, parser in action.choices.items() if name not in _LEFT_OUT}


@functools.cache
def fields() -> tuple[str, ...]:
    """Every field of the configuration that names nothing to write to."""
    named = to_mapping(RunConfig())
    return tuple(f"{part}.{name}" for part, names in named.items() for name in names if part != "output")


def setting(rng: random.Random) -> str:
    """A KEY=VALUE for `--set`; the key is odd too, now and then."""
    key = rng.choice(fields())
    if rng.random() < 0.08:
        key = rng.choice(["", "a", ".", "x.", "model", "model.name.x", "\x1b.\x1b", key.upper(), "output.model_name"])
    return f"{key}={word(rng)}"


def make(bench: Bench, rng: random.Random, folder: Path) -> list[str]:
    """See engine.cli. A run that may be deleted is a copy."""
    name = rng.choice(sorted(_parsers()))
    if name == "delete":
        target = folder / "out" / "runs" / bench.run.name
        shutil.copytree(bench.run, target)
        bench = Bench(bench.lab, target, bench.model, bench.repository)
    words = [name]
    for action in _parsers()[name]._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if not action.option_strings:
            words += _positionals(name, action, bench, rng)
        elif action.required or rng.random() < 0.25:
            words += _option(action, bench, rng)
    if name == "train":
        words = [text for text in words if text != "--dry-run"] + ["--dry-run"]
    words += {"doctor": ["--quick"], "report": ["--quick"], "evaluate": ["--tokens", "32", "--functions", "1"]}.get(
        name, []
    )
    if name == "runs":
        words = [text for text in words if text != "--watch"]  # which ends with its reader
    if name in _LONG:
        words = [text for text in words if text != "all"]  # which needs no model
        words += ["--nope"] if rng.random() < 0.1 else ["--model", "nope/nope"]
    return words


def _positionals(name: str, action: argparse.Action, bench: Bench, rng: random.Random) -> list[str]:
    if name in _LONG and not action.choices:
        # A run would be served for ever, an optimisation proven for minutes.
        return [rng.choice(WORDS[:10]) + "nope"]
    if action.nargs in ("*", "?") and rng.random() < 0.2:
        return []
    return [_value(action, bench, rng) for _ in range(1 + (action.nargs == "*" and rng.random() < 0.2))]


def _option(action: argparse.Action, bench: Bench, rng: random.Random) -> list[str]:
    flag = action.option_strings[-1]
    if action.nargs == 0:
        return [flag]
    value = _value(action, bench, rng)
    return [f"{flag}={value}"] if value.startswith("-") and rng.random() < 0.8 else [flag, value]


def _value(action: argparse.Action, bench: Bench, rng: random.Random) -> str:
    if action.dest in _WRITTEN:
        return rng.choice(["written", word(rng, WORDS)])
    if action.dest == "set":
        return setting(rng)
    if rng.random() < 0.45:
        return word(rng)
    if action.choices:
        return str(rng.choice(list(action.choices)))
    deleting = bench.run.parents[2].name == "case"
    plausible = {
        # By its name, only the run itself would be found, not its copy.
        "RUN": [str(bench.run), *([] if deleting else [bench.run.name, bench.run.name[:6]])],
        "RUN|MODEL": [str(bench.run), str(bench.model)],
        "RUN|DIRECTORY": [str(bench.run)],
        "DIR": [str(bench.repository), str(bench.repository / "locks.py"), str(bench.model)],
        "MODEL": [str(bench.model), "demo"],
        "M": [str(bench.model), "demo", "qwen3-0.6b"],
        "FILE": [str(bench.run / "config.yaml"), str(bench.run / "plan.json")],
        "PATH": [str(bench.repository), str(bench.run / "events.jsonl")],
        "NAME": ["rtx-4090", "h200", "auto"],
        "FIELD=VALUE": [f"hidden_home={word(rng)}", "tile=64", "kv_home=host"],
    }
    return rng.choice(plausible.get(str(action.metavar), ["1", "2", "64", "0.5", "2026-01-01", "auto"]))
