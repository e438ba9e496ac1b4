"""Declares the commands that a run takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Command:
    """Base of all commands. The CommandAcked event repeats `id`."""

    id: str


@dataclass(frozen=True, kw_only=True)
class Stop(Command):
    """Ends the run after the current tile or step, with a checkpoint unless `save` is false."""

    save: bool = True


@dataclass(frozen=True, kw_only=True)
class Pause(Command):
    """Pauses the run, with all its memory held, until Resume or Stop."""


@dataclass(frozen=True, kw_only=True)
class Resume(Command):
    """Continues after Pause."""


@dataclass(frozen=True, kw_only=True)
class SaveNow(Command):
    """Writes a checkpoint after the current step."""


@dataclass(frozen=True, kw_only=True)
class EvaluateNow(Command):
    """Scores the held-out files after the current step."""


COMMANDS: dict[str, type[Command]] = {kind.__name__: kind for kind in (Stop, Pause, Resume, SaveNow, EvaluateNow)}
