"""Proofs of the adapter's variants."""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer

from engine.config import RunConfig, from_mapping
from engine.models.adapter import trainable
from engine.verify.proof import Bench, demand
from engine.verify.small import SmallRun, adapted, small_model


def lora_plus(bench: Bench) -> str:
    """B trains at `plus_ratio` times the rate of A; compares the loss after equal steps, both ways."""
    ratio, losses = 8.0, {}
    for name, plus in (("lora", 1.0), ("lora+", ratio)):
        run = SmallRun(
            bench.folder, bench.device, lora={"plus_ratio": plus}, training={"learning_rate": 1e-3, "epochs": 6.0}
        )
        losses[name] = sum(run.steps()[-8:]) / 8
    names = {id(parameter): name for name, parameter in trainable(run.model).items()}
    rates: dict[str, set[float]] = {"A": set(), "B": set()}
    for group in run.parts.optimizer.param_groups:
        for parameter in group["params"]:
            rates["B" if "lora_B" in names[id(parameter)] else "A"].add(group["initial_lr"])
    demand(len(rates["A"]) == len(rates["B"]) == 1, f"rates {rates}")
    found = rates["B"].pop() / rates["A"].pop()
    demand(abs(found / ratio - 1) < 1e-9, f"B's rate is {found:g} times A's, not {ratio:g}")
    return (
        f"B's rate is {found:g} times A's; loss after {len(run.losses)} steps of a small model "
        f"{losses['lora']:.3f} → {losses['lora+']:.3f}"
    )


def rslora(bench: Bench) -> str:
    """The update's scale is alpha / √rank."""
    scales = []
    for stabilised in (False, True):
        config = from_mapping({"lora": {"rank": 64, "alpha": 32.0, "rslora": stabilised}})
        model = adapted(small_model(device=bench.device), config)
        found = {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)}
        demand(len(found) == 1, f"scales {found}")
        scales.append(found.pop())
    demand(scales == [32 / 64, 32 / 8], f"scales {scales}, expected 0.5 and 4")
    return f"scale at rank 64, alpha 32: {scales[0]:g} → {scales[1]:g} = 32 / √64"


def dora(bench: Bench) -> str:
    """Each output's column length is a trained parameter; the untrained adapter changes nothing."""
    plain = adapted(small_model(device=bench.device), RunConfig(), noise=0.0)
    model = adapted(small_model(device=bench.device), from_mapping({"lora": {"dora": True}}), noise=0.0)
    lengths = {name: p for name, p in trainable(model).items() if "magnitude" in name}
    extra = sum(p.numel() for p in trainable(model).values()) - sum(p.numel() for p in trainable(plain).values())
    outputs = sum(module.out_features for module in model.modules() if isinstance(module, LoraLayer))
    demand(extra == outputs > 0, f"{extra:,} more parameters for {outputs:,} outputs")
    ids = torch.arange(64, device=bench.device)[None]
    with torch.no_grad():
        difference = float((model(input_ids=ids).logits - plain(input_ids=ids).logits).abs().max())
    demand(difference < 1e-3, f"the untrained adapter changes logits by {difference:.1e}")
    before = {name: p.detach().clone() for name, p in lengths.items()}
    run = SmallRun(bench.folder, bench.device, model=model, lora={"dora": True})
    run.steps(4)
    moved = sum(bool((p != before[name]).any()) for name, p in lengths.items())
    demand(moved == len(lengths), f"{moved} of {len(lengths)} lengths were trained")
    return (
        f"{extra:,} trainable lengths for {outputs:,} outputs, all of them trained; "
        f"untrained logits within {difference:.0e}"
    )
