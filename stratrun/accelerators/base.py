"""One kind of hardware."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from stratrun.accelerators.meters import Meter
from stratrun.accelerators.side_copies import SideCopies


class Accelerator(ABC):
    """A kind of device: whether it is here, which one is this process's, what it can tell.

    It does not decide on ranks, on how a model is placed, or on number formats.
    """

    name: ClassVar[str]
    backend: ClassVar[str]
    """The process group backend by which ranks talk on this hardware."""
    auto_rank: ClassVar[int | None] = None
    """Place in the choice of ``accelerator='auto'``, highest first; None is never chosen."""
    pin_memory: ClassVar[bool] = False
    """Whether batches should wait in page-locked memory, from where a copy can overlap with work."""

    meter: Meter = Meter()
    """What the device tells of itself."""

    @abstractmethod
    def is_available(self) -> bool: ...

    @abstractmethod
    def count(self) -> int:
        """Devices of this kind that this process can see."""

    @abstractmethod
    def device(self, local_rank: int) -> torch.device:
        """The device of one rank, made current for this process.

        Raises:
            IncompatibleError: this rank has none.
        """

    def why_unavailable(self) -> str:
        """What keeps this hardware from being used, for a message."""
        return "none is visible"

    def side_copies(self, device: torch.device) -> SideCopies | None:
        """What copies batches to the device beside its work; None where there is no such thing."""
        return None

    def rng_state(self, device: torch.device) -> dict[str, Any]:
        """State of the device's generator, apart from the host's."""
        return {}

    def set_rng_state(self, device: torch.device, state: dict[str, Any]) -> None:
        """Take back what `rng_state` returned."""
        return None
