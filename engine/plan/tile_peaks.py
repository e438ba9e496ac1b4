"""Peak candidates of the streamed step. See engine.plan.activations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from engine.attention.scores_at_once import SCORES_AT_ONCE
from engine.models.layer_shapes import LayerBytes
from engine.models.spec import ModelSpec
from engine.plan.activations import LOGIT_BYTES, Held, PeakCandidate, Phase, Widths
from engine.plan.stream_plan import EMBEDDED_AT_ONCE
from engine.plan.workload import Backend, Workload

_CAPPED_HEAD, _SCALED_HEAD = 4, 2
"""Tensors of logits where the head caps them: tanh's result, the gradient written over the logits, and the gradients
before and after tanh's. Where it scales them: the gradient written over the logits, and that of the last layer."""


def tile_peaks(work: Workload, *, stash: bool, encoded: bool = False, keep: int = 0) -> tuple[PeakCandidate, ...]:
    """Returns the peak candidates of the streamed step, beyond its resident buffers.

    Args:
        work: Model and kernels.
        stash: Whether the saved attention output is fetched instead of recomputed.
        encoded: Whether hidden states are stored in fewer bits, and so decoded before use.
        keep: Number of layers that a single tile does not recompute.
    """
    return _tile_moments(
        work.spec,
        work.element,
        work.lora_rank,
        work.fused_kernels,
        work.served_norms,
        work.fused_loss,
        work.backend,
        stash,
        encoded,
        min(keep, work.spec.layers),
        work.master_home is not None,
        work.adapts_experts,
        work.recurrent_kernels,
    )


def _between(w: Widths) -> Held:
    """Tensors kept between attention and MLP."""
    if w.one_norm:
        return ()
    copies = w.norm_copies(w.spec.norms_per_layer - 1) or (("residual", w.hidden),)
    return (*copies, ("normed residual", w.hidden))


def _kept_layer(w: Widths, *, frozen_experts: bool, adapts_experts: bool) -> Held:
    """Tensors that the streamed step saves of a layer that a single tile does not recompute (`keep_layers`)."""
    more = w.adapted_experts() if adapts_experts else ()
    if w.counted is not None:
        layer = ("layer, as counted", w.counted.saved)
        return layer, ("logsumexp", w.logsumexp), ("adapters", len(w.spec.linears) * w.inner), *more
    mlp: Held = (("MLP", w.mlp_saved * w.mlp), *w.routed)
    if frozen_experts:
        mlp = (("experts", max(w.experts_saved, w.mlp_saved * w.mlp if w.spec.sparse_layers < w.spec.layers else 0)),)
    return (
        ("normed input", w.hidden),
        *w.norm_copies(1),
        *w.rotated,
        ("attention output and logsumexp", w.queries + w.logsumexp),
        *_between(w),
        *mlp,
        *more,
        ("adapters", len(w.spec.linears) * w.inner),
        ("layer output", w.hidden),
    )


@functools.cache
def _tile_moments(
    spec: ModelSpec,
    element: int,
    rank: int,
    fused: bool,
    served: bool,
    fused_loss: bool,
    backend: Backend,
    stash: bool,
    encoded: bool,
    keep: int,
    trained: bool,
    adapts_experts: bool,
    kernels: bool,
) -> tuple[PeakCandidate, ...]:
    w = Widths(spec, element, rank, fused=fused, served=served, autocast=False, kernels=kernels)
    decoded: Held = (("decoded input", w.hidden),) if encoded else ()
    output: Held = () if stash else (("attention output", w.queries),)
    moments: list[PeakCandidate] = []
    frozen_experts = bool(spec.sparse_layers) and not trained
    if keep < spec.layers and w.counted is not None:
        counted = _counted_layer(w, w.counted, decoded, output, backend)
        moments += _with_adapted_experts(counted, w) if adapts_experts else counted
    elif keep < spec.layers:
        entry: Held = (*decoded, ("normed input", w.hidden), *w.norm_copies(1))
        attention: Held = (*w.rotated, ("logsumexp", w.logsumexp), *output)
        queries: Held = (("queries, keys and values", w.queries + 2 * w.keys),)
        before: Held = (("residual, norm and the tile before", 3 * w.hidden),)
        moments += [
            _tile_attention_forward(w, (*decoded, *before, *queries), backend),
            _tile_attention_backward(w, entry, attention, backend),
        ]
        if not frozen_experts or spec.sparse_layers < spec.layers:
            moments += [_tile_forward(w, decoded), _tile_mlp_backward(w, entry, attention)]
        if frozen_experts:
            moments += _tile_experts(w, decoded, (*entry, *attention), adapted=adapts_experts)
    loss = _tile_loss(w, fused_loss=fused_loss)
    kept = _kept_layer(w, frozen_experts=frozen_experts, adapts_experts=adapts_experts)
    moments += _keeping(w, loss, kept, keep, encoded=encoded, backend=backend) if keep else (loss,)
    if trained:
        moments = [*_with_gradients(moments, w), _tile_embedding(w)]
    elif spec.layer_input:
        held: Held = (("embedded tokens", 2 * w.hidden), ("inputs of all layers", w.own_inputs))
        moments.append(
            PeakCandidate(
                phase="forward", at="at the embedding", token=held, fixed=_embedded_at_once(w, 1 + 2 * w.wide)
            )
        )
    return tuple(moments)


def _counted_layer(
    w: Widths, counted: LayerBytes, decoded: Held, output: Held, backend: Backend
) -> Iterator[PeakCandidate]:
    """Yields the peaks of a layer that no list describes.

    The layer's input is not counted with it. Its attention's output is, among what the backward pass keeps; whether it
    is there depends on the stash.
    """
    before: Held = (("input and the tile before", 2 * w.hidden),)
    at_attention: Held = (("layer, as counted", counted.forward_attention),)
    yield _tile_attention_forward(w, (*decoded, *before, *at_attention), backend)
    layer: Held = (("layer, as counted", counted.forward), ("the tile before", w.hidden))
    yield PeakCandidate(phase="forward", at="in a layer", token=(*decoded, *layer))
    own: Held = (("logsumexp", w.logsumexp), *output)
    adapters = ("adapters", (len(w.spec.linears) + 4) * w.inner)
    layer = (("layer, as counted", counted.backward - w.output), *own, adapters)
    yield PeakCandidate(phase="backward", at="in a layer", token=(*decoded, *layer))
    # The list of attention's backward pass has its gradients and the layer's output and residual gradient itself.
    rest = counted.backward_attention - w.output - 2 * w.hidden
    yield _tile_attention_backward(w, (*decoded, ("layer, as counted", rest)), own, backend)


def _keeping(
    w: Widths, loss: PeakCandidate, layer: Held, keep: int, *, encoded: bool, backend: Backend
) -> Iterator[PeakCandidate]:
    """Yields the peaks while the last `keep` layers are kept, from their forward pass to the first one's backward.

    A layer's output is the next one's input, so only the lowest has an input of its own. Decoded inputs are copies.
    """
    inputs = (("their inputs", (keep if encoded else 1) * w.hidden),)
    kept: Held = (*((name, keep * size) for name, size in layer), *inputs)
    yield PeakCandidate(
        phase="forward", at="in the last layer kept", token=(("output before its sum", w.hidden),), kept=kept
    )
    # The previous tile, which a loss over several tiles still references, is the last layer's output here.
    yield replace(loss, token=(("final norm and its gradient", 2 * w.hidden), *w.norm_copies(1)), kept=kept)
    gradient = ("gradient of its output", w.hidden)
    more = max((w.mlp_peak - w.mlp_saved) * w.mlp, w.experts_peak - w.experts_saved) + 4 * w.inner
    if w.counted is not None:
        more = w.counted.backward - w.counted.saved + 4 * w.inner
    yield PeakCandidate(
        phase="backward",
        at="in the MLP of a layer kept",
        token=(gradient, ("gradients in the MLP", more)),
        kept=kept,
    )
    others: Held = (*((name, (keep - 1) * size) for name, size in layer), *inputs)
    entry: Held = (("normed input", w.hidden), *w.norm_copies(1))
    attention: Held = (*w.rotated, ("attention output and logsumexp", w.queries + w.logsumexp))
    if w.counted is not None:
        entry = (("layer, as counted", w.counted.backward_attention - w.queries - 2 * w.hidden),)
        attention = (("attention output and logsumexp", w.queries + w.logsumexp),)
    own = _tile_attention_backward(w, (gradient, *entry), attention, backend)
    yield replace(own, at="in the attention of a layer kept", kept=others)


def _with_gradients(moments: Iterable[PeakCandidate], w: Widths) -> Iterator[PeakCandidate]:
    """Adds the gradients of trained weights: each as it is computed, and a layer's fp32 sums over its tiles.

    With fp32 weights, the sums are the gradients that wait for the update anyway.
    """
    spec, wide = w.spec, 4 if w.element == 2 else 0
    table, widest = spec.vocab_size * spec.hidden_size, spec.largest_tensor
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


def _tile_embedding(w: Widths) -> PeakCandidate:
    tables = [w.spec.vocab_size * width for width in (w.spec.hidden_size, w.spec.layers * w.spec.layer_input)]
    sums = (("its sum, fp32", 4 * sum(tables)),) if w.element == 2 else ()
    return PeakCandidate(
        phase="backward",
        at="at the embedding",
        token=(("embedded tokens", w.hidden), ("gradients of all layers' inputs", w.own_inputs)),
        fixed=(("the embedding's gradient", w.element * max(tables)), *sums, *_embedded_at_once(w, w.own_copies)),
    )


def _embedded_at_once(w: Widths, copies: int) -> Held:
    """What gives some tokens the inputs of all layers: rows of a table, projections, and a norm's copies in fp32."""
    each = copies * w.own_inputs
    return (("inputs of all layers for some tokens", EMBEDDED_AT_ONCE * each),) if each else ()


def _tile_forward(w: Widths, decoded: Held) -> PeakCandidate:
    """No graph: the MLP's tensors beside the residual, the normed input and the previous tile, which is still alive."""
    held = (*decoded, ("residual, norm and the tile before", 3 * w.hidden), ("MLP", w.mlp_forward * w.mlp), *w.routed)
    return PeakCandidate(phase="forward", at="in the MLP", token=held)


def _tile_attention_forward(w: Widths, layer: Held, backend: Backend) -> PeakCandidate:
    """A block's output is merged into the running sum of the blocks before it."""
    held = (
        *layer,
        ("output so far, fp32", w.wide * w.queries + w.logsumexp),
        ("a block's output", w.queries + w.logsumexp),
        *_reversed(w, results=w.queries, inputs=w.queries),
    )
    repeated: Held = (("repeated keys and values", 2 * w.queries),) if repeats_keys(w.spec, backend) else ()
    key = (*repeated, *_expanded(w), *_wide_keys(w, backend, copies=1))
    return PeakCandidate(phase="forward", at="in attention", token=held, key=key, fixed=_scores(backend, tensors=2))


def _tile_loss(w: Widths, *, fused_loss: bool) -> PeakCandidate:
    """The final norm's output, its gradient, and the previous tile's gradient; a loss chunk's own tensors are small."""
    held = (("final norm and its gradients", 3 * w.hidden), *w.norm_copies(1))
    tensors = 1 if not w.spec.whole_head else _CAPPED_HEAD if w.spec.caps_logits else _SCALED_HEAD
    logit = tensors * w.element if fused_loss else LOGIT_BYTES
    return PeakCandidate(phase="loss", at="at the head", token=held, logit=logit)


def _tile_mlp_backward(w: Widths, entry: Held, attention: Held) -> PeakCandidate:
    held = (
        *entry,
        *attention,
        *_between(w),
        ("layer output", w.hidden),
        ("MLP and its gradients", w.mlp_peak * w.mlp),
        *w.routed,
        ("adapters", (len(w.spec.linears) + 4) * w.inner),
    )
    return PeakCandidate(phase="backward", at="in the MLP", token=held)


def _tile_experts(w: Widths, decoded: Held, before: Held, *, adapted: bool) -> Iterator[PeakCandidate]:
    forward: Held = (("residual and norm", 2 * w.hidden), ("experts", w.experts_forward(adapted=adapted)))
    yield PeakCandidate(phase="forward", at="in the experts", token=(*decoded, *forward))
    held = (
        *before,
        *_between(w),
        ("layer output", w.hidden),
        ("experts and their gradients", w.experts_peak),
        *(w.adapted_experts() if adapted else ()),
        ("adapters", (len(w.spec.linears) + 4) * w.inner),
    )
    yield PeakCandidate(phase="backward", at="in the experts", token=held)


def _with_adapted_experts(moments: Iterable[PeakCandidate], w: Widths) -> Iterator[PeakCandidate]:
    """Adds what a layer that was counted without adapters on its experts holds for them."""
    for moment in moments:
        yield replace(moment, token=(*moment.token, *w.adapted_experts())) if moment.phase == "backward" else moment


def _tile_attention_backward(w: Widths, entry: Held, attention: Held, backend: Backend) -> PeakCandidate:
    """A block's gradients are computed while those of the previous block are still held."""
    held = (
        *entry,
        *attention,
        ("layer output and residual gradient", 2 * w.hidden),
        ("output gradient", w.queries),
        ("sums of gradients, fp32", w.wide * (w.queries + 2 * w.keys)),
        ("two blocks' query gradients", 2 * w.queries),
        ("adapters", 4 * w.inner),
        *_reversed(w, results=0, inputs=3 * w.queries),
        *_ATTENTION_WORKSPACE[backend](w),
    )
    blocks = (("keys' and values' gradients", 2 * w.keys),)
    expansion: Held = (("gradients of the expansion", w.queries + w.output),) if w.spec.latent is not None else ()
    key = (*blocks, *_expanded(w), *expansion, *_key_workspace(w, backend), *_wide_keys(w, backend, copies=2))
    return PeakCandidate(phase="backward", at="in attention", token=held, key=key, fixed=_scores(backend, tensors=4))


def _scores(backend: Backend, *, tensors: int) -> Held:
    """Scores of some queries, which capped attention writes out in fp32."""
    return (("capped scores, fp32", tensors * 4 * SCORES_AT_ONCE),) if backend == "softcapped" else ()


def _wide_keys(w: Widths, backend: Backend, *, copies: int) -> Held:
    """Bytes per key of fp32 copies of a block's keys and values, and of their gradients, where scores are capped."""
    return (("keys and values in fp32", copies * 2 * w.wide * w.keys),) if backend == "softcapped" else ()


def _expanded(w: Widths) -> Held:
    """Bytes per key of a block of latents that is expanded while the block before it is still held.

    Half of the expansion's own product and of the values filled up to the width of keys, which one block has.
    """
    if w.spec.latent is None:
        return ()
    own = (w.spec.latent.expanded * w.element + w.queries) // 2
    return (("expanded keys and values", w.queries + w.output), ("their expansion", own))


def _reversed(w: Widths, *, results: int, inputs: int) -> Held:
    """Copies from which a window's mirrored triangle is computed (engine.attention.mask_tiles), for a whole tile."""
    return (("reversed for the window's edge", results + inputs + 2 * w.keys),) if w.spec.windowed_layers else ()


_ATTENTION_WORKSPACE: dict[Backend, Callable[[Widths], Held]] = {
    "cudnn": lambda w: (("kernel's query gradients, fp32", w.wide * w.queries), ("row sums", w.logsumexp)),
    "flash": lambda w: (("kernel's query gradients, fp32", w.wide * w.queries), ("row sums", w.logsumexp)),
    "efficient": lambda w: (("row sums", w.logsumexp),),
    "cpu": lambda w: (("row sums", w.logsumexp),),
    "softcapped": lambda w: (("row sums", w.logsumexp),),
}
"""Bytes per query of the workspace of each kernel's backward pass."""


def repeats_keys(spec: ModelSpec, backend: Backend) -> bool:
    """Whether the kernel lacks grouped heads, so that each key and value is repeated for every query head."""
    return backend in ("efficient", "cpu") and spec.heads != spec.kv_heads


def _key_workspace(w: Widths, backend: Backend) -> Held:
    """Bytes per key of the kernel's workspace. Of two consecutive blocks only one is computed, so half of it counts."""
    if w.spec.heads == w.spec.kv_heads or backend == "softcapped":
        return ()
    if repeats_keys(w.spec, backend):
        return (("repeated keys, values and their gradients", 2 * w.queries),)
    return (("gradients of each query head's keys and values", w.queries),)
