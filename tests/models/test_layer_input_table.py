"""A table of layers' own inputs that is looked up on the host: the bits of a table on the device.

The references are the same step with the model's own table, and plain transformers by ordinary backpropagation.
"""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config import LoraSection
from engine.data.windows import Window
from engine.generation.forward import TiledForward
from engine.models import families, layer_input_table
from engine.models.adapter import attach_adapter
from engine.models.layer_input_table import HostRows, look_up_on_host, table_of
from engine.plan.stream_plan import EMBEDDED_AT_ONCE, StreamPlan
from engine.steps.whole_step import WholeSequenceStep
from engine.streaming import streamed_model
from engine.streaming.step import StreamedStep
from engine.verify.small import Unbothered

CPU = torch.device("cpu")
NEAR, ALL = "sliding_attention", "full_attention"
SIZES = {
    "vocab_size": 71,
    "vocab_size_per_layer_input": 71,
    "hidden_size_per_layer_input": 8,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "sliding_window": 9,
    "num_kv_shared_layers": 2,
    "layer_types": [NEAR, NEAR, ALL, NEAR, ALL],
    "num_hidden_layers": 5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "gemma4_text": {"global_head_dim": 16},
    "gemma3n_text": {"activation_sparsity_pattern": [0.5, *4 * [0.0]], "laurel_rank": 4, "altup_num_inputs": 2},
}
PLANS = {
    "tiles": StreamPlan(tile=16, key_block=32, loss_piece=7),
    "again": StreamPlan(tile=27, key_block=32, stash=False, checkpoint_every=3),
    "disk": StreamPlan(tile=13, key_block=29, hidden_home="disk"),
    "one tile": StreamPlan(tile=128, key_block=128, keep_layers=2),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several chunks in a tile, and several tiles."""
    monkeypatch.setattr(streamed_model, "EMBEDDED_AT_ONCE", 11)
    monkeypatch.setattr(layer_input_table, "ROWS_AT_ONCE", 5)
    for family in FAMILIES:
        monkeypatch.setitem(families.FAMILIES, family, families.Family())


def make(family, dtype, **changes):
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **changes})
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").to(dtype)
    model.requires_grad_(requires_grad=False)
    adapted = attach_adapter(model, LoraSection(rank=3), seed=1).train()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = 0.2 * torch.randn_like(parameter.to(dtype))
    return adapted


def hosted(model):
    found = copy.deepcopy(model)
    look_up_on_host(found, CPU)
    assert isinstance(table_of(found).forward, HostRows)
    return found


def tokens(length=70):
    return torch.randint(3, 71, (length,), generator=torch.Generator().manual_seed(3))


def taken(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_bits(found, wanted):
    assert found[0] == wanted[0]
    assert found[1].keys() == wanted[1].keys()
    assert len(wanted[1]) > 20
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in wanted[1].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_step_gives_the_same_bits(family, plan, dtype, tmp_path):
    model = make(family, dtype)
    found = []
    for each in (model, hosted(model)):
        with StreamedStep(each, plan, device=CPU, spill_directory=tmp_path) as step:
            outcome = step.run(tokens(), document_starts=(0, 6, 7, 41))
            found.append((outcome.loss_sum, taken(each)))
            found[-1][1]["losses"] = step.evaluate(tokens()).token_losses
    assert_same_bits(*found)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_plain_transformers(family):
    model, ids = make(family, torch.float64), tokens()
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    loss = functional.cross_entropy(logits, ids[1:], reduction="sum")
    (loss / 69).backward()
    wanted = taken(model)
    other = hosted(model)
    with StreamedStep(other, PLANS["tiles"], device=CPU) as step:
        assert step.run(ids).loss_sum == pytest.approx(loss.item(), rel=1e-7)
    found = taken(other)
    whole = torch.stack([gradient.norm() for gradient in wanted.values()]).norm()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 5e-6 * (gradient.norm() + 1e-3 * whole), name


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_windows_give_the_same_bits(family, recompute):
    model = make(family, torch.float32)
    found = []
    for each in (model, hosted(model)):
        step = WholeSequenceStep(each, recompute=recompute)
        windows = [Window(tokens().numpy(), (0, 30))]
        found.append((step.run(windows, 1 / 68, Unbothered()).loss_sum, taken(each)))
        step.close()
    assert_same_bits(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0,), (1,), (2, 3), (1, 23)])
def test_rows_of_any_shape_and_type(shape, dtype):
    """The module's own scale is applied, rounded to the type of its rows."""
    table = table_of(make("gemma3n_text", torch.float32)).to(dtype)
    ids = torch.randint(0, 71, shape, generator=torch.Generator().manual_seed(5))
    ids.flatten()[:1] = 0  # the padding index is a row like others
    wanted = table(ids)
    assert torch.equal(HostRows(table, CPU)(ids), wanted)
    assert torch.equal(wanted, functional.embedding(ids, table.weight) * torch.tensor(8**0.5).to(dtype))


def test_a_row_is_not_overwritten_while_it_is_copied(monkeypatch):
    """Copies that run as late as a GPU may run them: when their buffer is needed again, or after everything."""
    waiting = []

    class Late:
        def __init__(self, source, target):
            self.pair = source, target

        def synchronize(self):
            while self in waiting:
                source, target = waiting[0].pair
                target.copy_(source)
                waiting.pop(0)

    def send(source, target):
        waiting.append(Late(source, target))
        return waiting[-1]

    monkeypatch.setattr(layer_input_table, "_send", send)
    table = table_of(make("gemma4_text", torch.float32))
    rows, ids = HostRows(table, CPU), torch.arange(23) * 3 % 70
    one, other = rows._rows(ids), rows._rows(ids + 1)  # the second finds buffers whose copies have not run
    assert len(waiting) == 2
    waiting[-1].synchronize()
    assert torch.equal(one, table.weight[ids])
    assert torch.equal(other, table.weight[ids + 1])


@torch.no_grad()
def test_text_with_a_cache():
    model = make("gemma4_text", torch.float32).eval()
    found = [TiledForward(each, 70, tile=16, page=32).advance(tokens(60)) for each in (model, hosted(model))]
    assert torch.equal(*found)


def test_noise_on_the_embedding_is_the_same():
    """NEFTune draws from the generator of a tile; rows that come from elsewhere draw nothing."""
    model, found = make("gemma4_text", torch.float32), []
    for each in (model, hosted(model)):
        each.get_input_embeddings().register_forward_hook(lambda _, __, out: out + 0.1 * torch.rand_like(out))
        torch.manual_seed(8)
        with StreamedStep(each, PLANS["tiles"], device=CPU) as step:
            found.append((step.run(tokens()).loss_sum, taken(each)))
    assert_same_bits(*found)


def test_a_table_that_is_trained_stays():
    model = make("gemma4_text", torch.float32)
    table_of(model).weight.requires_grad_()
    with pytest.raises(ValueError, match="embed_tokens_per_layer is trained"):
        look_up_on_host(model, CPU)
    assert "forward" not in table_of(model).__dict__


def test_models_without_such_a_table_are_left_alone():
    model = make("gemma4_text", torch.float32, hidden_size_per_layer_input=0)
    assert table_of(model) is None
    look_up_on_host(model, CPU)
    assert not any(isinstance(module.__dict__.get("forward"), HostRows) for module in model.modules())


def test_the_planner_counts_the_buffers_that_there_are(monkeypatch):
    monkeypatch.undo()
    assert layer_input_table.ROWS_AT_ONCE == EMBEDDED_AT_ONCE


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_holds_no_table(family, streamed, dtype):
    device = torch.device("cuda")
    changes = {"vocab_size": 50_000, "vocab_size_per_layer_input": 50_000, "hidden_size_per_layer_input": 32}
    model = make(family, dtype, **changes)
    found, held, table = [], [], table_of(model).weight.nbytes
    for on_host in (False, True):
        gc.collect()  # what a traceback of an earlier test still holds would be freed within the measurement
        before, each = torch.cuda.memory_allocated(device), copy.deepcopy(model)
        if on_host:
            look_up_on_host(each, device)
            assert table_of(each).weight.device == CPU
        else:
            each.to(device)
        held.append(torch.cuda.memory_allocated(device) - before)
        if streamed:
            with StreamedStep(each, StreamPlan(tile=1500, key_block=2048), device=device) as step:
                found.append((step.run(tokens(4000)).loss_sum, taken(each)))
        else:
            step = WholeSequenceStep(each, recompute=True)
            found.append((step.run([Window(tokens(3000).numpy(), (0,))], 1 / 2999, Unbothered()).loss_sum, taken(each)))
            step.close()
        assert next(each.parameters()).device.type == "cuda"
        del each
    assert held[0] - held[1] == pytest.approx(table, rel=0.05)
    assert found[0][0] == found[1][0]
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@needs_gpu
def test_a_captured_step_is_refused():
    model = make("gemma4_text", torch.float32)
    look_up_on_host(model, torch.device("cuda"))
    ids = torch.zeros(1, 4, dtype=torch.long, device="cuda")
    with pytest.raises(RuntimeError, match="cannot be part of a CUDA graph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        table_of(model)(ids)
