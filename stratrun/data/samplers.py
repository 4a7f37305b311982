"""Samplers whose order is a function of (seed, epoch), so that the position in it is one number."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from stratrun.data.labels import Labels, attributes, classes_of, counts_of
from stratrun.data.looked_up import LookedUp
from stratrun.data.order import Order, indices_at
from stratrun.data.uniform import fingerprint, uniforms
from stratrun.errors import ConfigError, DataError, nearest
from stratrun.registry import SAMPLERS
from stratrun.seed import derive_seed


class PositionSampler(Sampler[int]):
    """A sampler that says which sample stands at which position of an epoch.

    It is the same on all ranks, which share out its positions as they do those of a shuffled data set:
    a resumed run reads nothing that it skips, and may be on another number of ranks. For training only.
    """

    @abstractmethod
    def order(self, seed: int, epoch: int) -> Order:
        """The indices by position: a function of the arguments alone."""

    @abstractmethod
    def __len__(self) -> int:
        """Positions of an epoch."""

    @property
    def fingerprint(self) -> str:
        """Another text where the order of the same epoch would be another one."""
        return type(self).__name__

    def describe(self) -> str:
        """How samples come to their positions, without seed and epoch."""
        return f"in the order of {type(self).__name__}"

    def __iter__(self) -> Iterator[int]:
        return iter(indices_at(self.order(0, 0), range(len(self))))


@SAMPLERS.register_module()
class WeightedSampler(PositionSampler):
    """Draws samples by weight.

    With replacement each position is drawn for itself, and nothing is held but the sums of weights. Without,
    it is as if samples were drawn one after another out of those that are left (Efraimidis and Spirakis,
    2006); that sorts the weights at the beginning of each epoch.

    Args:
        weights: One for each sample, or the name of an attribute of the data set that has them.
        num_samples: Positions of an epoch; by default as many as there are samples.
    """

    def __init__(
        self,
        dataset: Any,
        weights: str | Sequence[float] | Tensor,
        num_samples: int | None = None,
        replacement: bool = True,
    ) -> None:
        self._weights = _weights_of(dataset, weights)
        if not isinstance(replacement, bool):
            raise ConfigError(f"WeightedSampler: replacement={replacement!r} must be True or False")
        self._replacement = replacement
        drawable = int((self._weights > 0).sum())
        most = len(self._weights) if replacement else drawable
        self._count = _count(num_samples, most, type(self).__name__)
        if not replacement and self._count > drawable:
            raise ConfigError(
                f"WeightedSampler: num_samples={self._count} without replacement is more than the {drawable} "
                "samples with a weight above 0; draw fewer, or set replacement=True"
            )
        self._sums = self._weights.cumsum(0)

    def order(self, seed: int, epoch: int) -> Order:
        key = derive_seed(seed, "draws", epoch)
        if self._replacement:
            return Draws(self._sums, self._count, key)
        chances = uniforms(key, torch.arange(len(self._weights)))
        # Waiting times of the given rates: the first to come are those drawn.
        waits = -torch.log1p(-chances) / self._weights
        waits[self._weights == 0] = torch.inf
        return waits.argsort(stable=True)[: self._count]

    def __len__(self) -> int:
        return self._count

    @property
    def fingerprint(self) -> str:
        how = "drawn" if self._replacement else "drawn once"
        return f"{len(self._weights)} samples {how} by weights {fingerprint(self._weights)}"

    def describe(self) -> str:
        return (
            f"drawn by weight out of {len(self._weights)}{'' if self._replacement else ', each once at most'}"
        )


@SAMPLERS.register_module()
class ClassBalancedSampler(WeightedSampler):
    """Draws samples with replacement so that each class is as frequent as any other.

    A sample of several classes has the weight that the rarest of them gives.

    Args:
        labels: See `classes_of`; by default the attribute `targets` or `labels` of the data set.
        num_samples: Positions of an epoch; by default as many as there are samples.
    """

    def __init__(self, dataset: Any, labels: Labels | None = None, num_samples: int | None = None) -> None:
        classes = classes_of(dataset, labels, type(self).__name__)
        counts = counts_of(classes)
        rarest = [min((counts[one] for one in several), default=0) for several in classes]
        super().__init__(dataset, [1 / count if count else 0.0 for count in rarest], num_samples)


class Draws(LookedUp):
    """What is drawn at each position, by sums of weights."""

    def __init__(self, sums: Tensor, count: int, key: int) -> None:
        super().__init__(count)
        self._sums = sums
        self._key = key

    def look_up(self, positions: Tensor) -> Tensor:
        # To the right of equal sums, as what adds nothing is never drawn.
        return torch.searchsorted(self._sums, uniforms(self._key, positions) * self._sums[-1], right=True)


def _weights_of(dataset: Any, given: str | Sequence[float] | Tensor) -> Tensor:
    who, samples = "WeightedSampler", len(dataset)
    if isinstance(given, str):
        if not hasattr(dataset, given):
            kind, have = type(dataset).__name__, attributes(dataset)
            raise ConfigError(f"{who}: {kind} has no attribute {given!r}; {nearest(given, have)}")
        given = getattr(dataset, given)
    try:
        weights = torch.as_tensor(given, dtype=torch.float64, device="cpu").clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{who}: weights must be numbers, one for each sample: {error}") from error
    if weights.shape != (samples,):
        raise DataError(
            f"{who}: weights of shape {tuple(weights.shape)} for {samples} samples; give one for each"
        )
    wrong = ~(torch.isfinite(weights) & (weights >= 0))
    if bool(wrong.any()) or not bool(weights.any()):
        where = int(wrong.nonzero()[0]) if bool(wrong.any()) else 0
        raise DataError(
            f"{who}: weights must be finite numbers of 0 or more, one of them more, and that of sample "
            f"{where} is {weights[where].item()}"
        )
    return weights


def _count(given: Any, samples: int, who: str) -> int:
    if given is None:
        return samples
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise ConfigError(f"{who}: num_samples={given!r} must be a whole number, 1 or more")
    return given
