"""Whole-sequence backpropagation, the ordinary way: what the streamed step has to reproduce."""

from __future__ import annotations

from itertools import pairwise

import torch

from engine.streaming.step import next_token_labels


def whole_sequence(model, token_ids, document_starts=(0,)):
    """Loss sum and {name: gradient of the mean loss} by one forward and backward of the model itself.

    Packed documents are run one by one, which is what packing must equal.
    """
    model.zero_grad()
    labels = next_token_labels(token_ids, document_starts)
    predicted = (labels != -100).sum()
    total = torch.zeros((), dtype=torch.float64)
    borders = [*document_starts, len(token_ids)]
    for start, stop in pairwise(borders):
        logits = model(input_ids=token_ids[None, start:stop], use_cache=False).logits[0]
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[start:stop], reduction="sum")
        (loss / predicted).backward()
        total += loss.detach().double()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return float(total), gradients


def streamed(step, token_ids, **arguments):
    """Loss sum and {name: gradient} by a streamed step."""
    step.model.zero_grad()
    step.wide_gradients.clear()
    outcome = step.run(token_ids, **arguments)
    sums = step.wide_gradients.sums
    gradients = {}
    for name, p in step.model.named_parameters():
        gradient = sums.get(p, p.grad)
        if gradient is not None:
            gradients[name] = gradient.clone()
    return outcome.loss_sum, gradients


def worst_error(gradients, expected):
    """Largest relative error over all parameters, in the 2-norm; a missing or extra gradient is infinite."""
    if gradients.keys() != expected.keys():
        return float("inf"), f"gradients differ in name: {sorted(gradients.keys() ^ expected.keys())}"
    errors = {
        name: ((gradients[name].double() - want.double()).norm() / want.double().norm().clamp_min(1e-30)).item()
        for name, want in expected.items()
    }
    name = max(errors, key=errors.get)
    return errors[name], name
