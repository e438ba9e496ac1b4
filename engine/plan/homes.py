"""Lists the homes (GPU, host, disk) of what waits between a streamed step's passes, for the planner to compare."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from engine.plan.step_passes import repeated_layers
from engine.plan.stream_plan import BaseWeights, Home, StreamPlan
from engine.plan.workload import Workload

_CHECKPOINT_EVERY = (1, 2, 4, 8)

Grain = tuple[int, int, int]
"""Tile, key block and loss chunk."""


_NEARER: Mapping[Home, int] = {"gpu": 0, "host": 1, "disk": 2}


@dataclass(frozen=True, kw_only=True, eq=False)
class Homes:
    """What plans of one storage of the base weights differ in, apart from their grain.

    Far more of them are compared than become a StreamPlan, and the contexts of a table have them in common.
    """

    weights: Literal["host", "disk"]
    kv: Literal["gpu", "host"]
    hidden: Home
    gradient: Home
    every: int
    "Hidden states of every k-th layer are kept."
    repeated: int
    "Layers that the backward pass computes again for it."
    stash: bool
    saved: Home
    "Home of the saved attention outputs."

    @functools.cached_property
    def waiting(self) -> tuple[Home, ...]:
        """As StreamPlan.homes."""
        always = (self.hidden, self.gradient)
        return (*always, self.saved) if self.stash else always

    @functools.cached_property
    def on_device(self) -> tuple[object, ...]:
        """Identifies what is on the device: among homes other than it, none changes what it holds."""
        return (self.kv, *(home == "gpu" for home in self.waiting))

    @functools.cached_property
    def kinds(self) -> tuple[object, ...]:
        """Identifies what waits between the passes, whatever its homes: plans alike in it compare by their costs."""
        return (self.kv, self.stash)

    @functools.cached_property
    def costs(self) -> tuple[int, ...]:
        """What a plan of the same kinds and grain takes time by, or writes to the disk by, all rising."""
        return (self.repeated, _NEARER[self.weights], *(_NEARER[home] for home in self.waiting))

    def outdoes(self, other: Homes) -> bool:
        """Whether a plan takes no longer than another of the same kinds and grain, and writes no more."""
        return all(map(operator.le, self.costs, other.costs))

    @functools.cached_property
    def but_gradient(self) -> tuple[object, ...]:
        """Identifies everything but the home of the gradient stream."""
        return (self.weights, self.kv, self.hidden, self.every, self.stash, self.saved)

    def no_gradient_helps(self, missing: int, work: Workload) -> bool:
        """Whether a plan that lacks `missing` bytes of host memory lacks some with a farther gradient stream too."""
        if self.gradient == "gpu":
            return True
        # With hidden states on the disk, the leanest of all plans stays: it tells what the host lacks at least.
        return self.hidden != "disk" and missing > work.context * work.spec.hidden_width * work.element

    def plan(self, work: Workload, weights: BaseWeights, fixed: Mapping[str, Any], grain: Grain) -> StreamPlan:
        """Returns the plan of these homes with a grain."""
        return _plan(self, grain, weights, work.activation_bits, fixed.get("attention", "auto"))


@functools.lru_cache(maxsize=4096)
def _plan(
    homes: Homes, grain: Grain, weights: BaseWeights, activation_bits: Literal[16, 8, 4], attention: str
) -> StreamPlan:
    """Makes a plan. Cached, since the contexts of a table have most of their plans in common."""
    tile, key_block, loss_piece = grain
    return StreamPlan(
        tile=tile,
        key_block=key_block,
        loss_piece=loss_piece,
        weights=weights,
        weights_home=homes.weights,
        kv_home=homes.kv,
        hidden_home=homes.hidden,
        gradient_home=homes.gradient,
        checkpoint_every=homes.every,
        stash=homes.stash,
        stash_home=homes.saved,
        activation_bits=activation_bits,
        attention=attention,
    )


def all_homes(work: Workload, weights: BaseWeights, fixed: Mapping[str, Any]) -> tuple[Homes, ...]:
    """Returns the homes of one storage's plans; those of a plan come before those of plans that it may outdo."""
    weight_homes = _weight_homes(work, weights, fixed)
    return _all_homes(work.spec.layers, weight_homes, tuple(fixed.items()), on_gpu=work.on_gpu)


@functools.lru_cache(maxsize=64)
def _all_homes(
    layers: int,
    weight_homes: tuple[Literal["host", "disk"], ...],
    settings: tuple[tuple[str, Any], ...],
    *,
    on_gpu: bool,
) -> tuple[Homes, ...]:
    """Makes the homes. Cached, since they do not depend on the context."""
    fixed, found = dict(settings), []
    for weights_home, (kv_home, hidden_home) in product(weight_homes, _homes(fixed, on_gpu=on_gpu)):
        steps = _CHECKPOINT_EVERY if hidden_home != "gpu" else (1,)
        for wanted in (fixed["checkpoint_every"],) if "checkpoint_every" in fixed else steps:
            if wanted > layers and "checkpoint_every" not in fixed:
                continue
            every = min(wanted, layers)
            gradients = _gradient_homes(fixed, kv_home, on_gpu=on_gpu)
            others = product(_stashes(fixed, kv_home, hidden_home), gradients)
            found += [
                Homes(
                    weights=weights_home,
                    kv=kv_home,
                    hidden=hidden_home,
                    gradient=gradient,
                    every=every,
                    repeated=repeated_layers(layers, every),
                    stash=stash,
                    saved=saved,
                )
                for (stash, saved), gradient in others
            ]
    return tuple(found)


def _stashes(fixed: Mapping[str, Any], kv_home: str, hidden_home: Home) -> Iterator[tuple[bool, Home]]:
    """Yields whether attention outputs are saved, and their home, cheapest first."""
    homes: tuple[Home, ...] = ("host", "disk") if hidden_home != "gpu" else ("gpu", "host", "disk")
    if "stash_home" in fixed:
        homes = (fixed["stash_home"],)
    if fixed.get("stash", True):
        yield from ((True, home) for home in homes if (kv_home, home) != ("host", "gpu"))
    if not fixed.get("stash", False):
        yield False, homes[0] if "stash_home" in fixed else hidden_home


def _gradient_homes(fixed: Mapping[str, Any], kv_home: str, *, on_gpu: bool) -> list[Home]:
    """Homes of the gradient stream, cheapest first. It is as large as one layer's hidden states: it may stay alone."""
    homes: tuple[Home, ...] = ("gpu", "host", "disk") if on_gpu else ("host", "disk")
    if "gradient_home" in fixed:
        homes = (fixed["gradient_home"],)
    return [home for home in homes if (kv_home, home) != ("host", "gpu")]


def _weight_homes(
    work: Workload, weights: BaseWeights, fixed: Mapping[str, Any]
) -> tuple[Literal["host", "disk"], ...]:
    """Homes of streamed 4-bit weights.

    Of a model with experts no 4-bit copy is kept that could be mapped (engine.models.four_bit_folder).
    """
    if weights != "nf4-streamed" or work.spec.sparse_layers:
        return ("host",)
    return (fixed["weights_home"],) if "weights_home" in fixed else ("host", "disk")


def _homes(fixed: Mapping[str, Any], *, on_gpu: bool) -> list[tuple[Any, Any]]:
    """Homes of keys and values, and of hidden states, cheapest first."""
    homes: tuple[tuple[Any, Any], ...] = (("gpu", "host"), ("gpu", "disk"))
    if on_gpu:
        homes = (("gpu", "gpu"), *homes, ("host", "host"), ("host", "disk"))
    # A fixed home need not be in the list: on a CPU, the "gpu" home is host memory as well.
    wanted = dict.fromkeys((fixed.get("kv_home", kv), fixed.get("hidden_home", hidden)) for kv, hidden in homes)
    return [home for home in wanted if home != ("host", "gpu")]
