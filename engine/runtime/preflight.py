"""Everything about a run that can be checked before its process starts, for the command line and the wizard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine import errors
from engine.runtime.run_directory import check_output

if TYPE_CHECKING:
    from engine.config import RunConfig


def check(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths, once everything that it names was found usable. Writes nothing.

    Raises:
        EliteError: REPOSITORY_*, MODEL_UNKNOWN, MODEL_DIRECTORY_INVALID, OUTPUT_UNWRITABLE or OUTPUT_FULL.
    """
    config = _with_absolute_paths(config)
    _check_repositories(config)
    check_output(Path(config.output.directory))
    return config


def _check_repositories(config: RunConfig) -> None:
    if not config.data.repositories:
        raise errors.REPOSITORY_UNSET()
    for text in config.data.repositories:
        path = Path(text)
        if not path.exists():
            raise errors.REPOSITORY_MISSING(path=path)
        if not path.is_dir():
            raise errors.REPOSITORY_NOT_A_FOLDER(path=path)


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    # The training process, and whoever repeats the run from its config.yaml, may have another current folder.
    repositories = [str(_absolute(text)) for text in config.data.repositories]
    directory = str(_absolute(config.output.directory))
    name = config.model.name
    model = _absolute(name)
    if model.is_dir() and ("/" in name or name.startswith((".", "~"))):
        name = str(model)
    return msgspec.structs.replace(
        config,
        model=msgspec.structs.replace(config.model, name=name),
        data=msgspec.structs.replace(config.data, repositories=repositories),
        output=msgspec.structs.replace(config.output, directory=directory),
    )


def _absolute(text: str) -> Path:
    return Path(text).expanduser().absolute()
