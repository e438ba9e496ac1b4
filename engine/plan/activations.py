"""What one decoder layer holds while tokens pass through it, at each moment that can set the peak.

Derived from the order in which transformers' layers, this project's operations and liger's kernels allocate and free;
tests count the real allocations of every family and hold these lists against them (tests/plan/test_activations.py).
Bytes are those of one token (or of one key of a block), so a moment costs one product for any tile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from engine.models.spec import ModelSpec
from engine.plan.workload import Backend, Workload

Phase = Literal["forward", "loss", "backward"]
Held = tuple[tuple[str, int], ...]
"""Name and bytes of each tensor."""

LOGIT_BYTES = 12
"A logit in autograd's cross-entropy: log-probabilities, their gradient and the logits', each fp32."


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Tensors that are alive together."""

    phase: Phase
    at: str
    "In words."
    token: Held
    "Bytes a token of the tile, or of the window where it is computed whole."
    key: Held = ()
    "Bytes a key: of the two blocks that follow one another in the backward pass, of the forward pass's longest block."
    logit: int = 0
    "Bytes a logit of one piece of the loss."
    fixed: Held = ()
    "Bytes, whatever the number of tokens."
    kept: Held = ()
    "Bytes a token of layers that wait for the backward pass as they are (`keep_layers`)."

    @functools.cached_property
    def token_bytes(self) -> int:
        """Of all its tensors, a token."""
        return sum(size for _, size in self.token)

    @functools.cached_property
    def key_bytes(self) -> int:
        """Of all its tensors, a key."""
        return sum(size for _, size in self.key)

    @functools.cached_property
    def fixed_bytes(self) -> int:
        """Of what does not depend on the number of tokens."""
        return sum(size for _, size in self.fixed)

    @functools.cached_property
    def kept_bytes(self) -> int:
        """Of layers that are kept, a token."""
        return sum(size for _, size in self.kept)

    def bytes(self, tokens: int, keys: int, logits: int) -> int:
        """Of everything held: tokens in flight, keys in the blocks of the moment's phase, logits in a piece."""
        a_token = self.token_bytes + self.kept_bytes
        return tokens * a_token + keys * self.key_bytes + logits * self.logit + self.fixed_bytes


def tile_moments(work: Workload, *, stash: bool, encoded: bool = False, keep: int = 0) -> tuple[Moment, ...]:
    """Moments of the streamed step, beyond what its buffers hold all the time.

    Args:
        work: Model and kernels.
        stash: Whether the attention output is fetched instead of computed again.
        encoded: Whether hidden states are stored in fewer bits, and so decoded before use.
        keep: Layers that a lone tile does not compute again.
    """
    return _tile_moments(
        work.spec,
        work.element,
        work.lora_rank,
        work.fused_kernels,
        work.fused_loss,
        work.backend,
        stash,
        encoded,
        min(keep, work.spec.layers),
        work.master_home is not None,
    )


def window_moments(
    work: Workload, *, recompute: bool, four_bit: bool = False, pieces: bool = True
) -> tuple[Moment, ...]:
    """Moments of a window computed whole.

    Args:
        work: Model and kernels.
        recompute: Whether each layer is computed again in the backward pass.
        four_bit: Whether each matrix is unpacked when it is used.
        pieces: Whether the loss is taken in more than one piece.
    """
    return _window_moments(
        work.spec,
        work.element,
        work.lora_rank,
        work.fused_kernels,
        recompute,
        four_bit,
        work.lora_parameters,
        pieces,
        work.master_home is not None,
    )


def _kept_layer(w: _Widths) -> Held:
    """What the streamed step leaves of a layer that a lone tile does not compute again (`keep_layers`)."""
    return (
        ("normed input", w.hidden),
        *w.norm_copies(1),
        *w.rotated,
        ("attention output and logsumexp", w.queries + w.logsumexp),
        *_between(w),
        ("MLP", w.mlp_saved * w.mlp),
        ("adapters", len(w.spec.linears) * w.inner),
        ("layer output", w.hidden),
    )


class _Widths:
    """Bytes a token of the tensors of one layer."""

    def __init__(self, spec: ModelSpec, element: int, rank: int, *, fused: bool, autocast: bool) -> None:
        self.spec, self.element, self.fused, self.autocast = spec, element, fused, autocast
        self.hidden = spec.hidden_size * element
        self.queries = spec.heads * spec.head_dim * element
        self.keys = spec.kv_heads * spec.head_dim * element
        self.mlp = spec.intermediate_size * element
        self.wide = 4 // element
        "fp32, in units of an activation's own width."
        # The streamed step's factors are in halves, and what they project to is there twice.
        self.inner = rank * element * (1 if autocast or element == 4 else 2)
        self.logsumexp = 4 * spec.heads

    @property
    def one_norm(self) -> bool:
        """Attention and MLP side by side, from the same norm."""
        return self.spec.norms_per_layer == 1

    def norm_copies(self, norms: int) -> Held:
        """RMSNorm as transformers writes it keeps its input in fp32, and so does LayerNorm under autocast.

        LayerNorm without it and liger's RMSNorm keep the input itself.
        """
        as_it_is = not self.autocast if self.spec.norm_bias else self.fused
        if as_it_is or self.wide == 1:
            return ()
        return (("norms' inputs in fp32", norms * self.wide * self.hidden),)

    @property
    def head_norm_inputs(self) -> Held:
        """What the norms on each head's queries and keys keep."""
        if not self.spec.qk_norm:
            return ()
        width = 1 if self.fused else self.wide
        return (("queries and keys before their norm", width * (self.queries + self.keys)),)

    @property
    def rotated(self) -> Held:
        """Queries, keys and values as attention keeps them."""
        # A slice keeps the whole fused projection alive.
        values = self.queries + 2 * self.keys if self.spec.fused_projections else self.keys
        return (("queries", self.queries), ("keys and values", self.keys + values), *self.head_norm_inputs)

    @property
    def wide_gelu(self) -> bool:
        """Whether autocast, which has powers in fp32, widens most of an activation that is written out."""
        return self.wide > 1 and self.spec.family in _TANH_GELU

    @property
    def final(self) -> int:
        """The final norm's output."""
        return self.hidden * (self.wide if self.spec.norm_bias else 1)

    @property
    def mlp_saved(self) -> int:
        """Tensors of the MLP's width that its backward pass needs, with the down projection's input."""
        if self.spec.gated_mlp:
            return 3 if self.fused else 4  # gate, up, their product; and the activation
        return 5 if self.spec.family in _TANH_GELU else 2

    @property
    def mlp_peak(self) -> int:
        """Most of them at once in the backward pass.

        Fused: the product's gradient beside the three. Else the down projection's input is gone, and the gradient of
        its own parts is there beside the product's: 4 - 1 + 3. The two-matrix MLPs: 2 + 1; 5 - 1 + 3.
        """
        if self.spec.gated_mlp:
            return 4 if self.fused else 6
        return 7 if self.spec.family in _TANH_GELU else 3

    @property
    def mlp_forward(self) -> int:
        """Most of them at once without a graph."""
        if self.spec.gated_mlp:
            return 3
        return 4 if self.spec.family in _TANH_GELU else 2


_TANH_GELU = ("phi",)
"""Families whose activation is written out as products and a tanh, each of which keeps its input."""


@functools.cache
def _tile_moments(
    spec: ModelSpec,
    element: int,
    rank: int,
    fused: bool,
    fused_loss: bool,
    backend: Backend,
    stash: bool,
    encoded: bool,
    keep: int,
    trained: bool,
) -> tuple[Moment, ...]:
    w = _Widths(spec, element, rank, fused=fused, autocast=False)
    decoded: Held = (("decoded input", w.hidden),) if encoded else ()
    entry: Held = (*decoded, ("normed input", w.hidden), *w.norm_copies(1))
    attention: Held = (*w.rotated, ("logsumexp", w.logsumexp), *(() if stash else (("attention output", w.queries),)))
    moments: list[Moment] = []
    if keep < spec.layers:
        moments += [
            _tile_attention_forward(w, decoded, backend),
            _tile_forward(w, decoded),
            _tile_mlp_backward(w, entry, attention),
            _tile_attention_backward(w, entry, attention, backend),
        ]
    loss = _tile_loss(w, fused_loss=fused_loss)
    moments += _keeping(w, loss, keep, encoded=encoded, backend=backend) if keep else (loss,)
    if trained:
        moments = [*_with_gradients(moments, w), _tile_embedding(w)]
    return tuple(moments)


def _keeping(w: _Widths, loss: Moment, keep: int, *, encoded: bool, backend: Backend) -> Iterator[Moment]:
    """Moments at which the last `keep` layers are kept: from their forward pass to the first one's backward pass.

    A layer's output is the next one's input, so only the lowest has an input of its own; decoded ones are copies.
    """
    layer = _kept_layer(w)
    inputs = (("their inputs", (keep if encoded else 1) * w.hidden),)
    kept: Held = (*((name, keep * size) for name, size in layer), *inputs)
    yield Moment(phase="forward", at="in the last layer kept", token=(("output before its sum", w.hidden),), kept=kept)
    # The tile before, which the loss of several tiles has not let go of, is the last layer's output here.
    yield replace(loss, token=(("final norm and its gradient", 2 * w.hidden), *w.norm_copies(1)), kept=kept)
    gradient = ("gradient of its output", w.hidden)
    more = (w.mlp_peak - w.mlp_saved) * w.mlp + 4 * w.inner
    yield Moment(
        phase="backward",
        at="in the MLP of a layer kept",
        token=(gradient, ("gradients in the MLP", more)),
        kept=kept,
    )
    others: Held = (*((name, (keep - 1) * size) for name, size in layer), *inputs)
    entry: Held = (("normed input", w.hidden), *w.norm_copies(1))
    attention: Held = (*w.rotated, ("attention output and logsumexp", w.queries + w.logsumexp))
    own = _tile_attention_backward(w, (gradient, *entry), attention, backend)
    yield replace(own, at="in the attention of a layer kept", kept=others)


def _with_gradients(moments: Iterable[Moment], w: _Widths) -> Iterator[Moment]:
    """Weights that are trained have gradients: as they come, and until a layer is done the sums of its tiles in fp32.

    Of fp32 weights the sums are the gradients that wait for the update anyway.
    """
    spec, wide = w.spec, 4 if w.element == 2 else 0
    table, widest = spec.vocab_size * spec.hidden_size, max(linear.parameters for linear in spec.linears)
    fixed: dict[Phase, Held] = {
        "forward": (),
        "loss": (("the head's gradient", w.element * table), ("its sum, fp32", wide * table)),
        "backward": (
            ("a matrix's gradient", w.element * widest),
            ("the layer's sums, fp32", wide * spec.layer_parameters),
        ),
    }
    for moment in moments:
        yield replace(moment, fixed=(*moment.fixed, *fixed[moment.phase]))


def _tile_embedding(w: _Widths) -> Moment:
    table = w.spec.vocab_size * w.spec.hidden_size
    sums = (("its sum, fp32", 4 * table),) if w.element == 2 else ()
    return Moment(
        phase="backward",
        at="at the embedding",
        token=(("embedded tokens", w.hidden),),
        fixed=(("the embedding's gradient", w.element * table), *sums),
    )


def _tile_forward(w: _Widths, decoded: Held) -> Moment:
    """No graph: the MLP's tensors beside the residual, the normed input and the tile before, not yet let go."""
    held = (*decoded, ("residual, norm and the tile before", 3 * w.hidden), ("MLP", w.mlp_forward * w.mlp))
    return Moment(phase="forward", at="in the MLP", token=held)


def _tile_attention_forward(w: _Widths, decoded: Held, backend: Backend) -> Moment:
    """A block's output is folded into the sum of those before it."""
    held = (
        *decoded,
        ("residual, norm and the tile before", 3 * w.hidden),
        ("queries, keys and values", w.queries + 2 * w.keys),
        ("output so far, fp32", w.wide * w.queries + w.logsumexp),
        ("a block's output", w.queries + w.logsumexp),
    )
    repeated: Held = (("repeated keys and values", 2 * w.queries),) if _repeats_keys(w, backend) else ()
    return Moment(phase="forward", at="in attention", token=held, key=repeated)


def _tile_loss(w: _Widths, *, fused_loss: bool) -> Moment:
    """The final norm's output, its gradient, and the one of the tile before; a piece's own are small."""
    held = (("final norm and its gradients", 3 * w.hidden), *w.norm_copies(1))
    return Moment(phase="loss", at="at the head", token=held, logit=w.element if fused_loss else LOGIT_BYTES)


def _tile_mlp_backward(w: _Widths, entry: Held, attention: Held) -> Moment:
    held = (
        *entry,
        *attention,
        *_between(w),
        ("layer output", w.hidden),
        ("MLP and its gradients", w.mlp_peak * w.mlp),
        ("adapters", (len(w.spec.linears) + 4) * w.inner),
    )
    return Moment(phase="backward", at="in the MLP", token=held)


def _between(w: _Widths) -> Held:
    """What is kept between attention and MLP."""
    if w.one_norm:
        return ()
    copies = w.norm_copies(w.spec.norms_per_layer - 1) or (("residual", w.hidden),)
    return (*copies, ("normed residual", w.hidden))


def _tile_attention_backward(w: _Widths, entry: Held, attention: Held, backend: Backend) -> Moment:
    """A block's gradients are made while those of the block before are still held."""
    held = (
        *entry,
        *attention,
        ("layer output and residual gradient", 2 * w.hidden),
        ("output gradient", w.queries),
        ("sums of gradients, fp32", w.wide * (w.queries + 2 * w.keys)),
        ("two blocks' query gradients", 2 * w.queries),
        ("adapters", 4 * w.inner),
        *_ATTENTION_WORKSPACE[backend](w),
    )
    blocks = (("keys' and values' gradients", 2 * w.keys),)
    return Moment(phase="backward", at="in attention", token=held, key=(*blocks, *_key_workspace(w, backend)))


_ATTENTION_WORKSPACE: dict[Backend, Callable[[_Widths], Held]] = {
    "cudnn": lambda w: (("kernel's query gradients, fp32", w.wide * w.queries), ("row sums", w.logsumexp)),
    "flash": lambda w: (("kernel's query gradients, fp32", w.wide * w.queries), ("row sums", w.logsumexp)),
    "efficient": lambda w: (("row sums", w.logsumexp),),
    "cpu": lambda w: (("row sums", w.logsumexp),),
}
"""What a kernel's backward pass takes for itself, a query."""


def _repeats_keys(w: _Widths, backend: Backend) -> bool:
    """Whether the kernel has no groups of heads, and gets each key and value once for every query head."""
    return backend in ("efficient", "cpu") and w.spec.heads != w.spec.kv_heads


def _key_workspace(w: _Widths, backend: Backend) -> Held:
    """What it takes a key; of two blocks that follow one another one is being computed, so half of it counts."""
    if w.spec.heads == w.spec.kv_heads:
        return ()
    if _repeats_keys(w, backend):
        return (("repeated keys, values and their gradients", 2 * w.queries),)
    return (("gradients of each query head's keys and values", w.queries),)


# --- a window computed whole -----------------------------------------------------------------------------------


@functools.cache
def _window_moments(
    spec: ModelSpec,
    element: int,
    rank: int,
    fused: bool,
    recompute: bool,
    four_bit: bool,
    adapter: int,
    pieces: bool,
    trained: bool,
) -> tuple[Moment, ...]:
    """PEFT's own forward under autocast: the adapters' inputs go to fp32 and back."""
    w = _Widths(spec, element, rank, fused=fused, autocast=True)
    if trained:
        return tuple(_trained_window(w, recompute=recompute, pieces=pieces))
    unpacked: Held = ()
    if four_bit:
        unpacked = (("largest matrix", max(linear.parameters for linear in spec.linears) * element),)
    casts = adapter * element if w.wide > 1 else 0
    if recompute:
        # The final hidden states are gone when the loss's backward pass ends.
        inputs = ("layer inputs", spec.layers * w.hidden)
        kept: Held = (inputs, ("final hidden states", w.final))
        # Casts of the adapters' weights are dropped when the forward pass ends, but for the layer computed again.
        loss_fixed: Held = ()
        layer_fixed: Held = (("adapters' 16-bit copies", casts // spec.layers), *unpacked)
        beside: Held = (("gradients of hidden states", (1 if w.wide_gelu else 2) * w.hidden),)
        layer = Moment(
            phase="backward",
            at="in a layer computed again",
            token=(inputs, *beside, *_window_layer(w)),
            fixed=layer_fixed,
        )
    else:
        saved = sum(size for _, size in _window_saved(w))
        kept = (("what the layers keep", spec.layers * saved), ("final hidden states", w.final))
        loss_fixed = (("adapters' 16-bit copies", casts),)
        layer = Moment(
            phase="backward" if w.wide_gelu else "forward",
            at="in the last layer's MLP",
            token=(
                (f"what {spec.layers - 1} layers keep", (spec.layers - 1) * saved),
                ("layer input", w.hidden),
                *((("final hidden states", w.final),) if w.wide_gelu else ()),
                *_window_layer(w),
            ),
            fixed=(*loss_fixed, *unpacked),
        )
    norm_input = w.norm_copies(1) or ((("final norm's input", w.hidden),) if recompute else ())
    at_head: Held = (*norm_input, *_of_pieces(w, pieces))
    loss = Moment(phase="loss", at="at the head", token=(*kept, *at_head), logit=LOGIT_BYTES, fixed=loss_fixed)
    return loss, layer


def _of_pieces(w: _Widths, pieces: bool) -> Held:
    """While a piece of the loss has its logits, the gradient of those before it is there."""
    return (("its gradient", w.hidden),) if pieces else ()


def _trained_window(w: _Widths, *, recompute: bool, pieces: bool) -> Iterator[Moment]:
    """Every weight is trained: no adapters, and gradients wait for the end of the backward pass.

    16-bit weights have theirs summed in fp32 once they are complete (engine.streaming.gradients): the head's is so when
    its last piece is done, or when the embedding has added its own where the two are one. fp32 weights sum into the
    gradients that wait for the update.
    """
    spec, element, wide = w.spec, w.element, 4 if w.element == 2 else 0
    table, widest = spec.vocab_size * spec.hidden_size, max(linear.parameters for linear in spec.linears)
    saved = _window_saved(w, adapted=False)
    of_a_layer = sum(size for _, size in saved)
    waiting = ("layer inputs", w.hidden) if recompute else ("what a layer keeps", of_a_layer)
    kept: Held = ((waiting[0], spec.layers * waiting[1]), ("final hidden states", w.final))
    norm_input = w.norm_copies(1) or (("final norm's input", w.hidden),)
    at_head: Held = (*kept, *norm_input, *_of_pieces(w, pieces))
    ours = ("the head's gradient", element * table)
    yield Moment(phase="loss", at="at the head", token=at_head, logit=LOGIT_BYTES, fixed=(ours,) if pieces else ())
    head: Held = (ours,)
    if not spec.tied_embeddings:
        yield Moment(phase="loss", at="at the head's gradient", token=at_head, fixed=(ours, ("in fp32", wide * table)))
        head = (("the head's gradient, fp32", wide * table),)
    matrix = ("a matrix's gradient", element * widest)
    between: Held = (*saved[:-1], ("gradients of hidden states", 2 * w.hidden))
    # An activation that autocast widens: as where it is counted below, and the down projection's input.
    inside: Held = (*between, ("MLP and its gradients", (13 if w.wide_gelu else w.mlp_peak) * w.mlp))
    # In the last layer everything waits, in the first one all other layers' gradients do; after its MLP, its own.
    last = spec.layers - 1
    for at, waits, done, token in (
        ("in the last layer's MLP", last, 0, inside),
        ("in the first layer's MLP", 0, last, inside),
        ("after the first layer's MLP", 0, spec.layers, between),
    ):
        yield Moment(
            phase="backward",
            at=at,
            token=((waiting[0], waits * waiting[1]), *token),
            fixed=(*head, matrix, ("layers' gradients, fp32", wide * done * spec.layer_parameters)),
        )
    yield Moment(
        phase="backward",
        at="at the embedding",
        token=(("gradients of hidden states", 2 * w.hidden),),
        fixed=(("the embedding's gradient", element * table), ("all gradients, fp32", wide * spec.parameters)),
    )


def _adapter_inputs(w: _Widths, *, adapted: bool = True) -> Held:
    """PEFT casts each adapter's input to fp32, autocast casts it back: a 16-bit copy is kept. In fp32 none is made."""
    projections = sum(linear.inputs == w.spec.hidden_size for linear in w.spec.linears)
    if w.wide == 1 or not adapted:
        return (("normed inputs", (1 if w.one_norm else 2) * w.hidden), ("adapters", len(w.spec.linears) * w.inner))
    attention_is_hidden = w.spec.heads * w.spec.head_dim == w.spec.hidden_size
    copies = projections - attention_is_hidden
    return (
        ("copies for the adapters", copies * w.hidden + w.queries + w.mlp),
        ("adapters", len(w.spec.linears) * w.inner),
    )


def _window_saved(w: _Widths, *, adapted: bool = True) -> Held:
    """What one layer keeps for its backward pass; the MLP's comes last."""
    residual = w.norm_copies(w.spec.norms_per_layer) or (("residual", w.spec.norms_per_layer * w.hidden),)
    # The down projection's input is among the adapters' copies. Widened: half the input, and in fp32 the input, the
    # tanh, and the tanh plus 1.
    copied = adapted and w.wide > 1
    mlp = 8 - copied if w.wide_gelu else w.mlp_saved - copied
    return (
        *residual,
        *w.rotated,
        ("attention output and logsumexp", w.queries + w.logsumexp),
        *_adapter_inputs(w, adapted=adapted),
        ("MLP", mlp * w.mlp),
    )


def _window_layer(w: _Widths) -> Held:
    """One layer's tensors at their highest.

    That is at the adapter of its down projection, whose input is there in fp32 as well; where autocast has the
    activation in fp32, at the activation's gradient: 7 + 6, without the copy for the adapter, which is counted there.
    """
    if w.wide_gelu:
        mlp, rest = 12 * w.mlp, 0
    else:
        # The norm's output, in fp32 where it is LayerNorm, and the down projection's output.
        mlp, rest = w.mlp_saved * w.mlp, (1 + (w.wide if w.spec.norm_bias else 1)) * w.hidden
    residual: Held = () if w.one_norm else (("residual", w.hidden),)
    return (
        *w.norm_copies(w.spec.norms_per_layer),
        *residual,
        *w.rotated,
        ("attention output and logsumexp", w.queries + w.logsumexp),
        *_adapter_inputs(w),
        ("MLP", mlp),
        ("adapter's input, fp32", w.wide * w.mlp if w.wide > 1 and not w.wide_gelu else 0),
        ("normed input and output", rest),
    )
