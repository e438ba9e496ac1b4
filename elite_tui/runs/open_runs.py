"""Holds the runs open in the monitor, one per tab."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from elite_tui.runs.view import RunView

if TYPE_CHECKING:
    from collections.abc import Sequence

    from elite_tui.runs.files import PlannedRun
    from elite_tui.runs.followed import News
    from engine.protocol.wire import Envelope
    from engine.runs.access import Access

_ID_DATE = len("20260102-100000-")


@dataclass
class OpenRun:
    """One followed run."""

    key: str
    "Distinguishes open runs; two copies of a run have the same id."
    path: Path
    view: RunView = field(default_factory=RunView)
    access: Access | None = None
    "Access to the run from here; None before it was checked."
    planned: PlannedRun | None = None
    problem: str = ""
    "Why its journal cannot currently be read."
    filling: RunView | None = None
    "The whole view while a long journal is read; `view` then shows its first and latest events."
    share: float = 1.0
    "Share of the journal that was read."

    @property
    def title(self) -> str:
        """Title of its tab."""
        return short_title(self.view.run_id)

    def take(self, news: News) -> None:
        """Folds in the news of a poll; ignores events of other runs."""
        if news.glance and self.filling is None:
            self.filling = RunView(run_id=self.view.run_id, pending=self.view.pending)
        self._fold(self.view, news.glance)
        self._fold(self.filling or self.view, news.envelopes)
        self.share = news.share
        if self.filling is not None and not news.behind:
            self.view, self.filling = self.filling, None
        self.problem = news.problem
        self.access = news.access or self.access
        self.planned = news.planned or self.planned

    def _fold(self, view: RunView, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            # The first event names the run: its directory may have been renamed or copied since.
            if envelope.run == view.run_id or view.updated_at is None:
                view.apply(envelope)


def short_title(run_id: str) -> str:
    """Returns a run's id without its date."""
    return run_id[_ID_DATE:] if run_id[:8].isdigit() and len(run_id) > _ID_DATE else run_id


class OpenRuns:
    """Open runs in the order of their tabs; one is current."""

    def __init__(self) -> None:
        self._runs: list[OpenRun] = []
        self.current: OpenRun | None = None

    def __iter__(self) -> Iterator[OpenRun]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def find(self, key: str) -> OpenRun | None:
        """Returns the open run of a key."""
        return next((run for run in self._runs if run.key == key), None)

    def add(self, run: OpenRun) -> None:
        """Adds a tab, or replaces the run in the tab with the same key."""
        former = self.find(run.key)
        if former is None:
            self._runs.append(run)
            return
        self._runs[self._runs.index(former)] = run
        if former is self.current:
            self.current = run

    def close(self, key: str) -> None:
        """Closes a tab; a neighbour becomes current."""
        run = self.find(key)
        if run is None:
            return
        place = self._runs.index(run)
        del self._runs[place]
        if run is self.current:
            self.current = self._runs[min(place, len(self._runs) - 1)] if self._runs else None

    def step(self, offset: int) -> None:
        """Moves `offset` tabs to the right, wrapping around."""
        if self.current is not None:
            self.current = self._runs[(self._runs.index(self.current) + offset) % len(self._runs)]
