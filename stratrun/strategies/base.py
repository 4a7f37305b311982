"""Where a model's parameters live, and when gradients are exchanged."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stratrun import deferred
from stratrun.strategies.optimizer_shards import OptimizerShards

Initial = Callable[[str], Tensor]
"""The whole value, in host memory, of a parameter or buffer of a module that was built without memory."""


class Strategy(ABC):
    """Placement of one model over the ranks.

    It answers: how a module is wrapped, how a backward pass is kept local and its gradients
    exchanged later, how a gradient norm is taken, and what a rank has of its own. Collectives,
    devices, number formats, files and the building of optimizers are other objects' business.

    State is read off the module that was placed, by the names it gives its parameters: a strategy
    neither renames them nor puts others in their place, though it may spread each over the ranks
    (`torch.distributed.tensor.DTensor`).
    """

    name: ClassVar[str]
    accelerators: ClassVar[frozenset[str]]
    precisions: ClassVar[frozenset[str] | None] = None
    """Names of the precisions it works with; None for all."""
    needs_process_group: ClassVar[bool] = True
    """Whether it runs on the ranks of a launcher, rather than in a lone process."""
    auto_for: ClassVar[Literal["one process", "several processes"] | None] = None
    """When ``strategy='auto'`` chooses it."""

    multiple_of: int = 1
    """The number of ranks must be a multiple of it."""
    ranks_per_batch: int = 1
    """How many neighbouring ranks work on the same samples, each on its part of the model."""
    defers_init: bool = False
    """Whether models are built without memory, and `place` fills what of them a rank is to have."""
    collective_forward: bool = False
    """Whether ranks wait for each other in a forward pass, so that all must make as many."""
    shares_gradients: bool = False
    """Whether gradients of an unfinished accumulation window are averaged over ranks already, and spread
    as their parameters are; otherwise they are those of each rank's own samples."""
    keeps_gradients: bool = False
    """With `shares_gradients`: whether those of an unfinished window are kept aside, where nobody finds them,
    until `reduce_gradients` brings them together, which it then does before a save, too."""
    expects_unused: bool = False
    """Whether the user has said that a backward pass may leave parameters out."""
    optimizer_shards: OptimizerShards | None = None
    """Divides updates among ranks that have whole parameters; None where each updates all that it has."""

    def place(
        self,
        module: nn.Module,
        device: torch.device,
        *,
        compute_dtype: torch.dtype,
        initial: Initial | None = None,
    ) -> None:
        """Bring a module to where it is computed, in place. Called once, for evaluation too.

        Args:
            module: In host memory; or without any (on the meta device), with `initial` to fill it.
            compute_dtype: What matrix products are computed in, and so the least that must be exchanged.
        """
        if initial is None:
            module.to(device)
            return
        deferred.give_memory(module, device)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor.detach().copy_(initial(name))

    @abstractmethod
    def wrap(self, module: nn.Module, device: torch.device, *, partial_backward: bool) -> nn.Module:
        """The module to train with, made of the one that was placed.

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

    def own_state(self, wrapped: nn.Module) -> dict[str, Any]:
        """What this rank alone has, and needs to go on exactly: tensors and plain values."""
        return {}

    def load_own_state(self, wrapped: nn.Module, state: Mapping[str, Any]) -> None:
        """Take back what `own_state` returned, after the logical state and on as many ranks."""
        return None
