"""For each optimisation, how to disable its implementation: the proof must then fail.

A mutation is a list of (where, what): `where` is "module:attribute.path", `what` is a function that is given the
original and returns what takes its place. It is applied in this process, and in the processes that a proof starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib

import torch


def _target(where):
    module, _, path = where.partition(":")
    place = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        place = getattr(place, parent)
    return place, name


def apply(optimization, set_attribute=setattr):
    for where, what in MUTATIONS[optimization]:
        place, name = _target(where)
        set_attribute(place, name, what(place.__dict__[name]))


def _constant(value):
    return lambda original: value


def _nothing(original):
    return lambda *args, **kwargs: None


def _with_plan(**changes):
    """A class or function whose `plan` argument loses some options."""

    def replace(original):
        def made(*args, **kwargs):
            args = [dataclasses.replace(a, **changes) if type(a).__name__ == "StreamPlan" else a for a in args]
            if "plan" in kwargs:
                kwargs["plan"] = dataclasses.replace(kwargs["plan"], **changes)
            return original(*args, **kwargs)

        return made

    return replace


def _without_keywords(*names):
    def replace(original):
        return lambda *args, **kwargs: original(*args, **{k: v for k, v in kwargs.items() if k not in names})

    return replace


def _training_without(**changes):
    """A function whose training settings are the defaults in some fields."""

    def replace(original):
        from msgspec.structs import replace as with_fields

        def made(*args, **kwargs):
            args = [with_fields(a, **changes) if type(a).__name__ == "TrainingSection" else a for a in args]
            return original(*args, **kwargs)

        return made

    return replace


def _no_documents(original):
    return lambda request, *rest: original(dataclasses.replace(request, document_starts=(0,)), *rest)


def _whole_loss(original):
    def loss(hidden, head, targets, piece=0, label_smoothing=0.0, coefficients=None):
        return torch.nn.functional.cross_entropy(head(hidden).float(), targets, reduction="sum")

    return loss


def _quadratic_attention(original):
    def forward(self, q, k, v, *, causal, scale):
        groups = q.shape[1] // k.shape[1]
        scores = q @ k.repeat_interleave(groups, 1).transpose(2, 3) * scale
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(ahead, -torch.inf) if causal else scores
        return scores.softmax(-1) @ v.repeat_interleave(groups, 1), scores.logsumexp(-1)

    return forward


def _plain_codec(original):
    from engine.streaming.quantization import Plain

    return lambda bits, width, dtype: Plain(width, dtype)


def _resident(original):
    from engine.streaming.weights import ResidentWeights

    return lambda *args: ResidentWeights()


def _home_on_device(original):
    return lambda home, *rest: original("gpu", *rest)


def _unquantised(original):
    def arguments(placement):
        return {k: v for k, v in original(placement).items() if k != "quantization_config"}

    return arguments


def _plain_lora_plus(original):
    def make(model, kind, *, lr, loraplus_lr_ratio, loraplus_weight_decay):
        return original(model, kind, lr=lr, loraplus_lr_ratio=1.0, loraplus_weight_decay=loraplus_weight_decay)

    return make


def _one_window_at_a_time(original):
    return lambda windows, most: original(windows, 1)


def _in_memory(original):
    return lambda path, dtype, mode: __import__("numpy").fromfile(path, dtype)


def _cut_nowhere(original):
    return lambda length, group, *, shifted: iter((0, length))


def _never_recompute(original):
    def init(self, model, *, recompute, **rest):
        original(self, model, recompute=False, **rest)

    return init


def _untiled(original):
    return lambda forward, tile, hidden: forward(hidden)


def _own_slice_only(original):
    def start(self, pairs):
        for own, arriving in pairs:
            arriving.copy_(own)

    return start


def _stage_zero(original):
    def config(run, ranks):
        made = original(run, ranks)
        return {**made, "zero_optimization": {"stage": 0}}

    return config


def _raise_again(original):
    def handle(self, error):
        raise error

    return handle


def _write_at_once(original):
    return lambda self, snapshot, held_out_loss=None: self._write(snapshot, held_out_loss)


def _never_held_out(original):
    return lambda files, fraction: [index == 0 for index in range(len(files))]


MUTATIONS = {
    "streamed_backprop": [("engine.streaming.step:StreamedStep.__init__", _with_plan(tile=10**5, key_block=10**5))],
    "ring_attention": [("engine.distributed.ring:Transfer.start", _own_slice_only)],
    "paged_kv": [("engine.streaming.workspace:Workspace._pages_kv", _constant(False))],
    "attention_stash": [("engine.streaming.workspace:SavedAttention", _nothing)],
    "selective_checkpointing": [("engine.streaming.workspace:HiddenStates", _with_plan(checkpoint_every=1))],
    "activation_4bit": [("engine.streaming.hidden_states:quantizer_for", _plain_codec)],
    "activation_offload": [("engine.streaming.workspace:TileFactory", _home_on_device)],
    "weight_streaming": [("engine.streaming.streamed_model:StreamedWeights", _resident)],
    "tiled_mlp": [("engine.models.tiled_mlp:_tiled", _untiled)],
    "fused_linear_cross_entropy": [("engine.models.lm_head:summed_cross_entropy", _whole_loss)],
    "fused_kernels": [("engine.models.fused:refusal", lambda original: lambda *_: "none")],
    "sequence_packing": [
        ("engine.streaming.step:SequenceRun", _no_documents),
        ("engine.steps.whole_step:packed_attention", lambda original: lambda *_: contextlib.nullcontext()),
    ],
    "zero3": [("engine.runs.deepspeed_config:_of_this_run", _stage_zero)],
    "powersgd": [("engine.distributed.powersgd:PowerSgd._is_worth", lambda original: lambda self, gradient: False)],
    "gqa": [("engine.models.grouped_heads:_pooled", lambda original: lambda projection, heads, kept: projection)],
    "dynamic_curriculum": [("engine.training.curriculum:STAGES", _constant(()))],
    "flash_attention": [("engine.attention.cpu:CpuFlash.forward", _quadratic_attention)],
    "zero2_offload": [("engine.runs.deepspeed_config:_of_this_run", _stage_zero)],
    "adamw_8bit": [("engine.optim.adamw:optimizer_type", lambda original: lambda name: torch.optim.AdamW)],
    "qlora": [("engine.models.loading:_arguments", _unquantised)],
    "gradient_checkpointing": [("engine.steps.whole_step:WholeSequenceStep.__init__", _never_recompute)],
    "one_cycle_lr": [("engine.optim.build:make_schedule", _training_without(schedule="cosine"))],
    "polynomial_lr": [("engine.optim.build:make_schedule", _training_without(schedule="cosine"))],
    "lora_plus": [("engine.optim.adamw:create_loraplus_optimizer", _plain_lora_plus)],
    "rslora": [("engine.models.adapter:LoraConfig", _without_keywords("use_rslora"))],
    "mixed_precision": [("engine.models.placement:_DTYPES", _constant({"bf16": torch.float32, "fp32": torch.float32}))],
    "auto_batch_size": [("engine.steps.whole_step:groups_of", _one_window_at_a_time)],
    "gradient_accumulation": [("engine.data.windows:Window.divisor", _constant(property(lambda window: 1.0)))],
    "lr_range_test": [("engine.optim.lr_range:SAFETY", _constant(0.02))],
    "lr_scaling": [("engine.optim.build:peak_rate", lambda original: lambda training, tokens: training.learning_rate)],
    "validation_split": [("engine.data.reading:held_out_files", _never_held_out)],
    "ema": [("engine.optim.averaging:AdapterAverage.after_step", _nothing)],
    "swa": [("engine.optim.averaging:AdapterAverage.after_step", _nothing)],
    "lookahead": [("engine.optim.lookahead:Lookahead.after_step", _nothing)],
    "gradient_centralization": [("engine.optim.build:centralize", _nothing)],
    "adaptive_clipping": [("engine.optim.clipping:AdaptiveClipping.__call__", _nothing)],
    "gradient_noise": [("engine.optim.noise:GradientNoise.__call__", _nothing)],
    "neftune": [("engine.models.transforms:add_embedding_noise", _nothing)],
    "label_smoothing": [
        ("engine.models.lm_head:_piece_loss", lambda original: lambda *args: original(*args[:3], 0.0, *args[4:])),
    ],
    "loss_spike_recovery": [("engine.training.recovery:Recovery.handle", _raise_again)],
    "early_stopping": [("engine.training.early_stopping:EarlyStopping.observe", _nothing)],
    "torch_compile": [("engine.models.compiled:compile_layers", _nothing)],
    "memory_tuning": [("engine.hardware.tuning:tune_memory", _nothing)],
    "rope_scaling": [("engine.models.loading:stretch_positions", _nothing)],
    "fim": [("engine.data.encoding:cut_points", _nothing)],
    "dora": [("engine.models.adapter:LoraConfig", _without_keywords("use_dora"))],
    "near_duplicate_removal": [("engine.data.near_duplicates:similarity", lambda original: lambda a, b: 0.0)],
    "memory_mapped_dataset": [("numpy:memmap", _in_memory)],
    "checkpoint_pruning": [("engine.training.checkpoints:CheckpointFolder._prune", _nothing)],
    "async_checkpointing": [("engine.training.saver:Saver.begin", _write_at_once)],
    "longlora_s2": [("engine.models.shifted_attention:_cuts", _cut_nowhere)],
}
