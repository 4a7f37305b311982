"""Where a model's parameters live, and when gradients are exchanged."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stratrun.strategies import logical


class Strategy(ABC):
    """Placement of one model over the ranks.

    It answers: how a module is wrapped, how a backward pass is kept local and its gradients
    exchanged later, how a gradient norm is taken, and what the logical state is. Collectives,
    devices, number formats, files and the building of optimizers are other objects' business.
    """

    name: ClassVar[str]
    accelerators: ClassVar[frozenset[str]]
    precisions: ClassVar[frozenset[str] | None] = None
    """Names of the precisions it works with; None for all."""
    needs_process_group: ClassVar[bool] = True
    """Whether it runs on the ranks of a launcher, rather than in a lone process."""
    auto_for: ClassVar[Literal["one process", "several processes"] | None] = None
    """When ``strategy='auto'`` chooses it."""

    @abstractmethod
    def wrap(self, module: nn.Module, device: torch.device, *, partial_backward: bool) -> nn.Module:
        """The module to train with, made of one that is on its device already.

        Optimizers are built after this, from the parameters of `module`.

        Args:
            partial_backward: Whether a backward pass may reach only part of the parameters, as
                with one optimizer for each part of a model.
        """

    @abstractmethod
    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """Keep the gradients of a forward and backward pass inside the block on this rank."""

    @abstractmethod
    def reduce_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Average gradients that were kept local, when no backward pass will do it any more."""

    @abstractmethod
    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over the ranks whose gradients are averaged, without waiting for it."""

    def sync_buffers(self, module: nn.Module) -> None:
        """Give all ranks the same buffers, before an evaluation."""
        return None

    def clip_grad_norm(self, parameters: Sequence[Tensor], max_norm: float, norm_type: float) -> Tensor:
        """Scale gradients down to a global norm; returns the norm from before, as one number."""
        return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    def state_dict(self, module: nn.Module, optimizers: Mapping[str, Optimizer]) -> dict[str, Any]:
        """Weights and optimizer state under the names that `module`, unwrapped, gives its parameters."""
        return logical.state_dict(module, optimizers)

    def load_state_dict(
        self, module: nn.Module, optimizers: Mapping[str, Optimizer], state: dict[str, Any]
    ) -> None:
        logical.load_state_dict(module, optimizers, state)

    def own_state(self, wrapped: nn.Module) -> dict[str, Any]:
        """What this rank alone has, and needs to go on exactly: tensors and plain values."""
        return {}

    def load_own_state(self, wrapped: nn.Module, state: Mapping[str, Any]) -> None:
        """Take back what `own_state` returned, after the logical state and on as many ranks."""
        return None
