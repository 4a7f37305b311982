"""What users say about loading, from a dict or from a ready-made `DataLoader`."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from stratrun.data import worker_signals
from stratrun.data.source import Setting
from stratrun.errors import ConfigError, nearest
from stratrun.problems import part
from stratrun.registry import COLLATES
from stratrun.registry.arguments import at

DEFAULT_BATCH_SIZE = 32
OWN_KEYS = ("global_batch_size", "seed_samples", "sharded")
# Handed to workers, so without meaning, and refused by DataLoader, where there are none.
WORKER_KEYS = ("prefetch_factor", "persistent_workers", "multiprocessing_context", "timeout")
_ORDER_KEYS = ("dataset", "batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", "generator")
_FLAGS = ("shuffle", "drop_last", "pin_memory", "seed_samples", "sharded")
_PASSED_ON = tuple(
    key
    for key in inspect.signature(DataLoader).parameters
    if key not in (*_ORDER_KEYS, "num_workers", "collate_fn", "pin_memory", "pin_memory_device", "in_order")
)


@dataclass(frozen=True)
class LoaderOptions:
    """How samples become batches. The order of samples is not in it."""

    batch_size: int | None = DEFAULT_BATCH_SIZE
    """Samples of a batch on one rank. None: the data set's items are batches already."""
    drop_last: bool = False
    collate_fn: Callable[[Any], Any] | None = None
    num_workers: int = 0
    pin_memory: bool = True
    """Whether the user has nothing against it."""
    seed_samples: bool = True
    sharded: bool = False
    """Whether the (iterable) data set itself gives each rank its own samples."""
    rest: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that `DataLoader` gets unchanged."""

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any], setting: Setting) -> "LoaderOptions":
        check_options(spec, setting)
        return cls(
            batch_size=_batch_size(spec, setting, getattr(spec, "places", {})),
            drop_last=bool(spec.get("drop_last", False)),
            collate_fn=COLLATES.build(spec.get("collate_fn"), where=f"{setting.name}.collate_fn"),
            num_workers=spec.get("num_workers", 0),
            pin_memory=bool(spec.get("pin_memory", True)),
            seed_samples=bool(spec.get("seed_samples", True)),
            sharded=bool(spec.get("sharded", False)),
            rest={key: spec[key] for key in _PASSED_ON if key in spec},
        )

    @classmethod
    def from_loader(cls, loader: DataLoader[Any]) -> "LoaderOptions":
        """What a ready-made loader was given. Its batch size is that of one rank."""
        items = loader.batch_sampler is None
        return cls(
            # A loader with a batch sampler of the user's has no batch size either.
            batch_size=None if items else loader.batch_size or DEFAULT_BATCH_SIZE,
            drop_last=loader.drop_last,
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            rest={key: getattr(loader, key) for key in _PASSED_ON},
        )

    @staticmethod
    def size_of(spec: Mapping[str, Any], setting: Setting) -> int | None:
        """Samples of a batch on one rank; None where the items of the data set are batches."""
        return _batch_size(spec, setting, getattr(spec, "places", {}))

    @property
    def draws_apart(self) -> bool:
        """Whether what is drawn while a batch is read comes from other generators than the run's."""
        return self.seed_samples or self.num_workers > 0

    def make_loader(self, dataset: Any, setting: Setting, **given: Any) -> DataLoader[Any]:
        """A `DataLoader` that draws nothing from the run's own generators.

        Raises:
            ConfigError: `DataLoader` refuses an argument.
        """
        rest = dict(self.rest)
        if self.num_workers:
            rest.setdefault("persistent_workers", True)
            rest["worker_init_fn"] = WorkerStart(rest.get("worker_init_fn"))
        else:
            rest = {key: value for key, value in rest.items() if key not in WORKER_KEYS}
        try:
            return DataLoader(
                dataset,
                num_workers=self.num_workers,
                pin_memory=self.pin_memory and setting.pin_memory,
                generator=torch.Generator(),
                **rest,
                **given,
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{setting.name}: DataLoader refuses its arguments: {error}") from error


class WorkerStart:
    """First call in a worker: it shows the user's data set, rather than what is wrapped around it."""

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then = then
        self._ignore_signals = worker_signals.Ignore()

    def __call__(self, worker_id: int) -> None:
        worker = get_worker_info()
        assert worker is not None
        self._ignore_signals()
        # Frozen, but PyTorch's manual has users change their data set through it.
        object.__setattr__(worker, "dataset", worker.dataset.dataset)  # type: ignore[attr-defined]
        if self._then is not None:
            self._then(worker_id)


def known_keys() -> Iterable[str]:
    return (*_ORDER_KEYS, *_PASSED_ON, "num_workers", "collate_fn", "pin_memory", *OWN_KEYS)


def check_options(spec: Mapping[str, Any], setting: Setting) -> None:
    """Refuse what a dict says about batches, building nothing.

    Raises:
        ConfigError: a key is unknown, or a value will not do.
    """
    _refuse_unknown(spec, setting)
    places = getattr(spec, "places", {})
    with part():
        _whole("num_workers", spec.get("num_workers", 0), setting, places, least=0)
    with part():
        _batch_size(spec, setting, places)
    for key in _FLAGS:
        if not isinstance(spec.get(key), bool | None):
            with part():
                shown = f"{key}={spec[key]!r}"
                raise ConfigError(f"{setting.name}: {shown} must be True or False{at(places, key)}")
    with part():
        _check_collate(spec, setting, places)


def _check_collate(spec: Mapping[str, Any], setting: Setting, places: Mapping[str, str]) -> None:
    collate = spec.get("collate_fn")
    if isinstance(collate, str | type | Mapping):
        COLLATES.check(collate, where=f"{setting.name}.collate_fn")
    elif collate is not None and not callable(collate):
        raise ConfigError(
            f"{setting.name}: collate_fn={collate!r} cannot be called; give a function, a name or a dict "
            f"with 'type'{at(places, 'collate_fn')}"
        )


def _refuse_unknown(spec: Mapping[str, Any], setting: Setting) -> None:
    places = getattr(spec, "places", {})
    for key in spec:
        with part():
            _refuse_key(key, setting, at(places, key))


def _refuse_key(key: str, setting: Setting, place: str) -> None:
    if key == "in_order":
        raise ConfigError(
            f"{setting.name}: in_order= has no place here: batches come in the order that the position "
            f"counts; leave it out{place}"
        )
    if key == "generator":
        raise ConfigError(
            f"{setting.name}: generator= has no place here: the order is a function of the run's seed "
            f"and the epoch; set randomness=dict(seed=...){place}"
        )
    if key not in known_keys():
        raise ConfigError(f"{setting.name} takes no argument {key!r}; {nearest(key, known_keys())}{place}")


def _batch_size(spec: Mapping[str, Any], setting: Setting, places: Mapping[str, str]) -> int | None:
    if "global_batch_size" not in spec:
        size = spec.get("batch_size", DEFAULT_BATCH_SIZE)
        return None if size is None else _whole("batch_size", size, setting, places)
    if "batch_size" in spec:
        raise ConfigError(
            f"{setting.name}: batch_size (of one rank) and global_batch_size (of all) say the same thing; "
            f"give one of them{at(places, 'global_batch_size')}"
        )
    size = _whole("global_batch_size", spec["global_batch_size"], setting, places)
    per_rank, rest = divmod(size, setting.world_size)
    if rest:
        # Of two that are as near, the smaller, which fits where this would.
        near = max(per_rank + (2 * rest > setting.world_size), 1) * setting.world_size
        raise ConfigError(
            f"{setting.name}: global_batch_size={size} cannot be shared equally by {setting.world_size} "
            f"ranks; the nearest that can is {near}{at(places, 'global_batch_size')}"
        )
    return per_rank


def _whole(key: str, value: Any, setting: Setting, places: Mapping[str, str], least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"{setting.name}: {key}={value!r} must be a whole number, {least} or more{at(places, key)}"
        )
    return value
