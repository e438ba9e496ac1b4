"""Runs of `engine train` against one that is computed apart: from the rows to the adapter, without the engine's code.

The reference renders and tokenises the rows, runs plain transformers and PEFT on one document at a time in fp64, and
has clipping, AdamW and the schedules written out. Which rows are held out it learns from the base model's perplexity.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy, one_hot
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

END, OPEN, CLOSE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPES = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FAMILIES = {
    "gemma3_text": {"sliding_window": 13, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "output_router_logits": True,
        "router_aux_loss_coef": 0.05,
    },
}


def save_model(path: Path, family: str) -> PreTrainedTokenizerFast:
    """Saves a tiny model of random weights, and a tokenizer of bytes with ChatML's tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate([END, OPEN, CLOSE, *alphabet])}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([END, OPEN, CLOSE])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, chat_template=TEMPLATE)
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **SHAPES, vocab_size=len(tokenizer), **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return tokenizer


def conversations(draw: random.Random) -> list[dict]:
    rows = []
    for number in range(14):
        talk = [{"role": "system", "content": f"rule {number}"}] if draw.random() < 0.5 else []
        for turn in range(draw.randint(1, 2)):
            answer = {"role": "assistant", "content": "y" * draw.randint(1, 20) + str(number)}
            answer |= draw.choice([{}, {}, {"weight": 0.25}, {"train": 0} if turn else {}])
            talk += [{"role": "user", "content": f"{number} why " + "z" * draw.randint(0, 20)}, answer]
        rows.append({"messages": talk, **draw.choice([{}, {"weight": 3.0}])})
    return rows


def document_of(row: dict, name: str, number: int, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[float]]:
    """Token ids and the weight of each as a target, 0 where it is not learnt."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    if "text" in row:
        ids = [*encode(f"# {name}/{number:08d}\n{row['text']}"), 0]
        return ids, [row.get("weight", 1.0)] * len(ids)
    ids, weights = [], []
    for message in row["messages"]:
        factor = row.get("weight", 1.0) * message.get("weight", 1.0) * message.get("train", 1)
        learnt = factor if message["role"] == "assistant" else 0.0
        parts = ([1, *encode(message["role"] + "\n")], 0.0), ([*encode(message["content"]), 2], learnt)
        for tokens, weight in (*parts, (encode("\n"), 0.0)):
            ids += tokens
            weights += [weight] * len(tokens)
    return ids, weights


def losses_of(model, document, smoothing=0.0, **options):
    """Cross-entropy of each target of one document, and the model's whole output."""
    ids = torch.tensor([document[0]])
    output = model(input_ids=ids, use_cache=False, **options)
    return cross_entropy(output.logits[0, :-1], ids[0, 1:], reduction="none", label_smoothing=smoothing), output


def balance_of(output, config):
    """The auxiliary loss of one document's routers (arXiv 2101.03961)."""
    probabilities = torch.cat([layer.softmax(-1) for layer in output.router_logits])
    chosen = probabilities.topk(config.num_experts_per_tok, -1).indices
    shares = one_hot(chosen, config.num_experts).sum(1).to(probabilities.dtype).mean(0)
    return config.router_aux_loss_coef * config.num_experts * (shares * probabilities.mean(0)).sum()


def perplexity_of(model, documents) -> float:
    with torch.no_grad():
        losses = [losses_of(model, each)[0][torch.tensor(each[1][1:]) != 0] for each in documents]
    return float(torch.cat(losses).mean().exp())


def held_out_of(model, documents, scored: dict) -> tuple[int, ...]:
    """Positions of the few documents that together have the base model's held-out loss and number of targets."""
    with torch.no_grad():
        losses = [losses_of(model, each)[0][torch.tensor(each[1][1:]) != 0] for each in documents]
    targets, sums = [len(each) for each in losses], [float(each.sum()) for each in losses]
    few = [chosen for count in range(1, 5) for chosen in itertools.combinations(range(len(documents)), count)]
    [found] = [
        chosen
        for chosen in few
        if sum(targets[i] for i in chosen) == scored["tokens"]
        and abs(sum(sums[i] for i in chosen) / scored["tokens"] - scored["loss"]) < 2e-6
    ]
    return found


def updates_of(documents, tokens_per_update: int, epochs: int):
    """Documents that each have a window of their own, in the order that seed 0 gives each epoch."""
    made, gathered = [], []
    for epoch in range(epochs):
        keys = np.random.PCG64(np.random.SeedSequence([0, epoch])).random_raw(len(documents))
        for index in np.argsort(keys, kind="stable"):
            gathered.append(documents[index])
            lengths = [len(ids) for ids, _ in gathered]
            if tokens_per_update - sum(lengths) < max(lengths) / 2:
                made.append(gathered)
                gathered = []
    return [*made, gathered] if gathered else made


def reference(model, updates, *, rate, decay, most, smoothing, ratio, schedule):
    """Trains the adapter; returns loss, norm and rate of each update."""
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in weights.items()}
    told = []
    for step, documents in enumerate(updates):
        divisor, loss_sum = sum(sum(weight[1:]) for _, weight in documents), 0.0
        routed = {"output_router_logits": True} if getattr(model.config, "output_router_logits", False) else {}
        for document in documents:
            losses, output = losses_of(model, document, smoothing, **routed)
            factors = torch.tensor(document[1][1:], dtype=losses.dtype)
            loss = (losses * factors).sum() / divisor
            loss_sum += loss.item()
            if routed:
                loss = loss + balance_of(output, model.config) * factors.sum() / divisor
            loss.backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in weights.values()))
        now = rate * schedule(step, len(updates))
        with torch.no_grad():
            for name, p in weights.items():
                gradient = p.grad * min(1.0, most / norm)
                mean, square = moments[name]
                mean.mul_(0.9).add_(0.1 * gradient)
                square.mul_(0.999).add_(0.001 * gradient**2)
                own = now * (ratio if "lora_B" in name else 1.0)
                p.mul_(1 - own * decay)
                p.sub_(own * (mean / (1 - 0.9 ** (step + 1))) / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8))
                p.grad = None
        told.append((loss_sum, norm, now))
    return told


def warm(step: int, steps: int) -> float | None:
    """Half of the updates rise linearly."""
    rising = round(0.5 * steps)
    return (step + 1) / rising if step < rising else None


def square_root(step: int, steps: int) -> float:
    return warm(step, steps) or (1 - (step - round(0.5 * steps)) / (steps - round(0.5 * steps))) ** 0.5


def cosine(step: int, steps: int) -> float:
    done = (step - round(0.5 * steps)) / (steps - round(0.5 * steps))
    return warm(step, steps) or 0.5 * (1 + math.cos(math.pi * done))


CASES = {
    "all documents packed in one window, in tiles": (
        "gemma3_text",
        {
            "training.step": "streamed",
            "stream.tile": 32,
            "stream.key_block": 32,
            "stream.loss_piece": 16,
            "training.context": 4096,
            "training.tokens_per_update": 64,
            "training.epochs": 6,
            "training.schedule": "polynomial",
            "training.polynomial_power": 0.5,
            "training.label_smoothing": 0.1,
            "training.weight_decay": 0.2,
            "training.max_grad_norm": 0.3,
            "lora.rslora": "true",
            "lora.plus_ratio": 3,
        },
        {"use_rslora": True, "target_modules": "all-linear"},
        {"decay": 0.2, "most": 0.3, "smoothing": 0.1, "ratio": 3.0, "schedule": square_root},
    ),
    "unequal windows gathered, with experts": (
        "qwen3_moe",
        {
            "training.step": "whole",
            "training.micro_batch": 3,
            "training.context": 512,
            "training.tokens_per_update": 400,
            "training.epochs": 2,
            "data.packing": "false",
        },
        {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
        {"decay": 0.0, "most": 1.0, "smoothing": 0.0, "ratio": 1.0, "schedule": cosine},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_what_plain_transformers_and_torch_compute(case, tmp_path):
    family, chosen, lora, optimizer = CASES[case]
    settings = dict(chosen)
    packed = "data.packing" not in settings
    tokenizer = save_model(tmp_path / "model", family)
    draw = random.Random(1)
    sources = {"chats.jsonl": conversations(draw)}
    if packed:
        texts = ["".join(draw.choices("abc def\n", k=draw.randint(1, 90))).strip() + str(i) for i in range(8)]
        sources["texts.jsonl"] = [{"text": text, **draw.choice([{}, {"weight": 0.5}])} for text in texts]
    documents = []
    for name, rows in sources.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        documents += [document_of(row, name, number, tokenizer) for number, row in enumerate(rows)]
    settings |= {
        "training.learning_rate": 0.003,
        "training.warmup_fraction": 0.5,
        "lora.rank": 4,
        "model.precision": "fp32",
        "model.device": "cpu",
        "data.near_duplicates": "keep",
        "evaluation.at_end": "false",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "engine", "train", "--json"),
            *("--model", tmp_path / "model", "--output", tmp_path / "out"),
            *(part for name in sources for part in ("--dataset", tmp_path / name)),
            *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ELITE_TUI_STATE_DIR": str(tmp_path / "state")},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    steps = [event for event in events if event["kind"] == "StepCompleted"]
    scored = next(event for event in events if event["kind"] == "EvalCompleted")
    [finished] = [event for event in events if event["kind"] == "RunFinished"]

    plain = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", **plain)
    held_out = held_out_of(base.eval(), documents, scored)
    train = [each for number, each in enumerate(documents) if number not in held_out]
    torch.manual_seed(0)
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=32, **lora)).double().eval()
    updates = [train] * 6 if packed else updates_of(train, 400, 2)
    wanted = reference(adapted, updates, rate=0.003, **optimizer)

    assert len(steps) == len(wanted) > 4
    for event, (loss, norm, rate) in zip(steps, wanted, strict=True):
        assert event["loss"] == pytest.approx(loss, rel=1e-5)
        assert event["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert event["lr"] == pytest.approx(rate, rel=1e-9)
    [run] = (tmp_path / "out" / "runs").iterdir()
    found = load_file(run / "adapter" / "adapter_model.safetensors")
    weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert (found[name] - weight).norm() < 1e-3 * weight.norm(), name
    after = perplexity_of(adapted, [documents[number] for number in held_out])
    assert finished["perplexity_after"] == pytest.approx(after, rel=1e-4)
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "model", **plain), run / "adapter")
    assert perplexity_of(read.eval(), [documents[number] for number in held_out]) == pytest.approx(after, rel=1e-4)
