"""What a rank brings to a save, taken apart so that files can hold it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stratrun.checkpoint.tree import flatten
from stratrun.distributed import Collectives
from stratrun.errors import CheckpointError
from stratrun.storage import Folder

_OWN = "rank-"


@dataclass(slots=True)
class Contribution:
    """What one rank brings to a save: plain values as JSON has them, and tensors by name."""

    own: Any = None
    shared: Any = None
    meta: Any = None
    tensors: dict[str, Tensor] = field(default_factory=dict)


def contribution(
    ranks: Collectives, shared: Any, own: Any, meta: Mapping[str, Any] | None, noted: Mapping[str, Any]
) -> Contribution:
    """Take the state of a rank apart. Tensors are neither copied nor moved.

    What is the same everywhere is the main rank's to write; the others bring what is sharded of it.

    Args:
        noted: What goes with `meta` whatever that is.

    Raises:
        CheckpointError: some of it cannot be saved; says where it sits.
    """
    made = Contribution()
    shared = shared() if callable(shared) else shared
    own = own() if callable(own) else own
    made.own, made.tensors = flatten(own, prefix=f"{_OWN}{ranks.rank:05d}/")
    spread = [name for name, tensor in made.tensors.items() if hasattr(tensor, "placements")]
    if spread:
        raise CheckpointError(f"{spread[0]!r} is spread over ranks, and is saved as the state of one alone")
    made.shared, common = flatten(shared)
    if not ranks.is_main:
        common = {name: tensor for name, tensor in common.items() if hasattr(tensor, "placements")}
    clash = [name for name in common if name.startswith(_OWN)]
    if clash:
        raise CheckpointError(f"no shared state may be called {clash[0].partition('/')[0]!r}")
    made.tensors.update(common)
    made.meta, unexpected = flatten({**(meta or {}), **noted})
    if unexpected:
        raise CheckpointError(f"meta must hold plain values; {next(iter(unexpected))!r} is a tensor")
    return made


@dataclass(frozen=True, slots=True)
class Target:
    """The checkpoint that is to come about."""

    folder: Folder
    step: int
    run_id: str

    def __str__(self) -> str:
        return f"saving step {self.step} to {self.folder}"
