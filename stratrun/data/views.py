"""Data sets made of others: more, fewer or other samples of them, in a fixed number."""

from abc import abstractmethod
from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from math import sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import data

from stratrun.data.labels import Labels, classes_of, counts_of
from stratrun.data.order import epoch_order, indices_at
from stratrun.data.source import enter_epoch
from stratrun.errors import ConfigError
from stratrun.registry import DATASETS
from stratrun.seed import HostRng, derive_seed


def check_dataset(spec: Any, where: str) -> None:
    """Refuse a spec of which, or of a part of which, no data set can be built. Builds nothing."""
    if not isinstance(spec, str | type | Mapping):
        return
    entry, options = DATASETS.check(spec, where=where)
    if check := getattr(entry, "check_parts", None):
        check(options, where)


def origin_of(dataset: Any, index: Any) -> tuple[Any, Any]:
    """The data set that a sample really is of, and its index there."""
    while True:
        if isinstance(dataset, View):
            dataset, index = dataset.dataset, dataset.index_of(index)
        elif isinstance(dataset, data.Subset):
            dataset, index = dataset.dataset, dataset.indices[index]
        elif isinstance(dataset, data.ConcatDataset):
            ends = dataset.cumulative_sizes
            part = next(number for number, end in enumerate(ends) if index < end)
            dataset, index = dataset.datasets[part], index - (ends[part - 1] if part else 0)
        else:
            return dataset, index


class View(data.Dataset[Any]):
    """A data set whose every sample is one of another data set.

    Args:
        dataset: An object, or a dict with `type`.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset: Any = _built(dataset, f"{type(self).__name__}.dataset")

    @classmethod
    def check_parts(cls, options: Mapping[str, Any], where: str) -> None:
        """Raise ConfigError for a part that cannot be built, or a value that will not do."""
        check_dataset(options["dataset"], f"{where}.dataset")

    @abstractmethod
    def index_of(self, position: int) -> int:
        """Which sample of the data set below is at this position."""

    @abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Any:
        return self.dataset[self.index_of(position)]

    def __getitems__(self, positions: Sequence[int]) -> Sequence[Any]:
        indices = [self.index_of(position) for position in positions]
        if callable(fetch := getattr(self.dataset, "__getitems__", None)):
            samples: Sequence[Any] = fetch(indices)
            return samples
        return [self.dataset[index] for index in indices]

    def set_epoch(self, epoch: int) -> None:
        enter_epoch(self.dataset, epoch)


@DATASETS.register_module()
class ConcatDataset(data.ConcatDataset[Any]):
    """Data sets one behind the other. Each is an object, or a dict with `type`."""

    def __init__(self, datasets: Sequence[Any]) -> None:
        _refuse_no_list(datasets)
        super().__init__([_built(one, f"ConcatDataset.datasets.{i}") for i, one in enumerate(datasets)])

    @classmethod
    def check_parts(cls, options: Mapping[str, Any], where: str) -> None:
        _refuse_no_list(options["datasets"])
        for number, one in enumerate(options["datasets"]):
            check_dataset(one, f"{where}.datasets.{number}")

    def set_epoch(self, epoch: int) -> None:
        for part in self.datasets:
            enter_epoch(part, epoch)


@DATASETS.register_module()
class RepeatDataset(View):
    """A data set several times over in each epoch, which is shuffled as a whole.

    A sample draws other random numbers each time that it comes.
    """

    def __init__(self, dataset: Any, times: int) -> None:
        _refuse_times(times)
        super().__init__(dataset)
        self.times = times

    @classmethod
    def check_parts(cls, options: Mapping[str, Any], where: str) -> None:
        super().check_parts(options, where)
        _refuse_times(options["times"])

    def index_of(self, position: int) -> int:
        return range(len(self))[position] % len(self.dataset)

    def __len__(self) -> int:
        return self.times * len(self.dataset)


@DATASETS.register_module()
class Subset(data.Subset[Any]):
    """Some samples of a data set: by index, a part of them by chance, or those that fit.

    Args:
        indices: The samples, in this order.
        fraction: That part of them, drawn by `seed`. A pair is the part between two points, so that
            ``(0, 0.9)`` and ``(0.9, 1)`` share no sample.
        predicate: Is given each sample, and tells whether to take it. All are read when this is built.
        seed: Of `fraction`, and of what is drawn while samples are read for `predicate`.
    """

    def __init__(
        self,
        dataset: Any,
        indices: Sequence[int] | Tensor | None = None,
        fraction: float | Sequence[float] | None = None,
        predicate: Callable[[Any], bool] | None = None,
        seed: int = 0,
    ) -> None:
        _refuse_choice(indices, fraction, predicate)
        inner = _built(dataset, "Subset.dataset")
        if indices is not None:
            chosen = _within(indices, len(inner))
        elif fraction is not None:
            chosen = _part(len(inner), fraction, seed)
        else:
            with HostRng(derive_seed(seed, "predicate")):
                chosen = [index for index in range(len(inner)) if predicate and predicate(inner[index])]
        super().__init__(inner, array("q", chosen))

    @classmethod
    def check_parts(cls, options: Mapping[str, Any], where: str) -> None:
        check_dataset(options["dataset"], f"{where}.dataset")
        _refuse_choice(*(options.get(name) for name in ("indices", "fraction", "predicate")))

    def set_epoch(self, epoch: int) -> None:
        enter_epoch(self.dataset, epoch)


@DATASETS.register_module()
class ClassBalancedDataset(View):
    """Samples of rare classes several times in each epoch (Gupta et al., LVIS, 2019).

    A class that is in the part f of the samples has the repeat factor ``max(1, sqrt(threshold / f))``, a
    sample the largest of its classes. It comes as often as the whole part of that says; of the rest,
    an epoch has as many as fit, which others have in other epochs, each as often as its factor says.

    Args:
        threshold: Classes in a smaller part of the samples than this come more often.
        labels: See `classes_of`; by default the attribute `targets` or `labels` of the data set.
        seed: Of which samples come once more in an epoch.
    """

    foreign_arguments: ClassVar[dict[str, str]] = {"oversample_thr": "threshold", "repeat_thr": "threshold"}

    def __init__(self, dataset: Any, threshold: float, labels: Labels | None = None, seed: int = 0) -> None:
        _refuse_threshold(threshold)
        super().__init__(dataset)
        classes = classes_of(self.dataset, labels, type(self).__name__)
        factors = torch.tensor(_factors(classes, threshold), dtype=torch.float64)
        whole = factors.floor()
        self._steady: array[int] = array(
            "q", torch.arange(len(classes)).repeat_interleave(whole.long()).tolist()
        )
        self._rest = (factors - whole).cumsum(0)
        self._extras = round(self._rest[-1].item()) if len(classes) else 0
        self._seed = seed
        self.set_epoch(0)

    @classmethod
    def check_parts(cls, options: Mapping[str, Any], where: str) -> None:
        super().check_parts(options, where)
        _refuse_threshold(options["threshold"])

    def index_of(self, position: int) -> int:
        position = range(len(self))[position]
        steady = len(self._steady)
        return self._steady[position] if position < steady else self._once_more[position - steady]

    def __len__(self) -> int:
        return len(self._steady) + self._extras

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        # Equal steps through the sums from a start by chance: each is met as often as its part says.
        start = derive_seed(self._seed, "balanced", epoch) / 2**63
        points = (torch.arange(self._extras, dtype=torch.float64) + start) / max(self._extras, 1)
        points = points * self._rest[-1] if self._extras else points
        found = torch.searchsorted(self._rest, points, right=True).clamp_(max=len(self._rest) - 1)
        self._once_more: array[int] = array("q", found.tolist())


def _built(spec: Any, where: str) -> Any:
    dataset = DATASETS.build(spec, where=where)
    kind = type(dataset).__name__
    if isinstance(dataset, data.IterableDataset):
        raise ConfigError(
            f"{where}: {kind} is an IterableDataset, whose samples have no index; have it repeat, choose or "
            "mix its samples itself, or give several loaders"
        )
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise ConfigError(f"{where}={dataset!r} is no data set; give an object, or a dict with 'type'")
    return dataset


def _factors(classes: Sequence[tuple[Hashable, ...]], threshold: float) -> list[float]:
    """How often a sample is to come, at least 1."""
    counts, samples = counts_of(classes), len(classes)
    factor = {one: max(1.0, sqrt(threshold * samples / count)) for one, count in counts.items()}
    return [max((factor[one] for one in several), default=1.0) for several in classes]


def _within(indices: Sequence[int] | Tensor, samples: int) -> list[int]:
    chosen = indices.tolist() if isinstance(indices, Tensor) else [_plain(index) for index in indices]
    for index in chosen:
        if type(index) is bool:
            raise ConfigError(
                f"Subset: indices has {index}, as a mask has; give the numbers of the samples, such as "
                "mask.nonzero()[:, 0]"
            )
        if type(index) is not int:
            raise ConfigError(f"Subset: indices has {index!r}, and no whole number")
        if not -samples <= index < samples:
            raise ConfigError(f"Subset: indices has {index}, and there are {samples} samples")
    return [index % samples for index in chosen]


def _plain(index: Any) -> Any:
    """A number as Python has it, where it is one of a tensor or of an array."""
    return index.item() if hasattr(index, "item") and not index.ndim else index


def _part(samples: int, fraction: float | Sequence[float], seed: int) -> list[int]:
    begin, end = (round(point * samples) for point in _ends(fraction))
    order = epoch_order(derive_seed(seed, "subset"), 0, samples, True)
    return sorted(indices_at(order, range(begin, end)))


def _ends(fraction: float | Sequence[float]) -> tuple[float, float]:
    ends = tuple(fraction) if isinstance(fraction, list | tuple) else (0.0, fraction)
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not numbers or not 0 <= ends[0] < ends[1] <= 1:
        raise ConfigError(
            f"Subset: fraction={fraction!r} must be a number above 0 and at most 1, or a pair of such "
            "between which to take samples, as (0, 0.9)"
        )
    return ends


def _refuse_choice(indices: Any, fraction: Any, predicate: Any) -> None:
    given = {"indices": indices, "fraction": fraction, "predicate": predicate}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        what = f"{' and '.join(named)} both choose samples" if named else "nothing says which samples to take"
        raise ConfigError(f"Subset: {what}; give one of indices=, fraction= and predicate=")
    if fraction is not None:
        _ends(fraction)
    if predicate is not None and not callable(predicate):
        raise ConfigError(f"Subset: predicate={predicate!r} cannot be called; give a function of a sample")


def _refuse_no_list(datasets: Any) -> None:
    if not isinstance(datasets, list | tuple) or not datasets:
        raise ConfigError(f"ConcatDataset: datasets={datasets!r} must be a list of data sets, one or more")


def _refuse_times(times: Any) -> None:
    if isinstance(times, bool) or not isinstance(times, int) or times < 1:
        raise ConfigError(f"RepeatDataset: times={times!r} must be a whole number, 1 or more")


def _refuse_threshold(threshold: Any) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
        raise ConfigError(
            f"ClassBalancedDataset: threshold={threshold!r} must be a part of the samples, above 0 and at "
            "most 1"
        )
