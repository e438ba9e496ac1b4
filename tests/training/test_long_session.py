"""A session from its row to its gradient, in tiles, against plain transformers over the whole sequence at once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from data.test_conversation_rows import tokenizer, write
from steps.test_whole_step import Quiet, gradients
from support.tiny import tiny_model

from engine.config import DataSection, LoraSection
from engine.data.dataset import build_dataset
from engine.models.adapter import attach_adapter
from engine.models.fine_tuning import AdapterTuning
from engine.plan.stream_plan import StreamPlan
from engine.steps.streamed_windows import StreamedWindows


def session(tokens: int, seed: int) -> list[dict[str, Any]]:
    """Calls and results of about so many tokens, of which a fifth are the model's."""
    draw = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(draw.choice(("read", "größe", "日本", "self.x", "= 0", "def")) for _ in range(count))

    messages = [{"role": "user", "content": f"{seed} {words(9)}"}]
    while sum(len(message["content"].encode()) for message in messages) < 1.26 * tokens:
        messages.append({"role": "assistant", "content": words(30)})
        messages.append({"role": "tool", "content": words(110)})
    return [*messages, {"role": "assistant", "content": "Fertig."}]


def rendered(words: Any, messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Ids and labels by transformers' rendering, in which the answers are looked for."""
    text = words.apply_chat_template(messages, tokenize=False)
    ids: list[int] = []
    labels: list[int] = []
    position = 0
    for message in messages:
        if message["role"] != "assistant":
            continue
        begin = text.index(f"<|im_start|>assistant\n{message['content']}<|im_end|>", position)
        begin += len("<|im_start|>assistant\n")
        end = begin + len(message["content"]) + len("<|im_end|>")
        before = words.encode(text[position:begin], add_special_tokens=False)
        answer = words.encode(text[begin:end], add_special_tokens=False)
        ids, labels, position = [*ids, *before, *answer], [*labels, *[-100] * len(before), *answer], end
    rest = words.encode(text[position:], add_special_tokens=False)
    return [*ids, *rest], [*labels, *[-100] * len(rest)]


def wide(vocabulary: int, tokens: int, dtype: torch.dtype) -> Any:
    model = tiny_model(
        "llama", vocab_size=vocabulary, num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=tokens
    )
    adapted = attach_adapter(model.to(dtype), LoraSection(rank=2), 0)
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = (parameter.data.double() + 0.05 * torch.randn_like(parameter.data.double())).to(dtype)
    return adapted


def compare(folder: Path, tokens: int, tile: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Losses, labels, and the largest relative error of a gradient, of one session in both ways."""
    words = tokenizer()
    sessions = [session(tokens, seed) for seed in (1, 2)]
    data = DataSection(
        datasets=[str(write(folder / "rows.jsonl", [{"messages": one} for one in sessions]))],
        held_out_fraction=0.4,
        near_duplicates="keep",
    )
    dataset = build_dataset(data, tokenizer=words, context=2 * tokens, cache=folder / "cache", limit=2 * tokens)
    [window] = list(dataset.train)
    number = int(dataset.store.files[0].path.rpartition("/")[2])
    ids, labels = rendered(words, sessions[number])
    assert len(ids) >= tokens
    assert window.ids.tolist() == ids
    count = sum(label != -100 for label in labels[1:])
    assert window.targets == count < 0.3 * len(ids)
    scale = 1 / count
    reference = wide(len(words), len(ids), dtype)
    logits = reference(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum", ignore_index=-100)
    (loss * scale).backward()
    model = wide(len(words), len(ids), dtype)
    plan = StreamPlan(tile=tile, key_block=2 * tile, loss_piece=512)
    step = StreamedWindows(AdapterTuning(model), plan, device=torch.device("cpu"), spill_directory=folder)
    found = step.run([window], scale, Quiet())
    errors = {
        name: float((gradients(model)[name] - expected).norm() / expected.norm())
        for name, expected in gradients(reference).items()
    }
    return {
        "tokens": len(ids),
        "labels": count,
        "tile": tile,
        "loss": loss.item() / count,
        "loss_error": abs(found.loss_sum / loss.item() - 1),
        "gradient_error": max(errors.values()),
        "gradients": len(errors),
    }


@pytest.mark.parametrize(
    ("tokens", "tile"), [(1500, 256), pytest.param(65_536, 4096, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_a_session_in_tiles_has_the_loss_and_gradient_of_the_whole_sequence(
    tmp_path: Path, tokens: int, tile: int
) -> None:
    found = compare(tmp_path, tokens, tile)
    assert found["gradients"] > 0
    assert found["loss_error"] < 1e-10
    assert found["gradient_error"] < 1e-9
