"""Imports what takes seconds to import, such as the function that a process was started for."""

from __future__ import annotations

import functools
import gc
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LOADING = "loading the libraries"
"""What a process does meanwhile, in words for people."""

_COMPILES_ITS_FUNCTIONS = "bitsandbytes"
"""Passes a dozen functions for the CPU to torch.compile while it is imported, which imports torch's whole compiler."""
_DEFERS = "defers_compiling"
"""Attribute of what stands in for torch.compile. A second one around the first would be left behind by it."""


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

    Functions that bitsandbytes compiles are compiled when they are first called, which in most runs is never.
    """
    collects = gc.isenabled()
    gc.disable()
    later = _CompileLater()
    sys.meta_path.insert(0, later)
    try:
        yield
    finally:
        sys.meta_path.remove(later)
        later.restore()
        gc.freeze()
        if collects:
            gc.enable()


class _CompileLater:
    """Finds no module. Defers torch.compile from the first import of bitsandbytes until `restore`."""

    def __init__(self) -> None:
        self._compile: Callable[..., Any] | None = None

    def find_spec(self, name: str, *_: Any) -> None:
        """See importlib.abc.MetaPathFinder."""
        if name != _COMPILES_ITS_FUNCTIONS or self._compile is not None:
            return
        torch: Any = importlib.import_module("torch")
        if not hasattr(torch.compile, _DEFERS):  # by a context around this one, or in another thread
            self._compile = torch.compile
            torch.compile = deferred(torch.compile)

    def restore(self) -> None:
        """Lets torch.compile compile at once again."""
        if self._compile is not None:
            sys.modules["torch"].compile = self._compile  # type: ignore[attr-defined]


def deferred(compiler: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps torch.compile, so that a function is passed to it when it is called first.

    torch.compile compiles nothing before that either, but it imports the compiler: 0.7 s on the CPU of a small server.
    """

    @functools.wraps(compiler)
    def defer(model: Any = None, **options: Any) -> Any:
        if not isinstance(model, types.FunctionType):
            return compiler(model, **options)
        compiled = functools.cache(lambda: compiler(model, **options))

        @functools.wraps(model)
        def call(*args: Any, **named: Any) -> Any:
            return compiled()(*args, **named)

        return call

    setattr(defer, _DEFERS, True)
    return defer
