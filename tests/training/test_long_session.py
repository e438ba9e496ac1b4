"""A session from its row to its gradient, in tiles, against plain transformers over the whole sequence at once.

The reference's attention is torch's over all keys at once, or written out: scores, softmax and sum over all keys, a few
hundred queries at a time, without a fused kernel.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch.utils.checkpoint
from steps.test_whole_step import Quiet, gradients
from support.conversations import tokenizer, write
from support.tiny import tiny_model
from transformers import AttentionInterface, AttentionMaskInterface

from engine.config import DataSection, LoraSection
from engine.data.dataset import build_dataset
from engine.models.adapter import attach_adapter
from engine.models.fine_tuning import AdapterTuning
from engine.plan.stream_plan import StreamPlan
from engine.steps.streamed_windows import StreamedWindows

QUERIES = 256
"Whose scores are held together."


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


def written_out(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **more: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention of one head and one document. Query, key, value: (1, 1, tokens, width)."""

    def part(first: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        scores = query @ key.transpose(-1, -2) * more["scaling"]
        places = torch.arange(first, first + query.shape[-2])
        later = torch.arange(key.shape[-2]) > places[:, None]
        return torch.softmax(scores.masked_fill(later, -math.inf), dim=-1) @ value

    assert attention_mask is None
    assert query.shape == key.shape == value.shape
    made = []
    for first in range(0, query.shape[-2], QUERIES):
        last = min(first + QUERIES, query.shape[-2])
        some = query[:, :, first:last], key[:, :, :last], value[:, :, :last]
        made.append(torch.utils.checkpoint.checkpoint(part, first, *some, use_reentrant=False))
    return torch.cat(made, dim=-2).transpose(1, 2).contiguous(), None


AttentionInterface.register("written_out", written_out)
AttentionMaskInterface.register("written_out", lambda *_, **__: None)


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


def compare(
    folder: Path, tokens: int, tile: int, dtype: torch.dtype = torch.float64, attention: str = "sdpa"
) -> dict[str, Any]:
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
    reference.base_model.model.set_attn_implementation(attention)
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


LONG = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    ("tokens", "tile", "attention"),
    [
        (1500, 256, "sdpa"),
        (1500, 256, "written_out"),
        pytest.param(16_384, 2048, "written_out", marks=LONG),
        pytest.param(65_536, 4096, "sdpa", marks=LONG),
    ],
)
def test_a_session_in_tiles_has_the_loss_and_gradient_of_the_whole_sequence(
    tmp_path: Path, tokens: int, tile: int, attention: str
) -> None:
    found = compare(tmp_path, tokens, tile, attention=attention)
    assert found["gradients"] > 0
    assert found["loss_error"] < 1e-10
    assert found["gradient_error"] < 1e-9
