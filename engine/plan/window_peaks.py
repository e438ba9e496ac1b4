"""Moments of a window computed whole that can set the peak: see engine.plan.activations."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from engine.models.spec import ModelSpec
from engine.plan.activations import LOGIT_BYTES, Held, PeakCandidate, Widths
from engine.plan.workload import Workload


def window_peaks(
    work: Workload, *, recompute: bool, four_bit: bool = False, pieces: bool = True
) -> tuple[PeakCandidate, ...]:
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
) -> tuple[PeakCandidate, ...]:
    """PEFT's own forward under autocast: the adapters' inputs go to fp32 and back."""
    w = Widths(spec, element, rank, fused=fused, autocast=True)
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
        layer = PeakCandidate(
            phase="backward",
            at="in a layer computed again",
            token=(inputs, *beside, *_window_layer(w)),
            fixed=layer_fixed,
        )
    else:
        saved = sum(size for _, size in _window_saved(w))
        kept = (("what the layers keep", spec.layers * saved), ("final hidden states", w.final))
        loss_fixed = (("adapters' 16-bit copies", casts),)
        layer = PeakCandidate(
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
    loss = PeakCandidate(phase="loss", at="at the head", token=(*kept, *at_head), logit=LOGIT_BYTES, fixed=loss_fixed)
    return loss, layer


def _of_pieces(w: Widths, pieces: bool) -> Held:
    """While a piece of the loss has its logits, the gradient of those before it is there."""
    return (("its gradient", w.hidden),) if pieces else ()


def _trained_window(w: Widths, *, recompute: bool, pieces: bool) -> Iterator[PeakCandidate]:
    """Every weight is trained: no adapters, and gradients wait for the end of the backward pass.

    16-bit weights have theirs summed in fp32 once they are complete (engine.models.wide_gradients): the head's when
    its last piece is done, or when the embedding has added its own where the two are one. fp32 weights sum into the
    gradients that wait for the update.
    """
    spec, element, wide = w.spec, w.element, 4 if w.element == 2 else 0
    table, widest = spec.vocab_size * spec.hidden_size, spec.largest_tensor
    saved = _window_saved(w, adapted=False)
    of_a_layer = sum(size for _, size in saved)
    waiting = ("layer inputs", w.hidden) if recompute else ("what a layer keeps", of_a_layer)
    kept: Held = ((waiting[0], spec.layers * waiting[1]), ("final hidden states", w.final))
    norm_input = w.norm_copies(1) or (("final norm's input", w.hidden),)
    at_head: Held = (*kept, *norm_input, *_of_pieces(w, pieces))
    ours = ("the head's gradient", element * table)
    yield PeakCandidate(
        phase="loss", at="at the head", token=at_head, logit=LOGIT_BYTES, fixed=(ours,) if pieces else ()
    )
    head: Held = (ours,)
    if not spec.tied_embeddings:
        yield PeakCandidate(
            phase="loss", at="at the head's gradient", token=at_head, fixed=(ours, ("in fp32", wide * table))
        )
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
        yield PeakCandidate(
            phase="backward",
            at=at,
            token=((waiting[0], waits * waiting[1]), *token),
            fixed=(*head, matrix, ("layers' gradients, fp32", wide * done * spec.layer_parameters)),
        )
    yield PeakCandidate(
        phase="backward",
        at="at the embedding",
        token=(("gradients of hidden states", 2 * w.hidden),),
        fixed=(("the embedding's gradient", element * table), ("all gradients, fp32", wide * spec.parameters)),
    )


def _adapter_inputs(w: Widths, *, adapted: bool = True) -> Held:
    """PEFT casts each adapter's input to fp32, autocast casts it back: a 16-bit copy is kept. In fp32 none is made."""
    projections = sum(linear.inputs == w.spec.hidden_size for linear in w.spec.linears)
    if w.wide == 1 or not adapted:
        return (("normed inputs", (1 if w.one_norm else 2) * w.hidden), ("adapters", len(w.spec.linears) * w.inner))
    attention_is_hidden = w.spec.heads * w.spec.head_dim == w.spec.hidden_size
    copies = projections - attention_is_hidden
    return (
        ("copies for the adapters", copies * w.hidden + w.queries + (w.mlp if w.spec.adapts_mlp else 0)),
        ("adapters", len(w.spec.linears) * w.inner),
    )


def _window_saved(w: Widths, *, adapted: bool = True) -> Held:
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
        *w.expert_outputs,
        ("MLP", mlp * w.mlp),
    )


def _window_layer(w: Widths) -> Held:
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
        *w.routed,
        ("MLP", mlp),
        ("adapter's input, fp32", w.wide * w.mlp if w.wide > 1 and w.spec.adapts_mlp and not w.wide_gelu else 0),
        ("normed input and output", rest),
    )
