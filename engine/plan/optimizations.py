"""The registry of optimisations: description, switch and state in a run.

The rows are in assets/optimizations.toml, in the order of the documents. The configuration's own sections hold the
truth about what is on. This module translates between the two::

    optimizations()               every row
    states(config, machine, ...)  which of them act in a run on a machine, with their effects
    toggle(config, id, on)        the configuration with one of them switched
    refuse_conflicts(config, ...) raises where two enabled ones exclude each other

A new technique is one file that implements it, one row, and one proof (engine/verify).
"""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from engine.assets import asset
from engine.config import RunConfig, field_spec, from_mapping, to_mapping
from engine.errors.planning import OPTIMIZATION_CONFLICT, OPTIMIZATION_UNKNOWN

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Group = Literal["extreme", "standard", "beyond"]
_UNSET = "unset"
"""Stands for None in the file: TOML has no null."""


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """One row of the registry."""

    id: str
    name: str
    group: Group
    sentence: str
    "One plain sentence of description."
    paper: str
    'Title and arXiv identifier of the first source, or "–".'
    exact: bool
    "Whether training computes the same result without it; False is an approximation or a random disturbance."
    requires: tuple[str, ...]
    "Identifiers that must be on as well."
    conflicts: tuple[str, ...]
    "Identifiers that cannot be on as well; both rows of a pair name each other."
    conflict_reasons: Mapping[str, str]
    switch_on: Mapping[str, Any]
    "Configuration path → value. Empty: chosen by the plan, or always on."
    switch_off: Mapping[str, Any]
    implemented_in: str
    "Path of the module."
    proof: str
    "module:function that `engine verify` runs."
    papers: tuple[str, ...]
    "arXiv identifiers, in assets/papers.toml."
    source: str
    "Source other than the papers."
    needs: tuple[str, ...]
    "Keys of engine.plan.optimization_states.NEEDS."
    effect: str
    "Effect on memory and time, in words."
    default: str
    "When it is on by default."


@dataclass(frozen=True, kw_only=True)
class Paper:
    """One paper of the bibliography."""

    arxiv: str
    title: str
    authors: str
    year: int

    @property
    def url(self) -> str:
        """Address of its abstract."""
        return f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True, kw_only=True)
class OptimizationState:
    """State of one optimisation in a run. Effects are predicted; None is unknown, or too small for a number."""

    id: str
    state: Literal["on", "off", "unavailable"]
    reason: str
    "Reason for the state; with the remedy, where it is unavailable."
    gpu_bytes: int | None = None
    "Signed change of the GPU's peak, on minus off."
    host_bytes: int | None = None
    step_seconds: float | None = None
    "Signed change of one update's seconds."


@functools.cache
def papers() -> Mapping[str, Paper]:
    """Returns every paper by arXiv identifier."""
    data = tomllib.loads(asset("papers.toml").read_text(encoding="utf-8"))
    return MappingProxyType({arxiv: Paper(arxiv=arxiv, **entry) for arxiv, entry in data.items()})


@functools.cache
def optimizations() -> tuple[Optimization, ...]:
    """Returns every row, in the order of the file."""
    data = tomllib.loads(asset("optimizations.toml").read_text(encoding="utf-8"))
    conflicts: dict[str, dict[str, str]] = {name: {} for name in data}
    for name, row in data.items():
        for other, reason in row.get("conflicts", {}).items():
            conflicts[name][other] = reason
            conflicts[other].setdefault(name, reason)
    return tuple(_row(name, row, conflicts[name]) for name, row in data.items())


def _row(name: str, row: Mapping[str, Any], conflicts: dict[str, str]) -> Optimization:
    cited = tuple(row.get("papers", ()))
    first = papers()[cited[0]] if cited else None
    return Optimization(
        id=name,
        name=row["name"],
        group=row["group"],
        sentence=row["sentence"],
        paper=f"{first.title} (arXiv {first.arxiv})" if first else row.get("source", "–"),
        exact=row["exact"],
        requires=tuple(row.get("requires", ())),
        conflicts=tuple(conflicts),
        conflict_reasons=MappingProxyType(conflicts),
        switch_on=_values(row.get("on", {})),
        switch_off=_values(row.get("off", {})),
        implemented_in=row["implemented_in"],
        proof=row["proof"],
        papers=cited,
        source=row.get("source", ""),
        needs=tuple(row.get("needs", ())),
        effect=row["effect"],
        default=row["default"],
    )


def _values(switch: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType({path: None if value == _UNSET else value for path, value in switch.items()})


def find_optimization(name: str) -> Optimization:
    """Returns the row of an identifier.

    Raises:
        EliteError: OPTIMIZATION_UNKNOWN, with the nearest one.
    """
    rows = {row.id: row for row in optimizations()}
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1, cutoff=0.4)
        raise OPTIMIZATION_UNKNOWN(id=name, suggestion=f"did you mean {near[0]}?" if near else "check the name")
    return rows[name]


def value_at(config: RunConfig, path: str) -> Any:
    """Returns the value of one field by its dotted path."""
    section, _, name = path.partition(".")
    return getattr(getattr(config, section), name)


_ALSO_ON = {"adamw_8bit": ("paged_adamw_8bit",), "lr_scaling": ("linear",), "activation_offload": ("disk",)}
"""Other values of a row's field that count as on."""


def is_switched_on(config: RunConfig, row: Optimization) -> bool:
    """Whether the configuration alone switches the row on. Rows without a switch are never switched on by it.

    A choice must equal the row's own value ("auto" or null leaves it to the plan), as must a number whose zero means
    automatic. Of other numbers every value except the "off" one counts: a LoRA+ ratio of 8 as well as 16.
    """

    def asks(path: str) -> bool:
        value, on = value_at(config, path), row.switch_on[path]
        if value is None:
            return bool(on is None)
        if isinstance(on, str) or not on:
            return bool(value == on or value in _ALSO_ON.get(row.id, ()))
        return bool(value != row.switch_off[path])

    return bool(row.switch_on) and all(asks(path) for path in row.switch_on)


def _holds_the_switch(row: Optimization, config: RunConfig) -> bool:
    """Whether another optimisation is on through a field that also switches this one."""
    others = (other for other in optimizations() if other.id != row.id)
    return any(
        not row.switch_off.keys().isdisjoint(other.switch_on) and is_switched_on(config, other) for other in others
    )


def toggle(config: RunConfig, optimization: str, on: bool) -> RunConfig:
    """Returns the configuration with one optimisation switched; switching off resets the fields of its parts too.

    Raises:
        EliteError: OPTIMIZATION_UNKNOWN; OPTIMIZATION_CONFLICT with the reason: it has no switch, or another one that
            is on excludes it, or one that it requires was switched off.
    """
    row = find_optimization(optimization)
    word = "on" if on else "off"
    if not row.switch_on:
        raise OPTIMIZATION_CONFLICT(
            id=row.id, to=word, reason="it has no switch", remedy=f"by default it is {row.default}"
        )
    asked = is_switched_on(config, row)
    if asked == on and (on or _holds_the_switch(row, config)):
        return config
    if on:
        for other in row.conflicts:
            if is_switched_on(config, find_optimization(other)):
                raise OPTIMIZATION_CONFLICT(
                    id=row.id,
                    to=word,
                    reason=f"{row.conflict_reasons[other]} ({other})",
                    remedy=_how_to_switch_off(find_optimization(other)),
                )
        for other in row.requires:
            needed = find_optimization(other)
            if all(value_at(config, path) == value for path, value in needed.switch_off.items()):
                raise OPTIMIZATION_CONFLICT(
                    id=row.id, to=word, reason=f"it is a part of {other}, which is off", remedy=f"switch {other} on"
                )
    values = row.switch_on if on else {**_defaults_of_parts(row), **row.switch_off}
    return with_values(config, values, source=row.id)


def _defaults_of_parts(row: Optimization) -> dict[str, Any]:
    """Defaults of the fields that belong to its parts, which mean nothing without the whole."""
    parts = [part for part in optimizations() if row.id in part.requires]
    return {path: field_spec(path).default for part in parts for path in part.switch_off}


def with_values(config: RunConfig, values: Mapping[str, Any], source: str) -> RunConfig:
    """Returns the configuration with some fields set, by dotted path.

    Raises:
        EliteError: CONFIG_INVALID.
    """
    data = to_mapping(config)
    for path, value in values.items():
        section, _, name = path.partition(".")
        data[section][name] = value
    return from_mapping(data, source=source)


def may_stream(config: RunConfig) -> bool:
    """Whether a run may fall back to the streamed step on OOM: nothing that it sets excludes that.

    A micro-batch does not: the streamed step has none, and it only served speed.
    """
    excluding = (find_optimization(other) for other in find_optimization("streamed_backprop").conflicts)
    return not any(is_switched_on(config, row) for row in excluding if row.id != "auto_batch_size")


def refuse_conflicts(config: RunConfig, *, streamed: bool) -> None:
    """Checks that no two optimisations of a run exclude each other.

    Args:
        config: The run.
        streamed: Whether its step is streamed, by configuration or by plan.

    Raises:
        EliteError: OPTIMIZATION_CONFLICT with the reason and what to switch.
    """
    on = {row.id: row for row in optimizations() if is_switched_on(config, row)}
    if streamed:
        on["streamed_backprop"] = find_optimization("streamed_backprop")
    else:
        on.pop("streamed_backprop", None)
    usual = RunConfig()
    # Name the user's own settings first; report defaults as the obstacle.
    for row in sorted(on.values(), key=lambda row: is_switched_on(usual, row) or row.id == "streamed_backprop"):
        for other in row.conflicts:
            if other not in on:
                continue
            remedy = _how_to_switch_off(find_optimization(other))
            if other == "streamed_backprop":
                remedy = f"set training.step=whole with a shorter context, or {_how_to_switch_off(row)}"
            raise OPTIMIZATION_CONFLICT(
                id=row.id, to="on", reason=f"{row.conflict_reasons[other]} ({other})", remedy=remedy
            )


def _how_to_switch_off(row: Optimization) -> str:
    settings = " ".join(f"--set {path}={_as_yaml(value)}" for path, value in row.switch_off.items())
    return f"switch {row.id} off ({settings})"


def _as_yaml(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else "null" if value is None else str(value)
