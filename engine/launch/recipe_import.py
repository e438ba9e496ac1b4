"""Imports the function that a process was started for."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from typing import Any


def import_function(name: str) -> Callable[..., Any]:
    """Imports the function of "module:function", with the garbage collector at rest.

    The modules of torch, transformers and peft leave a million objects that stay. The collector's passes over them take
    a fifth of the time of their import, so it begins afterwards, and leaves them out of its later passes too.
    """
    module, _, function = name.partition(":")
    collects = gc.isenabled()
    gc.disable()
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    finally:
        gc.freeze()
        if collects:
            gc.enable()
    return found
