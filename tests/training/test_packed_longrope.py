"""LongRoPE's factors depend on a document's length, not on what it is packed with: against plain transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import Phi3Config, Phi3ForCausalLM

from engine.steps.whole_step import WholeSequenceStep, Window

ORIGINAL = 16


class Monitor:
    """Watches nothing."""

    def progress(self, *_: Any, **__: Any) -> None:
        """Does nothing."""

    def stop_requested(self) -> bool:
        """Never."""
        return False


def model_of() -> Phi3ForCausalLM:
    torch.manual_seed(5)
    config = Phi3Config(
        vocab_size=71,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        original_max_position_embeddings=ORIGINAL,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 300.0,
            "short_factor": [1.0, 1.1, 1.3, 1.4],
            "long_factor": [2.0, 3.5, 6.0, 9.0],
            "original_max_position_embeddings": ORIGINAL,
        },
        sliding_window=None,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    return Phi3ForCausalLM(config).double().train()


def window(tokens: int, *starts: int) -> Window:
    return Window(np.random.default_rng(tokens).integers(3, 71, tokens), (0, *starts))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("windows", "micro_batch", "fill_up_to"),
    [
        ([window(40, 7, 8, 31)], 1, None),  # 7, 1, 23 and 9 tokens
        ([window(16), window(17)], 2, None),  # each side of the change
        ([window(33, 17)], 1, 48),  # 17 and 16, which padding makes longer than the change
        ([window(15)], 1, 64),
        ([window(60, 16, 30)], 1, 64),
        ([window(12, 5)], 1, None),
        ([window(50, 20)], 1, None),
    ],
)
def test_each_document_has_the_factors_of_its_own_length(
    windows: list[Window], micro_batch: int, fill_up_to: int | None, recompute: bool
) -> None:
    total, reference = torch.zeros(()).double(), model_of()
    for each in windows:
        for start, end in zip(each.starts, (*each.starts[1:], len(each)), strict=True):
            if end - start < 2:
                continue
            ids = torch.as_tensor(each.ids[start:end])
            logits = reference(input_ids=ids[None], use_cache=False).logits[0, :-1]
            total = total + functional.cross_entropy(logits, ids[1:], reduction="sum")
    (0.3 * total).backward()

    model = model_of()
    step = WholeSequenceStep(model, recompute=recompute, micro_batch=micro_batch, fill_up_to=fill_up_to)
    result = step.run(windows, 0.3, Monitor())
    assert result.loss_sum == pytest.approx(total.item(), rel=1e-12)
    wanted = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-9, atol=1e-12, msg=name)
    assert sum(step.loss(each) for each in windows) == pytest.approx(total.item(), rel=1e-12)

    ids = torch.arange(3, 30)[None]
    assert torch.equal(model(input_ids=ids).logits, reference(input_ids=ids).logits), "the model is as it was"
