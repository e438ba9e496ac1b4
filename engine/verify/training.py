"""Proofs of the training loop: updates, early ends and checkpoints."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np
import torch

from engine.models.adapter import trainable
from engine.models.catalogue import find_model
from engine.protocol.events import RecoveryTaken
from engine.quantities import format_timing
from engine.randomness import capture_random
from engine.steps.micro_batch import fits_in_ram, fits_on_gpu, largest_that_fits
from engine.steps.whole_step import WholeSequenceStep
from engine.training.checkpoints import CheckpointFolder, Retention, verify
from engine.training.loop import fit
from engine.training.saver import Saver
from engine.training.spikes import SpikeDetector
from engine.training.state import STATEFUL, capture, read_snapshot
from engine.verify.measure import mib, peak_bytes, relative_error
from engine.verify.proof import Bench, demand
from engine.verify.small import SmallRun, Unbothered, adapted, gradients, patterned_tokens, random_tokens, small_model


def gradient_accumulation(bench: Bench) -> str:
    """An update over several windows of different lengths has the gradient of one big batch."""
    windows = [random_tokens(length, seed) for seed, length in enumerate((64, 17, 2, 33, 64, 41))]
    run = SmallRun(
        bench.folder,
        bench.device,
        windows,
        adapted(small_model(device=bench.device)),
        training={"tokens_per_update": 1000, "max_grad_norm": 1e9, "epochs": 1.0},
    )
    run.step()
    found = gradients(run.model)
    other = adapted(small_model(device=bench.device))
    losses = [
        torch.nn.functional.cross_entropy(other(input_ids=ids[None, :-1]).logits[0].float(), ids[1:], reduction="none")
        for ids in (torch.as_tensor(window.ids, device=bench.device) for window in windows)
    ]
    torch.cat(losses).mean().backward()
    error = relative_error(found, gradients(other))
    demand(error < 5e-5, f"the accumulated gradient differs by {error:.1e} from one big batch")
    targets = sum(len(window) - 1 for window in windows)
    return f"gradient of an update of {len(windows)} windows, {targets} targets, within {error:.1e} of one big batch"


def auto_batch_size(bench: Bench) -> str:
    """The found size fits a limit and the next one does not; its step equals the step over separate windows."""
    window = random_tokens(257)
    model = adapted(small_model(device=bench.device))

    def peak(count: int) -> int:
        step = WholeSequenceStep(model, recompute=False, micro_batch=count)
        return peak_bytes(bench.device, lambda: step.run([window] * count, 0.0, Unbothered()))

    peaks = {count: peak(count) for count in (1, 2)}
    limit = peaks[1] + 4 * (peaks[2] - peaks[1]) + (peaks[2] - peaks[1]) // 2
    found = largest_that_fits(lambda count: peak(count) <= limit, most=64)
    fits, next_one = peak(found), peak(found + 1)
    demand(found > 1 and fits <= limit < next_one, f"{found} windows take {mib(fits)} of {mib(limit)}")
    model.zero_grad(set_to_none=True)
    results = []
    for together in (1, found):
        step = WholeSequenceStep(model, recompute=False, micro_batch=together)
        step.run([random_tokens(64, seed) for seed in range(found)], 0.01, Unbothered())
        results.append(gradients(model))
    error = relative_error(results[1], results[0])
    demand(error < 5e-5, f"a micro-batch of {found} differs by {error:.1e}")
    tried = _tried_for_real(bench, WholeSequenceStep(model, recompute=False), window)
    return (
        f"limit {mib(limit)}: {found} windows fit ({mib(fits)}), {found + 1} do not ({mib(next_one)}); "
        f"gradient within {error:.1e} of one at a time; {tried}"
    )


def _tried_for_real(bench: Bench, step: WholeSequenceStep, window: Any) -> str:
    """Returns the size that training would use here: by trial steps on a GPU, by the ledger's formula on a CPU."""
    if bench.on_gpu:

        def fits(count: int) -> bool:
            step.micro_batch = count
            return fits_on_gpu(step, window, bench.device)(count)

        return f"this GPU takes at least {largest_that_fits(fits, most=64)}"

    found = largest_that_fits(fits_in_ram(find_model("demo"), 2048, 4, 8 * 2**30))
    return f"the demo model at 2,048 tokens: {found} in 8 GiB of free RAM, by formula"


def dynamic_curriculum(bench: Bench) -> str:
    """Sequences grow from an eighth to the whole context; tokens per update and their order stay the same."""
    context = 512
    windows = [patterned_tokens(context, seed) for seed in range(20)]
    settings = {"training": {"tokens_per_update": context, "epochs": 1.0, "curriculum": True}}
    run = SmallRun(bench.folder, bench.device, windows, **settings)
    lengths, tokens = [], []
    for step in range(run.progress.total_steps):
        sequences = run.parts.sequences([windows[step]], step)
        lengths.append(max(map(len, sequences)))
        tokens.append(sum(map(len, sequences)))
        demand(
            bool((np.concatenate([each.ids for each in sequences]) == windows[step].ids).all()),
            "tokens are lost or out of order",
        )
    demand(lengths == sorted(lengths) and set(lengths) == {64, 128, 256, 512}, f"sequence lengths {lengths}")
    demand(set(tokens) == {context}, f"tokens an update {set(tokens)}")
    grown = run.steps()
    fixed = SmallRun(
        bench.folder, bench.device, windows, training={**settings["training"], "curriculum": False}
    ).steps()
    pairs = [sum(n * n // 2 for n in _cuts(context, length)) for length in lengths]
    saved = 1 - sum(pairs) / (len(pairs) * context * context // 2)
    return (
        f"sequences of {' → '.join(map(str, sorted(set(lengths))))} tokens at {context} an update, {saved:.0%} less "
        f"attention; loss after {len(grown)} updates {np.mean(grown[-4:]):.2f}, "
        f"{np.mean(fixed[-4:]):.2f} with whole windows"
    )


def _cuts(context: int, length: int) -> list[int]:
    return [min(length, context - start) for start in range(0, context, length)]


def early_stopping(bench: Bench) -> str:
    """A run whose loss rises ends early, and keeps the adapter with the best score."""
    run = SmallRun(
        bench.folder,
        bench.device,
        # The held-out text has a pattern; the training text loses it after the first windows.
        [*(patterned_tokens(64, seed) for seed in range(8)), *(random_tokens(64, seed) for seed in range(40))],
        training={"early_stopping": 3, "evaluate_every": 2, "learning_rate": 0.02, "epochs": 4.0},
    )
    scores: list[tuple[float, dict[str, torch.Tensor]]] = []
    observe = run.learning.observe

    def watch(loss: float) -> None:
        scores.append((loss, run.weights()))
        observe(loss)

    object.__setattr__(run.learning, "observe", watch)
    status = fit(run.session(), run.parts, run.progress)
    run.learning.keep_result()
    best_loss, best = min(scores, key=lambda score: score[0])
    kept = max(float((run.weights()[name] - value).abs().max()) for name, value in best.items())
    ended, planned = run.progress.step, run.progress.total_steps
    demand(status == "completed" and ended < planned, f"the run ended after {ended} of {planned} steps")
    demand(kept == 0.0, f"the kept adapter is {kept:.1e} off the best one")
    losses = [loss for loss, _ in scores]
    demand(losses.index(best_loss) == len(losses) - 4, f"held-out losses {losses}")
    return (
        f"ended after {ended} of {planned} steps; held-out {losses[0]:.3f} → best {best_loss:.3f}, kept, "
        f"→ {losses[-1]:.3f}"
    )


def loss_spike_recovery(bench: Bench) -> str:
    """After injected NaN gradients, the run continues from a good state."""
    run = SmallRun(bench.folder, bench.device, training={"epochs": 1.0})
    poisoned = [False]
    inner = run.parts.step.run

    def poison(windows: Any, scale: float, monitor: Any) -> Any:
        result = inner(windows, scale, monitor)
        if run.progress.step == 3 and not poisoned[0]:
            poisoned[0] = True
            for parameter in trainable(run.model).values():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))
        return result

    run.parts.step.run = poison  # type: ignore[method-assign]
    session = run.session()
    fit(session, run.parts, run.progress)
    finite = all(bool(p.isfinite().all()) for p in trainable(run.model).values())
    ended, total = run.progress.step, run.progress.total_steps
    demand(poisoned[0] and finite and ended == total, f"the run ended after {ended} of {total} steps")
    demand(4 in run.progress.skipped, f"skipped {run.progress.skipped}, expected step 4 among them")
    spiked = SpikeDetector(10.0)
    found = [spiked.is_spike(loss) for loss in [*(2.0 + 0.05 * math.sin(i) for i in range(30)), 9.0, 2.1]]
    demand(found == [False] * 30 + [True, False], "a loss of 9 after thirty around 2 is not seen as a spike")
    message = next(event.what for event in session.events if isinstance(event, RecoveryTaken))
    return f"not-a-number gradient in step 4: {message}; went on to step {ended} of {total} with finite weights"


def checkpoint_pruning(bench: Bench) -> str:
    """Only the newest checkpoints stay, each of them complete."""
    folder = CheckpointFolder(bench.folder / "checkpoints", Retention(newest=2))
    for step in (1, 2, 3, 4, 5):
        folder.save(step, [("state.json", b"{}" * step)])
    left = [verify(path).about["step"] for path in folder.newest_first()]
    demand(left == [5, 4], f"checkpoints {left}, expected 5 and 4")
    return "of 5 checkpoints the newest 2 are left, each verified"


def async_checkpointing(bench: Bench) -> str:
    """Updates continue while a checkpoint is written; the checkpoint holds the state at its start."""
    run = SmallRun(bench.folder, bench.device, training={"epochs": 40.0})
    run.steps(2)
    state = capture(run.parts, run.progress, capture_random())
    # Large enough that writing and reading it takes longer than some updates.
    ballast = {"ballast": torch.zeros(32 * 2**20)}
    state = dataclasses.replace(state, tensors={**state.tensors, STATEFUL: {**state.tensors[STATEFUL], **ballast}})
    saver = Saver(run.parts.checkpoints, lambda _: None)
    began = time.perf_counter()
    saver.begin(state)
    waited = time.perf_counter() - began
    updates = 0
    while saver.busy and updates < run.progress.total_steps - 2:
        run.step()
        updates += 1
    saver.wait()
    took = time.perf_counter() - began
    saver.close()
    assert saver.last is not None
    saved = read_snapshot(verify(saver.last.path))
    same = all(torch.equal(saved.weights[name], value) for name, value in state.weights.items())
    demand(updates >= 1, f"training waited {format_timing(waited)} for a checkpoint of {mib(saver.last.bytes)}")
    demand(same and saved.progress.step == 2, "the checkpoint is not the state from when it began")
    return (
        f"{updates} updates made while {mib(saver.last.bytes)} were written and read back "
        f"({format_timing(took)}); training waited {format_timing(waited)}"
    )
