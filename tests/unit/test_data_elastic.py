"""An epoch that is stopped on some ranks and gone on with on others: the same samples in the same order."""

from typing import Any

import pytest

from stratrun.data.order import epoch_order, indices_at
from tests.feeds import Numbers, Stream, in_global_order, noted, on_ranks, rest_of_epoch

SAMPLES = 101  # divides by nothing here
ORDER = indices_at(epoch_order(7, 0, SAMPLES, True), range(SAMPLES))


def some(feeds: list[Any], batches: int) -> list[list[Any]]:
    """The first so many batches of each rank, all of them done."""
    taken = []
    for feed, info in feeds:
        mine: list[Any] = []
        for batch in feed:
            mine.append((batch.tolist(), noted(info)))
            feed.finish()
            if len(mine) == batches:
                break
        taken.append(mine)
    return taken


def moved(feeds: list[Any], saved: Any) -> list[Any]:
    for feed, _ in feeds:
        feed.load_state_dict(saved)
    return feeds


def close(feeds: list[Any]) -> None:
    for feed, _ in feeds:
        feed.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [{"batch_size": 3}, {"global_batch_size": 8}])
def test_an_epoch_over_two_ranks_then_one_then_four_has_each_sample_once_in_the_same_global_order(
    size: dict[str, int], workers: int
) -> None:
    done: list[int] = []
    saved: Any = None
    for world_size, batches in ((2, 5), (1, 3), (4, None)):
        forbidden = done if workers == 0 else ()
        spec = {"dataset": Numbers(SAMPLES, forbidden), "num_workers": workers, **size}
        feeds = on_ranks(spec, world_size, seed=7)
        if saved is not None:
            moved(feeds, saved)
        taken = some(feeds, batches) if batches else [rest_of_epoch(*feed) for feed in feeds]
        done += in_global_order(taken)
        states = [feed.state_dict() for feed, _ in feeds]
        assert all(state == states[0] for state in states)
        saved = states[0]
        close(feeds)
    assert done == ORDER


# 5 batches of 2 x 3 samples end at 30, which is no multiple of 4 x 3.
def test_a_position_that_no_batch_of_the_new_number_of_ranks_ends_at_is_gone_on_from() -> None:
    feeds = on_ranks({"dataset": Numbers(SAMPLES), "batch_size": 3}, 2, seed=7)
    some(feeds, 5)
    four = on_ranks({"dataset": Numbers(SAMPLES, ORDER[:30]), "batch_size": 3}, 4, seed=7)
    moved(four, feeds[0][0].state_dict())
    first = [batches[0][0] for batches in some(four, 1)]
    assert first == [ORDER[30 + rank : 42 : 4] for rank in range(4)]
    assert [len(feed) for feed, _ in four] == [5 + 6] * 4  # 71 samples are left


@pytest.mark.parametrize("samples_done", [0, 5])
def test_another_global_batch_is_told_with_both_numbers(samples_done: int) -> None:
    feeds = on_ranks({"dataset": Numbers(SAMPLES), "batch_size": 3}, 2)
    if samples_done:
        some(feeds, samples_done)
    ((four, _), *_) = moved(
        on_ranks({"dataset": Numbers(SAMPLES), "batch_size": 3}, 4), feeds[0][0].state_dict()
    )
    assert "a global batch was 6 samples, and is 12 from here on" in four.describe()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_nothing_is_told_of_a_global_batch_that_stays(world_size: int) -> None:
    feeds = on_ranks({"dataset": Numbers(SAMPLES), "global_batch_size": 8}, 2)
    some(feeds, 2)
    spec = {"dataset": Numbers(SAMPLES), "global_batch_size": 8}
    ((feed, _), *_) = moved(on_ranks(spec, world_size), feeds[0][0].state_dict())
    assert "a global batch was" not in feed.describe()
    assert feed.describe().endswith("goes on in epoch 0 after 16 samples")


def test_data_whose_items_are_batches_is_told_of_in_items() -> None:
    ((one, _),) = on_ranks({"dataset": Numbers(SAMPLES), "batch_size": None}, 1)
    ((two, _), _) = moved(on_ranks({"dataset": Numbers(SAMPLES), "batch_size": None}, 2), one.state_dict())
    assert "a global batch was 1 items of the data set, and is 2 from here on" in two.describe()


def test_a_stream_goes_on_over_other_ranks_in_the_same_order_and_tells_of_its_batches() -> None:
    done: list[int] = []
    saved: Any = None
    for world_size, batches in ((2, 5), (1, 3), (4, None)):
        feeds = on_ranks({"dataset": Stream(SAMPLES), "batch_size": 3}, world_size)
        if saved is not None:
            moved(feeds, saved)
            assert f"is {3 * world_size} from here on" in feeds[0][0].describe()
        taken = some(feeds, batches) if batches else [rest_of_epoch(*feed) for feed in feeds]
        done += in_global_order(taken)
        saved = feeds[0][0].state_dict()
    assert done == list(range(SAMPLES))
