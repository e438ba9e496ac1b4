"""A long step saved within itself: losing an hour-long step is losing work.

The state is that of a layer boundary of the backward pass (engine.streaming.boundary): G, the adapter's gradients so
far, and a few numbers. It is written where training stands still for it, as the next layer would overwrite G: seconds
for gigabytes, every so many minutes at most, and only in steps that take that long.

Whether a state belongs to a step is told by a fingerprint of all that the step computes from: weights, windows, scale.
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
from engine.protocol import Event, LogLine, RecoveryTaken, WarningRaised
from engine.streaming.boundary import BackwardPoint

if TYPE_CHECKING:
    from engine.steps.whole_step import Window

FOLDER = "in-step"
_GRADIENTS, _GENERATOR = "gradients.safetensors", "generator.safetensors"
_PART = "stream-{:05d}.safetensors"
_PART_BYTES = 256 << 20
"""Tiles of G that go into one file, which is all that has to be in memory once more."""

Weights = Mapping[str, torch.nn.Parameter]
"""What is trained, by name (engine.models.fine_tuning)."""

_WORTH_SECONDS = 20.0
"""A step that has not run for so long is done again as fast as it is saved."""

_GRACE_SECONDS = 15.0
"""What a stop waits for the next layer boundary, at most: half of the 30 s that a spot machine gives."""


@dataclass(frozen=True, kw_only=True)
class PartialState:
    """Where a step over several windows stood."""

    window: int
    "Position of the present window; those before are done."
    loss_before: float
    "Sum of their losses, in nats."
    point: BackwardPoint


class PartialCheckpointStore:
    """Writes and finds the state of the present step.

    Args:
        folder: Where it goes; replaced by each new state.
        every_seconds: Least time between two.
        emit: Is told.
        clock: Seconds.
    """

    def __init__(
        self,
        folder: Path,
        every_seconds: float,
        emit: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._every, self._emit, self._clock = folder, every_seconds, emit, clock
        # Whether the next step may be the one whose state is there: of a process before, or before a re-plan.
        self._left_behind = folder.exists() or atomic_dir.old_of(folder).exists()
        self._began = self._saved = self._boundary_at = clock()
        self._boundary_takes = float("inf")

    def begin(self, weights: Weights, windows: Sequence[Window], scale: float, tile: int) -> PartialState | None:
        """A step of such tiles begins.

        Returns:
            The state to go on from, with its gradients put into the weights; None to begin the step again.
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
        """Whether a step that should stop had better go on to the next boundary, to be saved there."""
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
        """Saves the state if it is time to, or if the run is stopping."""
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
                LogLine(level="info", text=f"saved within the step ({where}): {size / 1e6:,.1f} MB in {took:.1f} s")
            )
        self._saved = self._boundary_at = self._clock()

    @property
    def _is_long(self) -> bool:
        return self._clock() - self._began >= min(_WORTH_SECONDS, self._every)


def folder_of(run: Path, rank: int) -> Path:
    """Where a rank keeps its own."""
    return run / (FOLDER if rank == 0 else f"{FOLDER}-{rank}")


def clear(folder: Path) -> None:
    """Removes the state: the run is complete."""
    for path in (folder, atomic_dir.aside_of(folder), atomic_dir.old_of(folder)):
        shutil.rmtree(path, ignore_errors=True)


def fingerprint(weights: Weights, windows: Sequence[Window], scale: float) -> str:
    """Names a step by all that its gradient follows from; the base model and the layout are the run's own."""
    digest = hashlib.sha256(scale.hex().encode())
    for name, parameter in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for window in windows:
        digest.update(window.ids.tobytes())
        digest.update(repr(window.starts).encode())
    return digest.hexdigest()


def _about(state: PartialState, name: str) -> dict[str, Any]:
    point = state.point
    return {
        "fingerprint": name,
        "window": state.window,
        "loss_before": state.loss_before.hex(),
        "layer": point.layer,
        "loss_sum": point.loss_sum.hex(),
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
    """The point; None where an earlier version drew random numbers by a rule that is no longer known."""
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
