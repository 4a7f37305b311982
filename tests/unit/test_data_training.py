"""Training: equal numbers of batches, right weights, and a position that survives anything."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate

from stratrun.data import Feed, build_feed
from stratrun.data.order import epoch_order, indices_at
from stratrun.errors import DataError
from stratrun.state import BatchInfo
from tests.feeds import Numbers, in_global_order, make_feed, on_ranks, rest_of_epoch

SAMPLES, SEED = 53, 11
ORDER = indices_at(epoch_order(SEED, 0, SAMPLES, True), range(SAMPLES))


@pytest.mark.parametrize("samples", [1, 5, 7, 101])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("per_rank", [1, 3, 8])
def test_the_mean_over_ranks_is_the_mean_over_samples(samples: int, world_size: int, per_rank: int) -> None:
    feeds = on_ranks({"dataset": Numbers(samples), "batch_size": per_rank}, world_size, seed=SEED)
    order = indices_at(epoch_order(SEED, 0, samples, True), range(samples))
    per_rank_batches = [rest_of_epoch(*feed) for feed in feeds]
    size = per_rank * world_size
    assert {len(batches) for batches in per_rank_batches} == {-(-samples // size)}
    for number, batches in enumerate(zip(*per_rank_batches, strict=True)):
        true = order[number * size : (number + 1) * size]
        # Of squares: of numbers in a row, wrong weights would give the right mean.
        means = [info.scale * sum(n**2 for n in taken) / len(taken) for taken, info in batches]
        assert sum(means) / world_size == pytest.approx(sum(n**2 for n in true) / len(true))
        assert sum(info.size for _, info in batches) == len(true)
        assert {info.total for _, info in batches} == {len(true)}
        for taken, info in batches:
            assert [order[position] for position in info.positions] == taken[: info.size]


def test_a_rank_without_a_sample_repeats_one_that_counts_nothing() -> None:
    feeds = on_ranks({"dataset": Numbers(5), "batch_size": 1, "shuffle": False}, 4)
    last = [rest_of_epoch(*feed)[-1] for feed in feeds]
    assert [samples for samples, _ in last] == [[4], [4], [4], [4]]
    assert [(info.size, info.scale) for _, info in last] == [(1, 4.0), (0, 0.0), (0, 0.0), (0, 0.0)]


def test_drop_last_drops_the_short_global_batch() -> None:
    feeds = on_ranks({"dataset": Numbers(23), "batch_size": 3, "drop_last": True}, 2, seed=SEED)
    per_rank = [rest_of_epoch(*feed) for feed in feeds]
    assert [len(batches) for batches in per_rank] == [3, 3]
    order = indices_at(epoch_order(SEED, 0, 23, True), range(23))
    assert in_global_order(per_rank) == order[:18]


def train(feeds: list[tuple[Feed, BatchInfo]], batches: int) -> list[int]:
    """Take some batches on all ranks in step, as loops do, and say what was seen in global order."""
    seen: list[list[tuple[list[int], BatchInfo]]] = [[] for _ in feeds]
    iterators = [iter(feed) for feed, _ in feeds]
    for _ in range(batches):
        for rank, (feed, info) in enumerate(feeds):
            batch = next(iterators[rank])
            seen[rank].append((batch.tolist(), BatchInfo(info.size, info.scale)))
            feed.finish()
    return in_global_order(seen)


@pytest.mark.parametrize("stop", range(10))
def test_stopped_on_two_ranks_it_goes_on_with_one_then_with_four(stop: int) -> None:
    spec = {"dataset": Numbers(SAMPLES), "batch_size": 3}
    two = on_ranks(spec, 2, seed=SEED)
    seen = train(two, min(stop, 9))
    one = on_ranks(spec, 1, seed=SEED)
    one[0][0].load_state_dict(two[1][0].state_dict())
    if len(seen) < SAMPLES:
        seen += train(one, 1)
    four = on_ranks(spec, 4, seed=SEED)
    for feed, _ in four:
        feed.load_state_dict(one[0][0].state_dict())
    seen += in_global_order([rest_of_epoch(*feed) for feed in four])
    assert seen == ORDER


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 5, 8])
def test_resuming_reads_no_sample_that_was_done(stop: int, workers: int) -> None:
    spec = {"dataset": Numbers(SAMPLES), "batch_size": 6, "num_workers": 0}
    first = on_ranks(spec, 1, seed=SEED)
    done = train(first, stop)
    spec = {"dataset": Numbers(SAMPLES, forbidden=done), "batch_size": 6, "num_workers": workers}
    feed, info = make_feed(spec, seed=SEED)
    feed.load_state_dict(first[0][0].state_dict())
    feed.set_epoch(0)
    assert done + [sample for samples, _ in rest_of_epoch(feed, info) for sample in samples] == ORDER


def test_batches_that_workers_have_read_ahead_do_not_count() -> None:
    spec = {"dataset": Numbers(SAMPLES), "batch_size": 4, "num_workers": 2, "prefetch_factor": 4}
    feed, info = make_feed(spec, seed=SEED)
    iterator = iter(feed)
    next(iterator), next(iterator)
    state = feed.state_dict()
    assert (state["consumed"], state["batches"]) == (4, 1)
    again, info = make_feed(spec, seed=SEED)
    again.load_state_dict(state)
    assert rest_of_epoch(again, info)[0][0] == ORDER[4:8]


def test_a_batch_counts_when_finished_or_when_the_next_is_asked_for_and_once() -> None:
    feed, info = make_feed({"dataset": Numbers(9), "batch_size": 2})
    positions = []
    for idx, _ in enumerate(feed):
        positions.append(feed.batches_done)
        if idx == 1:
            assert info.finish is not None
            info.finish()
            feed.finish()
            positions.append(feed.batches_done)
    assert positions == [0, 1, 2, 2, 3, 4]
    assert feed.state_dict()["consumed"] == 9


def test_reading_evaluation_data_meanwhile_leaves_the_training_batch_to_be_finished() -> None:
    feed, info = make_feed({"dataset": Numbers(9), "batch_size": 2})
    other = build_feed(Numbers(4), train=False, seed=0, rank=0, world_size=1, batch=info, move=lambda b: b)
    next(iter(feed))
    list(other)
    assert info.finish is not None
    info.finish()
    assert feed.batches_done == 1


def test_a_loop_left_early_goes_on_with_the_unfinished_batch() -> None:
    feed, _ = make_feed({"dataset": Numbers(SAMPLES), "batch_size": 5}, seed=SEED)
    for idx, batch in enumerate(feed):
        if idx == 2:
            unfinished = batch.tolist()
            break
    assert next(iter(feed)).tolist() == unfinished == ORDER[10:15]


def test_an_epoch_resumed_at_its_end_yields_nothing_and_then_the_next_begins() -> None:
    feed, _ = make_feed({"dataset": Numbers(8), "batch_size": 4})
    for _ in feed:
        feed.finish()
    again, info = make_feed({"dataset": Numbers(8), "batch_size": 4})
    again.load_state_dict(feed.state_dict())
    again.set_epoch(0)
    assert rest_of_epoch(again, info) == []
    assert len(rest_of_epoch(again, info)) == 2
    assert again.epoch == 1


def test_set_epoch_keeps_the_place_in_its_own_epoch_only() -> None:
    feed, _ = make_feed({"dataset": Numbers(8), "batch_size": 4})
    next(iter(feed))
    feed.finish()
    feed.set_epoch(0)
    assert feed.batches_done == 1
    feed.set_epoch(3)
    assert (feed.batches_done, feed.epoch) == (0, 3)
    next(iter(feed))
    feed.finish()
    feed.epoch_done()
    assert (feed.batches_done, feed.epoch) == (0, 4)
    list(feed)
    feed.set_epoch(4)
    assert (feed.batches_done, feed.epoch) == (0, 4)


def test_length_counts_the_whole_epoch_at_every_position() -> None:
    feed, _ = make_feed({"dataset": Numbers(SAMPLES), "batch_size": 4})
    lengths = {len(feed), *(len(feed) for _ in feed), len(feed)}
    assert lengths == {14}
    assert feed.sized


def test_after_a_change_of_ranks_length_is_what_was_done_and_what_is_left() -> None:
    two = on_ranks({"dataset": Numbers(20), "batch_size": 2}, 2)
    train(two, 2)
    one, _ = make_feed({"dataset": Numbers(20), "batch_size": 2})
    one.load_state_dict(two[0][0].state_dict())
    assert len(one) == 2 + 6
    assert one.batches_done == 2
    assert len(list(one)) == 6


def test_the_order_of_a_run_outlives_a_change_of_seed() -> None:
    spec = {"dataset": Numbers(SAMPLES), "batch_size": 4}
    first = on_ranks(spec, 1, seed=SEED)
    seen = train(first, 3)
    other, info = make_feed(spec, seed=SEED + 1)
    other.load_state_dict(first[0][0].state_dict())
    assert seen + [sample for samples, _ in rest_of_epoch(other, info) for sample in samples] == ORDER


def test_an_epoch_of_other_data_is_not_gone_on_with() -> None:
    feed, _ = make_feed({"dataset": Numbers(20), "batch_size": 4})
    next(iter(feed))
    feed.finish()
    grown, _ = make_feed({"dataset": Numbers(24), "batch_size": 4}, name="train_dataloader")
    with pytest.raises(DataError, match=r"train_dataloader: .* sample 4 .* samples=20, and now samples=24"):
        grown.load_state_dict(feed.state_dict())
    feed.epoch_done()
    grown.load_state_dict(feed.state_dict())
    assert len(list(grown)) == 6


def test_two_loops_over_one_feed_are_refused() -> None:
    feed, _ = make_feed({"dataset": Numbers(20), "batch_size": 4})
    with pytest.raises(DataError, match="changed within a loop"):
        list(zip(feed, feed, strict=True))


def test_batches_are_moved() -> None:
    feed, _ = make_feed({"dataset": Numbers(4), "batch_size": 2})
    feed._move = lambda batch: ("moved", batch)
    assert [batch[0] for batch in feed] == ["moved", "moved"]


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_of_tensors_are_batched_as_collating_them_would(workers: int) -> None:
    dataset = TensorDataset(torch.arange(20).reshape(10, 2), torch.arange(10) % 2 == 0)
    feed, info = make_feed({"dataset": dataset, "batch_size": 4, "num_workers": workers}, seed=SEED)
    order = indices_at(epoch_order(SEED, 0, 10, True), range(10))
    for batch in feed:
        expected = default_collate([dataset[order[position]] for position in info.positions or ()])
        assert type(batch) is type(expected)
        torch.testing.assert_close(batch, expected)


def test_items_that_are_batches_already_are_passed_through() -> None:
    dataset = [{"x": torch.arange(size), "name": "n"} for size in (3, 2, 4)]
    feed, info = make_feed({"dataset": dataset, "batch_size": None, "shuffle": False})
    seen = [(batch["x"].tolist(), info.size, info.total, len(info.positions or ())) for batch in feed]
    assert seen == [([0, 1, 2], 3, 3, 3), ([0, 1], 2, 2, 2), ([0, 1, 2, 3], 4, 4, 4)]
    assert feed.state_dict()["consumed"] == 3


def test_samples_of_items_that_are_batches_have_places_in_order_on_every_rank() -> None:
    dataset = [torch.arange(size) + 10 * number for number, size in enumerate((3, 2, 4, 1))]
    places: dict[int, int] = {}
    for feed, info in on_ranks({"dataset": dataset, "batch_size": None}, 2, train=False):
        for batch in feed:
            places.update(zip(info.positions or (), batch.tolist(), strict=True))
    assert [places[place] for place in sorted(places)] == [0, 1, 2, 10, 11, 20, 21, 22, 23, 30]


def weights(samples: list[Tensor]) -> dict[str, Any]:
    return {"x": torch.stack(samples), "weight": len(samples)}


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_ready_loader_with_a_default_sampler_gets_our_order(shuffle: bool) -> None:
    loader = DataLoader(Numbers(20), batch_size=3, shuffle=shuffle, collate_fn=weights, drop_last=True)
    feeds = on_ranks(loader, 2, seed=SEED)
    batches = [list(feed) for feed, _ in feeds]
    taken = [[(batch["x"].tolist(), BatchInfo(batch["weight"])) for batch in of_rank] for of_rank in batches]
    order = indices_at(epoch_order(SEED, 0, 20, shuffle), range(20))
    assert in_global_order(taken) == order[:18]
    assert feeds[0][0].dataset is loader.dataset
