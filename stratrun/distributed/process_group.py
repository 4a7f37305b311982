"""Start and end of the process groups of a run."""

import atexit
from datetime import timedelta

import torch
import torch.distributed as dist

from stratrun.distributed.env import ProcessEnv

Group = dist.ProcessGroup


def join(env: ProcessEnv, backend: str, timeout: timedelta, device: torch.device) -> bool:
    """Start the default group, and say whether it was this call that did.

    A group that is already there is used as it is and stays its owner's to end.
    """
    if not env.launched or dist.is_initialized():
        return False
    # Naming the device lets NCCL connect at once instead of at the first collective.
    bound = device if device.type == "cuda" else None
    dist.init_process_group(backend, timeout=timeout, device_id=bound)
    # The group must end before the interpreter does: gloo's threads abort a process
    # that is already being torn down.
    atexit.register(leave)
    return True


def control_group(env: ProcessEnv, timeout: timedelta) -> Group | None:
    """A gloo group of its own for control, logging and saving; none for a lone process.

    Collectives that two threads issue on one group may be matched in different orders on
    different ranks, and objects sent over NCCL would stall the device.
    """
    if env.world_size == 1:
        return None
    group: Group = dist.new_group(backend="gloo", timeout=timeout)
    return group


def leave() -> None:
    atexit.unregister(leave)
    if dist.is_initialized():
        dist.destroy_process_group()
