"""Small states to save, and how to compare what comes back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stratrun.checkpoint import Attempt, Checkpointer, SnapshotPlanner, StoredCheckpoint
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
    opened, written, created = Folder.open, Folder.write_blocks, Folder.write_bytes

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

    def creating(self: Folder, path: str, data: bytes, exclusive: bool = False) -> None:
        refuse(path)
        created(self, path, data, exclusive)

    Folder.open, Folder.write_blocks = opening, writing  # type: ignore[method-assign]
    Folder.write_bytes = creating  # type: ignore[method-assign]
    try:
        yield
    finally:
        Folder.open, Folder.write_blocks = opened, written  # type: ignore[method-assign]
        Folder.write_bytes = created  # type: ignore[method-assign]


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


def odd_tensors() -> dict[str, torch.Tensor]:
    """Tensors whose bytes are easily got wrong."""
    random = torch.Generator().manual_seed(7)
    wide = torch.randn(6, 8, generator=random)
    numbers = torch.randn(5, dtype=torch.complex64, generator=random)
    return {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0),
        "empty/of two": torch.empty(3, 0),
        "one byte": torch.tensor([True]),
        "bf16": wide.bfloat16(),
        "fp8": wide.to(torch.float8_e4m3fn),
        "uint64": torch.tensor([2**63 + 5, 1], dtype=torch.uint64),
        "transposed": wide.t(),
        "strided": wide[::2, ::3],
        "expanded": torch.tensor([1.5]).expand(4),
        "part of more": wide[2:4],
        "conjugated": numbers.conj(),
        "negated": numbers.conj().imag,
        "parameter": torch.nn.Parameter(wide.clone()),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        'quote"\\u00fc/\n': torch.arange(3),
        "__metadata__": torch.arange(2),
    }


def save_tensors(
    root: Folder, live: Any, step: int = 1, run_id: str = "run", planner: Any = None
) -> StoredCheckpoint:
    """A checkpoint of tensors by name, saved by one process."""
    attempt = Attempt(root, step, run_id, "t0ken")
    writer, planner = attempt.writer(), planner or SnapshotPlanner(live)
    plans, metadata = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    results = writer.write_data(planner.finish_plan(plans[0]), planner).wait()
    attempt.commit(metadata, [results])
    return StoredCheckpoint(root.child(f"step-{step:08d}"))
