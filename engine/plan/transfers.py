"""Bytes that a streamed step moves between the GPU and the homes of its data, and that it writes to the disk."""

from __future__ import annotations

from dataclasses import dataclass

from engine.plan.ledger_lines import Place, place_of
from engine.plan.speeds import Speeds
from engine.plan.step_passes import (
    graphs_kept,
    is_paged,
    pages_moved,
    refilled,
    repeated_layers,
    saves_kv,
    tiles_of,
)
from engine.plan.stream_plan import StreamPlan
from engine.plan.weight_lines import stored_bytes
from engine.plan.window_ring import layers_of_ring
from engine.plan.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Bytes that one window moves between the GPU and the homes of its data."""

    weights: float
    hidden: float
    "Hidden states, and what layers take beside them."
    gradient: float
    "The gradient stream."
    stash: float
    "Saved attention outputs, with keys and values that are saved beside them."
    pages: float
    "Keys, values and their gradients that wait on the host."
    table: float = 0.0
    "Rows of the table of the layers' own inputs, of which the GPU waits for each (engine.plan.time)."

    @property
    def total(self) -> int:
        """All of them."""
        return round(self.weights + self.hidden + self.gradient + self.stash + self.pages + self.table)

    @property
    def words(self) -> str:
        """Lists the bytes of each kind that is moved."""
        kinds = {
            "weights": self.weights,
            "hidden states": self.hidden,
            "their gradient": self.gradient,
            "attention outputs": self.stash,
            "keys and values": self.pages,
            "rows of the layers' own inputs": self.table,
        }
        moved = [f"{size:.3g} B of {name}" for name, size in kinds.items() if size]
        return "a window moves " + " and ".join(moved)

    def seconds(self, plan: StreamPlan, speeds: Speeds) -> tuple[float, float]:
        """Returns the seconds of the copies, not overlapped: tiles and weights; key blocks.

        The transfers of the host and those of the disk are added up, as if they never ran beside each other.
        """
        disk = min(speeds.link, speeds.disk)  # what waits on the disk crosses the link as well
        tiles = 0.0
        for moved, home in (
            (self.hidden, plan.hidden_home),
            (self.gradient, plan.gradient_home),
            (self.stash, plan.stash_home),
        ):
            tiles += moved / (disk if home == "disk" else speeds.link)
        return tiles + self.weights / (disk if plan.weights_home == "disk" else speeds.link), self.pages / speeds.link


def moved_by(work: Workload, plan: StreamPlan) -> Moved:
    """Returns the bytes that one streamed window moves."""
    spec, n, e = work.spec, work.context, work.element
    device: Place = "gpu" if work.on_gpu else "host"
    again = repeated_layers(spec.layers, plan.checkpoint_every) / spec.layers
    reads, writes = _input_passes(work, plan)
    hidden = (reads + writes) * n * spec.hidden_width * e * plan.activation_bits / 16
    hidden += _own_input_passes(work, plan) * n * spec.layer_input * e
    pages = 0.0
    for kind in spec.attentions:
        if is_paged(kind, work, plan):
            keys, gradients = pages_moved(kind, work, plan)
            pages += kind.layers * kind.stored_width * (keys * e + gradients * 4)
    if pages:
        stored_again = ((each.computed, each.kind) for each in refilled(work, plan))
        pages += sum(layers * n * kind.stored_width * e for layers, kind in stored_again if is_paged(kind, work, plan))
    gradient = _gradient_passes(work, plan) * n * spec.hidden_width * e
    return Moved(
        weights=_weight_passes(work, plan) * stored_bytes(work, plan.weights) / spec.layers,
        hidden=0.0 if place_of(work, plan.hidden_home) == device else hidden,
        gradient=0.0 if place_of(work, plan.gradient_home) == device else gradient,
        stash=0.0 if place_of(work, plan.stash_home) == device else _stash_moved(work, plan, again),
        pages=pages,
        table=table_rows(work),
    )


def _weight_passes(work: Workload, plan: StreamPlan) -> int:
    """Returns how many layers' weights are copied to the device; two of the pass before are still there.

    Those of trained weights are not, after an update.
    """
    if not plan.streams_weights or not work.on_gpu:
        return 0
    layers = work.spec.layers
    again = repeated_layers(layers, plan.checkpoint_every) + (2 if work.master_home is not None else 0)
    return 2 * max(0, layers - 2) + again


def _input_passes(work: Workload, plan: StreamPlan) -> tuple[float, float]:
    """Returns how many layers' inputs are read and written.

    Written in the forward pass, and again where they are recomputed; read in the forward pass, to compute keys again,
    and in the backward pass. A single tile is read where it was computed, until the backward pass; layers whose graph
    it keeps hand their outputs on.
    """
    kept, layers = graphs_kept(work, plan), work.spec.layers
    plain, repeated = layers - kept, repeated_layers(layers, plan.checkpoint_every)
    if tiles_of(work, plan) == 1:
        return plain, plain + (1 if kept else 0) + repeated
    return 2 * layers + _computed_again(work, plan) + repeated, layers + repeated


def _own_input_passes(work: Workload, plan: StreamPlan) -> float:
    """Returns how many layers' own inputs are read and written: as hidden states, but written once.

    Where the embedding is trained, each one's gradient takes its place, and is read at the end.
    """
    layers = work.spec.layers
    repeated, trained = repeated_layers(layers, plan.checkpoint_every), 2 if work.master_home is not None else 0
    return (3 + trained) * layers - graphs_kept(work, plan) + _computed_again(work, plan) + repeated


def _computed_again(work: Workload, plan: StreamPlan) -> float:
    return sum(each.computed for each in refilled(work, plan))


def _gradient_passes(work: Workload, plan: StreamPlan) -> int:
    """Returns the passes over the gradient stream, read or written, the last layer's output in its place included.

    The lowest layer writes none where the embedding is frozen. A single tile's gradient stays on the device.
    """
    if tiles_of(work, plan) == 1:
        return 0
    return 2 * (work.spec.layers + 1) + (2 if work.master_home is not None else 0)


def _stash_moved(work: Workload, plan: StreamPlan, again: float) -> float:
    """Returns the bytes of saved attention: outputs, written once and read where a layer is computed again; keys."""
    if not plan.stash:
        return 0.0
    spec, n, e = work.spec, work.context, work.element
    plain = 1 - graphs_kept(work, plan) / spec.layers
    moved = sum(each.saved * n * each.kind.stored_width * e for each in refilled(work, plan))
    for kind in spec.attentions:
        moved += (2 * plain + again) * kind.layers * n * (kind.output_width * e + 4 * kind.heads)
        if saves_kv(kind, work, plan):
            moved += kind.layers * n * kind.stored_width * e
    return moved


def written_by(work: Workload, plan: StreamPlan) -> int:
    """Returns the bytes that one streamed window writes to the disk."""
    spec, element = work.spec, work.element
    written = 0.0
    if plan.hidden_home == "disk":
        written += _input_passes(work, plan)[1] * spec.hidden_width * element * plan.activation_bits / 16
        # What each layer takes beside them, and its gradient in its place.
        written += (2 if work.master_home is not None else 1) * spec.layers * spec.layer_input * element
    if plan.gradient_home == "disk":
        written += _gradient_passes(work, plan) / 2 * spec.hidden_width * element
    if plan.stash and plan.stash_home == "disk":
        plain = 1 - graphs_kept(work, plan) / spec.layers
        for kind in spec.attentions:
            keys = kind.stored_width * element if saves_kv(kind, work, plan) else 0
            written += plain * kind.layers * (kind.output_width * element + 4 * kind.heads + keys)
    return round(work.context * written)


def table_rows(work: Workload) -> float:
    """Returns the bytes of the rows that one window looks up on the host, one a token, in its forward pass alone."""
    return work.context * work.spec.layers * work.spec.layer_input * work.element if work.host_table else 0.0


def weights_moved(work: Workload, plan: StreamPlan) -> int:
    """Returns the bytes of base weights that one window's step copies to the GPU: a layer in each of its passes."""
    return round(moved_by(work, plan).weights)


def paged_layers(work: Workload, plan: StreamPlan) -> int:
    """Returns the layers whose keys and values kv_home host would offload: those without a ring."""
    return work.spec.attending_layers - layers_of_ring(work.spec, plan.tile, work.context)[0]
