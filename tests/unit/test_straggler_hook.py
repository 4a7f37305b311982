"""Who is slow and with what, by times that are told, and of two processes that train."""

from pathlib import Path
from time import thread_time
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest

from stratrun import ConfigError, Hook, Runner
from stratrun.engine import forward_times
from stratrun.hooks import HookTimesHook, MemoryHook, ProfilerHook, StragglerHook, ThroughputHook
from stratrun.hooks import stragglers as straggler_hook
from stratrun.hooks.stragglers import Slow
from tests.problems import perceptron, points
from tests.ranks import Ranks

EVERYWHERE = (0.001, 0.010, 0.002)
"""Seconds of data, forward pass and hooks of a process that is as all others."""


def rows(*sections: tuple[float | None, ...], whole: float = 0.05) -> list[Any]:
    return [(number, f"host{number}", whole, list(times)) for number, times in enumerate(sections)]


def judged(*windows: list[Any]) -> list[list[tuple[int, str]]]:
    """Who was named after each window."""
    hook, told = StragglerHook(), list[str]()
    run = cast(Any, SimpleNamespace(loggers=SimpleNamespace(say=told.append)))
    named = []
    for window in windows:
        before = len(hook.found)
        hook._judge(run, window)
        named.append([(one.process, one.section) for one in hook.found[before:]])
    assert told == [str(one) for one in hook.found]
    return named


def test_a_process_is_named_in_its_second_slow_window_and_once_until_it_recovers() -> None:
    slow = rows(EVERYWHERE, (0.001, 0.022, 0.002), EVERYWHERE, EVERYWHERE)
    fine = rows(*[EVERYWHERE] * 4)
    found = judged(slow, slow, slow, fine, slow, slow)
    assert found == [[], [(1, "forward")], [], [], [], [(1, "forward")]]
    assert judged(slow, fine, slow, fine) == [[], [], [], []]


def test_the_section_is_told_with_two_processes_too_and_what_is_not_compared_is_left_out() -> None:
    data, hooks = (0.030, 0.010, 0.002), (0.001, 0.010, 0.040)
    both = rows(data, hooks)
    assert judged(both, both)[1] == [(0, "data"), (1, "hooks")]
    without = rows((0.001, None, 0.002), (0.001, 0.9, 0.030))
    assert judged(without, without)[1] == [(1, "hooks")]


def test_what_makes_no_difference_is_not_told() -> None:
    # A tenth of an iteration is 5 ms here: hooks may take thrice as long, and a forward pass a little longer.
    little = rows(EVERYWHERE, (0.001, 0.014, 0.006))
    # Of a short iteration the difference is a large share, and too little to speak of.
    short = rows((1e-5, 1e-4, 1e-5), (4e-4, 1e-4, 1e-5), whole=1e-3)
    assert judged(little, little, short, short) == [[], [], [], []]


def test_the_message_says_who_with_what_and_how_much() -> None:
    told = str(Slow(3, "data", 0.05, 0.002, 0.06, "node7"))
    assert told == (
        "process 3 on node7 is slow in its data: 50.0 ms an iteration, where others take 2.0; "
        "all wait for it, an iteration of theirs takes 60.0 ms"
    )


@pytest.mark.parametrize("arguments", [{"ratio": 1}, {"share": 0}, {"share": 1.5}])
def test_wrong_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be above"):
        StragglerHook(**arguments)


class Busy(Hook):
    """Has a process compute for much longer than an iteration of the others takes, from iteration 10 on."""

    def __init__(self, process: int) -> None:
        self.process = process

    def before_train_iter(self, runner: Any) -> None:
        if runner.process == self.process and runner.iter >= 10:
            end = thread_time() + 0.01
            while thread_time() < end:
                pass


class Logged(Hook):
    priority = 90

    def __init__(self) -> None:
        self.values: list[dict[str, Any]] = []

    def before_log(self, values: dict[str, Any]) -> None:
        self.values.append(dict(values))


def with_all_monitors(work_dir: str) -> Any:
    """What each of two processes has found: who was slow and when, traces, and rates; then a healthy run."""
    stragglers, profiler, logged = StragglerHook(), ProfilerHook(wait=2, warmup=1, active=1), Logged()
    throughput = ThroughputHook(tokens_per_sample=3)

    def train(hooks: list[Any], iterations: int, folder: str) -> None:
        runner = Runner(
            perceptron(),
            loss="cross_entropy",
            strategy="ddp",
            train_dataloader={"dataset": points(40), "global_batch_size": 4},
            train_cfg={"max_iters": iterations},
            optimizer={"type": "SGD", "lr": 0.1},
            default_hooks={"logger": {"type": "LoggerHook", "interval": 10}, "checkpoint": None},
            custom_hooks=hooks,
            loggers=["jsonl"],
            work_dir=f"{work_dir}/{folder}",
        )
        runner.train()
        runner.close()

    healthy = StragglerHook()
    # By the time that a process computes: it may well be slow by another clock, when others keep its core.
    with (
        patch.object(straggler_hook, "perf_counter", thread_time),
        patch.object(forward_times, "perf_counter", thread_time),
    ):
        train([stragglers, profiler, throughput, MemoryHook(), HookTimesHook(), Busy(1), logged], 30, "slow")
        train([healthy], 500, "healthy")
    named = [(one.process, one.section) for one in stragglers.found]
    return (
        named,
        [Path(trace).name for trace in profiler.traces],
        logged.values,
        healthy.found,
        throughput.flops,
    )


def test_of_two_processes_the_slow_one_is_named_within_two_windows_and_none_of_two_healthy_ones(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    results = two_ranks(with_all_monitors, str(tmp_path))
    for rank, (named, traces, values, healthy, flops) in enumerate(results):
        assert named == [(1, "hooks")]
        assert traces == [f"iterations-4-4.process-{rank}.json.gz"]
        # Both count all samples, and the operations of one sample are what they are for one process.
        last = values[-1]
        assert last["samples_per_s"] == pytest.approx(4 * last["iters_per_s"])
        assert last["tokens_per_s"] == pytest.approx(3 * last["samples_per_s"])
        assert flops == 2 * (2 * 5 * 8 + 3 * 8 * 3)
        assert last["tflops_per_s"] * 1e12 == pytest.approx(flops * last["samples_per_s"] / 2)
        assert last["host_memory_max"] >= last["host_memory"] > 0
        assert healthy == []
    traces = list(tmp_path.glob("slow/runs/*/profile/*.json.gz"))
    assert len(traces) == 2
    text = [path.read_text() for path in tmp_path.glob("slow/**/*.jsonl")]
    assert len(text) == 1
