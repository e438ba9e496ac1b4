"""Proofs of the whole-window step and of the loss."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.data.windows import Window, joined
from engine.models import lm_head
from engine.models.fine_tuning import AdapterTuning
from engine.models.shifted_attention import shift_attention
from engine.models.tiled_mlp import tile_mlps
from engine.plan.stream_plan import StreamPlan
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import TrainingStep, WholeSequenceStep
from engine.streaming.step import StreamedStep
from engine.verify.measure import mib, peak_bytes, relative_error
from engine.verify.proof import Bench, demand
from engine.verify.small import Unbothered, adapted, gradients, random_tokens, small_model

EXACT = 5e-5
"""Relative difference that fp32 rounding explains."""


def _whole_gradient(model: Any, length: int, **options: Any) -> dict[str, Tensor]:
    step = WholeSequenceStep(model, **{"recompute": False, **options})
    step.run([random_tokens(length)], 1 / (length - 1), Unbothered())
    return gradients(model)


def tiled_mlp(bench: Bench) -> str:
    """The gradient is the same, with a lower peak."""
    length = 513  # a GPU's fp32 attention keeps all its scores, which must not dominate the peak
    shape: dict[str, Any] = {"intermediate_size": 4096, "num_hidden_layers": 2}
    plain, tiled = (adapted(small_model(device=bench.device, **shape)) for _ in range(2))
    tile_mlps(tiled.get_base_model(), tile=64)
    error = relative_error(_whole_gradient(tiled, length), _whole_gradient(plain, length))
    peaks = [peak_bytes(bench.device, partial(_whole_gradient, m, length)) for m in (plain, tiled)]
    demand(error < EXACT, f"the gradient differs by {error:.1e}")
    demand(peaks[1] < 0.6 * peaks[0], f"peak {mib(peaks[0])} → {mib(peaks[1])}")
    return f"gradient within {error:.1e}; peak of a step {mib(peaks[0])} → {mib(peaks[1])}"


def fused_linear_cross_entropy(bench: Bench) -> str:
    """Loss and gradient are the same without all logits at once."""
    generator = torch.Generator().manual_seed(0)
    tokens, width, words = 4096, 64, 4096
    projection = torch.nn.Linear(width, words, bias=False).requires_grad_(requires_grad=False)
    projection.weight.copy_(torch.randn(words, width, generator=generator))
    projection = projection.to(bench.device)
    hidden = torch.randn(tokens, width, generator=generator).to(bench.device).requires_grad_()
    targets = torch.randint(words, (tokens,), generator=generator).to(bench.device)

    def plain() -> dict[str, Tensor]:
        loss = functional.cross_entropy(projection(hidden), targets, reduction="sum")
        return {"loss": loss.detach(), "gradient": torch.autograd.grad(loss, hidden)[0]}

    def pieces() -> dict[str, Tensor]:
        loss = lm_head.summed_cross_entropy(hidden, projection, targets, piece=512)
        return {"loss": loss.detach(), "gradient": torch.autograd.grad(loss, hidden)[0]}

    error = relative_error(pieces(), plain())
    peaks = [peak_bytes(bench.device, way) for way in (plain, pieces)]
    demand(error < EXACT, f"loss or gradient differ by {error:.1e}")
    demand(peaks[1] < peaks[0] / 3, f"peak {mib(peaks[0])} → {mib(peaks[1])}")
    return (
        f"loss and gradient within {error:.1e}; peak {mib(peaks[0])} → {mib(peaks[1])} "
        f"for {tokens:,} × {words:,} logits"
    )


def gradient_checkpointing(bench: Bench) -> str:
    """The gradient is the same, with a lower peak."""
    length = 1025
    shape: dict[str, Any] = {"num_hidden_layers": 8}
    plain, again = (adapted(small_model(device=bench.device, **shape)) for _ in range(2))
    error = relative_error(_whole_gradient(again, length, recompute=True), _whole_gradient(plain, length))
    peaks = [
        peak_bytes(bench.device, partial(_whole_gradient, m, length, recompute=r))
        for m, r in ((plain, False), (again, True))
    ]
    demand(error < EXACT, f"the gradient differs by {error:.1e}")
    demand(peaks[1] < 0.5 * peaks[0], f"peak {mib(peaks[0])} → {mib(peaks[1])}")
    return f"gradient within {error:.1e}; peak of a step {mib(peaks[0])} → {mib(peaks[1])}"


def sequence_packing(bench: Bench) -> str:
    """Documents packed in one row keep their own loss and gradient, whole and streamed, without padding."""
    lengths = [400, 37, 190, 73, 8, 292]
    documents = [random_tokens(n, seed) for seed, n in enumerate(lengths)]
    packed = joined(documents)
    predicted, longest = sum(lengths) - len(lengths), max(lengths)
    plan = StreamPlan(tile=256, key_block=512, attention="efficient" if bench.on_gpu else "cpu")
    errors = []
    for streamed in (False, True):
        model = adapted(small_model(device=bench.device))
        step: TrainingStep = (
            StreamedWindows(AdapterTuning(model), plan, device=bench.device, spill_directory=bench.folder)
            if streamed
            else WholeSequenceStep(model, recompute=False)
        )
        results = []
        for windows in (documents, [packed]):
            loss = step.run(windows, 1 / predicted, Unbothered()).loss_sum
            results.append({"loss": torch.tensor(loss), **gradients(model)})
        errors.append(relative_error(results[1], results[0]))
        if not streamed:
            seconds = _seconds_of(step, [packed])
            padded = [Window(np.pad(document.ids, (0, longest - len(document)))) for document in documents]
            seconds_padded = _seconds_of(step, padded)
    demand(max(errors) < EXACT, f"packed loss or gradient differ by {max(errors):.1e} from the documents apart")
    computed = longest * len(lengths)
    return (
        f"loss and gradient within {errors[0]:.1e} of the documents apart, {errors[1]:.1e} streamed; {sum(lengths):,} "
        f"tokens computed instead of {computed:,} padded, {seconds_padded / seconds:.1f} times the tokens/s here"
    )


def _seconds_of(step: TrainingStep, windows: list[Window]) -> float:
    began = time.perf_counter()
    step.run(windows, 1.0, Unbothered())
    return time.perf_counter() - began


def label_smoothing(bench: Bench) -> str:
    """The smoothed loss matches its definition, and both kinds of step give the same gradient."""
    share, length = 0.2, 300
    model = adapted(small_model(device=bench.device))
    ids = torch.as_tensor(random_tokens(length).ids, device=bench.device)
    step = WholeSequenceStep(model, recompute=False, label_smoothing=share)
    found = step.run([random_tokens(length)], 1.0, Unbothered()).loss_sum
    whole = gradients(model)
    with torch.no_grad():
        logs = -torch.log_softmax(model(input_ids=ids[None, :-1]).logits[0].float(), -1)
        right = logs.gather(1, ids[1:, None]).sum()
        expected = float((1 - share) * right + share * logs.mean(1).sum())
    plan = StreamPlan(tile=128, key_block=256, attention="efficient" if bench.on_gpu else "cpu")
    with StreamedStep(model, plan, device=bench.device, label_smoothing=share) as streamed:
        tiled = streamed.run(ids.cpu(), scale=1.0).loss_sum
    error = max(relative_error(gradients(model), whole), abs(found / expected - 1), abs(tiled / expected - 1))
    demand(error < EXACT, f"loss {found:.3f} and {tiled:.3f}, expected {expected:.3f}; relative error {error:.1e}")
    return f"summed loss {float(right):.1f} → {found:.1f} = definition within {error:.1e}, whole and streamed"


def longlora_s2(bench: Bench) -> str:
    """Training attends no further than neighbouring groups and never ahead; evaluation attends to everything."""
    length = 256
    plain, shifted = (adapted(small_model(device=bench.device, num_hidden_layers=1)) for _ in range(2))
    shift_attention(shifted.get_base_model(), context=length)
    ids = torch.as_tensor(random_tokens(length).ids, device=bench.device)[None]
    reach = _reach(shifted, ids, query=200)
    full = _reach(plain, ids, query=200)
    with torch.no_grad():
        evaluated = [model.eval()(input_ids=ids).logits for model in (plain, shifted)]
    error = relative_error({"logits": evaluated[1]}, {"logits": evaluated[0]})
    demand(full == (0, 200), f"plain attention sees tokens {full}")
    # Groups of 64: token 200 is in [192, 256), and in [160, 224) when shifted.
    demand(reach == (160, 200), f"in training token 200 sees tokens {reach[0]} to {reach[1]}, expected 160 to 200")
    demand(error < EXACT, f"in evaluation logits differ by {error:.1e} from full attention")
    return f"training: token 200 sees from 160 on, not from 0, and nothing ahead; evaluation within {error:.1e} of full"


def _reach(model: Any, ids: Tensor, query: int) -> tuple[int, int]:
    """Returns first and last token whose embedding the output at `query` depends on, in training mode."""
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    output = model.train()(inputs_embeds=embedded).logits[0, query].sum()
    (gradient,) = torch.autograd.grad(output, embedded)
    seen = gradient[0].abs().sum(-1).nonzero().flatten()
    return int(seen[0]), int(seen[-1])
