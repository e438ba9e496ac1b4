"""A kernel that gives other results or gradients than the function that it stands for is never used."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from engine.models.checked_kernel import CheckedKernel, Example


def own(x, y):
    """Computes what the kernels below shall compute."""
    return x * y.sigmoid()


class HalfTheGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return own(x, y)

    @staticmethod
    def backward(ctx, gradient):
        x, y = ctx.saved_tensors
        s = y.sigmoid()
        return gradient * s / 2, gradient * x * s * (1 - s)


def right(x, y):
    return x / (1 + torch.exp(-y))


def wrong(x, y):
    return x * y


def fails(x, y):
    raise RuntimeError("PassManager::run failed")


def undefined(x, y):
    return own(x, y) * torch.nan


def checked(kernel, calls, **options):
    def counted(x, y):
        calls.append(x.shape)
        return kernel(x, y)

    def example(x, y):
        draw = Example.generator(x.device)
        return Example(
            tensors=(draw(7, x.shape[1]).to(x.dtype), draw(7, x.shape[1]).to(y.dtype)),
            call=lambda function, x, y: function(x, y),
        )

    def key(x, y):
        return None if x.ndim != 2 else (x.dtype, x.shape[1])

    return CheckedKernel("product", own, counted, key, example, 2e-2, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_right_kernel_is_compared_once_and_used(dtype, mode):
    calls = []
    function = checked(right, calls)
    x, y = torch.randn(5, 9).to(dtype), torch.randn(5, 9).to(dtype)
    with mode():
        for _ in range(3):
            torch.testing.assert_close(function(x, y), own(x, y), rtol=2e-2, atol=2e-2)
    assert calls == [(7, 9), (5, 9), (5, 9), (5, 9)]


@pytest.mark.parametrize("kernel", [wrong, HalfTheGradient.apply, fails, undefined])
def test_a_wrong_kernel_is_compared_once_and_never_used(kernel):
    calls = []
    function = checked(kernel, calls)
    x, y = torch.randn(5, 9), torch.randn(5, 9)
    for _ in range(2):
        assert torch.equal(function(x, y), own(x, y))
    assert calls == [(7, 9)]


def test_a_kernel_of_a_norm_is_not_judged_by_a_gradient_of_nothing():
    """A norm does not change along its input: a gradient taken there would be rounding alone."""

    def norm(x):
        return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6).to(x.dtype)

    def rounded(x):
        return norm(x.float()).to(x.dtype)

    def example(x):
        drawn = Example.generator(x.device)(40, x.shape[1]).to(x.dtype)
        return Example(tensors=(drawn,), call=lambda function, x: function(x))

    function = CheckedKernel("norm", norm, rounded, lambda x: x.shape[1], example, 2e-2)
    function(torch.ones(3, 64, dtype=torch.bfloat16))
    *_, error, right = CheckedKernel.verdicts[-1]
    assert right, error


@pytest.mark.parametrize("kernel", [right, wrong])
def test_a_first_call_inside_a_checkpoint_leaves_it_whole(kernel):
    function = checked(kernel, [])
    x, y = torch.randn(5, 9, requires_grad=True), torch.randn(5, 9)
    checkpoint(lambda x: function(x.sin(), y).exp(), x, use_reentrant=False).sum().backward()
    (wanted,) = torch.autograd.grad(own(x.sin(), y).exp().sum(), x)
    torch.testing.assert_close(x.grad, wanted)


def test_another_width_or_type_is_compared_anew():
    calls = []
    function = checked(right, calls)
    for width, dtype in ((9, torch.float32), (8, torch.float32), (9, torch.bfloat16)):
        function(torch.ones(5, width, dtype=dtype), torch.ones(5, width, dtype=dtype))
    assert calls == [(7, 9), (5, 9), (7, 8), (5, 8), (7, 9), (5, 9)]


def test_calls_that_a_kernel_does_not_serve_go_elsewhere():
    calls = []
    function = checked(right, calls, unserved=wrong)
    assert torch.equal(function(torch.full((3,), 2.0), torch.full((3,), 3.0)), torch.full((3,), 6.0))
    assert calls == []


def test_a_full_memory_is_reported():
    def full(x, y):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        checked(full, [])(torch.ones(2, 2), torch.ones(2, 2))


def test_the_examples_leave_the_random_numbers_of_a_run_alone():
    before = torch.get_rng_state()
    checked(right, [])(torch.ones(2, 3), torch.ones(2, 3))
    assert torch.equal(before, torch.get_rng_state())


def test_a_kernel_takes_the_place_of_a_method():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((4,), 3.0))

        def forward(self, x):
            return x * self.weight

    def example(module, x):
        return Example(tensors=(Example.generator(x.device)(3, 4),), call=lambda gate, x: gate(module, x))

    seen = []

    def kernel(module, x):
        seen.append(module)
        return module.weight * x

    Gate.forward = CheckedKernel("gate", Gate.forward, kernel, lambda module, x: x.shape[-1], example, 1e-3)
    module = Gate()
    x = torch.randn(2, 4)
    assert torch.equal(module(x), 3 * x)
    assert seen == [module, module]
