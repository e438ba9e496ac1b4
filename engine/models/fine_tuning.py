"""What a run trains of a model, and in which form it is kept: an adapter (LoRA), or every weight.

Everything downstream of the gradient (clipping, the optimiser, averages, checkpoints) works on `FineTuning.weights`,
which are fp32 in either case, and knows nothing of the difference.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peft import get_peft_model_state_dict, set_peft_model_state_dict

from engine.models.adapter import adapter_config_json, save_adapter, trainable
from engine.models.base_changes import NO_CHANGES, BaseChanges
from engine.models.master_weights import MasterWeights
from engine.models.whole_model import save_model

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, device, nn
    from torch.optim import Optimizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from engine.models.base_fingerprint import Fingerprint
    from engine.models.master_weights import MasterWeights


class FineTuning(ABC):
    """What is trained.

    Attributes:
        model: What computes: the base model, in its adapter if it has one.
        weights: The fp32 parameters that the optimiser updates, by name, in a fixed order.
    """

    weights_file: ClassVar[str]
    "Where a checkpoint holds the weights; the library's own name for it."
    config_file: ClassVar[str]
    "What the library needs beside it."

    model: Any
    weights: Mapping[str, nn.Parameter]
    optimizer: Optimizer | None = None
    "Over the weights, where one was needed before the run's learning is put together (ZeRO)."

    def whole(self) -> AbstractContextManager[None]:
        """Within it, all of the weights are in this process, however ranks share them. All ranks enter it."""
        return nullcontext()

    @property
    @abstractmethod
    def base(self) -> PreTrainedModel:
        """The causal language model without what is around it."""

    @property
    def masters(self) -> MasterWeights | None:
        """The weights, where the model computes with rounded copies of them; None where they are its own."""
        return None

    def publish(self) -> None:  # noqa: B027 - an adapter computes with the weights themselves
        """The weights have changed: the model computes with them from now on."""

    @abstractmethod
    def untrained(self) -> AbstractContextManager[Any]:
        """Within it, before any update, the model is the one that training begins with."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The weights by the names that the library gives them in `weights_file`."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes on what `state` gave.

        Raises:
            RuntimeError, KeyError, ValueError: it is of another model.
        """

    @abstractmethod
    def config_json(self) -> str:
        """The content of `config_file`."""

    @abstractmethod
    def save(
        self,
        path: Path,
        tokenizer: PreTrainedTokenizerFast,
        changes: BaseChanges = NO_CHANGES,
        base: Fingerprint | None = None,
    ) -> None:
        """Writes the result, complete or not at all.

        Args:
            path: A folder, which is replaced.
            tokenizer: Is written beside it.
            changes: What was done to the base before the adapter.
            base: Fingerprint of the base's weights.

        Raises:
            OSError: the disk is full or not writable.
        """


class AdapterTuning(FineTuning):
    """LoRA (arXiv 2106.09685): the base model is frozen, the adapter's fp32 weights are trained."""

    weights_file, config_file = "adapter_model.safetensors", "adapter_config.json"

    def __init__(self, model: PeftModel) -> None:
        self.model: PeftModel = model
        self.weights = trainable(model)
        self._config: str | None = None

    @property
    def base(self) -> PreTrainedModel:
        """See FineTuning."""
        base: PreTrainedModel = self.model.get_base_model()
        return base

    def untrained(self) -> AbstractContextManager[Any]:
        """See FineTuning: without the adapter, whatever it has learnt."""
        context: AbstractContextManager[Any] = self.model.disable_adapter()
        return context

    def state(self) -> dict[str, Tensor]:
        """See FineTuning."""
        found: dict[str, Tensor] = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See FineTuning."""
        set_peft_model_state_dict(self.model, dict(state))

    def config_json(self) -> str:
        """See FineTuning. It does not change while a model trains, and PEFT can only write it to a file."""
        if self._config is None:
            self._config = adapter_config_json(self.model)
        return self._config

    def save(
        self,
        path: Path,
        tokenizer: PreTrainedTokenizerFast,
        changes: BaseChanges = NO_CHANGES,
        base: Fingerprint | None = None,
    ) -> None:
        """See FineTuning; in PEFT's format."""
        save_adapter(self.model, path, tokenizer, changes, base)


class FullTuning(FineTuning):
    """Every weight is trained; in fp32, whatever the model computes in (mixed precision, arXiv 1710.03740).

    Args:
        model: The base model, unquantised.
        home: Device of the fp32 weights where the model's are narrower.
    """

    weights_file, config_file = "model.safetensors", "config.json"

    def __init__(self, model: PreTrainedModel, home: device) -> None:
        model.requires_grad_(requires_grad=True)
        self.model: PreTrainedModel = model
        self._masters = MasterWeights(model, home)
        self.weights = self._masters.parameters

    @property
    def base(self) -> PreTrainedModel:
        """See FineTuning."""
        return self.model

    @property
    def masters(self) -> MasterWeights | None:
        """See FineTuning."""
        return self._masters

    def publish(self) -> None:
        """See FineTuning."""
        self._masters.publish()

    def untrained(self) -> AbstractContextManager[Any]:
        """See FineTuning: nothing has been updated yet."""
        return nullcontext()

    def state(self) -> dict[str, Tensor]:
        """See FineTuning."""
        return {name: parameter.detach() for name, parameter in self.weights.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See FineTuning."""
        self._masters.load(state)

    def config_json(self) -> str:
        """See FineTuning: of the fp32 weights."""
        config = type(self.model.config).from_dict({**self.model.config.to_dict(), "dtype": "float32"})
        text: str = config.to_json_string()
        return text

    def save(
        self,
        path: Path,
        tokenizer: PreTrainedTokenizerFast,
        changes: BaseChanges = NO_CHANGES,  # noqa: ARG002 - the model's own configuration holds them
        base: Fingerprint | None = None,  # noqa: ARG002 - it holds every weight itself
    ) -> None:
        """See FineTuning; as `from_pretrained` reads it, in the precision that the model computes in."""
        save_model(self.model, path, tokenizer)
