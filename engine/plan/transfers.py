"""Bytes that a streamed step moves between the GPU and the homes of its data, and that it writes to the disk."""

from __future__ import annotations

from dataclasses import dataclass

from engine.plan.ledger_lines import Place, place_of, stored_bytes
from engine.plan.speeds import Speeds
from engine.plan.stream_plan import StreamPlan
from engine.plan.window_ring import layers_of_ring
from engine.plan.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Bytes that one window moves between the GPU and the homes of its data."""

    weights: float
    hidden: float
    "Hidden states and their gradients."
    stash: float
    "Saved attention outputs, with keys and values that are saved beside them."
    pages: float
    "Keys, values and their gradients that wait on the host."
    table: float = 0.0
    "Rows of the table of the layers' own inputs, of which the GPU waits for each (engine.plan.time)."

    @property
    def total(self) -> int:
        """All of them."""
        return round(self.weights + self.hidden + self.stash + self.pages + self.table)

    @property
    def words(self) -> str:
        """Lists the bytes of each kind that is moved."""
        kinds = {
            "weights": self.weights,
            "hidden states": self.hidden,
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
        for moved, home in ((self.hidden, plan.hidden_home), (self.stash, plan.stash_home)):
            tiles += moved / (disk if home == "disk" else speeds.link)
        return tiles + self.weights / (disk if plan.weights_home == "disk" else speeds.link), self.pages / speeds.link


def moved_by(work: Workload, plan: StreamPlan) -> Moved:
    """Returns the bytes that one streamed window moves."""
    spec, n, e = work.spec, work.context, work.element
    tiles, again = -(-n // min(plan.tile, n)), 1 - 1 / plan.checkpoint_every
    device: Place = "gpu" if work.on_gpu else "host"
    ratio = plan.activation_bits / 16
    # Hidden states are written and read in the forward, and read for the refill and in the backward. The gradient
    # stream is read and written. A layer that is not stored is recomputed, and written and read once more.
    hidden = spec.layers * n * spec.hidden_width * e * (2 * ratio + 2 * ratio + 2 + 2 * ratio * again)
    hidden += spec.layers * n * spec.layer_input * e * (3 + again)
    stash = 0.0
    if plan.stash:
        # Written in the forward and read in the backward; outputs also where a layer is recomputed.
        for kind in spec.attentions:
            outputs = (2 + again) * (kind.output_width * e + 4 * kind.heads)
            stash += kind.layers * n * (outputs + (2 * kind.stored_width * e if kind.saves_kv else 0))
    pages = 0.0
    if plan.kv_home == "host" and work.on_gpu:
        # Every tile reads all earlier keys, half of n on average. Backward also reads and writes fp32 gradients.
        values = paged_layers(work, plan) * n * (tiles - 1) / 2 * spec.stored_width
        reads = (1 if plan.stash else 2 + again) + 1
        pages = values * (reads * e + 2 * 4)
    return Moved(
        weights=(3 + again) * stored_bytes(work, plan.weights) if plan.streams_weights and work.on_gpu else 0.0,
        hidden=0.0 if place_of(work, plan.hidden_home) == device else hidden,
        stash=0.0 if place_of(work, plan.stash_home) == device else stash,
        pages=pages,
        table=table_rows(work),
    )


def written_by(work: Workload, plan: StreamPlan) -> int:
    """Returns the bytes that one streamed window writes to the disk."""
    spec, element, ratio = work.spec, work.element, plan.activation_bits / 16
    written = 0.0
    if plan.hidden_home == "disk":
        # Each layer's input once, and again where it is recomputed; the gradient stream once for each layer.
        written += spec.layers * spec.hidden_width * element * ((2 - 1 / plan.checkpoint_every) * ratio + 1)
        # What each layer takes beside them, and its gradient in its place.
        written += 2 * spec.layers * spec.layer_input * element
    if plan.stash and plan.stash_home == "disk":
        for kind in spec.attentions:
            keys = kind.stored_width * element if kind.saves_kv else 0
            written += kind.layers * (kind.output_width * element + 4 * kind.heads + keys)
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
