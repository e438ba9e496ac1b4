"""Small models, tokens and runs for proofs: seconds on a CPU, with every code path of a large model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config import RunConfig, from_mapping
from engine.data.window_source import count_updates, plan_updates
from engine.data.windows import Window, epoch_order
from engine.models.adapter import attach_adapter, trainable
from engine.models.fine_tuning import AdapterTuning
from engine.recipes.building import Learning, build_learning
from engine.runs.process_group import ProcessGroup
from engine.runs.run_directory import RunDirectory
from engine.steps.whole_step import WholeSequenceStep
from engine.training.checkpoints import CheckpointFolder, Retention
from engine.training.components import TrainerComponents
from engine.training.optimizer_step import StepFigures, take_optimizer_step
from engine.training.state import Progress

VOCABULARY = 211
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    # Wider than usual, since near-uniform attention would make gradients of queries and keys mostly rounding.
    "initializer_range": 0.1,
}


def small_model(family: str = "qwen2", *, device: torch.device | None = None, seed: int = 0, **shape: Any) -> Any:
    """Builds a frozen causal language model with random fp32 weights, some hundred thousand of them."""
    config = AutoConfig.for_model(family, **{**_SHAPE, **shape})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model.config.use_cache = False
    return model.requires_grad_(requires_grad=False).to(device or torch.device("cpu"))


def adapted(model: Any, config: RunConfig | None = None, *, noise: float = 0.05) -> Any:
    """Attaches an adapter whose B is not zero, so that every gradient can be compared."""
    made = attach_adapter(model, (config or RunConfig()).lora, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in trainable(made).items():
            if "lora_B" in name and noise:
                parameter.copy_(noise * torch.randn(parameter.shape, generator=generator))
    return made.train()


def gradients(model: Any) -> dict[str, Tensor]:
    """Returns copies of the adapter's gradients by name, in their parameters' shapes, and clears them."""
    found = {name: p.grad.clone() for name, p in trainable(model).items() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def random_tokens(count: int, seed: int = 0, vocabulary: int = VOCABULARY) -> Window:
    """Returns a window of `count` tokens without a pattern."""
    return Window(np.random.RandomState(seed).randint(0, vocabulary, count).astype(np.int64))


def patterned_tokens(count: int, seed: int = 0, vocabulary: int = VOCABULARY) -> Window:
    """Returns a window of `count` tokens in which four of five follow from the one before: a pattern to train on."""
    random = np.random.RandomState(seed)
    follower = np.random.RandomState(7).permutation(vocabulary)
    tokens = [int(random.randint(vocabulary))]
    while len(tokens) < count:
        tokens.append(int(random.randint(vocabulary) if random.rand() < 0.2 else follower[tokens[-1]]))
    return Window(np.array(tokens, dtype=np.int64))


class Unbothered:
    """A StepMonitor that ignores progress and never stops."""

    def progress(self, stage: str, done: int, total: int, *, layer: int | None = None, tile: int | None = None) -> None:
        """Does nothing."""

    def stop_requested(self) -> bool:
        """Never requests a stop."""
        return False


class ListWindows:
    """A WindowSource over windows in memory."""

    def __init__(self, windows: list[Window]) -> None:
        self._windows = windows

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Window:
        return self._windows[index]

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """See WindowSource."""
        return epoch_order(len(self), seed, epoch)


class SmallRun:
    """A run of the real training loop over a small model: all components of `engine train`, without input files.

    Args:
        folder: Folder for checkpoints.
        device: Device that trains.
        windows: Windows to train on.
        model: An adapted model; None builds one.
        settings: Sections and fields of RunConfig.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        windows: list[Window] | None = None,
        model: Any = None,
        **settings: dict[str, Any],
    ) -> None:
        windows = windows or [patterned_tokens(64, seed) for seed in range(32)]
        context = max(map(len, windows))
        base = {"context": context, "tokens_per_update": 4 * context, "learning_rate": 0.01, "epochs": 4.0}
        self.config = from_mapping({**settings, "training": {**base, **settings.get("training", {})}})
        training = self.config.training
        # Seed here, so that losses do not depend on earlier runs.
        torch.manual_seed(training.seed)
        self.model = model if model is not None else adapted(small_model(device=device), self.config, noise=0.0)
        source = ListWindows(windows)
        total = count_updates(source, training, context)
        tuning = AdapterTuning(self.model)
        self.learning: Learning = build_learning(tuning, self.config, context=context, total_steps=total)
        self.losses: list[float] = []
        updating, accelerator = self.learning.updating, Accelerator(cpu=device.type == "cpu")
        folder.mkdir(parents=True, exist_ok=True)
        self.run = RunDirectory(folder)
        self.step_way = WholeSequenceStep(
            self.model, recompute=False, label_smoothing=training.label_smoothing, micro_batch=training.micro_batch
        )
        self.parts = TrainerComponents(
            tuning=tuning,
            step=self.step_way,
            optimizer=accelerator.prepare(updating.optimizer),
            schedule=updating.schedule,
            gradients=updating.gradients,
            accelerator=accelerator,
            windows=source,
            context=context,
            seed=training.seed,
            checkpoints=CheckpointFolder(self.run.checkpoints_path, Retention(newest=self.config.checkpoint.keep)),
            evaluate=self.evaluate,
            stateful=self.learning.stateful,
            sequences=self.learning.sequences,
            early_end=self.learning.early_end,
        )
        self.held_out = patterned_tokens(512, seed=10_001)
        self.progress = Progress(total_steps=total)
        self._updates = plan_updates(source, training, context)

    def held_out_loss(self) -> float:
        """Returns the held-out loss of the adapter that would be saved, in nats per token."""
        with self.learning.averaged():
            return self.step_way.loss(self.held_out) / (len(self.held_out) - 1)

    def evaluate(self) -> float:
        """Scores the adapter as the recipe does, and passes the score to early stopping."""
        with self.learning.averaged():
            loss = self.step_way.loss(self.held_out) / (len(self.held_out) - 1)
            self.learning.observe(loss)
        return loss

    def step(self) -> StepFigures:
        """Takes the next update."""
        done = take_optimizer_step(self.parts, self.progress, next(self._updates), Unbothered())
        self.losses.append(done.loss)
        return done

    def steps(self, count: int | None = None) -> list[float]:
        """Takes the next updates, or all that are left, and returns their losses."""
        made = [self.step() for _ in range(self.progress.total_steps - self.progress.step if count is None else count)]
        return self.losses[-len(made) :]

    def session(self) -> Any:
        """Returns the part of a session that `fit` uses; its events are collected in `events`."""
        events: list[Any] = []
        return SimpleNamespace(
            config=self.config,
            run=self.run,
            resuming=False,
            journal_waits=False,
            check_run=lambda: None,
            events=events,
            emit=events.append,
            group=ProcessGroup(),
            acknowledge=lambda *_, **__: None,
            commands=SimpleNamespace(stop_requested=False, poll=lambda: None),
        )

    def weights(self) -> dict[str, Tensor]:
        """Returns a copy of the adapter by name, in its parameters' shapes."""
        return {name: parameter.detach().clone() for name, parameter in trainable(self.model).items()}
