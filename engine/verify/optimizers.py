"""Proofs of optimisers, schedules and weight averages, as a run composes them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim.lr_scheduler import PolynomialLR

from engine.optim.lr_range import range_rates, range_test
from engine.training import tensor_tree
from engine.verify.proof import Bench, demand, need_library
from engine.verify.small import SmallRun, adapted, patterned_tokens, small_model


def adamw_8bit(bench: Bench) -> str:
    """State bytes per parameter fall to about a quarter, and the loss falls as in fp32."""
    need_library("bitsandbytes", "quant")
    bytes_, losses = {}, {}
    for kind in ("adamw", "adamw_8bit"):
        # Use wide matrices: states of fewer than 4,096 elements stay in fp32.
        model = adapted(small_model(device=bench.device, hidden_size=512, num_hidden_layers=1), noise=0.0)
        run = SmallRun(bench.folder, bench.device, model=model, training={"optimizer": kind, "learning_rate": 2e-3})
        losses[kind] = run.steps(12)
        parameters = run.learning.updating.optimizer.param_groups[0]["params"]
        wide = {str(i): p.numel() for i, p in enumerate(parameters) if p.numel() >= 4096}
        _, tensors = tensor_tree.split(run.parts.optimizer.state_dict()["state"])
        held = sum(t.numel() * t.element_size() for name, t in tensors.items() if name.partition(".")[0] in wide)
        bytes_[kind] = held / sum(wide.values())
    demand(bytes_["adamw_8bit"] < 0.3 * bytes_["adamw"], f"state bytes a parameter {bytes_}")
    gap = abs(losses["adamw_8bit"][-1] - losses["adamw"][-1])
    demand(gap < 0.05 and losses["adamw"][-1] < losses["adamw"][0], f"losses {losses}")
    return (
        f"state bytes a parameter {bytes_['adamw']:.2f} → {bytes_['adamw_8bit']:.2f}; loss after 12 steps "
        f"{losses['adamw'][-1]:.3f} and {losses['adamw_8bit'][-1]:.3f} from {losses['adamw'][0]:.3f}"
    )


def _rates(bench: Bench, **training: object) -> tuple[list[float], list[float]]:
    """Returns learning rate and first momentum of every update of a run."""
    windows = [patterned_tokens(64, seed) for seed in range(8)]
    settings = {"learning_rate": 0.01, "warmup_fraction": 0.0, "tokens_per_update": 64, **training}
    run = SmallRun(bench.folder, bench.device, windows, training=settings)
    rates, momenta = [], []
    for _ in range(run.progress.total_steps):
        rates.append(float(run.parts.schedule.get_last_lr()[0]))
        momenta.append(run.learning.updating.optimizer.param_groups[0]["betas"][0])
        run.step()
    return rates, momenta


def one_cycle_lr(bench: Bench) -> str:
    """The rate rises to its peak at 30% and ends 10,000 times below its start; the momentum does the opposite."""
    rates, momenta = _rates(bench, schedule="one_cycle")
    peak = max(range(len(rates)), key=rates.__getitem__)
    share = peak / len(rates)
    demand(math.isclose(rates[peak], 0.01, rel_tol=0.05), f"peak {rates[peak]:.4g}, expected 0.01")
    demand(math.isclose(rates[0], 0.01 / 25, rel_tol=0.01), f"first rate {rates[0]:.4g}, expected 0.0004")
    demand(0.2 < share < 0.4 and rates[-1] < rates[0] / 1000, f"peak at {share:.0%}, last rate {rates[-1]:.1e}")
    demand(momenta[peak] < 0.87 < 0.94 < momenta[0], f"momentum {momenta[0]:.3f} and {momenta[peak]:.3f} at the peak")
    return (
        f"rate {rates[0]:.1e} → {rates[peak]:.1e} at {share:.0%} → {rates[-1]:.1e}; "
        f"momentum {momenta[0]:.2f} → {momenta[peak]:.2f} → {momenta[-1]:.2f}"
    )


def polynomial_lr(bench: Bench) -> str:
    """The rates are those of torch's PolynomialLR."""
    rates, _ = _rates(bench, schedule="polynomial", polynomial_power=2.0)
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = PolynomialLR(reference, total_iters=len(rates), power=2.0)
    expected = []
    for _ in rates:
        expected.append(float(schedule.get_last_lr()[0]))
        reference.step()
        schedule.step()
    worst = max(abs(a - b) for a, b in zip(rates, expected, strict=True))
    demand(worst < 1e-9, f"rates differ from torch's PolynomialLR by {worst:.1e}")
    return f"{len(rates)} rates from {rates[0]:.1e} to {rates[-1]:.1e} within {worst:.0e} of torch's PolynomialLR"


def lr_scaling(bench: Bench) -> str:
    """Four times the tokens per update scale the rate by 2 (square-root rule) or by 4 (linear rule)."""

    def first_rate(rule: str) -> float:
        training = {"lr_scaling": rule, "learning_rate": 1e-4, "tokens_per_update": 32_768, "warmup_fraction": 0.0}
        return float(SmallRun(bench.folder, bench.device, training=training).parts.schedule.get_last_lr()[0])

    ratios = [first_rate(rule) / 1e-4 for rule in ("none", "sqrt", "linear")]
    demand(all(map(math.isclose, ratios, (1.0, 2.0, 4.0))), f"rates times {ratios}, expected 1, 2, 4")
    return "rate at 4 × 8,192 tokens an update: × 1 (none), × 2 (sqrt), × 4 (linear)"


def lr_range_test(bench: Bench) -> str:
    """The suggested rate trains; the rate at which the test diverged does not."""

    def trained(rate: float) -> float:
        run = SmallRun(bench.folder, bench.device, training={"learning_rate": min(rate, 1.0), "epochs": 2.0})
        losses = run.steps()
        return sum(losses[-4:]) / 4

    run = SmallRun(bench.folder, bench.device, training={"epochs": 20.0, "max_grad_norm": 1e9})

    def step(rate: float) -> float:
        for group in run.learning.updating.optimizer.param_groups:
            group["lr"] = rate
        return run.steps(1)[0]

    found = range_test(step, range_rates(1e-5, 1.0, 60))
    if found.diverged_at is None:
        demand(False, f"no divergence up to a rate of 1; smoothed loss {found.smoothed[-1]:.2f}")
    start = found.losses[0]
    good, bad = trained(found.suggested), trained(found.diverged_at or 1.0)
    demand(
        good < start - 0.3, f"the suggested {found.suggested:.1e} brings the loss from {start:.2f} to {good:.2f} only"
    )
    demand(bad > good + 0.2, f"the rate of divergence {found.diverged_at:.1e} trains as well: {bad:.2f}")
    return (
        f"suggested {found.suggested:.1e}, diverged at {found.diverged_at:.1e}; loss {start:.2f} → {good:.2f} "
        f"at the suggested rate, {bad:.2f} at the other"
    )


def _history(run: SmallRun, steps: int) -> list[dict[str, Tensor]]:
    """Returns the adapter after each of `steps` updates."""
    weights = []
    for _ in range(steps):
        run.step()
        weights.append(run.weights())
    return weights


def _worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


def ema(bench: Bench) -> str:
    """The scored and saved weights are decay · average + (1 − decay) · weights, update by update."""
    decay = 0.8
    run = SmallRun(bench.folder, bench.device, training={"ema_decay": decay})
    history = _history(run, 8)
    expected = history[0]
    for weights in history[1:]:
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in weights}
    with run.learning.averaged():
        error = _worst(run.weights(), expected)
    restored = _worst(run.weights(), history[-1])
    run.learning.keep_result()
    kept, apart = _worst(run.weights(), expected), _worst(history[-1], expected)
    demand(max(error, kept) < 1e-6 and restored == 0, f"the kept adapter is {kept:.1e} off the average")
    return f"kept adapter within {kept:.0e} of the average by hand, which is {apart:.1e} from the last weights"


def swa(bench: Bench) -> str:
    """The saved weights are the mean of the last updates' weights, at a constant rate."""
    run = SmallRun(bench.folder, bench.device, training={"swa_fraction": 0.25, "warmup_fraction": 0.0})
    total = run.progress.total_steps
    rates = []
    history = []
    for _ in range(total):
        rates.append(float(run.parts.schedule.get_last_lr()[0]))
        history += _history(run, 1)
    last = history[-round(total * 0.25) :]
    expected = {name: torch.stack([weights[name] for weights in last]).mean(0) for name in last[0]}
    run.learning.keep_result()
    kept, apart = _worst(run.weights(), expected), _worst(history[-1], expected)
    held = set(rates[-len(last) :])
    demand(kept < 1e-6, f"the kept adapter is {kept:.1e} off the mean of the last {len(last)}")
    demand(len(held) == 1 and rates[0] > rates[-1] > 0, f"rates of the averaged updates {sorted(held)}")
    return (
        f"kept adapter within {kept:.0e} of the mean of the last {len(last)} of {total}, {apart:.1e} from the last one"
    )


def lookahead(bench: Bench) -> str:
    """After every k-th update the weights equal the slow ones, replayed with plain AdamW."""
    k, alpha = 4, 0.5
    run = SmallRun(bench.folder, bench.device, training={"lookahead_steps": k, "lookahead_alpha": alpha})
    plain = SmallRun(bench.folder, bench.device)
    slow = plain.weights()
    plain.steps(k)
    fast = plain.weights()
    expected = {name: slow[name] + alpha * (fast[name] - slow[name]) for name in slow}
    run.steps(k)
    error, apart = _worst(run.weights(), expected), _worst(fast, expected)
    demand(error < 1e-6, f"after {k} updates the weights are {error:.1e} off slow + {alpha} (fast − slow)")
    return f"after {k} updates weights within {error:.0e} of slow + {alpha} (fast − slow), {apart:.1e} from plain AdamW"
