"""A step under DeepSpeed's ZeRO (arXiv 1910.02054, 2101.06840), which shards training state over ranks.

DeepSpeed's engine runs on the run's own deepspeed.json and owns gradients, clipping and the optimiser state. The loop
sees its usual interfaces. Checkpoints hold whole tensors, so that any number of ranks can resume from them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from engine.attention.packed import packed_attention
from engine.distributed.torch_process_group import TorchProcessGroup
from engine.models.fine_tuning import AdapterTuning
from engine.models.lm_head import split_head, summed_cross_entropy
from engine.models.rope_tables import tables_by_document
from engine.models.router_balance import refuse_auxiliary_loss
from engine.optim.gradients import GradientPipeline
from engine.randomness import draw_seed, keyed_numbers
from engine.steps.padding import model_inputs
from engine.steps.whole_step import StepAbandonedError, StepMonitor, StepResult, Window, count_targets

if TYPE_CHECKING:
    from peft import PeftModel

_STATES = ("exp_avg", "exp_avg_sq")


class _WindowLoss(nn.Module):
    """Computes the summed loss as a module's forward, because ZeRO-3 gathers weights around modules."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        positions: Tensor | None,
        label_smoothing: float,
        coefficients: Tensor | None = None,
        labelled: Tensor | None = None,
    ) -> Tensor:
        decoder, head = split_head(self.model.get_base_model())
        positions = None if positions is None else positions[None]
        hidden = decoder(input_ids=ids[None], position_ids=positions, use_cache=False).last_hidden_state[0]
        return summed_cross_entropy(
            hidden, head, labels, label_smoothing=label_smoothing, coefficients=coefficients, labelled=labelled
        )


class ZeroStep:
    """A TrainingStep whose ranks each compute their own windows, and the optimiser that the loop sees.

    Args:
        tuning: The model with its adapter; ZeRO-3 moves its weights from the host.
        optimizer: AdamW over the adapter; DeepSpeed gives it this rank's shard.
        config: The run's deepspeed.json.
        device: The compute device.
        group: The ranks.
        recompute: Whether the backward pass recomputes layers.
        label_smoothing: Label smoothing of the training loss.
        fill_up_to: Longest window, where each is padded to one of few lengths (engine.steps.padding).
    """

    def __init__(
        self,
        tuning: ZeroTuning,
        optimizer: Optimizer,
        config: Path,
        *,
        device: torch.device,
        group: TorchProcessGroup,
        recompute: bool = False,
        label_smoothing: float = 0.0,
        fill_up_to: int | None = None,
    ) -> None:
        refuse_auxiliary_loss(tuning.base.config, "DeepSpeed ZeRO")
        # Each rank sees one GPU, so that DeepSpeed's number of it is 0.
        os.environ |= {"RANK": str(group.rank), "WORLD_SIZE": str(group.size), "LOCAL_RANK": "0"}
        if device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        model = tuning.model
        self._model, self._device, self._group = model, device, group
        self._label_smoothing, self._fill_up_to = label_smoothing, fill_up_to
        self._parameters = list(tuning.weights.values())
        self._groups = [
            ({k: v for k, v in group.items() if k != "params"}, [self._index(p) for p in group["params"]])
            for group in optimizer.param_groups
        ]
        self.base = optimizer
        if recompute:
            model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._engine, *_ = deepspeed.initialize(
            model=_WindowLoss(model), optimizer=optimizer, config=str(config), dist_init_required=False
        )
        self._stepped, self._pending = False, False
        tuning.step, tuning.optimizer = self, optimizer
        self.pipeline = GradientPipeline(clip=lambda _: self._update())
        "Clips and updates by DeepSpeed when the loop clips."

    def _index(self, parameter: Parameter) -> int:
        return next(i for i, one in enumerate(self._parameters) if one is parameter)

    # --- TrainingStep ----------------------------------------------------------------------------------------

    def run(self, windows: Sequence[Window], scale: float, monitor: StepMonitor) -> StepResult:
        """See TrainingStep. The result is that of all ranks, and the gradient stays in DeepSpeed's engine."""
        group = self._group
        mine = windows[group.rank :: group.size]
        rounds = -(-len(windows) // group.size)
        self._engine.train()
        seed, total = draw_seed(), 0.0  # the same seed in all ranks, so that their generators stay in sync
        for turn in range(rounds):
            asked = monitor.stop_requested()
            if group.agree(lambda asked=asked: asked):  # type: ignore[misc]
                raise StepAbandonedError
            # Every rank takes part in every round; a rank with no window left computes one of weight 0.
            window, weight = (mine[turn], 1.0) if turn < len(mine) else (windows[0], 0.0)
            self._engine.set_gradient_accumulation_boundary(is_boundary=turn + 1 == rounds)
            with keyed_numbers(self._device, seed, "window", turn * group.size + group.rank):
                loss = self._loss(window, self._label_smoothing)
                # DeepSpeed averages over the ranks, but the update needs their sum.
                self._engine.backward(loss * (scale * group.size * weight))
            total += float(loss.detach()) * weight
            self._pending = True
            monitor.progress("windows", turn + 1, rounds)
        return StepResult(summed=group.total([total])[0], tokens=count_targets(windows))

    def loss(self, window: Window) -> float:
        """See TrainingStep. Every rank must compute the same window, because the weights are sharded."""
        self._engine.eval()
        with torch.no_grad():
            return float(self._loss(window, 0.0))

    def close(self) -> None:
        """Does nothing, because DeepSpeed's engine cannot restore a model."""

    def _loss(self, window: Window, label_smoothing: float) -> Tensor:
        inputs = model_inputs(window, self._fill_up_to, self._device)
        decoder: Any = split_head(self._model.get_base_model())[0]
        with (
            packed_attention(decoder.config, inputs.starts, len(inputs)),
            tables_by_document(decoder, inputs.starts, len(window), len(inputs), self._device),
        ):
            loss: Tensor = self._engine(
                inputs.ids, inputs.labels, inputs.positions, label_smoothing, inputs.coefficients, inputs.labelled
            )
        return loss

    @property
    def offloads(self) -> bool:
        """Whether the optimiser state is offloaded."""
        sharded = self._engine.optimizer
        return bool(getattr(sharded, "cpu_offload", False) or getattr(sharded, "offload_optimizer", False))

    # --- the optimiser that the loop sees --------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups with their rates; the parameters are DeepSpeed's shards."""
        return self.base.param_groups

    @property
    def positions(self) -> list[list[int]]:
        """Indices of the trained weights in each group."""
        return [indices for _, indices in self._groups]

    def _update(self) -> float:
        """Clips and applies the gradient, and returns its norm before clipping."""
        self._engine.step()
        self._stepped, self._pending = True, False
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else 0.0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing, because DeepSpeed clears gradients after the update."""

    def step(self) -> None:
        """Does nothing, because clipping has already made the update (`pipeline`)."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state in the format of torch's AdamW, with whole tensors. All ranks must call it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        state: dict[int, dict[str, Any]] = {}
        if self._stepped:
            count = self._step_count()
            for index, parameter in enumerate(self._parameters):
                whole = {name: safe_get_full_optimizer_state(parameter, name).cpu() for name in _STATES}
                state[index] = {"step": torch.tensor(float(count)), **whole}
        groups = [
            {**{k: v for k, v in group.items() if k != "params"}, "params": indices}
            for group, (_, indices) in zip(self._own_groups(), self._groups, strict=True)
        ]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state of `state_dict`, or of AdamW on one GPU. All ranks must call it."""
        from deepspeed.utils import safe_set_full_optimizer_state

        if state["state"]:
            self._make_states()
            # torch numbers weights in the order of the groups, this class in that of the model.
            numbers = [int(number) for group in state["param_groups"] for number in group["params"]]
            places = dict(zip(numbers, (place for group in self.positions for place in group), strict=True))
            for number, entry in state["state"].items():
                for name in _STATES:
                    value = entry[name].to(self._device, torch.float32)
                    safe_set_full_optimizer_state(self._parameters[places[int(number)]], value, name)
            count = float(next(iter(state["state"].values()))["step"])
            for entry in self.base.state.values():
                entry["step"] = torch.full_like(entry["step"], count)
        for group, saved in zip(self._own_groups(), state["param_groups"], strict=True):
            group.update({k: v for k, v in saved.items() if k != "params"})

    def _own_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups[: len(self._groups)]

    def _step_count(self) -> int:
        return int(next(iter(self.base.state.values()))["step"])

    def _make_states(self) -> None:
        """Creates the optimiser state by a step at a rate of zero, which changes no weight.

        The step also discards a pending gradient that must not be applied.
        """
        if self._stepped and not self._pending:
            return
        rates = [group["lr"] for group in self.base.param_groups]
        for group in self.base.param_groups:
            group["lr"] = 0.0
        if not self._pending:
            self._engine.set_gradient_accumulation_boundary(is_boundary=True)
            ids = torch.zeros(2, dtype=torch.long, device=self._device)
            self._engine.train()
            self._engine.backward(self._engine(ids[:-1], ids[1:], None, 0.0) * 0.0)
        self._engine.step()
        self._stepped, self._pending = True, False
        for group, rate in zip(self.base.param_groups, rates, strict=True):
            group["lr"] = rate

    # --- whole weights ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def whole(self, *, changed: bool) -> Iterator[None]:
        """Gathers the adapter's parameters, whole and in fp32 in every rank, while the context is open.

        Args:
            changed: Whether the caller changes the values, in the same way in every rank.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

        shares = [parameter.data for parameter in self._parameters]
        wholes = [safe_get_full_fp32_param(parameter).clone() for parameter in self._parameters]
        for parameter, value in zip(self._parameters, wholes, strict=True):
            parameter.data = value
        try:
            yield
        finally:
            wholes = [parameter.data for parameter in self._parameters]
            for parameter, share in zip(self._parameters, shares, strict=True):
                parameter.data = share
        if changed:
            for parameter, value in zip(self._parameters, wholes, strict=True):
                safe_set_full_fp32_param(parameter, value)
            self._refresh(wholes)

    def _refresh(self, wholes: Sequence[Tensor]) -> None:
        """Copies the master weights into the weights that the layers compute with."""
        import deepspeed

        for parameter, value in zip(self._parameters, wholes, strict=True):
            if hasattr(parameter, "ds_id"):
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(value)
            else:
                parameter.data.copy_(value)


class ZeroTuning(AdapterTuning):
    """An adapter whose weights DeepSpeed shards over ranks."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__(model)
        self.step: ZeroStep | None = None
        "Owner of the weights, once it is built."

    def whole(self) -> AbstractContextManager[None]:
        """See FineTuning."""
        return contextlib.nullcontext() if self.step is None else self.step.whole(changed=False)

    def state(self) -> dict[str, Tensor]:
        """See FineTuning. All ranks must call it."""
        with self.whole():
            return {name: tensor.clone() for name, tensor in super().state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See FineTuning. All ranks must call it."""
        assert self.step is not None
        with self.step.whole(changed=True):
            super().load_state(state)
