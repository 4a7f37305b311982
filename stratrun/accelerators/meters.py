"""What devices tell of themselves."""

import os
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import torch

_MIB = 2**20


class Meter:
    """Figures of a device, and the memory that is kept in reserve there. This one knows nothing."""

    def memory(self, device: torch.device) -> dict[str, float]:
        """Figures worth logging, by name, in MiB; read without waiting for the device."""
        return {}

    def utilization(self, device: torch.device) -> dict[str, float]:
        """How busy the device is, by name: shares in percent, degrees Celsius, watts."""
        return {}

    def free_cached(self) -> None:
        """Give memory back to the system that is kept in reserve for later tensors."""


class HostMeter(Meter):
    """The memory of this process. What else the host does is not this process's alone."""

    def __init__(self) -> None:
        self._process: Any = None
        self._memory: dict[str, float] = {}
        self._read_at = float("-inf")

    def memory(self, device: torch.device) -> dict[str, float]:
        # Made once, as that takes longer than reading; and again by a process that was forked since.
        if self._process is None or self._process.pid != os.getpid():
            # Only now: choosing among accelerators imports this module, whichever is used.
            import psutil

            self._process = psutil.Process()
            self._read_at = float("-inf")
        # Once a second: to ask the system takes as long as several operations.
        if monotonic() - self._read_at >= 1.0:
            self._read_at = monotonic()
            self._memory = {"memory": self._process.memory_info().rss / _MIB}
        return dict(self._memory)


class CUDAMeter(Meter):
    """The most memory that tensors had, and what the driver tells through the package nvidia-ml-py."""

    def memory(self, device: torch.device) -> dict[str, float]:
        return {"memory": torch.cuda.max_memory_allocated(device) / _MIB}

    def utilization(self, device: torch.device) -> dict[str, float]:
        asked: dict[str, Callable[[torch.device], float]] = {
            "gpu_busy": torch.cuda.utilization,
            "gpu_temperature": torch.cuda.temperature,
            "gpu_watts": lambda device: torch.cuda.power_draw(device) / 1000,
        }
        found: dict[str, float] = {}
        for name, ask in asked.items():
            # The package may not be there, nor hardware that tells.
            with suppress(ModuleNotFoundError, RuntimeError):
                found[name] = float(ask(device))
        return found

    def free_cached(self) -> None:
        torch.cuda.empty_cache()


class MPSMeter(Meter):
    """The memory that the Metal driver has given to this process."""

    def memory(self, device: torch.device) -> dict[str, float]:
        return {"memory": torch.mps.driver_allocated_memory() / _MIB}

    def free_cached(self) -> None:
        torch.mps.empty_cache()
