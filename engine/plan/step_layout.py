"""StepLayout: the layout of a step as one value, shared by planner, step and journal. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.plan.stream_plan import BaseWeights, StreamPlan

_WHOLE, _STREAMED = "whole-sequence", "layer-major"


@dataclass(frozen=True, kw_only=True)
class StepLayout:
    """One way to lay out a step in time and memory."""

    stream: StreamPlan | None = None
    "Plan of the tile-by-tile step; None for whole windows."
    recompute: bool = False
    "Whole windows: whether activations are recomputed in the backward pass (arXiv 1604.06174)."
    precision: str = "bf16"
    "Storage type of the base weights: bf16, fp16, fp32 or nf4."
    master_home: Literal["gpu", "host"] | None = None
    "Home of the fp32 master weights in full fine-tuning; None for an adapter."
    table_home: Literal["gpu", "host"] = "gpu"
    "Home of the table of the layers' own inputs, for a model that has one."
    window_ranks: int = 1
    "Number of processes that share a window."

    @property
    def weights(self) -> BaseWeights:
        """Storage and residency of the base weights during the step."""
        if self.stream is not None:
            return self.stream.weights
        return "nf4" if self.precision == "nf4" else "resident"

    @property
    def streams_weights(self) -> bool:
        """Whether the decoder layers stay on the host during the step."""
        return self.stream is not None and self.stream.streams_weights

    def as_json(self) -> dict[str, Any]:
        """Returns the layout as one flat object of JSON values, as `engine plan --json` shows it."""
        common: dict[str, Any] = {"precision": self.precision, "weights": self.weights}
        if self.master_home is not None:
            common["master_home"] = self.master_home
        if self.table_home != "gpu":
            common["table_home"] = self.table_home
        if self.window_ranks > 1:
            common["window_ranks"] = self.window_ranks
        if self.stream is None:
            return {"order": _WHOLE, **common, "checkpointing": self.recompute}
        return {"order": _STREAMED, **common, **dataclasses.asdict(self.stream)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, like: StepLayout | None = None) -> StepLayout:
        """Reads the output of `as_json`, of this or an earlier version.

        Earlier versions kept `{"stream": {...} or null, "recompute": bool}` in checkpoints.

        Args:
            data: The object.
            like: Supplies values that the object lacks.

        Raises:
            KeyError, TypeError, ValueError: the object is not a layout.
        """
        known = like or cls()
        if "order" not in data:
            stream = data["stream"]
            plan = None if stream is None else StreamPlan(**stream)
            return dataclasses.replace(known, stream=plan, recompute=bool(data["recompute"]))
        plan = None
        if data["order"] == _STREAMED:
            plan = StreamPlan(**{f.name: data[f.name] for f in dataclasses.fields(StreamPlan) if f.name in data})
        return cls(
            stream=plan,
            recompute=plan is None and bool(data["checkpointing"]),
            precision=str(data["precision"]),
            master_home=data.get("master_home"),
            table_home=data.get("table_home", "gpu"),
            window_ranks=int(data.get("window_ranks", 1)),
        )

    def describe(self) -> str:
        """Describes the layout in words."""
        if self.stream is None:
            return "whole windows" + (", activations computed twice" if self.recompute else "")
        plan = self.stream
        gradient = "" if plan.gradient_home == plan.hidden_home else f", their gradient on {plan.gradient_home}"
        return (
            f"tiles of {plan.tile:,}, hidden states on {plan.hidden_home}{gradient}, keys on {plan.kv_home}, "
            f"weights {plan.weights}, stash {f'on {plan.stash_home}' if plan.stash else 'off'}, "
            f"every {plan.checkpoint_every} layers kept"
        )


def difference(before: StepLayout, after: StepLayout) -> str:
    """Describes the changes between two layouts, in the plan's own words."""
    if before.stream is None or after.stream is None:
        return f"{before.describe()} → {after.describe()}"
    was, now = dataclasses.asdict(before.stream), dataclasses.asdict(after.stream)
    return ", ".join(f"{name} {was[name]} → {now[name]}" for name in was if was[name] != now[name])
