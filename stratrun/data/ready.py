"""Batches that come ready: lists, generators, and loaders that are not ours to take apart."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from stratrun.data import worker_signals
from stratrun.data.batch import batch_size_of
from stratrun.data.order import Share
from stratrun.data.source import (
    Cursor,
    Setting,
    Source,
    ended_early,
    enter_epoch,
    from_batch,
    refuse_other_ranks,
)
from stratrun.errors import DataError
from stratrun.seed import HostRng, derive_seed

_END = object()


class ReadySource(Source):
    """An iterable of batches, or a function that makes one, iterated anew for each epoch.

    What runs while it is iterated draws from generators of its own, seeded by the epoch, so that
    skipping what a resumed run has done leads to the same batches.
    """

    kind = "batches that come ready"

    def __init__(self, batches: Any, setting: Setting) -> None:
        self.dataset = getattr(batches, "dataset", batches)
        self._batches = batches
        worker_signals.leave_alone(batches)
        self._setting = setting
        self._seed = setting.seed
        self._used = False

    @property
    def ends_alone(self) -> bool:
        return self.left(Cursor()) is None

    @property
    def ahead(self) -> bool:
        # A generator may make its batches of what training has come to.
        return isinstance(self._batches, list | tuple | DataLoader)

    def start(self, cursor: Cursor) -> Iterator[tuple[Any, Share]]:
        epoch = cursor.epoch if self._setting.train else 0
        for part in parts_of(self._batches):
            enter_epoch(part, epoch)
        if isinstance(self._batches, list | tuple):
            # Nothing runs while a list is iterated, and it can be entered anywhere.
            if len(self._batches) < cursor.batches:
                raise ended_early(cursor.batches, len(self._batches), "batches", self._setting)
            return _with_shares(islice(self._batches, cursor.batches, None), cursor, self._setting)
        batches = _apart(self._open, derive_seed(self._seed, "batches", self._setting.purpose, epoch))
        return _with_shares(from_batch(batches, cursor.batches, 0, self._setting), cursor, self._setting)

    def left(self, cursor: Cursor) -> int | None:
        if isinstance(getattr(self._batches, "dataset", None), IterableDataset):
            return None
        try:
            return max(len(self._batches) - cursor.batches, 0)
        except (TypeError, NotImplementedError):
            return None

    def describe(self) -> str:
        return describe_ready(self._batches, self._setting)

    def state(self, cursor: Cursor) -> dict[str, Any]:
        return {"seed": self._seed, "world_size": self._setting.world_size}

    def go_on(self, state: Mapping[str, Any], cursor: Cursor) -> str:
        self._seed = state.get("seed", self._seed)
        refuse_other_ranks("batches that come ready", state, cursor, self._setting)
        return ""

    def _open(self) -> Iterator[Any]:
        made = self._batches() if _is_factory(self._batches) else self._batches
        batches: Iterator[Any] = iter(made)
        if batches is self._batches:
            if self._used:
                raise DataError(
                    f"{self._setting.name}: a {type(made).__name__} can be read only once, and this is the "
                    "second time; give the function that makes it, a list, or an object with __iter__"
                )
            self._used = True
        return batches


class StatefulSource(Source):
    """A loader that keeps its own position (`state_dict`): used as it is, its state saved.

    The state is that of this rank and goes with the checkpoint under the key `loader`.
    """

    kind = "a loader that keeps its own position"

    def __init__(self, loader: Any, setting: Setting) -> None:
        self.dataset = getattr(loader, "dataset", loader)
        self._loader = loader
        worker_signals.leave_alone(loader)
        self._setting = setting
        self._epoch: int | None = None
        self._drawn = 0
        # A state of the loader, and how many batches of the epoch it had handed out by then.
        # Without a state: as it was given.
        self._mark: tuple[Any, int] = (None, 0)
        self._behind = False
        # Whether a pass over the loader has begun and not ended, and whether that was so at the mark.
        self._running = False
        self._cut = False

    @property
    def ends_alone(self) -> bool:
        return True

    def start(self, cursor: Cursor) -> Iterator[tuple[Any, Share]]:
        for part in parts_of(self._loader):
            enter_epoch(part, cursor.epoch)
        if self._setting.train:
            self._find(cursor)
        done = self._mark[1]
        self._epoch, self._drawn, self._behind = cursor.epoch, done, False
        batches = from_batch(self._counted(), cursor.batches, done, self._setting)
        return _with_shares(batches, cursor, self._setting)

    def left(self, cursor: Cursor) -> None:
        return None

    def describe(self) -> str:
        return describe_ready(self._loader, self._setting) + "; its own state is saved"

    def state(self, cursor: Cursor) -> dict[str, Any]:
        self._take_mark(cursor)
        state, batches = self._mark
        own = {"state": state, "batches": batches, "cut": self._cut}
        return {"loader": own, "world_size": self._setting.world_size}

    def go_on(self, state: Mapping[str, Any], cursor: Cursor) -> str:
        refuse_other_ranks("a loader that keeps its own position", state, cursor, self._setting)
        own = state.get("loader") or {"state": None, "batches": 0}
        self._mark = (own["state"], own["batches"])
        self._cut = own.get("cut", False)
        self._epoch, self._behind = cursor.epoch, True
        return ""

    def _take_mark(self, cursor: Cursor) -> None:
        """Note the loader's state, unless it is ahead by a batch that is not done yet."""
        if self._behind or self._epoch is None:
            return
        if cursor.epoch != self._epoch:
            self._mark, self._cut = (self._loader.state_dict(), 0), self._running
        elif cursor.batches == self._drawn:
            self._mark, self._cut = (self._loader.state_dict(), cursor.batches), False

    def _find(self, cursor: Cursor) -> None:
        """Bring the loader to a position from which the cursor's can be reached by drawing."""
        self._take_mark(cursor)
        if self._mark[0] is None:
            return
        if self._cut:
            # What a pass that begins after one that was left does is the loader's affair. For a resumed
            # run to do the same, one is left here, from the saved state, in either run.
            self._loader.load_state_dict(self._mark[0])
            next(iter(self._loader), None)
        elif self._epoch == cursor.epoch:
            self._loader.load_state_dict(self._mark[0])

    def _counted(self) -> Iterator[Any]:
        self._running = True
        for batch in self._loader:
            self._drawn += 1
            yield batch
        self._running = False


def parts_of(loader: Any) -> list[Any]:
    """Whatever of a loader may want to know the epoch, each once."""
    names = ("sampler", "batch_sampler", "dataset")
    parts = [loader, *(getattr(loader, name, None) for name in names)]
    return list({id(part): part for part in parts if part is not None}.values())


def describe_ready(batches: Any, setting: Setting) -> str:
    text = f"batches of your {getattr(batches, '__name__', type(batches).__name__)}, which is left alone"
    if setting.world_size > 1:
        text += (
            f": each of {setting.world_size} ranks reads its own, and they read the same samples unless it "
        )
        text += "shares them out"
    return text


def _is_factory(batches: Any) -> bool:
    return callable(batches) and not hasattr(batches, "__iter__")


def _apart(open_batches: Callable[[], Iterator[Any]], seed: int) -> Iterator[Any]:
    """Iterate with random generators of its own."""
    rng = HostRng(seed)
    with rng:
        batches = open_batches()
    while True:
        with rng:
            batch = next(batches, _END)
        if batch is _END:
            return
        yield batch


def _with_shares(batches: Iterable[Any], cursor: Cursor, setting: Setting) -> Iterator[tuple[Any, Share]]:
    alone = setting.world_size == 1
    start = cursor.consumed
    for batch in batches:
        size = batch_size_of(batch)
        if not alone or size is None:
            yield batch, Share(size, 1.0, None, None, 0)
        else:
            yield batch, Share(size, 1.0, range(start, start + size), size, size)
            start += size
