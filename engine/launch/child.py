"""The training process, which has its own session and log, and always reports how it ended.

The spawned process runs `main`. It imports torch and the recipe only after its log is in place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import functools
import io
import os
import signal
import sys
import threading
import traceback
from multiprocessing import resource_tracker
from pathlib import Path
from queue import Full
from typing import TYPE_CHECKING, Any

from engine import config as run_config
from engine import durable, regular_file
from engine.errors import INTERRUPTED, TRAINING_FAILED, EliteError, one_line
from engine.errors.runs import OUTPUT_FULL, OUTPUT_UNWRITABLE
from engine.errors.training import INTERRUPTED_TWICE
from engine.errors.usage import INTERNAL
from engine.hardware.environment import limit_omp_spin, number_by_bus
from engine.launch.notifier import Notifier
from engine.launch.recipe_import import LOADING, import_function
from engine.launch.signals import watch_stop_signals
from engine.protocol.commands import Stop
from engine.protocol.events import PhaseChanged, RunFailed, RunFinished, WarningRaised
from engine.protocol.wire import Envelope, ProtocolError, decode_command, encode_event
from engine.runs import run_index
from engine.runs.context import TrainingSession
from engine.runs.control import ControlServer
from engine.runs.journal import JournalWriter
from engine.runs.process_record import Heartbeat, ProcessRecord, write_record
from engine.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.queues import Queue, SimpleQueue

    from engine.config import RunConfig

_ATOMIC_BYTES = 3500
"""Longer events go to the journal only. A pipe writes up to 4,096 bytes atomically, so a process that is killed while
it writes leaves no partial message, for which the reader of the queue would wait for ever."""


_LONGEST_TRACEBACK = 20_000


def main(
    run_path: str,
    config: RunConfig,
    resuming: bool,
    recipe: str,
    events: Queue[str],
    commands: SimpleQueue[str],
    ready: Connection,
) -> None:
    """Trains one run and exits with its status: 0 completed; 2, 3, 4 failed; 130 stopped.

    Args:
        run_path: The run directory, which exists.
        config: Configuration of the run.
        resuming: Whether to continue from the newest checkpoint.
        recipe: "module:function" of the training recipe, called with the TrainingSession.
        events: Queue for the journal's lines; may be full or have no reader.
        commands: Queue of command lines from the launching process.
        ready: Closed as soon as the run is independent and its launcher may exit.
    """
    run = RunDirectory(Path(run_path))
    try:
        _detach(run.log_path)
    except OSError as error:  # the run directory is gone, or something else lies in the log's place
        print(f"the run directory cannot be used: {error}", file=sys.stderr)  # noqa: T201 - there is no log
        sys.exit(TRAINING_FAILED)
    limit_omp_spin(os.environ)
    number_by_bus(os.environ)
    events.cancel_join_thread()
    try:
        journal = JournalWriter(run.journal_path, run.id)
        session = TrainingSession(config=config, run=run, resuming=resuming, journal=journal)
    except OSError as error:
        print(f"the run directory cannot be used: {error}", file=sys.stderr)  # noqa: T201 - into engine.log
        sys.exit(TRAINING_FAILED)
    session.listen(functools.partial(_tap, events))
    watch_stop_signals(functools.partial(_react, session, journal))
    try:
        # The launcher writes the same record, unless it was killed before it could.
        write_record(run.process_path, ProcessRecord.of_process(os.getpid(), journal.next_seq))
    except OSError as error:
        print(f"the process record cannot be written: {error}", file=sys.stderr)  # noqa: T201 - into engine.log
    heartbeat = Heartbeat(run.process_path)
    server = notifier = None
    try:
        session.emit(PhaseChanged(phase="starting"))
        # An attempt begins with that event: a webhook that is not set is a warning, which must not come before it.
        notifier = Notifier(
            config.notify, run_config.model_name(config), report=functools.partial(_unnotified, session)
        )
        session.listen(notifier.hear)
        server = _open_control(session)
        _index(session)
        threading.Thread(target=_take_commands, args=(commands, session), name="commands", daemon=True).start()
        ready.close()
        _train(session, recipe)
    finally:
        if server is not None:
            server.close()
        heartbeat.close()
        journal.close()
        if problem := journal.take_problem() or ("no room" if journal.waits else ""):
            print(f"the journal's last events may not be on the disk: {problem}", file=sys.stderr)  # noqa: T201 - into engine.log
        if notifier is not None:
            notifier.close()
    sys.exit(_exit_code(session))


def _detach(log_path: Path) -> None:
    """Makes the process outlive its terminal and its launcher."""
    # Fails if the process already leads a group, which is enough.
    with contextlib.suppress(PermissionError):
        os.setsid()
    log = regular_file.open_for_appending(log_path)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    sys.stdout, sys.stderr = _log_stream(1), _log_stream(2)
    faulthandler.enable(file=2)
    _leave_resource_tracker()


class _LogFile(io.FileIO):
    """Log file that drops writes to a full disk, so that a library's warning does not end the run."""

    def write(self, data: Any) -> int:
        """See io.RawIOBase."""
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def _log_stream(descriptor: int) -> io.TextIOWrapper:
    raw = _LogFile(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=True
    )


def _leave_resource_tracker() -> None:
    """Releases the launcher's resource tracker; this process starts its own when it needs one.

    From Python 3.12 on, a launcher that exits waits for its tracker. The tracker lives while any process holds its
    pipe, so the launcher would wait for the end of the training.
    """
    tracker: Any = resource_tracker._resource_tracker
    inherited, tracker._fd = tracker._fd, None
    if inherited is not None:
        os.close(inherited)


def _tap(events: Queue[str], envelope: Envelope) -> None:
    line = encode_event(envelope)
    if len(line) <= _ATOMIC_BYTES:
        # The queue may have no reader. A reader finds dropped events in the journal.
        with contextlib.suppress(Full):
            events.put_nowait(line)


def _react(session: TrainingSession, journal: JournalWriter, number: signal.Signals) -> None:
    if session.ending is not None:
        os._exit(_exit_code(session))
    if not session.commands.stop_requested:
        session.commands.deliver(Stop(id=f"signal-{number.name}", save=True))
        return
    try:
        journal.append_last(_failure(INTERRUPTED_TWICE(run=session.run.id)), timeout_s=1.0)
    finally:
        os._exit(INTERRUPTED)


def _open_control(session: TrainingSession) -> ControlServer | None:
    try:
        server = ControlServer(session.run.socket_path, session.commands.deliver)
    except OSError as error:
        session.emit(
            WarningRaised(
                code="control-unavailable",
                text=f"no control socket in the run directory: {one_line(error.strerror or error)}",
                hint="stop and pause work from the window that started the run; elsewhere, stop it with SIGTERM "
                f"to process {os.getpid()}",
            )
        )
        return None
    session.listen(server.answer)
    return server


def _index(session: TrainingSession) -> None:
    try:
        run_index.remember_output(session.run.path.parent.parent)
    except OSError as error:
        session.emit(
            WarningRaised(
                code="run-not-indexed",
                text=f"this run is not in the list of runs: {one_line(error)}",
                hint=f"name it by its path: {session.run.path}",
            )
        )


def _unnotified(session: TrainingSession, reason: str) -> None:
    """Says once why notices do not arrive; after the run's last event, only in its log."""
    text = f"the webhook cannot be reached: {reason}"
    if session.ending is not None:
        print(text, file=sys.stderr)  # noqa: T201 - into engine.log
        return
    hint = "the run goes on; notify.webhook can be changed when it is resumed"
    session.emit(WarningRaised(code="notification-failed", text=text, hint=hint))


def _take_commands(commands: SimpleQueue[str], session: TrainingSession) -> None:
    while True:
        try:
            session.commands.deliver(decode_command(commands.get()))
        except ProtocolError as error:
            print(f"ignored a command: {error}", file=sys.stderr)  # noqa: T201 - into engine.log


def _train(session: TrainingSession, recipe: str) -> None:
    try:
        session.emit(PhaseChanged(phase="starting", detail=LOADING))
        import_function(recipe)(session)
        if session.ending is None:
            raise RuntimeError("training returned without a result")
    except BaseException as error:
        # The run must report any exception, including SystemExit and KeyboardInterrupt.
        text = "".join(traceback.format_exception(error))
        print(text, file=sys.stderr)  # noqa: T201 - into engine.log
        if session.ending is None:
            _emit_failure(session, describe_failure(session.run, error, text))


def describe_failure(run: RunDirectory, error: BaseException, text: str) -> RunFailed:
    """Builds the last event of a run that an exception ended; `text` is its traceback."""
    text = text[-_LONGEST_TRACEBACK:]
    if isinstance(error, EliteError):
        failure = _failure(error)
        # Not an option that was wrong, as for a command: the folder was writable when the run began.
        during = error.kind in (OUTPUT_FULL, OUTPUT_UNWRITABLE)
        return dataclasses.replace(failure, exit_code=TRAINING_FAILED) if during else failure
    if isinstance(error, OSError) and durable.is_full(error):
        full = OUTPUT_FULL(path=run.path, free="no space", needed="more")
        return dataclasses.replace(_failure(full, text), exit_code=TRAINING_FAILED)
    return _failure(INTERNAL(kind=type(error).__name__, problem=error, log=run.log_path), text)


def _failure(error: EliteError, text: str = "") -> RunFailed:
    return RunFailed(
        error=error.code, message=error.message, hint=error.remedy, exit_code=error.exit_code, traceback=text
    )


def _emit_failure(session: TrainingSession, failure: RunFailed) -> None:
    try:
        session.emit(failure)
    except OSError as error:
        # The disk with the journal is full or gone. The exit status still tells the launcher.
        session.ending = failure
        print(f"the journal cannot be written: {error}", file=sys.stderr)  # noqa: T201 - into engine.log


def _exit_code(session: TrainingSession) -> int:
    match session.ending:
        case RunFinished(status="completed"):
            return 0
        case RunFinished():
            return INTERRUPTED
        case RunFailed(exit_code=code):
            return code
    return TRAINING_FAILED
