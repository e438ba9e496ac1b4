"""Run files that rank 0 keeps itself if torchrun or deepspeed started all ranks, without `engine train`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from engine import config as run_config
from engine.launch.preflight import check
from engine.protocol.commands import Stop
from engine.runs import run_index
from engine.runs.context import TrainingSession
from engine.runs.control import ControlServer
from engine.runs.journal import JournalWriter
from engine.runs.process_group import ProcessGroup
from engine.runs.process_record import Heartbeat, ProcessRecord, write_record
from engine.runs.run_directory import RunDirectory


def make_run(configuration: Path, group: ProcessGroup) -> RunDirectory:
    """Creates a new run from a YAML file, which rank 0 checks.

    Raises:
        EliteError: an error of `engine.launch.preflight.check` or of creating the run directory.
    """

    def create() -> str:
        checked = check(run_config.load(configuration), group.ranks)
        return str(RunDirectory.create(checked).path)

    return RunDirectory.open(Path(group.agree(create)))


class TorchrunRun:
    """Keeps the run's journal, process record and control socket on rank 0."""

    def __init__(self, run: RunDirectory) -> None:
        self.journal = JournalWriter(run.journal_path, run.id)
        self._run = run
        write_record(run.process_path, ProcessRecord.of_process(os.getpid(), self.journal.next_seq))
        self._heartbeat = Heartbeat(run.process_path)
        self._control: ControlServer | None = None
        with contextlib.suppress(OSError):
            run_index.remember_output(run.path.parent.parent)

    def listen(self, session: TrainingSession) -> None:
        """Receives commands from now on. If the socket cannot be created, signals still stop the run."""
        with contextlib.suppress(OSError):
            self._control = ControlServer(self._run.socket_path, session.commands.deliver)
            session.listen(self._control.answer)

    def stop(self, session: TrainingSession) -> None:
        """Requests a stop with a checkpoint, after a signal."""
        if not session.commands.stop_requested:
            session.commands.deliver(Stop(id="signal"))

    def close(self) -> None:
        """Closes the journal, the heartbeat and the control socket."""
        if self._control is not None:
            self._control.close()
        self._heartbeat.close()
        self.journal.close()
