"""Proofs of changes to models."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.amp import GradScaler

from engine.config import LoraSection, RunConfig, TrainingSection
from engine.models.adapter import attach_adapter, trainable
from engine.models.base_changes import BaseChanges, stretch_positions
from engine.models.catalogue import find_model
from engine.models.grouped_heads import pool_key_value_heads
from engine.models.loading import load_model
from engine.models.placement import choose_placement
from engine.models.transforms import transform
from engine.steps.whole_step import WholeSequenceStep
from engine.verify.measure import relative_error
from engine.verify.proof import Bench, demand, need_library
from engine.verify.small import (
    SmallRun,
    Unbothered,
    adapted,
    gradients,
    patterned_tokens,
    random_tokens,
    small_model,
)


def qlora(bench: Bench) -> str:
    """Layer weights take about 4.1 bits; a run over them trains; only the adapter has gradients."""
    need_library("bitsandbytes", "quant")
    spec = find_model("demo")
    placements = {name: choose_placement(bench.device.type, name) for name in ("bf16", "nf4")}
    models = {name: load_model(spec, placement) for name, placement in placements.items()}
    sizes = {name: _linear_bits(model) for name, model in models.items()}
    demand(sizes["bf16"] == 16 and sizes["nf4"] < 4.6, f"bits a weight {sizes}")
    model = attach_adapter(models["nf4"], LoraSection(), seed=0)
    windows = [patterned_tokens(128, seed, vocabulary=spec.vocab_size) for seed in range(8)]
    run = SmallRun(bench.folder, bench.device, windows, model, training={"epochs": 3.0, "tokens_per_update": 512})
    losses = run.steps()
    demand(losses[-1] < losses[0] - 0.3, f"loss {losses[0]:.2f} → {losses[-1]:.2f}")
    demand(all("lora" in name for name in trainable(model)), "more than the adapter is trained")
    return (
        f"bits a weight 16.00 → {sizes['nf4']:.2f}; loss of the demo model {losses[0]:.2f} → {losses[-1]:.2f} "
        f"in {len(losses)} steps"
    )


def _linear_bits(model: Any) -> float:
    """Returns the bits per weight of the decoder layers' linear layers, scales included."""
    weights = bits = 0
    for layer in model.get_decoder().layers:
        for module in layer.modules():
            if not isinstance(module, torch.nn.Linear):
                continue
            weight: Any = module.weight
            state = getattr(weight, "quant_state", None)
            weights += module.in_features * module.out_features
            bits += 8 * weight.numel() * weight.element_size()
            if state is not None:
                scales = [state.absmax, *((state.state2.absmax,) if state.nested else ())]
                bits += sum(8 * scale.numel() * scale.element_size() for scale in scales)
    return bits / weights


def mixed_precision(bench: Bench) -> str:
    """Activations are 16-bit over fp32 master weights; a scaled loss skips an overflowing update and continues."""
    placement = choose_placement(bench.device.type, "bf16")
    accelerator = Accelerator(cpu=not bench.on_gpu, mixed_precision=placement.mixed_precision)
    base = small_model(device=bench.device).to(placement.dtype)
    model = adapted(base)
    seen = set()
    handle = base.get_decoder().layers[1].register_forward_hook(lambda _m, _i, output: seen.add(_first(output).dtype))
    half_step = WholeSequenceStep(model, recompute=False, autocast=accelerator.autocast)
    half_step.run([random_tokens(200)], 1 / 199, Unbothered())
    handle.remove()
    masters = {p.dtype for p in trainable(model).values()}
    demand(seen == {torch.bfloat16}, f"activations are {seen}")
    demand(masters == {torch.float32}, f"the adapter's weights are {masters}")
    half = gradients(model)
    model.to(torch.float32)
    WholeSequenceStep(model, recompute=False).run([random_tokens(200)], 1 / 199, Unbothered())
    exact = gradients(model)
    error = math.sqrt(
        sum(float((half[n] - exact[n]).square().sum()) for n in exact)
        / sum(float(exact[n].square().sum()) for n in exact)
    )
    demand(error < 0.1, f"the gradient differs by {error:.1%} from fp32")
    scales = _scaled_steps(bench.device)
    demand(scales == (1024.0, 512.0, True, False), f"the scaler's values are {scales}")
    return (
        f"activations bf16, adapter and its gradients fp32, gradient within {error:.1%} of fp32; "
        "fp16's scaler halves 1,024 → 512 at an overflow, skips that update and makes the next"
    )


def _first(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _scaled_steps(device: torch.device) -> tuple[float, float, bool, bool]:
    """Returns the scale before and after an overflow, and whether that update and the next were skipped."""
    weight = torch.nn.Parameter(torch.ones(4, device=device))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = GradScaler(device.type, init_scale=1024.0, growth_interval=1000)
    before, skipped = scaler.get_scale(), []
    for factor in (float("inf"), 1.0):
        held = weight.detach().clone()
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        skipped.append(bool(torch.equal(held, weight)))
    return before, scaler.get_scale(), skipped[0], skipped[1]


def gqa(bench: Bench) -> str:
    """Heads of a trained multi-head model are pooled; keys and values shrink, and training recovers the loss."""
    windows = [patterned_tokens(64, seed) for seed in range(24)]
    settings: dict[str, Any] = {
        "training": {"tokens_per_update": 256, "learning_rate": 5e-3, "epochs": 6.0},
        "lora": {"rank": 32},
    }
    config: dict[str, Any] = {"num_key_value_heads": 8, "num_attention_heads": 8, "partial_rotary_factor": 0.5}
    first = SmallRun(
        bench.folder,
        bench.device,
        windows,
        adapted(small_model("phi", device=bench.device, **config), noise=0.0),
        **settings,
    )
    first.steps()
    trained = first.held_out_loss()
    merged = first.model.merge_and_unload()
    before = _key_width(merged)
    pool_key_value_heads(merged, 2)
    after = _key_width(merged)
    second = SmallRun(
        bench.folder, bench.device, windows, adapted(merged.requires_grad_(requires_grad=False), noise=0.0), **settings
    )
    pooled = second.held_out_loss()
    second.steps()
    recovered = second.held_out_loss()
    demand(before == 4 * after, f"values a token {before} → {after}")
    demand(pooled > trained + 0.05, f"pooling left the loss at {pooled:.2f}, it was {trained:.2f}")
    demand(recovered < trained, f"training does not win the loss back: {trained:.2f} → {pooled:.2f} → {recovered:.2f}")
    return (
        f"keys and values a token and layer {before} → {after} numbers; held-out loss {trained:.2f} → {pooled:.2f} "
        f"by pooling → {recovered:.2f} after {len(second.losses)} updates"
    )


def _key_width(model: Any) -> int:
    """Returns the number of key and value elements per token that a layer computes."""
    attention = model.get_decoder().layers[0].self_attn
    widths: list[int] = []
    handles = [
        projection.register_forward_hook(lambda _m, _i, output: widths.append(output.shape[-1]))
        for projection in (attention.k_proj, attention.v_proj)
    ]
    with torch.no_grad():
        model(input_ids=torch.zeros((1, 4), dtype=torch.long, device=model.device))
    for handle in handles:
        handle.remove()
    return sum(widths)


def neftune(bench: Bench) -> str:
    """The noise has the norm that the paper gives, in training only."""
    alpha, length = 5.0, 512
    model = adapted(small_model(device=bench.device))
    transform(model, TrainingSection(neftune_alpha=alpha), length)
    ids = torch.as_tensor(random_tokens(length).ids, device=bench.device)[None]
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        plain = embedding.eval()(ids)
        noise = embedding.train()(ids) - plain
    demand(torch.equal(plain, embedding.weight[ids]), "evaluation is disturbed")
    # Uniform on ±a has variance a²/3, so the norm over n·d elements is alpha / √3.
    found, expected = float(noise.norm()), alpha / math.sqrt(3)
    demand(abs(found / expected - 1) < 0.02, f"the noise's length is {found:.3f}, expected {expected:.3f}")
    return f"noise of length {found:.3f} on {length} embeddings (alpha / √3 = {expected:.3f}), none in evaluation"


def rope_scaling(bench: Bench) -> str:
    """Past the trained length, slow rotations are stretched and fast ones kept, as YaRN defines them."""
    spec = find_model("demo")
    context = 4 * spec.max_context
    placement = choose_placement(bench.device.type, "fp32")
    changes = BaseChanges.of(RunConfig().model, spec, context)
    demand(changes.yarn_factor == 4.0, f"the factor at {context:,} tokens is {changes.yarn_factor}")
    plain, stretched = (load_model(spec, placement, asked) for asked in (BaseChanges(), changes))
    rates = [model.get_decoder().rotary_emb.inv_freq.double().cpu() for model in (plain, stretched)]
    slowest, fastest = float(rates[0][-1] / rates[1][-1]), float(rates[0][0] / rates[1][0])
    demand(abs(slowest - 4) < 1e-3 and abs(fastest - 1) < 1e-3, f"slowest ÷ {slowest:.2f}, fastest ÷ {fastest:.2f}")
    scaling = stretched.get_decoder().rotary_emb.attention_scaling
    expected = 0.1 * math.log(4) + 1
    demand(abs(scaling - expected) < 1e-3, f"attention is scaled by {scaling:.3f}, expected {expected:.3f}")
    ids = torch.arange(64, device=bench.device)[None]
    with torch.no_grad():
        difference = relative_error(
            {"logits": stretched(input_ids=ids).logits}, {"logits": plain(input_ids=ids).logits}
        )
    kept = small_model().config
    kept.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    demand(not stretch_positions(kept, 4.0), "a model's own scaling was replaced")
    return (
        f"at {context:,} tokens (trained: {spec.max_context:,}) the slowest rotation is {slowest:.2f} times slower, "
        f"the fastest unchanged, cosines × {scaling:.3f}; logits move by {difference:.1%}"
    )
