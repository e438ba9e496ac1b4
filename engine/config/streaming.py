"""The section on the layout of the streamed step."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs


class StreamSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Fixed choices of the streamed step; the planner makes those that are unset."""

    weights: Annotated[
        Literal["resident", "streamed"] | None,
        Meta(description="Base weights stay on the GPU, or on the host and come to it two layers at a time."),
    ] = None
    kv_home: Annotated[
        Literal["gpu", "host"] | None,
        Meta(description="Where a layer's keys and values wait; on the host, GPU memory does not grow with context."),
    ] = None
    hidden_home: Annotated[
        Literal["gpu", "host", "disk"] | None,
        Meta(description="Where hidden states wait between the passes. disk writes all of them once a window."),
    ] = None
    stash: Annotated[
        bool | None,
        Meta(description="Keep every layer's attention output, instead of computing attention once more."),
    ] = None
    checkpoint_every: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(description="Keep the hidden states of every so many layers, and compute those between once more."),
    ] = None
    tile: Annotated[
        Annotated[int, Meta(ge=16)] | None, Meta(description="Tokens that go through a layer together.")
    ] = None
    key_block: Annotated[
        Annotated[int, Meta(ge=16)] | None,
        Meta(description="Keys that one call of the attention kernel sees; at least a tile."),
    ] = None
    loss_piece: Annotated[
        Annotated[int, Meta(ge=16)] | None, Meta(description="Tokens whose logits exist at once.")
    ] = None
    attention: Annotated[
        Literal["cudnn", "flash", "flash-attn", "efficient", "cpu"] | None,
        Meta(description="Attention kernel; unset: the fastest that computes rightly on this card."),
    ] = None

    def fixed(self) -> dict[str, Any]:
        """Returns the fields that are set, by their names in StreamPlan."""
        return {name: value for name, value in structs.asdict(self).items() if value is not None}
