"""What a training step on a batch changes before its update, from before the step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stratrun.engine.window import multiply
from stratrun.seed import host_rng_state, set_host_rng_state
from stratrun.spread import local_part

if TYPE_CHECKING:
    from stratrun.engine.engine import Engine


class Before:
    """Has the gradients of earlier batches of the window aside, so that those there are come of this one.

    Args:
        parameters: All of the model and its loss.
        divisor: How many batches the window has.
        exact: Whether buffers and random numbers are kept too.
    """

    def __init__(
        self, engine: "Engine", parameters: Sequence[nn.Parameter], divisor: int = 1, *, exact: bool
    ) -> None:
        self._engine = engine
        self._parameters = parameters
        self._gradients = [(p, gradient) for p in parameters if (gradient := p.grad) is not None]
        window = engine._updates._window
        self._grown = window.grown(divisor)
        self._window = window.state_dict()
        self._losses = 0 if engine.guard is None else len(engine.guard._losses)
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._numbers: tuple[dict[str, Any], dict[str, Any]] | None = None
        if exact:
            buffers = map(local_part, engine._placed.bare.buffers())
            self._buffers = [(buffer, buffer.clone()) for buffer in buffers]
            self._numbers = host_rng_state(), engine._accelerator.rng_state(engine._device)
        for parameter, _ in self._gradients:
            parameter.grad = None

    @torch.no_grad()
    def again(self) -> None:
        """Forget the step, with the gradients of earlier batches still aside."""
        engine = self._engine
        self._drop()
        engine._updates._window.load_state_dict(self._window, engine._device)
        if engine.guard is not None:
            del engine.guard._losses[self._losses :]
        for buffer, copy in self._buffers:
            buffer.copy_(copy)
        if self._numbers is not None:
            set_host_rng_state(self._numbers[0])
            engine._accelerator.set_rng_state(engine._device, self._numbers[1])

    def put_back(self) -> None:
        """All as it was."""
        self.again()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient

    @torch.no_grad()
    def add(self) -> None:
        """Add the gradients of the step to those of before."""
        if self._grown != 1.0:
            multiply([gradient for _, gradient in self._gradients], self._grown)
        for parameter, gradient in self._gradients:
            if parameter.grad is not None:
                gradient.add_(parameter.grad)
            parameter.grad = gradient

    def _drop(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
