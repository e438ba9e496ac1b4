"""Shapes of the attention of a decoder's layers, by kind: what each stores and sees. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

Use = Literal["own", "lent", "borrowed"]
"""Whose keys and values a layer attends to: its own; its own, as later layers do too; those of an earlier layer."""


@dataclass(frozen=True, kw_only=True)
class AttendedShape:
    """The attention of layers of one kind."""

    layers: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    "Keys that a query sees; None for all."
    use: Use = "own"
    latent: int | None = None
    "Numbers that are stored of a token in place of keys and values; None where those are."

    @cached_property
    def stored(self) -> tuple[int, int, int]:
        """Identifies the shape of what is stored: KV heads, and the widths of keys and values (or latents, and 0)."""
        return (self.kv_heads, self.key_dim, self.value_dim) if self.latent is None else (1, self.latent, 0)

    @cached_property
    def stored_width(self) -> int:
        """Values of a token that are stored in one layer."""
        heads, keys, values = self.stored
        return heads * (keys + values)

    @cached_property
    def output_width(self) -> int:
        """Values of a token's attention output in one layer."""
        return self.heads * self.value_dim

    @cached_property
    def saves_kv(self) -> bool:
        """Whether keys and values are saved beside the attention output: where they are no larger than it."""
        return self.use == "own" and self.stored_width <= self.output_width

    @property
    def words(self) -> str:
        """Says what is stored of a token."""
        heads, keys, values = self.stored
        if self.latent is not None:
            return f"{self.latent} numbers of latents"
        return f"{heads} heads × ({keys} + {values})" if keys != values else f"2 × {heads} heads × {keys}"


def shared_out(kinds: tuple[AttendedShape, ...], layers: int) -> tuple[AttendedShape, ...]:
    """Returns the kinds of a model that has so many layers, of each about the same share, and one at least.

    Layers of a part share no keys and values (engine.models.random).
    """
    total, found, left = sum(kind.layers for kind in kinds), [], layers
    for number, kind in enumerate(kinds):
        rest = len(kinds) - number - 1
        share = left if not rest else min(left, max(round(layers * kind.layers / total), 1 if left > rest else 0))
        left -= share
        found.append(replace(kind, layers=share, use=kind.use if layers == total else "own"))
    return tuple(kind for kind in found if kind.layers)
