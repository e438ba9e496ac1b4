"""What rank 0 does itself where no `engine train` stands beside it: torchrun or deepspeed started all ranks at once."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from engine import config as run_config
from engine.launch.preflight import check
from engine.protocol import Stop
from engine.runs import run_index
from engine.runs.context import TrainingSession
from engine.runs.control import ControlServer
from engine.runs.journal import JournalWriter
from engine.runs.process_group import ProcessGroup
from engine.runs.process_record import Heartbeat, ProcessRecord, write_record
from engine.runs.run_directory import RunDirectory


def make_run(configuration: Path, group: ProcessGroup) -> RunDirectory:
    """A new run of a YAML file, made and checked by rank 0.

    Raises:
        EliteError: what the configuration is refused for.
    """

    def create() -> str:
        checked = check(run_config.load(configuration), group.ranks)
        return str(RunDirectory.create(checked).path)

    return RunDirectory.open(Path(group.agree(create)))


class TorchrunRun:
    """The run's journal, its process record and its control socket, in rank 0."""

    def __init__(self, run: RunDirectory) -> None:
        self.journal = JournalWriter(run.journal_path, run.id)
        self._run = run
        write_record(run.process_path, ProcessRecord.of_process(os.getpid(), self.journal.next_seq))
        self._heartbeat = Heartbeat(run.process_path)
        self._control: ControlServer | None = None
        with contextlib.suppress(OSError):
            run_index.remember_output(run.path.parent.parent)

    def listen(self, session: TrainingSession) -> None:
        """Takes commands from now on; without a socket (a path too long), signals still stop the run."""
        with contextlib.suppress(OSError):
            self._control = ControlServer(self._run.socket_path, session.commands.deliver)
            session.listen(self._control.answer)

    def stop(self, session: TrainingSession) -> None:
        """A signal asks the run to stop, with a checkpoint."""
        if not session.commands.stop_requested:
            session.commands.deliver(Stop(id="signal"))

    def close(self) -> None:
        """The run has ended."""
        if self._control is not None:
            self._control.close()
        self._heartbeat.close()
        self.journal.close()
