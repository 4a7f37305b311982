"""Ranks with different numbers of evaluation batches, where each forward pass waits for all ranks."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import Sampler

from stratrun.data import InStep
from stratrun.errors import DataError
from stratrun.hooks import Hook
from stratrun.loops import BaseLoop, ValLoop
from tests.feeds import Numbers, Stream
from tests.parity.waiting import Waiting, chained, run
from tests.ranks import Ranks


class Seen(Hook):
    """The batches that a hook gets to see."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.samples: list[int | None] = []

    def after_val_iter(self, runner: Any, data_batch: Any) -> None:
        self.batches.append(data_batch.tolist())
        self.samples.append(runner.engine.batch.size)


class OwnShare(Sampler[int]):
    """As many samples as the rank's number says, none on the first: of the user's own making."""

    def __init__(self, rank: int, num_replicas: int, told: bool = True) -> None:
        self.start = rank * (rank - 1) // 2
        self.size = rank
        self.told = told

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.start + self.size))

    def __len__(self) -> int:
        if not self.told:
            raise TypeError("no length")
        return self.size


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def own_batches() -> Iterator[torch.Tensor]:
    """As many batches as the rank's number says, none on the first."""
    start = rank() * (rank() - 1) // 2
    return (torch.tensor([number]) for number in range(start, start + rank()))


KINDS: dict[str, Any] = {
    **{
        f"{samples} samples by {size}": {"dataset": Numbers(samples), "batch_size": size}
        for samples, size in ((1, 1), (2, 1), (5, 1), (8, 2), (9, 2), (15, 2))
    },
    "stream of 1": {"dataset": Stream(1), "batch_size": 2},
    "stream of 6": {"dataset": Stream(6), "batch_size": 1},
    "stream of 8": {"dataset": Stream(8), "batch_size": 2},
    "items": {"dataset": Numbers(5), "batch_size": None, "collate_fn": lambda one: one.reshape(1)},
    "a sampler with a length": {"dataset": Numbers(6), "batch_size": 1, "sampler": {"type": OwnShare}},
    "a sampler without": {
        "dataset": Numbers(6),
        "batch_size": 1,
        "sampler": {"type": OwnShare, "told": False},
    },
    "ready batches": own_batches,
}


def counted(kind: str) -> int:
    """How many samples four ranks have of it together: those below this number, each once."""
    if "sampler" in kind or "ready" in kind:
        return 6
    return 5 if kind == "items" else int(kind.split()[0] if "samples" in kind else kind.split()[-1])


def evaluated(work_dir: str) -> dict[str, Any]:
    """What came of each kind of data: metrics, predictions, what hooks saw, and how often ranks met."""
    found = {}
    for kind, spec in KINDS.items():
        seen, strategy = Seen(), Waiting()
        runner = run(
            val_dataloader=spec,
            predict_dataloader=spec,
            strategy=strategy,
            custom_hooks=[seen],
            work_dir=work_dir,
        )
        metrics = runner.val()
        passes = strategy.passes
        predictions = [float(one) for one in runner.predict()]
        model: Any = runner.model
        found[kind] = (metrics, predictions, seen.batches, seen.samples, passes, model.seen)
        runner.close()
    return found


def test_each_sample_counts_once_and_only_loops_and_hooks_of_its_rank_see_it(
    four_ranks: Ranks, tmp_path: Any
) -> None:
    per_rank = four_ranks(evaluated, str(tmp_path))
    for kind in KINDS:
        total = counted(kind)
        batches = [found[kind][2] for found in per_rank]
        assert sorted(number for rank in batches for batch in rank for number in batch) == list(range(total))
        for metrics, predictions, seen, samples, passes, in_model in (found[kind] for found in per_rank):
            ordered = "sampler" not in kind and "ready" not in kind
            expected = chained(total)
            assert metrics == (expected if ordered else {**expected, "chained": metrics["chained"]}), kind
            assert (predictions if ordered else sorted(predictions)) == [2.0 * n for n in range(total)], kind
            assert samples == [len(batch) for batch in seen], kind
            # As many steps as the rank has that has most, all but its own unseen.
            assert passes == len(in_model) == max(map(len, batches)), kind
            assert in_model[: len(seen)] == seen, kind


class TwiceEach(BaseLoop):
    """Two steps of each even batch and one of each other, on data sets read within each other."""

    def run(self) -> None:
        engine, found = self.runner.engine, []
        inner = self.runner.build_dataloader({"dataset": Numbers(3), "batch_size": 1})
        for idx, batch in enumerate(self.dataloader):
            found.append(engine.val_step(batch)["number"].tolist())
            if idx % 2 == 0:
                found.append(engine.test_step(batch)["number"].tolist())
            found += [engine.val_step(one)["number"].tolist() for one in inner]
        made = Counter(number for numbers in engine.collect(list(enumerate(found))) for number in numbers)
        self.runner.metrics = {f"of {number}": times for number, times in made.items()}


class FirstOnly(ValLoop):
    """Breaks off after some batches, which not every rank has."""

    stop = 1

    def run_one(self, name: str) -> dict[str, float]:
        for idx, batch in enumerate(self.dataloaders[name]):
            self.run_iter(idx, batch)
            if idx + 1 == self.stop:
                break
        return self.evaluator.evaluate()


class OnlySteps(BaseLoop):
    """Asks for nothing after a pass that others would have to end first."""

    def run(self) -> None:
        for batch in self.dataloader:
            self.runner.engine.val_step(batch)
        told: list[Any] = [None] * 4
        dist.all_gather_object(told, rank())
        self.runner.metrics = {"told": told == [0, 1, 2, 3]}


class SideBySide(ValLoop):
    """Reads two loaders in one pass."""

    def run_one(self, name: str) -> dict[str, float]:
        other = self.runner.build_dataloader({"dataset": Numbers(9), "batch_size": 1})
        for idx, (batch, _) in enumerate(zip(self.dataloaders[name], other, strict=False)):
            self.run_iter(idx, batch)
        return self.evaluator.evaluate()


def own_loops(work_dir: str) -> dict[str, Any]:
    five, nine = ({"dataset": Numbers(n), "batch_size": 1} for n in (5, 9))
    nested = run(val_dataloader=five, val_cfg={"type": TwiceEach}, work_dir=work_dir)
    nested.val()
    found: dict[str, Any] = {"nested": nested.metrics}
    for name, stop, spec in (
        ("in step", 1, nine),
        ("apart", 3, nine),
        ("asking", 1, own_batches),
        ("apart, asking", 2, own_batches),
        ("asking, each by itself", 1 + rank(), lambda: (torch.tensor([number]) for number in range(9))),
    ):
        FirstOnly.stop = stop
        runner = run(val_dataloader=spec, val_cfg={"type": FirstOnly}, work_dir=work_dir)
        # What comes next finds the ranks together again.
        found[name] = [runner.val()["counted"], runner.val()["counted"]]
    steps = run(val_dataloader=nine, val_cfg={"type": OnlySteps}, work_dir=work_dir)
    found["only steps"] = steps.val()
    for name, spec in (("side by side", five), ("side by side, asking", own_batches)):
        runner = run(val_dataloader=spec, val_cfg={"type": SideBySide}, work_dir=work_dir)
        found[name] = [runner.val()["sum"], runner.val()["sum"]]
    loaders = {"a": five, "b": KINDS["a sampler without"], "c": {"dataset": Stream(2), "batch_size": 1}}
    found["several"] = run(val_dataloader=loaders, work_dir=work_dir).val()
    return found


def test_loops_of_ones_own_stay_in_step_whatever_steps_they_make(four_ranks: Ranks, tmp_path: Any) -> None:
    for found in four_ranks(own_loops, str(tmp_path)):
        # Two steps of the first batch of each rank, one of the other, and of the inner batch beside each.
        assert found["nested"] == {"of 0": 2 + 1 + 1, "of 1": 2 + 1, "of 2": 2 + 1, "of 3": 2, "of 4": 1}
        assert found["in step"] == [4, 4]
        assert found["apart"] == [9, 9]
        assert found["asking"] == [3, 3]
        assert found["apart, asking"] == [1 + 2 + 2] * 2
        assert found["asking, each by itself"] == [1 + 2 + 3 + 4] * 2
        assert found["only steps"] == {"told": True}
        assert found["side by side"] == [10, 10]
        assert found["side by side, asking"][0] == found["side by side, asking"][1]
        assert {name: value for name, value in found["several"].items() if "counted" in name} == {
            "a/counted": 5,
            "b/counted": 6,
            "c/counted": 2,
        }


def counting(work_dir: str) -> dict[str, int]:
    """Exchanges of an evaluation for keeping in step."""
    told: list[Any] = []
    say = InStep._say
    InStep._say = lambda self, *args: told.append(args) or say(self, *args)  # type: ignore[method-assign]
    found = {}
    try:
        for name, spec in {
            "even": {"dataset": Numbers(40), "batch_size": 2},
            "uneven": {"dataset": Numbers(41), "batch_size": 2},
            "stream": {"dataset": Stream(40), "batch_size": 2},
            "lists": [torch.tensor([n]) for n in range(7)],
            "unsized": lambda: (torch.tensor([n]) for n in range(7)),
        }.items():
            told.clear()
            run(val_dataloader=spec, work_dir=work_dir).val()
            found[name] = len(told)
    finally:
        InStep._say = say  # type: ignore[method-assign]
    return found


def test_nothing_is_exchanged_while_it_is_known_that_every_rank_has_a_batch(
    four_ranks: Ranks, tmp_path: Any
) -> None:
    for found in four_ranks(counting, str(tmp_path)):
        # One at the end, to find that all have ended; one for the batch that some lack; one a batch where
        # nothing is known of them.
        assert found == {"even": 1, "uneven": 2, "stream": 1, "lists": 1, "unsized": 8}


class Short(list[Any]):
    """Says that it has one batch more than it has."""

    def __len__(self) -> int:
        return super().__len__() + 1

    def __iter__(self) -> Iterator[Any]:
        return (batch for batch in list.__iter__(self))


class Differing(ValLoop):
    def run_iter(self, idx: int, data_batch: Any) -> Any:
        engine = self.runner.engine
        return engine.predict_step(data_batch) if idx and rank() == 1 else engine.val_step(data_batch)


class FailsAtTheEnd(Hook):
    def after_val_iter(self, batch_idx: int) -> None:
        if batch_idx == 1:
            raise ValueError("out of paper")


def failing(work_dir: str, case: str) -> None:
    batches = [torch.tensor([number]) for number in range(3)]
    options: dict[str, Any] = {
        "short": {"val_dataloader": Short(batches)},
        "differing": {"val_dataloader": batches[: 1 + rank()], "val_cfg": {"type": Differing}},
        "hook": {"val_dataloader": batches[: 1 + rank()], "custom_hooks": [FailsAtTheEnd()]},
    }[case]
    run(work_dir=work_dir, **options).val()


@pytest.mark.parametrize("case", ["short", "hook"])
def test_what_goes_wrong_on_the_rank_with_more_batches_ends_all(
    case: str, two_ranks: Ranks, tmp_path: Any
) -> None:
    words = {"short": "said that it has 4 batches", "hook": "out of paper"}[case]
    with pytest.raises((DataError, ValueError), match=words):
        two_ranks(failing, str(tmp_path), case)


def test_different_steps_at_the_same_time_are_refused_on_all_ranks(four_ranks: Ranks, tmp_path: Any) -> None:
    for outcome in four_ranks.outcomes(failing, str(tmp_path), "differing"):
        assert isinstance(outcome, DataError)
        assert "at the same time (rank 0: none, rank 1: predict, rank 2: val, rank 3: val)" in str(outcome)
