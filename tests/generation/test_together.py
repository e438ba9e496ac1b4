"""Sequences that share decoding steps are those that transformers writes alone, whenever they come and go."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.tiny import model_without_tiles

from engine.config import LoraSection
from engine.generation.batched import BatchGenerator, SerialGenerator, open_generator, write_together
from engine.generation.forward import home_of
from engine.generation.row_attention import IMPLEMENTATION, row_mask
from engine.generation.sampling import Sampling
from engine.models import families
from engine.models.adapter import attach_adapter, trainable
from engine.streaming.decoder import Decoder
from tests.streaming.models import FAMILIES, tiny_model
from tests.streaming.test_recurrent import FAMILIES as RECURRENT
from tests.streaming.test_recurrent import make_model

LENGTHS = (83, 5, 40, 61, 1, 30)
COUNT = 12


def prompts(lengths=LENGTHS):
    return [torch.randint(3, 83, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths]


def by_library(model, prompt, count=COUNT):
    ids = torch.tensor([prompt])
    found = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None,
        use_cache=True,
    )  # fmt: skip
    return found[0, len(prompt) :].tolist()


def opened(model, *, rows=3, capacity=100, ends=frozenset(), **more):
    return BatchGenerator(Decoder(model), capacity=capacity, rows=rows, ends=ends, tile=48, page=32, **more)


def written_by(generator, wanted, sampling=None, stop=lambda number, tokens: False):
    """Text of each prompt, by the order of the prompts."""
    found = [[] for _ in wanted]

    def take(number, token):
        found[number].append(token)
        return not stop(number, found[number])

    with generator:
        write_together(generator, wanted, sampling or Sampling(max_tokens=COUNT), take)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_unequal_prompts_say_what_the_library_says(family):
    """Six prompts share three rows, so that rows end, are filled again, and move."""
    model = tiny_model(family).eval()
    attention = model.config._attn_implementation
    wanted = [by_library(model, prompt) for prompt in prompts()]
    assert written_by(opened(model), prompts()) == wanted
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("family", RECURRENT)
def test_recurrent_states_stay_in_their_rows(family, monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", {**families.FAMILIES, family: families.Family()})
    model = make_model(family, torch.float32).eval()
    lengths = (70, 5, 33, 64)
    wanted = [by_library(model, prompt, 6) for prompt in prompts(lengths)]
    generator = opened(model, rows=2)
    assert written_by(generator, prompts(lengths), Sampling(max_tokens=6)) == wanted


def test_an_adapter_takes_part_as_it_is_switched():
    model = attach_adapter(tiny_model("qwen2"), LoraSection(rank=4, dropout=0.1), seed=0).eval()
    for parameter in trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.2)
    tuned = [by_library(model, prompt) for prompt in prompts()]
    assert written_by(opened(model), prompts()) == tuned
    with model.disable_adapter():
        base = [by_library(model, prompt) for prompt in prompts()]
        assert written_by(opened(model), prompts()) == base
    assert base != tuned
    assert not any("forward" in vars(module) for module in model.modules() if isinstance(module, torch.nn.Linear))


def test_families_without_tiles_are_written_one_after_the_other():
    model = model_without_tiles()
    wanted = [by_library(model, prompt) for prompt in prompts()]
    generator = open_generator(model, capacity=100)
    assert isinstance(generator, SerialGenerator)
    assert written_by(generator, prompts()) == wanted


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_texts_end_each_on_its_own(rows):
    model = tiny_model("qwen2").eval()
    whole = [by_library(model, prompt) for prompt in prompts()]
    ends = frozenset({whole[1][3], whole[2][0]})
    ended = [list(itertools.takewhile(lambda token: token not in ends, text)) for text in whole]
    assert written_by(opened(model, rows=rows, ends=ends), prompts()) == ended
    cut = written_by(opened(model, rows=rows), prompts(), stop=lambda number, text: number == 3 and len(text) == 2)
    assert cut == [*whole[:3], whole[3][:2], *whole[4:]]


def test_prompts_come_and_go_between_steps():
    """As a server uses it: events say which text goes on, and which ended and why."""
    model = tiny_model("llama").eval()
    first, second, third = prompts((20, 50, 7))
    with opened(model, rows=2) as generator:
        a = generator.submit(first, Sampling(max_tokens=4))
        events = generator.step()
        b = generator.submit(second, Sampling(max_tokens=9))
        c = generator.submit(third, Sampling(max_tokens=5))
        events += generator.step() + generator.step()
        generator.cancel(b)
        generator.cancel(b)
        while generator.busy:
            events += generator.step()
        assert generator.step() == []
    texts = {number: [e.token for e in events if e.sequence == number and e.token is not None] for number in (a, b, c)}
    assert texts[a] == by_library(model, first, 4)
    assert texts[c] == by_library(model, third, 5)
    assert texts[b] == by_library(model, second, 9)[: len(texts[b])]
    assert 0 < len(texts[b]) < 9
    reasons = {e.sequence: e.finished for e in events if e.finished}
    assert reasons == {a: "length", b: "cancelled", c: "length"}
    assert sum(e.finished is not None for e in events) == 3


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_drawn_texts_depend_on_their_seeds_alone(family):
    model = tiny_model(family).eval()
    samplings = [Sampling(max_tokens=COUNT, temperature=1.0, top_p=0.9, seed=i) for i in range(len(LENGTHS))]
    samplings[2] = Sampling(max_tokens=COUNT)

    def drawn(rows, chosen):
        with opened(model, rows=rows) as generator:
            numbers = [generator.submit(prompts()[i], samplings[i]) for i in chosen]
            found = {number: [] for number in numbers}
            while generator.busy:
                for event in generator.step():
                    found[event.sequence].append(event.token)
        return dict(zip(chosen, found.values(), strict=True))

    together = drawn(6, range(6))
    assert drawn(1, [4, 1, 5, 0, 3, 2]) == together
    assert together[2] == by_library(model, prompts()[2])
    with open_generator(model, capacity=100) as generator:
        number = generator.submit(prompts()[0], Sampling(max_tokens=COUNT, temperature=1.0, top_p=0.9, seed=1))
        other = []
        while generator.busy:
            other += [event.token for event in generator.step() if event.sequence == number]
    assert other != together[0]


def test_a_text_has_no_more_room_than_was_asked_for():
    model = tiny_model("qwen2").eval()
    with opened(model, capacity=20) as generator:
        with pytest.raises(ValueError, match="21 tokens in a sequence of 20"):
            generator.submit([5] * 11, Sampling(max_tokens=10))
        with pytest.raises(ValueError, match="empty prompt"):
            generator.submit([], Sampling(max_tokens=10))
        assert not generator.busy
    assert written_by(opened(model, capacity=20), [[5] * 10], Sampling(max_tokens=10)) == [
        by_library(model, [5] * 10, 10)
    ]


def test_a_model_that_was_left_behind_says_so():
    model = tiny_model("qwen2").eval()
    with opened(model) as generator:
        generator.submit([5, 6], Sampling(max_tokens=2))
        generator.step()
    model.config._attn_implementation = IMPLEMENTATION
    with pytest.raises(RuntimeError, match="left behind"):
        model(input_ids=torch.tensor([[5]]), use_cache=False)


def test_a_mask_shows_the_keys_of_each_row():
    lengths = torch.tensor([1, 4, 6], dtype=torch.int32)
    shown = row_mask(lengths, 6, 3)[:, 0, 0].int().tolist()
    assert shown == [[1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]]
    assert row_mask(lengths, 6, None)[:, 0, 0].sum(-1).tolist() == [1, 4, 6]


@pytest.mark.parametrize(("among", "home"), [(1, "cuda"), (6, "cuda"), (7, "cpu")])
def test_sequences_that_are_open_together_share_the_gpus_memory(monkeypatch, among, home):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert home_of(90 * among, torch.device("cuda")).type == home
