"""Holds a part of the state that a worker fetches, with its loading state and error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from engine.errors import EliteError

if TYPE_CHECKING:
    from elite_tui.state_part import StatePart

T = TypeVar("T")


@dataclass
class RemoteData(Generic[T]):
    """A value that a worker fetches: not requested yet, loading, present, or failed with an error."""

    part: StatePart
    "The part of the state that this is."
    value: T | None = None
    error: EliteError | None = None
    loading: bool = False

    def ask(self) -> None:
        """Marks the request as loading; the former value stays visible until the new one arrives."""
        self.loading = True

    def settle(self, outcome: T | EliteError) -> None:
        """Stores the worker's answer."""
        self.loading = False
        if isinstance(outcome, EliteError):
            self.value, self.error = None, outcome
        else:
            self.value, self.error = outcome, None

    def settle_nothing(self) -> None:
        """Clears the value, which is outdated, with no request under way."""
        self.value, self.error, self.loading = None, None, False
