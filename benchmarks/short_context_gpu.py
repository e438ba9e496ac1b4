"""Tokens a second of packed QLoRA at short contexts on one GPU: the streamed step beside transformers with PEFT.

    python benchmarks/short_context_gpu.py OUT.json [--model qwen2.5-coder-1.5b] [--layers N]

Each row is one way at one length: a micro-step of `tokens` tokens in rows (documents) of `row` tokens, NF4 base
weights, LoRA r=16 on all linear layers, random weights, forward, backward and an AdamW update. The rival is what
its users run: NF4 by bitsandbytes, `prepare_model_for_kbit_training` (gradient checkpointing, and once more without),
SDPA attention, rows as a batch, as many updates' tokens at once as its loss has memory for. Each way runs in a process
of its own. Where unsloth can be imported it is a rival too (`--ways unsloth "unsloth, activations kept"`): random
weights of the same shapes written to a folder once, `FastLanguageModel` with its own checkpointing or without.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

ROWS = ((2048, 16384), (4096, 16384), (8192, 16384), (16384, 16384), (2048, 8192), (8192, 8192))
"""(tokens a row, tokens an update)."""

RIVALS = ("transformers + peft, checkpointing", "transformers + peft, activations kept")

UNSLOTH = ("unsloth", "unsloth, activations kept")

AS_TRAINED = "as engine train runs it"
"""The streamed step with all activations kept, recorded as CUDA graphs."""

RIVAL_TOKENS = 8192
"""Tokens that transformers' loss can take at once in 80 GB: it holds several fp32 tensors of tokens x vocabulary."""


def unsloth_model(way: str, spec: Any, layers: int | None) -> Any:
    """Opens random weights of `spec`'s shapes as unsloth's users do; it must be imported before transformers."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
    from unsloth import FastLanguageModel

    from engine.assets import asset
    from engine.models.placement import choose_placement
    from engine.models.random import random_model

    folder = Path(tempfile.gettempdir()) / f"elite-rival-{spec.name}-{layers or spec.layers}"
    if not (folder / "config.json").is_file():
        written = random_model(spec, choose_placement("cuda", "bf16"), layers=layers)
        written.config.max_position_embeddings = 32768  # unsloth makes tables of all positions
        written.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(asset("demo-model", name), folder)
    longest = max(row for row, _ in ROWS)
    model, _ = FastLanguageModel.from_pretrained(str(folder), max_seq_length=longest, load_in_4bit=True)
    return FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        use_gradient_checkpointing="unsloth" if way == UNSLOTH[0] else False,
    ).train()


class Silent:
    """Watches a step without saying anything."""

    def progress(self, *_: object, **__: object) -> None: ...

    def stop_requested(self) -> bool:
        return False


class TrainingStep:
    """Makes the forward and backward pass of one update as `engine train` does, by CUDA graphs."""

    def __init__(self, model: Any, ids: Any, row: int, device: Any, layers: int, say: Any) -> None:
        from engine.data.windows import Window
        from engine.models.fine_tuning import AdapterTuning
        from engine.plan.stream_plan import StreamPlan
        from engine.steps.streamed_windows import StreamedWindows

        self._window = Window(ids.numpy(), tuple(range(0, len(ids), row)))
        self._way = StreamedWindows(
            AdapterTuning(model),
            StreamPlan(tile=len(ids), weights="nf4", keep_layers=layers),
            device=device,
            spill_directory=Path(tempfile.gettempdir()),
            fill_up_to=len(ids),
            graphs=True,
            notify=say,
        )

    def __call__(self) -> None:
        self._way.run([self._window], 1.0 / self._window.targets, Silent())

    def close(self) -> None:
        """Frees the buffers."""
        self._way.close()


def run(way: str, model_name: str, layers: int | None, pipe: Any) -> None:
    if way in UNSLOTH:
        import unsloth  # noqa: F401 - patches what is imported after it

    import torch

    from engine.benchmarking.machine import describe_machine
    from engine.benchmarking.streaming import reset_peak, timed
    from engine.config import LoraSection
    from engine.models.adapter import attach_adapter, trainable
    from engine.models.catalogue import find_model
    from engine.models.fused import fuse_kernels
    from engine.models.placement import choose_placement
    from engine.models.random import random_model
    from engine.plan.stream_plan import StreamPlan
    from engine.streaming.step import StreamedStep

    spec, placement = find_model(model_name), choose_placement("cuda", "nf4")
    device = placement.device
    base = None if way in UNSLOTH else random_model(spec, placement, layers=layers)
    if way in UNSLOTH:
        model = unsloth_model(way, spec, layers)
    elif way in RIVALS:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        base.is_loaded_in_4bit = True  # as `from_pretrained` says; without it PEFT would not checkpoint
        base = prepare_model_for_kbit_training(
            base,
            use_gradient_checkpointing=way == RIVALS[0],
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
        assert any(getattr(m, "gradient_checkpointing", False) for m in base.modules()) == (way == RIVALS[0])
        model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")).train()
    else:
        fuse_kernels(base, device)
        model = attach_adapter(base, LoraSection(), seed=0).train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-4, fused=True)
    for row, tokens in ROWS:
        ids = torch.randint(0, spec.vocab_size, (tokens,))

        def whole(ids: torch.Tensor = ids, row: int = row) -> None:
            for part in ids.view(-1, row).split(max(1, RIVAL_TOKENS // row)):
                rows = part.to(device)
                with torch.autocast("cuda", torch.bfloat16):
                    model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        result: dict[str, Any] = {"way": way, "model": spec.name, "layers": layers or spec.layers}
        result |= {"row": row, "tokens": tokens, **describe_machine(device)}
        try:
            reset_peak(device)
            if way in RIVALS + UNSLOTH:
                seconds = timed(whole, device)
            elif way == AS_TRAINED:
                said: list[str] = []
                update = TrainingStep(model, ids, row, device, spec.layers, said.append)

                def trained(update: TrainingStep = update) -> None:
                    update()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)

                seconds = timed(trained, device)
                update.close()
                result["said"] = said
            else:
                keep = spec.layers if way.endswith("kept") else 0
                plan = StreamPlan(tile=tokens, weights="nf4", keep_layers=keep)
                with StreamedStep(model, plan, device=device) as step:

                    def streamed(ids: torch.Tensor = ids, row: int = row, step: StreamedStep = step) -> None:
                        step.run(ids, document_starts=range(0, len(ids), row))
                        optimizer.step()
                        optimizer.zero_grad()

                    seconds = timed(streamed, device)
            result |= {"seconds": seconds, "gpu_peak_allocated": torch.cuda.max_memory_allocated(device)}
        except (RuntimeError, torch.OutOfMemoryError) as error:
            result["error"] = str(error)[:300]
        pipe.send(result)
        torch.cuda.empty_cache()
    pipe.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--ways", nargs="*", default=[*RIVALS, "streamed", "streamed, activations kept"])
    given = parser.parse_args()
    results: list[dict[str, Any]] = []
    for way in given.ways:
        began = time.perf_counter()
        receiver, sender = multiprocessing.Pipe(duplex=False)
        target = (way, given.model, given.layers, sender)
        process = multiprocessing.get_context("spawn").Process(target=run, args=target)
        process.start()
        sender.close()
        try:
            while True:
                results.append(receiver.recv())
                print(line(results[-1]), flush=True)
                given.out.write_text(json.dumps(results, indent=1))
        except EOFError:
            process.join()
        print(f"{way}: {time.perf_counter() - began:.0f} s")


def line(result: dict[str, Any]) -> str:
    name = f"{result['way']:<38} row {result['row']:>6} tokens {result['tokens']:>6}"
    if "error" in result:
        return f"{name}  ERROR {result['error']}"
    speed, peak = result["tokens"] / result["seconds"], result["gpu_peak_allocated"] / 2**30
    return f"{name}  {speed:>9,.0f} tokens/s  {result['seconds'] * 1e3:>8.1f} ms  {peak:6.2f} GiB"


if __name__ == "__main__":
    main()
