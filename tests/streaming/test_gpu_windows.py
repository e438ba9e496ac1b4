"""Rings of windowed layers on a GPU: copies on side streams, and memory that the context does not change."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F  # noqa: N812
from transformers import AutoConfig, AutoModelForCausalLM

from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StreamedStep

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GPU = torch.device("cuda")
WORDS = 89
KINDS = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
FAMILIES = {
    "mistral": {},
    "starcoder2": {"residual_dropout": 0.0, "embedding_dropout": 0.0},
    "qwen2": {"use_sliding_window": True, "layer_types": KINDS},
    "gemma3_text": {"layer_types": KINDS, "head_dim": 32},
}
OPTIONS = {
    "stash": {},
    "no stash": {"stash": False},
    "checkpoints": {"checkpoint_every": 2},
    "checkpoints, no stash": {"checkpoint_every": 3, "stash": False},
    "hidden states on the GPU": {"hidden_home": "gpu"},
    "disk": {"hidden_home": "disk", "stash_home": "disk"},
    "host keys and values": {"kv_home": "host"},
}


@pytest.fixture(autouse=True)
def _full_fp32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def make(family, window, dtype, **changes):
    settings = {
        "vocab_size": WORDS,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 192,
        "max_position_embeddings": 2**19,
        "pad_token_id": 0,
        "initializer_range": 0.1,
        "sliding_window": window,
    }
    torch.manual_seed(4)
    config = AutoConfig.for_model(family, **{**settings, **FAMILIES[family], **changes})
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").train().to(GPU)


def draw(n):
    return torch.randint(1, WORDS, (n,), generator=torch.Generator().manual_seed(6))


def at_once(model, ids, starts):
    """Summed loss, and gradients of the mean, one document at a time by the model itself."""
    predicted, total = len(ids) - len(starts), 0.0
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        logits = model(input_ids=ids[None, start:stop].to(GPU), use_cache=False).logits[0, :-1]
        loss = F.cross_entropy(logits, ids[start + 1 : stop].to(GPU), reduction="sum")
        (loss / predicted).backward()
        total += loss.item()
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return total, found


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("window", "starts"), [(150, (0,)), (700, (0, 250, 1100))])
def test_fp32_gradient_over_eight_tiles(family, options, window, starts, tmp_path):
    ids = draw(2200)
    expected_loss, expected = at_once(make(family, window, torch.float64), ids, starts)
    model = make(family, window, torch.float64).float()
    plan = StreamPlan(tile=300, key_block=500, attention="efficient", **options)
    with StreamedStep(model, plan, device=GPU, spill_directory=tmp_path) as step:
        for _ in range(3):  # the second and third find buffers in use
            model.zero_grad()
            loss = step.run(ids, document_starts=starts).loss_sum
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            for name, parameter in model.named_parameters():
                want = expected[name]
                assert (parameter.grad.double() - want).norm() < 5e-5 * want.norm(), name


@pytest.mark.parametrize("stash", [True, False])
def test_gpu_memory_does_not_grow_with_the_context(stash):
    peaks = []
    for n in (2**16, 2**18):
        model = make("mistral", 1000, torch.bfloat16, num_hidden_layers=2).requires_grad_(requires_grad=False)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        plan = StreamPlan(tile=2048, key_block=4096, hidden_home="host", attention="flash", stash=stash)
        with StreamedStep(model, plan, device=GPU) as step:
            ids = draw(n)
            step.run(ids)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            step.run(ids)
            peaks.append(torch.cuda.max_memory_allocated())
        del model, step
        torch.cuda.empty_cache()
    # Rotary tables, two of 32 bf16 values a token, are kept while they are small. Nothing else may grow, least of all
    # keys, values and gradients of the whole context.
    rotary, whole = (2**18 - 2**16) * 2 * 32 * 2, (2**18 - 2**16) * 2 * 64 * (2 + 4)
    assert peaks[1] - peaks[0] < 1.5 * rotary < whole / 3
