"""Layers that attend to the keys and values of an earlier layer, and layers with inputs of their own.

The reference is plain transformers in fp64 (SDPA), one document at a time, ordinary backpropagation.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from engine.data.windows import Window
from engine.errors import EliteError
from engine.generation.batched import open_generator
from engine.generation.forward import TiledForward
from engine.generation.sampling import Sampling
from engine.models import families
from engine.models.shared_kv import kv_owners
from engine.plan.stream_plan import StreamPlan
from engine.steps.whole_step import WholeSequenceStep
from engine.streaming import lone_tile, streamed_model
from engine.streaming.step import StreamedStep
from engine.verify.small import Unbothered
from tests.support.side_streams import simulated

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 89,
    "vocab_size_per_layer_input": 89,
    "hidden_size_per_layer_input": 12,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 40,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "sliding_window": 9,
    "final_logit_softcapping": 30.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NEAR, ALL = "sliding_attention", "full_attention"
FAMILIES = {
    "gemma4_text": {
        "global_head_dim": 20,
        "use_double_wide_mlp": True,
        "layer_types": [NEAR, ALL, NEAR, ALL, NEAR, NEAR, ALL, NEAR, ALL],
        "num_kv_shared_layers": 5,
    },
    "gemma3n_text": {
        "layer_types": [NEAR, NEAR, ALL, NEAR, ALL, NEAR],
        "num_kv_shared_layers": 3,
        "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0, 0.0, 0.0],
        "laurel_rank": 6,
        "altup_num_inputs": 3,
    },
}
DOCUMENTS = ((0,), (0, 6, 7, 41))
PLANS = {
    "tiles": StreamPlan(tile=16, key_block=32, loss_piece=7),
    "again": StreamPlan(tile=27, key_block=32, loss_piece=50, stash=False, checkpoint_every=3),
    "one tile": StreamPlan(tile=128, key_block=128, loss_piece=50, stash=False),
    "graphs kept": StreamPlan(tile=128, key_block=128, loss_piece=50, keep_layers=3),
}


@pytest.fixture(autouse=True)
def admitted(monkeypatch):
    monkeypatch.setattr(streamed_model, "EMBEDDED_AT_ONCE", 11)
    for family in FAMILIES:
        monkeypatch.setitem(families.FAMILIES, family, families.Family())


def make(family, **changes):
    settings = {**SIZES, **FAMILIES[family], **changes}
    config = AutoConfig.for_model(family, **settings, num_hidden_layers=len(settings["layer_types"]))
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa").double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def adapted(model):
    model = get_peft_model(model.requires_grad_(requires_grad=False), LoraConfig(r=3, target_modules="all-linear"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = 0.1 * torch.randn_like(parameter.double())
    return model


def tokens(length=70):
    return torch.randint(3, 89, (length,), generator=torch.Generator().manual_seed(3))


def reference(model, ids, starts):
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for start, stop in pairwise((*starts, len(ids))):
        logits = model(input_ids=ids[None, start:stop], use_cache=False).logits[0, :-1]
        loss = functional.cross_entropy(logits, ids[start + 1 : stop], reduction="sum")
        (loss / (len(ids) - len(starts))).backward()
        total += loss.detach()
    return float(total), taken(model)


def taken(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_equal(found, wanted):
    assert found[0] == pytest.approx(wanted[0], rel=1e-7)
    expected = {name for name, gradient in wanted[1].items() if gradient.any()}
    assert expected <= found[1].keys()
    whole = torch.stack([gradient.norm() for gradient in wanted[1].values()]).norm()
    for name, gradient in found[1].items():
        want = wanted[1].get(name, torch.zeros(()))
        assert (gradient - want).norm() <= 5e-6 * (want.norm() + 1e-3 * whole), name


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_all_weights(family, plan):
    model = make(family)
    for starts in DOCUMENTS:
        wanted = reference(model, tokens(), starts)
        with StreamedStep(model, plan, device=CPU) as step:
            for _ in range(1 if len(starts) > 1 else 2):  # what the first leaves behind does not change the second
                found = step.run(tokens(), document_starts=starts).loss_sum, taken(model)
                assert_equal(found, wanted)
            assert step.evaluate(tokens(), document_starts=starts).loss_sum == pytest.approx(wanted[0], rel=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_an_adapter(family):
    model = adapted(make(family))
    wanted = reference(model, tokens(), DOCUMENTS[1])
    for plan in PLANS.values():
        with StreamedStep(model, plan, device=CPU) as step:
            assert_equal((step.run(tokens(), document_starts=DOCUMENTS[1]).loss_sum, taken(model)), wanted)


COPIED = {
    "tiles of less than a page": StreamPlan(tile=8, key_block=32, kv_home="host"),
    "outputs on the disk": StreamPlan(tile=16, key_block=16, kv_home="host", checkpoint_every=2, stash_home="disk"),
    "again": StreamPlan(tile=27, key_block=32, kv_home="host", stash=False, hidden_home="disk", checkpoint_every=3),
    "graphs of borrowers": StreamPlan(tile=128, key_block=128, kv_home="host", keep_layers=3),
    "graphs of all": StreamPlan(tile=128, key_block=128, kv_home="host", stash=False, keep_layers=9),
}


@pytest.mark.parametrize("plan", COPIED.values(), ids=COPIED)
@pytest.mark.parametrize("family", FAMILIES)
def test_keys_that_wait_on_the_host(family, plan, tmp_path):
    """A page's buffers are overwritten while layers still use the keys of a tile; copies are real, as on a GPU."""
    model = adapted(make(family))
    wanted = reference(model, tokens(), DOCUMENTS[1])
    with simulated("by chance"), StreamedStep(model, plan, device=CPU, spill_directory=tmp_path) as step:
        for _ in range(2):
            assert_equal((step.run(tokens(), document_starts=DOCUMENTS[1]).loss_sum, taken(model)), wanted)
    assert not list(tmp_path.iterdir())


def test_the_graph_of_an_owner_is_kept():
    """What it appends to its cache is not a part of its borrowers' graphs."""
    model = make("gemma4_text")
    wanted = reference(model, tokens(), (0,))
    with StreamedStep(model, StreamPlan(tile=128, key_block=128, keep_layers=9), device=CPU) as step:
        assert_equal((step.run(tokens()).loss_sum, taken(model)), wanted)


def test_layers_above_the_owner_alone_are_trained():
    model = adapted(make("gemma4_text"))
    for name, parameter in model.named_parameters():
        if not any(f".layers.{layer}." in name for layer in (6, 8)):
            parameter.requires_grad_(requires_grad=False)
    wanted = reference(model, tokens(), (0,))
    with StreamedStep(model, PLANS["tiles"], device=CPU) as step:
        assert_equal((step.run(tokens()).loss_sum, taken(model)), wanted)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_windows(family, recompute):
    model, starts = make(family), DOCUMENTS[1]
    wanted = reference(model, tokens(), starts)
    step = WholeSequenceStep(model, recompute=recompute)
    found = step.run([Window(tokens().numpy(), starts)], 1 / (70 - len(starts)), Unbothered()).loss_sum
    step.close()
    assert_equal((found, taken(model)), wanted)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_text_with_a_cache(family):
    model, ids = make(family).eval(), tokens()
    wanted = model(input_ids=ids[None], use_cache=False).logits[0, 59:]
    forward = TiledForward(model, 70, tile=16, page=32)
    found = [forward.advance(ids[:60]), *(forward.advance(ids[at : at + 1]) for at in range(60, 70))]
    torch.testing.assert_close(torch.stack(found).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prompts", [(30,), (30, 5, 50)], ids=["one prompt", "prompts of one tile"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_texts_that_are_decoded_together(family, prompts):
    """A prompt that comes alone fills a row tile by tile; rows are then read by layers that stored nothing in them."""
    model = make(family).float().eval()
    found, wanted = {}, {}
    with open_generator(model, capacity=70, rows=3) as generator:
        for length in prompts:
            ids = tokens(length).tolist()
            number = generator.submit(ids, Sampling(max_tokens=5, temperature=0.0))
            found[number], wanted[number] = [], ids
        while generator.busy:
            for event in generator.step():
                found[event.sequence] += [] if event.token is None else [event.token]
    for number, ids in wanted.items():
        for _ in range(5):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert found[number] == ids[-5:]


def test_owners_are_the_last_of_their_type():
    config = make("gemma4_text").config
    assert kv_owners(config) == [None, None, None, None, 2, 2, 3, 2, 3]
    config.num_kv_shared_layers = 0
    assert kv_owners(config) == [None] * 9


def test_several_ranks_are_refused_by_name():
    with pytest.raises(EliteError, match="share keys and values"):
        StreamedStep(make("gemma4_text"), PLANS["tiles"], device=CPU, sharding=object())


def test_a_model_that_uses_neither_is_not_refused():
    """Gemma 4 26B-A4B and 31B are of the same class as E2B, without inputs of single layers."""
    model = make("gemma4_text", hidden_size_per_layer_input=0, num_kv_shared_layers=0)
    with StreamedStep(model, PLANS["tiles"], device=CPU, sharding=object()) as step:
        assert step.streamed.resumes
        assert not lone_tile.refusal(step.streamed).startswith("layers share")


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_keys_that_no_layer_reads_are_handed_on(plan):
    """Gemma 4's last layers of a type do so where no layer shares keys, in transformers before 5.23."""
    model = make("gemma4_text", hidden_size_per_layer_input=0, num_kv_shared_layers=0)
    for layer in model.model.layers:
        layer.self_attn.store_full_length_kv = True
    wanted = reference(model, tokens(), (0,))
    with StreamedStep(model, plan, device=CPU) as step:
        assert_equal((step.run(tokens()).loss_sum, taken(model)), wanted)
