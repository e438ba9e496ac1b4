"""Converts state dictionaries of any library to JSON and tensors, and back, for checkpoints.

Optimisers, schedules and other stateful components return nested dictionaries, lists and tuples of tensors and
numbers, with keys that need not be text. `split` takes the tensors out and leaves a JSON value with their names;
`join` puts them back. Neither runs code from the file, as unpickling would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_TENSOR, _ITEMS, _TUPLE, _FLOAT = "$tensor", "$items", "$tuple", "$float"
_MARKS = (_TENSOR, _ITEMS, _TUPLE, _FLOAT)


def split(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Splits a state into a JSON value and its tensors by name.

    Tensors are copied to the host in their shapes and dtypes. Functions become null, as in torch's own state.

    Raises:
        TypeError: the state holds a value that is neither a tensor nor representable in JSON.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(tree, "", tensors), tensors


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path
        while name in tensors:  # the keys 0 and "0" give the same name, and so do "a.b" and b in a
            name += "'"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: name}
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and not any(mark in value for mark in _MARKS):
            return {key: _encode(item, _join(path, key), tensors) for key, item in value.items()}
        return {_ITEMS: [[_encode(k, path, tensors), _encode(v, _join(path, k), tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, _join(path, index), tensors) for index, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if callable(value):
        return None
    raise TypeError(f"{path or 'state'} holds a {type(value).__name__}, which a checkpoint cannot keep")


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Rebuilds a state from the two results of `split`, with copies of the tensors in their shapes and dtypes.

    Raises:
        KeyError, TypeError, ValueError: the two do not belong together.
    """
    if isinstance(value, list):
        return [join(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return torch.clone(tensors[value[_TENSOR]])
    if _FLOAT in value:
        return float(value[_FLOAT])
    if _TUPLE in value:
        return tuple(join(item, tensors) for item in value[_TUPLE])
    if _ITEMS in value:
        return {join(key, tensors): join(item, tensors) for key, item in value[_ITEMS]}
    return {key: join(item, tensors) for key, item in value.items()}
