"""Lists all problems of a configuration as values, for an error and for a form."""

from __future__ import annotations

import difflib
import itertools
import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

import msgspec

from engine.config.description import MOST_COUNTED, MOST_TOKENS, FieldSpec
from engine.config.run import RunConfig, field_spec

SECRET_FIELDS = frozenset({"notify.webhook"})
"""Fields whose values no message quotes."""
SHORTEST_WINDOW = 64
"""Least tokens of a window, as of training.context."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem with one field, and its remedy."""

    field: str
    problem: str
    remedy: str


_MOST = 2**63
"""Whole numbers are below it: arithmetic in floats takes them."""
_NESTED = (list, tuple, dict, set)
_LONGEST_INT = 1000
"""Bits of a whole number that is written in decimals, of which Python refuses too many."""
_MOST_SHOWN = 100
"""Items of a list that are written: its default must be shown whole."""


def find_problems(data: Any) -> list[Problem]:
    """Returns every problem of nested mappings, by field; empty when `from_mapping` would succeed."""
    if not isinstance(data, dict):
        return [
            Problem(
                field="(top level)",
                problem="not a mapping of sections",
                remedy="write sections such as 'training:'",
            )
        ]
    found: list[Problem] = []
    sections = get_type_hints(RunConfig)
    for section, values in data.items():
        if section not in sections:
            found.append(_unknown(_shown(section), list(sections), "section"))
        elif not isinstance(values, dict):
            found.append(
                Problem(
                    field=section,
                    problem="not a mapping of fields",
                    remedy=f"write 'field: value' lines under '{section}:'",
                )
            )
        else:
            found += _find_section_problems(section, sections[section], values)
    return found or _find_conflicts(data)


def _find_section_problems(section: str, section_type: type, values: dict[Any, Any]) -> list[Problem]:
    found = []
    annotations = get_type_hints(section_type, include_extras=True)
    for name, value in values.items():
        path = f"{section}.{name if isinstance(name, str) else _shown(name)}"
        if name not in annotations:
            found.append(_unknown(path, [f"{section}.{known}" for known in annotations], "field"))
            continue
        spec = field_spec(path)
        try:
            if isinstance(value, int) and abs(value) >= _MOST:
                raise msgspec.ValidationError
            msgspec.convert(value, annotations[name])
        except (msgspec.ValidationError, UnicodeEncodeError):  # the latter: half a character, as YAML can escape it
            shown = "the value" if path in SECRET_FIELDS else _shown(value)
            shown = shown if len(shown) <= 40 else shown[:37] + "..."
            found.append(
                Problem(
                    field=path,
                    problem=f"{shown} is not {spec.allowed}",
                    remedy=_remedy(value, spec),
                )
            )
    return found


def _remedy(value: object, spec: FieldSpec) -> str:
    if isinstance(spec.default, list) and isinstance(value, str) and value:
        return f"write it in brackets, as in [{value[:40]}]"
    return "leave it out" if spec.default in (None, "") else f"the default is {_shown(spec.default)}"


def _shown(value: object) -> str:
    """Writes a value as a configuration file does, the beginning of one that is large."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list) and not any(isinstance(item, _NESTED) for item in value):
        return f"[{', '.join(map(_shown, value[:_MOST_SHOWN]))}]"
    if isinstance(value, int) and value.bit_length() > _LONGEST_INT:
        return f"{hex(value)[:12]}..."
    # Aliases of YAML can nest a value in itself, and repeat one a billion times.
    text = str(value) if isinstance(value, str | float) else reprlib.repr(value)
    # Quoted in the file too: a text that looks like a number, or like nothing.
    return f"'{text}'" if isinstance(value, str) and (not text or text[0] in "-+.0123456789") else text


def _find_conflicts(data: dict[str, Any]) -> list[Problem]:
    """Finds values that are each allowed, but not together."""
    found = list(_find_layout_conflicts(data.get("stream", {}), data))
    training = data.get("training", {})
    found += _find_stage_conflicts(training)
    if training.get("tier") is not None and training.get("context") is not None:
        problem = "both training.tier and training.context are set"
        remedy = "set one of them: a tier stands for a context"
        found.insert(0, Problem(field="training.context", problem=problem, remedy=remedy))
    return found


def _find_stage_conflicts(training: dict[str, Any]) -> Iterator[Problem]:
    """Finds settings that a schedule of several window lengths excludes."""
    stages, hours = training.get("stages") or [], training.get("hours")
    limits = (MOST_TOKENS, MOST_COUNTED)
    # Digits are counted first: Python refuses to read many thousands of them.
    high = [
        text for text in stages if any(len(n) > 9 or int(n) > m for n, m in zip(text.split(":"), limits, strict=True))
    ]
    if high:
        yield Problem(
            field="training.stages",
            problem=f"{high[0][:40]} is above {MOST_TOKENS:,} tokens or {MOST_COUNTED:,} updates",
            remedy="write CONTEXT:UPDATES with smaller numbers, as in 8192:40",
        )
        return
    contexts = [int(text.partition(":")[0]) for text in stages]
    rising = all(later > earlier for earlier, later in itertools.pairwise(contexts))
    if not rising or min(contexts, default=SHORTEST_WINDOW) < SHORTEST_WINDOW:
        yield Problem(
            field="training.stages",
            problem=f"{', '.join(stages)}: windows must rise from {SHORTEST_WINDOW} tokens or more",
            remedy="order them by context, each context once",
        )
    others = [name for name in ("hours", "tier", "context", "epochs") if training.get(name) is not None]
    if stages and others:
        yield Problem(
            field="training.stages",
            problem=f"training.{others[0]} is set too, and stages already say every update",
            remedy="leave one of them out",
        )
    if hours is not None and training.get("context") is not None:
        yield Problem(
            field="training.hours",
            problem="training.context is set too, and the hours choose the windows",
            remedy="leave one of them out; a tier may be set, as the highest",
        )
    if (stages or hours is not None) and training.get("curriculum"):
        yield Problem(
            field="training.curriculum",
            problem="the windows of this run grow by stages already",
            remedy="leave it out",
        )


def _find_layout_conflicts(stream: dict[str, Any], data: dict[str, Any]) -> Iterator[Problem]:
    """Finds settings of the streamed step that no plan can follow."""
    fixed = {name: value for name, value in stream.items() if value is not None}
    if not fixed:
        return
    first = next(iter(fixed))
    if data.get("training", {}).get("step") == "whole":
        yield Problem(
            field=f"stream.{first}",
            problem="training.step is whole, and this is a choice of the streamed step",
            remedy="leave it out, or set training.step to auto or streamed",
        )
    if fixed.get("kv_home") == "host" and fixed.get("hidden_home") == "gpu":
        yield Problem(
            field="stream.hidden_home",
            problem="the hidden states of all layers are larger than one layer's keys and values on the host",
            remedy="set stream.hidden_home to host or disk, or leave it out",
        )
    if fixed.get("kv_home") == "host" and fixed.get("gradient_home") == "gpu":
        yield Problem(
            field="stream.gradient_home",
            problem="the gradient stream would grow with the context on the GPU, which keys and values have left",
            remedy="set stream.gradient_home to host or disk, or leave it out",
        )
    if fixed.get("kv_home") == "host" and fixed.get("stash_home") == "gpu" and fixed.get("stash", True):
        yield Problem(
            field="stream.stash_home",
            problem="attention outputs of all layers are larger than one layer's keys and values on the host",
            remedy="set stream.stash_home to host or disk, or leave it out",
        )
    if fixed.get("tile", 0) > fixed.get("key_block", math.inf):
        yield Problem(
            field="stream.key_block",
            problem=f"{fixed['key_block']:,} is less than stream.tile, and a tile sees itself in one call",
            remedy="set it to at least stream.tile, or leave it out",
        )


def _unknown(path: str, known: list[str], what: str) -> Problem:
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return Problem(field=path, problem=f"unknown {what}", remedy=remedy)
