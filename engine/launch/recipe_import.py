"""Imports what takes seconds to import, such as the function that a process was started for."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def import_function(name: str) -> Callable[..., Any]:
    """Imports the function of "module:function", with the garbage collector at rest."""
    module, _, function = name.partition(":")
    with collector_at_rest():
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Collects no garbage within the context, which imports torch, transformers and peft.

    Their modules leave a million objects that stay. The collector's passes over them take a fifth of the time of their
    import, so it begins afterwards, and leaves them out of its later passes too.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
