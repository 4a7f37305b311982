"""Schedules that torch does not have in one piece.

All of them are closed forms: of the initial value `base`, and how many moves there were. In a warm-up of w
moves the value after t < w is ``base (t + 1) / (w + 1)``, so that no update is made with a rate of zero.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stratrun.errors import ConfigError
from stratrun.registry import PARAM_SCHEDULERS


class ClosedFormLR(LRScheduler):
    """A linear warm-up, then ``eta_min + (base - eta_min) shape(t)``, t moves after it.

    A subclass sets what it needs and then calls this constructor, which makes the first move.

    Args:
        warmup_iters: Moves before the shape begins.
        eta_min: The floor: what a shape that goes down to 0 leads to.
    """

    absolute = True
    """Whether it sets the value from the initial one alone, so that it does not chain with others."""

    def __init__(self, optimizer: Optimizer, warmup_iters: int = 0, eta_min: float = 0.0) -> None:
        if warmup_iters < 0:
            raise ConfigError(f"{type(self).__name__}: warmup_iters={warmup_iters} must not be negative")
        self.warmup_iters = warmup_iters
        self.eta_min = eta_min
        super().__init__(optimizer)

    @abstractmethod
    def shape(self, moves: int) -> float:
        """The factor after so many moves since the warm-up."""

    def value(self, base: Any) -> Any:
        """What an initial value has become by now."""
        if self.last_epoch < self.warmup_iters:
            return base * ((self.last_epoch + 1) / (self.warmup_iters + 1))
        return self.eta_min + (base - self.eta_min) * self.shape(self.last_epoch - self.warmup_iters)

    def get_lr(self) -> list[Any]:
        return [self.value(base) for base in self.base_lrs]

    def _get_closed_form_lr(self) -> list[Any]:
        # What torch calls where a schedule begins within a SequentialLR.
        return self.get_lr()


class _Ending(ClosedFormLR):
    """A shape that is over after `total_iters` moves, those of the warm-up among them."""

    def __init__(self, optimizer: Optimizer, total_iters: int, warmup_iters: int, eta_min: float) -> None:
        if total_iters <= warmup_iters:
            raise ConfigError(
                f"{type(self).__name__}: total_iters={total_iters} must be more than "
                f"warmup_iters={warmup_iters}, which it includes"
            )
        self.total_iters = total_iters
        super().__init__(optimizer, warmup_iters, eta_min)

    def gone(self, moves: int) -> float:
        """How much of the shape is done, from 0 to 1."""
        return min(moves / (self.total_iters - self.warmup_iters), 1.0)


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(_Ending):
    """A warm-up, then half a cosine down to `eta_min`: the shape ``(1 + cos(pi x)) / 2``, x from 0 to 1.

    The cosine is that of Loshchilov and Hutter, SGDR, 2017 (arXiv:1608.03983), equation 5, without restarts;
    the warm-up that of Goyal et al., 2017 (arXiv:1706.02677), section 2.2.
    """

    def __init__(
        self, optimizer: Optimizer, total_iters: int, warmup_iters: int = 0, eta_min: float = 0.0
    ) -> None:
        super().__init__(optimizer, total_iters, warmup_iters, eta_min)

    def shape(self, moves: int) -> float:
        return (1 + math.cos(math.pi * self.gone(moves))) / 2


@PARAM_SCHEDULERS.register_module()
class WarmupPolynomialLR(_Ending):
    """A warm-up, then a power down to the floor `eta_min`: the shape ``(1 - x)^power``, x from 0 to 1.

    The poly policy of Chen et al., DeepLab, 2017 (arXiv:1606.00915), section 4.1, with a floor.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int,
        warmup_iters: int = 0,
        power: float = 1.0,
        eta_min: float = 0.0,
    ) -> None:
        self.power = power
        super().__init__(optimizer, total_iters, warmup_iters, eta_min)

    def shape(self, moves: int) -> float:
        return float((1 - self.gone(moves)) ** self.power)


@PARAM_SCHEDULERS.register_module()
class WarmupStableDecayLR(_Ending):
    """A warm-up, then the full value, then a decay to `eta_min` within the last `decay_iters` moves.

    Hu et al., MiniCPM, 2024 (arXiv:2404.06395), section 4; the decay ``1-sqrt`` is ``1 - sqrt(x)``, of
    Haegele et al., 2024 (arXiv:2405.18392), equation 2.

    Args:
        decay: ``linear``, ``cosine`` or ``1-sqrt``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int,
        decay_iters: int,
        warmup_iters: int = 0,
        decay: str = "linear",
        eta_min: float = 0.0,
    ) -> None:
        if not 1 <= decay_iters <= total_iters - warmup_iters:
            raise ConfigError(
                f"WarmupStableDecayLR: decay_iters={decay_iters} must be at least 1 and leave room for the "
                f"{warmup_iters} of warmup_iters within the {total_iters} of total_iters"
            )
        if decay not in _DECAYS:
            raise ConfigError(f"WarmupStableDecayLR: decay={decay!r} must be one of {', '.join(_DECAYS)}")
        self.decay_iters = decay_iters
        self.decay = decay
        super().__init__(optimizer, total_iters, warmup_iters, eta_min)

    def shape(self, moves: int) -> float:
        left = self.total_iters - self.warmup_iters - moves
        return _DECAYS[self.decay](1 - min(max(left, 0) / self.decay_iters, 1.0))


@PARAM_SCHEDULERS.register_module()
class InverseSqrtLR(ClosedFormLR):
    """A warm-up, then an inverse square root: the shape ``sqrt(w / (w + t))``, t moves after a warm-up of w.

    Vaswani et al., 2017 (arXiv:1706.03762), section 5.3, scaled so that its highest value is the given one.
    """

    def __init__(self, optimizer: Optimizer, warmup_iters: int) -> None:
        if warmup_iters < 1:
            raise ConfigError(f"InverseSqrtLR: warmup_iters={warmup_iters} must be at least 1")
        super().__init__(optimizer, warmup_iters)

    def shape(self, moves: int) -> float:
        return math.sqrt(self.warmup_iters / (self.warmup_iters + moves))


@PARAM_SCHEDULERS.register_module()
class WarmupConstantLR(ClosedFormLR):
    """A warm-up, then the full value."""

    def __init__(self, optimizer: Optimizer, warmup_iters: int) -> None:
        super().__init__(optimizer, warmup_iters)

    def shape(self, moves: int) -> float:
        return 1.0


_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
}
