"""Options that describe a run for commands other than `engine train`: a file, single fields, and common ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from engine import config
from engine.config import RunConfig, StreamSection

_FLAGS = {"--model": "model.name", "--output": "output.directory"}


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds --repo, --model, --output, --config and --set."""
    parser.add_argument(
        "--repo", action="append", default=[], metavar="DIR", help=config.field_spec("data.repositories").description
    )
    for flag, path in _FLAGS.items():
        spec = config.field_spec(path)
        parser.add_argument(flag, dest=path, metavar=flag[2:].upper(), help=f"{spec.description} ({spec.default})")
    parser.add_argument("--config", type=Path, metavar="FILE", help="The run's YAML; otherwise the defaults.")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="One field of it.")


def add_stream_option(parser: argparse.ArgumentParser) -> None:
    """Adds --stream, for commands that plan without a configuration."""
    parser.add_argument(
        "--stream",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="A choice of the streamed step that is taken from the planner, as in hidden_home=disk: "
        "a field of the configuration's section stream.",
    )


def read_stream_options(args: argparse.Namespace) -> StreamSection:
    """Builds the section that --stream describes.

    Raises:
        EliteError: CONFIG_INVALID or OVERRIDE_MALFORMED.
    """
    data: dict[str, Any] = {
        "model": {"precision": args.precision},
        "training": {"step": getattr(args, "step", "auto")},
    }
    for text in args.stream:
        config.apply_override(data, text, option="--stream", section="stream")
    return config.from_mapping(data, source="--stream").stream


def read_run_mapping(args: argparse.Namespace) -> dict[str, Any]:
    """Builds nested mappings from the options: the file, overridden by named options, overridden by `--set`.

    Raises:
        EliteError: CONFIG_UNREADABLE or OVERRIDE_MALFORMED.
    """
    data: dict[str, Any] = config.load_mapping(args.config) if args.config else {}
    named = {path: value for path in _FLAGS.values() if (value := getattr(args, path))}
    if args.repo:
        named["data.repositories"] = args.repo
    for path, value in named.items():
        section, _, name = path.partition(".")
        data.setdefault(section, {})[name] = value
    for text in args.set:
        config.apply_override(data, text)
    return data


def read_run_config(args: argparse.Namespace) -> RunConfig:
    """Builds the configuration from the options.

    Raises:
        EliteError: CONFIG_UNREADABLE, CONFIG_INVALID or OVERRIDE_MALFORMED.
    """
    return config.from_mapping(read_run_mapping(args), source=str(args.config or "command line"))
