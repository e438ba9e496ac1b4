"""Trains with two GPUs as a user would, through `engine train --gpus 2`, and compares with one GPU.

    python benchmarks/front_door_gpus.py OUT.json [--minutes 4] [--only CASE ...]
    python benchmarks/front_door_gpus.py OUT.json --device cpu       the same with ranks on the CPU

The embedded demo model and a small repository made of the standard library. Cases:

| case | what must hold |
|---|---|
| alone, alone whole | one GPU, streamed and whole windows: what the others are compared with |
| data, ring, ulysses, zero2, zero3 | the losses of one GPU; a monitor row for each rank, each with a GPU of its own |
| auto | no setting but --gpus all: ends in order |
| refused | --gpus of one GPU more than there are: exit code 3, one line |
| kill data, kill ring | rank 1 killed within a run: exit code 4, `rank-died` names it, and the run resumes on one GPU |
| 2 to 1, 1 to 2 | a run stopped on so many GPUs goes on with so many, with the losses of one GPU |

Every case is written to OUT.json as soon as it ends. Losses are compared in fp32, without TF32.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

SOURCES = ("queue.py", "threading.py", "subprocess.py", "selectors.py", "sched.py", "socketserver.py")
EXACT = 2e-4
"""Largest relative difference of a loss: fp32 sums in another order, over a few updates."""


class Call:
    """`engine train --json` as a process, with its events as they come."""

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str], limit: float) -> None:
        self.events: list[dict[str, Any]] = []
        self._seen = threading.Condition()
        self._until = time.monotonic() + limit
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the process has ended
        self.process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=self._stderr, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._seen, contextlib.suppress(ValueError):
                self.events.append(json.loads(line))
                self._seen.notify_all()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Events of a kind so far."""
        return [event for event in self.events if event["kind"] == kind]

    def wait_for(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The first event of a kind with these fields.

        Raises:
            RuntimeError: the process ended, or it takes too long.
        """
        while True:
            with self._seen:
                found = [e for e in self.of(kind) if all(e.get(name) == value for name, value in fields.items())]
                if found:
                    return found[0]
                self._seen.wait(0.2)
            ended = self.process.poll() is not None and not self._reader.is_alive()
            if ended or time.monotonic() > self._until:
                raise RuntimeError(f"no {kind} {fields or ''} came: {self.last()}")

    def finish(self) -> int:
        """The exit code; 124 where it took too long and was ended."""
        try:
            code = self.process.wait(max(1.0, self._until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            self.process.kill()
            code = 124
        self._reader.join(5)
        return code

    @property
    def error(self) -> str:
        """What it wrote to stderr."""
        self._stderr.seek(0)
        return self._stderr.read()[-2000:]

    def last(self) -> str:
        """Its last event and error, for a report."""
        return f"{json.dumps(self.events[-1:])[:600]} {self.error[-400:]}"

    @property
    def losses(self) -> dict[int, float]:
        """By update."""
        return {event["step"]: event["loss"] for event in self.of("StepCompleted")}


class FrontDoor:
    """The cases, over one folder."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.cpu = args.device == "cpu"
        self.folder, self.deadline = folder, time.monotonic() + 60 * args.minutes
        self.steps = 6 if self.cpu else 24
        self.context = 256 if self.cpu else 1024
        self.repository = folder / "repository"
        self.repository.mkdir()
        for name in SOURCES[:3] if self.cpu else SOURCES:
            text = (Path(sysconfig.get_path("stdlib")) / name).read_text(encoding="utf-8")
            (self.repository / name).write_text(text, encoding="utf-8")
        self.alone: dict[str, dict[int, float]] = {}

    def train(self, name: str, *more: str, steps: int | None = None, resume: bool = False, card: str = "") -> Call:
        """Starts a run in the output folder of its name, or goes on with the one there."""
        words = [sys.executable, "-m", "engine", "train", "--json", *more]
        output = self.folder / name.replace(" ", "-")
        if resume:
            words += ["--resume", str(self.run_of(name))]
        else:
            settings = {
                "training.context": self.context,
                "training.tokens_per_update": 4 * self.context,
                "training.evaluate_tokens": 2 * self.context,
                "training.epochs": 400,
                "model.device": "cpu" if self.cpu else "cuda",
                "model.precision": "fp32",
                "training.memory_tuning": "false",
                "evaluation.at_end": "false",
            }
            words += ["--repo", str(self.repository), "--output", str(output), "--model", "demo"]
            words += ["--max-steps", str(steps or self.steps)]
            given = {word.partition("=")[0] for word in more}
            for key, value in settings.items():
                if key not in given:
                    words += ["--set", f"{key}={value}"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "ELITE_TUI_STATE_DIR": str(self.folder / "state"),
            "NCCL_NVLS_ENABLE": "0",
        }
        if card and not self.cpu:
            environment["CUDA_VISIBLE_DEVICES"] = card
        if self.cpu:
            environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        return Call(words, self.folder, environment, max(5.0, self.deadline - time.monotonic()))

    def run_of(self, name: str) -> Path:
        """The run directory of a case."""
        (found,) = (self.folder / name.replace(" ", "-") / "runs").iterdir()
        return found

    # --- cases ------------------------------------------------------------------------------------------------

    def one(self, name: str, step: str, card: str) -> dict[str, Any]:
        """One GPU."""
        call = self.train(name, "--set", f"training.step={step}", card=card)
        row = {"exit": call.finish()}
        self.alone[step] = call.losses
        return self.judge(row, call, {"ended": row["exit"] == 0, "all updates": len(call.losses) == self.steps})

    def strategy(self, name: str) -> dict[str, Any]:
        """Two GPUs against one."""
        step = "whole" if name.startswith("zero") else "streamed"
        call = self.train(
            name, "--gpus", "2", "--set", f"distributed.strategy={name}", "--set", f"training.step={step}"
        )
        row: dict[str, Any] = {"exit": call.finish()}
        row |= self.rank_rows(name)
        row["difference"] = difference(call.losses, self.alone[step])
        holds = {
            "ended": row["exit"] == 0,
            "all updates": len(call.losses) == self.steps,
            "losses of one GPU": row["difference"] < EXACT,
            "two rank rows": len(row["ranks"]) == 2,
            "a GPU each": self.cpu or len({rank["device"] for rank in row["ranks"]}) == 2,
        }
        return self.judge(row, call, holds)

    def auto(self) -> dict[str, Any]:
        """What a user types who knows no setting."""
        free = ["--set", "training.memory_tuning=true", "--set", "model.precision=auto", "--gpus", "all"]
        call = self.train("auto", *(free if not self.cpu else [*free[:4], "--gpus", "2"]))
        row: dict[str, Any] = {"exit": call.finish()}
        row |= self.rank_rows("auto")
        losses = list(call.losses.values())
        holds = {"ended": row["exit"] == 0, "two rank rows": len(row["ranks"]) == 2}
        return self.judge(row | {"losses": [losses[0], losses[-1]] if losses else []}, call, holds)

    def refused(self) -> dict[str, Any]:
        """More GPUs than there are."""
        call = self.train("refused", "--gpus", "17")
        row: dict[str, Any] = {"exit": call.finish()}
        row["said"] = call.error.strip()
        holds = {
            "exit code 3": row["exit"] == 3,
            "one line": row["said"].count("\n") == 0,
            "why": "17 GPUs" in row["said"],
        }
        return self.judge(row, call, holds)

    def kill(self, name: str, strategy: str) -> dict[str, Any]:
        """Rank 1 is killed in the middle; the run goes on with one GPU."""
        settings = ["--set", f"distributed.strategy={strategy}", "--set", "training.step=streamed"]
        call = self.train(name, "--gpus", "2", *settings, steps=2000)
        call.wait_for("StepCompleted", step=3)
        pid = call.wait_for("RankReported", rank=1)["pid"]
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        row: dict[str, Any] = {"exit": call.finish(), "seconds_to_end": time.monotonic() - began}
        end = call.events[-1]
        row |= {"error": end.get("error"), "message": end.get("message")}
        saved = [event["step"] for event in call.of("CheckpointSaved")]
        row["saved_step"], done = max(saved, default=None), max(call.losses, default=0)
        again = self.train(name, "--gpus", "1", "--max-steps", str(done + 3), resume=True, card="0")
        row["resumed_exit"] = again.finish()
        first = [event["first_step"] for event in again.of("RunStarted")]
        row["resumed_from"] = first[-1] if first else None
        holds = {
            "exit code 4": row["exit"] == 4,
            "rank-died": row["error"] == "rank-died" and "rank 1 of 2 was ended by SIGKILL" in str(row["message"]),
            "resumable": row["resumed_exit"] == 0 and row["resumed_from"] == row["saved_step"] is not None,
        }
        return self.judge(row, again if row["resumed_exit"] else call, holds)

    def move(self, name: str, first: int, then: int) -> dict[str, Any]:
        """A run that was stopped goes on with another number of GPUs."""
        settings = ["--set", "distributed.strategy=data", "--set", "training.step=streamed"]
        call = self.train(name, "--gpus", str(first), *settings, card="0" if first == 1 else "")
        call.wait_for("StepCompleted", step=2)
        call.process.send_signal(signal.SIGINT)
        row: dict[str, Any] = {"exit": call.finish()}
        again = self.train(name, "--gpus", str(then), resume=True, card="0" if then == 1 else "")
        row["resumed_exit"] = again.finish()
        started = [event["first_step"] for event in again.of("RunStarted")]
        row["resumed_from"] = started[-1] if started else None
        row["difference"] = difference({**call.losses, **again.losses}, self.alone["streamed"])
        holds = {
            "stopped in order": row["exit"] == 130,
            "went on": row["resumed_exit"] == 0 and bool(row["resumed_from"]),
            "losses of one GPU": row["difference"] < EXACT,
        }
        return self.judge(row, again, holds)

    def rank_rows(self, name: str) -> dict[str, Any]:
        """What the monitor shows of each rank, from the journal."""
        from elite_tui.runs.view import RunView
        from engine.runs.journal import JournalReader

        view = RunView()
        for envelope in JournalReader(self.run_of(name) / "events.jsonl").poll():
            view.apply(envelope)
        rows = [
            {
                field: getattr(rank, field)
                for field in ("rank", "device", "seconds", "waited_seconds", "gpu_peak", "host_used")
            }
            for _, rank in sorted(view.ranks.items())
        ]
        return {"ranks": rows}

    @staticmethod
    def judge(row: dict[str, Any], call: Call, holds: dict[str, bool]) -> dict[str, Any]:
        """The row with what holds and, where something does not, the end of the run."""
        row |= {"holds": holds, "ok": all(holds.values())}
        if not row["ok"]:
            row["last"] = call.last()
        return row


def difference(losses: dict[int, float], alone: dict[int, float]) -> float:
    """Largest relative difference, over the updates of one GPU."""
    if not alone or set(losses) != set(alone):
        return float("inf")
    return max(abs(losses[step] / alone[step] - 1) for step in alone)


def cases(door: FrontDoor) -> dict[str, Callable[[], dict[str, Any]]]:
    """By name. The first two are what the others are compared with."""
    zero = ("zero2", "zero3") if importlib.util.find_spec("deepspeed") else ()
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "alone": lambda: door.one("alone", "streamed", "0"),
        "alone whole": lambda: door.one("alone whole", "whole", "1"),
    }
    for name in ("data", "ring", "ulysses"):
        found[name] = lambda name=name: door.strategy(name)
    found |= {
        "kill ring": lambda: door.kill("kill ring", "ring"),
        "kill data": lambda: door.kill("kill data", "data"),
        "2 to 1": lambda: door.move("2 to 1", 2, 1),
        "1 to 2": lambda: door.move("1 to 2", 1, 2),
        "auto": door.auto,
        "refused": door.refused,
    }
    for name in zero:  # last: on a CPU DeepSpeed compiles at its first use
        found[name] = lambda name=name: door.strategy(name)
    if door.cpu:
        del found["refused"]  # without a GPU any number of ranks is taken
    return found


def versions() -> dict[str, str]:
    """Of what matters here."""
    import importlib.metadata

    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "peft", "accelerate", "deepspeed"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def table(rows: dict[str, dict[str, Any]]) -> str:
    """What a person reads, last."""
    lines = [
        "| case | ok | exit | largest difference of a loss | seconds | ranks: GPU, s an update, waited | remarks |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        apart = f"{row['difference']:.1e}" if "difference" in row else ""
        ranks = "; ".join(
            f"{rank['rank']}: {rank['device']}, {rank['seconds']:.3f}, {rank['waited_seconds']:.2f}"
            for rank in row.get("ranks", [])
        )
        failed = [what for what, holds in row.get("holds", {}).items() if not holds]
        remarks = "NOT " + ", ".join(failed) if failed else row.get("message") or row.get("said") or ""
        if "resumed_from" in row:
            remarks += f" (resumed from step {row['resumed_from']}, exit {row['resumed_exit']})"
        verdict = "yes" if row["ok"] else "NO"
        code = row.get("exit", "")
        lines.append(f"| {name} | {verdict} | {code} | {apart} | {row['seconds']:.0f} | {ranks} | {remarks} |")
    lines += [f"{name}: {row['last']}" for name, row in rows.items() if "last" in row]
    return "\n".join(lines)


def main() -> int:
    """Runs the cases, some at a time, and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=4.5)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--at-once", type=int, default=0, help="cases beside each other; 0 is 3 on GPUs, 1 on a CPU")
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    lock = threading.Lock()

    def keep(name: str, case: Callable[[], dict[str, Any]]) -> None:
        began = time.monotonic()
        try:
            row = case()
        except Exception as error:  # the other cases go on
            row = {"ok": False, "last": f"{type(error).__name__}: {error}"[:1500]}
        row["seconds"] = time.monotonic() - began
        with lock:
            rows[name] = row
            print(f"{name}: {'ok' if row['ok'] else 'FAILED'} after {row['seconds']:.0f} s", flush=True)
            result = {"command": "python benchmarks/front_door_gpus.py " + " ".join(sys.argv[1:])}
            text = json.dumps({**result, "device": args.device, "versions": versions(), "cases": rows}, indent=1)
            args.out.write_text(text)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        door = FrontDoor(args, Path(folder))
        found = cases(door)
        wanted = [name for name in found if not args.only or name in args.only]
        at_once = args.at_once or (1 if door.cpu else 3)
        for group in (["alone", "alone whole"], [name for name in wanted if not name.startswith("alone")]):
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(lambda name: keep(name, found[name]), group))
    print(table({name: rows[name] for name in found if name in rows}))
    return 0 if all(row["ok"] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
