"""Everything that the next update depends on, to and from the files of a checkpoint.

safetensors and JSON only: reading a checkpoint never runs code. The adapter's two files are PEFT's own, so a
checkpoint's folder can be loaded with `PeftModel.from_pretrained` as it is.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from engine.models.adapter import adapter_config_json
from engine.optim.optimizer_state import flatten_state, unflatten_state

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from engine.training.checkpoints import Checkpoint

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
OPTIMIZER, RANDOM, STATE = "optimizer.safetensors", "random.safetensors", "state.json"


@dataclass(kw_only=True)
class Progress:
    """How far a run has come. The only mutable record of it."""

    step: int = 0
    "Updates done."
    total_steps: int
    epoch: float = 0.0
    windows: int = 0
    "Windows trained on, counted again in each epoch: the position in the data."
    tokens: int = 0
    "Targets trained on."
    seconds: float = 0.0
    "Time spent in updates, in all sessions together."
    data: str = ""
    "Identifies the windows: a resumed run must find the same ones."
    loss_before: float | None = None
    "Held-out loss of the base model, nats a token."
    held_out_scored: int = 0
    "Tokens that it was measured on."


@dataclass(frozen=True)
class RandomState:
    """The generators' states at one moment."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


def capture_random() -> RandomState:
    """The states of torch's (CPU and every GPU), numpy's and Python's generators."""
    tensors = {"torch.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"torch.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)
    numpy_state["state"] = {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}
    return RandomState(tensors, {"numpy": numpy_state, "python": random.getstate()})


def restore_random(state: RandomState) -> None:
    """Puts the generators back. States of GPUs that are no longer there are left out."""
    torch.set_rng_state(state.tensors["torch.cpu"])
    for device in range(torch.cuda.device_count()):
        if (name := f"torch.cuda.{device}") in state.tensors:
            torch.cuda.set_rng_state(state.tensors[name], device)
    numpy_state = dict(state.numbers["numpy"])
    numpy_state["state"] = {**numpy_state["state"], "key": np.array(numpy_state["state"]["key"], dtype=np.uint32)}
    np.random.set_state(numpy_state)
    version, internal, gauss = state.numbers["python"]
    random.setstate((version, tuple(internal), gauss))


def capture(
    model: PeftModel,
    optimizer: Optimizer,
    schedule: LRScheduler,
    scaler: Any,
    progress: Progress,
    generators: RandomState,
) -> dict[str, bytes]:
    """The files of a checkpoint.

    Args:
        model: Its adapter is saved, the base model is not.
        optimizer: AdamW or any other whose state is tensors and numbers by parameter.
        schedule: Saved by its position.
        scaler: The loss scaler of fp16, else None.
        progress: Saved as it is.
        generators: As they were before the first draw that the next update will make.
    """
    moments = optimizer.state_dict()
    tensors, numbers = flatten_state(moments["state"])
    record = {
        "progress": dataclasses.asdict(progress),
        "optimizer": {"numbers": numbers, "groups": moments["param_groups"]},
        "schedule": {k: v for k, v in schedule.state_dict().items() if k != "lr_lambdas"},
        "scaler": scaler.state_dict() if scaler is not None else None,
        "random": generators.numbers,
    }
    return {
        ADAPTER: _pack(get_peft_model_state_dict(model, save_embedding_layers=False)),
        ADAPTER_CONFIG: adapter_config_json(model).encode(),
        OPTIMIZER: _pack(tensors),
        RANDOM: _pack(generators.tensors),
        STATE: json.dumps(record).encode(),
    }


def read_progress(checkpoint: Checkpoint) -> Progress:
    """How far the run had come."""
    return Progress(**json.loads(checkpoint.read(STATE))["progress"])


def restore(checkpoint: Checkpoint, model: PeftModel, optimizer: Optimizer, schedule: LRScheduler, scaler: Any) -> None:
    """Puts the model's adapter, the optimiser, the schedule and the generators where the checkpoint left them."""
    record = json.loads(checkpoint.read(STATE))
    weights = safetensors.torch.load(checkpoint.read(ADAPTER))
    set_peft_model_state_dict(model, weights)
    tensors = safetensors.torch.load(checkpoint.read(OPTIMIZER))
    state = unflatten_state(tensors, record["optimizer"]["numbers"])
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in record["optimizer"]["groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    lambdas = {"lr_lambdas": [None] * len(groups)} if isinstance(schedule, LambdaLR) else {}
    schedule.load_state_dict({**record["schedule"], **lambdas})
    if scaler is not None and record["scaler"]:
        scaler.load_state_dict(record["scaler"])
    restore_random(RandomState(safetensors.torch.load(checkpoint.read(RANDOM)), record["random"]))


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
