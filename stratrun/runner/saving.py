"""How a run saves: `checkpoint_cfg`, and what is tried out before the first step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from stratrun.checkpoint import Checkpointer
from stratrun.distributed import Collectives
from stratrun.engine import Engine
from stratrun.errors import ConfigError, StorageError, nearest
from stratrun.storage import Folder

# The new one is written before an old one goes, and neither fills a disk to the last byte.
_ROOM = 2.2


@dataclass(frozen=True, slots=True)
class SaveSettings:
    """What `checkpoint_cfg` may set."""

    asynchronous: bool = True
    """Write beside training, which waits for a copy in host memory only."""
    deadline: float = 600.0
    """Seconds that a save may take before it is an error."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """For the fsspec file system of a `work_dir` or `resume` that is a URL: keys, endpoint, profile."""


def parse_saving(spec: Any) -> SaveSettings:
    """Raises ConfigError for an unknown setting, or a value of the wrong kind."""
    known = [one.name for one in fields(SaveSettings)]
    if spec is None:
        return SaveSettings()
    if not isinstance(spec, Mapping):
        raise ConfigError(f"checkpoint_cfg={spec!r} must be a dict; its settings are {', '.join(known)}")
    for key in spec:
        if key not in known:
            raise ConfigError(f"checkpoint_cfg has no setting {key!r}; {nearest(str(key), known)}")
    settings = SaveSettings(**spec)
    if not isinstance(settings.asynchronous, bool):
        raise ConfigError(f"checkpoint_cfg: asynchronous={settings.asynchronous!r} must be True or False")
    limit = settings.deadline
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
        raise ConfigError(f"checkpoint_cfg: deadline={limit!r} must be a number of seconds above 0")
    if not isinstance(settings.storage_options, Mapping):
        raise ConfigError("checkpoint_cfg: storage_options must be a dict of options of the file system")
    return settings


def prepare_saving(
    ranks: Collectives, checkpointer: Checkpointer, engine: Engine, settings: SaveSettings
) -> None:
    """Try from every machine whether the work dir can be written to and has room for two checkpoints.

    Then make the memory for copies of the state, which the first save would have to wait for.

    Raises:
        StorageError: on all ranks, before any work is lost.
    """
    folder = checkpointer.folder.parent
    expected = expected_size(engine.state_module, engine.optimizers)
    error: Exception | None = None
    if ranks.leads_node:
        try:
            folder.probe(f"{ranks.rank}")
            _check_free(folder, expected)
        except StorageError as caught:
            error = StorageError(f"work_dir={str(folder)!r}: {caught}; choose another work_dir", caught.errno)
    ranks.agree(error, f"trying out work_dir={str(folder)!r}")
    if settings.asynchronous and ranks.is_main:
        on_cuda = next((p.is_cuda for p in engine.state_module.parameters()), False)
        checkpointer.reserve(expected, pinned=on_cuda)


def expected_size(module: nn.Module, optimizers: Mapping[str, Optimizer]) -> int:
    """Bytes of weights, and of the state that the optimizers have, or will have by their settings."""
    total = sum(_bytes(value) for value in module.state_dict().values() if isinstance(value, Tensor))
    for optimizer in optimizers.values():
        if optimizer.state:
            values = (value for state in optimizer.state.values() for value in state.values())
            total += sum(_bytes(value) for value in values if isinstance(value, Tensor))
            continue
        for group in optimizer.param_groups:
            # Two moments where there are betas, one where there may be momentum or a mean square.
            copies = (
                2 + bool(group.get("amsgrad")) if "betas" in group else int(group.get("momentum", 1) != 0)
            )
            total += copies * sum(_bytes(p) for p in group["params"] if p.requires_grad)
    return total


def _check_free(folder: Folder, expected: int) -> None:
    free = folder.free_bytes()
    if free is not None and free < _ROOM * expected:
        raise StorageError(
            f"{folder} has {_told(free)} free, and a checkpoint will have about {_told(expected)}: "
            f"{_told(int(_ROOM * expected))} are needed, as an old one goes only after the new one is there; "
            "free some, or save nothing with default_hooks=dict(checkpoint=None)"
        )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _told(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
