"""Learning rates for the batch that an update is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from torch.optim import Optimizer

from stratrun.errors import ConfigError, nearest
from stratrun.registry.arguments import at

_KEYS = ("base_batch_size", "rule", "batch_size")
_RULES = ("linear", "sqrt")


@dataclass(frozen=True, slots=True)
class UpdateSize:
    """What the samples of an update are made of."""

    batch: int | None = None
    """Samples of a batch on one rank; None where the data does not tell before it is read."""
    ranks: int = 1
    """How many have different samples."""
    accumulate: int = 1
    """Batches of an update, when the run begins."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """How learning rates that were found with one batch are made to fit another.

    `linear`: in proportion (Goyal et al. 2017, arXiv:1706.02677), for SGD. `sqrt`: with the square root
    (Krizhevsky 2014, arXiv:1404.5997; for Adam and its like Malladi et al. 2022, arXiv:2205.10287).
    """

    base: int
    """Samples of an update that the learning rates as given are for."""
    rule: str = "linear"
    batch_size: int | None = None
    """Samples of a batch on one rank, where the data does not tell."""

    @classmethod
    def parse(cls, spec: Any, where: str) -> "Scaling":
        """
        Raises:
            ConfigError: a key or a value makes no sense.
        """
        where = f"{where}.scale_lr"
        if not isinstance(spec, Mapping) or "base_batch_size" not in spec:
            raise ConfigError(
                f"{where}={spec!r} must say what batch the learning rate is for, such as "
                "dict(base_batch_size=256, rule='linear')"
            )
        places = getattr(spec, "places", {})
        for key in spec:
            if key not in _KEYS:
                raise ConfigError(f"{where} takes no {key!r}; {nearest(str(key), _KEYS)}{at(places, key)}")
        for key in ("base_batch_size", "batch_size"):
            value = spec.get(key, 1)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{where}: {key}={value!r} must be a whole number above 0{at(places, key)}")
        rule = spec.get("rule", "linear")
        if rule not in _RULES:
            raise ConfigError(
                f"{where}: rule={rule!r} is unknown; {nearest(str(rule), _RULES)}{at(places, 'rule')}"
            )
        return cls(spec["base_batch_size"], rule, spec.get("batch_size"))

    def samples(self, update: UpdateSize) -> int | None:
        """How many an update is made of; None if unknown."""
        batch = self.batch_size or update.batch
        return None if batch is None else batch * update.ranks * update.accumulate

    def factor(self, update: UpdateSize) -> float:
        """What learning rates are multiplied by."""
        samples = self.samples(update)
        assert samples is not None
        ratio = samples / self.base
        return ratio if self.rule == "linear" else sqrt(ratio)

    def refuse_unknown(self, update: UpdateSize, where: str) -> None:
        """
        Raises:
            ConfigError: nothing says how large a batch is.
        """
        if self.samples(update) is None:
            raise ConfigError(
                f"{where}.scale_lr: how many samples a batch of train_dataloader has is not known before it "
                "is read, as they come ready or from several loaders; say how many a rank has in each, with "
                "batch_size=... beside base_batch_size"
            )

    def apply(self, optimizer: Optimizer, update: UpdateSize, where: str) -> None:
        """Multiply the learning rates of all groups.

        Raises:
            ConfigError: there are none.
        """
        factor = self.factor(update)
        for options in (optimizer.defaults, *optimizer.param_groups):
            if "lr" not in options:
                raise ConfigError(
                    f"{where}: {type(optimizer).__name__} has no lr to scale; leave scale_lr out"
                )
            options["lr"] = options["lr"] * factor

    def told(self, update: UpdateSize, where: str) -> str:
        batch = self.batch_size or update.batch
        ranks = f" x {update.ranks} ranks" if update.ranks > 1 else ""
        window = f" x {update.accumulate} accumulated" if update.accumulate > 1 else ""
        return (
            f"{where}: learning rates times {self.factor(update):.6g}, as an update is of "
            f"{self.samples(update)} samples ({batch}{ranks}{window}) and they are for {self.base} "
            f"(scale_lr, {self.rule})"
        )
