"""Saving by the clock: at the same iteration everywhere, for few exchanges."""

import math
from types import SimpleNamespace

import pytest

from stratrun.hooks.checkpoint import CheckpointHook
from stratrun.hooks.minutes import AgreedClock


class _Asked(Exception):
    """Ends the pass that finds out who takes part."""


class Together:
    """Several processes in one: each has a clock of its own, a mean is taken when all ask for it."""

    def __init__(self, paces):
        self.paces = paces  # seconds of an iteration, for each, by iteration
        self.clocks = [1000.0 * number for number in range(len(paces))]
        self.means = 0

    def run(self, seconds, iterations):
        """The iterations at which each process would save."""
        agreed = [AgreedClock(seconds, lambda i=i: self.clocks[i]) for i in range(len(self.paces))]
        for one in agreed:
            one.start(0)
        saves = []
        for iteration in range(1, iterations + 1):
            for i, pace in enumerate(self.paces):
                self.clocks[i] += pace(iteration)
            # Asked in two passes: the first finds out who takes part, and with what.
            taken = [self._ask(one, iteration, None) for one in agreed]
            asked = [value for value, _ in taken if value is not None]
            assert len(asked) in (0, len(agreed)), "some take part in a mean and some do not"
            self.means += bool(asked)
            mean = math.fsum(asked) / len(asked) if asked else None
            taken = [self._ask(one, iteration, mean) for one in agreed] if asked else taken
            over = [decision for _, decision in taken]
            assert len(set(over)) == 1, "some save and some do not"
            if over[0]:
                saves.append(iteration)
                for one in agreed:
                    one.start(iteration)
        return saves

    def _ask(self, one, iteration, mean):
        """What a process brings to the mean, None if it does not take part; and what it decides."""
        brought = []

        def exchange(values):
            brought.append(values["seconds"])
            if mean is None:
                raise _Asked
            return {"seconds": mean}

        run = SimpleNamespace(iter=iteration, engine=SimpleNamespace(mean=exchange))
        try:
            over = one.is_over(run)
        except _Asked:
            over = False
        return (brought or [None])[0], over


def test_processes_with_different_clocks_save_at_the_same_iterations():
    even = Together([lambda _: 1.0])
    assert even.run(59.9, 200) == [60, 120, 180]
    # Their mean is one second, too.
    apart = Together([lambda _: 0.2, lambda _: 1.8, lambda i: 0.5 + i % 2])
    assert apart.run(59.9, 200) == [60, 120, 180]


@pytest.mark.parametrize("iterations", [10, 1_000, 100_000])
def test_the_exchanges_of_an_interval_grow_with_its_logarithm(iterations):
    together = Together([lambda _: 0.01, lambda _: 0.01])
    saves = together.run(0.01 * iterations, 5 * iterations // 2)
    assert [abs(at - iterations * (n + 1)) <= 2 for n, at in enumerate(saves)] == [True, True]
    assert together.means <= 3 * (2 * math.log2(iterations) + 3)


def test_a_slow_first_iteration_costs_nothing_and_a_fast_start_is_soon_seen_through():
    compiled = Together([lambda i: 40.0 if i == 1 else 0.1])
    assert compiled.run(60, 250) == [201]
    # As iterations seem to be that only hand work to an accelerator, until its queue is full.
    queued = Together([lambda i: 0.0001 if i < 64 else 1.0])
    (first, *_) = queued.run(60, 300)
    assert 60 < first - 64 <= 128


def test_an_iteration_longer_than_the_interval_is_saved_each_time():
    assert Together([lambda _: 90.0]).run(60, 4) == [1, 2, 3, 4]


def test_a_clock_that_stands_still_is_looked_at_ever_less():
    together = Together([lambda _: 0.0])
    assert together.run(60, 1000) == []
    assert together.means <= 12


def test_minutes_count_from_the_last_save_of_whatever_kind():
    now = [0.0]
    hook = CheckpointHook(interval=50, by_epoch=False, minutes=1, save_on=None)
    hook._clock._clock = lambda: now[0]
    saves = []
    run = SimpleNamespace(
        iter=0,
        epoch=0,
        max_epochs=None,
        max_iters=None,
        engine=SimpleNamespace(mean=dict),
        save_checkpoint=lambda **_: saves.append(run.iter),
    )
    hook.before_train(run)
    for _ in range(130):
        run.iter += 1
        now[0] += 1.5
        hook.after_train_iter(run)
    # 40 iterations are a minute.
    assert saves == [40, 50, 90, 100]


def test_it_costs_no_exchange_where_no_minutes_are_asked_for():
    hook = CheckpointHook(interval=None)
    run = SimpleNamespace(iter=1, epoch=0)
    hook.after_train_iter(run)
