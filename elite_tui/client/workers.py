"""Runs engine calls in worker threads and posts their results as messages; owns no widget.

The App owns the pump that polls runs; a screen's worker would end with the screen.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from elite_tui import messages
from elite_tui.runs.followed import Followed, News
from engine.errors import EliteError
from engine.home_folder import expand_home
from engine.protocol.commands import COMMANDS
from engine.runs.crash_log import internal_error

if TYPE_CHECKING:
    from textual.message import Message

    from elite_tui.client.calls import Engine
    from elite_tui.host import Host
    from elite_tui.remote_data import RemoteData
    from engine.config import RunConfig
    from engine.launch.handle import RunHandle

T = TypeVar("T")

POLL_SECONDS = 0.25
"Polls journals and telemetry four times a second."


def existing_folder(text: str) -> Path:
    """Returns the nearest existing folder at or above a path, so that disk use can be read before a run has written."""
    path = expand_home(text).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


class EngineClient:
    """Starts workers for controllers, one per group: a newer request replaces an older one."""

    def __init__(self, host: Host, engine: Engine) -> None:
        self._host = host
        self.engine = engine
        self._followed: dict[str, Followed] = {}
        self._sent: WeakKeyDictionary[Followed, News] = WeakKeyDictionary()
        "The last news of each."

    def start(self, disk_path: Path) -> None:
        """Starts telemetry and the pump."""

        async def start_then_pump() -> None:
            await asyncio.to_thread(self.engine.start_sampling, disk_path)
            await self._pump()

        self._host.run_worker(start_then_pump, group="pump", name="pump")

    def close(self) -> None:
        """Detaches from the runs, which continue, and stops telemetry."""
        for key in list(self._followed):
            self.let_go(key)
        self.engine.stop_sampling()

    async def _pump(self) -> None:
        sample = None
        while True:
            if (latest := self.engine.latest_sample()) is not sample:
                sample = latest
                self._host.post_message(messages.Sampled(sample))
            behind = False
            for key, followed in list(self._followed.items()):
                # The app's keys wait behind its messages, so that no second one is sent before the first is folded.
                if (last := self._sent.get(followed)) is not None and not last.folded.is_set():
                    behind |= last.behind
                    continue
                news = await asyncio.to_thread(followed.poll)
                if news is not None and self._followed.get(key) is followed:
                    self._sent[followed] = news
                    self._host.post_message(messages.RunNews(key, news))
                    behind |= news.behind
            # With more events in a journal, let the screen draw briefly before reading on.
            await asyncio.sleep(POLL_SECONDS / 25 if behind else POLL_SECONDS)

    # --- requests ------------------------------------------------------------------------------------------

    def ask(self, fetched: RemoteData[T], call: Callable[[], T]) -> None:
        """Fetches a part of the state; posts Answered."""
        fetched.ask()
        self._host.tell(fetched.part)
        self._ask(fetched.part.value, call, lambda outcome: messages.Answered(fetched, outcome))

    def launch(self, config: RunConfig) -> None:
        """Starts a run; posts RunOpened."""
        self._ask("run", lambda: self.engine.launch(config), lambda run: messages.RunOpened(run, launched=True))

    def resume(self, path: Path) -> None:
        """Resumes a run that has ended; posts RunResumed."""
        self._ask("run", lambda: self.engine.resume(path), messages.RunResumed)

    def open_runs(self, references: Sequence[str | None]) -> None:
        """Opens runs; posts a RunOpened for each, in this order. The first is shown on screen."""

        async def work() -> None:
            for index, reference in enumerate(references):
                outcome = await asyncio.to_thread(_guarded, functools.partial(self.engine.open_run, reference))
                self._host.post_message(messages.RunOpened(outcome, launched=False, show=index == 0))

        self._host.run_worker(work, group=f"open-{references[0]}", exclusive=True)

    def follow(self, key: str, handle: RunHandle) -> None:
        """Makes the pump poll this run."""
        self.let_go(key)
        self._followed[key] = Followed(handle)

    def let_go(self, key: str) -> None:
        """Stops polling a run, which continues."""
        followed = self._followed.pop(key, None)
        if followed is not None:
            followed.close()

    def send(self, key: str, command: str) -> str | None:
        """Sends a command by name to a followed run and returns its id; posts CommandSent."""
        followed = self._followed.get(key)
        if followed is None:
            return None
        value = COMMANDS[command](id=uuid.uuid4().hex[:12])

        def answer(outcome: EliteError | None) -> Message:
            return messages.CommandSent(key, value.id, command, outcome)

        self._ask(f"send-{key}-{command}", lambda: followed.send(value), answer)
        return value.id

    def delete_run(self, run_id: str, path: Path) -> None:
        """Deletes a run; posts RunDeleted."""

        def answer(outcome: EliteError | None) -> Message:
            return messages.RunDeleted(run_id, path, outcome)

        self._ask(f"delete-{run_id}", lambda: self.engine.delete_run(path), answer)

    def _ask(self, group: str, call: Callable[[], T], answer: Callable[[T | EliteError], Message]) -> None:
        """Calls the engine in a thread and posts the answer, unless a newer request of the group replaced it."""

        async def work() -> None:
            self._host.post_message(answer(await asyncio.to_thread(_guarded, call)))

        self._host.run_worker(work, group=group, name=group, exclusive=True)


def _guarded(call: Callable[[], T]) -> T | EliteError:
    """Returns the call's value or its error; logs unexpected exceptions and returns INTERNAL."""
    try:
        return call()
    except EliteError as error:
        return error
    except Exception as error:
        return internal_error(error)
