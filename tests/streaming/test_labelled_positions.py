"""The head is applied to labelled positions alone, with the loss and the gradients of all positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from engine.models.lm_head import summed_cross_entropy
from engine.streaming.loss import IGNORED, labelled_positions, loss_and_gradient, token_losses
from engine.streaming.sequence_run import SequenceRun, StepRequest

VOCABULARY, WIDTH = 23, 7


class CountingHead(nn.Linear):
    """A head that records how many rows each call has."""

    def __init__(self) -> None:
        super().__init__(WIDTH, VOCABULARY, bias=False, dtype=torch.float64)
        self.rows: list[int] = []

    def forward(self, hidden: Tensor) -> Tensor:
        self.rows.append(hidden.shape[0])
        return super().forward(hidden)


def expected(
    hidden: Tensor, labels: Tensor, head: nn.Linear, smoothing: float, coefficients: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, and gradients of the hidden states and the weight, from the whole logits by log-softmax alone."""
    hidden, weight = hidden.clone().requires_grad_(), head.weight.detach().clone().requires_grad_()
    logs = torch.log_softmax(hidden @ weight.T, dim=1)
    picked = logs[torch.arange(len(labels)), labels.clamp_min(0)]
    losses = -((1 - smoothing) * picked + smoothing * logs.mean(dim=1)) * (labels != IGNORED)
    losses = losses if coefficients is None else losses * coefficients
    found = torch.autograd.grad(losses.sum(), [hidden, weight])
    return losses.detach(), *found


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    piece=st.integers(1, 16),
    trained=st.booleans(),
    weighted=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 99),
)
def test_loss_and_gradients_are_those_of_all_positions(
    tokens: int, share: float, piece: int, trained: bool, weighted: bool, smoothing: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, WIDTH, generator=draw, dtype=torch.float64)
    labels = torch.randint(VOCABULARY, (tokens,), generator=draw)
    labels[torch.rand(tokens, generator=draw) >= share] = IGNORED
    coefficients = torch.randn(tokens, generator=draw, dtype=torch.float64) if weighted else None
    head = CountingHead().requires_grad_(trained)
    losses, wanted, of_weight = expected(hidden, labels, head, smoothing, coefficients)
    labelled = labelled_positions(labels)
    total, gradient = loss_and_gradient(
        hidden,
        labels,
        head,
        piece=piece,
        scale=0.3,
        label_smoothing=smoothing,
        coefficients=coefficients,
        labelled=labelled,
    )
    torch.testing.assert_close(total, losses.sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, 0.3 * wanted, rtol=1e-12, atol=1e-12)
    assert not gradient[labels == IGNORED].any()
    count = int((labels != IGNORED).sum())
    assert max(head.rows) <= piece
    assert sum(head.rows) == (tokens if labelled is None else max(count, 1))
    assert labelled is not None or count > 0.8 * tokens
    if trained:
        torch.testing.assert_close(head.weight.grad, 0.3 * of_weight, rtol=1e-12, atol=1e-12)
    plain, *_ = expected(hidden, labels, head, 0.0, None)
    likeliest = torch.zeros_like(labels)
    found = token_losses(hidden, labels, head, piece=piece, labelled=labelled, likeliest=likeliest)
    torch.testing.assert_close(found.detach(), plain, rtol=1e-12, atol=1e-12)
    predicted = labels != IGNORED
    assert torch.equal(likeliest[predicted], (hidden @ head.weight.T).argmax(-1)[predicted])
    leaf = hidden.clone().requires_grad_()
    whole = summed_cross_entropy(leaf, head, labels, piece, smoothing, coefficients, labelled)
    whole.backward()
    torch.testing.assert_close(leaf.grad, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tile", [3, 8, 64])
def test_tiles_have_the_positions_of_the_sequence(tile: int) -> None:
    labels = torch.full((50,), IGNORED)
    places = [0, 1, 9, 10, 11, 31, 49]
    labels[places] = 5
    request = StepRequest(token_ids=torch.zeros(50, dtype=torch.int64), labels=labels)
    run = SequenceRun(request, tile, torch.device("cpu"), 0)
    found: list[int] = []
    for number in range(run.tiles):
        inside, span = run.labelled(number), run.span(number)
        assert inside is not None
        assert len(inside) >= 1
        found += [span.start + place for place in inside.tolist() if run.labels(number)[place] != IGNORED]
    assert found == places
    run = SequenceRun(StepRequest(token_ids=request.token_ids, labels=labels.clamp_min(0)), tile, run._device, 0)
    assert run.labelled(0) is None


def test_the_largest_tensor_is_no_larger_than_with_all_positions() -> None:
    labels = torch.zeros(4096, dtype=torch.int64)
    labels[torch.arange(4096) % 5 > 0] = IGNORED
    seen: list[int] = []

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            seen.extend(one.numel() for one in (out if isinstance(out, tuple) else (out,)) if isinstance(one, Tensor))
            return out

    def largest(labelled: Tensor | None) -> tuple[int, int]:
        seen.clear()
        head = nn.Linear(WIDTH, 500, bias=False).requires_grad_(False)
        with Watching():
            loss_and_gradient(torch.randn(4096, WIDTH), labels, head, piece=1024, scale=1.0, labelled=labelled)
        return max(seen), sum(seen)

    (most, in_all), (before, before_in_all) = largest(labelled_positions(labels)), largest(None)
    assert most < before
    assert in_all < 0.3 * before_in_all
