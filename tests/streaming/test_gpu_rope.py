"""Rotary tables on a GPU where a run allows TF32: the streamed and the whole path at far positions."""

from __future__ import annotations

import pytest
import torch

from engine.hardware.tuning import tune_memory
from engine.steps.whole_step import WholeSequenceStep
from engine.streaming.decoder import Decoder
from engine.streaming.positions import TileArguments
from tests.streaming.models import tiny_model
from tests.streaming.test_rope import check_against_fp64

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GPU = torch.device("cuda")
TILE = 4096


@pytest.fixture(autouse=True)
def _tuned():
    before = torch.get_float32_matmul_precision()
    tune_memory(GPU)
    assert torch.get_float32_matmul_precision() == "high"
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("end", [1 << 20, 4 << 20])
@pytest.mark.parametrize("way", ["streamed", "whole"])
def test_tables_of_far_positions_are_fp32_under_tf32(way, end, autocast):
    model = tiny_model("llama", max_position_embeddings=8 << 20).to(GPU)
    x = torch.zeros((1, TILE, 64), device=GPU)
    positions = torch.arange(end - TILE, end, device=GPU)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
        if way == "streamed":
            found = TileArguments(Decoder(model), end, (0,), TILE, GPU).of(end // TILE - 1, x)
            cos, sin = found[0]["position_embeddings"]
        else:
            WholeSequenceStep(model, recompute=False)
            cos, sin = model.model.rotary_emb(x, positions[None])
    check_against_fp64(cos[0].float(), sin[0].float(), positions, head_dim=16)
    assert torch.get_float32_matmul_precision() == "high", "only the tables are kept out of it"
