"""Splits a Hugging Face causal language model into embedding, decoder layers, final norm and head.

Nothing that a family does around its layers is coded here. It is observed: the model's own forward runs over a tile
with its layers replaced by recorders. They keep the first layer's input (the embedding, with its scale and positions)
and the arguments of each layer (rotary tables, one set a layer type), and put given hidden states in the place of the
last layer's output (the final norm). The head follows (engine.models.lm_head).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import EliteError
from engine.errors.model import MODEL_FAMILY_UNSUPPORTED
from engine.models.families import DROPOUTS, require, setting_refusals
from engine.models.layer_settings import values_of_layers
from engine.models.layers import layer_list
from engine.models.lm_head import split_head
from engine.models.recurrent_kernels import serve
from engine.models.recurrent_mixers import recurrent_mixers
from engine.models.rope import ROPE_KEYS, fixed_rope_context, rope_type
from engine.models.rope_tables import keep_tables_exact
from engine.models.shared_kv import kv_owners

LAYER_INPUT = "per_layer_input"
"Argument of a layer that takes an input of its own beside the hidden states."
SHARED_KV = "shared_kv_states"
"Argument of a layer through which it hands its keys and values, by its type, to later layers."


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """Number of query heads and of KV heads, and the width of a head, of the wider where keys and values differ."""

    heads: int
    kv_heads: int
    head_dim: int


class _TakesFirstError(Exception):
    """Raised by a recorder that was handed a part of what the one before returned: this family expects a tuple."""


class _Recorder(nn.Module):
    """Stands in for a decoder layer: keeps its arguments, and returns the hidden states unchanged or those given."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple: not a part of this module
        self._names = list(inspect.signature(layer.forward).parameters)
        self.arguments: dict[str, Any] = {}
        self.seen: Any = None
        "Hidden states of the last call, (1, n, hidden)."
        self.given: Tensor | None = None
        "What to return instead."
        self.returns_tuple = False

    def forward(self, *positional: Any, **named: Any) -> Any:
        arguments = {**dict(zip(self._names, positional, strict=False)), **named}
        self.seen = arguments.pop(self._names[0])
        if self.seen.ndim < 3 and not self.returns_tuple:
            raise _TakesFirstError
        self.arguments = arguments
        found = self.seen if self.given is None else self.given
        return (found,) if self.returns_tuple else found

    def __getattr__(self, name: str) -> Any:
        """Models ask some layers for their kind."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"][0], name)


class SeenTokens:
    """Stands in for transformers' cache in layers that only ask it how many tokens came before.

    Args:
        before: Tokens before the first of the tile, for each of its tokens by its own document, (n,).
    """

    def __init__(self, before: Tensor) -> None:
        self._before = before

    def get_seq_length(self, layer_idx: int = 0) -> Tensor:  # noqa: ARG002
        """Returns what is added to the tokens' numbers in the tile to give their positions, (n,)."""
        return self._before

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Returns keys and values, (1, kv_heads, n, head_dim), which this cache does not keep."""
        return keys, values


class Decoder:
    """The parts of a causal language model, with or without a PEFT adapter.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED, for a family or setting that would give a wrong result.
    """

    def __init__(self, model: nn.Module) -> None:
        wrapped: Any = model
        causal: Any = wrapped.get_base_model() if hasattr(model, "get_base_model") else model
        self.causal = causal
        self.config = causal.config
        _refuse_unsupported(self.config)
        keep_tables_exact(causal)
        self._base, self.head = split_head(causal)
        self._parent, self._name = layer_list(causal)
        self.layers: list[nn.Module] = list(getattr(self._parent, self._name))
        self.mixers = recurrent_mixers(self.layers)
        serve(mixer for of_layer in self.mixers for mixer in of_layer)
        self.embedding: nn.Embedding = causal.get_input_embeddings()
        self._recorders = nn.ModuleList(_Recorder(layer) for layer in self.layers)
        self.kv_owners = kv_owners(self.config)
        self.takes_inputs = bool(getattr(self.config, "hidden_size_per_layer_input", None)) and (
            LAYER_INPUT in inspect.signature(self.layers[0].forward).parameters
        )
        "Whether each layer takes an input of its own beside the hidden states (per-layer embeddings)."
        self._streams = int(getattr(self.config, "altup_num_inputs", None) or 1)

    @property
    def attention_shape(self) -> AttentionShape:
        """Head counts and head width, from the configuration; the largest of any layer."""
        shapes = self.attention_shapes
        return AttentionShape(
            heads=shapes[0].heads,
            kv_heads=max(shape.kv_heads for shape in shapes),
            head_dim=max(shape.head_dim for shape in shapes),
        )

    @property
    def attention_shapes(self) -> tuple[AttentionShape, ...]:
        """Head counts and head widths that layers have, from the configuration, each once."""
        config, heads = self.config, self.config.num_attention_heads
        if getattr(config, "kv_lora_rank", None):  # latents are expanded to every head's own keys and values
            keys = config.qk_nope_head_dim + config.qk_rope_head_dim
            return (AttentionShape(heads=heads, kv_heads=heads, head_dim=max(keys, config.v_head_dim)),)
        kv_heads, widths = (values_of_layers(config, name) for name in ("num_key_value_heads", "head_dim"))
        found = {
            (own or heads, max(width or config.hidden_size // heads, getattr(config, "v_head_dim", None) or 0))
            for own, width in zip(kv_heads, widths, strict=True)
        }
        return tuple(AttentionShape(heads=heads, kv_heads=own, head_dim=width) for own, width in sorted(found))

    @property
    def widest_window(self) -> int | None:
        """Most keys that a query of any layer sees, from the configuration; None where a layer sees all."""
        if "full_attention" in (getattr(self.config, "layer_types", None) or ()):
            return None
        window: int | None = getattr(self.config, "sliding_window", None)
        return window

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states; of all of them together where a layer takes several (Gemma 3n)."""
        return self._streams * int(self.config.hidden_size)

    @property
    def shares_kv(self) -> bool:
        """Whether layers attend to the keys and values of an earlier layer."""
        return any(owner is not None for owner in self.kv_owners)

    @functools.cached_property
    def hands_on_kv(self) -> bool:
        """Whether layers take SHARED_KV: transformers' Gemma 4 before 5.23 writes into it though no layer reads it."""
        return any(SHARED_KV in inspect.signature(layer.forward).parameters for layer in self.layers)

    def unfolded(self, hidden: Tensor) -> Tensor:
        """Views hidden states (1, n, hidden) as a layer takes them: (streams, 1, n, width) where there are several."""
        if self._streams == 1:
            return hidden
        return hidden.view(*hidden.shape[:2], self._streams, -1).permute(2, 0, 1, 3)

    def folded(self, hidden: Tensor) -> Tensor:
        """Reverses `unfolded`; returns (1, n, hidden)."""
        return hidden if self._streams == 1 else hidden.permute(1, 2, 0, 3).flatten(2)

    def _embedded_like(self, hidden: Tensor) -> Tensor:
        return hidden if self._streams == 1 else self.unfolded(hidden)[0]

    @contextmanager
    def _recording(self, given: Tensor | None = None) -> Iterator[list[_Recorder]]:
        """Within it, recorders stand in for the layers; the last one returns `given`."""
        layers = getattr(self._parent, self._name)
        recorders: list[_Recorder] = list(self._recorders)  # type: ignore[arg-type]
        setattr(self._parent, self._name, self._recorders)
        recorders[-1].given = None if given is None else self.unfolded(given)
        try:
            yield recorders
        finally:
            setattr(self._parent, self._name, layers)
            for recorder in recorders:
                recorder.seen = recorder.given = None

    def _call(self, recorders: list[_Recorder], **inputs: Any) -> Any:
        """Calls the decoder with recorders in the places of its layers."""
        with contextlib.suppress(_TakesFirstError):
            return self._base(use_cache=False, **inputs)
        for recorder in recorders:
            recorder.returns_tuple = True
        return self._base(use_cache=False, **inputs)

    @contextmanager
    def _without_layer_inputs(self) -> Iterator[None]:
        """Within it, the model computes no inputs of single layers, for which it would need the tokens."""
        if not self.takes_inputs:
            yield
            return
        base: Any = self._base

        def nothing(embedded: Tensor, *_: Any) -> Tensor:
            return embedded.new_zeros(1).expand(*embedded.shape[:2], len(self.layers), 1)

        base.get_per_layer_inputs, base.project_per_layer_inputs = lambda *_: None, nothing
        try:
            yield
        finally:
            del base.get_per_layer_inputs, base.project_per_layer_inputs

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Embeds token_ids at their positions, both (1, n), into the first layer's input, (1, n, hidden)."""
        with self._without_layer_inputs():
            return self.embed_for_layers(token_ids, positions)[0]

    def embed_for_layers(self, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Embeds token_ids at their positions, both (1, n).

        Returns:
            The first layer's input, (1, n, hidden); the input that each layer takes beside it, (1, n, width), none
            where the family has no such inputs.
        """
        with self._recording() as recorders:
            self._call(recorders, input_ids=token_ids, position_ids=positions)
            given = [recorder.arguments.get(LAYER_INPUT) for recorder in recorders]
            seen: Tensor = recorders[0].seen
            return self.folded(seen), [each for each in given if each is not None]

    def final_hidden(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Runs the whole decoder on tokens at their positions, both (batch, n); returns (batch, n, hidden), normed."""
        output = self._base(input_ids=token_ids, position_ids=positions, use_cache=False)
        found: Tensor = output.last_hidden_state
        return found

    def own_arguments(self, inputs: list[Tensor]) -> list[dict[str, Any]]:
        """Lists what each layer takes beside `layer_arguments` where one tile goes through all layers together.

        Args:
            inputs: From `embed_for_layers`, each (1, n, width).
        """
        shared: dict[str, Any] = {SHARED_KV: {}} if self.hands_on_kv else {}
        return [{**({LAYER_INPUT: inputs[layer]} if inputs else {}), **shared} for layer in range(len(self.layers))]

    @functools.cached_property
    def trains_embedding(self) -> bool:
        """Whether anything before the first layer is trained."""
        if any(p.requires_grad for p in self.embedding.parameters()):
            return True
        if not any(p.requires_grad for p in self.final_norm_parameters):
            return False
        one = torch.zeros((1, 1), dtype=torch.long, device=self.embedding.weight.device)
        # Noise on the embeddings would be drawn from the generators that training goes on with.
        devices = [one.device] if one.is_cuda else []
        with torch.enable_grad(), torch.random.fork_rng(devices=devices):
            hidden, inputs = self.embed_for_layers(one, one)
            return any(each.requires_grad for each in (hidden, *inputs))

    def layer_arguments(self, hidden: Tensor, positions: Tensor) -> list[dict[str, Any]]:
        """Records the keyword arguments that the model passes to each layer for a tile.

        Left out are a layer's own input (`embed_for_layers`) and the keys and values of other layers (SHARED_KV).

        Args:
            hidden: Any tensor of the tile's shape, dtype and device, (1, n, hidden).
            positions: Positions of the tile's tokens, (1, n).
        """
        with self._recording() as recorders, self._without_layer_inputs(), torch.no_grad():
            self._call(recorders, inputs_embeds=self._embedded_like(hidden), position_ids=positions)
            found = [recorder.arguments for recorder in recorders]
        for arguments in found:
            arguments.pop(LAYER_INPUT, None)
            arguments.pop(SHARED_KV, None)
        if self._counts_tokens:
            seen = SeenTokens(positions[0] - torch.arange(positions.shape[1], device=positions.device))
            found = [{**arguments, "past_key_values": seen} for arguments in found]
        return found

    @functools.cached_property
    def _counts_tokens(self) -> bool:
        """Whether layers scale queries by a position that they take from the length of their cache (Llama 4)."""
        parts = (part for layer in self.layers for part in layer.modules())
        return any(getattr(part, "attn_temperature_tuning", False) for part in parts)

    @functools.cached_property
    def final_norm_parameters(self) -> list[nn.Parameter]:
        """Parameters of the decoder outside its layers and its token embedding."""
        inside = {id(p) for part in (*self.layers, self.embedding) for p in part.parameters()}
        return [p for p in self._base.parameters() if id(p) not in inside]

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Normalises the last layer's output for the head, both (1, n, hidden); differentiable."""
        positions = torch.zeros((1, hidden.shape[1]), dtype=torch.long, device=hidden.device)
        embedded = self._embedded_like(hidden.detach())
        with self._recording(given=hidden) as recorders, self._without_layer_inputs():
            output = self._call(recorders, inputs_embeds=embedded, position_ids=positions)
        found: Tensor = output.last_hidden_state
        return found


def _refuse_unsupported(config: Any) -> None:
    require(config.model_type, "streamed")
    settings = config.to_dict()
    problem = setting_refusals(settings).get("streamed")
    for name in DROPOUTS:
        if settings.get(name):
            problem = f"{name} {settings[name]} would draw other numbers in the recomputation"
    if problem is not None:
        raise _unsupported(config, "the streamed step", problem, "a model without it")


def refuse_position_dependent_rope(config: Any, context: int) -> None:
    """Refuses rotary tables that depend on the length of the input, which a tile does not know.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
    """
    settings = {name: getattr(config, name, None) for name in ROPE_KEYS}
    fixed = fixed_rope_context(settings)
    if fixed is not None and context > fixed:
        feature = f"a context of {context:,} tokens"
        problem = f"its rotary tables ({rope_type(settings)}) change with the length"
        raise _unsupported(config, feature, problem, f"a context up to {fixed:,}, or a model with YaRN")


def refuse_on_ranks(decoder: Decoder) -> None:
    """Refuses to divide a sequence among ranks where layers take what ranks do not exchange, or attend as none does.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
    """
    problem = ""
    if decoder.shares_kv or decoder.takes_inputs:
        problem = "layers share keys and values, or have inputs of their own, which ranks do not exchange"
    elif getattr(decoder.config, "attn_logit_softcapping", None) is not None:
        problem = "attn_logit_softcapping: kernels that ranks share do not cap attention scores"
    if problem:
        raise _unsupported(decoder.config, "a sequence on several ranks", problem, "one GPU for each sequence")


def does_not_attend_once(config: Any, layer: int, calls: int) -> EliteError:
    """The error for a layer that couples its tokens by something else than one call of the attention function."""
    problem = f"layer {layer} calls the attention function {calls} times instead of once"
    return _unsupported(config, "the streamed step", problem, "a decoder whose every layer attends")


def _unsupported(config: Any, feature: str, problem: str, supported: str) -> EliteError:
    return MODEL_FAMILY_UNSUPPORTED(family=config.model_type, feature=feature, problem=problem, supported=supported)
