"""The module that strategies wrap: any model behind one `forward`."""

from collections.abc import Callable
from typing import Any

from torch import nn

from stratrun.engine import contract


class StepModule(nn.Module):
    """Calls the user's model in the way that a mode asks for.

    Strategies hook into `forward` of what they wrap. Going through it whichever method of the
    model runs means that no method needs to be patched.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Any] | None) -> None:
        super().__init__()
        self.model = model
        # A loss that is a module may hold parameters and buffers: they are part of the state.
        self.loss = loss
        self._calls: dict[str, contract.Call] = {}

    def forward(self, batch: Any, mode: str) -> Any:
        call = self._calls.get(mode)
        if call is None:
            call = self._calls[mode] = contract.resolve(self.model, self.loss, mode, batch)
        args, kwargs = call.arguments(batch)
        result = call.target(*args, **kwargs)
        return result if call.finish is None else call.finish(result, batch)
