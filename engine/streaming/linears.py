"""Runs each frozen linear layer of a decoder as one operation while a streamed step owns the model.

For every linear layer that is frozen, alone or under a LoRA adapter, `forward` is replaced on the instance and
restored on `close`. 4-bit layers (bitsandbytes) are dequantised into a buffer when their decoder layer is entered.
Cases that the replacement does not cover (DoRA, several adapters, dropout) keep PEFT's own forward. Experts, whose
matrices are stacked in 3-D parameters, are replaced by engine.models.experts, and are dequantised in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.models.experts import FrozenExperts, Stack, frozen_experts
from engine.streaming.block_scales import BlockScales
from engine.streaming.lora_linear import LoraFactors, LoraMatrices, frozen_linear, lora_linear, lora_product
from engine.streaming.weights import LayerWeights, ResidentWeights, StreamedWeights


class _Site:
    """One frozen linear layer, with its resident weight and its adapter in the dtype of its products."""

    def __init__(self, base: nn.Linear, lora_layer: Any, adapter: str | None, *, ends_layer: bool) -> None:
        self.base, self._lora_layer, self._adapter = base, lora_layer, adapter
        self._ends_layer = ends_layer
        self.output_needed = True
        self.expanded: Tensor | None = None
        self.factors: LoraFactors | None = None

    @property
    def quant_state(self) -> Any:
        """Quantisation state of a bitsandbytes 4-bit weight, None for a plain one."""
        return getattr(self.base.weight, "quant_state", None)

    @property
    def weight(self) -> Tensor:
        """The weight, (out_features, in_features), in the activations' dtype."""
        return self.base.weight.data if self.expanded is None else self.expanded

    @property
    def lora(self) -> LoraMatrices | None:
        """The trained adapter and the dtype of its products; None without an adapter."""
        if self._adapter is None:
            return None
        layer, name = self._lora_layer, self._adapter
        # 4-bit weights are dequantised to the dtype that they were quantised from.
        dtype = self.weight.dtype if self.quant_state is None else self.quant_state.dtype
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        return LoraMatrices(a=a, b=b, scale=layer.scaling[name], dtype=dtype)

    def leave(self, *, keep_factors: bool) -> None:
        """Drops the dequantised weight, and the adapter's factors unless they are kept."""
        if not keep_factors:
            self.factors = None
        self.expanded = None
        self.output_needed = True

    def plain(self, x: Tensor) -> Tensor:
        """Replaces `forward` of the bare module."""
        if not torch.is_grad_enabled():
            return functional.linear(x, self.weight, self.base.bias)
        return frozen_linear(x, self, self.base.bias)

    def adapted(self, x: Tensor) -> Tensor:
        """Replaces `forward` of the LoRA layer around the bare module."""
        if self._lora_layer.disable_adapters:
            return self.plain(x)
        assert self.factors is not None
        if self.output_needed and not torch.is_grad_enabled():
            return lora_product(x, self.weight, self.base.bias, self.factors)
        layer, name = self._lora_layer, self._adapter
        return lora_linear(
            x,
            self,
            self.base.bias,
            layer.lora_A[name].weight,
            layer.lora_B[name].weight,
            self.factors,
            output_needed=self.output_needed,
        )

    def want_output(self, *, wanted: bool) -> None:
        """Sets whether the decoder layer's output will be read; otherwise its last product is skipped."""
        self.output_needed = wanted or not self._ends_layer


_JOINT_VALUES = 2**24
"Adapter elements cast in one operation: 64 MiB in fp32, plus as much for temporaries."


def _make_factors(sites: Sequence[_Site]) -> None:
    """Casts the adapters of these linear layers, those of one shape batched in the same few operations."""
    alike: dict[tuple[Any, ...], list[tuple[_Site, LoraMatrices]]] = {}
    for site in sites:
        lora = site.lora
        if lora is not None:
            kind = lora.a.shape, lora.b.shape, lora.scale, lora.dtype, lora.a.device
            alike.setdefault(kind, []).append((site, lora))
    for group in alike.values():
        a, b = group[0][1].a, group[0][1].b
        at_once = max(1, _JOINT_VALUES // (a.numel() + b.numel()))
        for first in range(0, len(group), at_once):
            part = group[first : first + at_once]
            for (site, _), factors in zip(part, LoraFactors.of([lora for _, lora in part]), strict=True):
                site.factors = factors


_ENDS_LAYER = {
    "llama": "mlp.down_proj",
    "mistral": "mlp.down_proj",
    "qwen2": "mlp.down_proj",
    "qwen3": "mlp.down_proj",
}
"""The linear layer, by family, whose output is used only in the sum that the decoder layer returns."""


class FrozenLinears:
    """Replaces the forwards of the frozen linear layers in all decoder layers.

    Args:
        layers: The decoder layers.
        family: transformers' model_type.
        evaluating: Whether the model stays in evaluation mode, in which the adapters' dropout does nothing.
    """

    def __init__(self, layers: Sequence[nn.Module], family: str, *, evaluating: bool = False) -> None:
        self._replaced: list[tuple[nn.Module, Any]] = []
        self._entered: int | None = None
        self._keeps_factors = False
        self.sites: list[list[_Site]] = [[] for _ in layers]
        self.experts: list[list[FrozenExperts]] = [[] for _ in layers]
        for number, layer in enumerate(layers):
            for experts, outer in list(frozen_experts(layer)):
                self.experts[number].append(experts)
                self._replace(outer, experts.forward)
            for base, owner in _frozen_linears(layer):
                adapter = None if owner is None else _only_plain_adapter(owner, evaluating=evaluating)
                last = family in _ENDS_LAYER and (owner or base) is layer.get_submodule(_ENDS_LAYER[family])
                site = _Site(base, owner, adapter, ends_layer=last)
                self.sites[number].append(site)
                self._replace(base, site.plain)
                if owner is not None and adapter is not None:
                    self._replace(owner, site.adapted)

    def _replace(self, module: nn.Module, forward: Callable[..., Tensor]) -> None:
        self._replaced.append((module, module.__dict__.get("forward")))
        module.__dict__["forward"] = forward

    def stacks(self, layer: int) -> list[Stack]:
        """Stacked weights of a layer's experts."""
        return [stack for experts in self.experts[layer] for stack in experts.stacks.values()]

    @property
    def quantised(self) -> bool:
        """Whether any layer is stored in 4 bits."""
        states = [site.quant_state for sites in self.sites for site in sites]
        states += [stack.quant_state for layer in range(len(self.experts)) for stack in self.stacks(layer)]
        return any(state is not None for state in states)

    def begin(self, *, keep_factors: bool) -> None:
        """Begins a step; adapters may have changed since the last one.

        Args:
            keep_factors: Whether cast adapters stay resident between the passes of this step; worth their memory
                where a layer is short.
        """
        self._keeps_factors = keep_factors
        for layer, sites in enumerate(self.sites):
            for site in sites:
                site.leave(keep_factors=False)
            self._leave_experts(layer, keep_factors=False)
        if keep_factors:
            _make_factors([site for sites in self.sites for site in sites])
            for layer in range(len(self.experts)):
                self._make_expert_factors(layer)

    def _make_expert_factors(self, layer: int) -> None:
        for stack in self.stacks(layer):
            stack.make_factors()

    def _leave_experts(self, layer: int, *, keep_factors: bool) -> None:
        for stack in self.stacks(layer):
            stack.expanded = None
            if not keep_factors:
                stack.factors = None

    def enter(self, layer: int) -> None:
        """Prepares decoder layer `layer`, and leaves the one entered before."""
        self.leave()
        if not self._keeps_factors:
            _make_factors(self.sites[layer])
            self._make_expert_factors(layer)
        self._entered = layer

    def want_output(self, *, wanted: bool) -> None:
        """Sets whether the entered layer's output will be read, or only its gradients."""
        if self._entered is not None:
            for site in self.sites[self._entered]:
                site.want_output(wanted=wanted)

    def leave(self) -> None:
        """Leaves the entered decoder layer, if any."""
        if self._entered is not None:
            for site in self.sites[self._entered]:
                site.leave(keep_factors=self._keeps_factors)
            self._leave_experts(self._entered, keep_factors=self._keeps_factors)
            self._entered = None

    def close(self) -> None:
        """Restores the forward that every module had."""
        self.leave()
        for module, before in self._replaced:
            module.__dict__.pop("forward", None)
            if before is not None:
                module.__dict__["forward"] = before
        self._replaced.clear()


def _frozen_linears(layer: nn.Module) -> Iterator[tuple[nn.Linear, nn.Module | None]]:
    """Yields (linear layer, LoRA layer around it or None) for each whose weight is frozen."""
    from peft.tuners.lora import LoraLayer

    wrapped: set[int] = set()
    for module in layer.modules():
        if isinstance(module, LoraLayer):
            base = module.get_base_layer()
            wrapped |= {id(part) for part in module.modules()}
            if isinstance(base, nn.Linear) and not base.weight.requires_grad:
                yield base, module
        elif type(module).__name__ in ("Linear", "Linear4bit") and id(module) not in wrapped:
            assert isinstance(module, nn.Linear)
            if not module.weight.requires_grad:
                yield module, None


def _only_plain_adapter(layer: Any, *, evaluating: bool) -> str | None:
    """Returns the name of a LoRA layer's one active, plain adapter; None if PEFT's forward is needed."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or layer.disable_adapters or layer.merged or layer.fan_in_fan_out:
        return None
    name: str = active[0]
    dropout = layer.lora_dropout[name]
    bias = layer.get_base_layer().bias
    trains_bias = bias is not None and bias.requires_grad
    drops = getattr(dropout, "p", 0.0) > 0 and not evaluating
    if name in layer.lora_variant or layer.lora_bias.get(name) or trains_bias or drops:
        return None
    return name


class ExpandedWeights(LayerWeights):
    """4-bit layers, dequantised on the device once a pass (when their decoder layer is entered), not once a tile.

    Args:
        linears: The linear layers.
        offloaded: Home of codes and scales on the host; None where all are on the device.
    """

    def __init__(self, linears: FrozenLinears, offloaded: StreamedWeights | None = None) -> None:
        self._packed: LayerWeights = offloaded or ResidentWeights()
        self._sites = [[site for site in sites if site.quant_state is not None] for sites in linears.sites]
        numbers = range(len(linears.sites))
        self._stacks = [[stack for stack in linears.stacks(n) if stack.quant_state is not None] for n in numbers]
        # Launches are few beside the copy of a streamed layer, so that its scales stay where they were copied to.
        self._scales = [None if offloaded else _joint_scales(sites) for sites in self._sites]

    @property
    def device_bytes(self) -> int:
        """Bytes of the buffers that streamed codes and scales arrive in; 0 where all are resident."""
        return self._packed.device_bytes if isinstance(self._packed, StreamedWeights) else 0

    def prefetch(self, layer: int) -> None:
        """See LayerWeights."""
        self._packed.prefetch(layer)

    def leave(self) -> None:
        """See LayerWeights."""
        self._packed.leave()

    def close(self) -> None:
        """See LayerWeights."""
        self._packed.close()

    def enter(self, layer: int) -> None:
        """See LayerWeights. FrozenLinears must have entered the layer."""
        from bitsandbytes.functional import dequantize_4bit

        self._packed.enter(layer)
        for stack in self._stacks[layer]:
            if stack.expanded is None:
                stack.expanded = stack.dequantised()
        sites, scales = self._sites[layer], self._scales[layer]
        if not any(site.expanded is None for site in sites):
            return
        states = [site.quant_state for site in sites] if scales is None else scales.unpacked()
        for site, state in zip(sites, states, strict=True):
            site.expanded = dequantize_4bit(site.base.weight.data, state)
        if scales is not None:
            scales.drop()


def _joint_scales(sites: Sequence[_Site]) -> BlockScales | None:
    states = [site.quant_state for site in sites]
    return BlockScales(states) if BlockScales.joinable(states) else None
