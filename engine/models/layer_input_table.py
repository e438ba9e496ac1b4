"""Keeps the table of single layers' inputs on the host, and looks up there the rows of the tokens at hand.

Gemma 3n and Gemma 4 E2B and E4B give each layer an input of its own for each token (per-layer embeddings). The table of
these inputs is the largest part of the model (4.7 of 10 GB in E2B), and a token reads a single row of it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from engine.hardware.pinned_memory import pinned_empty

TABLE = "embed_tokens_per_layer"
"""Name of the table in transformers' models."""
ROWS_AT_ONCE = 1024
"Rows that are gathered while those before them are copied to the device."


class HostRows:
    """Stands in for the forward pass of a frozen embedding whose weight is on the host.

    Gathers the rows of the tokens, copies them to the device, and computes there what the module computes, with these
    rows as its weight. So the result has the same bits as that of a table on the device.

    Args:
        table: The embedding. Its buffers are on the device.
        device: The compute device.
    """

    def __init__(self, table: nn.Embedding, device: torch.device) -> None:
        self._table, self._device = table, device
        self._staging: list[Tensor] = []
        self._sent: list[torch.cuda.Event | None] = [None, None]

    def __call__(self, ids: Tensor) -> Tensor:
        """Embeds token ids of any shape, on any device; returns (*shape, width) on the compute device."""
        if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("rows that are looked up on the host cannot be part of a CUDA graph")
        some: Any = copy.copy(self._table)  # shares the buffers, as they are now
        rows = self._rows(ids.detach().reshape(-1).to("cpu"))  # waits for the device, where the ids may be computed
        some._parameters = {"weight": nn.Parameter(rows, requires_grad=False)}
        some.num_embeddings, some.padding_idx = len(rows), None
        places = torch.arange(len(rows), device=self._device).view(ids.shape)
        found: Tensor = type(self._table).forward(some, places)
        return found

    @torch.no_grad()
    def _rows(self, ids: Tensor) -> Tensor:
        """Gathers rows, (n,) → (n, width), on the compute device."""
        weight = self._table.weight
        rows = torch.empty((len(ids), weight.shape[1]), dtype=weight.dtype, device=self._device)
        if not self._staging:
            self._staging = [pinned_empty((ROWS_AT_ONCE, weight.shape[1]), weight.dtype) for _ in range(2)]
        for number, start in enumerate(range(0, len(ids), ROWS_AT_ONCE)):
            some, slot = ids[start : start + ROWS_AT_ONCE], number % 2
            if (sent := self._sent[slot]) is not None:
                sent.synchronize()  # the buffer may still be read
            part = self._staging[slot][: len(some)]
            torch.index_select(weight, 0, some, out=part)
            self._sent[slot] = _send(part, rows[start : start + len(some)])
        return rows


def _send(source: Tensor, target: Tensor) -> torch.cuda.Event | None:
    """Starts a copy from pinned memory on the compute stream; returns the event of its completion, None on a CPU."""
    target.copy_(source, non_blocking=True)
    return torch.cuda.current_stream(target.device).record_event() if target.is_cuda else None


def table_of(model: nn.Module) -> nn.Embedding | None:
    """Finds the table of single layers' inputs; None in a model without such inputs."""
    found = (module for name, module in model.named_modules() if name.rpartition(".")[2] == TABLE)
    table = next(found, None)
    return table if isinstance(table, nn.Embedding) else None


def look_up_on_host(model: nn.Module, device: torch.device, *, rest_on_host: bool = False) -> None:
    """Keeps the table of single layers' inputs on the host, from where its rows are copied to `device`.

    A model without such a table is moved to `device` as a whole.

    Args:
        model: A frozen model, on the host or on `device`.
        device: The compute device.
        rest_on_host: Whether the rest of the model stays where it is (decoder layers that are streamed).

    Raises:
        ValueError: the table is trained, whose gradient would be on the device.
    """
    table = table_of(model)
    if table is not None:
        if table.weight.requires_grad:
            raise ValueError(f"{TABLE} is trained")
        table.weight.data = table.weight.data.to("cpu")
        table.forward = HostRows(table, device)  # type: ignore[assignment]
    if not rest_on_host:
        move_all_but(model, device, stays_on_host(model))


def stays_on_host(model: nn.Module) -> frozenset[int]:
    """Returns the ids of the parameters that `look_up_on_host` has left on the host for good."""
    return frozenset(
        id(module.weight) for module in model.modules() if isinstance(module.__dict__.get("forward"), HostRows)
    )


def move_all_but(model: nn.Module, device: torch.device, staying: frozenset[int]) -> None:
    """Moves a model's parameters, with the scales of 4-bit ones, and its buffers to a device.

    Args:
        model: The model.
        device: Where to.
        staying: Ids of parameters that stay where they are.
    """
    for parameter in model.parameters():
        if id(parameter) not in staying:
            parameter.data = parameter.data.to(device)
            if (state := getattr(parameter, "quant_state", None)) is not None:
                state.to(device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
