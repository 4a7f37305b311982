"""A model's buffers from before a forward pass, for updates that are left out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stratrun.spread import local_part


class KeptBuffers:
    """Copies of running statistics, which a batch that is not finite would spoil for good.

    Made at the first forward pass with gradients after each update; a model without buffers pays nothing.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._live: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._fresh = False
        if next(module.buffers(), None) is not None:
            module.register_forward_pre_hook(self._keep, prepend=True)

    def updated(self) -> None:
        """What comes next is another update."""
        self._fresh = False

    @torch.no_grad()
    def put_back(self, flag: Tensor | None = None) -> None:
        """Give the buffers what they held.

        Args:
            flag: On the device; only where it is set.
        """
        for buffer, copy in zip(self._live, self._copies, strict=True):
            buffer.copy_(copy if flag is None else torch.where(flag > 0, copy, buffer))

    def state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        """What they would be given, by the names of `module`; empty between updates."""
        names = [name for name, _ in module.named_buffers()]
        return dict(zip(names, self._copies, strict=True)) if self._fresh and self._copies else {}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], module: nn.Module) -> None:
        """Take back what `state_dict` returned; what it does not have is kept as it is."""
        if state:
            self._copy()
            self._fresh = True
            for (name, _), copy in zip(module.named_buffers(), self._copies, strict=True):
                copy.copy_(local_part(state.get(name, copy)))

    def _keep(self, *_: Any) -> None:
        if not self._fresh and torch.is_grad_enabled():
            self._fresh = True
            self._copy()

    @torch.no_grad()
    def _copy(self) -> None:
        live = [local_part(buffer) for buffer in self._module.buffers()]
        if [one.data_ptr() for one in live] != [one.data_ptr() for one in self._live]:
            self._live, self._copies = live, [one.clone() for one in live]
            return
        torch._foreach_copy_(self._copies, live)
