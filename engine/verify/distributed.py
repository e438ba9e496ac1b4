"""Proofs of distributed training: two processes on this machine's CPU, over gloo."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.config import from_mapping
from engine.distributed.gradient_sum import AllReduceSum
from engine.distributed.powersgd import PowerSgd
from engine.distributed.torch_process_group import TorchProcessGroup
from engine.launch.rank_processes import ProcessFailedError, run_processes
from engine.models.adapter import trainable
from engine.plan.stream_plan import StreamPlan
from engine.runs.deepspeed_config import deepspeed_config
from engine.steps.sequence_sharding import SequenceSharding
from engine.steps.zero_step import ZeroStep, ZeroTuning
from engine.streaming.step import StreamedStep
from engine.verify.measure import mib, relative_error
from engine.verify.proof import Bench, UnavailableError, demand, need_library
from engine.verify.small import adapted, gradients, patterned_tokens, random_tokens, small_model

_CPU = torch.device("cpu")
_UPDATES = 12


def _group() -> Any:
    return TorchProcessGroup(_CPU, timeout_s=60.0)


# --- ring attention ------------------------------------------------------------------------------------------


def ring_attention(_: Bench) -> str:
    """Two processes with half of the sequence each match loss and gradient of one process with all of it."""
    length = 256
    ranks = run_processes(_ring_rank, 2, length)
    model = adapted(small_model(device=_CPU))
    ids = torch.as_tensor(random_tokens(length).ids)
    logits = model(input_ids=ids[None]).logits[0, :-1]
    loss = nn.functional.cross_entropy(logits.float(), ids[1:], reduction="sum")
    loss.backward()
    expected = gradients(model)
    error = max(relative_error(ranks[0]["gradients"], expected), abs(ranks[0]["loss"] / float(loss.detach()) - 1))
    demand(error < 5e-5, f"loss or gradient of two processes differ by {error:.1e} from one's")
    seen = [rank["predicted"] for rank in ranks]
    demand(max(seen) <= length // 2, f"tokens that each process predicts {seen}")
    return (
        f"loss and gradient of 2 processes with {length // 2} tokens each within {error:.1e} of 1 process with {length}"
    )


def _ring_rank(_: int, __: int, length: int) -> dict[str, Any]:
    group, model = _group(), adapted(small_model(device=_CPU))
    plan = StreamPlan(tile=32, key_block=64, loss_piece=64)
    with StreamedStep(model, plan, device=_CPU, sharding=SequenceSharding(group, "ring")) as step:
        outcome = step.run(torch.as_tensor(random_tokens(length).ids), scale=1.0)
    AllReduceSum(group)([p.grad for p in trainable(model).values() if p.grad is not None])
    return {"loss": outcome.loss_sum, "gradients": gradients(model), "predicted": outcome.predicted}


# --- PowerSGD ------------------------------------------------------------------------------------------------


def powersgd(_: Bench) -> str:
    """A tenth or less of the bytes are sent, and the loss still falls."""
    plain, packed = run_processes(_data_parallel_ranks, 2)[0]
    ratio = plain["bytes"] / packed["bytes"]
    demand(ratio >= 10, f"bytes an update {plain['bytes']:,} → {packed['bytes']:,}")
    start, end = packed["losses"][0], packed["losses"][-1]
    demand(end < start - 0.3, f"loss {start:.2f} → {end:.2f}")
    return (
        f"bytes an update {plain['bytes']:,} → {packed['bytes']:,} (÷ {ratio:.0f}); loss {start:.2f} → {end:.2f} in "
        f"{len(packed['losses'])} updates, {plain['losses'][-1]:.2f} with whole gradients (approximate)"
    )


def _data_parallel_ranks(rank: int, _: int) -> list[dict[str, Any]]:
    return [_data_parallel(rank, compress=compress) for compress in (False, True)]


def _data_parallel(rank: int, *, compress: bool) -> dict[str, Any]:
    """Returns the losses of some updates with half of each batch, and the bytes that the last one sent."""
    group, model = _group(), _wide_model(16)
    add_up = PowerSgd(group, 1, whole_updates=2) if compress else AllReduceSum(group)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.01)
    losses = []
    for step in range(_UPDATES):
        ids = torch.as_tensor(patterned_tokens(64, seed=2 * step + rank).ids)
        logits = model(input_ids=ids[None, :-1]).logits[0]
        loss = nn.functional.cross_entropy(logits.float(), ids[1:])
        (loss / group.size).backward()
        group.sent_bytes = 0
        add_up([p.grad for p in trainable(model).values() if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return {"losses": losses, "bytes": group.sent_bytes}


def _wide_model(rank: int) -> Any:
    model = small_model(device=_CPU, hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    return adapted(model, from_mapping({"lora": {"rank": rank}}), noise=0.0)


# --- ZeRO ----------------------------------------------------------------------------------------------------


def zero3(_: Bench) -> str:
    """Losses match one process; weights and optimiser states per process are halved."""
    return _zero({"strategy": "zero3"})


def zero2_offload(_: Bench) -> str:
    """Losses match one process; optimiser states per process are halved, and offloaded to host memory."""
    return _zero({"strategy": "zero2", "offload": "host"})


def _zero(section: dict[str, str]) -> str:
    need_library("deepspeed", "deepspeed")
    try:
        ranks = run_processes(_zero_rank, 2, section)
    except ProcessFailedError as failed:
        if "compil" in str(failed) or "ninja" in str(failed):
            raise UnavailableError("DeepSpeed compiles at first use and could not; install gcc and ninja") from failed
        raise
    alone = _alone()
    losses = ranks[0]["losses"]
    error = max(abs(a / b - 1) for a, b in zip(losses, alone["losses"], strict=True))
    demand(error < 1e-4, f"losses {losses}, one process {alone['losses']}")
    states = ranks[0]["states"] / alone["states"]
    demand(states < 0.55, f"optimiser states {mib(alone['states'])} → {mib(ranks[0]['states'])}")
    text = f"losses of {len(losses)} updates within {error:.1e} of 1 process; optimiser states a process "
    text += f"{mib(alone['states'])} → {mib(ranks[0]['states'])}"
    if section["strategy"] == "zero3":
        weights = ranks[0]["weights"] / alone["weights"]
        demand(weights < 0.55, f"weights {mib(alone['weights'])} → {mib(ranks[0]['weights'])}")
        text += f", weights {mib(alone['weights'])} → {mib(ranks[0]['weights'])}"
    if "offload" in section:
        demand(ranks[0]["offloaded"], "the optimiser's states were not offloaded")
        text += ", in host memory"
    return text


def _windows(step: int) -> list[Any]:
    return [patterned_tokens(64, seed=2 * step + rank) for rank in range(2)]


def _zero_rank(_: int, count: int, section: dict[str, str]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "model": {"precision": "fp32", "device": "cpu"},
        "training": {"max_grad_norm": 1e9},
        "distributed": section,
    }
    tuning = ZeroTuning(_wide_model(8))
    optimizer = torch.optim.AdamW(tuning.weights.values(), lr=0.01)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deepspeed.json"
        path.write_text(json.dumps(deepspeed_config(from_mapping(settings), 64, count)), encoding="utf-8")
        step = ZeroStep(tuning, optimizer, path, device=_CPU, group=_group())
    losses = []
    for number in range(_UPDATES // 3):
        windows = _windows(number)
        result = step.run(windows, 1.0 / sum(window.targets for window in windows), _Patient())
        step.pipeline.apply([], number)
        losses.append(result.loss_sum / result.tokens)
    held = [getattr(parameter, "ds_tensor", parameter) for parameter in tuning.model.parameters()]
    return {
        "losses": losses,
        "states": _state_bytes(step.base.state),
        "weights": sum(parameter.numel() * parameter.element_size() for parameter in held),
        "offloaded": step.offloads,
    }


class _Patient:
    def progress(self, *_: object, **__: object) -> None:
        """See StepMonitor."""

    def stop_requested(self) -> bool:
        """See StepMonitor."""
        return False


def _alone() -> dict[str, Any]:
    """Runs the same updates in this process, with whole batches."""
    model = _wide_model(8)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.01)
    losses = []
    for number in range(_UPDATES // 3):
        total, targets = torch.zeros(()), 0
        for window in _windows(number):
            ids = torch.as_tensor(window.ids)
            logits = model(input_ids=ids[None, :-1]).logits[0]
            total = total + nn.functional.cross_entropy(logits.float(), ids[1:], reduction="sum")
            targets += window.targets
        loss = total / targets
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {"losses": losses, "states": _state_bytes(optimizer.state), "weights": weights}


def _state_bytes(states: Mapping[Any, Mapping[str, Any]]) -> int:
    return sum(
        value.numel() * value.element_size()
        for state in states.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.numel() > 1
    )
