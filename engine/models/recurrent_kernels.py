"""Serves recurrent mixers by flash-linear-attention's kernels, where that package is installed and a GPU runs it.

transformers takes its kernels of the gated delta rule by itself. The following is added here:

    one kernel of the backward pass is refused on Hopper with Triton 3.4 to 3.7.0, which compile it wrongly;
        engine.models.delta_rule_kernel takes its place through the package's own registry
    its kernels are tuned in minutes at the first step of every process; each keeps one configuration
    the convolution and the gated norm around the rule are kernels of the package too

Each kernel is compared with transformers' own code before its first use, and takes its place only where both agree.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from engine.models.checked_kernel import CheckedKernel, Example, relative_error
from engine.models.delta_rule import chunk_gradients
from engine.models.recurrent_mixers import RecurrentMixer

_TOLERANCE = 2e-2
"Relative error that 16-bit arithmetic explains."
_RULE_TOLERANCE = 5e-2
"The same for the gradients of a whole rule; that of its decay is a difference of large sums."
_ROWS = 130
"Tokens of an example: two chunks of the rule and a part of a third."


@functools.cache
def prepare_kernels() -> bool:
    """Prepares flash-linear-attention for this process.

    Returns:
        Whether it is installed and a GPU runs it.
    """
    if not torch.cuda.is_available() or importlib.util.find_spec("fla") is None:
        return False
    importlib.import_module("fla.ops.gated_delta_rule")
    importlib.import_module("fla.modules.causal_conv1d")
    importlib.import_module("fla.modules.norm.fused_norm_gate")
    utils: Any = importlib.import_module("fla.utils")
    if utils.IS_NVIDIA_HOPPER and utils.TRITON_ABOVE_3_4_0 and not utils.TRITON_ABOVE_3_7_1:
        _register_chunk_gradients()
    _fix_configurations()
    return True


def serve(mixers: Iterable[RecurrentMixer]) -> None:
    """Lets the package's kernels compute what they can of these mixers, for the rest of the process.

    transformers calls them wherever the package is installed. Tensors that are on no GPU are kept from them here.
    """
    found = list(mixers)
    if not found or importlib.util.find_spec("fla") is None:
        return
    on_gpu = prepare_kernels()
    for mixer in found:
        module = sys.modules[type(mixer.module).__module__]
        _replace(module, "torch_chunk_gated_delta_rule", _rule)
        if not on_gpu:
            continue
        _replace(module, "causal_conv1d_fn", _convolution)
        for part in mixer.module.modules():
            if is_gated_norm(part):
                _replace(type(part), "forward", _gated_norm)


def _replace(owner: Any, name: str, make: Callable[[Callable[..., Any]], CheckedKernel | None]) -> None:
    """Replaces a function of a module, or a method of a class, by what `make` makes of it, once."""
    own = vars(owner).get(name)
    made = None if own is None or isinstance(own, CheckedKernel) else make(own)
    if made is not None:
        setattr(owner, name, made)


# --- the gated delta rule ------------------------------------------------------------------------------------------


def _rule(own: Callable[..., Any]) -> CheckedKernel | None:
    """Wraps transformers' rule, which calls the package's: its code in torch serves where the two differ."""
    plain = getattr(own, "__wrapped__", None)
    if plain is None:
        return None
    accepted = inspect.signature(plain).parameters

    def in_torch(*positional: Any, **named: Any) -> Any:
        return plain(*positional, **{name: value for name, value in named.items() if name in accepted})

    def unserved(q: Tensor, *positional: Any, **named: Any) -> Any:
        # The code in torch does not know packed documents; what transformers calls refuses them or does.
        packed = named.get("cu_seqlens") is not None
        return (own if q.is_cuda or packed else in_torch)(q, *positional, **named)

    def example(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Example:
        draw = Example.generator(q.device)
        rows, heads = (q.shape[0], _ROWS), v.shape[2]
        state = (q.shape[0], heads, q.shape[3], v.shape[3])
        return Example(
            tensors=(
                *(draw(*rows, *x.shape[2:]).to(q.dtype) for x in (q, k, v)),
                -torch.nn.functional.softplus(draw(*rows, heads)),
                draw(*rows, heads).sigmoid().to(q.dtype),
                draw(*state),
            ),
            call=lambda rule, q, k, v, g, beta, state: rule(
                q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True
            ),
        )

    def key(q: Tensor, k: Tensor, v: Tensor, **named: Any) -> Any:  # noqa: ARG001
        if not q.is_cuda or not named.get("use_qk_l2norm_in_kernel"):
            return None
        return q.device, q.dtype, q.shape[2:], v.shape[2:]

    return CheckedKernel("gated delta rule", in_torch, own, key, example, _RULE_TOLERANCE, unserved=unserved)


def _register_chunk_gradients() -> None:
    backends: Any = importlib.import_module("fla.backends")

    @backends.register("common")
    class ChunkGradients(backends.BaseBackend):  # type: ignore[misc]
        backend_type = "elite"
        priority = 1

        def chunk_bwd_dqkwg_verifier(self, *_: Any, **named: Any) -> tuple[bool, str | None]:
            needs = ("w", "g", "dv", "scale")
            whole = all(named.get(name) is not None for name in needs) and named.get("g_gamma") is None
            return whole, "only a gated delta rule"

        def chunk_bwd_dqkwg(self, **named: Any) -> tuple[Tensor, ...]:
            inputs = {name: named[name] for name in ("q", "k", "v", "do", "h", "dh", "w", "g", "dv", "scale")}
            options = {name: named[name] for name in ("chunk_size", "state_v_first") if name in named}
            return chunk_gradients_of(**inputs, **options, cu_seqlens=named.get("cu_seqlens"))


def chunk_gradients_of(*, cu_seqlens: Tensor | None = None, **named: Any) -> tuple[Tensor, ...]:
    """Computes `engine.models.delta_rule.chunk_gradients` by the kernel where that is right, else in torch.

    Args:
        cu_seqlens: First tokens of packed documents and the number of tokens; only the kernel serves them.
        named: See chunk_gradients.

    Raises:
        RuntimeError: documents are packed, and the kernel is not right here.
    """
    q, v = named["q"], named["v"]
    first = named.get("state_v_first", False)
    if q.is_cuda and _kernel_is_right(q.device, q.dtype, tuple(q.shape[2:]), tuple(v.shape[2:]), first):
        from engine.models.delta_rule_kernel import fused_chunk_gradients

        return fused_chunk_gradients(**named, cu_seqlens=cu_seqlens)
    if cu_seqlens is not None:
        raise RuntimeError("packed documents need Triton's kernel of the gated delta rule, which is wrong on this GPU")
    return chunk_gradients(**named)


@functools.cache
def _kernel_is_right(
    device: torch.device, dtype: torch.dtype, keys: tuple[int, int], values: tuple[int, int], first: bool
) -> bool:
    """Compares the kernel with torch in fp64, for heads and widths of keys and of values."""
    right = _agrees_in_double(device, dtype, keys, values, first=first)
    CheckedKernel.verdicts.append(("gradients inside chunks", (device, dtype, keys, values, first), right))
    return right


def _agrees_in_double(
    device: torch.device, dtype: torch.dtype, keys: tuple[int, int], values: tuple[int, int], *, first: bool
) -> bool:
    try:
        from engine.models.delta_rule_kernel import fused_chunk_gradients

        with torch.inference_mode(mode=False), torch.no_grad():
            example, scale = example_of_chunks(device, dtype, keys, values, first=first)
            found = fused_chunk_gradients(**example, scale=scale, state_v_first=first)
            exact: dict[str, Any] = {name: x.double() for name, x in example.items()}
            wanted = chunk_gradients(**exact, scale=scale, state_v_first=first)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a compiler reports what it cannot compile by errors of its own
        return False
    return all(relative_error(one, other) < _TOLERANCE for one, other in zip(found, wanted, strict=True))


def example_of_chunks(
    device: torch.device, dtype: torch.dtype, keys: tuple[int, int], values: tuple[int, int], *, first: bool
) -> tuple[dict[str, Any], float]:
    """Draws the tensors of `chunk_gradients` for heads and widths of keys and values; returns them and its scale."""
    draw = Example.generator(device)
    of_keys, of_values, chunks = (1, _ROWS, *keys), (1, _ROWS, *values), -(-_ROWS // 64)
    state = (1, chunks, values[0], *((values[1], keys[1]) if first else (keys[1], values[1])))
    shapes = {"q": of_keys, "k": of_keys, "v": of_values, "do": of_values, "h": state, "dh": state, "dv": of_values}
    drawn = {name: draw(*shape).to(dtype) for name, shape in shapes.items()}
    steps = -0.3 * draw(1, _ROWS, values[0]).abs()
    decay = torch.cat([part.cumsum(1) for part in steps.split(64, dim=1)], dim=1)
    return {**drawn, "w": draw(1, _ROWS, values[0], keys[1]).to(dtype), "g": decay}, keys[1] ** -0.5


# --- around the rule -----------------------------------------------------------------------------------------------


def _convolution(own: Callable[..., Any]) -> CheckedKernel | None:
    """Serves a depthwise causal convolution of (batch, channels, tokens), unless the package causal_conv1d does."""
    if importlib.util.find_spec("causal_conv1d") is not None:
        return None
    plain = getattr(own, "__wrapped__", own)  # what it calls besides says that a package is missing

    def fast(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any) -> Tensor:
        from fla.modules.causal_conv1d import causal_conv1d

        y: Tensor = causal_conv1d(x.transpose(1, 2), weight=weight, bias=bias, activation=activation)[0]
        return y.transpose(1, 2)

    def key(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **named: Any) -> Any:
        lone = named.get("seq_idx") is None and named.get("cu_seqlens") is None
        if not x.is_cuda or not lone or activation not in (None, "silu", "swish") or x.dtype != weight.dtype:
            return None
        return x.device, x.dtype, weight.shape, bias is None, activation

    def example(
        x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
    ) -> Example:
        draw = Example.generator(x.device)
        tensors = [draw(1, _ROWS, weight.shape[0]).transpose(1, 2), draw(*weight.shape)]
        tensors += [] if bias is None else [draw(*bias.shape)]
        return Example(
            tensors=tuple(tensor.to(x.dtype) for tensor in tensors),
            call=lambda convolve, x, weight, bias=None: convolve(x, weight, bias, activation=activation),
        )

    return CheckedKernel("convolution", plain, fast, key, example, _TOLERANCE, unserved=own)


def is_gated_norm(module: nn.Module) -> bool:
    """Whether a module is an RMSNorm whose output a second input gates by SiLU."""
    arguments = list(inspect.signature(type(module).forward).parameters)[1:]
    names = ("weight", "variance_epsilon")
    gated = arguments == ["hidden_states", "gate"] and all(hasattr(module, name) for name in names)
    return gated and getattr(module, "activation", "silu") == "silu"


def _gated_norm(own: Callable[..., Any]) -> CheckedKernel:
    """Serves the forward of a gated RMSNorm over (rows, width)."""

    def fast(module: nn.Module, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        from fla.modules.norm.fused_norm_gate import rms_norm_gated

        settings: Any = module
        y: Tensor = rms_norm_gated(
            hidden_states, gate, settings.weight, None, activation="swish", eps=settings.variance_epsilon
        )
        return y

    def key(module: nn.Module, hidden_states: Tensor, gate: Tensor | None = None) -> Any:
        if gate is None or not hidden_states.is_cuda:
            return None
        return hidden_states.device, hidden_states.dtype, gate.dtype, hidden_states.shape[-1], type(module)

    def example(module: nn.Module, hidden_states: Tensor, gate: Tensor) -> Example:
        draw = Example.generator(hidden_states.device)
        shape = (_ROWS, hidden_states.shape[-1])
        return Example(
            tensors=(draw(*shape).to(hidden_states.dtype), draw(*shape).to(gate.dtype)),
            call=lambda norm, x, gate: norm(module, x, gate),
        )

    return CheckedKernel("gated norm", own, fast, key, example, _TOLERANCE)


def kernel_report() -> dict[str, bool]:
    """Tells which kernels have been compared in this process, and whether each was right."""
    return {f"{name} {key}": right for name, key, right in CheckedKernel.verdicts}


# --- configurations ------------------------------------------------------------------------------------------------


def _fix_configurations() -> None:
    """Leaves one configuration to each tuned kernel: four warps and few stages, which every GPU has room for.

    The convolution's kernels take the widest block of channels, as neighbouring channels are neighbours in memory.
    """
    from triton.runtime.autotuner import Autotuner

    for name, module in list(sys.modules.items()):
        if not name.startswith("fla."):
            continue
        for value in list(vars(module).values()):
            kernel: Any = value
            while kernel is not None and not isinstance(kernel, Autotuner):
                kernel = getattr(kernel, "fn", None)
            if isinstance(kernel, Autotuner) and len(kernel.configs) > 1:
                kernel.configs = [min(kernel.configs, key=_order)]


def _order(config: Any) -> tuple[Any, ...]:
    return config.num_warps != 4, config.num_stages, -config.kwargs.get("BD", 0)
