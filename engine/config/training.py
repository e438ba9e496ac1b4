"""Sections on optimiser, schedule and step, and on the layout of the streamed step."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field, structs

from engine.config.description import MOST_COUNTED, MOST_HELD_OUT, MOST_TOKENS, option, words


class TrainingSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Optimiser, schedule and step."""

    method: Annotated[
        Literal["lora", "full"],
        Meta(
            description="What is trained: lora trains a small adapter on the frozen model, full every weight of it "
            "(12 to 16 bytes a parameter; a learning rate ten times smaller suits it)."
        ),
    ] = "lora"
    epochs: Annotated[
        Annotated[float, Meta(gt=0, le=1000)] | None,
        Meta(
            description="Passes over the training files. Unset: up to 3 in a schedule, 1 where windows are all alike.",
            extra=option("--epochs"),
        ),
    ] = None
    max_steps: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_COUNTED)] | None,
        Meta(
            description="Stop after this many optimiser steps, even in mid-epoch.",
            extra=option("--max-steps"),
        ),
    ] = None
    tier: Annotated[
        Annotated[int, Meta(ge=1, le=11)] | Literal["max"] | None,
        Meta(
            description="Context tier, 1 (4K tokens) to 11 (4M tokens), or max: the highest that fits and the "
            "repository fills, for windows that are all alike. Unset: a schedule whose windows grow as far as hours "
            "and tokens allow, at most to the model's trained length.",
            extra=option("--tier"),
        ),
    ] = None
    context: Annotated[
        Annotated[int, Meta(ge=64, le=MOST_TOKENS)] | None,
        Meta(description="Tokens a window, if not the tier's."),
    ] = None
    hours: Annotated[
        Annotated[float, Meta(gt=0, le=10_000)] | None,
        Meta(
            description="Hours that the whole run may take. The planner makes a schedule for them: most updates on "
            "short windows, the last ones at the highest tier that the hours allow, up to the length that the model "
            "was trained with, or at `tier`. Unset: as long as it takes.",
            extra=option("--hours"),
        ),
    ] = None
    stages: Annotated[
        list[Annotated[str, Meta(pattern="^[1-9][0-9]*:[1-9][0-9]*$", extra=words("CONTEXT:UPDATES"))]],
        Meta(
            description="Windows over the run, as CONTEXT:UPDATES by rising context: 8192:40 and 131072:4 make 40 "
            "updates on windows of 8,192 tokens, then 4 on windows of 131,072. Unset: the planner makes them, unless "
            "tier or context makes all windows alike."
        ),
    ] = field(default_factory=list)
    step: Annotated[
        Literal["auto", "whole", "streamed"],
        Meta(
            description="How a step is computed. whole keeps a window's activations on the device, streamed runs "
            "it tile by tile in bounded memory with the same gradient; auto takes the faster of what fits."
        ),
    ] = "auto"
    learning_rate: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(
            description="Peak learning rate. Unset: by the model's width and what is trained (docs/learning-rate.md), "
            "0.0013 for an adapter on a model 576 wide and 0.00029 on one 4,096 wide."
        ),
    ] = None
    warmup_fraction: Annotated[
        float,
        Meta(ge=0.0, lt=1.0, description="Share of the steps over which the rate rises linearly to its peak."),
    ] = 0.05
    weight_decay: Annotated[float, Meta(ge=0.0, le=1.0, description="AdamW's decoupled weight decay.")] = 0.0
    max_grad_norm: Annotated[
        float, Meta(gt=0, description="Gradients with a larger 2-norm are scaled down to it; .inf: none are.")
    ] = 1.0
    tokens_per_update: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_TOKENS)] | None,
        Meta(description="Tokens gathered before each optimiser step. Unset: 8,192, or one window if larger."),
    ] = None
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1, description="Seeds the adapter, the shuffling and the dropout.")] = 0
    evaluate_every: Annotated[
        int,
        Meta(
            ge=0,
            le=MOST_COUNTED,
            description="Score the held-out files every so many steps; 0 is only before and after.",
        ),
    ] = 0
    evaluate_tokens: Annotated[
        int, Meta(ge=64, le=MOST_HELD_OUT, description="Held-out tokens scored at most, each time.")
    ] = 65_536
    optimizer: Annotated[
        Literal["adamw", "adamw_8bit", "paged_adamw_8bit"],
        Meta(description="adamw_8bit keeps its states in 8 bits, and paged lets them move to host memory."),
    ] = "adamw"
    schedule: Annotated[
        Literal["cosine", "polynomial", "one_cycle"],
        Meta(
            description="Learning rate over the run: a warm-up, then half a cosine or a polynomial down to zero; or "
            "one cycle up and far down, with the momentum running against it."
        ),
    ] = "cosine"
    polynomial_power: Annotated[
        float, Meta(gt=0, le=10, description="Power of the polynomial schedule; 1 is a straight line.")
    ] = 1.0
    lr_scaling: Annotated[
        Literal["none", "sqrt", "linear"],
        Meta(
            description="How the learning rate grows with tokens_per_update: learning_rate is then that of "
            "8,192 tokens an update."
        ),
    ] = "none"
    clipping: Annotated[
        Literal["norm", "adaptive"],
        Meta(
            description="norm scales the whole gradient down to max_grad_norm; adaptive limits each row to a share of "
            "its weights' own norm (AGC)."
        ),
    ] = "norm"
    adaptive_clip: Annotated[
        float, Meta(gt=0, le=10, description="Largest norm of a row's gradient over that of its weights, for adaptive.")
    ] = 0.01
    gradient_centralization: Annotated[
        bool, Meta(description="Subtract its mean from each row of every matrix's gradient.")
    ] = False
    gradient_noise: Annotated[
        float,
        Meta(ge=0.0, le=10.0, description="Deviation of noise added to the gradient at first, annealed; 0 is none."),
    ] = 0.0
    label_smoothing: Annotated[
        float, Meta(ge=0.0, lt=1.0, description="Probability shared among all tokens instead of the right one.")
    ] = 0.0
    neftune_alpha: Annotated[
        float, Meta(ge=0.0, le=100.0, description="Noise on the embeddings while training (NEFTune); 0 is none.")
    ] = 0.0
    lookahead_steps: Annotated[
        int, Meta(ge=0, le=1000, description="Steps between the updates of Lookahead's slow weights; 0 is none.")
    ] = 0
    lookahead_alpha: Annotated[
        float, Meta(gt=0.0, le=1.0, description="Share of the way that the slow weights go towards the fast ones.")
    ] = 0.5
    ema_decay: Annotated[
        float,
        Meta(ge=0.0, lt=1.0, description="Decay of a moving average of the adapter, which is what is kept; 0 is none."),
    ] = 0.0
    swa_fraction: Annotated[
        float,
        Meta(ge=0.0, lt=1.0, description="Share of the last steps whose adapters are averaged (SWA); 0 is none."),
    ] = 0.0
    early_stopping: Annotated[
        int,
        Meta(
            ge=0,
            le=MOST_COUNTED,
            description="End after this many evaluations without a lower held-out loss, and keep the best adapter; "
            "0 is never. Needs evaluate_every.",
        ),
    ] = 0
    curriculum: Annotated[
        bool, Meta(description="Cut windows shorter at first: an eighth of the context, a quarter, a half, all of it.")
    ] = False
    objective: Annotated[
        Literal["sft", "dpo"],
        Meta(
            description="What is minimised: sft the cross-entropy of the text, dpo the preference loss over rows with "
            "a chosen and a rejected answer (arXiv 2305.18290), against the base model."
        ),
    ] = "sft"
    dpo_beta: Annotated[
        float,
        Meta(gt=0, le=100, description="Weight of DPO's margin; the larger, the closer the result stays to the base."),
    ] = 0.1
    dpo_label_smoothing: Annotated[
        float, Meta(ge=0.0, lt=0.5, description="Share of the pairs that are taken to be the wrong way round, for dpo.")
    ] = 0.0
    dpo_sft_weight: Annotated[
        float,
        Meta(
            ge=0.0, le=100, description="Weight of the chosen answer's mean cross-entropy beside dpo's loss; 0 is none."
        ),
    ] = 0.0
    micro_batch: Annotated[
        int,
        Meta(
            ge=0,
            le=4096,
            description="Windows that go through the model together where whole windows do; 0 finds the most that fit.",
        ),
    ] = 1
    recompute: Annotated[
        Literal["auto", "always", "never"],
        Meta(
            description="Whether whole windows keep each layer's activations or compute them again; auto keeps them "
            "where they fit."
        ),
    ] = "auto"
    activation_bits: Annotated[
        Literal[16, 8, 4],
        Meta(description="Width of the hidden states that the streamed step stores; 8 and 4 are approximate."),
    ] = 16
    tiled_mlp: Annotated[
        bool, Meta(description="Run the MLP of whole windows over 2,048 tokens at a time: less memory, same result.")
    ] = False
    compile: Annotated[
        bool, Meta(description="Compile the decoder layers of whole windows with torch.compile; slow to start.")
    ] = False
    cuda_graphs: Annotated[
        bool,
        Meta(
            description="Run steps of short windows as CUDA graphs, where all activations stay on the GPU and a graph "
            "gives the ordinary step's gradient. Takes those activations' memory once more."
        ),
    ] = True
    shifted_attention: Annotated[
        bool,
        Meta(
            description="Attend within quarters of a window while training, half of the heads shifted by half a "
            "quarter (LongLoRA's S2). Approximate; whole windows only."
        ),
    ] = False
    memory_tuning: Annotated[
        bool, Meta(description="Expandable memory segments, TF32 products and tuned kernels on a GPU.")
    ] = True

    @property
    def passes(self) -> float:
        """Passes over the training files of a run whose windows are all alike."""
        return 1.0 if self.epochs is None else self.epochs

    def rate_in_words(self, planned: float | None) -> str:
        """Formats the peak learning rate: as configured, else as a run's plan has it, None where it does not say."""
        if self.learning_rate is not None:
            return f"{self.learning_rate:g}"
        return "automatic" if planned is None else f"{planned:g} (automatic)"

    @property
    def stage_pairs(self) -> tuple[tuple[int, int], ...]:
        """`stages` as (context, updates)."""
        pairs = (text.partition(":") for text in self.stages)
        return tuple((int(context), int(updates)) for context, _, updates in pairs)


class StreamSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Fixed choices of the streamed step; the planner makes those that are unset."""

    weights: Annotated[
        Literal["resident", "streamed"] | None,
        Meta(
            description="Base weights stay on the GPU, or on the host and come to it two layers at a time; with "
            "model.precision nf4 in 4 bits."
        ),
    ] = None
    weights_home: Annotated[
        Literal["host", "disk"] | None,
        Meta(
            description="Where streamed 4-bit weights wait: in RAM, or mapped to the files of the 4-bit copy, for "
            "models larger than RAM."
        ),
    ] = None
    kv_home: Annotated[
        Literal["gpu", "host"] | None,
        Meta(description="Where a layer's keys and values wait; on the host, GPU memory does not grow with context."),
    ] = None
    hidden_home: Annotated[
        Literal["gpu", "host", "disk"] | None,
        Meta(description="Where hidden states wait between the passes. disk writes all of them every window."),
    ] = None
    gradient_home: Annotated[
        Literal["gpu", "host", "disk"] | None,
        Meta(
            description="Where the gradient of the hidden states waits. Every layer of the backward pass reads and "
            "writes it; it is as large as the hidden states of one layer."
        ),
    ] = None
    stash_home: Annotated[
        Literal["gpu", "host", "disk"] | None,
        Meta(
            description="Where the saved attention outputs wait between the passes. They are written and read once a "
            "window, which suits an NVMe disk."
        ),
    ] = None
    stash: Annotated[
        bool | None,
        Meta(description="Keep every layer's attention output, instead of computing attention once more."),
    ] = None
    checkpoint_every: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(description="Keep the hidden states of every so many layers, and compute those between once more."),
    ] = None
    tile: Annotated[
        Annotated[int, Meta(ge=16, le=MOST_TOKENS)] | None, Meta(description="Tokens that go through a layer together.")
    ] = None
    key_block: Annotated[
        Annotated[int, Meta(ge=16, le=MOST_TOKENS)] | None,
        Meta(description="Keys that one call of the attention kernel sees; at least a tile."),
    ] = None
    loss_piece: Annotated[
        Annotated[int, Meta(ge=16, le=MOST_TOKENS)] | None, Meta(description="Tokens whose logits exist at once.")
    ] = None
    attention: Annotated[
        Literal["cudnn", "flash", "flash-attn-4", "flash-attn", "efficient", "cpu"] | None,
        Meta(description="Attention kernel; unset: the fastest that computes rightly on this card."),
    ] = None

    def fixed(self) -> dict[str, Any]:
        """Returns the fields that are set, by their names in StreamPlan."""
        return {name: value for name, value in structs.asdict(self).items() if value is not None}
