"""Predictions as columns of tensors: one tensor for all rows where they have one shape, else one for each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stratrun.data.rows import is_array
from stratrun.errors import DataError

WHOLE = "prediction"
"""The column of predictions that are a tensor, and of no mapping or tuple."""
_NUMBERS = {"bool": torch.bool, "int": torch.int64, "float": torch.float64}
_HINT = "write format='jsonl', or have the model return tensors"


def taken_apart(prediction: Any) -> tuple[Any, dict[str, Tensor]]:
    """How a prediction is built, as JSON can tell it, and its tensors by their columns.

    Raises:
        DataError: there is something in it that is no tensor and no number.
    """
    columns: dict[str, Tensor] = {}
    return _shape_of(prediction, "", columns), columns


def put_together(shape: Any, take: Callable[[str], Tensor]) -> Any:
    """The reverse of `taken_apart`, `take` giving the tensor of a column.

    Raises:
        DataError: that is no such shape.
    """
    if shape is None:
        return None
    if not isinstance(shape, dict) or len(shape) != 1:
        raise DataError(f"{shape!r} does not say how a prediction is built")
    [(kind, inner)] = shape.items()
    if kind == "tensor":
        return take(str(inner))
    if kind in _NUMBERS:
        return take(str(inner)).item()
    if kind == "dict" and isinstance(inner, dict):
        return {key: put_together(one, take) for key, one in inner.items()}
    if kind in ("list", "tuple") and isinstance(inner, list):
        parts = [put_together(one, take) for one in inner]
        return parts if kind == "list" else tuple(parts)
    raise DataError(f"{kind!r} is no way in which a prediction is built")


def stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The columns of several predictions: ``name``, or ``name@0``, ``name@1``, ... where shapes differ."""
    columns: dict[str, Tensor] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if len({(one.shape, one.dtype) for one in values}) == 1:
            columns[name] = torch.stack(values)
        else:
            columns.update({f"{name}@{i}": one for i, one in enumerate(values)})
    return columns


def row_of(columns: Mapping[str, Tensor], name: str, row: int, where: str) -> Tensor:
    """
    Raises:
        DataError: there is no such column, or it has fewer rows.
    """
    if name in columns and columns[name].dim() and row < len(columns[name]):
        return columns[name][row]
    if f"{name}@{row}" in columns:
        return columns[f"{name}@{row}"]
    raise DataError(f"{where} lacks row {row} of {name!r}")


def _shape_of(value: Any, name: str, columns: dict[str, Tensor]) -> Any:
    if value is None:
        return None
    here = name or WHOLE
    if is_array(value, or_scalar=True) and value.dtype.kind in "biufc":
        value = torch.tensor(value)
    if isinstance(value, bool | int | float):
        return _number(value, here, columns)
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise DataError(f"{here} is a sparse tensor; return it dense, with .to_dense()")
        _put(columns, here, value)
        return {"tensor": here}
    if isinstance(value, Mapping):
        bad = next((key for key in value if not isinstance(key, str)), None)
        if bad is not None:
            raise DataError(f"{here} has the key {bad!r}, which is no text; {_HINT}")
        return {"dict": {key: _shape_of(one, _below(name, key), columns) for key, one in value.items()}}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_shape_of(one, _below(name, str(i)), columns) for i, one in enumerate(value)]}
    raise DataError(f"{here} is a {type(value).__name__}, which a file of tensors cannot hold; {_HINT}")


def _number(value: float, here: str, columns: dict[str, Tensor]) -> Any:
    kind = type(value).__name__
    if kind not in _NUMBERS:
        raise DataError(f"{here} is {kind}, which a file of tensors cannot hold; {_HINT}")
    if kind == "int" and not -(2**63) <= value < 2**63:
        raise DataError(f"{here} is {value}, which takes more than 64 bits; {_HINT}")
    _put(columns, here, torch.tensor(value, dtype=_NUMBERS[kind]))
    return {kind: here}


def _put(columns: dict[str, Tensor], name: str, value: Tensor) -> None:
    # The last is what safetensors calls its own part of the header.
    if name in columns or "@" in name or name == "__metadata__":
        raise DataError(f"a prediction has a part called {name!r}, which is not told from others; rename it")
    columns[name] = value


def _below(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
