from typing import Any, ClassVar

import torch

from stratrun.accelerators.base import Accelerator
from stratrun.accelerators.meters import MPSMeter
from stratrun.errors import IncompatibleError
from stratrun.registry import ACCELERATORS


@ACCELERATORS.register_module("mps")
class MPSAccelerator(Accelerator):
    """The GPU of an Apple machine. There is one, for one process."""

    name = "mps"
    meter: MPSMeter = MPSMeter()
    backend = "gloo"
    auto_rank: ClassVar[int] = 10

    def is_available(self) -> bool:
        return torch.backends.mps.is_available()

    def count(self) -> int:
        return int(self.is_available())

    def why_unavailable(self) -> str:
        if not torch.backends.mps.is_built():
            return f"this torch ({torch.__version__}) is built without MPS"
        return "MPS needs an Apple GPU and macOS 14 or later"

    def device(self, local_rank: int) -> torch.device:
        if local_rank > 0:
            raise IncompatibleError(
                f"accelerator='mps': local rank {local_rank} has no device, a machine has one; "
                "start one process, or use accelerator='cpu'"
            )
        return torch.device("mps")

    def rng_state(self, device: torch.device) -> dict[str, Any]:
        return {"mps": torch.mps.get_rng_state()}

    def set_rng_state(self, device: torch.device, state: dict[str, Any]) -> None:
        if "mps" in state:
            torch.mps.set_rng_state(state["mps"])
