"""Finds the recurrent mixers of a decoder layer (Gated DeltaNet, Mamba2, short convolutions), and routes their calls.

Such a module couples the tokens of a sequence through its convolution's last inputs and its recurrent state, both of
which it reads from and writes to transformers' cache. No family is named here: a mixer is a module with a causal
convolution of its own whose forward takes a cache.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

_CACHES = ("cache_params", "past_key_values")
"""Names that transformers' mixers give the argument for the cache."""

Call = Callable[[Tensor, Any], Tensor]
"""A mixer's own forward, from its input (1, tokens, hidden) and a cache or None to its output (1, tokens, hidden)."""


@dataclass(frozen=True, kw_only=True)
class RecurrentMixer:
    """A recurrent mixer of one decoder layer."""

    module: nn.Module
    layer: int
    number: int
    "Among the mixers of its layer."
    arguments: tuple[str, ...]
    "Names of its forward's arguments; the first is its input."
    cache: str
    "The one for the cache."

    @property
    def key(self) -> tuple[int, int]:
        """Layer and number."""
        return self.layer, self.number


class MixerRunner(Protocol):
    """Computes a mixer's call in place of the mixer."""

    def mix(self, mixer: RecurrentMixer, call: Call, x: Tensor) -> Tensor:
        """Computes the mixer's output for x, both (1, tokens, hidden)."""


def mixer_names(module: nn.Module) -> list[str]:
    """Lists the recurrent mixers inside a module by name."""
    return [name for name, part in module.named_modules() if _cache_argument(part)]


def _cache_argument(module: nn.Module) -> str:
    """Returns the name of a recurrent mixer's argument for the cache; "" for any other module."""
    if not any(isinstance(child, nn.Conv1d) for child in module.children()):
        return ""
    return next((name for name in _CACHES if name in _arguments(module)), "")


def _arguments(module: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(type(module).forward).parameters)[1:]


def recurrent_mixers(layers: Sequence[nn.Module]) -> list[list[RecurrentMixer]]:
    """Lists the recurrent mixers of each decoder layer."""
    return [
        [
            RecurrentMixer(
                module=module, layer=index, number=number, arguments=_arguments(module), cache=_cache_argument(module)
            )
            for number, module in enumerate(map(layer.get_submodule, mixer_names(layer)))
        ]
        for index, layer in enumerate(layers)
    ]


@contextlib.contextmanager
def routed(mixers: Iterable[RecurrentMixer], runner: MixerRunner) -> Iterator[None]:
    """Routes the calls of these mixers through `runner` inside the block."""
    every = list(mixers)
    for mixer in every:
        mixer.module.__dict__["forward"] = _routed_forward(mixer, runner)
    try:
        yield
    finally:
        for mixer in every:
            mixer.module.__dict__.pop("forward", None)


def _routed_forward(mixer: RecurrentMixer, runner: MixerRunner) -> Callable[..., Tensor]:
    own = mixer.module.forward

    def forward(*positional: Any, **named: Any) -> Tensor:
        arguments = {**dict(zip(mixer.arguments, positional, strict=False)), **named}
        x = arguments.pop(mixer.arguments[0])

        def call(part: Tensor, cache: Any) -> Tensor:
            output = own(part, **{**arguments, mixer.cache: cache})
            if not isinstance(output, Tensor):
                raise RuntimeError(f"{type(mixer.module).__name__} returns more than its output")
            return output

        return runner.mix(mixer, call, x)

    return forward
