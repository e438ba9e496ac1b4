"""Names a fine-tuned model after what it is trained on."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.config.run import RunConfig

NAMELESS = "my-code-model"
"""Name where neither a repository nor a dataset has one, such as `/`."""
_LONGEST = 64
_DATASET_ENDINGS = re.compile(r"(\.(jsonl?|csv|tsv|parquet|arrow|ndjson|txt|gz|zst))+$", re.IGNORECASE)


def model_name(config: RunConfig) -> str:
    """Returns `output.model_name`, or where that is empty, the name of the first repository, else dataset."""
    if config.output.model_name:
        return config.output.model_name
    for texts, ending in ((config.data.repositories, None), (config.data.datasets, _DATASET_ENDINGS)):
        for text in texts:
            # Not resolved: a link is named as the user named it.
            last = os.path.basename(os.path.abspath(os.path.expanduser(text.replace("\0", ""))))  # noqa: PTH100, PTH111, PTH119
            last = last if ending is None else ending.sub("", last)
            if name := as_name(last.removesuffix(".git")):
                return name
    return NAMELESS


def as_name(text: str) -> str:
    """Replaces what a name of a model cannot hold; "" where nothing is left."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:_LONGEST]
    return name.rstrip("._-")
