"""Trains the embedded model from scratch on a CPU, with every weight: a check of the corpus, and small weights.

    python scripts/pretrain_small.py --corpus out/corpus --tokenizer out/corpus/tokenizer --out out/small --steps 1500

Windows are cut at random from the store that `scripts/embedded_corpus.py store` made; matrices learn by Muon, what is
left by AdamW, in bf16 with fp32 master weights. The rate rises over 3% of the steps and falls linearly over the last
half. The same seed, threads and versions give the same windows. The recipe for a GPU is recipes/embedded.yaml.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from engine.data.store import open_store

HELD_OUT_WINDOWS = 24
AT_ONCE = 4
"""Windows that go through the model together: their activations stay in the processor's cache."""


class Stream:
    """The store's tokens as one stream; its end, the held-out files, is kept apart."""

    def __init__(self, store: Path, context: int, held_out: int, seed: int) -> None:
        opened = open_store(store.parent, store.name)
        if opened is None:
            raise SystemExit(f"no store in {store}: run scripts/embedded_corpus.py store")
        self._tokens, self._context = opened.tokens, context
        self._train = len(opened.tokens) - held_out
        self._random = np.random.default_rng(seed)

    def batch(self, windows: int) -> torch.Tensor:
        """Windows at random places of the training side. Shape (windows, context + 1), int64."""
        return self._cut(self._random.integers(0, self._train - self._context - 1, windows))

    def held_out(self) -> torch.Tensor:
        """The same windows at every call. Shape (HELD_OUT_WINDOWS, context + 1), int64."""
        last = len(self._tokens) - self._context - 1
        return self._cut(np.linspace(self._train, last, HELD_OUT_WINDOWS).astype(np.int64))

    def _cut(self, starts: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([self._tokens[s : s + self._context + 1] for s in starts]).astype(np.int64))


def rate(step: int, steps: int) -> float:
    """Share of the peak rate."""
    return min(1.0, (step + 1) / (0.03 * steps), (steps - step) / (0.5 * steps))


def loss_of(model: Qwen2ForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy a token, nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def optimizers(model: Qwen2ForCausalLM, options: argparse.Namespace) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=options.matrix_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=options.rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of scripts/embedded_corpus.py")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of its tokenizer")
    parser.add_argument("--shape", type=Path, default=ROOT / "assets" / "demo-model" / "config.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16, help=f"windows a step, a multiple of {AT_ONCE}")
    parser.add_argument("--rate", type=float, default=4e-3, help="AdamW's peak rate (embeddings, biases, norms)")
    parser.add_argument("--matrix-rate", type=float, default=6e-3, help="Muon's peak rate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    store, held_out = (options.corpus / "store.txt").read_text().split()
    stream = Stream(options.corpus / "store" / store, options.context, int(held_out), options.seed)
    torch.manual_seed(options.seed)
    model = Qwen2ForCausalLM(Qwen2Config.from_pretrained(options.shape))
    updating = optimizers(model, options)
    peaks = [one.param_groups[0]["lr"] for one in updating]
    compiled = torch.compile(loss_of, dynamic=False)
    started, curve = time.monotonic(), []
    for step in range(options.steps):
        for one, peak in zip(updating, peaks, strict=True):
            one.param_groups[0]["lr"] = peak * rate(step, options.steps)
        loss = 0.0
        for windows in stream.batch(options.windows).split(AT_ONCE):
            part = compiled(model, windows) * (len(windows) / options.windows)
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one in updating:
            one.step()
            one.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == options.steps - 1:
            seconds = time.monotonic() - started
            curve.append((step + 1, round(loss, 4), round(seconds, 1)))
            tokens = (step + 1) * options.windows * options.context
            print(f"step {step + 1} loss {loss:.3f} {tokens / seconds:,.0f} tokens/s", flush=True)
        if not math.isfinite(loss):
            raise SystemExit("the loss is not finite: lower the rates")
    with torch.no_grad():
        score = torch.stack([loss_of(model, window[None]) for window in stream.held_out()]).mean().item()
    model.to(torch.bfloat16).save_pretrained(options.out)
    PreTrainedTokenizerFast.from_pretrained(options.tokenizer).save_pretrained(options.out)
    about = {
        "steps": options.steps,
        "tokens": options.steps * options.windows * options.context,
        "seconds": round(time.monotonic() - started, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "held_out_loss": round(score, 4),
        "curve": curve,
        "settings": {name: str(value) for name, value in vars(options).items()},
    }
    (options.out / "training.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(f"held-out loss {score:.3f}, perplexity {math.exp(score):.2f}")


if __name__ == "__main__":
    main()
