"""Between log points nothing waits: not for the device, nor for ranks beyond what a strategy needs."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from torch import nn

from stratrun import Hook, Runner
from stratrun.testing import Ranks, count_syncs
from stratrun.testing.syncs import SyncWatch
from tests.parity.sharded import net
from tests.problems import perceptron, points

INTERVAL = 4
BATCHES = 10
OFF: dict[str, Any] = dict.fromkeys(("timer", "logger", "scheduler", "checkpoint"))
SPLIT = {"type": "tensor_parallel", "plan": {"0": "column", "2": "row"}, "size": 2}
ON_TWO: dict[str, tuple[Any, Callable[[], nn.Module]]] = {
    "ddp": ("ddp", perceptron),
    "fsdp": ("fsdp", net),
    "tensor_parallel": (SPLIT, perceptron),
}


class Mark(NamedTuple):
    """What had been waited for, and exchanged between all ranks, when the run came by here."""

    place: str
    number: int
    waits: int
    exchanges: dict[str, int]


class Before(Hook):
    """Comes after hooks that prepare an iteration's values, and before the one that logs."""

    priority = 69
    side = "before"

    def __init__(self, found: SyncWatch, marks: list[Mark]) -> None:
        self.found, self.marks = found, marks

    def after_train_iter(self, runner: Any) -> None:
        self._mark("train", runner.iter)

    def after_val_iter(self, batch_idx: int) -> None:
        self._mark("val", batch_idx)

    def _mark(self, job: str, number: int) -> None:
        waits, exchanges = len(self.found), dict(self.found.exchanges)
        self.marks.append(Mark(f"{job}, {self.side} logging", number, waits, exchanges))


class After(Before):
    priority = 100
    side = "after"


def run(
    strategy: Any, model: Callable[[], nn.Module], work_dir: str, **options: Any
) -> tuple[list[Mark], str]:
    """Train with all that is on by default and three loggers, then validate.

    Returns the marks, and what was waited for in all.
    """
    marks: list[Mark] = []
    more_hooks = options.pop("more_hooks", [])
    form: dict[str, Any] = {
        "loggers": ["console", "jsonl", "tensorboard"],
        "default_hooks": {"logger": {"type": "LoggerHook", "interval": INTERVAL}},
        "clip_grad": 0.1,
    }
    with count_syncs() as found:
        runner = Runner(
            model(),
            loss="cross_entropy",
            strategy=strategy,
            train_dataloader={"dataset": points(BATCHES * 4), "global_batch_size": 4},
            train_cfg={"max_epochs": 1},
            # As many batches for each rank: of those that not all have, sharded ranks tell each other.
            val_dataloader={"dataset": points(36), "batch_size": 3},
            val_evaluator="Accuracy",
            optimizer={"type": "AdamW", "lr": 0.01},
            param_scheduler={"type": "CosineAnnealingLR", "T_max": 10},
            custom_hooks=[Before(found, marks), After(found, marks), *more_hooks],
            work_dir=work_dir,
            **{**form, **options},
        )
        runner.train()
        runner.close()
    return marks, str(found)


def between_log_points(marks: list[Mark]) -> list[tuple[str, int, int, dict[str, int]]]:
    """What each stretch of the run added, but for those in which values are logged or a job begins."""
    added = []
    for one, other in pairwise(marks):
        logs = (
            one.number == other.number and one.place == "train, before logging" and not one.number % INTERVAL
        )
        if logs or one.place[:5] != other.place[:5]:
            continue
        exchanges = {k: n - one.exchanges.get(k, 0) for k, n in other.exchanges.items()}
        added.append(
            (other.place, other.number, other.waits - one.waits, {k: n for k, n in exchanges.items() if n})
        )
    return added


def with_and_without_hooks(
    strategy: Any, model: Callable[[], nn.Module], work_dir: str
) -> list[tuple[list[Mark], str]]:
    """With all hooks, clipping and not; then with none, clipping."""
    quiet: dict[str, Any] = {"default_hooks": OFF, "loggers": ()}
    return [
        run(strategy, model, f"{work_dir}/clipped"),
        run(strategy, model, f"{work_dir}/free", clip_grad=None),
        run(strategy, model, f"{work_dir}/bare", **quiet),
    ]


def assert_nothing_waits(runs: list[tuple[list[Mark], str]]) -> None:
    """No wait in any run, and no exchange with hooks that there is not without them."""
    stretches = [between_log_points(marks) for marks, _ in runs]
    for found, (_, told) in zip(stretches, runs, strict=True):
        assert len(found) > BATCHES
        assert [one for one in found if one[2]] == [], told
    clipped, _, bare = ({(place, number): sent for place, number, _, sent in one} for one in stretches)
    assert clipped == {stretch: sent for stretch, sent in bare.items() if stretch in clipped}
    # Much is read before the first iteration, or the count would show nothing.
    assert runs[0][0][0].waits > 0


def test_one_process_waits_for_nothing_between_log_points(tmp_path: Any) -> None:
    assert_nothing_waits(with_and_without_hooks("single", perceptron, str(tmp_path)))


@pytest.mark.parametrize("strategy", ON_TWO)
def test_two_ranks_wait_for_nothing_between_log_points(
    strategy: str, two_ranks: Ranks, tmp_path: Any
) -> None:
    for runs in two_ranks(with_and_without_hooks, *ON_TWO[strategy], str(tmp_path)):
        assert_nothing_waits(runs)
        if strategy == "ddp":
            # The gradients, as of any loop over DistributedDataParallel, and in validation nothing. In the
            # second iteration that class also sorts them anew.
            stretches = [
                one for one in between_log_points(runs[0][0]) if one[:2] != ("train, before logging", 2)
            ]
            for place, _, _, sent in stretches:
                assert sent == ({"allreduce_": 1} if place == "train, before logging" else {})


def test_four_ranks_in_two_replicas_wait_for_nothing_between_log_points(
    four_ranks: Ranks, tmp_path: Any
) -> None:
    strategy = {"type": "hsdp", "replicate": 2}
    for runs in four_ranks(with_and_without_hooks, strategy, net, str(tmp_path)):
        assert_nothing_waits(runs)
