"""RemoteData: a part of the state that a worker brings, and how far that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from engine.errors import EliteError

if TYPE_CHECKING:
    from elite_tui.state_part import StatePart

T = TypeVar("T")


@dataclass
class RemoteData(Generic[T]):
    """Something that a worker fetches: not asked for yet, on its way, there, or refused with an error."""

    part: StatePart
    "Which part of the state it is."
    value: T | None = None
    error: EliteError | None = None
    loading: bool = False

    def ask(self) -> None:
        """The worker started; the former value stays visible until the new one is there."""
        self.loading = True

    def settle(self, outcome: T | EliteError) -> None:
        """The worker's answer."""
        self.loading = False
        if isinstance(outcome, EliteError):
            self.value, self.error = None, outcome
        else:
            self.value, self.error = outcome, None

    def settle_nothing(self) -> None:
        """What was known no longer holds, and nothing was asked."""
        self.value, self.error, self.loading = None, None, False
