"""Start and end of the process groups of a run."""

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from stratrun.distributed.env import ProcessEnv
from stratrun.errors import ConfigError, nearest

T = TypeVar("T")
Group = dist.ProcessGroup
_joins = count()
_lines = count()
_shared: dict[Any, Any] = {}


def join(env: ProcessEnv, backend: str, timeout: timedelta, device: torch.device) -> bool:
    """Start the default group, and say whether it was this call that did.

    A group that is already there is used as it is and stays its owner's to end.

    Raises:
        ConfigError: the launcher does not say where the ranks meet.
    """
    if not env.launched or dist.is_initialized():
        return False
    lacking = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if lacking:
        raise ConfigError(
            f"RANK={env.rank} and WORLD_SIZE={env.world_size} are set but {' and '.join(lacking)} not: "
            "the ranks cannot find each other; start with torchrun, which sets all of them"
        )
    # Naming the device lets NCCL connect at once instead of at the first collective.
    bound = device if device.type == "cuda" else None
    dist.init_process_group(
        backend,
        timeout=timeout,
        device_id=bound,
        store=_meeting_place(timeout),
        rank=env.rank,
        world_size=env.world_size,
    )
    # The group must end before the interpreter does: gloo's threads abort a process
    # that is already being torn down.
    atexit.register(leave)
    return True


def _meeting_place(timeout: timedelta) -> PrefixStore:
    """The launcher's store, apart from what earlier groups left in it.

    torchrun keeps the store of a single machine when it starts the ranks again, with the addresses of
    those that died; a rank that is faster than another would try to reach it there.
    """
    store, _, _ = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    # Among several machines the number of restarts is each one's own, and the store new after each.
    alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if alone else "0"
    return PrefixStore(f"stratrun/{attempt}/{next(_joins)}", store)


def check_backend(spec: Any) -> None:
    """
    Raises:
        ConfigError: it is no backend that torch knows, nor a list of them by device.
    """
    known = [name for name in dist.Backend.backend_list if name != dist.Backend.UNDEFINED]
    for part in spec.split(",") if isinstance(spec, str) else [spec]:
        name = str(part).rpartition(":")[2].strip().lower()
        if name not in known:
            raise ConfigError(f"env_cfg: backend={spec!r} is unknown; {nearest(name, known)}")


def known_backends() -> dict[str, bool]:
    """Whether this build of torch has the backends that matter."""
    return {
        "gloo": dist.is_gloo_available(),
        "nccl": dist.is_nccl_available(),
        "mpi": dist.is_mpi_available(),
    }


def control_group(env: ProcessEnv, timeout: timedelta) -> Group | None:
    """A gloo group of its own for control, logging and saving; none for a lone process.

    Collectives that two threads issue on one group may be matched in different orders on
    different ranks, and objects sent over NCCL would stall the device.
    """
    if env.world_size == 1:
        return None
    group: Group = dist.new_group(backend="gloo", timeout=timeout)
    return group


def gradient_group(env: ProcessEnv, timeout: timedelta) -> Group | None:
    """A group for tensors where gradients are, beside the default group; none for a lone process."""
    if env.world_size == 1:
        return None
    group: Group = dist.new_group(timeout=timeout)
    return group


def message_board(env: ProcessEnv, beside: Any = None) -> Store | None:
    """A part of the store of the default group for messages; none for a lone process.

    What is put there can be read without the others taking part, so a rank that waits in vain can
    tell for whom. A connection of its own: a thread that waits for a key would keep others from theirs.

    Args:
        beside: The board to read and write on this connection too; a new one without it.
    """
    if env.world_size == 1:
        return None
    if beside is not None:
        return cast(Store, beside.clone())
    # Only of boards that all ranks have: one may have run alone before.
    line = next(_lines)
    # Not there in all versions of torch that are supported.
    store = getattr(dist.group.WORLD, "get_group_store", lambda: None)()
    return None if store is None else PrefixStore(f"stratrun/messages/{line}", store.clone())


def shared(key: Any, make: Callable[[], T]) -> T:
    """What all runs on one default group have in common, made by the first that asks for it.

    Groups that are made anew for each run would stay as long as the default group, with their threads
    and connections: what a model has been spread over is not to end with the run.
    """
    world = dist.group.WORLD
    if _shared.get("world") is not world:
        _shared.clear()
        _shared["world"] = world
        # As for the default group: whoever holds it must let go before the interpreter ends.
        atexit.unregister(_shared.clear)
        atexit.register(_shared.clear)
    if key not in _shared:
        _shared[key] = make()
    made: T = _shared[key]
    return made


def leave() -> None:
    atexit.unregister(leave)
    _shared.clear()
    if dist.is_initialized():
        dist.destroy_process_group()
