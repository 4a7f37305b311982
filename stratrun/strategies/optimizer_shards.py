"""Updates divided among ranks that all have the whole model: ZeRO, stage 1 (Rajbhandari et al., 2020)."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from stratrun.errors import ConfigError
from stratrun.strategies.owned import Exchange

# Updates after which ranks compare the settings of their groups: when those have had time to come apart, and
# seldom, as it waits for the device.
_COMPARED = (10, 100, 1000)
_divisions: "WeakKeyDictionary[Optimizer, _Division]" = WeakKeyDictionary()
"""Those that an earlier run of this process has made, of optimizers that were given ready-made."""


class OptimizerShards:
    """Which rank updates which parameters, and keeps what the optimizer has for them.

    Groups of parameters are whole on every rank, so that schedules, clipping and names know of no division.
    Within an update a rank's optimizer finds the gradients of the rank's own parameters alone: one without a
    gradient is left out by torch's optimizers, and has no state. After it, the ranks give each other what
    they have updated.

    A parameter is a rank's as a whole: optimizers that take norms or products of a parameter work as ever.
    """

    def __init__(self) -> None:
        self._owners: dict[Tensor, int] = {}
        self._module: nn.Module
        self.among: tuple[int, int] = (0, 1)
        """This rank, and how many there are."""

    def divide(self, optimizers: Mapping[str, Optimizer], module: nn.Module) -> None:
        """Have each rank make its part of the updates of `optimizers` from now on.

        Raises:
            ConfigError: one of them cannot be divided.
        """
        for name, one in optimizers.items():
            if isinstance(one, torch.optim.LBFGS):
                raise ConfigError(
                    f"strategy: shard_optimizer=True divides updates by parameter, and optimizer {name!r}, "
                    "LBFGS, makes one step for all parameters together; leave shard_optimizer out, or take "
                    "another optimizer"
                )
        self._module = module
        self.among = (dist.get_rank(), dist.get_world_size())
        self._owners = {}
        self._assign(p for one in optimizers.values() for group in one.param_groups for p in group["params"])
        for name, one in optimizers.items():
            # Some classes make their state as they are built.
            for parameter in [p for p in one.state if not self.holds(p)]:
                del one.state[parameter]
            _divisions[one] = _Division(self, name, one)

    def holds(self, parameter: Tensor) -> bool:
        """Whether this rank updates a parameter, and keeps the state for that."""
        rank, _ = self.among
        return self._owners.get(parameter, rank) == rank

    def _assign(self, parameters: Iterable[Tensor]) -> None:
        """Give parameters that are nobody's yet to ranks, so that each has as many bytes; alike on all ranks.

        The largest first, each to whoever has least. The first rank never has less than another, and frozen
        ones are shared out apart, as there is no state for them.
        """
        names: dict[Tensor, str] = {parameter: name for name, parameter in self._module.named_parameters()}
        _, ranks = self.among
        new = [p for p in dict.fromkeys(parameters) if p not in self._owners]
        for trained in (True, False):
            kind = [p for p in new if p.requires_grad is trained]
            shares: list[list[Tensor]] = [[] for _ in range(ranks)]
            sizes = [0] * ranks
            for parameter in sorted(kind, key=lambda p: (-p.nbytes, names.get(p, ""))):
                least = sizes.index(min(sizes))
                shares[least].append(parameter)
                sizes[least] += parameter.nbytes
            order = sorted(range(ranks), key=lambda share: -sizes[share])
            self._owners |= {p: rank for rank, share in enumerate(order) for p in shares[share]}


class _Division:
    """One optimizer's updates."""

    def __init__(self, shards: OptimizerShards, name: str, optimizer: Optimizer) -> None:
        self.among = shards.among
        self._shards = shards
        self._name = name
        self._aside: list[tuple[Tensor, Tensor]] = []
        self._updates = 0
        self._exchanged: list[Tensor] = []
        self._exchange = Exchange([], 0, 1)
        before = optimizer.register_step_pre_hook(self._before)
        # First of all: others, as those that begin the state of fused updates, go by the gradients there are.
        optimizer._optimizer_step_pre_hooks.move_to_end(before.id, last=False)  # type: ignore[attr-defined]
        self._handles = [before, optimizer.register_step_post_hook(self._after)]

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        """Put the gradients of other ranks' parameters aside, and see what is to be exchanged."""
        shards = self._shards
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if any(p not in shards._owners for p in held):  # a group was added
            shards._assign(held)
        exchanged = [p for p in held if p.requires_grad or p.grad is not None]
        if list(map(id, exchanged)) != list(map(id, self._exchanged)):
            owned = [(p, shards._owners[p]) for p in exchanged]
            self._exchanged, self._exchange = exchanged, Exchange(owned, *shards.among)
        self._aside = []
        for parameter in exchanged:
            if parameter.grad is not None and not shards.holds(parameter):
                self._aside.append((parameter, parameter.grad))
                parameter.grad = None

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        for parameter, gradient in self._aside:
            parameter.grad = gradient
        self._aside = []
        self._updates += 1
        if self._updates in _COMPARED:
            self._compare_settings(optimizer)
        self._exchange()

    def _compare_settings(self, optimizer: Optimizer) -> None:
        """
        Raises:
            ConfigError: the ranks' groups are set otherwise, as those of an optimizer that reckons with all
                parameters at once.
        """
        settings = [_plain(group) for group in optimizer.param_groups]
        digest = zlib.crc32(repr(settings).encode())
        device = self._exchanged[0].device if self._exchanged else torch.device("cpu")
        seen = torch.tensor([digest, -digest], device=device)
        dist.all_reduce(seen, dist.ReduceOp.MAX)
        largest, smallest = seen.tolist()
        if largest != -smallest:
            raise ConfigError(
                "strategy: shard_optimizer=True divides updates by parameter, and optimizer "
                f"{self._name!r}, {type(optimizer).__name__}, has come to other settings of its groups on "
                "each rank, so that it reckons with all parameters together; leave shard_optimizer out, or "
                "take another optimizer"
            )


def built(
    build: Callable[[nn.Module], dict[str, Optimizer]], module: nn.Module, shards: OptimizerShards | None
) -> dict[str, Optimizer]:
    """Optimizers of a module, their updates divided where there are `shards`, and whole where there are none.

    Raises:
        ConfigError: one of them cannot be divided, or has but a part of the state, from an earlier run.
    """
    optimizers = build(module)
    for name, one in optimizers.items():
        earlier = _divisions.pop(one, None)
        if earlier is None:
            continue
        earlier.end()
        if one.state and (shards is None or earlier.among != (dist.get_rank(), dist.get_world_size())):
            raise ConfigError(
                f"optimizer {name!r}: the given {type(one).__name__} has a rank's part of the state of an "
                "earlier run with shard_optimizer=True; give dict(type=...) to have a new one built, and "
                "resume= or load_from= to go on with what that run has saved"
            )
    if shards is not None:
        shards.divide(optimizers, module)
    return optimizers


def _plain(group: Mapping[str, Any]) -> list[tuple[str, Any]]:
    kinds = bool | int | float | str | tuple | None  # type: ignore[type-arg]
    return sorted((k, v) for k, v in group.items() if k != "params" and isinstance(v, kinds))
