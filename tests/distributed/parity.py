"""What a rank of the parity tests computes. Imported by each process."""

from __future__ import annotations

import numpy as np
import torch
from torch import distributed

from engine.config import from_mapping
from engine.distributed.torch_process_group import TorchProcessGroup
from engine.errors import EliteError
from engine.models import families
from engine.models.adapter import attach_adapter, trainable
from engine.plan.stream_plan import StreamPlan
from engine.steps.sequence_sharding import SequenceSharding
from engine.streaming.step import StreamedStep
from tests.support.side_streams import SCHEDULES, simulated

CPU = torch.device("cpu")
CONTEXT = 150
STARTS = (0, 37, 41, 110)


UNLISTED = {
    "gpt_oss": {"head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 30},
    "minicpm3": {
        "kv_lora_rank": 12,
        "q_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
    },
}
"""Families with sinks, and with latent keys and values of unequal widths."""


def adapted(family="qwen2", heads=4, **changes):
    from support.tiny import SHAPE
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = {**SHAPE, "num_attention_heads": heads, "num_key_value_heads": heads, **UNLISTED.get(family, {}), **changes}
    attention = "eager" if family == "gpt_oss" else "sdpa"
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape), attn_implementation=attention)
    if family in UNLISTED:
        families.admit(family, families.Family(shape={"adapts_mlp": False}))
    model.requires_grad_(False)
    lora = from_mapping({"lora": {"rank": 4}}).lora
    model = attach_adapter(model, lora, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in trainable(model).values():  # B = 0 would leave A without a gradient
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            parameter.requires_grad_()
    return model


def tokens(context=CONTEXT):
    return torch.as_tensor(np.random.RandomState(5).randint(0, 199, context))


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in trainable(model).items()}


def alone(starts, plan, context=CONTEXT, **model):
    """Loss and gradients of one process."""
    made = adapted(**model)
    with StreamedStep(made, plan, device=CPU) as step:
        outcome = step.run(tokens(context), document_starts=starts)
        evaluated = step.evaluate(tokens(context), document_starts=starts)
    return outcome.loss_sum, outcome.predicted, gradients(made), evaluated.loss_sum


def shared(group, strategy, order, starts, plan, scale, context=CONTEXT, **model):
    """The same of this rank in a team; gradients are summed."""
    made = adapted(**model)
    step = StreamedStep(made, plan, device=CPU, sharding=SequenceSharding(group, strategy, order))
    with step:
        outcome = step.run(tokens(context), document_starts=starts, scale=scale)
        found = {}
        for name, parameter in trainable(made).items():
            found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            distributed.all_reduce(found[name])
        evaluated = step.evaluate(tokens(context), document_starts=starts)
    return outcome.loss_sum, found, evaluated.loss_sum


PLANS = {
    "stash": StreamPlan(tile=16, key_block=32, loss_piece=32),
    "repeat": StreamPlan(tile=16, key_block=32, loss_piece=32, stash=False, checkpoint_every=2),
    "one tile": StreamPlan(tile=4096, key_block=4096),
}
CASES = [
    ("ring", "zigzag", (0,), "stash", CONTEXT, {}),
    ("ring", "zigzag", STARTS, "repeat", CONTEXT, {"num_key_value_heads": 2}),
    ("ring", "contiguous", STARTS, "stash", CONTEXT, {}),
    ("ring", "contiguous", (0,), "one tile", CONTEXT, {"num_key_value_heads": 1}),
    ("ulysses", "contiguous", STARTS, "stash", CONTEXT, {}),
    ("ulysses", "contiguous", (0,), "repeat", 149, {}),
    ("ring", "zigzag", (0,), "stash", 9, {}),  # too short to be spread
    ("ring", "zigzag", (0, 60), "stash", CONTEXT, {"family": "qwen3", "num_key_value_heads": 2}),
    ("ring", "zigzag", (0, 60), "stash", CONTEXT, {"family": "starcoder2", "sliding_window": 40}),
    ("ring", "contiguous", (0, 60), "repeat", CONTEXT, {"family": "starcoder2", "sliding_window": 23}),
    ("ring", "zigzag", (0, 60), "stash", CONTEXT, {"family": "gpt_oss"}),
    ("ulysses", "contiguous", (0, 60), "repeat", CONTEXT, {"family": "gpt_oss"}),
    ("ring", "contiguous", (0, 60), "repeat", CONTEXT, {"family": "gpt_oss"}),  # trained sinks, attended again
    ("ring", "zigzag", (0, 60), "repeat", CONTEXT, {"family": "minicpm3"}),
]


def relative(found, expected):
    """Largest relative error of any tensor."""
    return max(float((found[n] - expected[n]).norm() / expected[n].norm().clamp_min(1e-12)) for n in expected)


def sequence_errors(rank, size):
    """For each case the relative errors of loss, gradients and evaluation, without copies and with them."""
    group = TorchProcessGroup(CPU, timeout_s=60.0)
    schedules = list(SCHEDULES)
    found = []
    for number, (strategy, order, starts, plan, context, model) in enumerate(CASES):
        loss, predicted, expected, evaluated = alone(starts, PLANS[plan], context, **model)
        case = group, strategy, order, starts, PLANS[plan], 1.0 / predicted, context
        results = [shared(*case, **model)]
        with simulated(schedules[(number + rank) % len(schedules)]):
            results.append(shared(*case, **model))
        for got, sums, scored in results:
            found.append((abs(got / loss - 1), relative(sums, expected), abs(scored / evaluated - 1)))
    return found


def refusal_of_heads(rank, size):
    """What a step says whose heads the ranks cannot share evenly."""
    group = TorchProcessGroup(CPU, timeout_s=60.0)
    try:
        shared(group, "ulysses", "contiguous", (0,), PLANS["stash"], 1.0, heads=3)
    except EliteError as refused:
        return refused.message
    return ""
