import os
from typing import Any, ClassVar

import torch

from stratrun.accelerators.base import Accelerator
from stratrun.accelerators.meters import CUDAMeter
from stratrun.accelerators.side_copies import SideCopies
from stratrun.errors import IncompatibleError
from stratrun.registry import ACCELERATORS


@ACCELERATORS.register_module("cuda")
class CUDAAccelerator(Accelerator):
    """NVIDIA and ROCm GPUs, one for each rank, talking over NCCL."""

    name = "cuda"
    backend = "cpu:gloo,cuda:nccl"
    auto_rank: ClassVar[int] = 20
    pin_memory = True
    meter: CUDAMeter = CUDAMeter()

    def is_available(self) -> bool:
        return torch.cuda.is_available()

    def count(self) -> int:
        return torch.cuda.device_count()

    def why_unavailable(self) -> str:
        if torch.version.cuda is None and torch.version.hip is None:
            return f"this torch ({torch.__version__}) is built for the CPU only"
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None and visible.strip() in ("", "-1"):
            return f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU"
        return "no GPU or no working driver was found (see nvidia-smi)"

    def device(self, local_rank: int) -> torch.device:
        if local_rank >= self.count():
            raise IncompatibleError(
                f"accelerator='cuda': local rank {local_rank} has no GPU, this node shows {self.count()}; "
                f"start at most that many processes here (torchrun --nproc_per_node={self.count()})"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        return device

    def side_copies(self, device: torch.device) -> SideCopies | None:
        return SideCopies(torch.cuda, device)

    def rng_state(self, device: torch.device) -> dict[str, Any]:
        return {"cuda": torch.cuda.get_rng_state(device)}

    def set_rng_state(self, device: torch.device, state: dict[str, Any]) -> None:
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], device)
