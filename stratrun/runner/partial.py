"""Parts of a checkpoint, or weights of any origin, into a run that is built: what `load_from` does."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from stratrun.checkpoint.agreement import decided_by_main, together
from stratrun.checkpoint.discovery import newest_in
from stratrun.checkpoint.mapping import Fit, fit, refuse
from stratrun.checkpoint.moments import fit_optimizer, refuse_other_class, with_options
from stratrun.checkpoint.parts import (
    OF_A_RANK,
    PARTS,
    LoadFrom,
    LoadReport,
    averages_in,
    read_file,
    read_shared,
)
from stratrun.checkpoint.selection import BEST, LAST, near, path_of, split_name
from stratrun.checkpoint.weights import MODEL, averaged
from stratrun.distributed import Collectives
from stratrun.errors import CheckpointError, CheckpointNotFoundError, ConfigError, nearest
from stratrun.optim.optimizer import DEFAULT
from stratrun.runner import persistence
from stratrun.runner.context import RunnerContext
from stratrun.seed import set_host_rng_state
from stratrun.storage import Folder

T = TypeVar("T")
Apply = Callable[[], None]


def load_parts(
    runner: RunnerContext, ranks: Collectives, wanted: LoadFrom, parts: tuple[str, ...]
) -> LoadReport:
    """Bring `parts` of what is stored into the run: all that fits, or nothing with an error.

    Raises:
        CheckpointError: it cannot be read, or does not fit; the same on every rank.
    """
    folder = find(runner, ranks, wanted.path, wanted.options, str(wanted))
    stored = _read(runner, ranks, folder, wanted, parts)
    loading = _Loading(runner, wanted, stored, LoadReport(stored.url, parts))
    for kind in stored.averaged:
        loading.report.notes.append(
            "the weights as they were trained; their averages, which validation was made with, are "
            f"there too: weights={kind!r} takes them"
        )
    plan = _agreed(ranks, lambda: [step for part in parts for step in loading.plan(part)])
    _agreed(ranks, lambda: [step() for step in (loading.load_engine, *plan)])
    return loading.report


def find(
    runner: RunnerContext, ranks: Collectives, given: str, options: Mapping[str, Any], what: str
) -> Folder:
    """What a path, a URL, or a name such as ``best`` leads to, the same on every rank.

    Args:
        what: The argument that `given` is of, for messages.

    Raises:
        CheckpointNotFoundError: it is a name that stands for nothing.
    """
    folder, name = split_name(given)
    if name is None:
        return Folder(given, **options)
    start = Folder(folder, **options) if folder else runner.checkpointer.folder

    def below() -> str | None:
        if folder and Folder(given, **options).exists():
            return None
        try:
            return path_of(start, name)
        except CheckpointError as error:
            raise type(error)(f"{what}: {error}") from error

    path = _by_main(ranks, below)
    return Folder(given, **options) if path is None else start.child(path)


def meant(given: str) -> str:
    """Ends a message on a path that is not there: the name that may have been meant by it."""
    word = near(given.rpartition("/")[2])
    return f"; did you mean the name {word!r}?" if word in (BEST, LAST) else ""


class _Stored(NamedTuple):
    """What was read, every byte of it verified."""

    shared: dict[str, Any]
    own: Any
    """State of this rank; None where there is none."""
    url: str
    none_from: int | None = None
    """The first rank of this run that the saved one did not have."""
    averaged: tuple[str, ...] = ()
    """Which averages of the weights there are, where others are taken."""


def _read(
    runner: RunnerContext, ranks: Collectives, folder: Folder, wanted: LoadFrom, parts: tuple[str, ...]
) -> _Stored:
    if _by_main(ranks, folder.is_file):
        return _Stored(_agreed(ranks, lambda: _prefixed(wanted, lambda: read_file(wanted))), None, wanted.url)
    path = _by_main(ranks, lambda: _prefixed(wanted, lambda: newest_in(folder)))
    folder = folder.child(path) if path else folder
    plain = wanted.weights == "model" and "model" in parts
    averaged = tuple(_by_main(ranks, lambda: _prefixed(wanted, lambda: averages_in(folder))) if plain else ())
    if OF_A_RANK & set(parts):
        room = runner.engine.saved.rooms.room
        loaded = _prefixed(wanted, lambda: runner.checkpointer.load(folder, room))
        lacking = [rank for rank, own in enumerate(ranks.gather(loaded.own is not None)) if not own]
        none_from = lacking[0] if lacking else None
        return _Stored(dict(loaded.shared), loaded.own, folder.url, none_from, averaged)
    keys = _keys(wanted, parts)
    room = runner.engine.saved.rooms.room
    read = functools.partial(read_shared, folder, keys, wanted.rename, room)
    shared = _agreed(ranks, lambda: _prefixed(wanted, read))
    return _Stored(shared, None, folder.url, None, averaged)


def _keys(wanted: LoadFrom, parts: tuple[str, ...]) -> list[str]:
    """Entries of the shared state that are needed."""
    keys = dict.fromkeys(key for part in parts for key in PARTS[part])
    if "optimizer" in parts:
        keys[MODEL] = None  # whose shapes say which moments fit
    if "counters" in parts:
        keys["data"] = None  # which says whether they stand within an epoch
    if wanted.weights != "model" and "model" in parts:
        keys["hooks"] = None
    return list(keys)


class _Loading:
    """What becomes of each part. All is held against the run before any of it is changed."""

    def __init__(self, runner: RunnerContext, wanted: LoadFrom, stored: _Stored, report: LoadReport) -> None:
        self.report = report
        self._runner = runner
        self._wanted = wanted
        self._shared, self._own, self._none_from = stored.shared, stored.own, stored.none_from
        self._engine: dict[str, Any] = {}
        """What the engine is to load; the rest of it stays as it is."""

    def plan(self, part: str) -> list[Apply]:
        """What is to be done for a part. See `PARTS` for the order."""
        plans = {
            "model": self._model,
            "optimizer": self._optimizer,
            "scheduler": self._scheduler,
            "precision": self._precision,
            "counters": self._counters,
            "hooks": self._hooks,
            "data": self._data,
            "rng": self._rng,
        }
        return plans[part]()

    @functools.cached_property
    def _weights(self) -> tuple[Fit, dict[str, Any]]:
        stored = self._shared[MODEL]
        kind = self._wanted.weights
        if kind != "model" and "model" in self.report.parts:
            hooks, url = self._shared["hooks"], self.report.url
            stored = _prefixed(self._wanted, lambda: averaged(stored, hooks, url, kind))
        own = self._runner.engine.state_module.state_dict()
        return _prefixed(self._wanted, lambda: fit(stored, own, self._wanted.rename))

    def _model(self) -> list[Apply]:
        found, values = self._weights
        wanted = self._wanted
        refuse(found, f"{wanted} does not fit the model", strict=wanted.strict, skip=wanted.skip)
        self.report.fits["model"] = found
        state = self._runner.engine.state_module.state_dict()  # with the versions of the modules
        state.update(values)
        self._engine["model"] = state
        return []

    def load_engine(self) -> None:
        engine = self._runner.engine
        if self._engine.keys() - {"model"}:
            engine.saved.load_shared_state({**engine.saved.shared_state(), **self._engine})
        elif self._engine:
            _prefixed(self._wanted, lambda: engine.saved.load_model(self._engine["model"]))

    def _optimizer(self) -> list[Apply]:
        runner, wanted, stored = self._runner, self._wanted, self._shared["optimizers"]
        if "model" not in self.report.parts:
            refuse(
                self._weights[0], f"{wanted} does not fit the model", strict=wanted.strict, skip=wanted.skip
            )
        renamed = wanted.rename.apply(self._shared[MODEL])
        present = runner.engine.saved.shared_state()["optimizers"]
        merged: dict[str, Any] = {}
        for key, own in present.items():
            what = f"{wanted} does not fit {_called(key)}"
            if key in stored:
                merged[key] = self._one_optimizer(key, own, stored[key], renamed, what)
            elif wanted.strict:
                raise CheckpointError(f"{what}: it has none of that name; {nearest(key, stored)}")
            else:
                self.report.notes.append(f"{_called(key)}: not there, left as it is")
        strange = [key for key in stored if key not in present]
        if strange and wanted.strict:
            raise CheckpointError(
                f"{wanted}: this run has no optimizer {strange[0]!r}; {nearest(strange[0], present)}"
            )
        self._engine["optimizers"] = {**present, **merged}
        return []

    def _one_optimizer(
        self, key: str, own: dict[str, Any], stored: dict[str, Any], renamed: Mapping[str, Any], what: str
    ) -> dict[str, Any]:
        runner, wanted, optimizer = self._runner, self._wanted, self._runner.engine.optimizers[key]
        found, merged = fit_optimizer(own, stored, renamed, self._weights[0])
        refuse(found, what, strict=wanted.strict, skip=wanted.skip)
        try:
            refuse_other_class(stored, optimizer.defaults, type(optimizer).__name__)
            optioned, done = with_options(merged, stored, renamed, strict=wanted.strict)
        except CheckpointError as error:
            raise CheckpointError(f"{what}: {error}") from error
        self.report.fits[_called(key)] = found
        if runner.schedules and "scheduler" not in self.report.parts:
            self.report.notes.append(f"{_called(key)}: learning rates as the schedule of this run has them")
            return merged
        if not done:
            self.report.notes.append(f"{_called(key)}: groups cut differently, their options are this run's")
        return optioned

    def _precision(self) -> list[Apply]:
        self.report.notes.append("precision")
        self._engine["precision"] = self._shared["precision"]
        return []

    def _scheduler(self) -> list[Apply]:
        stored, own = self._shared["schedules"], self._runner.schedules
        if len(stored) != len(own):
            told = f"it has {len(stored)} learning rate schedules, and this run {len(own)}"
            if self._wanted.strict:
                raise CheckpointError(
                    f"{self._wanted}: {told}; use the same param_scheduler, or leave 'scheduler' out of parts"
                )
            self.report.notes.append(f"scheduler: left as it is, as {told}")
            return []
        self.report.notes.append(f"scheduler: {len(own)} loaded")
        return [functools.partial(one.load_state_dict, state) for one, state in zip(own, stored, strict=True)]

    def _counters(self) -> list[Apply]:
        counters, state = self._shared["counters"], self._runner.state
        told = f"counters: epoch {counters['epoch']}, iteration {counters['iter']}"
        if "data" not in self.report.parts and self._shared["data"].get("batches"):
            told += ", within an epoch whose data begins anew"
        self.report.notes.append(told)
        return [lambda: state.load_state_dict(counters)]

    def _hooks(self) -> list[Apply]:
        own = persistence.named_hooks(self._runner.hooks)
        stored = {name: state for name, state in self._shared["hooks"].items() if state}
        strange = [name for name in stored if name not in own]
        lacking = [name for name, hook in own.items() if name not in stored and hook.state_dict()]
        told = [f"there is state of {name!r}, which this run has not" for name in strange]
        told += [f"there is no state of {name!r}" for name in lacking]
        if told and self._wanted.strict:
            raise CheckpointError(
                f"{self._wanted} does not fit the hooks: {'; '.join(told)}; strict=False loads what fits"
            )
        loaded = [name for name in own if name in stored]
        self.report.notes.append("; ".join([f"hooks: {', '.join(loaded) or 'none had state'}", *told]))
        return [functools.partial(own[name].load_state_dict, stored[name]) for name in loaded]

    def _data(self) -> list[Apply]:
        runner, data, seed = self._runner, self._shared["data"], self._shared["seed"]
        feed = runner.train_dataloader
        if feed is None or not data:
            whose = "this run" if feed is None else "the run that was saved"
            raise CheckpointError(
                f"{self._wanted}: there is no position in the data to load, as the training loop of {whose} "
                "has a loader of its own; leave 'data' out of parts"
            )
        loader = None if self._own is None else self._own["loader"]
        own = {} if loader is None else {"loader": loader}
        self.report.notes.append(f"data: epoch {data['epoch']} after {data['consumed']} samples")
        if self._own is not None and self._own["engine"].get("window"):
            self.report.notes.append("gradients of an open accumulation window are left out")
        return [lambda: runner.reseed(seed), lambda: feed.load_state_dict({**data, **own})]

    def _rng(self) -> list[Apply]:
        runner, own, first = self._runner, self._own, self._none_from
        self.report.notes.append(
            "rng" if first is None else f"rng, those of ranks from {first} on seeded anew"
        )
        if own is None:
            return [lambda: persistence.reseed(runner, runner.seed)]
        device = {"rng": own["engine"]["rng"], "window": {}, "strategy": {}}
        return [
            lambda: runner.engine.saved.load_own_state(device),
            lambda: set_host_rng_state(own["rng"]),
        ]


def _called(key: str) -> str:
    """What an optimizer is called in messages: by its name, if the user gave it one."""
    return "the optimizer" if key == DEFAULT else f"optimizer {key!r}"


def _prefixed(wanted: LoadFrom, action: Callable[[], T]) -> T:
    """Run it, and have what goes wrong say which argument it was about."""
    try:
        return action()
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(f"{wanted}: {error}{meant(wanted.path)}") from error
    except (CheckpointError, ConfigError) as error:
        if str(error).startswith(str(wanted)):
            raise
        raise type(error)(f"{wanted}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{wanted} cannot be read: {error}") from error


def _agreed(ranks: Collectives, action: Callable[[], T]) -> T:
    return together(ranks, "load_from", action, plainly=True)


def _by_main(ranks: Collectives, action: Callable[[], T]) -> T:
    """What the main rank finds: others may look a moment later, and find more."""
    return decided_by_main(ranks, "load_from", action, plainly=True)
