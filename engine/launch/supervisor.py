"""Recipe of a run with several ranks. Spawns the ranks and relays their events, in the run's main process.

The journal, the control socket and the signals stay in this process, as on one GPU. Events come from rank 0, and
commands go to it. When a rank exits early, this process, which is no rank itself, reports which one and how.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config.hosts import Host, join_command
from engine.errors.distributed import RANK_DIED, RANK_FAILED, RANK_LOST, RANKS_NOT_STARTED
from engine.launch.elastic_agent import Agent, RankExit
from engine.launch.event_relay import RelayServer
from engine.plan.strategy import hosts_to_start
from engine.protocol.events import Event, LogLine, RunFailed, RunFinished
from engine.runs.rank_files import clear_failures, log_path, read_failures
from engine.steps import oom_consensus
from engine.steps.oom_consensus import FallbackRequest

if TYPE_CHECKING:
    from engine.runs.context import TrainingSession

RECIPE = "engine.launch.supervisor:train"
RANK_RECIPE = "ELITE_RANK_RECIPE"
"""Environment variable with a recipe for each rank in place of the training recipe."""

_POLL_SECONDS = 0.2
_LEAVE_SECONDS = 20.0
"""Seconds that the ranks have to exit after rank 0's last event."""


def train(session: TrainingSession) -> None:
    """Trains with several ranks until rank 0 has sent its last event and all ranks have exited.

    Raises:
        EliteError: RANK_DIED, RANK_FAILED, RANKS_NOT_STARTED, or rank 0's own error.
    """
    hosts = hosts_to_start(session.config)
    run, resuming = session.run.path, session.resuming
    oom_consensus.forget(run)
    tried: list[dict[str, Any]] = []
    while True:
        clear_failures(run)
        agent, last = _attempt(session, hosts, resuming=resuming)
        smaller = _smaller_step(session, hosts)
        if smaller is None or smaller.layout in tried or not _taken(run, smaller):
            _conclude(session, agent, hosts, last)
            return
        tried.append(smaller.layout)
        resuming = True
        why = f"rank {smaller.rank} ran out of memory"
        session.emit(LogLine(level="warning", text=f"{why}: all ranks begin again, with a smaller step"))


def _taken(run: Path, smaller: FallbackRequest) -> bool:
    """Stores the smaller step for all ranks; returns False on a full disk, and the run then ends with its failure."""
    try:
        oom_consensus.take(run, smaller)
    except OSError:
        return False
    return True


def _attempt(
    session: TrainingSession, hosts: list[Host], *, resuming: bool
) -> tuple[Agent, RunFinished | RunFailed | None]:
    """Runs all ranks until they exit; returns the agent and rank 0's last event."""
    run = session.run.path
    last: list[RunFinished | RunFailed] = []

    def take(event: Event) -> None:
        if isinstance(event, (RunFinished, RunFailed)):
            last.append(event)  # held back until all ranks have exited, because another may have failed first
        else:
            session.emit(event)

    relay = RelayServer(take)
    arguments = ["-m", "engine.launch.rank", str(run), "--relay", relay.address]
    arguments += ["--resuming"] if resuming else []
    arguments += ["--recipe", os.environ[RANK_RECIPE]] if RANK_RECIPE in os.environ else []
    _announce(session, hosts)
    agent = Agent(hosts, session.config.distributed.port, session.run.id, arguments)
    try:
        _wait(session, agent, relay, last)
    finally:
        relay.close()
    return agent, last[-1] if last else None


def _smaller_step(session: TrainingSession, hosts: list[Host]) -> FallbackRequest | None:
    """Returns the smaller step in which the ranks may restart after an OOM on one of them.

    It is None for several hosts, because this process cannot start the ranks of other hosts.
    """
    if session.commands.stop_requested or len(hosts) > 1:
        return None
    wish = oom_consensus.asked(session.run.path)
    own = [one for one in read_failures(session.run.path) if one.failure.error != RANK_LOST.code]
    return wish if own and wish is not None and own[0].rank == wish.rank else None


def _announce(session: TrainingSession, hosts: list[Host]) -> None:
    ranks = sum(host.slots for host in hosts)
    session.emit(LogLine(level="info", text=f"{ranks} ranks on {len(hosts)} hosts; their logs are in ranks/"))
    for number in range(1, len(hosts)):
        command = join_command(hosts, number, session.config.distributed.port, str(session.run.path))
        command += " --resuming" if session.resuming else ""
        session.emit(LogLine(level="info", text=f"waiting for {hosts[number].name}; run there: {command}"))


def _wait(session: TrainingSession, agent: Agent, relay: RelayServer, last: list[RunFinished | RunFailed]) -> None:
    ended_at: float | None = None
    while not agent.done.is_set():
        command = session.commands.wait(_POLL_SECONDS)
        if command is not None:
            relay.send(command)
        if last and ended_at is None:
            ended_at = time.monotonic()
        if ended_at is not None and time.monotonic() - ended_at > _LEAVE_SECONDS:
            _kill_ranks()
            ended_at = float("inf")


def _kill_ranks() -> None:
    """Kills ranks that are still running after rank 0's last event, as the run's result is then complete."""
    import psutil

    for child in psutil.Process().children():
        if "engine.launch.rank" in " ".join(child.cmdline()):
            child.send_signal(signal.SIGKILL)


def _conclude(session: TrainingSession, agent: Agent, hosts: list[Host], last: RunFinished | RunFailed | None) -> None:
    asked = session.commands.stop_requested
    # Rank 0 also reports "stopped" when the agent ends it after another rank's exit.
    if isinstance(last, RunFinished) and (asked or last.status != "stopped"):
        session.emit(last)
        return
    ranks = sum(host.slots for host in hosts)
    failures = read_failures(session.run.path)
    # RANK_LOST is a consequence of another rank's exit. A rank that was killed or reported its own error is the cause.
    first = next((one for one in failures if one.failure.error != RANK_LOST.code), None)
    killed = next((one for one in agent.exits if _was_killed(one, failures)), None)
    if first is not None and (killed is None or not killed.was_killed or first.rank == killed.rank):
        session.emit(_named(session, first.rank, ranks, first.failure))
        return
    if killed is not None:
        raise RANK_DIED(
            rank=killed.rank,
            ranks=ranks,
            how=_ending(killed),
            log=log_path(session.run.path, killed.rank),
            run=session.run.id,
        )
    if last is not None:
        session.emit(last)
        return
    raise RANKS_NOT_STARTED(ranks=ranks, problem=agent.error or "the agent ended without a word")


def _was_killed(end: RankExit, failures: list) -> bool:  # type: ignore[type-arg]
    return all(one.rank != end.rank for one in failures)


def _ending(end: RankExit) -> str:
    if end.status >= 0:
        return f"ended with status {end.status} and no word"
    return f"was ended by {signal.Signals(-end.status).name}"


def _named(session: TrainingSession, rank: int, ranks: int, failure: RunFailed) -> RunFailed:
    """Adds the rank's number to its failure, unless it is rank 0's or already names a rank."""
    if rank == 0 or failure.error in (RANK_DIED.code, RANK_FAILED.code):
        return failure
    error = RANK_FAILED(
        rank=rank,
        ranks=ranks,
        problem=failure.message,
        remedy=failure.hint,
        log=log_path(session.run.path, rank),
    )
    return RunFailed(
        error=error.code,
        message=error.message,
        hint=error.remedy,
        exit_code=failure.exit_code,
        traceback=failure.traceback,
    )
