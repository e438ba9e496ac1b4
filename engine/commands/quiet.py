"""Keeps libraries that announce things while they are imported off a command's output."""

from __future__ import annotations

import logging
import warnings


def silence_imports() -> None:
    """Libraries announce at import what concerns neither the measurement nor the person."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
