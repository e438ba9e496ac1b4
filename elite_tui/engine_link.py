"""EngineLink: the App's workers. They call the engine in threads and post messages; they own no widget.

The pump that polls a run belongs to the App: a worker of a screen would end with the screen.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from elite_tui import messages
from elite_tui.engine_calls import Engine
from elite_tui.trouble import record_trouble
from engine import errors
from engine.errors import EliteError
from engine.protocol import COMMANDS

if TYPE_CHECKING:
    from textual.app import App
    from textual.message import Message

    from engine.config import RunConfig
    from engine.hardware.machine import Machine
    from engine.protocol import Envelope
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
        self.handle: RunHandle | None = None
        self._handle_lock = threading.Lock()

    def start(self, disk_path: Path) -> None:
        """Starts telemetry and the pump."""

        async def start_then_pump() -> None:
            await asyncio.to_thread(self.engine.start_sampling, disk_path)
            await self._pump()

        # mypy cannot choose among the three kinds of work that run_worker takes.
        self._app.run_worker(start_then_pump, group="pump", name="pump")  # type: ignore[arg-type]

    def close(self) -> None:
        """Lets go of the run, which goes on, and ends telemetry."""
        if self.handle is not None:
            self._close(self.handle)
            self.handle = None
        self.engine.stop_sampling()

    async def _pump(self) -> None:
        sample = None
        while True:
            if (latest := self.engine.latest_sample()) is not sample:
                sample = latest
                self._app.post_message(messages.Sampled(sample))
            handle = self.handle
            if handle is not None:
                envelopes = await asyncio.to_thread(self._poll, handle)
                if envelopes and handle is self.handle:
                    self._app.post_message(messages.EventsArrived(envelopes))
            await asyncio.sleep(POLL_SECONDS)

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

    def open_run(self, reference: str | None) -> None:
        """Answers with RunOpened."""
        self._ask("run", lambda: self.engine.open_run(reference), lambda run: messages.RunOpened(run, launched=False))

    def follow(self, handle: RunHandle) -> None:
        """Makes this the run that the pump polls."""
        former, self.handle = self.handle, handle
        if former is not None:
            self._close(former)

    def _poll(self, handle: RunHandle) -> list[Envelope]:
        with self._handle_lock:
            return handle.poll() if handle is self.handle else []

    def _close(self, handle: RunHandle) -> None:
        # A handle is not for several threads at once, and a poll of it may be under way.
        with self._handle_lock:
            handle.close()

    def send(self, command: str) -> str | None:
        """Sends a command by name to the run that is followed, and returns its id; answers with CommandSent."""
        handle = self.handle
        if handle is None:
            return None
        value = COMMANDS[command](id=uuid.uuid4().hex[:12])

        def call() -> None:
            with self._handle_lock:
                handle.send(value)

        def answer(outcome: EliteError | None) -> Message:
            return messages.CommandSent(value.id, command, outcome)

        self._ask(f"send-{command}", call, answer)
        return value.id

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
