"""Pre-flight checks. Examines every condition of a run, with one row and a remedy for each.

`examine` serves `engine doctor` and the wizard's review. It yields rows as they are known, imports no torch, and
changes nothing. Checks that need torch run in a child process (engine.launch.doctor_probe), so that a library that
crashes on import, or a GPU that hangs, fails a row and does not end this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine.config import to_mapping
from engine.data.repositories import estimate_data_tokens
from engine.errors import EliteError, one_line
from engine.hardware.inventory import take_inventory
from engine.home_folder import expand_home
from engine.launch.preflight import needed_bytes, partial_checkpoint_bytes
from engine.models.base_changes import BaseChanges
from engine.models.catalogue import find_model
from engine.models.folder import open_folder
from engine.plan.choice import Choice, choose_plan
from engine.quantities import format_bytes, format_seconds
from engine.runs.run_directory import check_output
from engine.runs.run_index import STATE_VARIABLE, check_index, state_directory
from engine.runs.versions import library_checks

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.hardware.machine import Machine
    from engine.models.spec import ModelSpec

Status = Literal["passed", "warning", "failed", "skipped"]
"""A run can start with warnings, but not with a failed check. A skipped check does not apply or cannot be made here."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Result of one check."""

    name: str
    status: Status
    text: str
    "The finding, one line."
    remedy: str = ""
    'The remedy; "" if none is needed.'


NAMES = (
    "repository",
    "output folder",
    "list of runs",
    "clock",
    "model",
    "plan",
    "memory",
    "disk",
    "context",
    "GPU",
    "other users of the GPU",
    "libraries",
    "number formats",
    "GPU memory",
    "tokenizer",
    "trial step",
)
"""Every row's name, in order. A caller can show them all before the first result."""

PROBED = ("number formats", "GPU memory", "tokenizer", "trial step")
"""Rows of the child process."""

PROBE_TIMEOUT_S = 180.0
_CLOCK_SKEW_S = 60.0
_LOW_MEMORY = 0.05
_BEFORE_THIS_PROGRAM = 1_735_689_600  # 2025-01-01; an earlier clock was never set


def examine(config: RunConfig, *, probe: bool = True) -> Iterator[Check]:
    """Yields the rows in the order of NAMES, each as soon as it is known. Reports failed checks as rows, never raises.

    Args:
        config: Configuration of the run; without repositories, only checks that do not need them are made.
        probe: Whether to start the child process, which takes seconds; its rows are omitted otherwise.
    """
    output = expand_home(config.output.directory).absolute()
    tokens, row = _repository(config)
    yield row
    writable = _output(output)
    yield writable
    yield _list_of_runs()
    yield _clock(output) if writable.status == "passed" else _skip("clock", "the output folder cannot be written")
    machine = take_inventory(output)
    spec, row = _model(config)
    yield row
    choice, row = _plan(config, machine, spec, tokens)
    yield row
    yield _memory(machine)
    yield _disk(config, spec, choice, tokens or 0, output)
    yield context_row(config, spec, choice)
    yield from gpu_rows(config, machine)
    yield library_row(machine)
    if probe:
        yield from _probe(config, choice)


def failed(rows: Iterable[Check]) -> list[Check]:
    """Returns the rows that keep a run from starting."""
    return [row for row in rows if row.status == "failed"]


def _skip(name: str, why: str) -> Check:
    return Check(name=name, status="skipped", text=why)


def _refusal(name: str, error: EliteError) -> Check:
    return Check(name=name, status="failed", text=error.message, remedy=error.remedy)


def _repository(config: RunConfig) -> tuple[int | None, Check]:
    data = config.data
    if not (data.repositories or data.datasets):
        return None, _skip("repository", "none was named; --repo DIR examines one")
    try:
        tokens = estimate_data_tokens(data)
    except EliteError as error:
        return None, _refusal("repository", error)
    return tokens, Check(
        name="repository",
        status="passed",
        text=f"{', '.join([*data.repositories, *data.datasets])}: about {tokens:,} tokens",
    )


def _output(output: Path) -> Check:
    try:
        check_output(output)
    except EliteError as error:
        return _refusal("output folder", error)
    return Check(name="output folder", status="passed", text=f"{output} can be written")


def _list_of_runs() -> Check:
    """Checks this user's own folder, which is not the output folder: a home may be read-only."""
    name, folder = "list of runs", state_directory()
    try:
        check_index()
    except OSError as error:
        return Check(
            name=name,
            status="warning",
            text=f"{folder} cannot be written ({error.strerror or error}): runs work, but `engine runs` does not list "
            "them, and what this program logs of itself is lost",
            remedy=f"set {STATE_VARIABLE} to a folder that can be written, or name each run by its path",
        )
    return Check(name=name, status="passed", text=f"{folder} can be written")


def _clock(output: Path) -> Check:
    """Checks the clock. A monitor on another machine relies on the files' times, and run ids begin with the time."""
    existing = output
    while not existing.exists():
        existing = existing.parent
    with tempfile.TemporaryFile(dir=existing, prefix=".elite-") as file:
        file.write(b"x")
        file.flush()
        skew = os.fstat(file.fileno()).st_mtime - time.time()
    if time.time() < _BEFORE_THIS_PROGRAM:
        return Check(
            name="clock", status="warning", text=f"it shows {time.strftime('%Y-%m-%d')}", remedy="set the clock"
        )
    if abs(skew) > _CLOCK_SKEW_S:
        return Check(
            name="clock",
            status="warning",
            text=f"the output folder's files are {format_seconds(abs(skew))} "
            f"{'ahead of' if skew > 0 else 'behind'} this clock",
            remedy="set the clocks of this machine and of the file server alike, or monitors may take the run for dead",
        )
    return Check(name="clock", status="passed", text="agrees with the output folder's files")


def _model(config: RunConfig) -> tuple[ModelSpec | None, Check]:
    try:
        spec = find_model(config.model.name)
        if spec.path is not None:
            open_folder(spec.path)
    except EliteError as error:
        return None, _refusal("model", error)
    return spec, Check(name="model", status="passed", text=f"{spec.name}, {spec.parameters:,} parameters")


def _plan(
    config: RunConfig, machine: Machine, spec: ModelSpec | None, tokens: int | None
) -> tuple[Choice | None, Check]:
    if spec is None:
        return None, _skip("plan", "no model to plan for")
    try:
        choice = choose_plan(config, machine, spec, tokens)
    except EliteError as error:
        return None, _refusal("plan", error)
    return choice, Check(name="plan", status="passed", text=choice.note)


def _memory(machine: Machine) -> Check:
    free, total = machine.ram_available, machine.ram_total
    limit = f", limited by {machine.ram_limited_by}" if machine.ram_limited_by else ""
    text = f"{format_bytes(free)} of {format_bytes(total)} free{limit}"
    if free < _LOW_MEMORY * total:
        return Check(name="memory", status="warning", text=text, remedy="close what holds it before the run")
    return Check(name="memory", status="passed", text=text)


def _disk(config: RunConfig, spec: ModelSpec | None, choice: Choice | None, tokens: int, output: Path) -> Check:
    if spec is None:
        return _skip("disk", "what the run writes depends on the model")
    stream = choice.plan.layout.stream if choice is not None else None
    spills = stream is not None and stream.spills
    needed = needed_bytes(config, spec, tokens) + (choice.plan.disk_bytes if choice is not None and spills else 0)
    if choice is not None and stream is not None:
        needed += partial_checkpoint_bytes(config, spec, choice.context)
    try:
        check_output(output, needed)
    except EliteError as error:
        return _refusal("disk", error)
    kinds = "checkpoints, tokens, adapter" + (" and spilled activations" if spills else "")
    return Check(name="disk", status="passed", text=f"room for the {format_bytes(needed)} of {kinds}")


def context_row(config: RunConfig, spec: ModelSpec | None, choice: Choice | None) -> Check:
    """Checks the context against the model's trained positions, beyond which its rotary positions are untrained."""
    if spec is None or choice is None:
        return _skip("context", "there is no plan")
    if choice.context > spec.max_context:
        factor = BaseChanges.of(config.model, spec, choice.context).yarn_factor
        scaled = f"YaRN stretches its positions {factor:g} times" if factor else "its positions are not rescaled"
        if not factor and spec.rope_type != "default":
            scaled = f"its positions keep the {spec.rope_type} scaling of its files"
        return Check(
            name="context",
            status="warning",
            text=f"{choice.context:,} tokens, and {spec.name} was trained with {spec.max_context:,}; {scaled}",
            remedy="compare held-out perplexity before and after, or set a lower training.tier",
        )
    return Check(
        name="context",
        status="passed",
        text=f"{choice.context:,} tokens, within the {spec.max_context:,} that {spec.name} was trained with",
    )


def gpu_rows(config: RunConfig, machine: Machine) -> Iterator[Check]:
    """Checks for a GPU, and for others who hold memory on it."""
    if config.model.device == "cpu" or not machine.gpus:
        why = "model.device is cpu" if machine.gpus else "none found: training runs on the CPU"
        yield _skip("GPU", why)
        yield _skip("other users of the GPU", why)
        return
    gpu = machine.gpus[0]
    free = "n/a" if gpu.memory_free is None else format_bytes(gpu.memory_free)
    yield Check(name="GPU", status="passed", text=f"{gpu.name}, {free} free, driver {gpu.driver or 'n/a'}")
    if gpu.processes is None:
        yield _skip("other users of the GPU", "the driver does not say")
    elif gpu.processes:
        yield Check(
            name="other users of the GPU",
            status="warning",
            text=f"{gpu.processes} other {'process holds' if gpu.processes == 1 else 'processes hold'} memory on it",
            remedy="end them (nvidia-smi lists them): the plan counts on what is free now",
        )
    else:
        yield Check(name="other users of the GPU", status="passed", text="none")


def library_row(machine: Machine) -> Check:
    """Checks the installed libraries against the declared versions."""
    wrong = library_checks(machine.libraries)
    if wrong:
        return Check(
            name="libraries",
            status="failed",
            text="; ".join(wrong),
            remedy="install this program's own versions: `pip install -c constraints.txt elite-tui`",
        )
    present = [f"{name} {version}" for name, version in machine.libraries.items() if version]
    return Check(name="libraries", status="passed", text=", ".join(present))


# --- what needs torch --------------------------------------------------------------------------------------


def _probe(config: RunConfig, choice: Choice | None) -> Iterator[Check]:
    """Yields the rows of the child process; the first row missing after a crash is a failure."""
    request = json.dumps(
        {
            "config": to_mapping(config),
            "gpu_bytes": choice.plan.gpu_peak_bytes if choice is not None else None,
            "precision": choice.plan.layout.precision if choice is not None else config.model.precision,
        }
    )
    message: set[str] = set()
    with _child() as ask:
        rows, problem = ask(request)
    for row in rows:
        message.add(row.name)
        yield row
    for name in PROBED:
        if name not in message:
            yield Check(
                name=name,
                status="failed",
                text=f"the trial process {problem}",
                remedy="run `python -m engine.launch.doctor_probe --alone` to see its own words",
            )
            return


@contextlib.contextmanager
def _child() -> Iterator[Callable[[str], tuple[list[Check], str]]]:
    """Starts a process that answers one request with rows, and always ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.launch.doctor_probe"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )

    def ask(request: str) -> tuple[list[Check], str]:
        try:
            out, err = process.communicate(request.encode(), timeout=PROBE_TIMEOUT_S)
            last = one_line((err.decode("utf-8", "replace").strip().splitlines() or [""])[-1])
            problem = f"ended with status {process.returncode}" + (f": {last}" if last else "")
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            problem = f"did not answer within {format_seconds(PROBE_TIMEOUT_S)}"
        return [row for line in out.splitlines() if (row := _row(line)) is not None], problem

    try:
        yield ask
    finally:
        process.kill()
        process.wait()


def _row(line: bytes) -> Check | None:
    """Parses a row of the child's output; None for other lines, which libraries may print."""
    try:
        return Check(**json.loads(line))
    except (ValueError, TypeError):
        return None
