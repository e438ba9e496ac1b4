"""Captures, saves and restores the complete training state.

A `Snapshot` is a copy on the host. Training continues while it is written, and can roll back to it at once. Its files
are safetensors and JSON only, so reading a checkpoint never runs code. The files of the trained weights are the
library's own, so a checkpoint's folder loads directly, an adapter with `PeftModel.from_pretrained` and a whole model
with `AutoModelForCausalLM.from_pretrained`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.atomic_dir import AtomicDir, DamagedError
from engine.models.fine_tuning import AdapterTuning, FullTuning
from engine.randomness import RandomState, restore_random
from engine.training import tensor_tree

if TYPE_CHECKING:
    from engine.training.components import TrainerComponents

OPTIMIZER, RANDOM, STATEFUL, STATE = (
    "optimizer.safetensors",
    "random.safetensors",
    "stateful.safetensors",
    "state.json",
)
_FORMS = {kind.weights_file: kind.config_file for kind in (AdapterTuning, FullTuning)}


@dataclass(kw_only=True)
class Progress:
    """Progress of a run. The only mutable record of it."""

    step: int = 0
    "Updates done or skipped, which is the position among the run's updates."
    total_steps: int
    epoch: float = 0.0
    windows: int = 0
    "Windows trained on; each epoch counts them again."
    tokens: int = 0
    "Targets trained on."
    seconds: float = 0.0
    "Seconds spent in updates, over all sessions."
    data: str = ""
    "Identifies the windows; a resumed run must find the same ones."
    loss_before: float | None = None
    "Held-out loss of the base model, nats per token."
    held_out_scored: int = 0
    "Tokens that it was measured on."
    rate_scale: float = 1.0
    "Learning rate after recoveries, as a share of the configured one."
    rollbacks: int = 0
    "Rollbacks because of a NaN or a loss spike."
    skipped: list[int] = field(default_factory=list)
    "Updates that were skipped, counted from 1."
    recoveries: list[str] = field(default_factory=list)
    "Failures so far and their recoveries, one line each."
    latest_losses: list[float] = field(default_factory=list)
    "Losses of the latest updates, oldest first, which engine.training.spikes compares the next one with."
    stage: int | None = None
    "Position of the stage that `layout` belongs to, of a run whose windows grow; None before the first one."
    layout: dict[str, Any] | None = None
    "Layout of the step, as engine.plan.step_layout.StepLayout writes it; None before the first one."


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The training state between two updates, on the host."""

    progress: Progress
    "A copy, which does not change."
    tensors: Mapping[str, Mapping[str, Tensor]]
    "File name → tensor name → tensor."
    record: Mapping[str, Any]
    "State other than tensors, as JSON values."
    weights_file: str
    "Name of the file with the trained weights."
    config: str
    "Text of the configuration that the library needs beside the weights."

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Trained weights in their shapes, by the library's names."""
        return self.tensors[self.weights_file]

    @property
    def size(self) -> int:
        """Bytes of its tensors, in memory and in files."""
        return sum(t.numel() * t.element_size() for group in self.tensors.values() for t in group.values())

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Yields a checkpoint's files by name, each serialized when it is requested."""
        for name, tensors in self.tensors.items():
            yield name, safetensors.torch.save(dict(tensors))
        yield _FORMS[self.weights_file], self.config.encode()
        yield STATE, json.dumps({"progress": dataclasses.asdict(self.progress), **self.record}).encode()


def capture(parts: TrainerComponents, progress: Progress, generators: RandomState) -> Snapshot:
    """Captures the current training state.

    Args:
        parts: Components. Trained weights, optimiser, schedule, loss scaler and every entry of `stateful` are
            captured; a frozen base model is not.
        progress: Current progress, which is copied.
        generators: RNG states before the first draw of the next update.

    Raises:
        TypeError: a component has a state that is neither tensors nor JSON values.
    """
    scaler = parts.accelerator.scaler
    optimizer, moments = tensor_tree.split(parts.optimizer.state_dict())
    others = {name: entry.state_dict() for name, entry in parts.stateful.items()}
    stateful, kept = tensor_tree.split(
        {"parts": others, "schedule": parts.schedule.state_dict(), "scaler": scaler.state_dict() if scaler else None}
    )
    tuning = parts.tuning
    return Snapshot(
        progress=dataclasses.replace(
            progress,
            skipped=list(progress.skipped),
            recoveries=list(progress.recoveries),
            latest_losses=list(progress.latest_losses),
        ),
        tensors={
            tuning.weights_file: {
                name: t.detach().to("cpu", copy=True).contiguous() for name, t in tuning.state().items()
            },
            OPTIMIZER: moments,
            RANDOM: {name: t.cpu() for name, t in generators.tensors.items()},
            STATEFUL: kept,
        },
        record={"optimizer": optimizer, "stateful": stateful, "random": generators.numbers},
        weights_file=tuning.weights_file,
        config=tuning.config_json(),
    )


def read_snapshot(checkpoint: AtomicDir) -> Snapshot:
    """Reads the training state from a checkpoint.

    Raises:
        DamagedError: its files are complete, but are not a checkpoint's.
    """
    try:
        record = dict(json.loads(checkpoint.read(STATE)))
        weights = next(name for name in _FORMS if (checkpoint.path / name).exists())
        return Snapshot(
            progress=Progress(**record.pop("progress")),
            tensors={name: _read_tensors(checkpoint, name) for name in (weights, OPTIMIZER, RANDOM, STATEFUL)},
            record={name: record[name] for name in ("optimizer", "stateful", "random")},
            weights_file=weights,
            config=checkpoint.read(_FORMS[weights]).decode(),
        )
    except (OSError, ValueError, KeyError, TypeError, StopIteration, SafetensorError, RecursionError) as error:
        raise DamagedError(f"its content cannot be used ({type(error).__name__}: {error})") from error


def _read_tensors(checkpoint: AtomicDir, name: str) -> dict[str, Tensor]:
    # Reads one tensor at a time, because the whole file beside its tensors would take twice the memory.
    with safe_open(checkpoint.path / name, framework="pt") as file:
        return {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a mapping


def restore(snapshot: Snapshot, parts: TrainerComponents) -> None:
    """Restores weights, optimiser, schedule, loss scaler, `stateful` and RNG states from a snapshot.

    Raises:
        DamagedError: the snapshot is of another model or another optimiser.
    """
    record, tensors = snapshot.record, snapshot.tensors
    try:
        if snapshot.weights_file != parts.tuning.weights_file:
            raise ValueError(f"it holds {snapshot.weights_file}, the run trains {parts.tuning.weights_file}")
        parts.tuning.load_state(snapshot.weights)
        parts.load_optimizer(tensor_tree.join(record["optimizer"], tensors[OPTIMIZER]))
        others = tensor_tree.join(record["stateful"], tensors[STATEFUL])
        parts.schedule.load_state_dict(others["schedule"], scale=snapshot.progress.rate_scale)
        if parts.accelerator.scaler is not None and others["scaler"]:
            parts.accelerator.scaler.load_state_dict(others["scaler"])
        for name, entry in parts.stateful.items():
            if name in others["parts"]:  # a component that was switched on since has no saved state
                entry.load_state_dict(others["parts"][name])
        restore_random(RandomState(tensors[RANDOM], record["random"]))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"its content does not suit this run ({type(error).__name__}: {error})") from error
