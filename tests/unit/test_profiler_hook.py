"""Traces of the iterations that were asked for, and nothing of the profiler in others."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from stratrun import ConfigError, Hook, Runner
from stratrun.hooks import ProfilerHook
from tests.problems import perceptron, points


class Seen(Hook):
    """Which iterations were profiled."""

    priority = 50

    def __init__(self, hook: ProfilerHook) -> None:
        self.hook = hook
        self.profiled: list[int] = []

    def after_train_iter(self, runner: Any) -> None:
        if self.hook._profile is not None:
            self.profiled.append(runner.iter)


def profiled(tmp_path: Path, hook: ProfilerHook, iterations: int, **options: Any) -> tuple[Runner, list[int]]:
    seen = Seen(hook)
    runner = Runner(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(40), "batch_size": 2},
        train_cfg={"max_iters": iterations},
        optimizer={"type": "SGD", "lr": 0.1},
        custom_hooks=[hook, seen],
        loggers=["jsonl"],
        work_dir=tmp_path,
        **options,
    )
    runner.train()
    runner.close()
    return runner, seen.profiled


def steps_in(trace: str) -> set[str]:
    with gzip.open(trace, "rt") as file:
        return {event.get("name", "") for event in json.load(file)["traceEvents"]}


def test_a_trace_holds_the_iterations_of_its_window_and_hooks_by_name(tmp_path: Path) -> None:
    hook = ProfilerHook(wait=3, warmup=1, active=2, repeat=2)
    runner, seen = profiled(tmp_path, hook, 20)
    # Each window is the iterations after it has waited, and begins with those thrown away. The last of each
    # is over when a hook behind it looks.
    assert seen == [4, 5, 10, 11]
    names = [Path(trace).name for trace in hook.traces]
    assert names == ["iterations-5-6.process-0.json.gz", "iterations-11-12.process-0.json.gz"]
    assert runner.log_folder is not None
    assert {Path(trace).parent for trace in hook.traces} == {Path(runner.log_folder) / "profile"}
    found = steps_in(hook.traces[0])
    assert {"aten::addmm", "LoggerHook.after_train_iter", "IterTimerHook.before_train_iter"} <= found
    assert {name for name in found if name.startswith("ProfilerStep")} == {"ProfilerStep#1", "ProfilerStep#2"}
    assert "aten::addmm" in Path(hook.traces[0].replace(".json.gz", ".txt")).read_text()
    # Nothing is around hooks any more.
    assert runner.hooks.around is None


def test_a_window_that_the_end_cuts_short_is_written_and_a_resumed_run_counts_it(tmp_path: Path) -> None:
    first = ProfilerHook(wait=1, warmup=1, active=9, folder=tmp_path / "here")
    profiled(tmp_path, first, 4, default_hooks={"checkpoint": {"type": "CheckpointHook", "save_on": ["end"]}})
    assert [Path(trace).name for trace in first.traces] == ["iterations-3-4.process-0.json.gz"]
    assert Path(first.traces[0]).parent == tmp_path / "here"
    second = ProfilerHook(wait=1, warmup=1, active=2)
    _, seen = profiled(tmp_path, second, 12, resume=True)
    assert (second.traces, seen) == ([], [])


def test_windows_count_on_processes_that_are_not_profiled_as_one_checkpoint_tells_all(tmp_path: Path) -> None:
    hook = ProfilerHook(wait=2, warmup=1, active=1, repeat=2, processes=[1])
    _, seen = profiled(tmp_path, hook, 6)
    assert (hook.traces, seen, hook.state_dict()) == ([], [], {"windows": 1})


def test_an_error_within_a_window_ends_the_profiler_and_is_the_one_that_is_raised(tmp_path: Path) -> None:
    class Fails(Hook):
        def after_train_iter(self, runner: Any) -> None:
            if runner.iter == 2:
                raise KeyError("mine")

    hook = ProfilerHook(wait=0, active=9)
    with pytest.raises(KeyError, match="mine"):
        profiled(tmp_path, hook, 4, default_hooks={"scheduler": Fails()})
    assert hook._profile is None
    assert profiled(tmp_path, ProfilerHook(wait=0, warmup=1, active=1), 2)[1] == [1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"active": 0}, "active=0 must be a whole number of at least 1"),
        ({"wait": 0.5}, "wait=0.5 must be a whole number"),
        ({"schedule": None}, "schedule= is the hook's own"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ProfilerHook(**arguments)
