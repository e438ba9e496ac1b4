"""Peak candidates of a window computed whole. See engine.plan.activations."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

from engine.models.spec import ModelSpec
from engine.plan.activations import LOGIT_BYTES, Held, PeakCandidate, Widths
from engine.plan.workload import Workload


def window_peaks(
    work: Workload, *, recompute: bool, four_bit: bool = False, pieces: bool = True
) -> tuple[PeakCandidate, ...]:
    """Returns the peak candidates of a window computed whole.

    Args:
        work: Model and kernels.
        recompute: Whether each layer is recomputed in the backward pass.
        four_bit: Whether each matrix is unpacked when it is used.
        pieces: Whether the loss takes more than one chunk.
    """
    moments = _window_moments(
        work.spec,
        work.element,
        work.lora_rank,
        work.fused_kernels,
        work.served_norms,
        recompute,
        four_bit,
        work.lora_parameters,
        pieces,
        work.master_home is not None,
        work.recurrent_kernels,
    )
    if not work.spec.layer_input:
        return moments
    w = Widths(work.spec, work.element, 0, fused=False, autocast=True)
    # With a graph: what it keeps, their gradient, and that of the layer that adds to it, which has the size of all.
    copies = 3 + 2 * w.wide if work.master_home is not None else 1
    own: Held = (("inputs of all layers", copies * w.own_inputs),)
    return tuple(replace(moment, token=(*moment.token, *own)) for moment in moments)


@functools.cache
def _window_moments(
    spec: ModelSpec,
    element: int,
    rank: int,
    fused: bool,
    served: bool,
    recompute: bool,
    four_bit: bool,
    adapter: int,
    pieces: bool,
    trained: bool,
    kernels: bool,
) -> tuple[PeakCandidate, ...]:
    """Models PEFT's own forward under autocast, where the adapters' inputs are cast to fp32 and back."""
    w = Widths(spec, element, rank, fused=fused, served=served, autocast=True, kernels=kernels)
    if trained:
        return tuple(_trained_window(w, recompute=recompute, pieces=pieces))
    unpacked: Held = ()
    if four_bit:
        unpacked = (("largest matrix", max(linear.parameters for linear in spec.linears) * element),)
    casts = adapter * element if w.wide > 1 else 0
    if recompute:
        # The final hidden states are freed when the loss's backward pass ends.
        inputs = ("layer inputs", spec.layers * w.hidden)
        kept: Held = (inputs, ("final hidden states", w.final))
        # The adapters' 16-bit copies are freed when the forward pass ends, except for the recomputed layer's.
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
    """Gradient of the earlier loss chunks, alive beside a chunk's logits."""
    return (("its gradient", w.hidden),) if pieces else ()


def _trained_window(w: Widths, *, recompute: bool, pieces: bool) -> Iterator[PeakCandidate]:
    """Yields the peaks of full fine-tuning: no adapters, and gradients wait for the end of the backward pass.

    Gradients of 16-bit weights are summed in fp32 once complete (engine.models.wide_gradients). The head's is complete
    after its last loss chunk, or, where embedding and head are tied, once the embedding has added its own. Gradients of
    fp32 weights accumulate directly in those that wait for the update.
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
    # An activation that autocast widens counts as in `_window_layer`, plus the down projection's input.
    inside: Held = (*between, ("MLP and its gradients", (13 if w.wide_gelu else w.mlp_peak) * w.mlp))
    if w.counted is not None:  # experts save their inputs and products where they are trained
        trained: Held = (("experts' inputs and products", 2 * w.mlp if spec.sparse_layers else 0), *w.routed)
        between = (("layer, as counted", w.counted.backward), *trained, ("gradients of hidden states", 2 * w.hidden))
        inside = between
    # In the last layer all saved tensors wait, in the first one all other layers' gradients; after its MLP, its own.
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
    widest = spec.vocab_size * max(spec.hidden_size, spec.layers * spec.layer_input)
    yield PeakCandidate(
        phase="backward",
        at="at the embedding",
        token=(("gradients of hidden states", 2 * w.hidden),),
        fixed=(("the embedding's gradient", element * widest), ("all gradients, fp32", wide * spec.parameters)),
    )


def _adapter_inputs(w: Widths, *, adapted: bool = True) -> Held:
    """Inputs saved for adapters: PEFT casts them to fp32 and autocast back, saving a 16-bit copy (none in fp32)."""
    projections = sum(linear.inputs == w.spec.hidden_size for linear in w.spec.linears)
    if w.wide == 1 or not adapted:
        return (("normed inputs", (1 if w.one_norm else 2) * w.hidden), ("adapters", len(w.spec.linears) * w.inner))
    attention_is_hidden = w.spec.heads * w.spec.head_dim == w.spec.hidden_size
    copies = projections - attention_is_hidden
    return (
        ("copies for the adapters", copies * w.hidden + w.queries + (w.mlp if w.spec.adapts_mlp else 0)),
        ("adapters", len(w.spec.linears) * w.inner),
    )


def _widest_input(w: Widths) -> int:
    return w.element * max((linear.inputs for linear in w.spec.linears if linear.adapted), default=0)


def _inputs(w: Widths) -> int:
    """Bytes per token of the inputs of all linear layers that take an adapter."""
    return w.element * sum(linear.inputs for linear in w.spec.linears if linear.adapted)


def _window_saved(w: Widths, *, adapted: bool = True) -> Held:
    """Tensors that one layer saves for its backward pass; the MLP's come last."""
    residual = w.norm_copies(w.spec.norms_per_layer) or (("residual", w.spec.norms_per_layer * w.hidden),)
    if w.counted is not None:  # every copy of an input that autocast makes for an adapter comes on top of it
        copies: Held = (("copies for the adapters", _inputs(w) if adapted and w.wide > 1 else 0),)
        adapters: Held = (("adapters", len(w.spec.linears) * w.inner), ("logsumexp", w.logsumexp))
        return (*copies, *adapters, ("layer, as counted", w.counted.saved))
    # The down projection's input is among the adapters' copies. Widened, the MLP saves half the input, and in fp32
    # the input, the tanh, and the tanh plus 1.
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
    """One layer's tensors at their peak.

    The peak is at the adapter of the down projection, whose input then exists in fp32 as well. Where autocast widens
    the activation, it is at the activation's gradient: 7 + 6, without the adapter's copy, which is counted there.
    """
    if w.counted is not None:
        widened = w.wide * _widest_input(w)
        return (
            ("layer, as counted", w.counted.backward),
            ("logsumexp", w.logsumexp),
            ("copies for the adapters", _inputs(w) if w.wide > 1 else 0),
            ("adapters", len(w.spec.linears) * w.inner),
            ("adapter's input, fp32", widened if w.wide > 1 else 0),
        )
    if w.wide_gelu:
        mlp, rest = 12 * w.mlp, 0
    else:
        # The norm's output (in fp32 where it is LayerNorm), and the down projection's output.
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
