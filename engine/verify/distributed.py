"""Proofs of what several processes share: two of them on this machine's processor, over gloo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from engine.distributed.powersgd import compress_gradients
from engine.distributed.processes import ProcessFailedError, run_processes
from engine.distributed.ring import use_ring_attention
from engine.distributed.zero import zero_accelerator, zero_config
from engine.models.adapter import trainable
from engine.verify.measure import mib, relative_error
from engine.verify.proof import Bench, UnavailableError, demand, need_library
from engine.verify.small import adapted, gradients, patterned_tokens, random_tokens, small_model

_CPU = torch.device("cpu")


# --- ring attention ------------------------------------------------------------------------------------------


def ring_attention(_: Bench) -> str:
    """Two processes with half of the sequence each: loss and gradient of one with all of it."""
    length = 256
    ranks = run_processes(_ring_rank, 2, length)
    model = adapted(small_model(device=_CPU))
    ids = torch.as_tensor(random_tokens(length).ids)
    loss = _summed_loss(model(input_ids=ids[None]).logits[0, :-1], ids[1:])
    loss.backward()
    expected = gradients(model)
    error = max(relative_error(ranks[0]["gradients"], expected), abs(ranks[0]["loss"] / float(loss.detach()) - 1))
    demand(error < 5e-5, f"loss or gradient of two processes differ by {error:.1e} from one's")
    seen = [rank["tokens"] for rank in ranks]
    demand(seen == [length // 2] * 2, f"tokens of each process {seen}")
    return (
        f"loss and gradient of 2 processes with {length // 2} tokens each within {error:.1e} of 1 process with {length}"
    )


def _ring_rank(rank: int, count: int, length: int) -> dict[str, Any]:
    model = adapted(small_model(device=_CPU))
    use_ring_attention(model.get_base_model())
    ids, part = torch.as_tensor(random_tokens(length).ids), length // count
    mine = slice(rank * part, (rank + 1) * part)
    logits = model(input_ids=ids[None, mine], position_ids=torch.arange(length)[None, mine]).logits[0]
    following = ids[1:][mine]
    loss = _summed_loss(logits[: len(following)], following)
    loss.backward()
    total = loss.detach().clone()
    distributed.all_reduce(total)
    for parameter in trainable(model).values():
        distributed.all_reduce(parameter.grad)
    return {"loss": float(total), "gradients": gradients(model), "tokens": logits.shape[0]}


def _summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


# --- PowerSGD ------------------------------------------------------------------------------------------------


def powersgd(_: Bench) -> str:
    """A tenth or less of the bytes cross the wire, and the loss falls all the same."""
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
    """Losses of some updates with half of each batch, and the bytes that the last one sent."""
    model = _wide_model(16)
    parallel = DistributedDataParallel(model)
    if compress:
        compress_gradients(parallel)
    sent = [0]
    reduce = distributed.all_reduce

    def counting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent[0] += tensor.numel() * tensor.element_size()
        return reduce(tensor, *args, **kwargs)

    if not compress:
        # A hook that sends gradients whole, through the function that is counted.
        parallel.register_comm_hook(None, lambda _, bucket: _mean(counting, bucket))
    distributed.all_reduce = counting if compress else reduce
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.01)
    losses = []
    for step in range(12):
        ids = torch.as_tensor(patterned_tokens(64, seed=2 * step + rank).ids)
        logits = parallel(input_ids=ids[None, :-1]).logits[0]
        loss = torch.nn.functional.cross_entropy(logits.float(), ids[1:])
        before = sent[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    distributed.all_reduce = reduce
    return {"losses": losses, "bytes": sent[0] - before}


def _wide_model(rank: int) -> Any:
    from engine.config import from_mapping

    model = small_model(device=_CPU, hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    return adapted(model, from_mapping({"lora": {"rank": rank}}), noise=0.0)


def _mean(reduce: Any, bucket: Any) -> Any:
    future = reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda done: done.value()[0] / distributed.get_world_size())


# --- ZeRO ----------------------------------------------------------------------------------------------------


def zero3(_: Bench) -> str:
    """Losses of one process; weights and optimiser states a process are halved."""
    return _zero(stage=3, offload=False)


def zero2_offload(_: Bench) -> str:
    """Losses of one process; optimiser states a process are halved, and in host memory."""
    return _zero(stage=2, offload=True)


def _zero(*, stage: int, offload: bool) -> str:
    need_library("deepspeed", "gpu")
    try:
        ranks = run_processes(_zero_rank, 2, stage, offload)
    except ProcessFailedError as failed:
        if "compil" in str(failed) or "ninja" in str(failed):
            raise UnavailableError("DeepSpeed compiles at first use and could not; install gcc and ninja") from failed
        raise
    alone = _alone()
    losses = [sum(rank["losses"][i] for rank in ranks) / 2 for i in range(len(alone["losses"]))]
    error = max(abs(a / b - 1) for a, b in zip(losses, alone["losses"], strict=True))
    demand(error < 1e-4, f"losses {losses}, one process {alone['losses']}")
    states = ranks[0]["states"] / alone["states"]
    demand(states < 0.55, f"optimiser states {mib(alone['states'])} → {mib(ranks[0]['states'])}")
    text = f"losses of {len(losses)} updates within {error:.1e} of 1 process; optimiser states a process "
    text += f"{mib(alone['states'])} → {mib(ranks[0]['states'])}"
    if stage == 3:
        weights = ranks[0]["weights"] / alone["weights"]
        demand(weights < 0.55, f"weights {mib(alone['weights'])} → {mib(ranks[0]['weights'])}")
        text += f", weights {mib(alone['weights'])} → {mib(ranks[0]['weights'])}"
    if offload:
        demand(ranks[0]["offloaded"], "the optimiser's states were not offloaded")
        text += ", in host memory"
    return text


_UPDATES = 4


def _zero_rank(rank: int, _: int, stage: int, offload: bool) -> dict[str, Any]:
    # Before there is an accelerator: with one of stage 3, transformers would draw each process's weights apart.
    model = _wide_model(8)
    config = zero_config(stage, offload=offload, micro_batch=1, max_grad_norm=1e9)  # type: ignore[arg-type]
    accelerator = zero_accelerator(config, backend="gloo")
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.01)
    engine, prepared = accelerator.prepare(model, optimizer)
    losses = []
    for step in range(_UPDATES):
        ids = torch.as_tensor(patterned_tokens(64, seed=2 * step + rank).ids)
        loss = torch.nn.functional.cross_entropy(engine(input_ids=ids[None, :-1]).logits[0].float(), ids[1:])
        accelerator.backward(loss)
        prepared.step()
        prepared.zero_grad()
        losses.append(float(loss.detach()))
    sharded = engine.optimizer
    inner = sharded.optimizer
    states = sum(
        value.numel() * value.element_size()
        for state in inner.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.numel() > 1
    )
    held = [getattr(p, "ds_tensor", p) for p in model.parameters()]
    return {
        "losses": losses,
        "states": states,
        "weights": sum(p.numel() * p.element_size() for p in held),
        "offloaded": bool(getattr(sharded, "cpu_offload", False) or getattr(sharded, "offload_optimizer", False)),
    }


def _alone() -> dict[str, Any]:
    """The same updates in this process, with whole batches."""
    model = _wide_model(8)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.01)
    losses = []
    for step in range(_UPDATES):
        batch = [torch.as_tensor(patterned_tokens(64, seed=2 * step + rank).ids) for rank in range(2)]
        parts = [
            torch.nn.functional.cross_entropy(model(input_ids=ids[None, :-1]).logits[0].float(), ids[1:])
            for ids in batch
        ]
        loss = (parts[0] + parts[1]) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    states = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.numel() > 1
    )
    return {
        "losses": losses,
        "states": states,
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()),
    }
