"""What a rank brings to a save, taken apart so that files can hold it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stratrun.checkpoint.tree import Flattening, flatten
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
    divided: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By their paths, those mappings within `shared` of which each rank has entries of its own."""

    def take(self, divided: Mapping[str, Mapping[str, Any]]) -> None:
        """Put what another rank has of the divided mappings beside what is here.

        Raises:
            CheckpointError: the ranks do not divide the same.
        """
        if divided.keys() != self.divided.keys():
            which = min(divided.keys() ^ self.divided.keys())
            raise CheckpointError(f"{which!r} of the shared state is divided on some ranks only")
        for path, entries in divided.items():
            twice = entries.keys() & self.divided[path].keys()
            if twice:
                raise CheckpointError(f"two ranks have an entry {min(twice)!r} of {path!r}, which is divided")
            self.divided[path].update(entries)


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
    flattening = Flattening()
    made.shared = flattening.encode(shared, ())
    made.divided, common = flattening.divided, flattening.tensors
    if not ranks.is_main:
        common = {
            name: tensor
            for name, tensor in common.items()
            if hasattr(tensor, "placements") or name in flattening.apart
        }
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
