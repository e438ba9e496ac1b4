"""The run directory, which holds everything about one run. It is authoritative; queue and socket are shortcuts.

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

from msgspec.structs import replace

from engine import config as run_config
from engine import durable, regular_file
from engine.errors import EliteError
from engine.errors.runs import OUTPUT_FULL, OUTPUT_UNWRITABLE, RUN_DAMAGED, RUN_UNKNOWN
from engine.errors.usage import CONFIG_UNREADABLE
from engine.quantities import format_bytes
from engine.runs.deepspeed_config import deepspeed_config
from engine.runs.run_summary import RunStatus, RunSummary, read_status, read_summary
from engine.whole_file import replace_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.config import DataSection, RunConfig

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
        """DeepSpeed configuration of the run."""
        return self.path / "deepspeed.json"

    @property
    def plan_path(self) -> Path:
        """The planner's choice."""
        return self.path / "plan.json"

    @property
    def proof_path(self) -> Path:
        """Why the model's family was admitted, where it is not a listed one."""
        return self.path / "proof.json"

    @property
    def journal_path(self) -> Path:
        """Journal of events."""
        return self.path / "events.jsonl"

    @property
    def log_path(self) -> Path:
        """Standard output and error of the training process."""
        return self.path / "engine.log"

    @property
    def process_path(self) -> Path:
        """Record of the training process (engine.runs.process_record)."""
        return self.path / "process.json"

    @property
    def socket_path(self) -> Path:
        """Socket on which the training process receives commands."""
        return self.path / "control.sock"

    @property
    def checkpoints_path(self) -> Path:
        """Folder of the checkpoints, each in a folder such as step-000123."""
        return self.path / "checkpoints"

    @property
    def adapter_path(self) -> Path:
        """Trained adapter, in PEFT's format."""
        return self.path / "adapter"

    @property
    def model_path(self) -> Path:
        """Result of full fine-tuning, in Hugging Face's format."""
        return self.path / "model"

    def result_path(self, method: Literal["lora", "full"]) -> Path:
        """Returns the path of a training method's result."""
        return self.adapter_path if method == "lora" else self.model_path

    @property
    def report_path(self) -> Path:
        """Report for people."""
        return self.path / "report.md"

    @classmethod
    def create(cls, config: RunConfig) -> RunDirectory:
        """Creates the folder of a new run, with its configuration, below `config.output.directory`.

        It appears atomically and complete under its name; an error leaves nothing behind.

        Raises:
            EliteError: OUTPUT_UNWRITABLE or OUTPUT_FULL.
        """
        output = Path(config.output.directory).absolute()
        check_output(output)
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{run_config.model_name(config)}-{secrets.token_hex(2)}"
        runs = output / "runs"
        made = _missing_parents(runs)
        temporary = runs / f".{run_id}"
        try:
            # Logs and completions quote private repositories; who may write to `runs` may replace a run.
            runs.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.mkdir(mode=0o700)
            cls(temporary).config_path.write_text(run_config.to_yaml(config), encoding="utf-8")
            cls(temporary).write_deepspeed(config)
            durable.sync_tree(temporary)
            durable.rename(temporary, runs / run_id)
            for folder in made:
                durable.sync_path(folder.parent)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise _output_error(output, error, MINIMUM_FREE) from error
        return cls(runs / run_id)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Opens the run in an existing folder.

        Raises:
            EliteError: RUN_UNKNOWN, if there is no run; RUN_DAMAGED, if it cannot be read.
        """
        run = cls(path.absolute())
        try:
            if not run.config_path.is_file():
                raise RUN_UNKNOWN(reference=path)
            os.scandir(run.path).close()
        except OSError as error:
            raise RUN_DAMAGED(path=path, problem=error.strerror or error) from error
        return run

    def write_deepspeed(self, config: RunConfig, context: int | None = None, ranks: int = 1) -> None:
        """Writes deepspeed.json; called again once the run's context has been chosen.

        Raises:
            OSError: the run directory cannot be written.
        """
        text = json.dumps(deepspeed_config(config, context, ranks), indent=2)
        replace_text(self.deepspeed_path, text + "\n")

    def write_config(self, config: RunConfig) -> None:
        """Replaces the configuration atomically, for a run that resumes with a changed one.

        Raises:
            OSError: the run directory cannot be written.
        """
        replace_text(self.config_path, run_config.to_yaml(config))

    def has_schedule(self) -> bool:
        """Whether the run's plan has stages; False where no plan was made or it cannot be read."""
        try:
            return regular_file.read_object(self.plan_path).get("schedule") is not None
        except (OSError, ValueError):
            return False

    def planned_rate(self) -> float | None:
        """Returns the peak learning rate that the run was planned with; None where no plan says it.

        A plan of an earlier version says it only with a schedule; its run has a rate in its configuration.
        """
        try:
            plan = regular_file.read_object(self.plan_path)
            rate = float(plan["learning_rate"] if "learning_rate" in plan else plan["schedule"]["learning_rate"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return rate if 0 < rate <= 1 else None

    def planned_fim(self) -> float | None:
        """Returns the share of fill-in-the-middle that the run reads its files with; None where no plan says it."""
        try:
            share = float(regular_file.read_object(self.plan_path)["fim"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return share if 0 <= share <= 1 else None

    def data_of(self, config: RunConfig) -> DataSection:
        """Returns the data section of the run's configuration, with the share of fill-in-the-middle that it began with.

        A later version may have another default, and another share would be other tokens.
        """
        data = config.data
        return replace(data, fim=self.planned_fim()) if data.fim is None else data

    def load_config(self) -> RunConfig:
        """Loads the run's configuration.

        Raises:
            EliteError: CONFIG_UNREADABLE or CONFIG_INVALID.
        """
        try:
            text = regular_file.read_bytes(self.config_path, 1 << 20)
        except OSError as error:
            raise CONFIG_UNREADABLE(path=self.config_path, problem=error.strerror or error) from error
        if not text.strip(b"\0 \r\n\t"):
            # Every field has a default: an empty file would be another run's configuration.
            raise CONFIG_UNREADABLE(path=self.config_path, problem="it is empty")
        return run_config.load(self.config_path)

    def status(self) -> RunStatus:
        """Reads the run's status from its journal's end and its process."""
        return read_status(self)

    def summary(self) -> RunSummary:
        """Reads the run's line in the table of runs."""
        return read_summary(self)

    @contextlib.contextmanager
    def launching(self) -> Iterator[None]:
        """Locks the run while a process is started for it, so that only one can be, or while it is deleted.

        Raises:
            EliteError: OUTPUT_UNWRITABLE; RUN_UNKNOWN, if the run was deleted in the meantime.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise RUN_UNKNOWN(reference=self.path) from None
        except OSError as error:
            raise _output_error(self.path, error, 0) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not self._is_still(fd):
                raise RUN_UNKNOWN(reference=self.path)
            yield
        finally:
            os.close(fd)

    def _is_still(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self.path.stat())
        except OSError:
            return False


def check_output(output: Path, needed: int = MINIMUM_FREE) -> None:
    """Checks by writing that runs can be stored below a folder, which need not exist; leaves nothing there.

    Args:
        output: The folder.
        needed: Bytes that must be free.

    Raises:
        EliteError: OUTPUT_UNWRITABLE or OUTPUT_FULL.
    """
    if "\0" in str(output):
        raise OUTPUT_UNWRITABLE(path=output, problem="the path holds a null character")
    try:
        existing = output
        while not existing.exists():
            existing = existing.parent
        # Permissions do not tell: root has all of them, but cannot write in /proc or on a read-only filesystem.
        # Unbuffered, because a buffer that cannot be written would keep the file from being removed.
        with tempfile.NamedTemporaryFile(prefix=".elite-", dir=existing, buffering=0) as probe:
            probe.write(b"\0" * 4096)
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise _output_error(output, error, needed) from error
    if free < needed:
        raise OUTPUT_FULL(path=output, free=format_bytes(free), needed=format_bytes(needed))


def _output_error(output: Path, error: OSError, needed: int) -> EliteError:
    if error.errno in _NO_SPACE:
        return OUTPUT_FULL(path=output, free="no space", needed=format_bytes(needed))
    return OUTPUT_UNWRITABLE(path=output, problem=error.strerror or error)


def _missing_parents(path: Path) -> list[Path]:
    """Lists the folders that would be created for `path`, innermost first."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    return missing
