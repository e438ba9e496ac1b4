"""Proves that a model's family is computed rightly, by comparing a small copy of its configuration with transformers.

The reference is the model's own forward, eager attention, one document at a time, ordinary backpropagation. In fp64,
so that what differs is a mistake and not rounding; parts that a family computes in fp32 whatever its weights are leave
1e-7.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from engine import __version__
from engine.config import LoraSection
from engine.data.windows import Window
from engine.errors import EliteError
from engine.export.merging import MergedWeights, read_updates
from engine.export.weights import StoredWeights
from engine.generation.forward import open_forward
from engine.models.adapter import attach_adapter
from engine.models.families import FAMILIES, Ability, Family, admit, setting_refusals
from engine.models.folder import open_folder
from engine.models.layers import decoder_layers, expert_weights
from engine.models.proofs import Proof, library_version, settings_name
from engine.models.recurrent_mixers import mixer_names
from engine.models.shared_kv import kv_owners
from engine.models.weight_map import map_weights
from engine.plan.stream_plan import StreamPlan
from engine.steps.whole_step import WholeSequenceStep
from engine.streaming.step import StreamedStep
from engine.verify.double_precision import DoublePrecision
from engine.verify.observed_shape import observed_shape
from engine.verify.small import Unbothered
from engine.verify.small_copy import VOCABULARY, NotSmallError, small_config, small_model

EXACT = 2e-5
"""Relative difference in fp64 that fp32 parts of a model explain."""
_EXPORTED = 1e-4
"""Relative difference of logits in fp32."""
_NEVER = 1e-3
"""Relative difference from eager attention that fp32 in its softmax does not explain."""
_LENGTH = 70
_DOCUMENTS: tuple[tuple[int, ...], ...] = ((0,), (0, 5, 6, 40))
_PLANS = (
    StreamPlan(tile=16, key_block=32, loss_piece=7),
    StreamPlan(tile=27, key_block=64, loss_piece=50, stash=False, checkpoint_every=2),
)


class DiffersError(Exception):
    """What was computed is not what transformers computes. The message says what differs."""


Gradients = dict[str, Tensor]
Computed = tuple[float, Gradients]
"""Summed loss, and gradients by name."""


def prove_family(config: Any, settings: Mapping[str, Any] | None = None) -> Proof:
    """Compares everything that can be done with a model.

    Args:
        config: transformers configuration of a causal language model.
        settings: The config.json that it was read from; what it writes, if it was made here.
    """
    began = time.monotonic()
    adapts_mlp = not has_experts(config)
    refused, differences = _abilities(config, adapts_mlp=adapts_mlp)
    shape: dict[str, Any] = {}
    try:
        shape = observed_shape(config, adapts_mlp=adapts_mlp)
        refused["planned"] = ""
    except Exception as problem:
        refused["planned"] = _line(problem)
    return Proof(
        engine=__version__,
        transformers=library_version(),
        model_type=config.model_type,
        settings=settings_name(json.loads(config.to_json_string()) if settings is None else settings),
        refused={str(ability): problem for ability, problem in refused.items()},
        differences=differences,
        adapts_mlp=adapts_mlp,
        shape=shape,
        seconds=round(time.monotonic() - began, 1),
    )


def _abilities(config: Any, *, adapts_mlp: bool) -> tuple[dict[Ability, str], dict[str, float]]:
    """Returns why each ability is refused ("" where it is admitted), and the largest difference of each comparison."""
    model_type = config.model_type
    before = FAMILIES.get(model_type)
    seen: dict[str, float] = {}
    checks: dict[Ability, Callable[[Any, dict[str, float]], None]] = {
        "streamed": _streamed_step,
        "whole": _whole_windows,
        "generated": _generation,
        "exported": _exports,
    }
    denied = setting_refusals(config.to_dict())
    if not hasattr(config, "num_hidden_layers"):
        wrapped = getattr(config.get_text_config(), "model_type", "other")
        return dict.fromkeys(checks, f"it wraps a {wrapped} model, which is proven by itself"), seen
    try:
        small = small_config(config)
        random = _reference_differs_from_itself(small)
    except NotSmallError as problem:
        return dict.fromkeys(checks, str(problem)), seen
    except Exception as problem:
        return dict.fromkeys(checks, f"a small copy cannot be made ({_line(problem)})"), seen
    found: dict[Ability, str] = {}
    try:
        model = small_model(small, torch.float64)
        # Eager attention takes its softmax in fp32, and where SDPA is not there to compare with, all is in fp64.
        sdpa = model._supports_sdpa and getattr(small, "attn_logit_softcapping", None) is None
        casts = bool(mixer_names(model)) or not sdpa or any(owner is not None for owner in kv_owners(small))
        in_fp64: Any = DoublePrecision() if casts else contextlib.nullcontext()  # type: ignore[no-untyped-call]
        for ability, check in checks.items():
            streams = ability == "streamed" or not found["streamed"]
            shown: frozenset[Ability] = frozenset({"streamed"} if streams else ())
            admit(model_type, Family(does=shown, shape={"adapts_mlp": adapts_mlp}))
            with in_fp64:
                found[ability] = denied.get(ability, "") or random or _reason(check, small, seen)
    finally:
        if before is None:
            del FAMILIES[model_type]
        else:
            admit(model_type, before)
    return found, seen


def has_experts(config: Any) -> bool:
    """Tells whether layers may hold experts, by their names in the configuration, or by their stacked weights."""
    if any("expert" in name and type(value) is int and value > 1 for name, value in config.to_dict().items()):
        return True
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
        return any(expert_weights(layer) for layer in decoder_layers(model))
    except Exception:  # what is wrong is said where its small copy is made
        return False


def _reason(check: Callable[[Any, dict[str, float]], None], small: Any, seen: dict[str, float]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(small, seen)
    except DiffersError as problem:
        return str(problem)
    except EliteError as refused:
        return _line(refused)
    except Exception as problem:
        return f"it fails ({_line(problem)})"
    return ""


def _line(error: Exception) -> str:
    said = error.values.get("problem") if isinstance(error, EliteError) else None
    lines = (said or str(error)).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


# --- the reference ------------------------------------------------------------------------------------------


def _tokens(length: int = _LENGTH, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


def _reference(model: Any, ids: Tensor, starts: tuple[int, ...]) -> Computed:
    """Returns the summed loss, and the gradient of its mean, by the model itself, each document by itself."""
    model.zero_grad()
    total, targets = 0.0, len(ids) - len(starts)
    for start, stop in pairwise((*starts, len(ids))):
        logits = model(input_ids=ids[None, start:stop], use_cache=False).logits[0]
        loss = functional.cross_entropy(logits[:-1].double(), ids[start + 1 : stop], reduction="sum")
        (loss / targets).backward()
        total += float(loss.detach())
    return total, _taken(model)


def _taken(model: Any) -> Gradients:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def _reference_differs_from_itself(small: Any) -> str:
    model = small_model(small, torch.float64).train()
    ids = _tokens()
    one, other = (_reference(model, ids, (0,)) for _ in range(2))
    if not np.isfinite(one[0]):
        raise NotSmallError("the loss of a small copy is not finite")
    same = abs(one[0] - other[0]) <= 1e-9 * abs(one[0])
    return "" if same else "it draws random numbers while it trains, and they would differ between the passes"


class _Reference:
    """What the model itself computes, by eager attention and by SDPA."""

    def __init__(self, model: Any, ids: Tensor, starts: tuple[int, ...]) -> None:
        self._model, self._ids, self._starts = model, ids, starts
        self.computed = _reference(model, ids, starts)

    def check(self, what: str, found: Computed, seen: dict[str, float]) -> None:
        """Makes sure that a loss and its gradient are the model's.

        Raises:
            DiffersError: they are not.
        """
        wanted = self.computed
        expected = [name for name, gradient in wanted[1].items() if gradient.any()]
        if missing := [name for name in expected if name not in found[1]]:
            raise DiffersError(f"{what}: {missing[0]} and {len(missing) - 1} more get no gradient")
        seen[what], where = _difference(found, wanted)
        if EXACT <= seen[what] < _NEVER and self._in_fp64 is not None:
            # Eager attention takes the softmax in fp32, which shows where scores are large.
            seen[what], where = _difference(found, self._in_fp64)
        if not seen[what] < EXACT:
            raise DiffersError(f"{what}: the {where} differs by {seen[what]:.1e}")

    @functools.cached_property
    def _in_fp64(self) -> Computed | None:
        """Computes the reference by SDPA, whose softmax is in fp64 too; None where the family attends eagerly only."""
        if not _base(self._model)._supports_sdpa:  # it would leave out sinks without a word
            return None
        config = _base(self._model).config
        before = config._attn_implementation
        config._attn_implementation = "sdpa"
        try:
            return _reference(self._model, self._ids, self._starts)
        except (ValueError, RuntimeError, NotImplementedError, AttributeError, TypeError):
            return None
        finally:
            config._attn_implementation = before


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _difference(found: Computed, wanted: Computed) -> tuple[float, str]:
    """Returns the largest relative difference, and what differs: the loss, or a gradient by name."""
    loss = abs(found[0] - wanted[0]) / abs(wanted[0])
    worst, name = _worst(found[1], wanted[1])
    return (worst, f"gradient of {name}") if loss <= worst else (loss, "loss")


def _worst(found: Gradients, wanted: Gradients) -> tuple[float, str]:
    """Returns the largest relative difference, and whose it is."""
    whole = torch.stack([gradient.double().norm() for gradient in wanted.values()]).norm()
    worst, name = 0.0, ""
    for key, gradient in found.items():
        want = wanted.get(key, torch.zeros(())).double()
        error = float((gradient.double() - want).norm() / (want.norm() + 1e-4 * whole))
        if not error <= worst:
            worst, name = error, key
    return worst, name


def _variants(small: Any) -> Iterator[tuple[str, Any]]:
    """Yields the small model with all its weights trained, and in an adapter."""
    yield "full", small_model(small, torch.float64).train()
    yield "LoRA", _adapted(small_model(small, torch.float64)).train()


def _adapted(model: Any) -> Any:
    """Returns wraps the model in an adapter that changes what it computes."""
    adapted: Any = attach_adapter(model.requires_grad_(requires_grad=False), LoraSection(rank=4), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(model.dtype)
                if "lora_B" in name:
                    parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return adapted


def _called(starts: tuple[int, ...]) -> str:
    return "one document" if len(starts) == 1 else f"{len(starts)} documents"


# --- what is proven -----------------------------------------------------------------------------------------


def _streamed_step(small: Any, seen: dict[str, float]) -> None:
    for kind, model in _variants(small):
        for number, starts in enumerate(_DOCUMENTS):
            wanted = _Reference(model, _tokens(), starts)
            for plan in _PLANS if kind == "full" else _PLANS[number : number + 1]:
                with StreamedStep(model, plan, device=torch.device("cpu")) as step:
                    loss = step.run(_tokens(), document_starts=starts).loss_sum
                what = f"streamed, {kind}, {_called(starts)}, tiles of {plan.tile}"
                wanted.check(what, (loss, _taken(model)), seen)


def _whole_windows(small: Any, seen: dict[str, float]) -> None:
    ids = _tokens()
    for kind, model in _variants(small):
        for starts in _DOCUMENTS:
            wanted = _Reference(model, ids, starts)
            step = WholeSequenceStep(model, recompute=kind == "full" and len(starts) > 1)
            loss = step.run([Window(ids.numpy(), starts)], 1 / (len(ids) - len(starts)), Unbothered()).loss_sum
            step.close()
            wanted.check(f"whole, {kind}, {_called(starts)}", (loss, _taken(model)), seen)


def _exports(small: Any, seen: dict[str, float]) -> None:
    """Exports an adapter and a merged base, and reads both back by the libraries that they are written for.

    Files are fp32, logits are computed in fp64: a rounded product may choose other experts for a token.
    """
    base = small_model(small, torch.float32)
    with tempfile.TemporaryDirectory(prefix="elite-tui-") as folder, torch.no_grad():
        plain, adapter, whole = (Path(folder) / name for name in ("plain", "adapter", "merged"))
        base.save_pretrained(plain)
        model = _adapted(base).eval()
        model.save_pretrained(adapter, save_embedding_layers=False)
        wanted = _logits(model)
        stored = open_folder(plain)
        config = AutoConfig.from_pretrained(plain)
        read = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, attn_implementation="eager").eval()
        read.config._experts_implementation = base.config._experts_implementation
        _same_logits("adapter", _logits(PeftModel.from_pretrained(read, str(adapter)).eval()), wanted, seen)
        whole.mkdir()
        with StoredWeights(map_weights(stored, config)) as weights:
            merged = MergedWeights(weights, read_updates(adapter), tied=config.tie_word_embeddings)
            tensors = {name: merged.tensor(name).contiguous() for name in merged.names()}
            config.tie_word_embeddings = config.tie_word_embeddings and not merged.unties_head
        save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(whole)
        read = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32, attn_implementation="eager").eval()
        read.config._experts_implementation = base.config._experts_implementation
        _same_logits("merged", _logits(read), wanted, seen)


def _logits(model: Any) -> Tensor:
    found: Tensor = model.double()(input_ids=_tokens()[None], use_cache=False).logits
    return found


def _same_logits(what: str, found: Tensor, wanted: Tensor, seen: dict[str, float]) -> None:
    error = float((found.double() - wanted.double()).norm() / wanted.double().norm())
    seen[f"exported, {what}"] = error
    if not error < _EXPORTED:
        raise DiffersError(f"exported, {what}: logits differ by {error:.1e} once they are read back")


@torch.no_grad()
def _generation(small: Any, seen: dict[str, float]) -> None:
    model = small_model(small, torch.float64).eval()
    ids, prompt = _tokens(), _LENGTH - 8
    wanted = model(input_ids=ids[None], use_cache=False).logits[0, prompt - 1 :]
    forward = open_forward(model, _LENGTH, tile=16, page=32)
    found = [forward.advance(ids[:prompt]), *(forward.advance(ids[at : at + 1]) for at in range(prompt, _LENGTH))]
    error = float((torch.stack(found).double() - wanted).norm() / wanted.norm())
    seen["generated"] = error
    if not error < EXACT:
        raise DiffersError(f"generated: logits differ by {error:.1e} from those without a cache")
