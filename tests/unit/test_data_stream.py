"""Streams: data sets that show their end only when it comes."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stratrun.errors import DataError
from tests.feeds import Stream, in_global_order, make_feed, on_ranks, rest_of_epoch


@pytest.mark.parametrize("samples", [1, 4, 5, 23])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1])
def test_ranks_get_equally_many_batches_that_make_up_the_stream(
    samples: int, world_size: int, workers: int
) -> None:
    spec = {"dataset": Stream(samples), "batch_size": 2, "num_workers": workers}
    per_rank = [rest_of_epoch(*feed) for feed in on_ranks(spec, world_size)]
    assert {len(batches) for batches in per_rank} == {-(-samples // (2 * world_size))}
    assert in_global_order(per_rank) == list(range(samples))
    for batches in zip(*per_rank, strict=True):
        total = sum(info.size or 0 for _, info in batches)
        assert {info.total for _, info in batches} == {total}
        true = [sample for taken, info in batches for sample in taken[: info.size]]
        # Of squares: of the numbers themselves, wrong weights would give the right mean.
        means = [info.scale * sum(n**2 for n in taken) / len(taken) for taken, info in batches]
        assert sum(means) / world_size == pytest.approx(sum(n**2 for n in true) / total)


def test_drop_last_drops_the_short_global_batch_of_a_stream() -> None:
    feeds = on_ranks({"dataset": Stream(11), "batch_size": 2, "drop_last": True}, 2)
    assert in_global_order([rest_of_epoch(*feed) for feed in feeds]) == list(range(8))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_stopped_on_two_ranks_goes_on_with_four(workers: int) -> None:
    spec = {"dataset": Stream(29), "batch_size": 2, "num_workers": workers}
    first, _ = on_ranks(spec, 2)[0]
    for idx, _ in enumerate(first):
        first.finish()
        if idx == 2:
            break
    four = on_ranks(spec, 4)
    for feed, _ in four:
        feed.load_state_dict(first.state_dict())
    assert in_global_order([rest_of_epoch(*feed) for feed in four]) == list(range(12, 29))


def test_workers_that_stay_are_told_each_epoch() -> None:
    spec = {"dataset": Stream(4, noisy=True), "batch_size": 4}
    alone, with_worker = make_feed(spec)[0], make_feed({**spec, "num_workers": 1})[0]
    for _ in range(2):
        assert [batch.tolist() for batch in with_worker] == [batch.tolist() for batch in alone]
    assert alone.epoch == 1


class Sharded(IterableDataset[Tensor]):
    """Shares its numbers out over workers."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        return (torch.tensor(index) for index in range(first, self.samples, step))


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_stream_read_by_several_workers_goes_on_where_it_was(stop: int) -> None:
    spec = {"dataset": Sharded(31), "batch_size": 2, "num_workers": 2}
    whole = in_global_order([rest_of_epoch(*feed) for feed in on_ranks(spec, 2)])
    assert sorted(whole) == list(range(31))
    first, _ = on_ranks(spec, 2)[0]
    for idx, _ in enumerate(first, start=1):
        first.finish()
        if idx == stop:
            break
    again = on_ranks(spec, 2)
    for feed, _ in again:
        feed.load_state_dict(first.state_dict())
    assert in_global_order([rest_of_epoch(*feed) for feed in again]) == whole[4 * stop :]
    other, _ = make_feed(spec, name="train_dataloader")
    with pytest.raises(DataError, match=r"2 workers in global batches of 4, and now it is 2 and 2"):
        other.load_state_dict(first.state_dict())


class Span(IterableDataset[Tensor]):
    """Counts from `start` to `stop`."""

    start, stop = 0, 12

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.tensor(index) for index in range(self.start, self.stop))


def take_a_part(worker_id: int) -> None:
    """As in PyTorch's manual: change the data set of this worker."""
    worker = get_worker_info()
    assert worker is not None
    span = worker.dataset
    assert isinstance(span, Span)
    size = span.stop // worker.num_workers
    span.start, span.stop = worker_id * size, (worker_id + 1) * size


def test_a_worker_init_fn_can_change_the_data_set_of_its_worker() -> None:
    spec = {"dataset": Span(), "batch_size": 3, "num_workers": 2, "worker_init_fn": take_a_part}
    feed, _ = make_feed(spec)
    assert [batch.tolist() for batch in feed] == [[0, 1, 2], [6, 7, 8], [3, 4, 5], [9, 10, 11]]


def test_positions_of_several_workers_are_told_apart() -> None:
    feeds = on_ranks({"dataset": Sharded(21), "batch_size": 2, "num_workers": 2}, 2, train=False)
    seen = [(info.positions, taken) for feed in feeds for taken, info in rest_of_epoch(*feed)]
    by_position = {
        place: n for positions, taken in seen for place, n in zip(positions or (), taken, strict=True)
    }
    assert [by_position[place] for place in sorted(by_position)] == list(range(21))


def test_a_stream_that_shares_itself_out_is_read_whole_by_each_rank() -> None:
    spec = {"dataset": Stream(5), "batch_size": 2, "sharded": True}
    for feed, info in on_ranks(spec, 2):
        assert [samples for samples, _ in rest_of_epoch(feed, info)] == [[0, 1], [2, 3], [4]]
        assert (info.size, info.scale, info.positions, info.total) == (1, 1.0, None, None)
    first, _ = on_ranks(spec, 2)[1]
    next(iter(first))
    first.finish()
    again, info = on_ranks(spec, 2)[1]
    again.load_state_dict(first.state_dict())
    assert [samples for samples, _ in rest_of_epoch(again, info)] == [[2, 3], [4]]


def test_a_stream_of_batches_is_passed_through() -> None:
    class Batches(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return (torch.arange(size) for size in (3, 2))

    feed, info = make_feed({"dataset": Batches(), "batch_size": None})
    assert [(len(batch), info.size, info.total) for batch in feed] == [(3, 3, 3), (2, 2, 2)]


def test_a_ready_loader_over_a_stream_is_divided_over_ranks() -> None:
    loader = DataLoader(Stream(9), batch_size=2)
    assert in_global_order([rest_of_epoch(*feed) for feed in on_ranks(loader, 2)]) == list(range(9))


def test_a_stream_has_no_length_and_says_what_to_do() -> None:
    feed, _ = make_feed(Stream(9), name="train_dataloader")
    assert not feed.sized
    with pytest.raises(TypeError, match=r"train_dataloader has no length: .*max_iters"):
        len(feed)


def test_an_epoch_without_a_batch_is_an_error_in_training_only() -> None:
    feed, _ = make_feed(Stream(0), name="train_dataloader")
    with pytest.raises(DataError, match="train_dataloader: an epoch without a single batch"):
        list(feed)
    assert list(make_feed(Stream(0), train=False)[0]) == []
