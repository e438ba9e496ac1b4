"""Trains on a 128K-token session of an agent, uncut, through `engine train`, on a card of 7.25 GiB.

    python benchmarks/session_gpu.py OUT.json [--model qwen2.5-coder-1.5b] [--context 131072] [--card 7.25] [--steps 2]
    python benchmarks/session_gpu.py OUT.json --tiny       the same on the CPU, with a model of two small layers

A folder holds the model's true shapes with random bf16 weights and the demo's tokenizer with ChatML's tokens. A data
set holds two sessions that fill the context to within a few tokens: one is trained on, one is held out. The engine is
told of a card of --card GiB in place of the GPU's own memory, and torch's allocator refuses more than that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

GIB = 1 << 30
SMALL_CARD = """
import dataclasses, os, sys
import engine.hardware.inventory as inventory

cap, found = int(float(os.environ["CARD_GIB"]) * (1 << 30)), inventory.take_inventory

def take_inventory(*args, **kwargs):
    machine = found(*args, **kwargs)
    gpus = tuple(dataclasses.replace(gpu, memory_total=cap, memory_free=cap) for gpu in machine.gpus)
    if gpus and "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.get_device_properties(0).total_memory, 0)
    return dataclasses.replace(machine, gpus=gpus)

inventory.take_inventory = take_inventory
"""
"""Run by every Python that starts: its engine finds a card of so many GiB, and torch gets no more of it."""
WORDS = ("load", "parse", "width", "index", "queue", "retry", "cache", "token", "write", "read", "field", "value")


def write_model(folder: Path, name: str, *, tiny: bool) -> None:
    import torch
    from tokenizers import AddedToken, Tokenizer

    from engine.assets import asset
    from engine.models.catalogue import find_model
    from engine.models.placement import Placement
    from engine.models.random import random_model

    if tiny:
        from transformers import Qwen2Config, Qwen2ForCausalLM

        shapes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
        made = Qwen2ForCausalLM(Qwen2Config(vocab_size=9000, num_hidden_layers=2, tie_word_embeddings=True, **shapes))
    else:
        placement = Placement(device=torch.device("cuda"), precision="bf16", compute="bf16")
        made = random_model(find_model(name), placement)
    made.config.max_position_embeddings = 131072
    made.save_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(asset("demo-model", "tokenizer.json")))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_bytes(asset("demo-model", "tokenizer_config.json").read_bytes())
    del made
    if not tiny:
        torch.cuda.empty_cache()


def session(seed: int, context: int, folder: Path) -> tuple[dict[str, Any], int, int]:
    """A session of calls and results, as a row, with its tokens and those of its answers."""
    from tokenizers import Tokenizer

    from engine.data.chats import Chats, find_template
    from engine.data.conversations import RowReader
    from engine.tokenization.encoder import Encoder

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder = Encoder(tokenizer)
    template = find_template(tokenizer, encoder, "chatml")
    assert template is not None
    chats, draw = Chats(encoder, template), random.Random(seed)

    def said(words: int) -> str:
        return " ".join(f"{draw.choice(WORDS)}_{draw.randrange(100)}" for _ in range(words))

    turns = [{"role": "user", "content": f"Task {seed}: {said(40)}"}]
    while sum(len(turn["content"] or "") for turn in turns) < 8 * context:
        call = {"type": "function", "function": {"name": "read", "arguments": {"path": said(2), "text": said(24)}}}
        turns.append({"role": "assistant", "content": said(12), "tool_calls": [call]})
        turns.append({"role": "tool", "content": said(160)})

    def encoded(count: int, words: int) -> Any:
        output = " ".join(turns[count - 1]["content"].split()[:words])
        kept = [*turns[: count - 1], {**turns[count - 1], "content": output}]
        row = {"messages": [*kept, {"role": "assistant", "content": "Done."}]}
        return row, chats.encode([RowReader({}).read(row)], None)[0]

    # As many turns as fit, and then as many words of the last tool's output.
    counts, words = list(range(3, len(turns) + 1, 2)), list(range(1, 161))
    count = counts[last_that_fits(counts, lambda n: len(encoded(n, 1)[1].ids) <= context)]
    kept = words[last_that_fits(words, lambda n: len(encoded(count, n)[1].ids) <= context)]
    row, found = encoded(count, kept)
    return row, len(found.ids), int(found.learnt.sum())


def last_that_fits(values: list[int], fits: Any) -> int:
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(values[middle]) else (low, middle)
    return low


def train(folder: Path, rows: Path, args: argparse.Namespace) -> dict[str, Any]:
    settings = {
        "training.context": args.context,
        "training.evaluate_tokens": 256,
        "training.tokens_per_update": args.context,
        "training.epochs": 100,
        "evaluation.at_end": "false",
        "data.chat_template": "chatml",
        "data.held_out_fraction": 0.4,
        "data.near_duplicates": "keep",
        "model.device": "cpu" if args.tiny else "cuda",
        "model.precision": "fp32" if args.tiny else "bf16",
        "training.step": "streamed",
        "training.memory_tuning": "false",
    }
    words = [sys.executable, "-m", "engine", "train", "--json", "--model", str(folder), "--dataset", str(rows)]
    words += ["--output", str(folder.parent / "output"), "--max-steps", str(args.steps)]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    start = folder.parent / "start"
    start.mkdir()
    (start / "sitecustomize.py").write_text(SMALL_CARD)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(start), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "CARD_GIB": str(args.card),
        "ELITE_TUI_STATE_DIR": str(folder.parent / "state"),
        "XDG_CACHE_HOME": str(folder.parent / "cache"),
    }
    began = time.monotonic()
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=args.limit)
    events = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    steps = [event for event in events if event["kind"] == "StepCompleted"]
    if ended.returncode or not steps:
        raise RuntimeError(f"exit {ended.returncode}: {ended.stderr[-800:]} {json.dumps(events[-1:])[:600]}")
    (plan,) = (folder.parent / "output" / "runs").glob("*/plan.json")
    layout = json.loads(plan.read_text())["plan"]
    return {
        "seconds_in_all": time.monotonic() - began,
        "plan": layout,
        "steps": [
            {key: step.get(key) for key in ("loss", "grad_norm", "tokens", "seconds", "gpu_peak", "host_used")}
            for step in steps
        ],
        "exit": ended.returncode,
        "all_step_fields": {key: value for key, value in steps[-1].items() if isinstance(value, int | float)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--context", type=int)
    parser.add_argument("--card", type=float, default=7.25, help="GiB of the card's memory.")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--limit", type=float, default=240, help="Seconds at most.")
    parser.add_argument("--tiny", action="store_true", help="On the CPU, with a tiny model.")
    args = parser.parse_args()
    args.context = args.context or (1024 if args.tiny else 131072)
    from engine.benchmarking.machine import describe_machine

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder, rows = Path(temporary) / "model", Path(temporary) / "sessions.jsonl"
        folder.mkdir()
        write_model(folder, args.model, tiny=args.tiny)
        made = [session(seed, args.context, folder) for seed in (1, 2)]
        rows.write_text("".join(json.dumps(row) + "\n" for row, *_ in made))
        prepared = time.monotonic() - began
        found = train(folder, rows, args)
    import torch

    result = {
        "command": " ".join(["python", "benchmarks/session_gpu.py", *sys.argv[1:]]),
        "machine": describe_machine(torch.device("cpu" if args.tiny else "cuda")),
        "model": "tiny" if args.tiny else args.model,
        "context": args.context,
        "card_gib": None if args.tiny else args.card,
        "sessions": [
            {"tokens": tokens, "loss_tokens": answers, "turns": len(row["messages"])} for row, tokens, answers in made
        ],
        "prepared_seconds": prepared,
        **found,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['model']}, one session a step, {args.context:,} tokens of context, a card of {args.card} GiB")
    for number, step in enumerate(found["steps"], 1):
        peak = "-" if step["gpu_peak"] is None else f"{step['gpu_peak'] / GIB:.2f} GiB"
        took, loss = f"{step['seconds'] or 0:7.2f} s", f"loss {step['loss']:.4f}"
        print(f"step {number}: {took}  peak {peak:>9}  {step['tokens']:,} loss tokens  {loss}")
    lengths = ", ".join(f"{one['tokens']:,}" for one in result["sessions"])
    print(f"sessions of {lengths} tokens; {prepared:.0f} s to prepare, {result['seconds_in_all']:.0f} s of the run")


if __name__ == "__main__":
    main()
