"""Workload: the demands of a run on a machine, apart from the step layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.models.spec import ModelSpec

ComputeType = Literal["bf16", "fp16", "fp32"]
Backend = Literal["cudnn", "flash", "efficient", "cpu", "softcapped"]
"""Attention kernels, by their names in engine.attention."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One model fine-tuned on windows of `context` tokens."""

    spec: ModelSpec
    context: int
    "Tokens per window."
    compute_type: ComputeType
    "Type of activations and of base weights that are not quantised."
    lora_parameters: int
    "Number of adapter parameters; 0 in full fine-tuning."
    master_home: Literal["gpu", "host"] | None = None
    "Home of the fp32 master weights and optimiser states in full fine-tuning; None for an adapter."
    table_home: Literal["gpu", "host"] = "gpu"
    "Home of the table of the layers' own inputs, for a model that has one (per-layer embeddings)."
    on_gpu: bool = True
    "False: all tensors are in host memory."
    lora_rank: int = 16
    adapts_experts: bool = False
    "Whether experts have adapters."
    multiplied_lora: int | None = None
    "Adapter parameters that a token passes through; None: all."
    backend: Backend = "cudnn"
    attention: str | None = None
    "Name of the kernel that the configuration asks for; None: the fastest."
    fused_kernels: bool = True
    "Whether norms, rotary embedding and MLP activation are one kernel each (engine.models.fused)."
    served_norms: bool = False
    "Whether RMSNorms are one kernel each, though the rest of the family is not (engine.models.fused)."
    recurrent_kernels: bool = False
    "Whether kernels compute its recurrent layers (engine.models.recurrent_kernels)."
    fused_loss: bool = True
    "Whether the streamed step's loss writes its gradient over the logits (engine.streaming.loss)."
    workspaces: int = 2 * 8320 * 1024
    "Bytes of matrix-library workspace: one for the forward's thread and one for the backward's."
    attention_efficiency: tuple[float, float] = (0.7, 0.55)
    "Share of the tensor rate that attention reaches, forward and backward."
    gpu_context: int | None = None
    "Measured bytes of the process's CUDA context; None: the default."
    repository_tokens: int = 0
    activation_bits: Literal[16, 8, 4] = 16
    "Width of stored hidden states; below 16 only where the configuration asks for it."

    scored: bool = False
    "Whether each window is scored by one more forward before its step, as both sides of a pair are for DPO."

    ranks: int = 1
    "Processes that share a window; `context` is then one rank's part."
    exchange: Literal["ring", "ulysses"] = "ring"
    "Algorithm by which they compute attention together."
    rank_link: float = 10e9
    "Bytes a second from a rank to the next."

    @property
    def element(self) -> int:
        """Bytes of one activation."""
        return 4 if self.compute_type == "fp32" else 2

    @property
    def host_table(self) -> int:
        """Parameters of the table of the layers' own inputs if it stays on the host of a GPU, else 0."""
        return self.spec.layer_table if self.on_gpu and self.table_home == "host" else 0

    @property
    def query_width(self) -> int:
        """Values of one token's queries: heads · head_dim."""
        return self.spec.heads * self.spec.head_dim

    @property
    def key_width(self) -> int:
        """Values of one token's keys: kv_heads · head_dim."""
        return self.spec.kv_heads * self.spec.head_dim
