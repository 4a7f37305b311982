"""What loops iterate: batches of an epoch from a position that can be saved."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from stratrun.data.ending import DataEnd
from stratrun.data.in_step import InStep
from stratrun.data.limited import LimitedSource
from stratrun.data.order import Share
from stratrun.data.part import Origin
from stratrun.data.source import Cursor, Setting, Source, refuse_other_data
from stratrun.errors import DataError
from stratrun.state import BatchInfo


class Beside(Protocol):
    """Copies to the device beside its work: an accelerator's `SideCopies`."""

    def over(
        self, batches: Iterator[tuple[Any, Share]], move: Callable[[Any], Any], *, ahead: bool
    ) -> Iterator[tuple[Any, Share]]: ...


class Feed:
    """Batches on the device, with a note on each (`BatchInfo`) for engine and evaluator.

    Training: the position counts finished batches. A batch is finished when `finish` says so, or when
    the next is asked for. Iterating begins at the position; iterating again after the end of an
    epoch begins the next. Evaluation: iterating begins at the first batch every time.
    """

    def __init__(
        self,
        source: Source,
        setting: Setting,
        batch: BatchInfo,
        move: Callable[[Any], Any],
        in_step: InStep | None = None,
        *,
        end: DataEnd | None = None,
        beside: Beside | None = None,
    ) -> None:
        self._source = source
        self._setting = setting
        self._batch = batch
        self._move = move
        # None too for training, where no rank is short of a batch.
        self._in_step = None if setting.train else in_step
        self._end = end if setting.train and source.ends_alone else None
        self._beside = beside
        self._cursor = Cursor()
        # How far the batch in hand will move the cursor; None when there is none.
        self._in_hand: int | None = None
        # Which of several loaders it is of.
        self._origin: Origin | None = None
        self._ended = False
        self._pass: object = None
        self._resumed = ""

    def __iter__(self) -> Iterator[Any]:
        if not self._setting.train:
            self._to(self._cursor.epoch)
        elif self._ended:
            self._to(self._cursor.epoch + 1)
        self._in_hand, self._pass = None, object()
        mine = self._pass
        info, finish, train = self._batch, self.finish, self._setting.train
        indices = partial(self._source.indices, self._cursor.epoch)
        found = self._cursor.batches
        started, move = self._started(), self._move
        if self._beside is not None:
            # Where ranks keep in step, each reads when it says so.
            ahead = self._source.ahead and self._in_step is None
            started, move = self._beside.over(started, move, ahead=ahead), _as_it_is
        for batch, share in started:
            info.size, info.scale, info.positions, info.total, self._in_hand, origin = share
            info.loader, self._origin = None, origin
            if origin is not None:
                info.loader, self._cursor.parts = origin.loader, origin.before
            if train:
                info.finish, info.indices = finish, indices
            yield move(batch)
            if self._pass is not mine:
                raise DataError(
                    f"{self._setting.name}: its position was changed within a loop over it, by a second "
                    "loop, set_epoch, epoch_done or load_state_dict; a second loop needs one of its own "
                    "(runner.build_dataloader)"
                )
            finish()
            found += 1
        self._ended = True
        if train and not found:
            raise DataError(
                f"{self._setting.name}: an epoch without a single batch; check that the data is there, "
                "and that it can be read more than once"
            )

    def __len__(self) -> int:
        """Batches of this rank in the current epoch: those done and those left."""
        left = self._source.left(self._cursor)
        if left is None:
            raise TypeError(
                f"{self._setting.name} has no length: how many batches there are shows only when they end; "
                "ask `sized` first, and count in iterations (by_epoch=False, max_iters=...)"
            )
        return self._cursor.batches + left

    @property
    def sized(self) -> bool:
        """Whether `len()` has an answer."""
        return self._source.left(self._cursor) is not None

    @property
    def epoch_length(self) -> int | None:
        """Batches of this rank in an epoch that begins now; None when unknown."""
        return self._source.left(Cursor(self._cursor.epoch + 1))

    @property
    def lengths(self) -> list[int | None]:
        """Batches that are left of each loader: of one, where there are not several."""
        return self._source.lengths(self._cursor)

    @property
    def dataset(self) -> Any:
        """What the samples come from, as the user gave it; of several loaders a dict."""
        return self._source.dataset

    @property
    def epoch(self) -> int:
        return self._cursor.epoch

    @property
    def batches_done(self) -> int:
        """Finished batches of the epoch, so also the number of the batch in hand or next."""
        return self._cursor.batches

    def set_epoch(self, epoch: int) -> None:
        """Begin `epoch`; in the middle of that very epoch, stay where we are."""
        if epoch != self._cursor.epoch or self._ended:
            self._to(epoch)

    def epoch_done(self) -> None:
        """To the beginning of the next epoch, whatever is left of this one."""
        self._to(self._cursor.epoch + 1)

    def finish(self) -> None:
        """Count the batch in hand as done."""
        if self._in_hand is not None:
            self._cursor.consumed += self._in_hand
            self._cursor.batches += 1
            if self._origin is not None:
                self._cursor.parts = self._origin.after
            self._in_hand = None

    def reseed(self, seed: int) -> None:
        """Draw as a run with this seed does: for data beside that of training, which saves its seed."""
        self._source.reseed(seed)

    def close(self) -> None:
        """End the workers. Iterating again starts them again."""
        self._source.close()

    def describe(self) -> str:
        """One line on the data, for the summary at the start of a run."""
        return f"{self._setting.name}: {self._source.describe()}{self._resumed}"

    def state_dict(self) -> dict[str, Any]:
        """Position and what else decides which samples are still to come.

        Equal on every rank, and good for any number of them, but for the key `loader`, which is
        there only for a loader that keeps a position of its own on each rank.
        """
        cursor, limit = self._cursor, self._source.limit(self._cursor.epoch)
        return {
            "epoch": cursor.epoch,
            "consumed": cursor.consumed,
            "batches": cursor.batches,
            "kind": self._source.kind,
            **({} if limit is None else {"limit": limit, "same": self._setting.same}),
            **self._source.state(cursor),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, on the same or another number of ranks.

        Raises:
            DataError: the samples still to come cannot be told.
        """
        cursor = Cursor(state["epoch"], state["consumed"], state["batches"])
        kind = self._source.kind
        refuse_other_data("kind", state.get("kind", kind), kind, cursor, self._setting)
        same = self._setting.same
        refuse_other_data("overfit_batches", state.get("same", False), same, cursor, self._setting)
        told = [self._source.go_on(state, cursor)]
        then, now = state.get("limit"), self._source.limit(cursor.epoch)
        if cursor.batches and then != now:
            words = [f"{one} batches" if one else "all its batches" for one in (then, now)]
            told.append(f"the epoch in hand was to have {words[0]}, and has {words[1]} from here on")
        changed = "; ".join(filter(None, told))
        self._cursor, self._in_hand, self._ended, self._pass = cursor, None, False, None
        self._resumed = f"; {changed}" if changed else ""
        if cursor.batches:
            done = f"{cursor.consumed} samples" if cursor.consumed else f"{cursor.batches} batches"
            self._resumed = f"; goes on in epoch {cursor.epoch} after {done}{self._resumed}"

    def _started(self) -> Iterator[tuple[Any, Share]]:
        source, ranks = self._source, self._setting.world_size
        batches = source.start(self._cursor)
        if self._end is not None:
            return self._end.over(batches, self._cursor.batches, ahead=source.ahead)
        if self._in_step is None:
            return batches
        everywhere = (lambda share: share.advance >= ranks) if source.shared_out else None
        return self._in_step.over(batches, everywhere, source.left(self._cursor))

    def _to(self, epoch: int) -> None:
        self._cursor = Cursor(epoch)
        self._in_hand, self._ended, self._pass = None, False, None


@contextmanager
def unmoved(feed: Feed) -> Iterator[None]:
    """Have the feed be after the block where it was before, whatever is read in between."""
    feed._source.hold(feed._cursor)
    state, told, ended = feed.state_dict(), feed._resumed, feed._ended
    try:
        yield
    finally:
        feed.load_state_dict(state)
        feed._resumed, feed._ended = told, ended


@contextmanager
def limited_to(batches: int, feed: Feed) -> Iterator[None]:
    """Have passes over evaluation data end after so many batches of each rank, within the block."""
    source = feed._source
    feed._source = LimitedSource(source, batches, feed._setting)
    try:
        yield
    finally:
        feed._source = source


def _as_it_is(batch: Any) -> Any:
    return batch
