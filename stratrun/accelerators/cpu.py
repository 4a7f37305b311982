import os
from time import monotonic
from typing import Any

import torch

from stratrun.accelerators.base import Accelerator
from stratrun.registry import ACCELERATORS


@ACCELERATORS.register_module("cpu")
class CPUAccelerator(Accelerator):
    """The host processor. Ranks share it and talk over gloo."""

    name = "cpu"
    backend = "gloo"
    auto_rank = 0

    def is_available(self) -> bool:
        return True

    def count(self) -> int:
        return 1

    def device(self, local_rank: int) -> torch.device:
        return torch.device("cpu")

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
            self._memory = {"memory": self._process.memory_info().rss / 2**20}
        return dict(self._memory)
