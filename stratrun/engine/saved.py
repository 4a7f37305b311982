"""What a checkpoint keeps of the parts behind the engine."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stratrun.accelerators.base import Accelerator
from stratrun.distributed import Collectives, DataRanks
from stratrun.engine.placed import Placed
from stratrun.engine.updates import Updates
from stratrun.engine.window import shared_out
from stratrun.precision.base import Precision
from stratrun.strategies import logical
from stratrun.strategies.base import Strategy

Own = Mapping[str, Any] | None
Exchange = Collectives | DataRanks


class Saved:
    """The state of a model, its optimizers and its precision, and that of this process alone."""

    def __init__(
        self,
        placed: Placed,
        updates: Updates,
        *,
        strategy: Strategy,
        precision: Precision,
        accelerator: Accelerator,
        device: torch.device,
        data: Exchange,
    ) -> None:
        self._placed = placed
        self._updates = updates
        self._strategy = strategy
        self._precision = precision
        self._accelerator = accelerator
        self._device = device
        self._data = data

    def shared_state(self) -> dict[str, Any]:
        """State that is the same on every process, under logical names."""
        state = logical.state_dict(self._placed.named, self._updates.optimizers)
        return {**state, "precision": self._precision.state_dict()}

    def load_shared_state(self, state: dict[str, Any]) -> None:
        logical.load_state_dict(self._placed.named, self._updates.optimizers, state)
        self._precision.load_state_dict(state["precision"])

    def own_state(self) -> dict[str, Any]:
        """State of this process: its device's generator, the open window, what the strategy keeps apart."""
        window = self._updates.open_window(self._placed.named)
        strategy = self._strategy.own_state(self._placed.wrapped)
        return {"rng": self._accelerator.rng_state(self._device), "window": window, "strategy": strategy}

    def load_own_state(self, state: Own, owns: Sequence[Own] = ()) -> None:
        """Put back what `own_state` returned; `owns`: on all processes, where they were more or fewer."""
        if state is not None:
            self._accelerator.set_rng_state(self._device, state["rng"])
            if not owns:
                self._strategy.load_own_state(self._placed.wrapped, state.get("strategy", {}))
        windows = [own["window"] for own in (owns or [state]) if own is not None]
        ranks = self._data.world_size if owns else 1
        self._updates.reopen_window(self._placed.named, shared_out(windows, ranks))
