"""The order of step layouts, from the fastest to the one that needs least memory.

All of them compute the same gradient (engine.plan.stream_plan), so a run may change its layout in the middle of an
update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors.planning import StreamPlanError
from engine.plan.search import Way
from engine.plan.step_layout import StepLayout
from engine.plan.stream_plan import Home, StreamPlan, base_weights
from engine.steps.failures import Place

_LEAST_TILE = 128
_LEAST_LOSS_PIECE = 64
_FIRST_TILE = 4096


@dataclass(frozen=True, kw_only=True)
class FallbackPolicy:
    """Chooses the next smaller layout on OOM, within the limits of model, hardware and configuration."""

    context: int
    "Tokens in the longest window."
    layers: int
    "Decoder layers."
    quantised: bool
    "Whether the base weights are stored in 4 bits."
    on_gpu: bool
    "Whether the compute device is a GPU; otherwise all memory is host memory."
    streamable: bool
    "Whether the streamed step supports the model's family."
    way: Way = "auto"
    "The configured kind of layout; whole or streamed excludes the other."
    fixed: Mapping[str, Any] = field(default_factory=dict)
    "Fields of StreamPlan that the configuration sets."

    def smaller(self, layout: StepLayout, place: Place) -> StepLayout | None:
        """Returns the fastest configured layout that needs less memory of a place than this one; None for none."""
        return _smaller(layout, "GPU" if place == "host" and not self.on_gpu else place, self)

    def allows(self, layout: StepLayout) -> bool:
        """Whether the configuration allows a layout."""
        if layout.stream is None:
            return self.way != "streamed" and not self.fixed
        return self.way != "whole" and _with(layout.stream, self) == layout.stream


def _smaller(layout: StepLayout, place: Place, policy: FallbackPolicy) -> StepLayout | None:
    if layout.stream is None:
        if place != "GPU":
            return None  # a whole-window step offloads nothing
        if not layout.recompute:
            return replace(layout, recompute=True)
        return replace(layout, stream=_first_plan(policy), recompute=False) if policy.streamable else None
    for level in _levels(layout.stream, place, policy):
        plan = _with(level, policy)
        if plan is not None and plan != layout.stream:
            return replace(layout, stream=plan)
    return None


def _with(plan: StreamPlan, policy: FallbackPolicy) -> StreamPlan | None:
    """Applies the configured fields to a plan; None where the plan's other fields conflict with them."""
    fixed = dict(policy.fixed)
    if plan.weights != "nf4-streamed":
        fixed.pop("weights_home", None)  # nothing of it is read from there
    streamed = fixed.pop("weights", None)
    if streamed is not None and (streamed == "streamed") != plan.streams_weights:
        return None
    for name, most in (("tile", policy.context), ("key_block", policy.context), ("checkpoint_every", policy.layers)):
        if name in fixed:
            fixed[name] = min(fixed[name], most)
    try:
        return replace(plan, **fixed)
    except StreamPlanError:
        return None


def _levels(plan: StreamPlan, place: Place, policy: FallbackPolicy) -> Iterator[StreamPlan]:
    if place == "disk":
        yield from _on_disk(plan, policy.layers)
        return
    if place == "GPU":
        yield from _on_device(plan, on_gpu=policy.on_gpu)
    if place == "host" or not policy.on_gpu:
        yield from _between(plan, policy)


def _first_plan(policy: FallbackPolicy) -> StreamPlan:
    tile = max(_LEAST_TILE, min(_FIRST_TILE, policy.context))
    return StreamPlan(
        tile=tile, key_block=max(tile, 16384), weights=base_weights(four_bit=policy.quantised, streamed=False)
    )


def _on_device(plan: StreamPlan, *, on_gpu: bool) -> Iterator[StreamPlan]:
    """Yields plans with less GPU memory, the cheapest in time first."""
    if plan.keep_layers:
        yield replace(plan, keep_layers=plan.keep_layers // 2)
    if on_gpu and plan.stash and plan.stash_home == "gpu":
        yield replace(plan, stash_home="host")
    if on_gpu and plan.hidden_home == "gpu":
        gradient: Home = "host" if plan.gradient_home == "gpu" else plan.gradient_home
        yield replace(plan, hidden_home="host", gradient_home=gradient)
    if on_gpu and plan.gradient_home == "gpu":
        yield replace(plan, gradient_home="host")
    if plan.tile > 2 * _LEAST_TILE:
        yield _finer(plan)
    if on_gpu and plan.kv_home == "gpu" and "gpu" not in plan.homes:
        yield replace(plan, kv_home="host")
    if on_gpu and not plan.streams_weights:
        yield replace(plan, weights=base_weights(four_bit=plan.four_bit_weights, streamed=True))
    if plan.tile > _LEAST_TILE:
        yield _finer(plan)


def _finer(plan: StreamPlan) -> StreamPlan:
    tile = max(_LEAST_TILE, plan.tile // 2)
    piece = max(_LEAST_LOSS_PIECE, plan.loss_piece // 2)
    return replace(plan, tile=tile, key_block=max(tile, plan.key_block // 2), loss_piece=piece)


def _between(plan: StreamPlan, policy: FallbackPolicy) -> Iterator[StreamPlan]:
    """Yields plans that keep less in host memory between the passes."""
    in_ram = ("host",) if policy.on_gpu else ("gpu", "host")
    if plan.stash and plan.stash_home in in_ram:
        yield replace(plan, stash_home="disk")  # written and read once each, hidden states several times
    if plan.hidden_home in in_ram:
        yield replace(plan, hidden_home="disk")  # their gradient stays, which is as large as those of one layer
    if plan.gradient_home in in_ram:
        yield replace(plan, gradient_home="disk")
    yield from _less_kept(plan, policy.layers)


def _on_disk(plan: StreamPlan, layers: int) -> Iterator[StreamPlan]:
    yield from _less_kept(plan, layers, homes=("disk",))
    if plan.stash and plan.stash_home == "disk":
        yield replace(plan, stash_home="host")  # reached where the configuration wants outputs saved
    if plan.gradient_home == "disk":
        yield replace(plan, gradient_home="host")
    if plan.hidden_home == "disk":
        yield replace(plan, hidden_home="host")


def _less_kept(
    plan: StreamPlan, layers: int, homes: tuple[Home, ...] = ("gpu", "host", "disk")
) -> Iterator[StreamPlan]:
    """Yields plans that keep less in these homes."""
    if plan.stash and plan.stash_home in homes:
        yield replace(plan, stash=False)
    if plan.hidden_home in homes and 2 * plan.checkpoint_every <= layers and plan.checkpoint_every < 8:
        yield replace(plan, checkpoint_every=2 * plan.checkpoint_every)
