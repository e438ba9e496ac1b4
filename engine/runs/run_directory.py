"""The run directory: everything about one run, in one folder. It is the truth; queue and socket are shortcuts.

<output>/runs/<id>/  config.yaml  deepspeed.json  plan.json  events.jsonl  engine.log  process.json
                     control.sock  checkpoints/step-000123/  adapter/  report.md
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine import config as run_config
from engine import errors
from engine.runs.deepspeed_config import deepspeed_config
from engine.runs.run_summary import RunStatus, RunSummary, read_status, read_summary
from engine.whole_file import replace_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.config import RunConfig

MINIMUM_FREE = 64 * 1024**2
"""Bytes that must be free for any run: journal, log, and the adapter and checkpoints of a small model."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class RunDirectory:
    """One run's folder. Two of the same path are equal."""

    path: Path

    @property
    def id(self) -> str:
        """Name of the folder: date, time, the model's name, four hex digits."""
        return self.path.name

    @property
    def config_path(self) -> Path:
        """The RunConfig that the run was started with."""
        return self.path / "config.yaml"

    @property
    def deepspeed_path(self) -> Path:
        """The same run in DeepSpeed's terms."""
        return self.path / "deepspeed.json"

    @property
    def plan_path(self) -> Path:
        """What the planner chose."""
        return self.path / "plan.json"

    @property
    def proof_path(self) -> Path:
        """Why the model's family was admitted, where it is not a listed one."""
        return self.path / "proof.json"

    @property
    def journal_path(self) -> Path:
        """The journal of events."""
        return self.path / "events.jsonl"

    @property
    def log_path(self) -> Path:
        """Standard output and error of the training process."""
        return self.path / "engine.log"

    @property
    def process_path(self) -> Path:
        """Which process trains (engine.runs.process_record)."""
        return self.path / "process.json"

    @property
    def socket_path(self) -> Path:
        """Where the training process takes commands."""
        return self.path / "control.sock"

    @property
    def checkpoints_path(self) -> Path:
        """One folder a checkpoint, step-000123."""
        return self.path / "checkpoints"

    @property
    def adapter_path(self) -> Path:
        """The result of training an adapter, in PEFT's format."""
        return self.path / "adapter"

    @property
    def model_path(self) -> Path:
        """The result of training every weight, in Hugging Face's format."""
        return self.path / "model"

    def result_path(self, method: Literal["lora", "full"]) -> Path:
        """Where a method of training leaves its result."""
        return self.adapter_path if method == "lora" else self.model_path

    @property
    def report_path(self) -> Path:
        """What happened, for people."""
        return self.path / "report.md"

    @classmethod
    def create(cls, config: RunConfig) -> RunDirectory:
        """Makes the folder of a new run, with its configuration, below `config.output.directory`.

        It appears under its name at once and complete; on an error nothing is left behind.

        Raises:
            EliteError: OUTPUT_UNWRITABLE or OUTPUT_FULL.
        """
        output = Path(config.output.directory).absolute()
        check_output(output)
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.output.model_name}-{secrets.token_hex(2)}"
        runs = output / "runs"
        made = _missing_parents(runs)
        temporary = runs / f".{run_id}"
        try:
            temporary.mkdir(parents=True)
            cls(temporary).config_path.write_text(run_config.to_yaml(config), encoding="utf-8")
            cls(temporary).write_deepspeed(config)
            temporary.rename(runs / run_id)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise _output_error(output, error, MINIMUM_FREE) from error
        return cls(runs / run_id)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """The run in an existing folder.

        Raises:
            EliteError: RUN_UNKNOWN where no run is there, RUN_DAMAGED where it cannot be read.
        """
        run = cls(path.absolute())
        try:
            if not run.config_path.is_file():
                raise errors.RUN_UNKNOWN(reference=path)
            os.scandir(run.path).close()
        except OSError as error:
            raise errors.RUN_DAMAGED(path=path, problem=error.strerror or error) from error
        return run

    def write_deepspeed(self, config: RunConfig, context: int | None = None, ranks: int = 1) -> None:
        """Writes deepspeed.json, again when the run's context has been chosen.

        Raises:
            OSError: the run directory cannot be written.
        """
        text = json.dumps(deepspeed_config(config, context, ranks), indent=2)
        self.deepspeed_path.write_text(text + "\n", encoding="utf-8")

    def write_config(self, config: RunConfig) -> None:
        """Replaces the configuration in one go, for a run that goes on with a changed one.

        Raises:
            OSError: the run directory cannot be written.
        """
        replace_text(self.config_path, run_config.to_yaml(config))

    def load_config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            EliteError: CONFIG_UNREADABLE or CONFIG_INVALID.
        """
        return run_config.load(self.config_path)

    def status(self) -> RunStatus:
        """What the run does now, from its journal's end and its process."""
        return read_status(self)

    def summary(self) -> RunSummary:
        """The run in one line of a table."""
        return read_summary(self)

    @contextlib.contextmanager
    def launching(self) -> Iterator[None]:
        """Holds the run while a process is started for it, so that only one can be; or while it is deleted.

        Raises:
            EliteError: OUTPUT_UNWRITABLE, or RUN_UNKNOWN where it was deleted meanwhile.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _output_error(self.path, error, 0) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not self._is_still(fd):
                raise errors.RUN_UNKNOWN(reference=self.path)
            yield
        finally:
            os.close(fd)

    def _is_still(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self.path.stat())
        except OSError:
            return False


def check_output(output: Path, needed: int = MINIMUM_FREE) -> None:
    """Shows by writing that runs can be stored below a folder, which need not exist; leaves nothing there.

    Args:
        output: The folder.
        needed: Bytes that must be free.

    Raises:
        EliteError: OUTPUT_UNWRITABLE or OUTPUT_FULL.
    """
    if "\0" in str(output):
        raise errors.OUTPUT_UNWRITABLE(path=output, problem="the path holds a null character")
    try:
        existing = output
        while not existing.exists():
            existing = existing.parent
        # By trying: root may write anywhere by its rights, and not in /proc or on a read-only filesystem.
        # Unbuffered, as a buffer that cannot be written would keep the file from being removed.
        with tempfile.NamedTemporaryFile(prefix=".elite-", dir=existing, buffering=0) as probe:
            probe.write(b"\0" * 4096)
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise _output_error(output, error, needed) from error
    if free < needed:
        raise errors.OUTPUT_FULL(path=output, free=_mebibytes(free), needed=_mebibytes(needed))


def _output_error(output: Path, error: OSError, needed: int) -> errors.EliteError:
    if error.errno in _NO_SPACE:
        return errors.OUTPUT_FULL(path=output, free="no space", needed=_mebibytes(needed))
    return errors.OUTPUT_UNWRITABLE(path=output, problem=error.strerror or error)


def _mebibytes(size: int) -> str:
    return f"{size / 1024**2:,.0f} MiB"


def _missing_parents(path: Path) -> list[Path]:
    """The folders that would be made for `path`, innermost first."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    return missing
