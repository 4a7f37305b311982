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

    def memory(self, device: torch.device) -> dict[str, float]:
        # Only now: choosing among accelerators imports this module, whichever is used.
        import psutil

        return {"memory": psutil.Process().memory_info().rss / 2**20}
