"""Sequences written side by side are those written alone."""

from __future__ import annotations

import pytest
import torch
from support.tiny import SHAPE
from transformers import AutoModelForCausalLM, Gemma2Config

from engine.generation.batched import advance_together, write_together
from engine.generation.forward import home_of, open_forward
from engine.generation.sampling import Sampling, generate
from tests.streaming.models import FAMILIES, tiny_model

LENGTHS = (83, 5, 40, 61)
COUNT = 12


def prompts():
    return [torch.randint(3, 97, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in LENGTHS]


def opened(model):
    return [open_forward(model, n + COUNT, tile=16, page=32) for n in LENGTHS]


def alone(model, ends=frozenset()):
    sampling = Sampling(max_tokens=COUNT)
    return [list(generate(f, p, sampling, ends)) for f, p in zip(opened(model), prompts(), strict=True)]


def together(model, ends=frozenset(), stop=lambda number, written: False):
    written = [[] for _ in LENGTHS]

    def take(number, token):
        written[number].append(token)
        return not stop(number, written[number])

    write_together(opened(model), prompts(), max_tokens=COUNT, ends=ends, take=take)
    return written


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_each_sequence_alone(family):
    model = tiny_model(family).eval()
    assert together(model) == alone(model)
    assert model.config._attn_implementation == "sdpa"


def test_of_a_family_without_tiles_too():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Gemma2Config(**{**SHAPE, "head_dim": 8, "sliding_window": 16})).eval()
    assert together(model) == alone(model)


def test_a_sequence_that_ends_leaves_the_others_going():
    model = tiny_model("qwen2").eval()
    whole = alone(model)
    ends = frozenset({whole[1][3], whole[2][0]})
    assert together(model, ends) == alone(model, ends)
    cut = together(model, stop=lambda number, written: number == 3 and len(written) == 2)
    assert cut == [*whole[:3], whole[3][:2]]


def test_logits_are_those_of_each_sequence_alone():
    model = tiny_model("qwen2").eval()
    side_by_side, apart = opened(model), opened(model)
    for forward, prompt in zip([*side_by_side, *apart], prompts() * 2, strict=True):
        forward.advance(torch.tensor(prompt))
    tokens = torch.tensor([3, 4, 5, 6])
    rows = advance_together(side_by_side, tokens)
    for row, forward, token in zip(rows, apart, tokens, strict=True):
        torch.testing.assert_close(row, forward.advance(token[None]), rtol=1e-5, atol=1e-5)
    assert [forward.length for forward in side_by_side] == [n + 1 for n in LENGTHS]


@pytest.mark.parametrize(("among", "home"), [(1, "cuda"), (6, "cuda"), (7, "cpu")])
def test_sequences_that_are_open_together_share_the_gpus_memory(monkeypatch, among, home):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert home_of(90 * among, torch.device("cuda")).type == home
