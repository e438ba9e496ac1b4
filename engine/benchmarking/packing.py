"""Measures the gain of packing: targets a second of packed windows, padded rows and single documents."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.assets import asset
from engine.benchmarking.machine import describe_machine
from engine.benchmarking.streaming import synchronize
from engine.config import DataSection, LoraSection
from engine.data.dataset import build_dataset
from engine.data.windows import Window, Windows
from engine.models.adapter import attach_adapter
from engine.models.fused import fuse_kernels
from engine.models.lm_head import split_head, summed_cross_entropy
from engine.models.loading import load_model
from engine.models.placement import Placement
from engine.models.random import random_model
from engine.models.spec import ModelSpec
from engine.steps.whole_step import WholeSequenceStep
from engine.streaming.loss import IGNORED

_SAMPLE = 4
"Number of windows, or rows, that are timed in each layout."


class _Silent:
    def progress(self, stage: str, done: int, total: int, *, layer: int | None = None, tile: int | None = None) -> None:
        """Does nothing."""

    def stop_requested(self) -> bool:
        return False


def measure_packing(
    spec: ModelSpec,
    contexts: Sequence[int],
    placement: Placement,
    repository: Path,
    *,
    repeats: int = 1,
    rank: int = 16,
    fused: bool = True,
    notify: Callable[[dict[str, Any]], None] = lambda _row: None,
) -> dict[str, Any]:
    """Times steps (forward, loss, backward, adapter gradients) over a repository's files, each file a document.

    Three layouts give the same gradient: packed windows; one row per document, padded to the context; one row per
    document of its own length. A target is a predicted token of a document, so padding does not count.

    Args:
        spec: The model; weights are random, except for the demo model's.
        contexts: Tokens per window, each measured.
        placement: Device and storage of the weights.
        repository: Folder whose files are the documents.
        repeats: Number of runs of each sample; the fastest counts.
        rank: Rank of the adapter.
        fused: Whether to use fused kernels where available.
        notify: Called with each context's row once it is measured.

    Raises:
        EliteError: REPOSITORY_*, MODEL_*.
    """
    device = placement.device
    base = load_model(spec, placement) if spec.name == "demo" else random_model(spec, placement)
    fused = fused and fuse_kernels(base, device)
    model = attach_adapter(base, LoraSection(rank=rank), seed=0).train()
    step = WholeSequenceStep(model, recompute=device.type == "cuda")
    data = DataSection(repositories=[str(repository)], documents="file", fim=0.0)
    with tempfile.TemporaryDirectory() as cache:
        dataset = build_dataset(data, tokenizer=_demo_tokenizer(), context=contexts[0], cache=Path(cache))
        rows = []
        for context in contexts:
            rows.append(_measure(step, model, dataset.train.with_context(context), device, repeats))
            notify(rows[-1])
    return {
        "kind": "packing",
        "model": spec.name,
        "precision": placement.precision,
        "repository_files": len(dataset.summary.files),
        "repository_tokens": dataset.summary.tokens,
        "fused_kernels": fused,
        "rank": rank,
        "threads": torch.get_num_threads(),
        "rows": rows,
        **describe_machine(device),
    }


def _demo_tokenizer() -> Any:
    """Loads the demo model's tokenizer: other models have random weights, so their token ids need no meaning."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(asset("demo-model", "tokenizer.json")))


def _measure(
    step: WholeSequenceStep, model: Any, windows: Windows, device: torch.device, repeats: int
) -> dict[str, Any]:
    context = windows.context
    # Spread over all windows, so that both large files and the short ones that fill gaps are sampled.
    sample = [windows[index * len(windows) // _SAMPLE] for index in range(min(_SAMPLE, len(windows)))]
    parts = [part for window in sample for part in _parts(window)]
    each = parts[:: max(1, len(parts) // (2 * _SAMPLE))]

    def run_whole(rows: Sequence[Window]) -> Callable[[], object]:
        return lambda: step.run(rows, 1e-6, _Silent())

    packed = _seconds(run_whole(sample), device, repeats)
    alone = _seconds(run_whole(each), device, repeats)
    padded_row = _seconds(lambda: _run_padded(model, parts[0], context), device, repeats)
    mean_targets = sum(part.targets for part in parts) / len(parts)
    return {
        "context": context,
        "windows": len(windows),
        "documents": windows.figures.documents,
        "empty_packed": windows.figures.waste,
        "empty_padded": windows.figures.padded(context),
        "packed_per_second": sum(window.targets for window in sample) / packed,
        "padded_per_second": mean_targets / padded_row,
        "alone_per_second": sum(part.targets for part in each) / alone,
    }


def _parts(window: Window) -> list[Window]:
    """Splits a window into one window per document."""
    stops = (*window.starts[1:], len(window))
    return [Window(window.ids[start:stop]) for start, stop in zip(window.starts, stops, strict=True)]


def _run_padded(model: Any, document: Window, context: int) -> None:
    """Runs one step over a row padded to the context. Causal attention never reads the padding that follows."""
    base = model.get_base_model()
    decoder, head = split_head(base)
    ids = torch.zeros(context, dtype=torch.long, device=base.device)
    targets = torch.full((context,), IGNORED, device=base.device)
    ids[: len(document)] = torch.as_tensor(document.ids)
    targets[: document.targets] = ids[1 : len(document)]
    hidden = decoder(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    (summed_cross_entropy(hidden, head, targets) * 1e-6).backward()


def _seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Returns the fastest time of `work` in seconds, after one warm-up.

    On a single CPU thread this is CPU time, which excludes other work on the machine.
    """
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    work()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        began = clock()
        work()
        synchronize(device)
        seconds.append(clock() - began)
    return min(seconds)
