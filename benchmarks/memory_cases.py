"""The steps that benchmarks/memory_gpu.py measures, by model."""

from __future__ import annotations

from typing import Any

K = 1024


def stream(context: int, tile: int = 8 * K, key_block: int = 32 * K, **options: Any) -> dict[str, Any]:
    """A case of the streamed step; options that are no StreamPlan field are the case's own."""
    own = {name: options.pop(name) for name in list(options) if name in _CASE_FIELDS}
    return {"context": context, "plan": {"tile": tile, "key_block": key_block, **options}, **own}


def whole(context: int, **own: Any) -> dict[str, Any]:
    """A case of whole windows."""
    return {"context": context, "plan": None, **own}


_CASE_FIELDS = ("precision", "layers", "rank", "fused", "full", "recompute", "trace", "repeats")
DEFAULTS = {
    "precision": "bf16",
    "layers": 2,
    "rank": 16,
    "fused": True,
    "full": None,  # or the home of the fp32 weights: "gpu", "host"
    "recompute": True,
    "trace": False,
    "repeats": 1,
}

CASES: dict[str, list[dict[str, Any]]] = {
    "qwen2.5-coder-0.5b": [
        stream(32 * K, 4 * K, 16 * K, trace=True),
        stream(64 * K),
        stream(128 * K, stash=False),
        stream(128 * K, 16 * K, 64 * K, trace=True),
        stream(128 * K, checkpoint_every=2, layers=4),
        stream(128 * K, kv_home="host", trace=True),
        stream(128 * K, hidden_home="gpu"),
        stream(64 * K, precision="nf4"),
        stream(64 * K, weights="streamed", layers=3),
        stream(64 * K, activation_bits=8, layers=3, trace=True),
        stream(64 * K, activation_bits=4, layers=3),
        stream(32 * K, 4 * K, 16 * K, full="gpu", trace=True),
        stream(32 * K, 4 * K, 16 * K, full="host"),
        stream(32 * K, 4 * K, 16 * K, full="host", weights="streamed", layers=3),
        stream(64 * K, fused=False, trace=True),
        stream(64 * K, attention="flash", trace=True),
        stream(32 * K, attention="efficient", trace=True),
        whole(4 * K, layers=4),
        whole(16 * K, trace=True),
        whole(16 * K, recompute=False),
        whole(8 * K, full="gpu", trace=True),
        whole(8 * K, full="host", recompute=False),
        whole(16 * K, fused=False),
        stream(16 * K, 16 * K, 16 * K, keep_layers=2, layers=3, hidden_home="gpu", stash=False, trace=True),
        stream(512 * K, 16 * K, 64 * K, layers=1),
        stream(1024 * K, 16 * K, 64 * K, layers=1, repeats=0),
    ],
    "qwen2.5-coder-1.5b": [
        stream(64 * K, precision="nf4", trace=True),
        stream(128 * K, 16 * K, 64 * K, precision="nf4", layers=4, trace=True),
        stream(128 * K, precision="nf4", kv_home="host"),
        stream(256 * K, precision="nf4", layers=1),
        stream(64 * K, 4 * K),
        stream(64 * K, weights="streamed", layers=3),
        stream(32 * K, 2 * K, 16 * K, stash=False, trace=True),
        stream(32 * K, 4 * K, precision="nf4", hidden_home="disk"),
        stream(32 * K, precision="nf4", fused=False),
        stream(32 * K, precision="nf4", rank=64, loss_piece=2048),
        stream(128 * K, 16 * K, 64 * K, precision="nf4", attention="flash", trace=True),
        stream(64 * K, 4 * K, precision="nf4", attention="efficient", trace=True),
        stream(16 * K, 16 * K, 16 * K, precision="nf4", keep_layers=1, trace=True),
        whole(8 * K, precision="nf4", trace=True),
        whole(32 * K),
        whole(8 * K, recompute=False, trace=True),
    ],
    "qwen2.5-coder-7b": [
        stream(64 * K, trace=True),
        stream(64 * K, 4 * K, weights="streamed", layers=3),
        stream(64 * K, 4 * K, precision="nf4"),
        stream(64 * K, 2 * K, precision="nf4", kv_home="host"),
        stream(128 * K, 16 * K, layers=1),
        whole(16 * K),
        whole(4 * K, precision="nf4"),
    ],
    "phi-2": [
        stream(32 * K, 4 * K, trace=True),
        stream(64 * K, kv_home="host", layers=1),
        stream(32 * K, 2 * K, stash=False),
        stream(32 * K, 4 * K, precision="nf4"),
        stream(32 * K, 4 * K, weights="streamed"),
        stream(32 * K, 4 * K, attention="flash", trace=True),
        whole(8 * K, trace=True),
        whole(8 * K, recompute=False, trace=True),
    ],
    "starcoder2-3b": [stream(32 * K, 4 * K), whole(8 * K, trace=True), whole(8 * K, recompute=False)],
}
