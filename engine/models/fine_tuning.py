"""The trained weights of a model, which are either a LoRA adapter's or all of the model's.

Everything downstream of the gradient (clipping, the optimiser, averages, checkpoints) works on `FineTuning.weights`,
which are fp32 in either case, and does not depend on the difference.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peft import get_peft_model_state_dict, set_peft_model_state_dict

from engine import atomic_dir
from engine.models.adapter import adapter_config_json, save_adapter, trainable
from engine.models.base_changes import NO_CHANGES, BaseChanges
from engine.models.master_weights import MasterWeights
from engine.tokenization.encoder import Encoder

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, device, nn
    from torch.optim import Optimizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from engine.models.base_fingerprint import Fingerprint
    from engine.models.master_weights import MasterWeights


class FineTuning(ABC):
    """Trained weights of a model, with their form in checkpoints and results.

    Attributes:
        model: The module that computes, which is the base model, wrapped in its adapter if it has one.
        weights: The fp32 parameters that the optimiser updates, by name, in a fixed order.
    """

    weights_file: ClassVar[str]
    "Name of the weights file in a checkpoint, as the library names it."
    config_file: ClassVar[str]
    "Name of the configuration that the library needs beside it."

    model: Any
    weights: Mapping[str, nn.Parameter]
    optimizer: Optimizer | None = None
    "Optimiser over the weights, if one was needed before the trainer is built (ZeRO)."

    def whole(self) -> AbstractContextManager[None]:
        """Gathers sharded weights, so that this process holds all of them within the context. All ranks enter it."""
        return nullcontext()

    @property
    @abstractmethod
    def base(self) -> PreTrainedModel:
        """The causal language model without its adapter."""

    @property
    def masters(self) -> MasterWeights | None:
        """fp32 master weights, if the model computes with rounded copies of them; None if the weights are its own."""
        return None

    def publish(self) -> None:  # noqa: B027 - an adapter computes with the weights themselves
        """Publishes changed weights to the model, which computes with them from now on."""

    @abstractmethod
    def untrained(self) -> AbstractContextManager[Any]:
        """Makes the model within the context the one that training begins with. Enter it before any update."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Returns the weights in their shapes, by the names that the library gives them in `weights_file`."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads weights that `state` returned, in the same shapes.

        Raises:
            RuntimeError, KeyError, ValueError: the state is of another model.
        """

    @abstractmethod
    def config_json(self) -> str:
        """Returns the content of `config_file`."""

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
            tokenizer: Tokenizer that is written beside it.
            changes: Changes to the base before the adapter.
            base: Fingerprint of the base's weights.

        Raises:
            OSError: the disk is full or not writable.
        """


class AdapterTuning(FineTuning):
    """LoRA (arXiv 2106.09685). The base model is frozen; the adapter's fp32 weights are trained."""

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
        """See FineTuning. Disables the adapter, trained or not."""
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
    """Full fine-tuning. Trains every weight in fp32, in any compute precision (mixed precision, arXiv 1710.03740).

    Args:
        model: The base model, unquantised.
        home: Device of the fp32 weights, if the model's are narrower.
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
        """See FineTuning. No weight has been updated yet, so there is nothing to undo."""
        return nullcontext()

    def state(self) -> dict[str, Tensor]:
        """See FineTuning."""
        return {name: parameter.detach() for name, parameter in self.weights.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See FineTuning."""
        self._masters.load(state)

    def config_json(self) -> str:
        """See FineTuning. Names fp32, the dtype of the weights."""
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


def save_model(model: PreTrainedModel, path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes model and tokenizer with the same end-of-text tokens. The folder appears complete or not at all.

    Raises:
        OSError: the disk is full or not writable.
    """
    aside = path.with_name(f".{path.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    encoder = Encoder(tokenizer)
    for settings in (model.config, model.generation_config):
        if settings is not None:
            settings.eos_token_id = encoder.ends_among(settings.eos_token_id)
    aside.mkdir()  # its parents are not made again
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    atomic_dir.seal(path, aside, {})
