"""EngineLink: the App's workers. They call the engine in threads and post messages; they own no widget.

The pump that polls a run belongs to the App: a worker of a screen would end with the screen.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from elite_tui import messages
from elite_tui.link.calls import Engine
from elite_tui.runs.followed import Followed
from elite_tui.trouble import record_trouble
from engine import errors
from engine.errors import EliteError
from engine.protocol import COMMANDS

if TYPE_CHECKING:
    from textual.app import App
    from textual.message import Message

    from engine.config import RunConfig
    from engine.hardware.machine import Machine
    from engine.runtime.handle import RunHandle

T = TypeVar("T")

POLL_SECONDS = 0.25
"The journal and the telemetry are looked at four times a second."


def existing_folder(text: str) -> Path:
    """The nearest folder that exists at or above a path: what a disk gauge can measure before a run has written."""
    path = Path(text).expanduser().absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


class EngineLink:
    """Starts workers on behalf of the App. One worker of a group at a time: a newer question replaces an older."""

    def __init__(self, app: App[Any], engine: Engine) -> None:
        self._app = app
        self.engine = engine
        self._followed: dict[str, Followed] = {}

    def start(self, disk_path: Path) -> None:
        """Starts telemetry and the pump."""

        async def start_then_pump() -> None:
            await asyncio.to_thread(self.engine.start_sampling, disk_path)
            await self._pump()

        # mypy cannot choose among the three kinds of work that run_worker takes.
        self._app.run_worker(start_then_pump, group="pump", name="pump")  # type: ignore[arg-type]

    def close(self) -> None:
        """Lets go of the run, which goes on, and ends telemetry."""
        for key in list(self._followed):
            self.let_go(key)
        self.engine.stop_sampling()

    async def _pump(self) -> None:
        sample = None
        while True:
            if (latest := self.engine.latest_sample()) is not sample:
                sample = latest
                self._app.post_message(messages.Sampled(sample))
            behind = False
            for key, followed in list(self._followed.items()):
                news = await asyncio.to_thread(followed.poll)
                if news is not None and self._followed.get(key) is followed:
                    self._app.post_message(messages.RunNews(key, news))
                    behind |= news.behind
            # Where a journal holds more, the screen gets a moment to draw, and the reading goes on.
            await asyncio.sleep(POLL_SECONDS / 5 if behind else POLL_SECONDS)

    # --- questions -----------------------------------------------------------------------------------------

    def read_repositories(self, repositories: list[str], max_file_bytes: int) -> None:
        """Answers with RepositoryRead."""
        self._ask(
            "repository",
            lambda: self.engine.read_repositories(repositories, max_file_bytes),
            messages.RepositoryRead,
        )

    def find_machine(self, disk_path: Path) -> None:
        """Answers with MachineFound."""
        self._ask("machine", lambda: self.engine.find_machine(disk_path), messages.MachineFound)

    def plan_tiers(self, machine: Machine, mapping: dict[str, dict[str, Any]], tokens: int | None) -> None:
        """Answers with TiersPlanned."""
        self._ask("tiers", lambda: self.engine.plan_tiers(machine, mapping, tokens), messages.TiersPlanned)

    def check(self, mapping: dict[str, dict[str, Any]]) -> None:
        """Answers with PreflightDone."""
        self._ask("preflight", lambda: self.engine.check(mapping), messages.PreflightDone)

    def ask(self, what: str, call: Callable[[], T]) -> None:
        """Answers with Answered, for the attribute of the state that `what` names."""
        self._ask(what, call, lambda outcome: messages.Answered(what, outcome))

    def list_runs(self) -> None:
        """Answers with RunsListed."""
        self._ask("runs", self.engine.list_runs, messages.RunsListed)

    def launch(self, config: RunConfig) -> None:
        """Answers with RunOpened."""
        self._ask("run", lambda: self.engine.launch(config), lambda run: messages.RunOpened(run, launched=True))

    def open_runs(self, references: Sequence[str | None]) -> None:
        """Answers with a RunOpened for each, in this order; the first comes on screen."""

        async def work() -> None:
            for index, reference in enumerate(references):
                outcome = await asyncio.to_thread(_guarded, functools.partial(self.engine.open_run, reference))
                self._app.post_message(messages.RunOpened(outcome, launched=False, show=index == 0))

        self._app.run_worker(work, group=f"open-{references[0]}", exclusive=True)  # type: ignore[arg-type]

    def follow(self, key: str, handle: RunHandle) -> None:
        """Makes this a run that the pump polls."""
        self.let_go(key)
        self._followed[key] = Followed(handle)

    def let_go(self, key: str) -> None:
        """Stops polling a run, which goes on."""
        followed = self._followed.pop(key, None)
        if followed is not None:
            followed.close()

    def send(self, key: str, command: str) -> str | None:
        """Sends a command by name to a run that is followed, and returns its id; answers with CommandSent."""
        followed = self._followed.get(key)
        if followed is None:
            return None
        value = COMMANDS[command](id=uuid.uuid4().hex[:12])

        def answer(outcome: EliteError | None) -> Message:
            return messages.CommandSent(key, value.id, command, outcome)

        self._ask(f"send-{key}-{command}", lambda: followed.send(value), answer)
        return value.id

    def delete_run(self, run_id: str, path: Path) -> None:
        """Answers with RunDeleted."""

        def answer(outcome: EliteError | None) -> Message:
            return messages.RunDeleted(run_id, path, outcome)

        self._ask(f"delete-{run_id}", lambda: self.engine.delete_run(path), answer)

    def _ask(self, group: str, call: Callable[[], T], answer: Callable[[T | EliteError], Message]) -> None:
        """Calls the engine in a thread, and posts its answer unless a newer question of the group was asked."""

        async def work() -> None:
            self._app.post_message(answer(await asyncio.to_thread(_guarded, call)))

        self._app.run_worker(work, group=group, name=group, exclusive=True)  # type: ignore[arg-type]


def _guarded(call: Callable[[], T]) -> T | EliteError:
    """The call's value, or its error; what nobody declared goes to the log and becomes INTERNAL."""
    try:
        return call()
    except EliteError as error:
        return error
    except Exception as error:
        log = record_trouble(error)
        return errors.INTERNAL(kind=type(error).__name__, problem=error, log=log or "this message")
