"""Rows of preferences become pairs: what is predicted on each side, what is left out, and what stays together."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from engine.config import DataSection
from engine.data.conversations import NoConversationError, RowReader
from engine.data.dataset import build_dataset
from engine.data.pairs import Pair, PairWindows
from engine.data.report import describe
from engine.errors import EliteError

READER = RowReader({}, preferences=True)


def turn(role, content):
    return {"role": role, "content": content}


def answers(conversation):
    said = zip(conversation.messages, conversation.learnt, strict=True)
    return [message["content"] for message, learnt in said if learnt]


FORMS = {
    "texts": {"prompt": "Q", "chosen": "good", "rejected": "bad"},
    "messages": {
        "prompt": [turn("system", "S"), turn("user", "Q")],
        "chosen": [turn("assistant", "good")],
        "rejected": [turn("assistant", "bad")],
    },
    "whole conversations": {
        "prompt": "Q",
        "chosen": [turn("user", "Q"), turn("assistant", "good")],
        "rejected": [turn("user", "Q"), turn("assistant", "bad")],
        "messages": [turn("user", "something else"), turn("assistant", "to be read by no one")],
    },
    "what is asked as messages": {
        "conversations": [
            {"from": "human", "value": "H"},
            {"from": "gpt", "value": "Hi"},
            {"from": "human", "value": "Q"},
        ],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "one message": {"prompt": "Q", "chosen": turn("assistant", "good"), "rejected": turn("assistant", "bad")},
    "a common first answer": {
        "chosen": [turn("user", "H"), turn("assistant", "Hi"), turn("user", "Q"), turn("assistant", "good")],
        "rejected": [turn("user", "H"), turn("assistant", "Hi"), turn("user", "Q"), turn("assistant", "bad")],
    },
    "marked text": {
        "chosen": "\n\nHuman: Q\n\nAssistant: good",
        "rejected": "\n\nHuman: Q\n\nAssistant: bad",
    },
}


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS)
def test_both_sides_of_a_row_in_any_form(row):
    chosen = READER.read(row)
    assert answers(chosen) == ["good"]
    assert answers(chosen.rejected) == ["bad"]
    assert chosen.messages[:-1] == chosen.rejected.messages[:-1]
    assert chosen.messages[-2]["content"] == "Q"
    # Without the objective the same row is its chosen side alone.
    alone = RowReader({}).read(row)
    assert alone.rejected is None
    if "conversations" in row:
        assert (answers(alone), len(alone.messages)) == (["good"], 4)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Q", "chosen": "good"}, "no pair"),
        ({"prompt": "Q", "rejected": "bad"}, "no pair"),
        ({"prompt": "Q", "completion": "A"}, "no pair"),
        ({"prompt": "Q", "chosen": "same", "rejected": "same"}, "no pair"),
        ({"prompt": "Q", "chosen": "good", "rejected": " "}, "empty answer"),
        ({"prompt": "Q", "chosen": 5, "rejected": "bad"}, "no conversation"),
        ({"chosen": [turn("user", "Q")], "rejected": [turn("user", "Q"), turn("assistant", "A")]}, "no answer"),
    ],
)
def test_rows_that_are_no_pair_say_why(row, reason):
    with pytest.raises(NoConversationError) as caught:
        READER.read(row)
    assert caught.value.reason == reason


SECRET = "AKIA" + "Q3EGRIMZBSX7WJ2K"


def rows():
    """Twenty pairs of five prompts, with a secret on one side."""
    for number in range(20):
        row = {
            "prompt": f"Question {number % 5}?",
            "chosen": f"Answer {number}.",
            "rejected": f"Nonsense {number * 7}!",
        }
        if number == 11:
            row["rejected"] += f' aws_access_key_id = "{SECRET}"'
        yield row


@pytest.fixture
def built(tmp_path, demo_tokenizer):
    def build(made, context=64, limit=64, name="pairs.jsonl", **data):
        path = tmp_path / name
        text = "".join(json.dumps(row) + "\n" for row in made)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        section = DataSection(**{"datasets": [str(path)], "chat_template": "plain", "held_out_fraction": 0.3, **data})
        return build_dataset(
            section,
            tokenizer=demo_tokenizer,
            context=context,
            cache=tmp_path / "cache",
            limit=limit,
            preferences=True,
        )

    return build


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_sides_predict_their_answers_and_prompts_stay_together(built, demo_tokenizer, name):
    dataset = built(rows(), name=name)
    assert isinstance(dataset.train, PairWindows)
    assert len(dataset.train) + len(dataset.held_out) == 20
    prompts = []
    for windows in (dataset.train, dataset.held_out):
        prompts.append(set())
        for number in range(len(windows)):
            pair = windows[number]
            assert isinstance(pair, Pair)
            texts = []
            for side in (pair.chosen, pair.rejected):
                assert side.starts == (0,)
                texts.append(demo_tokenizer.decode(side.ids[side.learnt].tolist()))
                prompts[-1].add(demo_tokenizer.decode(side.ids[~side.learnt].tolist()))
            answer = int("".join(filter(str.isdigit, texts[0])))
            assert texts[0].strip().startswith(f"Answer {answer}.")
            assert texts[1].strip().startswith(f"Nonsense {answer * 7}!")
            assert pair.targets == pair.chosen.targets + pair.rejected.targets
    assert len(prompts[0] | prompts[1]) == 5
    assert not prompts[0] & prompts[1]
    whole = demo_tokenizer.decode(np.asarray(dataset.store.tokens, dtype=np.int64).tolist())
    assert SECRET not in whole
    assert len(dataset.summary.secrets) == 1
    assert "REDACTED" in whole
    chosen = dataset.held_out.chosen
    assert [len(chosen[i]) for i in range(len(chosen))] == [len(dataset.held_out[i].chosen) for i in range(len(chosen))]


def test_a_pair_is_as_long_as_its_longer_side(built):
    made = [*rows(), {"prompt": "Long?", "chosen": "yes", "rejected": "no " * 100}]
    with pytest.raises(EliteError, match="1 of 21 conversations"):
        built(made)
    dataset = built(made, overlong="drop")
    assert len(dataset.train) + len(dataset.held_out) == 20
    assert dataset.summary.skipped["overlong"] == 1
    told = describe(dataset)
    assert (told.conversations.count, told.windows[0].documents) == (21, 2 * told.windows[0].train)
    assert 100 < told.conversations.longest < 130 < told.conversations.tokens
    assert max(max(len(p.chosen), len(p.rejected)) for p in (dataset.train[i] for i in range(len(dataset.train)))) <= 64


def test_sides_that_are_written_alike_are_no_pair(built, tmp_path):
    """What the template strips, and two secrets that both are masked, leave nothing to prefer."""
    template = tmp_path / "strips.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role + ':' + m.content | trim }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    alike = [
        {"prompt": "White?", "chosen": "Space.", "rejected": "Space. \n"},
        {"prompt": "Key?", "chosen": f'key_id = "{SECRET}"', "rejected": f'key_id = "{SECRET[:-1]}A"'},
    ]
    dataset = built([*rows(), *alike], chat_template=str(template))
    assert dataset.summary.skipped == {"no pair": 2}
    assert len(dataset.train) + len(dataset.held_out) == 20
    assert all("written alike" in line for line in dataset.summary.examples["no pair"])


def test_data_without_pairs_are_refused_in_one_line(built):
    with pytest.raises(EliteError, match="20 no pair") as caught:
        built([{"text": f"no pair {number}"} for number in range(20)])
    assert "\n" not in str(caught.value)
