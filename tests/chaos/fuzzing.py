"""Thousands of odd inputs through `engine.cli.main`: an answer in time, with a documented exit code and no traceback.

A case is named by surface, seed and index, and made again from them: `python -m tests.chaos --replay NAME:SEED:INDEX`.
Workers are forks that run cases one after another, in one process; one that hangs or dies costs its own case only.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine import cli
from engine.runs.crash_log import FILE_NAME
from tests.chaos.lab import BrokenError, Lab, in_fork, wait_for

STATUSES = (0, 2, 3, 4, 130)
LONGEST_S = 10.0
"""Longest answer, less the time for which a busy machine let the process wait."""
_A_WORKER = 200
"""Cases in one process."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]")
_FRAME = re.compile(r'File "[^"]*/((?:engine|elite_tui)/[^"]+)", line \d+, in (\S+)')
_INTERNAL = re.compile(r"unexpected (\w+): [^\n]*; please report this with ")


@dataclass(frozen=True)
class Bench:
    """What cases are made from: a completed run, its model, its repository."""

    lab: Lab
    run: Path
    model: Path
    repository: Path

    @classmethod
    def of(cls, lab: Lab) -> Bench:
        """Trains the run."""
        config = lab.config("fuzzed", max_steps=4)
        lab.reference(config)
        (run,) = (Path(config.output.directory) / "runs").iterdir()
        return cls(lab, run, lab.model, lab.repository)


Make = Callable[[Bench, random.Random, Path], list[str]]
"""Plants what one case needs below an empty folder, and returns its command line."""


@dataclass
class Outcome:
    """What came of one case."""

    index: int
    status: int = 0
    fault: str = ""
    "Kind of fault and where it arose; empty where there is none."
    words: list[str] = field(default_factory=list)
    text: str = ""
    seconds: float = 0.0


class LateError(BaseException):
    """A case took too long."""


def fuzz(lab: Lab, count: int, surface: str, make: Make) -> dict[str, int]:
    """Runs so many cases of one surface.

    Raises:
        BrokenError: at the end, with each distinct fault and how to replay it.
    """
    bench = Bench.of(lab)
    faults: dict[str, list[Outcome]] = {}
    refused = 0
    for outcome in outcomes(bench, surface, make, lab.seed, range(count)):
        refused += outcome.status != 0
        if outcome.fault:
            faults.setdefault(outcome.fault, []).append(outcome)
            if len(faults[outcome.fault]) == 1:
                print(f"  {surface}:{lab.seed}:{outcome.index} {outcome.fault} {outcome.words} {outcome.text[-300:]!r}",
                      file=sys.stderr, flush=True)  # fmt: skip
    if faults:
        names = (f"{fault} ({len(found)}, {surface}:{lab.seed}:{found[0].index})" for fault, found in faults.items())
        raise BrokenError(f"of {count:,}: {'; '.join(names)}")
    return {"run": count, "refused": refused}


def outcomes(bench: Bench, surface: str, make: Make, seed: int, indices: range) -> Iterator[Outcome]:
    """Runs cases in workers, one worker at a time."""
    following = iter(range(indices.start, indices.stop, _A_WORKER))
    for start in following:
        chunk = list(range(start, min(start + _A_WORKER, indices.stop)))
        while chunk:
            for outcome in _in_worker(bench, surface, make, seed, list(chunk)):
                chunk.remove(outcome.index)
                yield outcome


def _in_worker(bench: Bench, surface: str, make: Make, seed: int, indices: list[int]) -> Iterator[Outcome]:
    """Outcomes of one worker, up to and including the case that ends it."""
    reading, writing = os.pipe()
    process = in_fork(lambda: _work(bench, surface, make, seed, indices, writing))
    os.close(writing)
    done = 0
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        rest = b""
        while True:
            own = _own_seconds(process)
            if not select.select([pipe], [], [], 3 * LONGEST_S)[0]:
                if _own_seconds(process) - own < 2 * LONGEST_S:
                    continue
                yield Outcome(indices[done], -signal.SIGKILL, "hang that no signal ends", text=_stack(bench, process))
                wait_for(process, 0.0)
                return
            data = pipe.read(1 << 16)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield Outcome(**json.loads(line))
                done += 1
    status = wait_for(process)
    if done < len(indices):
        yield Outcome(indices[done], status, f"the process died with {status}")


def _stack(bench: Bench, process: int) -> str:
    """Where a process hangs."""
    os.kill(process, signal.SIGUSR2)
    time.sleep(1.0)
    return (bench.lab.folder / "stack").read_text(errors="replace")[:2000]


def _work(bench: Bench, surface: str, make: Make, seed: int, indices: list[int], pipe: int) -> None:
    # What a case writes by mistake must not fill the disk or the memory of the machine.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    settle(bench.lab)
    faulthandler.cancel_dump_traceback_later()  # its limit is for one attempt at a run
    stack = (bench.lab.folder / "stack").open("w")
    faulthandler.register(signal.SIGUSR2, stack, all_threads=True)
    for index in indices:
        folder = bench.lab.folder / "case"
        _remove(folder)
        line = json.dumps(asdict(run_case(bench, surface, make, seed, index, folder))) + "\n"
        while line:
            line = line[os.write(pipe, line.encode()) :]


def settle(lab: Lab) -> None:
    """Keeps a process to its lab: caches, state, no network, no terminal."""
    home = lab.folder / "home"
    home.mkdir(exist_ok=True)
    os.environ.update(HOME=str(home), XDG_CACHE_HOME=str(home), HF_HOME=str(home), HF_HUB_OFFLINE="1", COLUMNS="200")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def run_case(bench: Bench, surface: str, make: Make, seed: int, index: int, folder: Path) -> Outcome:
    """Makes one case in a new folder and runs its command line in this process."""
    folder.mkdir()
    os.chdir(folder)
    words = make(bench, random.Random(f"{surface}:{seed}:{index}"), folder)
    log = bench.lab.folder / "state" / FILE_NAME
    log.unlink(missing_ok=True)
    outcome = Outcome(index, words=[word[:120] for word in words])
    before = _contents(folder)
    began = time.monotonic()
    with _captured(bench.lab.folder / "stdout", bench.lab.folder / "stderr") as texts:
        outcome.status = _status(words)
    outcome.seconds = time.monotonic() - began
    out, err = texts
    outcome.text = err[-2000:] or out[-2000:]
    if log.exists():
        outcome.text += log.read_text(errors="replace")[-3000:]
    outcome.fault = _fault(words, outcome.status, out, err, log)
    if not outcome.fault and words[0] != "delete":
        after = _contents(folder)
        changed = sorted(name for name, content in before.items() if after.get(name) != content)
        outcome.fault = f"{words[0]} changed {', '.join(changed[:3])}" if changed else ""
    return outcome


_REWRITTEN = re.compile(r"(^|/)(evaluation\.json|report\.md|charts/[^/]+)$")
"""What `engine evaluate` writes again."""


def _contents(folder: Path) -> dict[str, Any]:
    """What each file of a case is: its content, or its kind where it is no regular file."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_dir() or _REWRITTEN.search(name):
            continue
        is_file = path.is_file() and not path.is_symlink()
        found[name] = zlib.crc32(path.read_bytes()) if is_file else path.lstat().st_mode
    return found


def _status(words: list[str]) -> int:
    began = _own_seconds(os.getpid())

    def late(*_: object) -> None:
        if _own_seconds(os.getpid()) - began > LONGEST_S:
            raise LateError

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S, 1.0)
    try:
        return cli.main(words)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _own_seconds(process: int) -> float:
    """Seconds on a clock that stands still while a process could run and another one runs in its place."""
    try:
        waited = int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        waited = 0.0
    return time.monotonic() - waited


@contextlib.contextmanager
def _captured(*paths: Path) -> Iterator[list[str]]:
    """Sends what this process prints, libraries in C included, to files; their texts are there at the end."""
    texts: list[str] = []
    kept = [os.dup(number) for number in (1, 2)]
    files = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600) for path in paths]
    streams = []
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(file, number)
        raw = io.FileIO(number, "w", closefd=False)
        streams.append(io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", write_through=True))
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            yield texts
    finally:
        for number, stream, former, file, path in zip((1, 2), streams, kept, files, paths, strict=True):
            with contextlib.suppress(OSError):
                stream.flush()
            os.dup2(former, number)
            os.close(former)
            os.close(file)
            texts.append(path.read_text(encoding="utf-8", errors="replace"))


def _fault(words: list[str], status: int, out: str, err: str, log: Path) -> str:
    """What is wrong with an answer; "" where nothing is."""
    crash = log.read_text(errors="replace") if log.exists() else ""
    frames = _FRAME.findall(crash or err)
    where = " in ".join(frames[-1][::-1]) if frames else "an unknown place"
    if "LateError" in crash:
        return f"hang: {where}"
    if found := _INTERNAL.search(err):
        return f"internal {found[1]}: {where}"
    if "Traceback (most recent call last)" in out + err:
        return f"traceback: {where}"
    if status not in STATUSES:
        return f"exit code {status}"
    if escape := _CONTROL.search(out + err):
        return f"control character {escape[0]!r}"
    if status and not (out.strip() or err.strip()):
        return f"exit code {status} without a word"
    return _bad_document(words, status, out, err)


def _bad_document(words: list[str], status: int, out: str, err: str) -> str:
    """With --json, stdout is JSON alone: a document or, for events, one a line."""
    options = words[: words.index("--")] if "--" in words else words
    if "--json" not in options:
        return ""
    try:
        json.loads(out)
    except ValueError:
        try:
            for line in out.splitlines():
                json.loads(line)
        except ValueError:
            return f"no JSON on stdout of {words[0]}"
    return "" if out.strip() or words[0] in ("train", "attach") else f"nothing on stdout of {words[0]} with --json"


def _remove(folder: Path) -> None:
    if folder.exists():
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder)


def replay(lab: Lab, make: Make, name: str) -> dict[str, Any]:
    """Runs one case again, in a process of its own, and leaves its folder."""
    surface, seed, index = name.rsplit(":", 2)
    bench = Bench.of(lab)
    (outcome,) = outcomes(bench, surface, make, int(seed), range(int(index), int(index) + 1))
    log = lab.folder / "state" / FILE_NAME
    return {**asdict(outcome), "folder": str(lab.folder / "case"), "log": log.read_text() if log.exists() else ""}
