"""Polls one run from a worker thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import EliteError
from engine.runs.notices import Notice, RepeatFilter, notice_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from elite_tui.runs.files import PlannedRun
    from engine.launch.handle import RunHandle
    from engine.protocol.commands import Command
    from engine.protocol.wire import Envelope
    from engine.runs.access import Access

LOOK_EVERY = 8
"""Polls per check of slowly changing state; a run that has ended is polled as rarely."""


@dataclass(frozen=True)
class News:
    """Result of one poll."""

    envelopes: Sequence[Envelope]
    problem: str = ""
    "Why the journal cannot currently be read."
    access: Access | None = None
    "Access to the run, if it was checked and changed."
    planned: PlannedRun | None = None
    "The plan, if it was just found."
    behind: bool = False
    "Whether the journal holds further events."
    glance: Sequence[Envelope] = ()
    "First and latest events of a journal that takes long to read, which come again among the envelopes."
    share: float = 1.0
    "Share of the journal that was read."
    notices: Sequence[Notice] = ()
    "What happened since the run was opened that a person wants to hear of."
    folded: threading.Event = field(default_factory=threading.Event, compare=False)
    "Set once the news is in the run's view; no more is read before."


class Followed:
    """Locks one run's handle, which is not thread-safe. May be called from any thread."""

    def __init__(self, handle: RunHandle) -> None:
        self.handle = handle
        self._lock = threading.Lock()
        self._polls = 0
        self._closed = False
        self._access: Access | None = None
        self._planned: PlannedRun | None = None
        self._problem = ""
        self._live = False
        "Whether the events that were there when the run was opened have been read."
        self._filter = RepeatFilter()

    def poll(self) -> News | None:
        """Returns the news since the last poll, or None."""
        with self._lock:
            looks = self._polls % LOOK_EVERY == 0
            self._polls += 1
            if self._closed or (self.handle.ending is not None and not looks):
                return None
            glance = self.handle.glance() if looks else []
            envelopes = self.handle.poll()
            problem, former = self.handle.problem, self._problem
            self._problem = problem
            access = self._look() if looks else None
            planned = self._find_plan() if looks or (envelopes and self._planned is None) else None
            behind, share = self.handle.behind, self.handle.share
            notices = self._find_notices(envelopes)
            self._live = not behind
        if envelopes or glance or access or planned or problem != former:
            return News(envelopes, problem, access, planned, behind, glance, share, notices)
        return None

    def _find_notices(self, envelopes: Sequence[Envelope]) -> Sequence[Notice]:
        """Returns the notices of live events; empty where the run's configuration switches them off."""
        name = self.handle.run.id
        found = [notice for one in envelopes if (notice := notice_of(one.event, name)) is not None]
        if not (self._live and found):
            return ()
        try:
            if not self.handle.run.load_config().notify.desktop:
                return ()
        except EliteError:
            pass  # of another version: the default is to notify
        return [notice for notice in found if self._filter.passes(notice)]

    def _look(self) -> Access | None:
        access = self.handle.access()
        if access == self._access:
            return None
        self._access = access
        return access

    def _find_plan(self) -> PlannedRun | None:
        from elite_tui.runs.files import read_plan

        if self._planned is not None and self._planned.phases:
            return None
        # The promise of the whole run joins the plan once the data are read.
        found = read_plan(self.handle.run.plan_path)
        if found == self._planned:
            return None
        self._planned = found
        return found

    def send(self, command: Command) -> None:
        """See RunHandle.send."""
        with self._lock:
            self.handle.send(command)

    def close(self) -> None:
        """Detaches from the run, which continues."""
        with self._lock:
            self._closed = True
            self.handle.close()
