"""What a rank computes of a sequence whose tokens have weights. Imported by each process."""

from __future__ import annotations

import torch
from torch import distributed

from engine.distributed.torch_process_group import TorchProcessGroup
from engine.steps.sequence_sharding import SequenceSharding
from engine.streaming.step import StreamedStep, next_token_labels
from tests.distributed.parity import CPU, PLANS, STARTS, adapted, gradients, relative, tokens

CONTEXT = 150


def plain(ids, weights):
    """Loss, the sum of its terms without their signs, and gradients by transformers, a document at a time."""
    model = adapted()
    labels, total, size = next_token_labels(ids, STARTS), torch.zeros(()), 0.0
    for start, stop in zip(STARTS, (*STARTS[1:], CONTEXT), strict=True):
        logits = model(input_ids=ids[None, start:stop], use_cache=False).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, labels[start:stop], reduction="none")
        weighted = losses * weights[start:stop]
        total, size = total + weighted.sum(), size + weighted.abs().sum().item()
    (total * 0.1).backward()
    return total.item(), size, gradients(model)


def weight_errors(rank, size):
    """Errors of the loss, the gradients and the loss without a gradient, for each way to cut the sequence."""
    group = TorchProcessGroup(CPU, timeout_s=60.0)
    ids, weights = tokens(CONTEXT), torch.randn(CONTEXT, generator=torch.Generator().manual_seed(5))
    loss, terms, expected = plain(ids, weights)
    found = {}
    for strategy, order in (("ring", "zigzag"), ("ulysses", "contiguous")):
        model = adapted()
        sharding = SequenceSharding(group, strategy, order)
        given = {"coefficients": weights, "document_starts": STARTS}
        with StreamedStep(model, PLANS["stash"], device=CPU, sharding=sharding) as step:
            ran = step.run(ids, scale=0.1, **given)
            scored = step.evaluate(ids, **given)
        sums = gradients(model)
        for gradient in sums.values():
            distributed.all_reduce(gradient)
        errors = [abs(sum_ - loss) / terms for sum_ in (ran.loss_sum, scored.loss_sum)]
        found[strategy] = *errors, relative(sums, expected)
    return found
