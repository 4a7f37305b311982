"""Work of a device that is taken down once, and done again without python."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Capture(Protocol):
    """What captures. All that a `GraphedStep` asks of the device is behind this."""

    def warm_up(self, work: Callable[[], T]) -> T:
        """Do the work as it is, where doing it leaves nothing behind that a capture could not bear."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does the device's part of `work` when it is called, on the memory of this first time.

        Nothing of it is done yet.
        """


class CudaCapture:
    """By a CUDA graph."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)

    def warm_up(self, work: Callable[[], T]) -> T:
        """On a stream beside, as torch asks: the default one may not be captured, nor what it has set up."""
        present = torch.cuda.current_stream(self._device)
        self._side.wait_stream(present)
        with torch.cuda.stream(self._side):
            result = work()
        present.wait_stream(self._side)
        return result

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Threads that load and pin batches meanwhile do no work that belongs to the step.
        with torch.cuda.graph(graph, stream=self._side, capture_error_mode="thread_local"):
            work()
        return graph.replay
