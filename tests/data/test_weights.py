"""Weights of rows and turns, from the file to the loss, against a sum by hand over transformers' rendering."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from steps.test_whole_step import Quiet, gradients
from support.conversations import build, tokenizer, write
from support.tiny import tiny_model

from engine.config import LoraSection
from engine.data.dataset import Dataset
from engine.data.store import StoreBuilder, open_store
from engine.models.adapter import attach_adapter
from engine.models.fine_tuning import AdapterTuning
from engine.plan.stream_plan import StreamPlan
from engine.steps.streamed_windows import StreamedWindows
from engine.tokenization.encoder import Encoder

SAYS = {"role": "user", "content": "Frage ß"}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


ROWS = [
    {"messages": [{**SAYS, "content": f"{n} 日本"}, said("ja"), SAYS, said("nein", weight=w), SAYS, said("so")], **row}
    for n, (w, row) in enumerate(
        [
            (1, {}),
            (0.25, {}),
            (2.5, {"weight": 0.5}),
            (0, {"weight": 3}),
            (1, {"weight": 1e-6}),
            (1, {"weight": 0}),
            (True, {"weight": 1}),
            (0.1, {"weight": 7}),
        ]
    )
]


def expected_losses(model: Any, words: Any, row: Mapping[str, Any]) -> tuple[torch.Tensor, float]:
    """Weighted sum over what transformers' own rendering has in the turns, and the sum of the weights."""
    text = words.apply_chat_template(row["messages"], tokenize=False)
    ids, weights = [], []
    position = 0
    for message in row["messages"]:
        if message["role"] != "assistant":
            continue
        begin = text.index(f"<|im_start|>assistant\n{message['content']}<|im_end|>", position)
        begin += len("<|im_start|>assistant\n")
        end = begin + len(message["content"]) + len("<|im_end|>")
        before = words.encode(text[position:begin], add_special_tokens=False)
        answer = words.encode(text[begin:end], add_special_tokens=False)
        ids += [*before, *answer]
        weights += [0.0] * len(before) + [float(message.get("weight", 1)) * row.get("weight", 1)] * len(answer)
        position = end
    logs = torch.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1], dim=-1)
    factors = torch.tensor(weights[1:], dtype=torch.float64)
    losses = -logs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return (losses * factors).sum(), float(factors.sum())


def test_a_run_over_weighted_rows_is_a_weighted_mean(tmp_path: Path) -> None:
    words = tokenizer()
    dataset = build(tmp_path, write(tmp_path / "rows.jsonl", ROWS), held_out_fraction=0.2)
    assert dataset.summary.skipped == {"not trained": 1}
    train = numbers(dataset)[: len(dataset.store.files) - dataset.summary.held_out_files]
    assert 1 in train or 2 in train or 7 in train

    def wide() -> Any:
        model = attach_adapter(tiny_model(vocab_size=len(words)).double(), LoraSection(rank=4), 0)
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.double() + 0.05 * torch.randn_like(parameter.data.double())
        return model

    reference = wide()
    pairs = [expected_losses(reference, words, ROWS[number]) for number in train]
    divisor = sum(weight for _, weight in pairs)
    loss = torch.stack([one for one, _ in pairs]).sum() / divisor
    loss.backward()
    model, windows = wide(), list(dataset.train)
    assert sum(window.divisor for window in windows) == pytest.approx(divisor, rel=1e-12)
    plan = StreamPlan(tile=32, key_block=32, loss_piece=16)
    step = StreamedWindows(AdapterTuning(model), plan, device=torch.device("cpu"), spill_directory=tmp_path)
    found = step.run(windows, 1 / divisor, Quiet())
    assert found.loss_sum / divisor == pytest.approx(loss.item(), rel=1e-10)
    for name, gradient in gradients(reference).items():
        torch.testing.assert_close(gradients(model)[name], gradient, rtol=1e-8, atol=1e-12)
    assert all(window.weights is None for window in dataset.held_out)


def numbers(dataset: Dataset) -> list[int]:
    """Number of the row that each document of the store is."""
    return [int(file.path.rpartition("/")[2]) for file in dataset.store.files]


@pytest.mark.parametrize("kind", ["rows.jsonl", "rows.parquet"])
def test_texts_and_continued_texts_are_weighted(tmp_path: Path, kind: str) -> None:
    weights = [0.5, 1, 2.0, 0.125, 0, 3, 1, 1]
    for name, rows in (
        ("texts", [{"text": f"text {n} " * 3, "factor": w} for n, w in enumerate(weights)]),
        ("pairs", [{"prompt": f"asks {n} ", "completion": "says", "factor": w} for n, w in enumerate(weights)]),
    ):
        path = tmp_path / f"{name}-{kind}"
        if kind.endswith("parquet"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            write(path, rows)
        dataset = build(tmp_path, path, near_duplicates="keep", fields=["weight=factor"])
        assert dataset.summary.skipped == {"not trained": 1}
        store = dataset.store
        assert store.weights is not None
        for number, first, last in zip(numbers(dataset), store.offsets(), store.offsets()[1:], strict=False):
            found = store.weights.among(int(first), int(last))
            learnt = np.ones(len(found), bool) if store.learnt is None else store.learnt.among(int(first), int(last))
            assert set(found[learnt]) == {weights[number]}
        plain = build(tmp_path, path, near_duplicates="keep", fields=["weight=nothing"])
        assert plain.store.weights is None
        assert len(plain.store.files) == 8


def test_another_weight_is_another_store(tmp_path: Path) -> None:
    stores = set()
    for weight in (1, 0.5, 0.75):
        rows = [{"text": f"text {n} " * 3, "weight": weight} for n in range(4)]
        dataset = build(tmp_path, write(tmp_path / "rows.jsonl", rows), near_duplicates="keep")
        stores.add(dataset.summary.store)
        chats = [{**row, "weight": weight} for row in ROWS[:4]]
        stores.add(build(tmp_path, write(tmp_path / "chats.jsonl", chats)).summary.store)
    assert len(stores) == 6


def test_a_weight_of_a_pair_is_refused_by_row(tmp_path: Path) -> None:
    from engine.data.conversations import RowReader
    from engine.data.messages import NoConversationError

    reader = RowReader({}, preferences=True)
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert reader.read({**row, "weight": 1}).rejected is not None
    with pytest.raises(NoConversationError, match="a weight other than 0 and 1") as caught:
        reader.read({**row, "weight": 0.5})
    assert caught.value.reason == "bad weight"


def test_marked_answers_have_weights_too(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    )
    path = write(tmp_path / "rows.jsonl", ROWS)
    own, marked = build(tmp_path, path), build(tmp_path, path, model=tokenizer(template=source))
    assert own.store.weights is not None
    assert marked.store.weights is not None
    encoder, found = Encoder(tokenizer()), []
    for one in (own, marked):
        told = {}
        for number, first, last in zip(numbers(one), one.store.offsets(), one.store.offsets()[1:], strict=False):
            ids, weights = one.store.tokens[first:last], one.store.weights.among(int(first), int(last))
            learnt = one.store.learnt.among(int(first), int(last))
            words = [encoder.decode([int(token)]) for token in ids[learnt]]
            told[number] = list(zip(words, weights[learnt].tolist(), strict=True))
        found.append(told)
    assert found[0] == found[1]
    assert {weight for _, weight in found[0][2]} == {0.5, 1.25}


def test_weights_survive_a_build_that_was_cut_short(tmp_path: Path) -> None:
    draw = np.random.RandomState(0)
    files = []
    for length in (3, 8, 1, 13, 0, 30, 7):
        weights = draw.choice([1.0, 0.1, 1 / 3, 2.5], length).repeat(1)
        files.append((draw.rand(length) < 0.6, weights))
    for masked in (True, False):
        key = f"key-{masked}"
        with StoreBuilder(tmp_path, key, np.dtype("<u2"), masked=masked) as builder:
            for number, (learnt, weights) in enumerate(files[:4]):
                ids, given = np.zeros(len(learnt), np.uint32), None if number == 1 else weights
                builder.append(ids, np.empty(0, np.int64), learnt if masked else None, given)
            builder.checkpoint()
            builder.append(np.zeros(5, np.uint32), np.empty(0, np.int64), None, np.full(5, 9.0))
        with StoreBuilder(tmp_path, key, np.dtype("<u2"), masked=masked) as builder:
            for learnt, weights in files[4:]:
                builder.append(
                    np.zeros(len(learnt), np.uint32), np.empty(0, np.int64), learnt if masked else None, weights
                )
            builder.finish([(f"f{n}", 0, "Conversation", n) for n in range(len(files))], np.zeros(9, np.uint8))
        store = open_store(tmp_path, key)
        assert store is not None
        assert store.weights is not None
        wanted = np.concatenate([np.ones(len(w)) if n == 1 else w for n, (_, w) in enumerate(files)])
        counts = np.concatenate([learnt for learnt, _ in files]) if masked else np.ones(len(wanted), bool)
        assert store.weights.among(0, len(wanted))[counts].tolist() == wanted[counts].tolist()
        for _ in range(20):
            first, last = sorted(draw.randint(0, len(wanted) + 1, 2))
            part = store.weights.of(first, last).among(0, last - first)
            assert part[counts[first:last]].tolist() == wanted[first:last][counts[first:last]].tolist()
