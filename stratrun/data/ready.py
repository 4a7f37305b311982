"""Batches that come ready: lists, generators, and loaders that are not ours to take apart."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from itertools import islice
from typing import Any, NamedTuple

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
        self.dataset: Any = getattr(batches, "dataset", batches)
        self._batches = batches
        worker_signals.leave_alone(batches)
        self._setting = setting
        self._seed = setting.seed
        self._used = False
        self._first: Any = None

    @property
    def ends_alone(self) -> bool:
        return self.left(Cursor()) is None

    @property
    def ahead(self) -> bool:
        # A generator may make its batches of what training has come to.
        return isinstance(self._batches, list | tuple | DataLoader)

    def start(self, cursor: Cursor) -> Iterator[tuple[Any, Share]]:
        epoch = self._setting.order_of(cursor.epoch)
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
        if self._setting.same and keeps_position(self._batches):
            # Where it is used as it is, it may go on where it was left.
            if self._first is None:
                self._first = deepcopy(self._batches.state_dict())
            else:
                self._batches.load_state_dict(deepcopy(self._first))
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


class Mark(NamedTuple):
    """A state of a loader, and what the loader was at."""

    state: Any = None
    """None: as it was given."""
    batches: int = 0
    """Batches of the pass that it had handed out by then."""
    cut: bool = False
    """Whether a pass before this one was left before its end."""
    over: bool = False
    """Whether it had told of the end of the pass."""


class StatefulSource(Source):
    """A loader that keeps its own position (`state_dict`): used as it is, its state saved.

    The state is that of this rank and goes with the checkpoint under the key `loader`.
    """

    kind = "a loader that keeps its own position"

    def __init__(self, loader: Any, setting: Setting) -> None:
        self.dataset: Any = getattr(loader, "dataset", loader)
        self._loader = loader
        worker_signals.leave_alone(loader)
        self._setting = setting
        # The epoch of the pass that was begun last; None before the first, and between two of an epoch.
        self._epoch: int | None = None
        self._drawn = 0
        self._mark = Mark()
        # Whether the mark is that of a checkpoint, which the loader has yet to be given.
        self._behind = False
        # Whether a pass over the loader has begun and not ended, and whether the last has told of its end.
        self._running = self._over = False

    @property
    def ends_alone(self) -> bool:
        return True

    def start(self, cursor: Cursor) -> Iterator[tuple[Any, Share]]:
        for part in parts_of(self._loader):
            enter_epoch(part, cursor.epoch)
        if self._setting.train:
            self._take_mark(cursor)
            if self._mark.over and self._epoch == cursor.epoch and self._mark.batches == cursor.batches:
                # Asked for another batch, it would begin the next pass.
                return iter(())
        given = self._setting.train and self._find(cursor)
        done = self._mark.batches
        self._epoch, self._drawn, self._behind, self._over = cursor.epoch, done, False, False
        batches = self._counted(ended=given and not done)
        batches = from_batch(batches, cursor.batches, done, self._setting)
        return _with_shares(batches, cursor, self._setting)

    def left(self, cursor: Cursor) -> None:
        return None

    def describe(self) -> str:
        return describe_ready(self._loader, self._setting) + "; its own state is saved"

    def state(self, cursor: Cursor) -> dict[str, Any]:
        self._take_mark(cursor)
        return {"loader": self._mark._asdict(), "world_size": self._setting.world_size}

    def go_on(self, state: Mapping[str, Any], cursor: Cursor) -> str:
        refuse_other_ranks("a loader that keeps its own position", state, cursor, self._setting)
        own = state.get("loader") or {}
        self._mark = Mark(**{name: own[name] for name in Mark._fields if name in own})
        self._epoch, self._behind = cursor.epoch, True
        return ""

    def hold(self, cursor: Cursor) -> None:
        if self._epoch is None and self._mark.state is None:
            # A run that is resumed has a loader as it was given; in this process it will have been read.
            self._mark, self._epoch = Mark(self._loader.state_dict()), cursor.epoch
            self._behind = True

    def pass_done(self) -> None:
        if not self._behind and self._epoch is not None:
            self._mark = Mark(self._loader.state_dict(), cut=self._running)
            self._epoch, self._drawn = None, 0

    def _take_mark(self, cursor: Cursor) -> None:
        """Note the loader's state, unless it is ahead by a batch that is not done yet."""
        if self._behind or self._epoch is None:
            return
        if cursor.epoch != self._epoch:
            self._mark = Mark(self._loader.state_dict(), cut=self._running)
        elif cursor.batches == self._drawn:
            self._mark = Mark(self._loader.state_dict(), cursor.batches, over=self._over)

    def _find(self, cursor: Cursor) -> bool:
        """Bring the loader to a position from which the cursor's can be reached by drawing.

        Returns:
            Whether it stands where a state that it was given says.
        """
        state, batches, cut, over = self._mark
        if state is None:
            return False
        other = cursor.epoch != self._epoch
        if self._behind and other and batches:
            # Saved in a pass that is not gone on with.
            cut = not over
            self._mark = Mark(state, cut=cut)
        if cut:
            # What a pass that begins after one that was left does is the loader's affair. For a resumed
            # run to do the same, one is left here, from the saved state, in either run.
            self._loader.load_state_dict(state)
            next(iter(self._loader), None)
            return False
        if self._behind or not other:
            self._loader.load_state_dict(state)
            return True
        return False

    def _counted(self, *, ended: bool) -> Iterator[Any]:
        """A pass over the loader.

        Args:
            ended: Whether it has a state from the end of a pass: some loaders go on with what that has left,
                nothing, before they begin another.
        """
        self._running = True
        first = next(batches := iter(self._loader), _END)
        if first is _END and ended:
            first = next(batches := iter(self._loader), _END)
        while first is not _END:
            self._drawn += 1
            yield first
            first = next(batches, _END)
        self._running, self._over = False, True


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


def keeps_position(batches: Any) -> bool:
    return all(callable(getattr(batches, name, None)) for name in ("state_dict", "load_state_dict"))


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
