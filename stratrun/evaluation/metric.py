"""What a user subclasses to measure something batch by batch."""

import re
from abc import ABC, abstractmethod
from copy import copy
from typing import Any, Literal, Self

import torch
from torch import Tensor

from stratrun.errors import ConfigError

Reduce = Literal["sum", "max", "min", "cat"]
Default = Tensor | list[Any] | float | int


class Metric(ABC):
    """A number about a data set, gathered batch by batch.

    A subclass declares what it keeps with `add_state` and then uses it as plain attributes. What is
    declared starts anew with every evaluation and is combined over ranks; what is not declared is
    seen by this process alone, so `update` must not count in it.

    One that has more to show than numbers has a method ``write_files(folder, stem)`` too, see `FileWriter`.

    `update` runs for every batch: tensors stay tensors there, since reading one (``.item()``,
    ``float(...)``, ``if tensor:``) makes the host wait for the device.
    """

    prefix: str | None = None
    """Put before each name of the results, as ``prefix/name``."""
    _defaults: dict[str, tuple[Default, Reduce]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Here and not in __init__, so that a subclass may forget to call ours.
        metric = super().__new__(cls)
        metric._defaults = {}
        return metric

    def __init__(self, prefix: str | None = None) -> None:
        self.prefix = prefix

    @abstractmethod
    def update(self, *arguments: Any, **named: Any) -> None:
        """Count one batch in. Called as ``update(preds, target)`` unless `arguments` says otherwise."""

    @abstractmethod
    def compute(self) -> dict[str, Any] | float | Tensor:
        """The values by name, or one value, which is then named after the class in snake case."""

    def add_state(self, name: str, default: Default, reduce: Reduce | None = None) -> None:
        """Declare an attribute that is reset with every evaluation and combined over ranks.

        Args:
            default: What it starts from: a tensor, a number for what the host knows without asking
                the device (how many samples), or an empty list to append tensors to.
            reduce: How the values of the ranks become one: "sum" (the default), "max" or "min";
                always "cat" for a list, whose elements come in the order of the samples.
        """
        is_list = isinstance(default, list)
        reduce = reduce or ("cat" if is_list else "sum")
        fits = default == [] and reduce == "cat" if is_list else reduce in ("sum", "max", "min")
        if not fits:
            raise ConfigError(
                f"{type(self).__name__}.add_state({name!r}, {default!r}, reduce={reduce!r}): an empty list "
                "goes with 'cat', a tensor or a number with 'sum', 'max' or 'min'"
            )
        self._defaults[name] = (default, reduce)
        setattr(self, name, _fresh(default))

    def arguments(self, outputs: Any, batch: Any, size: int) -> tuple[Any, ...] | None:
        """What `update` gets of a batch of `size` samples, for a metric that picks it itself.

        None, unless overridden: the evaluator then finds predictions and targets.
        """
        return None

    def reset(self) -> None:
        for name, (default, _) in self._defaults.items():
            setattr(self, name, _fresh(default))

    def to(self, device: torch.device) -> Self:
        """Keep the states on `device`, from which the batches come."""
        for name, (default, reduce) in self._defaults.items():
            self._defaults[name] = (_moved(default, device), reduce)
            setattr(self, name, _moved(getattr(self, name), device))
        return self

    def state(self) -> dict[str, Any]:
        """What this process has gathered, by name."""
        return {name: getattr(self, name) for name in self._defaults}

    def declared(self) -> dict[str, tuple[Default, Reduce]]:
        """The default and the reduction of each state."""
        return dict(self._defaults)


def default_name(metric: object) -> str:
    """The name of a lone value: that of its class, in snake case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(metric).__name__).lower()


def _fresh(default: Default) -> Default:
    return default.clone() if isinstance(default, Tensor) else copy(default)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_moved(part, device) for part in value]
    if not isinstance(value, Tensor):
        return value
    # Metal has no 64-bit floats.
    if device.type == "mps" and value.dtype == torch.float64:
        value = value.float()
    return value.to(device)
