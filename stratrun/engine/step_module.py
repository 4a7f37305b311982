"""The module that strategies wrap: any model behind one `forward`."""

from collections.abc import Callable
from typing import Any

from torch import nn

from stratrun.engine import contract

_SPREAD = (
    "a weight that is spread over the ranks was used as it lies: it is whole only while the block that it "
    "is in is called, as block(x). Call the block itself, choose other blocks (blocks=... of the strategy), "
    "or keep the weight whole on each rank (ignore=[...])"
)


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

    def forward(self, batch: Any, mode: str, losses: bool = False) -> Any:
        """Call the model.

        Args:
            losses: Whether to return its result as a dict with `loss`. Strategies look for tensors in
                what comes out of here, and a plain dict shows them to all.
        """
        call = self._calls.get(mode)
        if call is None:
            call = self._calls[mode] = contract.resolve(self.model, self.loss, mode, batch)
        args, kwargs = call.arguments(batch)
        try:
            result = call.target(*args, **kwargs)
            result = result if call.finish is None else call.finish(result, batch)
        except RuntimeError as error:
            if "mixed torch.Tensor and DTensor" in str(error):
                error.add_note(_SPREAD)
            raise
        return contract.losses_of(result, self.model) if losses else result
