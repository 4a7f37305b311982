"""What a checkpoint keeps of the parts behind the engine."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from stratrun.accelerators.base import Accelerator
from stratrun.distributed import Collectives, DataRanks
from stratrun.engine.placed import Placed
from stratrun.engine.updates import Updates
from stratrun.engine.window import shared_out
from stratrun.precision.base import Precision
from stratrun.spread import Rooms, spread_as
from stratrun.strategies import logical
from stratrun.strategies.base import Strategy
from stratrun.strategies.optimizer_shards import OptimizerShards

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
        """State that is the same on every process, under logical names; tensors may be spread over them."""
        self.settle()
        if self.keeps_gradients:
            self._strategy.reduce_gradients(list(self._placed.named.parameters()))
        return {**self.learnt_state(), **self.shared_gradients()}

    def settle(self) -> None:
        """Hear of all updates that were made. See `Guard.settle`."""
        self._updates.settle()

    def learnt_state(self) -> dict[str, Any]:
        """That state without gradients: what updates have made."""
        state = logical.state_dict(self._placed.named, self._updates.optimizers, self.shards)
        return {**state, "precision": self._precision.state_dict()}

    @property
    def shards(self) -> OptimizerShards | None:
        """Which rank has the optimizers' state for which parameters, where that is divided."""
        return self._strategy.optimizer_shards

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients of an open window are aside, and `shared_state` has to bring them together."""
        return self._strategy.keeps_gradients and self._updates.is_open

    def shared_gradients(self) -> dict[str, Any]:
        """Gradients of an open window, as an entry of the shared state where they are part of that."""
        if not self._strategy.shares_gradients:
            return {}
        return {"gradients": self._updates.open_window(self._placed.named).get("gradients", {})}

    def load_shared_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `shared_state` returned, but for gradients."""
        logical.load_state_dict(self._placed.named, self._updates.optimizers, state, self.shards)
        self._precision.load_state_dict(state["precision"])

    def load_model(self, state: Mapping[str, Any]) -> None:
        """Put back the weights and buffers of `shared_state` alone."""
        logical.load_model(self._placed.named, state)

    def own_state(self) -> dict[str, Any]:
        """State of this process: its device's generator, the open window, what the strategy keeps apart."""
        window = self._updates.open_window(self._placed.named)
        if self._strategy.shares_gradients:
            window.pop("gradients", None)
        strategy = self._strategy.own_state(self._placed.wrapped)
        return {
            "rng": self._accelerator.rng_state(self._device),
            "window": window,
            # Another could not make anything of it.
            "strategy": {self._strategy.name: strategy} if strategy else {},
        }

    def load_own_state(
        self,
        state: Own,
        owns: Sequence[Own] = (),
        gradients: Mapping[str, torch.Tensor] | None = None,
        *,
        same_ranks: bool = True,
    ) -> None:
        """Put back what `own_state` returned.

        Args:
            owns: That of all processes, one for each part of the samples, where those were shared out
                in another way.
            gradients: Those of the shared state, if it had any entry for them.
            same_ranks: Whether the process that saved it did what this one does.
        """
        if state is not None:
            self._accelerator.set_rng_state(self._device, state["rng"])
            kept = state["strategy"].get(self._strategy.name)
            if same_ranks and not owns and kept:
                self._strategy.load_own_state(self._placed.wrapped, kept)
        windows = [own["window"] for own in (owns or [state]) if own is not None]
        if gradients is not None:
            windows = [{**window, "gradients": gradients} if window else window for window in windows]
        window = shared_out(windows, self._data.world_size if owns else 1)
        if window:
            parameters = dict(self._placed.named.named_parameters())
            spread = {name: spread_as(g, parameters.get(name)) for name, g in window["gradients"].items()}
            window = {**window, "gradients": spread}
        self._updates.reopen_window(self._placed.named, window)

    @cached_property
    def rooms(self) -> Rooms:
        """Where stored tensors are read to. See `Rooms`."""
        # What hooks save of the model is under the names that it has by itself.
        return Rooms(self._placed.named, self._placed.model)
