"""Does long context pay? Held-out perplexity by window length and order, and standard LoRA against our recipe.

    python benchmarks/long_context.py --json benchmarks/results/long_context.json          (one GPU, minutes)
    python benchmarks/long_context.py --small                                              (a CPU, to see that it works)

Packages that neither the model nor the training has seen are scored whole, each of their tokens in windows of several
lengths: with their files in the order of their imports, sorted by path, and each file alone. Then three runs on the
same training code cost the same arithmetic: LoRA on single files in short windows; on repositories in import order in
short windows, to tell what the order does from what the window does; and our recipe, import order in windows that the
curriculum grows to the long one. All adapters and the base model are scored on those packages. With --own the runs
train on four fifths of the packages' own files, and the last fifth is scored: what somebody sees who fine-tunes a model
on a repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from msgspec.structs import replace

from engine.config import DataSection, ModelSection, RunConfig, from_mapping
from engine.data.dataset import build_dataset
from engine.evaluation.ablation import Variation, measure
from engine.evaluation.held_out import HeldOut
from engine.evaluation.tally import LossTally, overall, tally_losses
from engine.models.base_changes import BaseChanges
from engine.models.catalogue import find_model
from engine.models.fine_tuning import AdapterTuning
from engine.models.loading import load_model, load_tokenizer
from engine.models.placement import choose_placement, device_name
from engine.models.spec import ModelSpec
from engine.plan.stream_plan import StreamPlan
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import WholeSequenceStep

ORDERS = {
    "imports": {"order": "imports", "documents": "repository"},
    "path": {"order": "path", "documents": "repository"},
    "files alone": {"order": "path", "documents": "file"},
}
STREAM_FROM = 16_384
"""Windows of this length and longer are scored tile by tile."""


@dataclasses.dataclass(frozen=True)
class Scale:
    contexts: tuple[int, ...]
    packages: tuple[str, ...]
    tokens: int
    "Of a package that are scored."
    short: int
    long: int
    "Windows of the two runs."
    steps: int
    "Updates of the run with short windows."
    orders: tuple[str, ...] = tuple(ORDERS)


class TrainerComponents(NamedTuple):
    train: Path
    scored: Path


FULL = Scale((2048, 8192, 32_768, 131_072), ("rich", "peft", "accelerate"), 140_000, 2048, 32_768, 160)
SMALL = Scale((256, 1024), ("json", "wsgiref", "dbm"), 5000, 256, 1024, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="two short contexts, little text: a minute on a CPU")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--package", action="append", default=[], help="folder or installed package to score")
    parser.add_argument("--train", action="append", default=[], help="folder to train on (this project's source)")
    parser.add_argument(
        "--own", action="store_true", help="train on the packages themselves, and score every fifth file"
    )
    parser.add_argument("--context", type=int, action="append", default=[], help="window to score in, instead of all")
    parser.add_argument("--order", choices=tuple(ORDERS), action="append", default=[], help="of files, instead of all")
    parser.add_argument("--tokens", type=int, help="of a package that are scored")
    parser.add_argument("--steps", type=int, help="updates of the run with short windows")
    parser.add_argument("--long", type=int, help="window of the other run")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--no-training", action="store_true", help="score the base model only")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    scale = SMALL if given.small else FULL
    scale = dataclasses.replace(
        scale,
        contexts=tuple(given.context) or scale.contexts,
        orders=tuple(given.order) or scale.orders,
        tokens=given.tokens or scale.tokens,
    )
    packages = [folder_of(name) for name in given.package or scale.packages]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="elite-long-context-") as folder:
        bench = Bench(given.model, given.device, Path(folder), scale, own=given.own)
        adapters: dict[str, Path | None] = {"base": None}
        trained: list[dict[str, Any]] = []
        if not given.no_training:
            own = [str(bench.parts(package).train) for package in packages] if given.own else []
            sources = own + given.train or [str(Path(__file__).parents[1] / "engine")]
            steps, long = given.steps or scale.steps, given.long or scale.long
            for name, config in bench.recipes(sources, steps, long, given.learning_rate):
                print(f"training: {name}", flush=True)
                outcome = measure(Variation(id=name, on=True, seed=0, config=config))
                if outcome.problem:
                    raise SystemExit(f"{name}: {outcome.problem}")
                adapters[name] = bench.output / "runs" / outcome.run / "adapter"
                cost = outcome.tokens * flops_per_token(bench.spec, config.training.context or 0)
                trained.append({"name": name, "tokens": outcome.tokens, "steps": outcome.steps, "flops": cost,
                                "seconds": outcome.seconds, "context": config.training.context})  # fmt: skip
        rows = list(bench.score(packages, adapters))
    result = {
        "command": shlex.join(["python", "benchmarks/long_context.py", *(Path(part).name for part in sys.argv[1:])]),
        "model": given.model,
        "device": device_name(bench.placement.device),
        "precision": bench.placement.precision,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "python": platform.python_version()},
        "packages": [path.name for path in packages],
        "seconds": round(time.monotonic() - began, 1),
        "trained": trained,
        "rows": rows,
    }  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_tables(result, list(adapters), scale)


def folder_of(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name).resolve()
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{name} is neither a folder nor an installed package")
    return Path(next(iter(found.submodule_search_locations)))


def flops_per_token(spec: ModelSpec, context: int) -> float:
    """Of training: 6 a parameter (forward and backward), and attention to half of the window on average."""
    return 6 * spec.parameters + 6 * spec.layers * spec.heads * spec.head_dim * context


class Bench:
    def __init__(self, model: str, device: str, folder: Path, scale: Scale, *, own: bool) -> None:
        self.spec = find_model(model)
        self.placement = choose_placement(device, "auto")
        self.folder, self.output, self._scale, self._own = folder, folder / "out", scale, own
        self._tokenizer = load_tokenizer(self.spec)

    def recipes(self, sources: list[str], steps: int, long: int, rate: float) -> Iterator[tuple[str, RunConfig]]:
        short = self._scale.short
        update = 4 * short
        budget = steps * update * flops_per_token(self.spec, short)
        long_steps = max(1, round(budget / (long * flops_per_token(self.spec, long))))
        common = {
            "model": {"name": self.spec.name, "device": self.placement.device.type},
            "output": {"directory": str(self.output)},
        }
        training = {"learning_rate": rate, "epochs": 1000.0, "evaluate_tokens": 8192}
        yield "standard LoRA", from_mapping({
            **common,
            "data": {"repositories": sources, "fim": 0.0, **ORDERS["files alone"]},
            "training": {**training, "context": short, "tokens_per_update": update, "max_steps": steps},
        })  # fmt: skip
        yield "repository order", from_mapping({
            **common,
            "data": {"repositories": sources, "fim": 0.0, **ORDERS["imports"]},
            "training": {**training, "context": short, "tokens_per_update": update, "max_steps": steps},
        })  # fmt: skip
        yield "our recipe", from_mapping({
            **common,
            "data": {"repositories": sources, "fim": 0.0, **ORDERS["imports"]},
            "training": {**training, "context": long, "tokens_per_update": long, "max_steps": long_steps,
                         "curriculum": True},
        })  # fmt: skip

    def score(self, packages: list[Path], adapters: dict[str, Path | None]) -> Iterator[dict[str, Any]]:
        """One row a package, context, order and model."""
        for context in self._scale.contexts:
            for name, adapter in adapters.items():
                model = self._load(context, adapter)
                step = self._step(model, context)
                for package in packages:
                    for order in self._scale.orders:
                        data = ORDERS[order]
                        held_out = self._held_out(package, data, context)
                        tally = tally_losses(step.token_scores, held_out, max_tokens=1 << 40, progress=quiet)
                        row = overall(tally, LossTally(tally.sums, tally.counts))
                        yield {"model": name, "package": package.name, "context": context, "order": order,
                               "loss": math.log(row.base), "tokens": row.tokens, "files": row.files}  # fmt: skip
                        print(f"{context:>8,} {name:<17} {package.name:<12} {order:<12} {row.base:8.3f}", flush=True)
                step.close()
                del model, step
                if self.placement.device.type == "cuda":
                    torch.cuda.empty_cache()

    def _load(self, context: int, adapter: Path | None) -> Any:
        from peft import LoraConfig, PeftModel, get_peft_model

        changes = BaseChanges.of(ModelSection(name=self.spec.name), self.spec, context)
        model = load_model(self.spec, self.placement, changes)
        if adapter is None:
            return get_peft_model(model, LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
        return PeftModel.from_pretrained(model, adapter, torch_device=str(self.placement.device)).eval()

    def _step(self, model: Any, context: int) -> WholeSequenceStep | StreamedWindows:
        if context < STREAM_FROM:
            return WholeSequenceStep(model, recompute=False)
        return StreamedWindows(
            AdapterTuning(model), StreamPlan(tile=8192), device=self.placement.device, spill_directory=self.folder
        )

    def _held_out(self, package: Path, data: dict[str, str], context: int) -> HeldOut:
        section = from_mapping({"data": {"repositories": [str(self.parts(package).scored)], **data}}).data
        section = replace(section, near_duplicates="keep", licence_headers="keep", fim=0.0)
        dataset = build_dataset(section, tokenizer=self._tokenizer, context=context, cache=self.folder / "cache")
        return HeldOut.whole(dataset, context, together=DataSection().packing)

    def parts(self, package: Path) -> TrainerComponents:
        """Copies of a package's files: what is scored (as many as make the tokens), and what may be trained on."""
        parts = TrainerComponents(self.folder / "train" / package.name, self.folder / "packages" / package.name)
        if parts.scored.exists():
            return parts
        left = self._scale.tokens
        files = [path for path in sorted(package.rglob("*.py")) if path.read_text("utf-8", "replace").strip()]
        for index, path in enumerate(files):
            text = path.read_text(encoding="utf-8", errors="replace")
            if self._own and index % 5:
                copy(text, parts.train / path.relative_to(package))
                continue
            count = len(self._tokenizer(text)["input_ids"])
            if count <= left:
                left -= count
                copy(text, parts.scored / path.relative_to(package))
        return parts


def copy(text: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")


def quiet(done: int, total: int, what: str) -> None:
    pass


def print_tables(result: dict[str, Any], models: list[str], scale: Scale) -> None:
    """Perplexity over all packages, each token the same."""
    rows = result["rows"]

    def perplexity(**wanted: Any) -> str:
        found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
        return f"{math.exp(sum(r['loss'] * r['tokens'] for r in found) / sum(r['tokens'] for r in found)):10.3f}"

    print(
        f"\n{result['model']} on {result['device']}, {', '.join(result['packages'])}; {result['seconds']:.0f} s in all"
    )
    for run in result["trained"]:
        print(f"  {run['name']}: windows of {run['context']:,}, {run['steps']} updates, {run['tokens']:,} tokens, "
              f"{run['flops']:.3g} FLOP, {run['seconds']:.0f} s")  # fmt: skip
    print("\nperplexity        order       " + "".join(f"{context:>10,}" for context in scale.contexts))
    for model in models:
        for order in scale.orders:
            cells = "".join(perplexity(model=model, order=order, context=context) for context in scale.contexts)
            print(f"{model:<17} {order:<12}{cells}")
    order = scale.orders[0]
    print(f"\nby package; order of files: {order}")
    for package in result["packages"]:
        for model in models:
            cells = "".join(
                perplexity(model=model, order=order, context=context, package=package) for context in scale.contexts
            )
            print(f"{package:<12} {model:<17}{cells}")


if __name__ == "__main__":
    main()
