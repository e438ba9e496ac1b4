"""Values of odd types and sizes in a run's files and on the command line: an answer in one line, and in time."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import re
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from elite_tui.runs import curves, finish_line, function_diffs, panels, result_panels
from elite_tui.runs.files import read_plan
from elite_tui.runs.followed import Followed
from elite_tui.runs.history import X_AXES
from elite_tui.runs.open_runs import OpenRun
from elite_tui.runs.report import read_report
from elite_tui.runs.view import RunView
from engine import cli
from engine.config import RunConfig, to_mapping
from engine.errors import EliteError
from engine.export.merging import read_updates
from engine.export.source import open_source
from engine.generation.run_models import models_of
from engine.launch.handle import RunHandle
from engine.runs.journal import seal_line
from engine.runs.run_directory import RunDirectory
from tests.chaos.lab import BrokenError, Lab, in_fork, wait_for

LONGEST_S = 30.0
STATUSES = (0, 2, 3, 4, 130)
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 10**400, 1e308, -1e308, 1e-320, 0.5, -0.0, "", "x",
    "\x1b[31m[bold]x", "\x1b]0;title\x07", "a" * 5000, "\u202e\u200b\ud800", "[/]", [], {}, [1], {"a": 1}, [[[]]],
)  # fmt: skip
TEXTS = (
    "", "0", "-1", "1e999", ".nan", "nan", "1e-320", "9" * 20, "1" + "0" * 5000, "true", "null", "[]", "{}", "{a: b}",
    "'x'", '"\\u0000"', "\x1b[31mred", "[bold]x[/bold]", "a" * 10_000, "../../../etc/passwd", "/dev/zero", "/dev/null",
    "~", "~nobody/x", "$HOME", "%s%n", "2026-01-01", "0x10", "1_000", "!!python/object/apply:os.system ['id']",
    "&a [*a]", "\ud800", "é", "[" * 3000, "auto", "demo", "1:30:00", "a=b", "--", "-", "@file",
)  # fmt: skip
_ESCAPE = re.compile(r"[\x07\x1b\u202e]")


def odd(value: Any, rng: random.Random) -> Any:
    """The value with one part removed, repeated, or replaced by something odd."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        chance = rng.random()
        if chance < 0.12:
            del value[key]
        elif chance < 0.5 and isinstance(value[key], (dict, list)):
            value[key] = odd(value[key], rng)
        else:
            value[key] = copy.deepcopy(rng.choice(ODD))
        return value
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        value[place] = odd(value[place], rng)
        return value
    return copy.deepcopy(rng.choice(ODD))


def mutate_run_directories(lab: Lab, count: int) -> dict[str, int]:
    """Every reader of a run answers: the list, the monitor with its charts, the result, evaluation and export."""
    config = lab.config("odd")
    lab.reference(config)
    (folder,) = (Path(config.output.directory) / "runs").iterdir()
    run = RunDirectory(folder)
    refused = 0
    for number in range(count):
        name, readers = _FILES[number % len(_FILES)]
        path = run.path / name
        original = path.read_bytes()
        path.write_bytes(_mutated(name, original, lab.random))
        for read in readers:
            refused += _answers(read, run, f"{name} of mutation {number}")
        path.write_bytes(original)
    return {"mutated": count, "refused": refused}


def _mutated(name: str, original: bytes, rng: random.Random) -> bytes:
    if name != "events.jsonl":
        if rng.random() < 0.1:
            return rng.choice([b"", b"[", b"[" * 30_000, b'{"a":' * 50_000, b"null", b"1e999", b"\0"])
        return json.dumps(odd(json.loads(original), rng)).encode()
    events = [json.loads(line) for line in original.splitlines()]
    for event in events:
        event.pop("crc", None)
    for _ in range(rng.randint(1, 5)):
        place = rng.randrange(len(events))
        events[place] = odd(events[place], rng)
    if rng.random() < 0.2:
        rng.shuffle(events)
    lines = []
    for event in events:
        line = json.dumps(event, separators=(",", ":")).encode()
        lines.append(seal_line(line) if line.endswith(b"}") and rng.random() < 0.9 else line)
    return b"\n".join(lines) + b"\n"


def _answers(read: Callable[[RunDirectory], Any], run: RunDirectory, what: str) -> bool:
    """Whether a reader refused. Raises BrokenError for any other exception, an escape, or a hang."""
    try:
        with _in_time():
            read(run)
    except EliteError as error:
        if _ESCAPE.search(str(error)) or "\n" in str(error):
            raise BrokenError(f"{what}: not one plain line: {error!r}") from error
        return True
    except Exception as error:
        raise BrokenError(f"{what}: {''.join(traceback.format_exception(error))[-1500:]}") from error
    return False


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"no answer within {LONGEST_S:.0f} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(int(LONGEST_S))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def _monitor(run: RunDirectory) -> None:
    """Draws everything that the monitor and the result screen show."""
    shown = OpenRun(key="k", path=run.path, view=RunView(run_id=run.id))
    followed = Followed(RunHandle.attach(run))
    for _ in range(3):
        news = followed.poll()
        if news is not None:
            shown.take(news)
    report = read_report(run.path)
    drawn: list[Any] = [panels.status_line(shown), panels.notice_line(shown, 0.0)]
    for width in (20, 80, 200):
        drawn += [*panels.progress_lines(shown, width), *panels.figures(shown, (width, 20))]
    pictures = curves.RunCurves()
    for kind in curves.CHARTS:
        for axis in X_AXES:
            pictures.picture(kind.name, shown, curves.Look(x_kind=axis, smoothing=1))
    line = finish_line.finish_line(shown.view, report)
    drawn += [result_panels.not_scored(shown.view) if line is None else result_panels.change_words(line)]
    drawn += [
        *result_panels.compile_rate(report, 80),
        *result_panels.foreseen(shown.view, report),
        *function_diffs.function_diffs(report.samples, 0, 80),
    ]
    for one in drawn:
        text = getattr(one, "plain", "") if one is not None else ""
        if _ESCAPE.search(text):
            raise ValueError(f"an escape would be drawn: {text[:80]!r}")


def _read_adapter(run: RunDirectory) -> None:
    read_updates(run.adapter_path)


_FILES: tuple[tuple[str, tuple[Callable[[RunDirectory], Any], ...]], ...] = (
    ("events.jsonl", (RunDirectory.summary, _monitor)),
    ("plan.json", (lambda run: read_plan(run.plan_path), lambda run: models_of(run, run.load_config()))),
    ("events.jsonl", (RunDirectory.summary, _monitor)),
    ("process.json", (RunDirectory.summary, lambda run: RunHandle.attach(run).poll())),
    (
        "adapter/adapter_config.json",
        (lambda run: open_source(run, "adapter"), lambda run: read_updates(run.adapter_path)),
    ),
)


def mutate_commands(lab: Lab, count: int) -> dict[str, int]:
    """Every command line ends in time, with one of the documented exit codes, without a traceback or an escape."""
    fields = [f"{section}.{name}" for section, names in to_mapping(RunConfig()).items() for name in names]
    log = lab.folder / "output"
    statuses = dict.fromkeys(STATUSES, 0)
    for _ in range(count):
        arguments = _command(lab, fields)
        status = wait_for(in_fork(lambda words=arguments: _run(words, log)), LONGEST_S)  # type: ignore[misc]
        text = log.read_text(encoding="utf-8", errors="replace")
        if status not in STATUSES or "Traceback" in text or _ESCAPE.search(text):
            raise BrokenError(f"{[word[:80] for word in arguments]} ended with {status}: {text[-1500:]}")
        statuses[status] += 1
    shutil.rmtree(lab.folder / "out", ignore_errors=True)
    return {"run": count, "refused": count - statuses[0]}


def _run(words: list[str], log: Path) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
    os.dup2(1, 2)
    out, err = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", "backslashreplace") for number in (1, 2)
    )
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(words)
        finally:
            out.flush()
            err.flush()
    raise SystemExit(status)


def _command(lab: Lab, fields: list[str]) -> list[str]:
    rng = lab.random

    def word() -> str:
        text = rng.choice(TEXTS) + (rng.choice(TEXTS) if rng.random() < 0.15 else "")
        return text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape").replace("\0", "")

    settings = [part for _ in range(rng.randint(1, 3)) for part in ("--set", f"{rng.choice(fields)}={word()}")]
    output = ["--output", str(lab.folder / "out")]
    return rng.choice(
        [
            ["doctor", "--quick", "--repo", str(lab.repository), "--model", "demo", *output, *settings],
            ["plan", "--model", "demo", *settings],
            ["plan", "--model", word(), rng.choice(["--context", "--tier", "--ram"]), word()],
            ["data", "--repo", rng.choice([str(lab.repository), word()]), "--out", str(lab.folder / "data"), *settings],
            ["train", "--auto", "--repo", word(), "--model", word(), *output, "--max-steps", word()],
            [rng.choice(["attach", "stop", "pause", "resume", "delete", "evaluate"]), word()],
            ["export", word(), "--to", word(), "--output", word()],
            ["generate", word(), rng.choice(["--temperature", "--seed", "--top-p"]), word(), "--prompt", "x"],
            ["runs"],
        ]
    )
