"""Code with fill-in-the-middle, sessions with weights and replayed texts in one run, measured from what it visits."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.conversations import write
from tokenizers import Tokenizer

from engine.config import DataSection, TrainingSection
from engine.data.dataset import Dataset, build_dataset
from engine.data.stages import StagedWindows, plan_stages
from engine.data.window_source import plan_updates
from engine.errors import EliteError
from engine.tokenization.encoder import Encoder

SHARES = {"code": 0.6, "sessions.jsonl": 0.3, "replay.jsonl": 0.1}
LONG = 7
"Sessions that fit no context of these tests."


def session(draw: random.Random, number: int, *, long: bool) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"zebra {number}"}]
    for turn in range(8 if long else draw.randint(1, 3)):
        weight = draw.choice((0, 1, 0.5, 2.25))
        messages.append({"role": "assistant", "content": f"zebra looks {draw.random()}", "weight": weight})
        messages.append({"role": "tool", "content": f"zebra {turn} " * (30 if long else draw.randint(1, 9))})
    messages.append({"role": "assistant", "content": f"zebra done {number}"})
    return {"messages": messages, "weight": draw.choice((1, 0.25))}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Any]:
    draw, code = random.Random(0), tmp_path / "code"
    code.mkdir()
    for number in range(90):
        (code / f"m{number}.py").write_text(f"def apple{number}(x):\n    return x + {draw.random()}\n" * 5)
    talks = [session(draw, n, long=False) for n in range(60)] + [session(draw, n, long=True) for n in range(LONG)]
    texts = [{"text": f"orange {n} {draw.random()} " * 9} for n in range(25)]
    return {
        "repositories": [str(code)],
        "datasets": [str(write(tmp_path / "sessions.jsonl", talks)), str(write(tmp_path / "replay.jsonl", texts))],
        "near_duplicates": "keep",
        "documents": "file",
        "chat_template": "plain",
        "fim": 0.5,
        "mixture": [f"{name}={share}" for name, share in SHARES.items()],
    }


def build(tmp_path: Path, demo_tokenizer: Tokenizer, sources: dict[str, Any], **options: Any) -> Dataset:
    return build_dataset(
        DataSection(**{**sources, **options}),
        tokenizer=demo_tokenizer,
        context=512,
        cache=tmp_path / "cache",
        limit=512,
    )


def kind_of(text: str) -> str:
    """The source of a window, by the words that only one of them has."""
    words = {"apple": "code", "zebra": "sessions.jsonl", "orange": "replay.jsonl"}
    (found,) = {name for word, name in words.items() if word in text}
    return found


@pytest.mark.parametrize("overlong", ["drop", "cut-oldest-tool-output", "split"])
def test_a_run_has_the_shares_that_it_was_asked_for(
    tmp_path: Path, demo_tokenizer: Tokenizer, sources: dict[str, Any], overlong: str
) -> None:
    dataset = build(tmp_path, demo_tokenizer, sources, overlong=overlong)
    windows, store = dataset.train, dataset.store
    kinds = [kind_of(demo_tokenizer.decode(window.ids.tolist(), skip_special_tokens=False)) for window in windows]
    for epochs in (0.4, 1.0, 3.0):
        training = TrainingSection(tokens_per_update=1024, epochs=epochs)
        taken = Counter[str]()
        for update in plan_updates(windows, training, 512):
            for index in update.windows:
                taken[kinds[index]] += len(windows[index])
            for name, share in SHARES.items():
                assert abs(taken[name] - share * taken.total()) <= 3 * 512, (name, taken)
    long = [length for length in store.conversations() if length > 512]
    assert len(long) == (0 if overlong == "cut-oldest-tool-output" else LONG)
    assert dataset.summary.skipped.get("overlong", 0) == (LONG if overlong == "drop" else 0)
    assert store.shortened == (LONG if overlong.startswith("cut") else 0)


def test_overlong_sessions_are_refused_by_number(
    tmp_path: Path, demo_tokenizer: Tokenizer, sources: dict[str, Any]
) -> None:
    with pytest.raises(EliteError, match=f"{LONG} of 67 conversations are longer than the context of 512 tokens"):
        build(tmp_path, demo_tokenizer, sources)


def test_half_of_the_code_has_its_middle_at_the_end_and_nothing_else_does(
    tmp_path: Path, demo_tokenizer: Tokenizer, sources: dict[str, Any]
) -> None:
    dataset = build(tmp_path, demo_tokenizer, sources, overlong="drop")
    store, first = dataset.store, len(dataset.store.files) - dataset.summary.held_out_files
    marks = [demo_tokenizer.token_to_id(f"<|fim_{name}|>") for name in ("prefix", "suffix", "middle")]
    moved, code = 0, 0
    for number, (start, stop) in enumerate(zip(store.offsets(), store.offsets()[1:], strict=False)):
        ids = store.tokens[start:stop].tolist()
        found = [ids.count(mark) for mark in marks]
        if kind_of(demo_tokenizer.decode(ids)) != "code" or number >= first:
            assert found == [0, 0, 0]
            continue
        code += 1
        assert found in ([0, 0, 0], [1, 1, 1])
        moved += found[0]
        if found[0]:
            # Everything but the order is learnt as before: prefix, suffix and middle make the file.
            places = [ids.index(mark) for mark in marks]
            assert places == sorted(places)
    assert abs(moved - code / 2) < 2.6 * (code / 4) ** 0.5


@pytest.mark.parametrize("packing", [True, False])
def test_weights_are_the_rows_in_windows_of_any_length(
    tmp_path: Path, demo_tokenizer: Tokenizer, sources: dict[str, Any], packing: bool
) -> None:
    """Each label has the weight that it has in the store, in windows that grow; no rejected turn has a label."""
    dataset = build(tmp_path, demo_tokenizer, sources, overlong="drop", packing=packing)
    assert dataset.store.weights is not None
    weights, learnt = (part.among(0, dataset.train.stream_tokens) for part in _of(dataset))
    staged = StagedWindows([dataset.train.with_context(256), dataset.train])
    for stage in staged.stages:
        seen = np.zeros(len(weights), dtype=int)
        for index, window in enumerate(stage):
            places = stage.places(index)
            seen[places] += 1
            assert window.ids.tolist() == dataset.store.tokens[places].tolist()
            labels = learnt[places].copy()
            labels[list(window.starts)] = False
            assert window.targets == np.count_nonzero(labels)
            assert window.divisor == pytest.approx(weights[places][labels].sum(), rel=1e-12)
        assert seen.max() == 1
    updates = list(plan_stages(staged, [6, 6], TrainingSection(tokens_per_update=1024)))
    assert {update.stage for update in updates} == {0, 1}
    encoder = Encoder(demo_tokenizer)
    for start, stop in zip(dataset.store.offsets(), dataset.store.offsets()[1:], strict=False):
        ids = dataset.store.tokens[start:stop]
        text = encoder.decode(ids[dataset.store.learnt.among(int(start), int(stop))].tolist())
        assert "zebra" not in text or text.count("zebra done") == 1


def _of(dataset: Dataset) -> tuple[Any, Any]:
    assert dataset.store.weights is not None
    assert dataset.store.learnt is not None
    return dataset.store.weights, dataset.store.learnt
