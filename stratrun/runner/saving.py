"""How a run saves: `checkpoint_cfg`, and what is tried out before the first step."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from stratrun.checkpoint import Checkpointer
from stratrun.checkpoint.tree import flatten
from stratrun.distributed import Collectives
from stratrun.engine import Engine
from stratrun.errors import CheckpointError, ConfigError, StorageError, StratrunError, nearest
from stratrun.hooks.dispatch import HookList
from stratrun.optim.expected import expected_state
from stratrun.problems import part
from stratrun.runner.in_use import InUse
from stratrun.runner.persistence import named_hooks
from stratrun.seed import host_rng_state, set_host_rng_state
from stratrun.spread import is_spread, local_part
from stratrun.storage import Folder
from stratrun.storage.local import missing_folders, remove_empty
from stratrun.strategies.optimizer_shards import OptimizerShards

_LOG = logging.getLogger("stratrun.runner")

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
    """For the file system of a `work_dir`, `resume` or `load_from` that is a URL: keys, endpoint, profile."""


def parse_saving(spec: Any) -> SaveSettings:
    """Raises ConfigError for an unknown setting, or a value of the wrong kind."""
    known = [one.name for one in fields(SaveSettings)]
    if spec is None:
        return SaveSettings()
    if not isinstance(spec, Mapping):
        raise ConfigError(f"checkpoint_cfg={spec!r} must be a dict; its settings are {', '.join(known)}")
    for key in spec:
        with part():
            if key not in known:
                raise ConfigError(f"checkpoint_cfg has no setting {key!r}; {nearest(str(key), known)}")
    settings = SaveSettings(**{key: value for key, value in spec.items() if key in known})
    if not isinstance(settings.asynchronous, bool):
        raise ConfigError(f"checkpoint_cfg: asynchronous={settings.asynchronous!r} must be True or False")
    limit = settings.deadline
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
        raise ConfigError(f"checkpoint_cfg: deadline={limit!r} must be a number of seconds above 0")
    if not isinstance(settings.storage_options, Mapping):
        raise ConfigError("checkpoint_cfg: storage_options must be a dict of options of the file system")
    return settings


def prepare_saving(
    ranks: Collectives,
    checkpointer: Checkpointer,
    engine: Engine,
    settings: SaveSettings,
    mark: InUse,
    *,
    resumes: bool,
) -> None:
    """Try from every machine whether the work dir can be written to and has room for two checkpoints.

    Leave the mark of the run there. Then make the memory for copies of the state, which the first save
    would have to wait for.

    Args:
        resumes: Whether the run may go on from what is there; then another's mark, which may be that of
            a machine that was lost, is no reason not to.

    Raises:
        StorageError, CheckpointError: on all ranks, before any work is lost.
    """
    folder = checkpointer.folder.parent
    expected = expected_size(engine.state_module, engine.optimizers, engine.saved.shards)
    shown, made = f"work_dir={str(folder)!r}", list[str]()
    error: Exception | None = None
    if ranks.leads_node:
        path = folder.local_path()
        made = [] if path is None else missing_folders(str(path))
        try:
            _check_free(folder, expected)
            folder.probe(f"{ranks.rank}")
            if ranks.is_main:
                _mark(folder, mark, shown, resumes)
        except StorageError as caught:
            error = StorageError(f"{shown}: {caught}; choose another work_dir", caught.errno)
        except StratrunError as caught:
            error = caught
    try:
        ranks.agree(error, f"trying out {shown}")
    except StratrunError:
        mark.clear()
        remove_empty(made)
        raise
    brought = expected_size(engine.state_module, engine.optimizers, engine.saved.shards, brought_by=ranks)
    if settings.asynchronous and brought:
        on_cuda = next((p.is_cuda for p in engine.state_module.parameters()), False)
        checkpointer.reserve(brought, pinned=on_cuda)


def try_states(ranks: Collectives, hooks: HookList, engine: Engine) -> None:
    """Refuse state of hooks that could not be saved: now, and once more when an iteration is done.

    A hook may come by its state as late as in `before_train`: what is not to be had now is left to then.

    Raises:
        CheckpointError: on all ranks; names the hook.
    """

    def once_more(_: int) -> None:
        # Another list, as this one is being gone through.
        engine.watches = [watch for watch in engine.watches if watch is not once_more]
        _refuse_states(ranks, hooks, ready=True)

    _refuse_states(ranks, hooks, ready=False)
    engine.watches.append(once_more)


def _refuse_states(ranks: Collectives, hooks: HookList, *, ready: bool) -> None:
    error: CheckpointError | None = None
    numbers = host_rng_state()  # reading state might draw, and must not change the run
    for name, hook in named_hooks(hooks).items():
        try:
            state = hook.state_dict()
        except Exception as caught:
            if ready and error is None:
                error = CheckpointError(f"{name}.state_dict() failed: {type(caught).__name__}: {caught}")
                error.__cause__ = caught
            continue
        try:
            flatten({"hooks": {name: state}})
        except CheckpointError as caught:
            error = error or CheckpointError(f"{name}.state_dict() gives what cannot be saved: {caught}")
    set_host_rng_state(numbers)
    ranks.agree(error, "trying out the state of the hooks")


def _mark(folder: Folder, mark: InUse, shown: str, resumes: bool) -> None:
    holder = mark.set(folder)
    if holder is None:
        return
    if not resumes:
        raise CheckpointError(
            f"{shown} is that of a run that is training now, {holder}; give another one, or end that run"
        )
    _LOG.warning(
        "%s seems to be that of a run that is training now, %s; one of them will fail", shown, holder
    )


def expected_size(
    module: nn.Module,
    optimizers: Mapping[str, Optimizer],
    shards: OptimizerShards | None = None,
    *,
    brought_by: Collectives | None = None,
) -> int:
    """Bytes of weights, and of the state that the optimizers have, or will have by their settings.

    Args:
        shards: What says whose that state is, where it is divided.
        brought_by: Count what this rank will bring to a save: its part of what is spread over ranks, and
            of the rest all on the main rank, and nothing on others.
    """
    size = _whole if brought_by is None else partial(_brought, is_main=brought_by.is_main)
    total = sum(size(value) for value in module.state_dict().values() if isinstance(value, Tensor))
    if shards is not None:
        held = None if brought_by is None else shards.holds
        return total + sum(expected_state(one, _whole, held) for one in optimizers.values())
    for optimizer in optimizers.values():
        if optimizer.state:
            values = (value for state in optimizer.state.values() for value in state.values())
            total += sum(size(value) for value in values if isinstance(value, Tensor))
            continue
        total += expected_state(optimizer, size)
    return total


def _check_free(folder: Folder, expected: int) -> None:
    free = folder.free_bytes()
    if free is not None and free < _ROOM * expected:
        raise StorageError(
            f"{folder} has {_told(free)} free, and a checkpoint will have about {_told(expected)}: "
            f"{_told(int(_ROOM * expected))} are needed, as an old one goes only after the new one is there; "
            "free some, or save nothing with default_hooks=dict(checkpoint=None)"
        )


def _whole(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _brought(tensor: Tensor, *, is_main: bool) -> int:
    if is_spread(tensor):
        return _whole(local_part(tensor))
    return _whole(tensor) if is_main else 0


def _told(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
