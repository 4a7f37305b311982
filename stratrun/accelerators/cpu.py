from typing import ClassVar

import torch

from stratrun.accelerators.base import Accelerator
from stratrun.accelerators.meters import HostMeter
from stratrun.registry import ACCELERATORS


@ACCELERATORS.register_module("cpu")
class CPUAccelerator(Accelerator):
    """The host processor. Ranks share it and talk over gloo."""

    name = "cpu"
    backend = "gloo"
    auto_rank: ClassVar[int] = 0

    def is_available(self) -> bool:
        return True

    def count(self) -> int:
        return 1

    def device(self, local_rank: int) -> torch.device:
        return torch.device("cpu")

    def __init__(self) -> None:
        self.meter: HostMeter = HostMeter()
