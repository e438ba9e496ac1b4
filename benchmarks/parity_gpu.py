"""Loss and gradient of the streamed step beside whole-sequence backpropagation, in fp32, for every home and layout.

    python benchmarks/parity_gpu.py OUT.json [--device cuda] [--tokens 2100]

A small random Mistral, all weights trained. The reference is transformers' own forward and backward over the whole
sequence, document by document. Each layout runs seven tiles twice: the second step finds buffers in use. A row says the
worse of the two: the largest relative error of any weight's gradient in the 2-norm, and the loss's relative error.
Exit code 1 if any row is off by more than the tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

TOLERANCE = 5e-5
"""fp32 sums in another order; what copies get wrong is larger by orders of magnitude."""
VOCABULARY = 97


@dataclass(frozen=True)
class Layout:
    """A row of the table; lengths in tiles."""

    stash: bool
    kv_home: str
    hidden_home: str
    window: float | None
    packed: bool

    @property
    def name(self) -> str:
        """As the table says it."""
        seen = "all keys" if self.window is None else f"{self.window:g} tiles"
        documents = "packed" if self.packed else "one"
        stash = "stash" if self.stash else "no stash"
        return f"{stash:<9} {self.kv_home:<5} {self.hidden_home:<6} {seen:<10} {documents:<7}"


def layouts() -> Iterator[Layout]:
    """Every combination that a plan may have. Windows shorter than a tile, and with a page's border in the overlap."""
    for window, packed in product((None, 0.7, 2.4), (False, True)):
        for stash, kv_home, hidden_home in product((True, False), ("gpu", "host"), ("gpu", "host", "disk")):
            if (kv_home, hidden_home) != ("host", "gpu"):
                yield Layout(stash, kv_home, hidden_home, window, packed)


class Bench:
    """The model's builds, tokens and references.

    Args:
        device: Where to compute.
        tokens: Of the sequence; a tile is a seventh.
    """

    def __init__(self, device: Any, tokens: int) -> None:
        import torch

        self.device, self.tile = device, -(-tokens // 7)
        self.ids = torch.randint(0, VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(1)).to(device)
        self._references: dict[tuple[int | None, bool], tuple[float, dict[str, Any]]] = {}

    def window(self, layout: Layout) -> int | None:
        """Keys that a query sees."""
        return None if layout.window is None else int(layout.window * self.tile)

    def starts(self, layout: Layout) -> tuple[int, ...]:
        """First positions of the documents: within a tile, at its last token, and far apart."""
        tile = self.tile
        return (0, tile // 4, tile - 1, 3 * tile + tile // 2) if layout.packed else (0,)

    def model(self, layout: Layout) -> Any:
        """The same weights each time."""
        import torch
        from transformers import AutoModelForCausalLM, MistralConfig

        config = MistralConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=192,
            max_position_embeddings=8192,
            sliding_window=self.window(layout),
            initializer_range=0.15,  # with near-uniform attention the gradients of q and k would be mostly rounding
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        return model.to(self.device).train()

    def reference(self, layout: Layout) -> tuple[float, dict[str, Any]]:
        """Summed loss, and the gradients of its mean."""
        import torch

        key = self.window(layout), layout.packed
        if key not in self._references:
            model = self.model(layout)
            borders = [*self.starts(layout), len(self.ids)]
            predicted = sum(stop - start - 1 for start, stop in pairwise(borders))
            total = 0.0
            for start, stop in pairwise(borders):
                ids = self.ids[None, start:stop]
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
                loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
                (loss / predicted).backward()
                total += float(loss.detach())
            self._references[key] = total, {name: p.grad.clone() for name, p in model.named_parameters()}
        return self._references[key]

    def measure(self, layout: Layout, folder: Path) -> tuple[float, float]:
        """Relative errors of gradient and loss."""
        from engine.plan.stream_plan import StreamPlan
        from engine.streaming.step import StreamedStep

        expected_loss, expected = self.reference(layout)
        model = self.model(layout)
        plan = StreamPlan(
            tile=self.tile,
            key_block=self.tile * 5 // 3,
            loss_piece=256,
            stash=layout.stash,
            kv_home=layout.kv_home,
            hidden_home=layout.hidden_home,
            attention="efficient" if self.device.type == "cuda" else "cpu",
        )
        errors, losses = [], []
        with StreamedStep(model, plan, device=self.device, spill_directory=folder) as step:
            for _ in range(2):
                model.zero_grad()
                outcome = step.run(self.ids, document_starts=self.starts(layout))
                losses.append(abs(outcome.loss_sum / expected_loss - 1))
                for name, parameter in model.named_parameters():
                    difference = (parameter.grad.double() - expected[name].double()).norm()
                    errors.append(float(difference / expected[name].double().norm()))
        # A NaN is larger than anything.
        return max(errors, key=lambda x: (x != x, x)), max(losses, key=lambda x: (x != x, x))


def main() -> int:
    import torch

    from engine.benchmarking.machine import describe_machine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=2100)
    given = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    bench = Bench(torch.device(given.device), given.tokens)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for layout in layouts():
            gradient, loss = bench.measure(layout, Path(folder))
            right = gradient < TOLERANCE and loss < TOLERANCE
            rows.append({**vars(layout), "gradient_error": gradient, "loss_error": loss, "right": right})
            rows[-1]["name"] = layout.name
    result = {
        "command": f"python benchmarks/parity_gpu.py OUT.json --tokens {given.tokens}",
        "machine": describe_machine(bench.device),
        "tile": bench.tile,
        "rows": rows,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'stash':<9} {'kv':<5} {'hidden':<6} {'window':<10} {'docs':<7} gradient  loss")
    for row in rows:
        verdict = "" if row["right"] else "  WRONG"
        print(f"{row['name']} {row['gradient_error']:.1e}   {row['loss_error']:.1e}{verdict}")
    return 0 if all(row["right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
