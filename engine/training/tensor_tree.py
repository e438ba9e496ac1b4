"""State dictionaries of any library, as JSON and tensors: what a checkpoint holds, and never more than data.

Optimisers, schedules and whatever else keeps state return nested dictionaries, lists and tuples of tensors and
numbers, with keys that need not be text. `split` takes the tensors out and leaves a JSON value with their names;
`join` puts them back. No step of it runs code, as unpickling would.
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
    """A JSON value and the tensors by name, copied to the host. Functions become null, as in torch's own state.

    Raises:
        TypeError: something in it is neither a tensor nor a value that JSON has.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(tree, "", tensors), tensors


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path
        while name in tensors:  # 0 and "0" are two keys with one name, and so are "a.b" and b in a
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
    """What was split, with copies of the tensors: the originals stay as they are.

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
