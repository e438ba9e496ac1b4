"""Partial checkpoints within a long step, so that an interruption does not lose an hour of work.

A partial checkpoint is the state at a layer boundary of the backward pass (engine.streaming.boundary), which is G, the
trained weights' gradients so far, and a few numbers. Training pauses while it is written, because the next layer would
overwrite G. Writing takes seconds for gigabytes. It happens once in so many minutes at most, and only in steps that
take that long.

A fingerprint of the step's inputs (weights, windows, scale) tells whether a state belongs to a step.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from engine import atomic_dir
from engine.atomic_dir import AtomicDir, DamagedError
from engine.protocol.events import Event, LogLine, RecoveryTaken, WarningRaised
from engine.quantities import format_bytes, format_seconds
from engine.streaming.boundary import BackwardPoint

if TYPE_CHECKING:
    from engine.steps.whole_step import Window

FOLDER = "in-step"
_GRADIENTS, _GENERATOR = "gradients.safetensors", "generator.safetensors"
_PART = "stream-{:05d}.safetensors"
_PART_BYTES = 256 << 20
"""Bytes of G's tiles in one file, which bounds the extra memory."""

Weights = Mapping[str, torch.nn.Parameter]
"""Trained weights by name (engine.models.fine_tuning)."""

_WORTH_SECONDS = 20.0
"""A shorter step is repeated as fast as it is saved."""

_GRACE_SECONDS = 15.0
"""Longest wait of a stop for the next layer boundary, half of the 30 s notice of a spot machine."""


@dataclass(frozen=True, kw_only=True)
class PartialState:
    """Position within a step over several windows."""

    window: int
    "Index of the present window; those before it are done."
    loss_before: float
    "Sum of the losses of the windows before, in nats."
    point: BackwardPoint


class PartialCheckpointStore:
    """Saves and restores partial checkpoints of the present step.

    Args:
        folder: Directory of the state; each new state replaces it.
        every_seconds: Least time between two states.
        emit: Called with events.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        folder: Path,
        every_seconds: float,
        emit: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._every, self._emit, self._clock = folder, every_seconds, emit, clock
        # Whether the saved state may be the next step's, from an earlier process or from before a re-plan.
        self._left_behind = folder.exists() or atomic_dir.old_of(folder).exists()
        self._began = self._saved = self._boundary_at = clock()
        self._boundary_takes = float("inf")

    def begin(self, weights: Weights, windows: Sequence[Window], scale: float, tile: int) -> PartialState | None:
        """Begins a step with tiles of `tile` tokens.

        Returns:
            The state to resume from, after its gradients are loaded into the weights; None to repeat the step.
        """
        self._began = self._saved = self._boundary_at = self._clock()
        self._boundary_takes = float("inf")
        if not self._left_behind:
            return None
        self._left_behind = False
        try:
            atomic_dir.heal(self._folder)
            found = atomic_dir.verify(self._folder)
            if found.about["fingerprint"] != fingerprint(weights, windows, scale):
                return None
            point = _read_point(found)
            window = int(found.about["window"])
            if point is None or not point.suits(tile, len(windows[window])):
                self._emit(LogLine(level="info", text=f"the step begins again: {_why_unsuited(point, tile)}"))
                return None
            state = PartialState(window=window, loss_before=float.fromhex(found.about["loss_before"]), point=point)
            _read_gradients(found, weights)
        except (DamagedError, OSError, SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
            self._emit(
                WarningRaised(
                    code="in-step-damaged",
                    text=f"the state saved within the step cannot be used: {error}",
                    hint="the step begins anew",
                )
            )
            return None
        what = f"went on within the step: window {state.window + 1}, backward pass below layer {state.point.layer}"
        self._emit(RecoveryTaken(what=what, why="the run had ended in the middle of it"))
        return state

    def boundary_is_near(self) -> bool:
        """Whether a stop should wait for the next boundary, to save the step there."""
        left = self._boundary_takes - (self._clock() - self._boundary_at)
        return self._is_long and left <= _GRACE_SECONDS

    def at_boundary(
        self,
        weights: Weights,
        windows: Sequence[Window],
        scale: float,
        state: PartialState,
        *,
        stopping: bool,
    ) -> None:
        """Saves the state if `every_seconds` have passed, or if the run stops in a long step."""
        now = self._clock()
        self._boundary_takes, self._boundary_at = now - self._boundary_at, now
        if not (self._is_long if stopping else now - self._saved >= self._every):
            return
        try:
            size = atomic_dir.write(
                self._folder, _files(weights, state), _about(state, fingerprint(weights, windows, scale))
            )
        except OSError as error:
            self._emit(
                WarningRaised(
                    code="in-step-not-saved",
                    text=f"the step could not be saved within itself: {error.strerror or error}",
                    hint="the run goes on; ended now, it would repeat the step from its beginning",
                )
            )
        else:
            self._left_behind = True
            took = self._clock() - now
            where = f"window {state.window + 1}, backward pass below layer {state.point.layer}"
            self._emit(
                LogLine(
                    level="info",
                    text=f"saved within the step ({where}): {format_bytes(size)} in {format_seconds(took)}",
                )
            )
        self._saved = self._boundary_at = self._clock()

    @property
    def _is_long(self) -> bool:
        return self._clock() - self._began >= min(_WORTH_SECONDS, self._every)


def folder_of(run: Path, rank: int) -> Path:
    """Returns the directory of a rank's partial checkpoint."""
    return run / (FOLDER if rank == 0 else f"{FOLDER}-{rank}")


def clear(folder: Path) -> None:
    """Deletes the state once the run is complete."""
    for path in (folder, atomic_dir.aside_of(folder), atomic_dir.old_of(folder)):
        shutil.rmtree(path, ignore_errors=True)


def fingerprint(weights: Weights, windows: Sequence[Window], scale: float) -> str:
    """Hashes the inputs of a step's gradient, without the base model and the layout, which belong to the run."""
    digest = hashlib.sha256(scale.hex().encode())
    for name, parameter in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for window in windows:
        digest.update(window.ids.tobytes())
        digest.update(repr(window.starts).encode())
        if window.learnt is not None:
            digest.update(window.learnt.tobytes())
        if window.weights is not None:
            digest.update(window.weights.tobytes())
    return digest.hexdigest()


def _about(state: PartialState, name: str) -> dict[str, Any]:
    point = state.point
    return {
        "fingerprint": name,
        "window": state.window,
        "loss_before": state.loss_before.hex(),
        "layer": point.layer,
        "loss_sum": float(point.loss_sum).hex(),
        "seed": point.seed,
        "drawn_tile": point.drawn_tile,
    }


def _files(weights: Weights, state: PartialState) -> Iterator[tuple[str, bytes]]:
    gradients = {name: p.grad.detach().cpu() for name, p in weights.items() if p.grad is not None}
    yield _GRADIENTS, safetensors.torch.save(gradients)
    yield _GENERATOR, safetensors.torch.save({"generator": state.point.generator})
    part: dict[str, Tensor] = {}
    parts = size = 0
    for number, tile in enumerate(state.point.gradient()):
        part[f"{number:06d}"] = tile.clone(memory_format=torch.contiguous_format)
        size += tile.numel() * tile.element_size()
        if size >= _PART_BYTES:
            yield _PART.format(parts), safetensors.torch.save(part)
            part, size, parts = {}, 0, parts + 1
    if part:
        yield _PART.format(parts), safetensors.torch.save(part)


def _read_point(found: AtomicDir) -> BackwardPoint | None:
    """Reads the point; None where an earlier version drew random numbers by a rule that is no longer supported."""
    about = found.about
    if "drawn_tile" not in about:
        return None

    def tiles() -> Iterator[Tensor]:
        for path in sorted(found.path.glob("stream-*.safetensors")):
            for _, tile in sorted(safetensors.torch.load(path.read_bytes()).items()):
                yield tile

    return BackwardPoint(
        layer=int(about["layer"]),
        loss_sum=float.fromhex(about["loss_sum"]),
        seed=int(about["seed"]),
        drawn_tile=None if about["drawn_tile"] is None else int(about["drawn_tile"]),
        generator=safetensors.torch.load(found.read(_GENERATOR))["generator"],
        gradient=tiles,
    )


def _why_unsuited(point: BackwardPoint | None, tile: int) -> str:
    if point is None:
        return "the state saved within it is an earlier version's, which drew random numbers by another rule"
    return f"its random numbers were drawn for tiles of {point.drawn_tile:,} tokens, and the tiles are now {tile:,}"


def _read_gradients(found: AtomicDir, weights: Weights) -> None:
    gradients: Mapping[str, Tensor] = safetensors.torch.load(found.read(_GRADIENTS))
    if not gradients.keys() <= weights.keys():
        raise KeyError("it holds gradients of other weights")
    for name, parameter in weights.items():
        parameter.grad = gradients[name].to(parameter.device) if name in gradients else None
