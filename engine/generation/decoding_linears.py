"""Linear layers while text is generated: adapters as one operation each, 4-bit weights dequantised where they fit.

Nothing is merged: a merged 16-bit weight rounds the adapter's update away in part, and would have to be kept twice.
"""

from __future__ import annotations

import torch

from engine.streaming.decoder import Decoder
from engine.streaming.linears import FrozenLinears

_GPU_SHARE = 0.4
"""Share of the free GPU memory that dequantised weights may take."""


def open_linears(decoder: Decoder) -> FrozenLinears | None:
    """Replaces the forwards of a decoder's frozen linear layers until `close`.

    Returns:
        None where nothing is gained: without adapters, or where dequantised weights do not fit. The layers then run
        their own forwards, which dequantise at every call. None too for layers that fetch their weights as they run.
    """
    from peft.tuners.lora import LoraLayer

    if not any(isinstance(module, LoraLayer) for layer in decoder.layers for module in layer.modules()):
        return None
    if any(layer._forward_pre_hooks for layer in decoder.layers):
        return None
    linears = FrozenLinears(decoder.layers, decoder.config.model_type, evaluating=True)
    quantised = [site for sites in linears.sites for site in sites if site.quant_state is not None]
    size = sum(site.base.in_features * site.base.out_features * site.quant_state.dtype.itemsize for site in quantised)
    if quantised and not _fits(size, decoder.embedding.weight.device):
        linears.close()
        return None
    linears.begin(keep_factors=True)
    if quantised:
        from bitsandbytes.functional import dequantize_4bit

        for site in quantised:
            site.expanded = dequantize_4bit(site.base.weight.data, site.quant_state)
    return linears


def _fits(size: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return size < _GPU_SHARE * free
