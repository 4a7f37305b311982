"""Whether a state is what a checkpoint can keep."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stratrun.testing.report import Wrong


def refuse_unplain(state: Any, where: str) -> None:
    """
    Raises:
        Wrong: something in it is neither tensor, number, string, None, nor a list or dict of these.
    """
    if isinstance(state, Mapping):
        for key, value in state.items():
            if not isinstance(key, str):
                raise Wrong(f"{where} has the key {key!r}, which is no string")
            refuse_unplain(value, f"{where}[{key!r}]")
    elif isinstance(state, list | tuple):
        for i, value in enumerate(state):
            refuse_unplain(value, f"{where}[{i}]")
    elif not (state is None or isinstance(state, Tensor | bool | int | float | str)):
        raise Wrong(
            f"{where} is a {type(state).__name__}, which no checkpoint keeps",
            "a state is made of tensors, numbers, strings, and lists and dicts of them",
        )


def differing(one: Any, other: Any, where: str = "state_dict()", tolerance: float = 0.0) -> str:
    """Where two states differ; empty if nowhere."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if set(one) != set(other):
            return f"{where} has the keys {sorted(one)} and {sorted(other)}"
        return next(
            (d for key in one if (d := differing(one[key], other[key], f"{where}[{key!r}]", tolerance))), ""
        )
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return f"{where} has {len(one)} and {len(other)} entries"
        pairs = enumerate(zip(one, other, strict=True))
        return next((d for i, (a, b) in pairs if (d := differing(a, b, f"{where}[{i}]", tolerance))), "")
    return "" if _same(one, other, tolerance) else f"{where} is {_shown(one)} and {_shown(other)}"


def _same(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        close = torch.allclose(one, other, tolerance, tolerance, equal_nan=True)
        return close if one.is_floating_point() else torch.equal(one, other)
    if isinstance(one, float) and isinstance(other, float):
        both_nan = math.isnan(one) and math.isnan(other)
        return both_nan or math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return bool(one == other)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {value.flatten()[:3].tolist()}"
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
