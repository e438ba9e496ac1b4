"""A model that knows some functions by heart completes them; one that does not, does not."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from engine.config import EvaluationSection
from engine.evaluation.functions import SourceText, choose_functions
from engine.evaluation.result import evaluation_from_json, samples_of, task_result
from engine.evaluation.tasks import complete, prompt_of, tasks_of
from engine.generation.sampling import Sampling
from engine.tokenization.encoder import demo_encoder

FILE = SourceText(
    "shop/prices.py",
    "Python",
    '"""Prices."""\n\n\ndef total(prices):\n    result = 0\n    for price in prices:\n        result += price\n'
    "    return result\n\n\ndef cheapest(prices):\n    if not prices:\n        return None\n    return min(prices)\n",
)
SETTINGS = EvaluationSection()


@pytest.fixture(scope="module")
def encoder():
    return demo_encoder()


def small_model(encoder):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=encoder.vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def learnt(encoder):
    """Overfitted on the file, whole and with each of its functions as a middle."""
    model = small_model(encoder)
    functions = choose_functions([FILE], 10)
    cuts = [None, *((len(f.prefix), len(f.prefix) + len(f.body)) for f in functions)]
    documents = encoder.encode_middles([(FILE.path, FILE.text, cut) for cut in cuts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(90):
        ids = torch.tensor(documents[step % len(documents)].astype("int64"))[None]
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def quiet(done, total, what):
    pass


def test_what_is_known_by_heart_is_written(encoder, learnt):
    functions = choose_functions([FILE], 10)
    assert len(functions) == 2
    strange = small_model(encoder)
    results = []
    for task in tasks_of(encoder):
        arguments = {"context": 400, "max_tokens": 60, "progress": quiet}
        good = complete(learnt, encoder, functions, task, **arguments)
        bad = complete(strange, encoder, functions, task, **arguments)
        assert [c.text.rstrip() for c in good] == [f.body for f in functions]
        assert all(c.marks.exact and c.marks.parses and c.marks.ends for c in good)
        short = complete(learnt, encoder, functions, task, **{**arguments, "max_tokens": 4})
        assert not any(c.marks.ends for c in short)
        assert not any(c.marks.exact for c in bad)
        results.append(task_result(task, bad, good))
    assert [result.task for result in results] == ["completion", "fill-in-the-middle"]
    row = {row.name: row for row in results[0].rows}["exact"]
    assert (row.base, row.tuned, row.difference, row.difference_interval) == (0.0, 1.0, 1.0, None)
    samples = samples_of(functions, bad, good)
    assert samples[0].truth == samples[0].after.rstrip()
    assert samples[0].prompt.endswith(":")


def drawn_by_transformers(model, prompt, ends, seed, most, temperature, top_p):
    """Draws each token where the sum of its probabilities, in the vocabulary's order, passes the next number."""
    numbers = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    while len(ids) < len(prompt) + most:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        chances = (logits / temperature).softmax(-1)
        order = chances.argsort(descending=True)
        rest = order[chances[order].cumsum(0) - chances[order] >= top_p]
        chances[rest] = 0.0
        number = torch.rand((), generator=numbers, dtype=torch.float64)
        ids.append(int((chances.cumsum(0) <= number * chances.sum()).sum()))
        if ids[-1] in ends:
            return ids[len(prompt) : -1]
    return ids[len(prompt) :]


def test_drawn_text_is_that_of_a_plain_loop_and_of_its_own_seed(encoder, learnt):
    functions = choose_functions([FILE], 10)
    arguments = {"context": 400, "max_tokens": 24, "progress": quiet}
    for model in (learnt, small_model(encoder)):
        given = Sampling(temperature=1.4, top_p=0.9, seed=5)
        found = complete(model, encoder, functions, "fill-in-the-middle", **arguments, drawn=given)
        for number, (function, completion) in enumerate(zip(functions, found, strict=True)):
            prompt = prompt_of(function, "fill-in-the-middle", encoder, 376)
            ids = drawn_by_transformers(model, prompt, encoder.ends, 5 + number, 24, 1.4, 0.9)
            assert completion.text == encoder.tokenizer.decode(
                prompt[-4:] + ids, skip_special_tokens=False
            ).removeprefix(encoder.tokenizer.decode(prompt[-4:], skip_special_tokens=False)).rstrip("\ufffd")
    other = complete(model, encoder, functions, "fill-in-the-middle", **arguments, drawn=Sampling(temperature=1.4))
    assert [c.text for c in other] != [c.text for c in found]


def test_writing_is_abandoned_within_a_token(encoder, learnt):
    calls = []

    def stop(done, total, what):
        calls.append(done)
        if len(calls) == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        complete(learnt, encoder, choose_functions([FILE], 10), "completion", context=400, max_tokens=60, progress=stop)
    assert calls == [0, 0, 0, 0]


@pytest.mark.parametrize("task", ["completion", "fill-in-the-middle"])
@pytest.mark.parametrize("budget", [16, 40, 60, 500])
def test_a_prompt_fits_its_budget_and_keeps_what_is_nearest(encoder, task, budget):
    function = choose_functions([FILE], 10)[0]
    ids = prompt_of(function, task, encoder, budget)
    assert 0 < len(ids) <= budget
    text = encoder.decode(ids)
    if task == "completion":
        assert text.endswith(function.prefix[-12:])
    elif budget >= 40:
        assert text.endswith("<|fim_middle|>")
        assert function.prefix[-12:] in text


def test_the_evaluation_survives_json():
    from engine.evaluation.intervals import Interval
    from engine.evaluation.result import Evaluation
    from engine.evaluation.tally import PerplexityRow

    row = PerplexityRow(
        name="all", tokens=10, files=2, base=3.0, tuned=2.0, change=-1 / 3,
        base_interval=None, tuned_interval=Interval(1.0, 3.0), change_interval=None,
    )  # fmt: skip
    evaluation = Evaluation(
        run="r", model="demo", device="cpu", context=64, data="x", files=2, tokens=10, seconds=1.0,
        perplexity=row, by_language=(row,), by_position=(),
    )  # fmt: skip
    data = evaluation.as_json()
    assert (data["perplexity_before"], data["perplexity_after"], data["compile_rate_after"]) == (3.0, 2.0, None)
    import json

    assert evaluation_from_json(json.loads(json.dumps(data))) == evaluation
