"""Trains the embedded model from scratch, with every weight, for a given time: on a large GPU, or a little on a CPU.

    python scripts/pretrain_small.py --corpus out/corpus --out out/small --limit-s 560              # one run on a GPU
    python scripts/pretrain_small.py --corpus out/corpus --out out/small --limit-s 560 --total-s 1000    # one of two
    python scripts/pretrain_small.py --corpus out/corpus --out out/small --steps 600 --tokens 4096  # on a CPU

It reads what `scripts/embedded_corpus.py tokens` wrote. Matrices learn by Muon (torch.optim), what is left by AdamW, in
bf16 with fp32 master weights. The rate warms up, stays, and falls linearly over the last part of the time (WSD, arXiv
2404.06395); windows are long in the last part only. The state is written every minute, and the same command goes on
from it until --total-s seconds were trained. Weights are written in bf16, in files of less than 16 MB.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.monotonic()
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))

import torch
from pretrain_windows import Corpus
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM

KEEP_S, SCORE_S = 60.0, 45.0
"Seconds between two writings of the state, and between two scorings."
ENDING_S = 25.0
"Seconds of --limit-s that are left for the last scores and for writing."
SHARD = "15MB"
WARM_UP = 0.02
"Share of the run over which the rate rises."


class Run:
    """A model in training: its state goes to disk and comes back."""

    def __init__(self, options: argparse.Namespace) -> None:
        from embedded_init import first_weights

        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.corpus = Corpus(options.corpus)
        config = Qwen2Config.from_pretrained(options.shape)
        first = first_weights(config, options.seed)
        if options.start is not None:
            first.load_state_dict(Qwen2ForCausalLM.from_pretrained(options.start, dtype=torch.float32).state_dict())
        self.model = first.to(self.device)
        self.updating = optimizers(self.model, options)
        self.peaks = [one.param_groups[0]["lr"] for one in self.updating]
        self.step, self.seconds, self.tokens = 0, 0.0, 0
        self.curve: list[dict[str, float]] = []
        self._loss_of = loss_of if options.eager else torch.compile(loss_of, dynamic=False)
        self._state = options.out / "state.pt"

    def load(self) -> None:
        """Goes on from the state on disk, if there is one."""
        if not self._state.is_file():
            return
        state = torch.load(self._state, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for one, kept in zip(self.updating, state["optimizers"], strict=True):
            one.load_state_dict(kept)
        self.step, self.seconds, self.tokens, self.curve = (
            state[name] for name in ("step", "seconds", "tokens", "curve")
        )
        print(f"goes on after step {self.step}, {self.seconds:.0f} s trained", flush=True)

    def keep(self) -> None:
        """Writes the state; what was there before is replaced once the new one is complete."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [one.state_dict() for one in self.updating],
            **{name: getattr(self, name) for name in ("step", "seconds", "tokens", "curve")},
        }
        torch.save(state, self._state.with_suffix(".part"))
        self._state.with_suffix(".part").replace(self._state)

    def update(self, batch: torch.Tensor, share: float) -> torch.Tensor:
        """Makes one update on windows of shape (windows, context + 1); returns the loss, on the device."""
        for one, peak in zip(self.updating, self.peaks, strict=True):
            one.param_groups[0]["lr"] = peak * share
        loss = torch.zeros((), device=self.device)
        parts = batch.split(max(1, self.options.at_once // (batch.shape[1] - 1)))
        for windows in parts:
            part = self._loss_of(self.model, windows) * (len(windows) / len(batch))
            part.backward()
            loss += part.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for one in self.updating:
            one.step()
            one.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch.shape[0] * (batch.shape[1] - 1)
        return loss

    def warm(self, context: int) -> None:
        """Compiles both passes for windows of a length, before the clock of the schedule runs."""
        rows = max(1, self.options.at_once // context)
        windows = torch.zeros(rows, context + 1, dtype=torch.long, device=self.device)
        self._loss_of(self.model, windows).backward()
        self.model.zero_grad(set_to_none=True)
        self._finish()

    @torch.no_grad()
    def score(self, context: int) -> float:
        """Returns the mean loss of the held-out packages' windows, nats a token."""
        windows = torch.from_numpy(self.corpus.held_out[:, : context + 1].astype("int64"))
        rows = max(1, self.options.at_once // context)
        total = 0.0
        for some in windows.split(rows):
            total += loss_of(self.model, some.to(self.device)).item() * len(some)
        return total / len(windows)

    def clock(self) -> float:
        """Returns the time once the device has done what was launched."""
        self._finish()
        return time.monotonic()

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def loss_of(model: Qwen2ForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy a token, nats, of windows of shape (windows, context + 1)."""
    with torch.autocast(windows.device.type, dtype=torch.bfloat16):
        # A mask of None leaves the attention causal, and torch its flash kernels.
        mask = {"full_attention": None}
        logits = model(input_ids=windows[:, :-1], attention_mask=mask, use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def optimizers(model: Qwen2ForCausalLM, options: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, biases and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    scale = options.rate_scale
    return [
        torch.optim.Muon(matrices, lr=scale * options.matrix_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=scale * options.rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(done: float, decay: float) -> float:
    """Share of the peak rate at a share of the run: rises, stays, and falls to zero over the last `decay`."""
    return max(0.0, min(1.0, (done + 1e-4) / WARM_UP, (1.0 - done) / decay))


def train(run: Run) -> bool:
    """Trains until the run's time or this process's is over; returns whether the run is complete."""
    options = run.options
    lengths = sorted({options.context, options.long_context})
    for context in lengths:
        run.warm(context)
    began = run.clock()
    total = options.total_s
    if total is None and options.limit_s is not None:
        total = run.seconds + options.limit_s - ENDING_S - (began - STARTED)
    deadline = math.inf if options.limit_s is None else STARTED + options.limit_s - ENDING_S
    before, share = run.seconds, [0.0]

    def done() -> float:
        return run.step / options.steps if options.steps else run.seconds / total

    def context(step: int) -> int:
        # Asked by the thread that cuts batches, some steps ahead: by time the switch comes that much later.
        reached = step / options.steps if options.steps else share[0]
        return options.long_context if reached >= 1.0 - options.long_share else options.context

    share[0] = done()
    batches = run.corpus.batches(options.seed, run.step, options.tokens, options.fim, context, options.plain)
    kept = scored = at = began
    seen = run.tokens
    while share[0] < 1.0 and time.monotonic() < deadline:
        batch = torch.from_numpy(next(batches).astype("int64"))
        if run.device.type == "cuda":
            batch = batch.pin_memory().to(run.device, non_blocking=True)
        loss = run.update(batch, rate(share[0], options.decay))
        if run.step % options.show == 0:
            value = loss.item()
            if not math.isfinite(value):
                raise SystemExit(f"step {run.step}: the loss is not finite; go on with --rate-scale 0.5")
            now = time.monotonic()
            speed = (run.tokens - seen) / max(1e-9, now - at)
            print(f"step {run.step} loss {value:.3f} {speed:,.0f} tokens/s, {100 * share[0]:.0f}%", flush=True)
            if now - scored > SCORE_S:
                note(run, options.context, before + now - began)
                scored = time.monotonic()
            if now - kept > KEEP_S:
                run.keep()
                kept = time.monotonic()
            seen, at = run.tokens, time.monotonic()
        run.seconds = before + time.monotonic() - began
        share[0] = done()
    run.seconds = before + run.clock() - began
    return share[0] >= 1.0


def note(run: Run, context: int, seconds: float) -> None:
    """Scores the held-out windows and prints the loss."""
    loss = run.score(context)
    run.curve.append({"step": run.step, "tokens": run.tokens, "seconds": round(seconds, 1), "held_out": round(loss, 4)})
    print(f"step {run.step}: held-out loss {loss:.4f}, {run.tokens / 1e6:,.0f} M tokens", flush=True)


def write(run: Run, complete: bool) -> None:
    """Writes weights in bf16 and what the training did."""
    options = run.options
    scores = {str(context): run.score(context) for context in sorted({options.context, options.long_context})}
    about: dict[str, Any] = {
        "complete": complete,
        "steps": run.step,
        "tokens": run.tokens,
        "epochs": round(run.tokens / len(run.corpus.train), 2),
        "seconds": round(run.seconds, 1),
        "device": torch.cuda.get_device_name() if run.device.type == "cuda" else f"{torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "held_out_loss": {context: round(loss, 4) for context, loss in scores.items()},
        "curve": run.curve,
        "settings": {name: str(value) for name, value in vars(options).items()},
    }
    if run.device.type == "cuda":
        about["gpu_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    folder = options.weights or options.out
    folder.mkdir(parents=True, exist_ok=True)
    weights = Qwen2ForCausalLM(run.model.config).to(torch.bfloat16)
    weights.load_state_dict(run.model.state_dict())
    weights.save_pretrained(folder, max_shard_size=SHARD)
    (folder / "training.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for context, loss in scores.items():
        print(f"held-out loss {loss:.4f} in windows of {context}, perplexity {math.exp(loss):.2f}")
    print(f"{run.step} steps, {run.tokens:,} tokens, {about['epochs']} epochs, complete: {complete}")


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of tokens.xz and tokens.json")
    parser.add_argument("--shape", type=Path, default=ROOT / "assets" / "demo-model" / "config.json")
    parser.add_argument("--start", type=Path, help="folder of weights to go on from (default: random ones)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the state, and of the weights")
    parser.add_argument("--weights", type=Path, help="another folder of the weights")
    parser.add_argument("--limit-s", type=float, help="seconds of this process, start and end included")
    parser.add_argument("--total-s", type=float, help="seconds of training in all processes (default: this one's)")
    parser.add_argument("--steps", type=int, help="updates in place of a time")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--long-context", type=int, default=8192, help="of the last part")
    parser.add_argument("--long-share", type=float, default=0.15, help="of the run, with the long context")
    parser.add_argument("--decay", type=float, default=0.3, help="share of the run in which the rate falls")
    parser.add_argument("--tokens", type=int, default=262_144, help="of an update")
    parser.add_argument("--at-once", type=int, default=131_072, help="tokens that go through the model together")
    parser.add_argument("--fim", type=float, default=0.35, help="share of windows of fill-in-the-middle")
    parser.add_argument("--plain", type=float, default=0.2, help="share of the other windows without a path line")
    parser.add_argument("--rate", type=float, default=4e-3, help="AdamW's peak rate (embeddings, biases, norms)")
    parser.add_argument("--matrix-rate", type=float, default=6e-3, help="Muon's peak rate")
    parser.add_argument("--rate-scale", type=float, default=1.0, help="of both rates")
    parser.add_argument("--show", type=int, default=20, help="updates between two lines")
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which takes a minute at first")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.at_once = min(options.at_once, options.tokens)
    if options.limit_s is None and options.steps is None:
        parser.error("give --limit-s or --steps")
    if any(options.at_once % n for n in (options.context, options.long_context)) or options.tokens % options.at_once:
        parser.error("--tokens must be a multiple of --at-once, and that one of both contexts")
    return options


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    run = Run(options)
    run.load()
    complete = train(run)
    run.keep()
    note(run, options.context, run.seconds)
    write(run, complete)


if __name__ == "__main__":
    main()
