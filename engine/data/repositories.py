"""The files of a configuration's repositories, and how many tokens its data make, without reading them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.data.collect import BYTES_PER_TOKEN, Collection, collect, estimate_tokens
from engine.errors.data import REPOSITORY_UNSET

if TYPE_CHECKING:
    from engine.config import DataSection


def collect_repositories(data: DataSection, progress: Callable[[int, int], None] | None = None) -> Collection:
    """The files of the repositories alone.

    Raises:
        EliteError: REPOSITORY_*.
    """
    return collect(
        [Path(repository) for repository in data.repositories],
        max_file_bytes=data.max_file_bytes,
        include=[*data.include, *(["notebook"] if data.notebooks == "cells" else [])],
        extensions=data.extensions,
        any_size=bool(data.datasets),
        progress=progress,
    )


def estimate_data_tokens(data: DataSection) -> int:
    """About how many tokens a configuration's data make, from sizes alone.

    Raises:
        EliteError: REPOSITORY_* or DATA_SET_*.
    """
    if not (data.repositories or data.datasets):
        raise REPOSITORY_UNSET()
    tokens = estimate_tokens(collect_repositories(data)) if data.repositories else 0
    if not data.datasets:
        return tokens
    from engine.data.rows import estimate_text_bytes  # with all that reads files

    return tokens + round(sum(estimate_text_bytes(Path(path)) for path in data.datasets) / BYTES_PER_TOKEN)
