"""Writes docs/claims.md: what the announcement claimed, what was measured, and what is true.

python benchmarks/claims.py [--check]

A figure comes from a measurement stored under benchmarks/results/, or from the planner, which says so. A claim whose
measurement is missing says that it is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.claim_findings import (
    NOT_YET,
    ROOT,
    Finding,
    against_lora,
    before_and_after,
    by_window,
    compile_success,
    context_under,
    convergence,
    count_of_optimizations,
    epoch_hours,
    four_bit_activations,
    fused_kernels,
    long_context,
    ordinary_way,
    packing,
    paged_kv,
    power_sgd,
    profiling_time,
    proven,
    recovery,
    ring,
)

PAGE = ROOT / "docs" / "claims.md"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, in the announcement's own terms, and what is known about it."""

    subject: str
    claimed: str
    find: Callable[[], Finding]


CLAIMS: tuple[Claim, ...] = (
    Claim(subject="RTX 2060 (8 GB)", claimed="512K tokens", find=lambda: context_under(7.25, 524_288, "an RTX 2060")),
    Claim(subject="12 GB of VRAM", claimed="1M tokens", find=lambda: context_under(11, 1_048_576, "a 12 GB card")),
    Claim(
        subject="RTX 3090, 4090 (24 GB)", claimed="2M tokens", find=lambda: context_under(22.5, 2_097_152, "the card")
    ),
    Claim(
        subject="RTX 3090, 4090 (24 GB)", claimed="4M tokens", find=lambda: context_under(22.5, 4_194_304, "the card")
    ),
    Claim(subject="RTX 2060 Super", claimed="32K in 7.2 GB before, 512K in 2.3 GB after", find=before_and_after),
    Claim(subject="context against the ordinary way", claimed="16 to 32 times", find=ordinary_way),
    Claim(
        subject="grouped-query attention",
        claimed="8 times smaller KV cache, 2.10 GB",
        find=lambda: proven(
            "gqa",
            "it is the model's own: 6 times for Qwen2.5-Coder-1.5B, 7 for 0.5B and 7B; pooling other models costs loss",
        ),
    ),
    Claim(
        subject="selective checkpointing",
        claimed="√n, 1.92 GB",
        find=lambda: proven(
            "selective_checkpointing", "true in kind; how much depends on model and context, see the plan"
        ),
    ),
    Claim(subject="4-bit activations", claimed="4 times, 1.44 GB", find=four_bit_activations),
    Claim(subject="PowerSGD", claimed="320 times less to send", find=power_sgd),
    Claim(subject="ring attention", claimed="O(1) memory, unbounded context", find=ring),
    Claim(subject="sequence packing", claimed="5 to 6 times the throughput", find=packing),
    Claim(
        subject="ZeRO-3",
        claimed="1.50 GB",
        find=lambda: proven("zero3", "true in kind: weights and states are divided by the processes"),
    ),
    Claim(
        subject="PagedAttention",
        claimed="0.12 GB",
        find=paged_kv,
    ),
    Claim(subject="fused kernels", claimed="0.50 GB, 25% faster", find=fused_kernels),
    Claim(
        subject="dynamic curriculum",
        claimed="40% faster convergence",
        find=lambda: convergence(
            ".*curriculum.*",
            ".*windows of 1,024",
            "not true here: no faster at equal tokens; its windows cost less attention. Off by default",
        ),
    ),
    Claim(
        subject="LoRA+",
        claimed="2 times faster convergence",
        find=lambda: convergence(
            r"LoRA\+.*",
            r"LoRA, rate [\d.]+",
            "true at one and the same rate, not against plain LoRA at its own best rate. Off by default",
        ),
    ),
    Claim(
        subject="FlashAttention-2",
        claimed="80% less activation memory",
        find=lambda: proven("flash_attention", "true: quadratic becomes linear, so the share depends on the length"),
    ),
    Claim(
        subject="8-bit AdamW",
        claimed="(named without a figure)",
        find=lambda: proven("adamw_8bit", "true; of an adapter's states, which are small"),
    ),
    Claim(subject="hours an epoch", claimed="2.4 standard, 1.8 optimised, 0.6 packed", find=epoch_hours),
    Claim(subject="optimisations", claimed="43, with 15 papers", find=count_of_optimizations),
    Claim(
        subject="compile success",
        claimed="94 to 98%",
        find=compile_success,
    ),
    Claim(
        subject="perplexity against standard LoRA",
        claimed="15 to 20% better",
        find=lambda: long_context("long-context-own", against_lora),
    ),
    Claim(
        subject="long context pays",
        claimed="(implied)",
        find=lambda: long_context("long-context", by_window),
    ),
    Claim(subject="hardware profile", claimed="about 2 minutes", find=profiling_time),
    Claim(subject="recovery, checkpoints, resumption", claimed="automatic, multi-day", find=recovery),
)


def page() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    findings = [(claim, claim.find()) for claim in CLAIMS]
    missing = sum(NOT_YET in finding.measured for _, finding in findings)
    yield from (
        "# Claims",
        "",
        "<!-- Written by `make claims` from benchmarks/results. -->",
        "",
        "The system was announced before it existed. Each claim of that announcement, what was measured since, how, "
        f"and what is true. {len(findings)} claims; {missing} of them have no measurement yet, and say so. Versions "
        "and machines of each measurement stand in its file under `benchmarks/results`.",
        "",
        "| | claimed | measured | how | verdict |",
        "|---|---|---|---|---|",
    )
    for claim, finding in findings:
        cells = (claim.subject, claim.claimed, finding.measured, finding.how, finding.verdict)
        assert all(cells), claim.subject
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield from (
        "",
        "Savings in GB were announced without a model or a context, and cannot be held against anything: what a "
        "technique saves in a run of yours stands in `engine optimizations`, and in the tier's sum that "
        "`engine plan --tier N` shows.",
    )


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            print("docs/claims.md is not current, run `make claims`")
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
