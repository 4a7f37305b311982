"""What a model gave for a sample, as a line of JSON and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch


def json_line(value: Any) -> str:
    """A value as JSON: tensors as lists, numbers that are not finite, which JSON has none for, as strings."""
    plain = _plain(value)
    line = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        # Half of a character, as texts that were cut may end with, has no bytes.
        return json.dumps(plain, allow_nan=False)
    return line


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor) and value.layout is not torch.strided:
        value = value.to_dense()
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)


def value_of(line: str) -> Any:
    """What `json_line` was given, tensors for lists of numbers: float32, int64 or bool."""
    return _tensors(json.loads(line))


def _tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        numbers = _numbers(value)
        return [_tensors(item) for item in value] if numbers is None else numbers
    return _number(value)


def _numbers(value: list[Any]) -> torch.Tensor | None:
    """A tensor of what is nothing but numbers, in rows of one length."""
    try:
        return torch.tensor(_each_number(value))
    except (TypeError, ValueError, RuntimeError):
        return None


def _each_number(value: Any) -> Any:
    return [_each_number(one) for one in value] if isinstance(value, list) else _number(value)


def _number(value: Any) -> Any:
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value
