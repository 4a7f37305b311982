"""Counting the operations of one iteration, by `torch.utils.flop_counter`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any


class FlopCounting:
    """Counts from `begin` to `end`: matrix products, convolutions and attention, forward and backward."""

    def __init__(self) -> None:
        self._entered: ExitStack | None = None
        self._counter: Any = None

    @property
    def under_way(self) -> bool:
        return self._entered is not None

    def begin(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        with ExitStack() as entered:
            if "torch._dynamo" in sys.modules:
                from torch.compiler import set_stance

                # The counter sees single operations, and must not be compiled in.
                entered.enter_context(set_stance("force_eager"))
            self._counter = entered.enter_context(FlopCounterMode(display=False))
            self._entered = entered.pop_all()

    def end(self) -> tuple[int, dict[str, int]]:
        """What was counted in all, and within each module, by the path that the counter knows it by."""
        counter = self._counter
        self.leave()
        by_module = {path: sum(counts.values()) for path, counts in counter.get_flop_counts().items()}
        return counter.get_total_flops(), by_module

    def leave(self) -> None:
        entered, self._entered, self._counter = self._entered, None, None
        if entered is not None:
            entered.close()
