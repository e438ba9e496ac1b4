"""Collects what a problem report needs: versions, machine, configuration, plan, the journal's end, doctor's rows.

Every part is collected on its own, so that a damaged run still gives a report of the rest. Files are read as their last
or first bytes, and only where they are regular ones. Everything is masked before it is shown.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engine
from engine import regular_file
from engine.config import RunConfig, from_mapping, load_mapping
from engine.config.problems import SECRET_FIELDS
from engine.data.masking import Mask
from engine.errors import EliteError, one_line
from engine.hardware.inventory import take_inventory
from engine.home_folder import expand_home
from engine.launch.doctor import examine
from engine.protocol.events import RankReported, RunFailed, StepCompleted, StepProgress
from engine.quantities import format_bytes
from engine.runs.crash_log import FILE_NAME
from engine.runs.journal import decode_line
from engine.runs.run_index import state_directory

if TYPE_CHECKING:
    from engine.hardware.machine import Gpu
    from engine.protocol.wire import Envelope
    from engine.runs.run_directory import RunDirectory

JOURNAL_BYTES = 256 << 10
FILE_BYTES = 64 << 10
LOG_BYTES = 16 << 10
_EVENTS = 60
_OF_A_FREQUENT_KIND = 8
_FREQUENT = (StepCompleted, StepProgress, RankReported)
_LINE = 1_000
_ENTRIES = 60
_LIBRARIES = ("textual", "rich", "numpy", "tokenizers", "msgspec", "gguf", "xllamacpp", "starlette", "uvicorn")
"Beside those of the inventory."
_VARIABLES = re.compile(
    r"(?:CUDA|NVIDIA|NCCL|GLOO|PYTORCH|TORCH|HF|TRANSFORMERS|OMP|MKL|TRITON|TEXTUAL|ELITE_TUI|SLURM_JOB)_\w+"
    r"|TERM|TERM_PROGRAM|COLORTERM|LANG|LC_ALL|NO_COLOR|PYTHONPATH|VIRTUAL_ENV|LD_LIBRARY_PATH|WSL_DISTRO_NAME"
)
_SET = ("SSH_CONNECTION", "TMUX", "STY", "KUBERNETES_SERVICE_HOST")
"Variables of which only their presence is of use."


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the report, masked."""

    title: str
    text: str


def collect(
    run: RunDirectory | None, config_path: Path | None = None, *, probe: bool = True, mask: Mask | None = None
) -> list[Section]:
    """Collects the report; a part that cannot be read says why in its place.

    Args:
        run: The run that the report is about; its folder may be damaged.
        config_path: Configuration to examine in place of the run's.
        probe: Whether doctor's trial process runs, which takes seconds.
        mask: Masks the texts; None means one for this process.
    """
    mask = mask or Mask.of_this_process()
    config, problem = _config(run, config_path)
    parts: list[tuple[str, Callable[[], str]]] = [("Versions", _versions), ("Machine", lambda: _machine(config))]
    parts.append(("Environment", lambda: _environment(mask)))
    if run is not None:
        parts += [
            ("Run", lambda: _run(run)),
            ("Plan", lambda: _plan(run, mask)),
            ("Journal, its end", lambda: _journal(run.journal_path, mask)),
            ("Log, its end", lambda: mask.text(regular_file.read_tail(run.log_path, LOG_BYTES))),
        ]
    file = config_path or (run.config_path if run is not None else None)
    if file is not None:
        parts.insert(3, ("Configuration", lambda: _configuration(file, mask)))
    parts.append(("Unexpected errors, the last", lambda: _crashes(mask)))
    parts.append(("engine doctor", lambda: problem + _doctor(config, probe=probe)))
    sections = [(title, mask.text(_collected(part))) for title, part in parts]
    # Once more, as what a later part holds is a secret in the earlier ones too.
    return [Section(title=title, text=_printable(mask.text(text))) for title, text in sections]


def to_markdown(sections: list[Section]) -> str:
    """Returns the report as a Markdown document, in which no text can end its own block."""
    lines = ["# Elite TUI: problem report", "", "What happened, and what was expected:", "", "(write it here)", ""]
    for section in sections:
        ticks = max((len(run) for run in re.findall("`+", section.text)), default=0)
        fence = "`" * max(3, ticks + 1)
        lines += [f"## {section.title}", "", f"{fence}text", section.text, fence, ""]
    return "\n".join(lines)


def _collected(part: Callable[[], str]) -> str:
    try:
        return part().strip("\n") or "(empty)"
    except (EliteError, OSError) as error:
        return f"(cannot be read: {getattr(error, 'strerror', None) or error})"
    except Exception as error:  # a report about something broken must not break of it
        return f"(cannot be read: {type(error).__name__}: {error})"


def _printable(text: str) -> str:
    lines = [one_line(line.replace("\t", "    ")) for line in text.split("\n")]
    return "\n".join(line if len(line) <= _LINE else f"{line[:_LINE]}… ({len(line):,} characters)" for line in lines)


def _config(run: RunDirectory | None, path: Path | None) -> tuple[RunConfig, str]:
    """Returns the configuration for doctor, and a line where it is not the one asked for."""
    try:
        if path is not None:
            return from_mapping(load_mapping(path), source=str(path)), ""
        if run is not None:
            return run.load_config(), ""
    except EliteError as error:
        return RunConfig(), f"(of the defaults, as the configuration cannot be used: {error})\n"
    return RunConfig(), ""


def _versions() -> str:
    lines = [
        f"elite-tui {engine.__version__}, in {Path(engine.__file__).parent.parent}",
        f"Python {platform.python_version()} ({platform.python_implementation()}), {sys.executable}",
        f"{_system()}; {platform.platform()}",
    ]
    return "\n".join([*lines, *(f"{name} {_version(name)}" for name in _LIBRARIES)])


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return platform.system()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _machine(config: RunConfig) -> str:
    machine = take_inventory(expand_home(config.output.directory).absolute())
    limit = f", limited by {machine.ram_limited_by}" if machine.ram_limited_by else ""
    lines = [_gpu(gpu) for gpu in machine.gpus] or ["no GPU found"]
    lines += [
        f"CPU: {machine.cpu_name or 'n/a'}, {machine.cpu_cores} cores",
        f"RAM: {format_bytes(machine.ram_available)} of {format_bytes(machine.ram_total)} free{limit}",
        f"swap: {'n/a' if machine.swap_total is None else format_bytes(machine.swap_total)}",
        f"disk of the output folder: {format_bytes(machine.disk_free)} of {format_bytes(machine.disk_total)} free, "
        f"{machine.disk_kind or 'kind unknown'}",
        *(f"{name} {version or 'not installed'}" for name, version in machine.libraries.items()),
    ]
    return "\n".join(lines)


def _gpu(gpu: Gpu) -> str:
    known = {one.name: getattr(gpu, one.name) for one in fields(gpu) if one.name not in ("name", "index", "uuid")}
    return f"GPU {gpu.index}: {gpu.name}; " + ", ".join(f"{k} {v}" for k, v in known.items() if v is not None)


def _environment(mask: Mask) -> str:
    size = shutil.get_terminal_size()
    lines = [f"terminal {size.columns}x{size.lines}, {'' if sys.stdout.isatty() else 'not '}on standard output"]
    lines += [mask.text(f"{name}={value}") for name, value in sorted(os.environ.items()) if _VARIABLES.fullmatch(name)]
    return "\n".join([*lines, *(f"{name} is set" for name in _SET if name in os.environ)])


def _run(run: RunDirectory) -> str:
    lines = [f"{run.path}", f"status: {run.status()}"]
    with os.scandir(run.path) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found[:_ENTRIES]:
        facts = entry.stat(follow_symlinks=False)
        size = f"{facts.st_size:,} bytes" if stat.S_ISREG(facts.st_mode) else stat.filemode(facts.st_mode)
        lines.append(f"  {entry.name}: {size}")
    more = len(found) - _ENTRIES
    return "\n".join([*lines, *([f"  and {more} more"] if more > 0 else [])])


def _configuration(path: Path, mask: Mask) -> str:
    """Returns the file as it is, without the comments that document its fields."""
    for field in SECRET_FIELDS:
        section, _, name = field.partition(".")
        with contextlib.suppress(EliteError, AttributeError):
            mask.learn(str(load_mapping(path).get(section, {}).get(name, "")))
    text = mask.text(regular_file.read_head(path, FILE_BYTES))
    return "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))


def _plan(run: RunDirectory, mask: Mask) -> str:
    text = regular_file.read_head(run.plan_path, FILE_BYTES)
    try:
        return json.dumps(mask.values(json.loads(text)), indent=1, ensure_ascii=False)
    except (ValueError, RecursionError):
        return f"(no whole JSON document)\n{mask.text(text)}"


def _journal(path: Path, mask: Mask) -> str:
    lines = regular_file.read_tail(path, JOURNAL_BYTES).splitlines()
    decoded = [decode_line(line.encode("utf-8", "surrogateescape")) for line in lines]
    damaged = decoded.count(None)
    shown = list(_newest([one for one in decoded if one is not None]))[::-1]
    note = [f"{damaged} damaged {'line' if damaged == 1 else 'lines'} in the last {len(lines)}"] if damaged else []
    return "\n".join([*note, *(_event_line(envelope, mask) for envelope in shown)])


def _newest(envelopes: list[Envelope]) -> Iterator[Envelope]:
    """Yields the newest events first, only a few of each kind that every step brings."""
    shown: Counter[str] = Counter()
    for envelope in reversed(envelopes):
        if shown.total() >= _EVENTS:
            return
        if not isinstance(envelope.event, _FREQUENT) or shown[envelope.kind] < _OF_A_FREQUENT_KIND:
            shown[envelope.kind] += 1
            yield envelope


def _event_line(envelope: Envelope, mask: Mask) -> str:
    body: dict[str, Any] = mask.values(asdict(envelope.event))
    trace = ""
    if isinstance(envelope.event, RunFailed):
        trace = f"\n{body.pop('traceback')}".rstrip("\n")
    if isinstance(envelope.event, RankReported):
        body.pop("host")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(envelope.time))
    facts = " ".join(f"{name}={value}" for name, value in body.items() if value not in (None, ""))
    return f"{when} UTC #{envelope.seq} {envelope.kind} {facts}{trace}"


def _crashes(mask: Mask) -> str:
    try:
        return mask.text(regular_file.read_tail(state_directory() / FILE_NAME, LOG_BYTES))
    except FileNotFoundError:
        return "none"


def _doctor(config: RunConfig, *, probe: bool) -> str:
    rows = (
        f"{row.status:<8} {row.name}: {row.text}" + (f" → {row.remedy}" if row.remedy else "")
        for row in examine(config, probe=probe)
    )
    return "\n".join(rows)
