"""The eleven context tiers of assets/tiers.toml."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass

from engine.assets import asset

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One tier."""

    number: int
    context: int
    "Tokens a window."
    card_gib: int
    "Memory of the card that it was designed for."
    sees: str
    "What of a project one window holds."
    extreme: bool = False
    "Needs the streamed step on any card."


@functools.cache
def tiers() -> tuple[Tier, ...]:
    """All tiers, by rising context."""
    data = tomllib.loads(asset("tiers.toml").read_text(encoding="utf-8"))
    return tuple(sorted((Tier(**entry) for entry in data["tier"]), key=lambda tier: tier.context))


def tier_of(number: int) -> Tier:
    """The tier of that number.

    Raises:
        KeyError: there is none.
    """
    return {tier.number: tier for tier in tiers()}[number]
