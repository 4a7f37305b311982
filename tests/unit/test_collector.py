"""In training the collector of garbage runs at log points and between epochs, and is as before afterwards."""

import gc
from collections.abc import Iterator
from typing import Any
from weakref import ref

import pytest

from stratrun import ConfigError, Hook
from tests.problems import perceptron, points, trained

INTERVAL = 4


class Cycle:
    """Goes by the collector alone."""

    def __init__(self) -> None:
        self.itself = self


class Leaves(Hook):
    """Leaves a cycle at each iteration, and notes how many there are after it."""

    priority = 0

    def __init__(self, fails_at: int = 0) -> None:
        self.fails_at = fails_at
        self.left: list[Any] = []
        self.counts: list[int] = []
        self.threshold: tuple[int, ...] = ()

    def before_train_iter(self) -> None:
        self.threshold = gc.get_threshold()
        self.counts.append(sum(one() is not None for one in self.left))
        self.left.append(ref(Cycle()))
        if len(self.left) == self.fails_at:
            raise RuntimeError("broken")


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    before, enabled = gc.get_threshold(), gc.isenabled()
    gc.enable()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)
    if not enabled:
        gc.disable()


def _train(leaves: Leaves, **env: Any) -> None:
    trained(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(36), "batch_size": 4},
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": 0.1},
        custom_hooks=[leaves],
        default_hooks={"checkpoint": None, "logger": {"interval": INTERVAL}},
        env_cfg=env,
    )


def test_what_steps_leave_is_collected_at_log_points_and_not_before() -> None:
    leaves = Leaves()
    _train(leaves)
    assert leaves.counts == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert leaves.threshold[0] > 10_000 and leaves.threshold[1:] == (10, 10)
    assert gc.get_threshold() == (700, 10, 10)


def test_the_collector_is_as_before_after_a_run_that_failed() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        _train(Leaves(fails_at=3))
    assert gc.get_threshold() == (700, 10, 10)


def test_python_may_keep_its_own_times_and_a_collector_that_is_off_stays_off() -> None:
    leaves = Leaves()
    _train(leaves, gc="python")
    assert leaves.threshold == (700, 10, 10)
    gc.disable()
    _train(leaves)
    assert leaves.threshold == (700, 10, 10)
    assert not gc.isenabled()


def test_another_word_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"env_cfg: gc='off' is unknown.*paused"):
        _train(Leaves(), gc="off")
