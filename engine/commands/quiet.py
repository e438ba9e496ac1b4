"""Keeps libraries that announce things while they are imported off a command's output."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator


def silence_imports() -> None:
    """Libraries announce at import what concerns neither the measurement nor the person."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


@contextlib.contextmanager
def output_kept_clean() -> Iterator[None]:
    """What libraries print within goes to standard error: standard output holds the command's own document only."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
