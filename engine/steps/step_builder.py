"""The ways to lay out a step, from the fastest to the one that needs least memory.

All of them compute the same gradient (engine.plan.stream_plan), so a run may change from one to the next in the middle
of an update.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors import StreamPlanError
from engine.plan.search import Way
from engine.plan.stream_plan import StreamPlan
from engine.steps.failures import Place

_LEAST_TILE = 128
_LEAST_LOSS_PIECE = 64
_FIRST_TILE = 4096


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to compute a step."""

    stream: StreamPlan | None = None
    "Tile by tile; None for whole windows."
    recompute: bool = False
    "Whole windows: whether activations are computed again in the backward pass (arXiv 1604.06174)."

    def as_json(self) -> dict[str, Any]:
        """The layout as JSON values."""
        return {"stream": None if self.stream is None else dataclasses.asdict(self.stream), "recompute": self.recompute}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """The layout that `as_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it did not.
        """
        stream = data["stream"]
        return cls(stream=None if stream is None else StreamPlan(**stream), recompute=bool(data["recompute"]))

    def describe(self) -> str:
        """The layout in words."""
        if self.stream is None:
            return "whole windows" + (", activations computed twice" if self.recompute else "")
        plan = self.stream
        return (
            f"tiles of {plan.tile:,}, hidden states on {plan.hidden_home}, keys on {plan.kv_home}, "
            f"weights {plan.weights}, stash {'on' if plan.stash else 'off'}, every {plan.checkpoint_every} layers kept"
        )


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """What the ways down depend on."""

    context: int
    "Tokens in the longest window."
    layers: int
    "Decoder layers."
    quantised: bool
    "Whether the base weights are stored in 4 bits."
    on_gpu: bool
    "Whether a GPU computes; otherwise host memory is all there is."
    streamable: bool
    "Whether the streamed step knows the model's family."
    way: Way = "auto"
    "What the configuration asks for; with whole or streamed there is no other."
    fixed: Mapping[str, Any] = field(default_factory=dict)
    "Fields of StreamPlan that the configuration asks for."

    def smaller(self, layout: Layout, place: Place) -> Layout | None:
        """The fastest layout that needs less of a place than this one, and is as was asked for; None for none."""
        return _smaller(layout, "GPU" if place == "host" and not self.on_gpu else place, self)

    def allows(self, layout: Layout) -> bool:
        """Whether a layout is one that the configuration asks for."""
        if layout.stream is None:
            return self.way != "streamed" and not self.fixed
        return self.way != "whole" and _with(layout.stream, self) == layout.stream


def _smaller(layout: Layout, place: Place, ladder: Ladder) -> Layout | None:
    if layout.stream is None:
        if place != "GPU":
            return None  # whole windows keep nothing elsewhere
        if not layout.recompute:
            return Layout(recompute=True)
        return Layout(stream=_first_plan(ladder)) if ladder.streamable else None
    for notch in _notches(layout.stream, place, ladder):
        plan = _with(notch, ladder)
        if plan is not None and plan != layout.stream:
            return Layout(stream=plan)
    return None


def _with(plan: StreamPlan, ladder: Ladder) -> StreamPlan | None:
    """The plan with what is fixed as it was asked for; None where the rest does not allow that."""
    fixed = dict(ladder.fixed)
    weights = fixed.pop("weights", plan.weights)
    if (weights == "streamed") != (plan.weights == "streamed"):
        return None
    for name, most in (("tile", ladder.context), ("key_block", ladder.context), ("checkpoint_every", ladder.layers)):
        if name in fixed:
            fixed[name] = min(fixed[name], most)
    try:
        return replace(plan, **fixed)
    except StreamPlanError:
        return None


def _notches(plan: StreamPlan, place: Place, ladder: Ladder) -> Iterator[StreamPlan]:
    if place == "disk":
        yield from _on_disk(plan, ladder.layers)
        return
    if place == "GPU":
        yield from _on_device(plan, on_gpu=ladder.on_gpu)
    if place == "host" or not ladder.on_gpu:
        yield from _between(plan, ladder.layers)


def _first_plan(ladder: Ladder) -> StreamPlan:
    tile = max(_LEAST_TILE, min(_FIRST_TILE, ladder.context))
    return StreamPlan(tile=tile, key_block=max(tile, 16384), weights="nf4" if ladder.quantised else "resident")


def _on_device(plan: StreamPlan, *, on_gpu: bool) -> Iterator[StreamPlan]:
    """Less GPU memory, what costs least time first."""
    if plan.keep_layers:
        yield replace(plan, keep_layers=plan.keep_layers // 2)
    if on_gpu and plan.hidden_home == "gpu":
        yield replace(plan, hidden_home="host")
    if plan.tile > 2 * _LEAST_TILE:
        yield _finer(plan)
    if on_gpu and plan.kv_home == "gpu" and plan.hidden_home != "gpu":
        yield replace(plan, kv_home="host")
    if on_gpu and plan.weights == "resident":
        yield replace(plan, weights="streamed")
    if plan.tile > _LEAST_TILE:
        yield _finer(plan)


def _finer(plan: StreamPlan) -> StreamPlan:
    tile = max(_LEAST_TILE, plan.tile // 2)
    piece = max(_LEAST_LOSS_PIECE, plan.loss_piece // 2)
    return replace(plan, tile=tile, key_block=max(tile, plan.key_block // 2), loss_piece=piece)


def _between(plan: StreamPlan, layers: int) -> Iterator[StreamPlan]:
    """Less host memory for what waits between the passes."""
    if plan.hidden_home != "disk":
        yield replace(plan, hidden_home="disk")
    yield from _less_kept(plan, layers)


def _on_disk(plan: StreamPlan, layers: int) -> Iterator[StreamPlan]:
    yield from _less_kept(plan, layers)
    if plan.hidden_home == "disk":
        yield replace(plan, hidden_home="host")


def _less_kept(plan: StreamPlan, layers: int) -> Iterator[StreamPlan]:
    if plan.stash:
        yield replace(plan, stash=False)
    if 2 * plan.checkpoint_every <= layers and plan.checkpoint_every < 8:
        yield replace(plan, checkpoint_every=2 * plan.checkpoint_every)
