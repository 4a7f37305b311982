"""Several loaders that will not do, or not any more: refused with the mend, or told."""

import itertools
from typing import Any

import pytest
import torch

from stratrun import Runner
from stratrun.data import check_data
from stratrun.errors import ConfigError, DataError
from tests.feeds import Numbers, make_feed, on_ranks
from tests.problems import perceptron, points
from tests.unit.test_data_several import A, From, Rows, batches, several


def test_other_loaders_within_an_epoch_are_refused_and_between_epochs_taken() -> None:
    feed, _ = make_feed(several("round_robin"))
    for _ in itertools.islice(feed, 4):
        feed.finish()
    saved = feed.state_dict()
    fewer = several("round_robin")
    del fewer["loaders"]["c"]
    longer = several("round_robin")
    longer["loaders"]["a"]["dataset"] = From(A + 1, 0)
    for other, text in (
        (fewer, r"with loaders=\['a', 'b', 'c'\], and now loaders=\['a', 'b'\]"),
        (several("in_order"), "with mode='round_robin', and now mode='in_order'"),
        (several("round_robin, longest"), "with until='all', and now until='longest'"),
        (several("round_robin", sized=False), r"loaders\.c: .* kind='a data set with an index', and now"),
        (longer, r"loaders\.a: the checkpoint was taken at sample 4 of an epoch with samples=5, and now"),
    ):
        again, _ = make_feed(other)
        with pytest.raises(DataError, match=text):
            again.load_state_dict(saved)
    feed.epoch_done()
    again, _ = make_feed(fewer)
    again.load_state_dict(feed.state_dict())
    assert again.epoch == 1
    assert len(batches(again)) == 6


def test_another_batch_size_and_other_weights_are_told() -> None:
    feed, _ = make_feed(several("weighted"))
    next(iter(feed))
    feed.finish()
    other = {**several("weighted", global_batch_size=3), "weights": {"a": 1, "b": 1, "c": 1}}
    again, _ = make_feed(other)
    again.load_state_dict(feed.state_dict())
    told = again.describe()
    assert "b: a global batch was 4 samples, and is 3 from here on" in told
    assert "weights were a 1, b 3, c 2, and are others from here on" in told


def test_a_batch_of_each_that_ranks_cannot_share_equally_is_refused_before_it_is_read() -> None:
    spec = several("max_size", drop_last=False)
    with pytest.raises(ConfigError, match=r"loaders\.a: its last batch cannot be shared equally by 2 ranks"):
        on_ranks(spec, 2)
    assert len(batches(make_feed(spec)[0])) == 3


def test_an_end_of_a_stream_that_ranks_cannot_share_is_refused_when_it_comes() -> None:
    loaders = {
        "a": {"dataset": Rows(5, 0), "batch_size": 2, "drop_last": False},
        "b": {"dataset": Numbers(8), "batch_size": 1},
    }
    for feed, _ in on_ranks({"type": "MultiLoader", "loaders": loaders, "mode": "max_size"}, 2):
        with pytest.raises(DataError, match=r"loaders\.a: a batch that ranks do not share equally"):
            batches(feed)


def test_a_loader_that_cannot_begin_again_says_so() -> None:
    loaders = {"a": {"dataset": Numbers(8), "batch_size": 1}, "b": (torch.ones(1) for _ in range(2))}
    feed, _ = make_feed({"type": "MultiLoader", "loaders": loaders, "mode": "max_size"}, name="train")
    with pytest.raises(DataError, match=r"train\.loaders\.b: a generator can be read only once"):
        batches(feed)


GOOD: dict[str, Any] = {"type": "MultiLoader", "loaders": {"one": Numbers(3), "two": Numbers(3)}}
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "type": (
        {**GOOD, "type": "MultLoader"},
        "type='MultLoader' is no kind of loader; several",
    ),
    "no type": ({"loaders": GOOD["loaders"]}, "'loaders' has no 'type'; several loaders are dict"),
    "argument": ({**GOOD, "modes": "in_order"}, "takes no argument 'modes'; did you mean 'mode'"),
    "mode": ({**GOOD, "mode": "roundrobin"}, "mode='roundrobin' is unknown; did you mean 'round_robin'"),
    "until": ({**GOOD, "until": "longst"}, "until='longst' is unknown; did you mean 'longest'"),
    "until of a mode": (
        {**GOOD, "mode": "max_size", "until": "longest"},
        "mode='max_size' they do not; leave",
    ),
    "none": (
        {"type": "MultiLoader", "loaders": {}},
        "must be a dict of names and loaders, and is {}",
    ),
    "no loaders": ({"type": "MultiLoader"}, "and is nothing; write dict"),
    "within": ({**GOOD, "loaders": {"x": GOOD}}, "loaders.x has several loaders itself"),
    "no weights": ({**GOOD, "mode": "weighted"}, "needs weights, a dict with a number for each loader"),
    "weights": ({**GOOD, "weights": {"one": 1}}, "weights are for mode='weighted', and it is 'round_robin'"),
    "name": (
        {**GOOD, "mode": "weighted", "weights": {"on": 1}},
        "no loader 'on'; did you mean 'one'",
    ),
    "weight": (
        {**GOOD, "mode": "weighted", "weights": {"one": 1}},
        "the weight of 'two' is None; give each loader a number above 0",
    ),
    "as_dict": (
        {**GOOD, "mode": "max_size", "as_dict": False},
        "as_dict=False will not do: mode='max_size'",
    ),
    "key of a loader": (
        {**GOOD, "loaders": {"x": {"dataset": Numbers(3), "batchsize": 2}}},
        "train.loaders.x takes no argument 'batchsize'; did you mean 'batch_size'",
    ),
    "data set of a loader": (
        {**GOOD, "loaders": {"x": {"dataset": {"type": "RepeatDatset", "dataset": Numbers(3), "times": 2}}}},
        "train.loaders.x.dataset='RepeatDatset': .*did you mean 'RepeatDataset'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_mend_before_anything_is_built(mistake: str) -> None:
    spec, text = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=text):
        check_data(spec, "train", train=True)
    with pytest.raises(ConfigError, match=text):
        make_feed(spec, name="train")


def test_several_loaders_are_for_training() -> None:
    with pytest.raises(ConfigError, match="for training; to evaluate on several data sets, give"):
        make_feed(GOOD, train=False)


def test_loaders_by_name_without_a_way_to_take_turns_are_refused_with_one() -> None:
    loaders = {"a": {"dataset": points(9)}, "b": {"dataset": points(9)}}
    runner = Runner(
        perceptron(),
        train_dataloader=loaders,
        train_cfg={"max_epochs": 1},
        optimizer="SGD",
        loss="cross_entropy",
    )
    with pytest.raises(
        ConfigError, match="names 2 loaders, and nothing says how they take turns; write dict"
    ):
        runner.train()
