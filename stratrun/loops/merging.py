"""Outputs for several views of a batch as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stratrun.data.rows import is_array
from stratrun.errors import ModelError

Merge = Callable[[Sequence[Any]], Any]


def tensors_in(batch: Any) -> set[int]:
    """The identities of the tensors of a batch."""
    if isinstance(batch, Tensor):
        return {id(batch)}
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    elif is_dataclass(batch) and not isinstance(batch, type):
        batch = [getattr(batch, field.name) for field in fields(batch)]
    return set().union(*map(tensors_in, batch)) if isinstance(batch, list | tuple) else set()


def apart(outputs: Any, given: set[int]) -> Any:
    """Outputs in memory of their own: a model may write those for the next view over these.

    Tensors of the batch, whose identities are `given`, stay what they are, as do those that are not merged.
    """
    if isinstance(outputs, Tensor):
        merged = outputs.is_floating_point() or outputs.is_complex()
        return outputs.clone() if merged and id(outputs) not in given else outputs
    if type(outputs) is dict:
        return {key: apart(one, given) for key, one in outputs.items()}
    if type(outputs) in (list, tuple):
        return type(outputs)(apart(one, given) for one in outputs)
    return outputs.copy() if is_array(outputs) else outputs


def mean(views: Sequence[Any]) -> Any:
    """The mean of each floating point value. Half precision is summed in single precision."""
    return _merged(views, _mean, "outputs")


def largest(views: Sequence[Any]) -> Any:
    """The largest of each floating point value."""
    return _merged(views, lambda values: torch.stack(list(values)).amax(0), "outputs")


MERGES: dict[str, Merge] = {"mean": mean, "max": largest}


def _merged(views: Sequence[Any], merge: Callable[[Sequence[Tensor]], Tensor], where: str) -> Any:
    first = views[0]
    # What has come through as it was, such as targets of the batch, is of no view.
    if all(one is first for one in views):
        return first
    if any(type(one) is not type(first) for one in views):
        raise ModelError(f"{where} of some views are of another type than those of others: {_types(views)}")
    if is_array(first):
        return _tensors([torch.tensor(one) for one in views], merge, where).numpy()
    if isinstance(first, Tensor):
        return _tensors(views, merge, where)
    if isinstance(first, Mapping):
        _refuse_other_keys(views, where)
        merged = {key: _merged([one[key] for one in views], merge, f"{where}[{key!r}]") for key in first}
        return merged
    if is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in fields(first) if field.init]
        parts = {n: _merged([getattr(one, n) for one in views], merge, f"{where}.{n}") for n in names}
        return replace(first, **parts)
    if isinstance(first, list | tuple):
        if len({len(one) for one in views}) > 1:
            raise ModelError(f"{where} have other lengths in other views; give merge= a function of your own")
        parts_of = [_merged(one, merge, f"{where}[{i}]") for i, one in enumerate(zip(*views, strict=True))]
        return parts_of if isinstance(first, list) else _tuple_like(first, parts_of)
    return _scalars(views, merge, where)


def _scalars(views: Sequence[Any], merge: Callable[[Sequence[Tensor]], Tensor], where: str) -> Any:
    first = views[0]
    if isinstance(first, float):
        return float(merge([torch.tensor(one, dtype=torch.float64) for one in views]))
    if all(one == first for one in views):
        return first
    raise ModelError(_no_merge(where, f"{type(first).__name__} that differ"))


def _tensors(views: Sequence[Tensor], merge: Callable[[Sequence[Tensor]], Tensor], where: str) -> Tensor:
    if not (views[0].is_floating_point() or views[0].is_complex()):
        raise ModelError(_no_merge(where, f"a tensor of {str(views[0].dtype).removeprefix('torch.')}"))
    shapes = {tuple(one.shape) for one in views}
    if len(shapes) > 1:
        raise ModelError(
            f"{where} have shapes {', '.join(map(str, sorted(shapes)))} in the views; give a view that moves "
            "or resizes its outputs an inverse=, or merge= a function of your own"
        )
    return merge(views)


def _mean(values: Sequence[Tensor]) -> Tensor:
    dtype = values[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    return torch.stack([one.to(wide) for one in values]).mean(0).to(dtype)


def _tuple_like(first: Any, parts: list[Any]) -> Any:
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def _refuse_other_keys(views: Sequence[Mapping[Any, Any]], where: str) -> None:
    for one in views:
        if one.keys() != views[0].keys():
            raise ModelError(f"{where} have other keys in other views: {list(views[0])} and {list(one)}")


def _no_merge(where: str, what: str) -> str:
    return (
        f"{where} hold {what}, which has no mean and no maximum; have the model return scores or "
        "probabilities, or give merge= a function of the list of outputs"
    )


def _types(views: Sequence[Any]) -> str:
    return ", ".join(sorted({type(one).__name__ for one in views}))
