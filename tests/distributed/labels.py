"""What a rank computes of windows with labels. Imported by each process."""

from __future__ import annotations

import numpy as np
import torch
from torch import distributed

from engine.data.windows import Window
from engine.distributed.torch_process_group import TorchProcessGroup
from engine.models.fine_tuning import AdapterTuning
from engine.plan.step_layout import StepLayout
from engine.steps.data_parallel import DataParallelStep
from engine.steps.padding import labels_of
from engine.steps.sequence_sharding import SequenceSharding
from engine.steps.whole_step import WholeSequenceStep, count_targets
from engine.streaming.step import StreamedStep
from tests.distributed.parity import CPU, PLANS, adapted, gradients, relative


class Quiet:
    def progress(self, *_, **__):
        """See StepMonitor."""

    def stop_requested(self):
        return False


def windows():
    """Windows of unequal lengths, in the second of which nothing is learnt but the last token."""
    draw = np.random.RandomState(3)
    made = []
    for length, starts in ((150, (0, 37, 41, 110)), (60, (0,)), (90, (0, 50))):
        learnt = draw.rand(length) < 0.3
        if length == 60:
            learnt[:] = False
            learnt[-1] = True
        made.append(Window(draw.randint(0, 199, length).astype(np.int64), starts, learnt))
    return made


def alone(batch, scale):
    """Loss and gradients by transformers, a document at a time."""
    model = adapted()
    total = 0.0
    for window in batch:
        for start, stop in zip(window.starts, (*window.starts[1:], len(window)), strict=True):
            ids = torch.as_tensor(window.ids[start:stop])[None]
            labels = torch.where(torch.as_tensor(window.learnt[start:stop]), ids[0], -100)[1:]
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            if loss.requires_grad and torch.isfinite(loss):
                (loss * scale).backward()
                total += loss.item()
    return total, gradients(model)


def label_errors(rank, size):
    """Relative errors of loss and gradients: ring, ulysses, and data parallel."""
    group = TorchProcessGroup(CPU, timeout_s=60.0)
    batch = windows()
    scale = 1 / count_targets(batch)
    found = {}
    for strategy, order in (("ring", "zigzag"), ("ulysses", "contiguous")):
        loss, expected = alone(batch[:1], scale)
        model = adapted()
        sharding = SequenceSharding(group, strategy, order)
        with StreamedStep(model, PLANS["stash"], device=CPU, sharding=sharding) as step:
            window = batch[0]
            outcome = step.run(
                torch.as_tensor(window.ids),
                labels=labels_of(window, len(window)),
                document_starts=window.starts,
                scale=scale,
            )
        sums = gradients(model)
        for gradient in sums.values():
            distributed.all_reduce(gradient)
        found[strategy] = abs(outcome.loss_sum / loss - 1), relative(sums, expected)
    loss, expected = alone(batch, scale)
    model = adapted()
    step = DataParallelStep(
        AdapterTuning(model),
        StepLayout(),
        build=lambda _: WholeSequenceStep(model, recompute=False),
        smaller=lambda *_: None,
        notify=lambda *_: None,
        group=group,
    )
    result = step.run(batch, scale, Quiet())
    assert result.tokens == count_targets(batch)
    found["data"] = abs(result.loss_sum / loss - 1), relative(gradients(model), expected)
    return found
