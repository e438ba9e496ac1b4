"""Shifted groups change training alone: a scored model is transformers' own, or it is refused."""

from __future__ import annotations

import pytest
import torch

from engine.errors import EliteError
from engine.models.shifted_attention import shift_attention
from tests.streaming.models import tiny_model

TOKENS = 40


def logits(model):
    ids = torch.randint(0, 97, (1, TOKENS), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize(
    ("family", "settings"),
    [("llama", {}), ("mistral", {"sliding_window": TOKENS}), ("qwen2", {"sliding_window": 8})],
    ids=["no window", "a window of the context", "a window that is off"],
)
def test_a_scored_model_attends_as_transformers_does(family, settings):
    plain, shifted = (tiny_model(family, **settings).eval() for _ in range(2))
    plain.config._attn_implementation = "eager"
    shift_attention(shifted, context=TOKENS)
    torch.testing.assert_close(logits(shifted), logits(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("mistral", {"sliding_window": 20}, "a window of 20 tokens, shorter than the context"),
        ("gemma3_text", {}, "a window of .* shorter than the context"),
        ("gemma2", {}, "more than a softmax"),
        ("gemma3_text", {"attn_logit_softcapping": 3.0, "sliding_window": TOKENS}, "more than a softmax"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "a window of 8 tokens"),
    ],
    ids=["a window", "some windows", "a cap", "a cap and long windows", "a window of the last layers"],
)
def test_layers_whose_own_mask_or_cap_the_groups_would_leave_out_are_refused(family, settings, reason):
    with pytest.raises(EliteError, match=reason):
        shift_attention(tiny_model(family, **settings), context=TOKENS)
