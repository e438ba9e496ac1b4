"""Runs of benchmarks/evidence_gpu.py in one of its processes: trains an adapter, scores it, and completes with it."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from pathlib import Path
from typing import Any

SCORED_CONTEXT = 8192
SCORED_TOKENS = 65_536
SCORING_BYTES = 2 << 30
"Of a process's share of the card, for the model that scores and its context."


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

        setup.take_inventory = inventory  # type: ignore[attr-defined]
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

        fine_tune.updates_of = shuffled if job.mixed else planned  # type: ignore[attr-defined]
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
        guessed, _ = mark_guesses(first.guesses, then.guesses, held_out, self._encoder)
        found: dict[str, Any] = {
            "perplexity": dataclasses.asdict(overall(first, then)),
            "guessed": [dataclasses.asdict(task) for task in guessed],
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
