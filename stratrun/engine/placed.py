"""The model where the layers put it: on its device, in its number format, wrapped by a strategy."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stratrun.engine.step_module import StepModule
from stratrun.precision.base import Precision
from stratrun.strategies.base import Initial, Strategy


class Placed:
    """A model, the module that is trained in its stead, and which of its parts are in training mode."""

    def __init__(
        self,
        module: StepModule,
        *,
        initial: Initial | None = None,
        device: torch.device,
        precision: Precision,
        strategy: Strategy,
    ) -> None:
        self.model: nn.Module = module.model
        self.bare: StepModule = precision.convert_module(module)  # type: ignore[assignment]
        strategy.place(self.bare, device, compute_dtype=precision.compute_dtype, initial=initial)
        self.wrapped: nn.Module = self.bare
        self.evaluated: Callable[..., Any] = self.bare
        """Called for evaluation."""
        self._device = device
        self._strategy = strategy
        self._partial_backward = False
        self._requires_grad: list[bool] = []
        self._kept_off: list[nn.Module] = []

    @property
    def named(self) -> nn.Module:
        """What names are relative to: the model, unless the loss has state too."""
        loss = self.bare.loss
        return self.bare if isinstance(loss, nn.Module) and loss.state_dict() else self.model

    def wrap(self, *, partial_backward: bool) -> None:
        """Have the strategy make of it what is trained. See `Strategy.wrap`."""
        self._partial_backward = partial_backward
        # The old wrapper goes before the new one comes: both would listen to the same gradients.
        self.wrapped = self.bare
        self.wrapped = self._strategy.wrap(self.bare, self._device, partial_backward=partial_backward)
        self._requires_grad = [p.requires_grad for p in self.bare.parameters()]

    def wrap_again(self) -> None:
        """As `wrap` did it, with nothing that the strategy has learnt from steps."""
        self.wrap(partial_backward=self._partial_backward)

    def wrap_later(self) -> None:
        """The same when the next epoch begins, where all ranks come to it."""
        self._requires_grad = []

    def wrap_again_if_thawed(self) -> bool:
        """Tell the strategy of parameters that were frozen or thawed since it last looked, if any were."""
        parameters = list(self.bare.parameters())
        now = [p.requires_grad for p in parameters]
        wanted = now
        if self._partial_backward and len(now) == len(self._requires_grad):
            # A loop may freeze one part while it is another's turn: gradients of both are to be exchanged.
            wanted = [one or before for one, before in zip(now, self._requires_grad, strict=True)]
        if wanted == self._requires_grad:
            return False
        for parameter, one in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(one)
        self.wrap(partial_backward=self._partial_backward)
        for parameter, one in zip(parameters, now, strict=True):
            parameter.requires_grad_(one)
        return True

    def to_evaluation(self) -> None:
        self._note_modes()
        self.bare.eval()
        # Nothing but `forward`, where a module's call has nothing else to do: looking for that costs as
        # much as an operation of a small model.
        bare = self.bare
        is_heard = bare._forward_hooks or bare._forward_pre_hooks or bare._compiled_call_impl
        self.evaluated = bare if is_heard else bare.forward

    def to_training(self) -> None:
        """Parts that the user had put into evaluation mode stay there."""
        self._note_modes()
        # By the model's own method, which may keep parts in evaluation mode too.
        self.bare.train()
        for module in self._kept_off:
            module.training = False

    def _note_modes(self) -> None:
        if self.model.training:
            self._kept_off = [module for module in self.bare.modules() if not module.training]
