"""Executes, between two updates, the commands that arrived since the last one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.protocol.commands import Command, EvaluateNow, Pause, Resume, SaveNow, Stop
from engine.protocol.events import LogLine

if TYPE_CHECKING:
    from engine.runs.context import TrainingSession
    from engine.runs.process_group import ProcessGroup

POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Actions:
    """Actions of the loop that commands trigger. Each returns a one-line result."""

    save: Callable[[], str]
    evaluate: Callable[[], str]


def decide(session: TrainingSession, actions: Actions) -> Stop | None:
    """Executes the commands that arrived since the last call, on all ranks alike.

    Rank 0 has the inbox; the others repeat the actions that change the run.

    Returns:
        The Stop that ends the run, acknowledged; None to continue.
    """
    group = session.group
    if not group.leads:
        return _follow(group, actions)

    def shared(name: str, action: Callable[[], str]) -> Callable[[], str]:
        def run() -> str:
            group.agree(lambda: (name, None))
            return action()

        return run

    stop = execute_commands(
        session, Actions(save=shared("save", actions.save), evaluate=shared("evaluate", actions.evaluate))
    )
    group.agree(lambda: ("go", stop))
    return stop


def _follow(group: ProcessGroup, actions: Actions) -> Stop | None:
    while True:
        name, stop = group.agree(lambda: ("", None))
        if name == "save":
            actions.save()
        elif name == "evaluate":
            actions.evaluate()
        else:
            return stop


def execute_commands(session: TrainingSession, actions: Actions) -> Stop | None:
    """Executes all commands in the inbox, and waits for more while the run is paused.

    Returns:
        The Stop that ends the run, acknowledged; None to continue.
    """
    inbox = session.commands
    paused = False
    while True:
        # `stop_requested` is set a moment before the Stop is in the inbox.
        waits = paused or inbox.stop_requested
        command = inbox.wait(POLL_SECONDS) if waits else inbox.poll()
        if isinstance(command, Stop):
            session.acknowledge(command, accepted=True, text="stopping")
            return command
        if command is not None:
            paused = _carry_out(session, actions, command, paused)
        elif not waits:
            return None


def _carry_out(session: TrainingSession, actions: Actions, command: Command, paused: bool) -> bool:
    """Executes one command; returns whether the run is paused after it."""
    accepted, text = True, ""
    if isinstance(command, Pause):
        accepted, paused, text = not paused, True, "already paused" if paused else "paused; memory is kept"
    elif isinstance(command, Resume):
        accepted, paused, text = paused, False, "going on" if paused else "not paused"
    elif isinstance(command, SaveNow):
        text = actions.save()
    elif isinstance(command, EvaluateNow):
        text = actions.evaluate()
    else:
        accepted, text = False, f"{type(command).__name__} is not known to this engine"
    session.acknowledge(command, accepted=accepted, text=text)
    session.emit(LogLine(level="info", text=f"{type(command).__name__}: {text}"))
    return paused
