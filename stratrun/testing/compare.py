"""Saying how two runs differ."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

EXACT = 1e-6
"""In float32: what sums in another order may differ by, of the largest value of a tensor."""


def differences(found: Mapping[str, Tensor], truth: Mapping[str, Tensor], tolerance: float = EXACT) -> str:
    """What is other than it should be, the worst first; empty when nothing is."""
    names = _names(found, truth)
    if names:
        return names
    shapes = [
        f"{name} has shape {tuple(found[name].shape)} instead of {tuple(truth[name].shape)}"
        for name in truth
        if found[name].shape != truth[name].shape
    ]
    if shapes:
        return "; ".join(shapes[:3])
    far = {name: distance(found[name], truth[name]) for name in truth}
    wrong = sorted((name for name in far if not far[name] <= tolerance), key=lambda name: -far[name])
    if not wrong:
        return ""
    worst = wrong[0]
    return (
        f"{len(wrong)} of {len(truth)} parameters differ, {worst!r} most: by {far[worst]:.1e} of its largest "
        f"value, where {tolerance:.0e} is allowed ({_some(found[worst])} instead of {_some(truth[worst])})"
    )


def farthest(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    return max((distance(found[name], truth[name]) for name in truth), default=0.0)


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value, or to 0.1 where all are smaller."""
    if not other.numel():
        return 0.0
    gap = (one.double() - other.double()).abs().max()
    return float(torch.nan_to_num(gap / other.double().abs().max().clamp_min(0.1), nan=float("inf")))


def numbers(found: Sequence[float], truth: Sequence[float], tolerance: float = 1e-5) -> str:
    """The first of two rows of numbers that differs; empty when none does."""
    if len(found) != len(truth):
        return f"there are {len(found)} instead of {len(truth)}"
    for number, (one, other) in enumerate(zip(found, truth, strict=True), 1):
        if not abs(one - other) <= tolerance * max(abs(other), 1e-6):
            return f"the {_ordinal(number)} is {one:.6g} instead of {other:.6g}"
    return ""


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def _names(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> str:
    added, lost = sorted(set(found) - set(truth)), sorted(set(truth) - set(found))
    if not added and not lost:
        return ""
    said = [f"not the model's: {_few(added)}"] if added else []
    return "; ".join([*said, *([f"lacking: {_few(lost)}"] if lost else [])])


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _some(tensor: Tensor) -> str:
    values = [f"{value:.4g}" for value in tensor.flatten()[:3].tolist()]
    return f"[{', '.join(values)}{', ...' if tensor.numel() > 3 else ''}]"
