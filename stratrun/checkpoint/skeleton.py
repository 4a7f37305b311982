"""Nested state out of JSON and named tensors. Nothing in it can choose a class or run code.

What holds no tensor comes back without torch: so listing what is noted in checkpoints needs none.
"""

import base64
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from stratrun.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def unflatten(skeleton: Any, tensors: Mapping[str, "Tensor"]) -> Any:
    """The tree again.

    Raises:
        CheckpointError: the skeleton is not one that `flatten` made, or a tensor is missing.
    """
    if isinstance(skeleton, list):
        return [unflatten(value, tensors) for value in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    tag = next(iter(skeleton), "")
    if not tag.startswith("$"):
        return {key: unflatten(value, tensors) for key, value in skeleton.items()}
    decode = _DECODERS.get(tag)
    if decode is None or len(skeleton) != 1:
        raise CheckpointError(f"{tag!r} is no kind of value that this version of stratrun knows")
    try:
        return decode(skeleton[tag], tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"a value of kind {tag!r} cannot be restored: {error}") from error


def tensor_names(skeleton: Any) -> set[str]:
    """Names of the tensors that `unflatten` will ask for."""
    if isinstance(skeleton, list):
        return set().union(*map(tensor_names, skeleton))
    if isinstance(skeleton, dict):
        name = skeleton.get("$tensor")
        return {name} if isinstance(name, str) else set().union(*map(tensor_names, skeleton.values()))
    return set()


def entries_of(skeleton: Any) -> dict[str, Any]:
    """The entries of a mapping, by key, as skeletons; none for anything else.

    Raises:
        CheckpointError: the skeleton is not one that `flatten` made.
    """
    if not isinstance(skeleton, dict):
        return {}
    tag = next(iter(skeleton), "")
    if not tag.startswith("$"):
        return skeleton
    try:
        if tag == "$module":
            return entries_of(skeleton[tag][0])
        return {str(key): value for key, value in skeleton[tag]} if tag in _MAPPING_TAGS else {}
    except (TypeError, ValueError, LookupError) as error:
        raise CheckpointError(f"a value of kind {tag!r} cannot be restored: {error}") from error


def _pairs(pairs: Any, tensors: Mapping[str, "Tensor"]) -> list[tuple[Any, Any]]:
    return [(unflatten(key, tensors), unflatten(value, tensors)) for key, value in pairs]


def _module(parts: Any, tensors: Mapping[str, "Tensor"]) -> Any:
    state = OrderedDict(unflatten(parts[0], tensors))
    state._metadata = OrderedDict(unflatten(parts[1], tensors))  # type: ignore[attr-defined]
    return state


def _torch() -> Any:
    import torch

    return torch


_MAPPING_TAGS = ("$dict", "$ordered", "$counter")
_DECODERS: dict[str, Callable[[Any, Mapping[str, "Tensor"]], Any]] = {
    "$tensor": lambda name, tensors: tensors[name],
    "$complex": lambda value, tensors: _torch().view_as_complex(unflatten(value, tensors)),
    "$numpy": lambda value, tensors: unflatten(value, tensors).numpy(),
    "$tuple": lambda items, tensors: tuple(unflatten(items, tensors)),
    "$size": lambda items, tensors: _torch().Size(items),
    "$deque": lambda parts, tensors: deque(unflatten(parts[0], tensors), parts[1]),
    "$dict": lambda pairs, tensors: dict(_pairs(pairs, tensors)),
    "$ordered": lambda pairs, tensors: OrderedDict(_pairs(pairs, tensors)),
    "$counter": lambda pairs, tensors: Counter(dict(_pairs(pairs, tensors))),
    "$module": _module,
    "$bytes": lambda text, tensors: base64.b64decode(text, validate=True),
    "$float": lambda text, tensors: float(text),
}
