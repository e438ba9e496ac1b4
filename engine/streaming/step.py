"""The exact streamed step: loss and gradient of one sequence, tile by tile, in bounded memory.

Layer-major order. A decoder is a grid of layers and tiles of tokens, and only attention couples the tiles:

    forward   for each layer, for each tile in order: y = layer(x), attending to the keys of earlier tiles
    loss      for each tile: the loss, and G = dL/dy
    backward  for each layer from the last, for each tile from the last: the layer again with a graph,
              G = dL/dx; attention adds the gradients of earlier tiles' keys and values, and takes out its own

Only one layer's keys, values and their gradients exist at a time. Hidden states of every layer's input wait in
their home (StreamPlan). Related work: OOMB (arXiv 2602.02108), StreamBP (arXiv 2506.03077).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine import errors
from engine.attention.select import backend_by_name, select_backend
from engine.plan.stream_plan import StreamPlan, StreamPlanError
from engine.streaming import attention as streamed_attention
from engine.streaming.attention import KeysValuesCollected, Pass, Stash, TileAttention
from engine.streaming.decoder import Decoder, refuse_position_dependent_rope
from engine.streaming.gradients import WideGradients
from engine.streaming.hidden_states import HiddenStates
from engine.streaming.keys_values import DeviceKeysValues, HostKeysValues, KeysValues
from engine.streaming.linears import ExpandedWeights, FrozenLinears
from engine.streaming.loss import IGNORED, loss_and_gradient, summed_loss
from engine.streaming.pace import Pace
from engine.streaming.positions import TileArguments
from engine.streaming.tiles import CopyStreams, TileArray, TileFactory, TileReader
from engine.streaming.weights import LayerWeights, ResidentWeights, StreamedWeights

_FORWARD_BLOCKS = 4
"""Key blocks that one call of the forward may see where keys and values are on the device."""


class StepCancelled(Exception):  # noqa: N818 - asked for, not an error
    """The step was abandoned between two tiles; gradients of this step are incomplete and must be discarded."""


@dataclass(frozen=True, kw_only=True)
class TileProgress:
    """How far a step is: tiles done of all tiles of the present stage."""

    stage: str
    layer: int
    tile: int
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What a step did."""

    loss_sum: float
    "Summed cross-entropy over the predicted tokens, in nats."
    predicted: int
    "Tokens that were predicted."
    seconds: dict[str, float]
    "Wall time by stage: forward, loss, backward."


class StreamedStep:
    """Runs streamed steps on a model, which it owns until `close`.

    Gradients accumulate in `.grad` of trainable fp32 parameters, and in `wide_gradients.sums` for others.
    Buffers are made at the first step and reused by all that are no longer.

    Args:
        model: A causal language model of a supported family, alone or in a PEFT adapter, on its compute device
            (with `weights="streamed"`: on the host, everything but the decoder layers is moved to `device`).
        plan: The layout.
        device: Where to compute.
        spill_directory: For `hidden_home="disk"`.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
        StreamPlanError: the model's weights are not stored as the plan says.
    """

    def __init__(
        self, model: nn.Module, plan: StreamPlan, *, device: torch.device, spill_directory: Path | None = None
    ) -> None:
        self.plan, self.device, self.model = plan, device, model
        self.decoder = Decoder(model)
        self._streams = CopyStreams(device) if device.type == "cuda" else None
        layers = self.decoder.layers
        self._trainable = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
        self._trains_embedding = any(p.requires_grad for p in self.decoder.embedding.parameters())
        self._linears = FrozenLinears(layers, self.decoder.config.model_type)
        self._weights = self._make_weights(layers)
        self.wide_gradients = WideGradients(model.parameters(), home=torch.device("cpu"))
        self._factory = TileFactory(plan.hidden_home, device, self._streams, spill_directory)
        self._hidden: HiddenStates | None = None
        self._attention: TileAttention | None = None
        self._context = 0
        streamed_attention.register()

    def _make_weights(self, layers: Sequence[nn.Module]) -> LayerWeights:
        if self._linears.quantised != (self.plan.weights == "nf4"):
            self._linears.close()
            stored = "in 4 bits" if self._linears.quantised else "unquantised"
            raise StreamPlanError(f"the plan says weights={self.plan.weights}, but the model's are stored {stored}")
        if self.plan.weights == "nf4":
            return ExpandedWeights(self._linears)
        if self.plan.weights == "resident":
            return ResidentWeights()
        weights = StreamedWeights(layers, self.device, self._streams)
        frozen = {id(p) for layer in layers for p in layer.parameters() if not p.requires_grad}
        for parameter in self.model.parameters():
            if id(parameter) not in frozen:
                parameter.data = parameter.data.to(self.device)
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))
        return weights

    # --- one step -------------------------------------------------------------------------------------------

    def run(
        self,
        token_ids: Tensor,
        *,
        scale: float | None = None,
        labels: Tensor | None = None,
        document_starts: Sequence[int] = (0,),
        progress: Callable[[TileProgress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> StepOutcome:
        """Loss and gradient of one sequence.

        Args:
            token_ids: (context,), on any device.
            scale: Gradients are those of scale × the summed loss; None for 1 / predicted tokens, the mean.
            labels: Token to predict at each position, (context,), IGNORED where none. None: the next token of
                the same document.
            document_starts: First positions of packed documents, ascending from 0; attention and positions do
                not cross them.
            progress: Called after every tile.
            cancelled: Asked after every tile; True abandons the step.

        Raises:
            StepCancelled: `cancelled` returned True.
            EliteError: OUT_OF_MEMORY, after everything that this object holds was released.
        """
        return self._run(token_ids, labels, document_starts, progress, cancelled, scale=scale, backward=True)

    def evaluate(
        self,
        token_ids: Tensor,
        *,
        labels: Tensor | None = None,
        document_starts: Sequence[int] = (0,),
        progress: Callable[[TileProgress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> StepOutcome:
        """Loss of one sequence without its gradient; arguments and errors of `run`."""
        return self._run(token_ids, labels, document_starts, progress, cancelled, scale=None, backward=False)

    def _run(
        self,
        token_ids: Tensor,
        labels: Tensor | None,
        document_starts: Sequence[int],
        progress: Callable[[TileProgress], None] | None,
        cancelled: Callable[[], bool] | None,
        *,
        scale: float | None,
        backward: bool,
    ) -> StepOutcome:
        labels = next_token_labels(token_ids, document_starts) if labels is None else labels
        predicted = int((labels != IGNORED).sum())
        scale = 1.0 / max(predicted, 1) if scale is None else scale
        seed = int(torch.randint(2**31, ())) if self._draws_random_numbers else 0
        state = _Run(token_ids, labels, document_starts, self.plan.tile, self.device, progress, cancelled, seed)
        try:
            with self._owning(state):
                began = time.perf_counter()
                self._forward(state, Pass.FORWARD if backward else Pass.EVALUATE)
                after_forward = self._now()
                loss_sum = self._loss(state, scale if backward else None)
                after_loss = self._now()
                if backward:
                    self._backward(state)
                after_backward = self._now()
        except (torch.OutOfMemoryError, MemoryError) as error:
            phase, place = state.stage, "GPU" if isinstance(error, torch.OutOfMemoryError) else "host"
            largest = self._largest_part()
            self.release()
            raise errors.OUT_OF_MEMORY(
                place=place, phase=phase, largest=largest, remedy=self._smaller_plan(place)
            ) from None
        return StepOutcome(
            loss_sum=loss_sum,
            predicted=predicted,
            seconds={
                "forward": after_forward - began,
                "loss": after_loss - after_forward,
                "backward": after_backward - after_loss,
            },
        )

    def _forward(self, run: _Run, purpose: Pass) -> None:
        run.enter("forward", len(self.decoder.layers) * run.tiles)
        hidden = self._hidden_states
        with torch.no_grad():
            for tile in range(run.tiles):
                ids = run.token_ids[run.span(tile)].to(self.device).unsqueeze(0)
                hidden.write(0, tile, self.decoder.embed(ids)[0])
            for layer in range(len(self.decoder.layers)):
                self._run_layer(run, layer, purpose)

    def _run_layer(self, run: _Run, layer: int, purpose: Pass) -> None:
        """Runs a layer over all tiles without a graph, from its input's array into its output's."""
        hidden = self._hidden_states
        self._enter(layer)
        self._weights.prefetch(layer - 1 if purpose is Pass.COLLECT else layer + 1)
        for tile in range(run.tiles):
            x = hidden.read(layer, tile)
            self._prefetch(run, layer, tile + 1, purpose)
            try:
                y = self._call_layer(run, layer, tile, x.unsqueeze(0), purpose)
            except KeysValuesCollected:
                pass
            else:
                hidden.write(layer + 1, tile, y[0])
            run.advance(layer, tile)

    def _enter(self, layer: int) -> None:
        """Makes a layer's weights ready, once for all tiles of a pass."""
        self._linears.enter(layer)
        self._weights.enter(layer)

    def _prefetch(self, run: _Run, layer: int, tile: int, purpose: Pass) -> None:
        if not 0 <= tile < run.tiles:
            return
        self._hidden_states.prefetch(layer, tile)
        stash = self._state.stash
        if stash is not None and purpose in (Pass.REPEAT, Pass.GRADIENT):
            stash.prefetch(layer, tile)

    def _call_layer(self, run: _Run, layer: int, tile: int, x: Tensor, purpose: Pass) -> Tensor:
        """The layer's output for a tile, (1, tile, hidden)."""
        arguments = run.arguments.of(tile, x)[layer]
        self._state.begin(purpose, layer, tile, run.span(tile).start)
        if self._draws_random_numbers:
            # The same numbers in every pass over this tile.
            torch.manual_seed(run.seed + layer * run.tiles + tile)
        output: Any = self.decoder.layers[layer](x, **arguments)
        y: Tensor = output[0] if isinstance(output, tuple) else output
        return y

    def _loss(self, run: _Run, scale: float | None) -> float:
        """Summed loss; leaves scale × its gradient with respect to the last layer's output, unless scale is None."""
        run.enter("loss", run.tiles)
        hidden, top = self._hidden_states, len(self.decoder.layers)
        trains_norm = any(p.requires_grad for p in self.decoder.final_norm_parameters())
        total = torch.zeros((), dtype=torch.float64)
        sums = []
        for tile in range(run.tiles):
            x = hidden.read(top, tile).unsqueeze(0).detach().requires_grad_()
            if tile + 1 < run.tiles:
                hidden.prefetch(top, tile + 1)
            labels = run.labels[run.span(tile)].to(self.device)
            if scale is None:
                with torch.no_grad():
                    normed = self.decoder.final_norm(x)
                    loss = summed_loss(normed[0], labels, self.decoder.head, piece=self.plan.loss_piece)
            else:
                normed = self.decoder.final_norm(x)
                loss, gradient = loss_and_gradient(
                    normed[0].detach(), labels, self.decoder.head, piece=self.plan.loss_piece, scale=scale
                )
                inputs = None if trains_norm else [x]
                torch.autograd.backward(normed, gradient.unsqueeze(0), inputs=inputs)
                assert x.grad is not None
                hidden.write_gradient(tile, x.grad[0])
            sums.append(loss)
            run.advance(top, tile)
        self.wide_gradients.flush()
        for loss in sums:
            total += loss.to(torch.float64).cpu()
        return float(total)

    def _backward(self, run: _Run) -> None:
        layers = len(self.decoder.layers)
        lowest = 0 if self._trains_embedding else next((i for i, t in enumerate(self._trainable) if t), layers)
        run.enter("backward", (layers - lowest) * run.tiles)
        hidden, keys_of = self._hidden_states, layers - 1
        for layer in range(layers - 1, lowest - 1, -1):
            if not hidden.holds(layer):
                run.stage = "recompute"
                with torch.no_grad():
                    for below in range(hidden.kept_below(layer), layer):
                        self._run_layer(run, below, Pass.REPEAT)
                        keys_of = below if self._state.stash is None else keys_of
                hidden.hold_segment(layer)
                run.stage = "backward"
            if keys_of != layer and not self._state.restore_keys_values(layer, run.spans):
                with torch.no_grad():
                    self._run_layer(run, layer, Pass.COLLECT)
            keys_of = layer
            self._layer_backward(run, layer, needs_input=layer > lowest or self._trains_embedding)
        if self._trains_embedding:
            self._embedding_backward(run)

    def _layer_backward(self, run: _Run, layer: int, *, needs_input: bool) -> None:
        hidden = self._hidden_states
        self._enter(layer)
        self._weights.prefetch(layer - 1)
        self._linears.want_output(wanted=False)
        self._state.zero_gradients()
        for tile in reversed(range(run.tiles)):
            x = hidden.read(layer, tile).unsqueeze(0).detach().requires_grad_(needs_input)
            gradient = hidden.read_gradient(tile).unsqueeze(0)
            if tile:
                self._prefetch(run, layer, tile - 1, Pass.GRADIENT)
                hidden.prefetch_gradient(tile - 1)
            y = self._call_layer(run, layer, tile, x, Pass.GRADIENT)
            if y.requires_grad:
                torch.autograd.backward(y, gradient)
            if needs_input:
                assert x.grad is not None
                hidden.write_gradient(tile, x.grad[0])
            run.advance(layer, tile)
        self.wide_gradients.flush()

    def _embedding_backward(self, run: _Run) -> None:
        for tile in range(run.tiles):
            ids = run.token_ids[run.span(tile)].to(self.device).unsqueeze(0)
            gradient = self._hidden_states.read_gradient(tile).unsqueeze(0)
            torch.autograd.backward(self.decoder.embed(ids), gradient)
        self.wide_gradients.flush()

    # --- what a step needs ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _owning(self, run: _Run) -> Iterator[None]:
        """Prepares buffers, and takes over the model's attention for the length of a step."""
        run.stage = "preparation"
        refuse_position_dependent_rope(self.decoder.config, run.context)
        self._prepare(run)
        run.arguments = TileArguments(self.decoder, run.positions, self.plan.tile, self.device)
        config = self.decoder.config
        implementation, checkpointing = config._attn_implementation, []
        config._attn_implementation = streamed_attention.IMPLEMENTATION
        for layer in self.decoder.layers:
            if getattr(layer, "gradient_checkpointing", False):
                checkpointing.append(layer)
                layer.gradient_checkpointing = False  # type: ignore[assignment]
        self._state.document_starts = run.document_starts
        streamed_attention.activate(self._state)
        random_state = torch.random.fork_rng(enabled=self._draws_random_numbers)
        try:
            with random_state:
                yield
        finally:
            self._linears.leave()
            streamed_attention.activate(None)
            config._attn_implementation = implementation
            for layer in checkpointing:
                layer.gradient_checkpointing = True  # type: ignore[assignment]

    def _prepare(self, run: _Run) -> None:
        if run.context > self._context:
            self.release()
            self._context = run.context
        dtype = self.decoder.embedding.weight.dtype
        if self._hidden is None:
            self._hidden = HiddenStates(
                layers=len(self.decoder.layers),
                context=self._context,
                width=self.decoder.hidden_size,
                dtype=dtype,
                plan=self.plan,
                factory=self._factory,
            )
        self._hidden.begin(run.context)
        if self._attention is None:
            self._attention = self._make_attention(dtype)
        if self._attention.stash is not None:
            self._attention.stash.resize(run.context)

    def _make_attention(self, dtype: torch.dtype) -> TileAttention:
        config = self.decoder.config
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        if self.plan.attention == "auto":
            backend = select_backend(self.device, dtype, heads, kv_heads, head_dim)
        else:
            backend = backend_by_name(self.plan.attention, self.device, dtype, head_dim)

        def new_array(width: int, array_dtype: torch.dtype) -> TileArray:
            return self._factory.array(self._context, width, array_dtype, self.plan.tile)

        def new_reader(width: int, array_dtype: torch.dtype) -> TileReader:
            return TileReader(width, array_dtype, min(self.plan.tile, self._context), self.device)

        stash = Stash(new_array, new_reader) if self.plan.stash else None
        # The forward has no temporary as long as its keys, unless they have to be fetched a page at a time.
        forward_block = self.plan.key_block * (1 if self._pages_keys_values else _FORWARD_BLOCKS)
        return TileAttention(backend, self.plan.key_block, forward_block, self._new_keys_values, stash)

    def _new_keys_values(self, kv_heads: int, head_dim: int, dtype: torch.dtype) -> KeysValues:
        if self._pages_keys_values:
            assert self._streams is not None
            return HostKeysValues(
                self._context, kv_heads, head_dim, dtype, self.device, self._streams, self.plan.key_block
            )
        return DeviceKeysValues(self._context, kv_heads, head_dim, dtype, self.device)

    @property
    def _pages_keys_values(self) -> bool:
        """Whether keys and values live on the host; on a CPU the host is the device."""
        return self.plan.kv_home == "host" and self._streams is not None

    @property
    def _hidden_states(self) -> HiddenStates:
        assert self._hidden is not None
        return self._hidden

    @property
    def _state(self) -> TileAttention:
        assert self._attention is not None
        return self._attention

    @property
    def backend_name(self) -> str:
        """The attention backend in use; "" before the first step."""
        return self._attention.backend.name if self._attention else ""

    @property
    def _draws_random_numbers(self) -> bool:
        return self.model.training and any(
            isinstance(m, nn.Dropout) and m.p > 0 for layer in self.decoder.layers for m in layer.modules()
        )

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    # --- memory ---------------------------------------------------------------------------------------------

    def _largest_part(self) -> str:
        """The largest part of this step's memory, in words."""
        config, n, item = self.decoder.config, self._context, self.decoder.embedding.weight.element_size()
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        on_device = {p.data_ptr(): p.numel() * p.element_size() for p in self.model.parameters() if p.is_cuda}
        parts = {
            "the weights": sum(on_device.values()),
            "one tile's activations": 6 * self.plan.tile * getattr(config, "intermediate_size", 0) * item,
            "a piece of logits": 3 * self.plan.loss_piece * config.vocab_size * item,
        }
        if self.plan.kv_home == "gpu":
            parts["keys, values and their gradients"] = 2 * n * kv_heads * head_dim * (item + 4)
        name = max(parts, key=lambda part: parts[part])
        return f"{name} ({parts[name] / 2**30:.2f} GiB)"

    def _smaller_plan(self, place: str) -> str:
        if place == "host":
            return "keep hidden states on disk (hidden_home=disk), or raise checkpoint_every"
        steps = []
        if self.plan.kv_home == "gpu":
            steps.append("kv_home=host")
        if self.plan.tile > 256:
            steps.append(f"tile={self.plan.tile // 2}")
        if self.plan.weights == "resident":
            steps.append("weights=nf4 or streamed")
        return "use " + ", or ".join(steps) if steps else "use a smaller model or a shorter context"

    def release(self) -> None:
        """Frees all buffers; the next step makes them anew."""
        if self._hidden is not None:
            self._hidden.close()
        if self._attention is not None:
            self._attention.release()
            if self._attention.stash is not None:
                self._attention.stash.close()
        self._hidden = self._attention = None
        self._context = 0
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Frees all buffers and leaves the model as it was found."""
        self.release()
        self._linears.close()
        self._weights.close()
        self.wide_gradients.close()

    def __enter__(self) -> StreamedStep:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def next_token_labels(token_ids: Tensor, document_starts: Sequence[int] = (0,)) -> Tensor:
    """The next token of the same document at each position, IGNORED at a document's last. (context,) int64."""
    labels = token_ids.roll(-1).to(torch.long)
    ends = torch.tensor([start - 1 for start in document_starts[1:]] + [token_ids.shape[0] - 1], dtype=torch.long)
    labels[ends.to(labels.device)] = IGNORED
    return labels


class _Run:
    """One sequence on its way through the step."""

    arguments: TileArguments

    def __init__(
        self,
        token_ids: Tensor,
        labels: Tensor,
        document_starts: Sequence[int],
        tile: int,
        device: torch.device,
        progress: Callable[[TileProgress], None] | None,
        cancelled: Callable[[], bool] | None,
        seed: int,
    ) -> None:
        self.token_ids, self.labels, self.document_starts = token_ids, labels, document_starts
        self.context, self._tile = token_ids.shape[0], tile
        self.tiles = -(-self.context // tile)
        starts = torch.tensor(list(document_starts), dtype=torch.long)
        order = torch.arange(self.context)
        self.positions = order - starts[torch.bucketize(order, starts, right=True) - 1]
        "Position of each token in its document, (context,)."
        self.seed = seed
        self.stage, self._total, self._done = "preparation", 0, 0
        self._progress, self._cancelled = progress, cancelled
        self._pace = Pace(device)

    def span(self, tile: int) -> slice:
        """Positions of a tile."""
        return slice(tile * self._tile, min((tile + 1) * self._tile, self.context))

    @property
    def spans(self) -> list[slice]:
        """Positions of every tile."""
        return [self.span(tile) for tile in range(self.tiles)]

    def enter(self, stage: str, total: int) -> None:
        """A stage of so many tiles begins."""
        self.stage, self._total, self._done = stage, total, 0

    def advance(self, layer: int, tile: int) -> None:
        """A tile has been enqueued."""
        self._done += 1
        self._pace.tick()
        if self._progress is not None:
            self._progress(
                TileProgress(
                    stage=self.stage, layer=layer, tile=tile, done=min(self._done, self._total), total=self._total
                )
            )
        if self._cancelled is not None and self._cancelled():
            raise StepCancelled
