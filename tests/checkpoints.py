"""Small states to save, and how to compare what comes back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stratrun.checkpoint import Checkpointer
from stratrun.distributed import Collectives, ProcessEnv
from stratrun.storage import Folder


def checkpointer(place: Any, run_id: str = "run") -> Checkpointer:
    folder = place if isinstance(place, Folder) else Folder(place)
    return Checkpointer(folder, Collectives(ProcessEnv()), run_id=run_id)


def shared_state(step: int) -> dict[str, Any]:
    random = torch.Generator().manual_seed(step)
    weight = torch.randn(5, 7, generator=random)
    return {
        "model": {
            "fc.weight": weight,
            "tied.weight": weight,
            "fc.bias": torch.randn(5, generator=random).bfloat16(),
        },
        "optimizers": {"main": {"state": {"fc.weight": {"exp_avg": torch.randn(5, 7, generator=random)}}}},
        "train": {"iter": step, "loss": 0.1 * step, "best": float("inf")},
    }


def own_state(step: int, rank: int = 0) -> dict[str, Any]:
    return {"rng": {"python": [3, [step, rank], None], "torch": torch.arange(9) * step + rank}, "rank": rank}


@contextmanager
def full_disk(point: str) -> Iterator[None]:
    """No space for files whose names start with `point`."""
    opened, written = Folder.open, Folder.write_blocks

    def refuse(path: str) -> None:
        if path.startswith(point):
            raise OSError(28, "No space left on device", path)

    def opening(self: Folder, path: str, mode: Any = "rb") -> Any:
        if mode == "wb":
            refuse(path)
        return opened(self, path, mode)

    def writing(self: Folder, path: str, blocks: Any) -> None:
        refuse(path)
        written(self, path, blocks)

    Folder.open, Folder.write_blocks = opening, writing  # type: ignore[method-assign]
    try:
        yield
    finally:
        Folder.open, Folder.write_blocks = opened, written  # type: ignore[method-assign]


def same(one: Any, other: Any) -> bool:
    """Equal in type, structure and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and _bits(one) == _bits(other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


def _bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
