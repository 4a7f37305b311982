"""What a run does about saves beside it: who exchanges what, who waits for whom, and how it ends."""

import copy
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from stratrun import Runner
from stratrun.checkpoint import StoredCheckpoint
from stratrun.checkpoint.discovery import committed_steps
from stratrun.hooks import Hook
from stratrun.runner import persistence
from stratrun.storage import Folder
from tests.end_to_end.resume_job import differences
from tests.problems import points
from tests.ranks import Ranks

EXCHANGES = (
    "all_gather_object",
    "all_reduce",
    "barrier",
    "broadcast_object_list",
    "gather_object",
    "scatter_object_list",
)


def made(work_dir: str, iterations: int, *hooks: Hook, save: Any = None, **options: Any) -> Runner:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 3))
    form: dict[str, Any] = {
        "work_dir": work_dir,
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(64), "global_batch_size": 8},
        "train_cfg": {"by_epoch": False, "max_iters": iterations},
        "optimizer": {"type": "AdamW", "lr": 0.05},
        "default_hooks": {"checkpoint": save and {"by_epoch": False, "keep_last": None, **save}},
        "custom_hooks": hooks,
        "loggers": (),
        "randomness": {"seed": 0},
    }
    return Runner(net, **{**form, **options})


@contextmanager
def slow(seconds: float, fault: Any = None) -> Iterator[None]:
    """Each file takes so long, or what `fault` does."""
    quick = Folder.write_blocks

    def write(self: Folder, *args: Any, **kwargs: Any) -> None:
        time.sleep(seconds)
        if fault is not None:
            fault()
        quick(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "write_blocks", write)
        yield


def steps_in(work_dir: str) -> list[int]:
    return committed_steps(Folder(work_dir).child("checkpoints"))


def others_in(work_dir: str) -> list[str]:
    names = Folder(work_dir).child("checkpoints").names()
    return [name for name in names if not name.startswith("step-")]


# What is saved -------------------------------------------------------------------------------------------


class Watch(Hook):
    def __init__(self) -> None:
        self.own: dict[int, Any] = {}

    def before_save_checkpoint(self, runner: Any) -> None:
        state = persistence.own_state(runner)
        self.own[runner.iter] = copy.deepcopy({key: state[key] for key in ("engine", "rng")})


def own_states(work_dir: str) -> list[str]:
    watch = Watch()
    with slow(0.004):
        runner = made(work_dir, 60, watch, save={"interval": 1})
        runner.train()
    wrong = []
    for step, own in watch.own.items():
        folder = Folder(work_dir).child(f"checkpoints/step-{step:08d}")
        stored = StoredCheckpoint(folder).read(runner.rank, 2).own
        wrong += [f"{step}{text}" for text in differences({key: stored[key] for key in own}, own)]
    assert len(watch.own) == 60
    runner.close()
    return wrong


def test_generators_and_buffers_of_each_rank_are_saved_as_they_were_at_each_step(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    assert two_ranks(own_states, str(tmp_path)) == [[], []]


# Exchanges -----------------------------------------------------------------------------------------------


class Spy(Hook):
    """Notes each exchange that Python asks for: which, on what group, in what thread."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool, str]] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in EXCHANGES:
                patch.setattr(dist, name, self._noting(name, getattr(dist, name)))
            yield

    def _noting(self, name: str, exchange: Any) -> Any:
        def note(*args: Any, group: Any = None, **kwargs: Any) -> Any:
            ours = group is not None and group is not dist.group.WORLD
            self.seen.append((name, ours, threading.current_thread().name))
            return exchange(*args, group=group, **kwargs)

        return note


def exchanges(work_dir: str) -> tuple[list[Any], list[Any]]:
    """Those of a run with three saves, and of one without."""
    found = []
    for name, save in (("with", {"interval": 3}), ("without", None)):
        spy = Spy()
        # The state of the hooks is tried out once more after the first: what is counted begins then.
        runner = made(f"{work_dir}/{name}", 9, Begin(spy), save=save)
        runner.train()
        runner.close()
        found.append(spy.seen)
    return found[0], found[1]


class Begin(Hook):
    def __init__(self, spy: Spy) -> None:
        self.spy, self.listening = spy, spy.listening()

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == 1:
            self.listening.__enter__()

    def after_run(self, runner: Any) -> None:
        self.listening.__exit__(None, None, None)


def test_a_save_beside_the_run_exchanges_nothing_in_the_loop_nor_on_the_group_of_the_gradients(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    for saving, plain in two_ranks(exchanges, str(tmp_path)):
        assert [call for call in saving if call[2] == "MainThread"] == plain
        beside = [call for call in saving if call[2] != "MainThread"]
        assert beside and all(ours and thread == "stratrun-save" for _, ours, thread in beside)
        names = [name for name, _, _ in beside]
        # A mere barrier would tell nobody of a failure: each phase ends with what became of it.
        verdict, once = "all_gather_object", "broadcast_object_list"
        phases = [verdict, verdict, once, verdict, "gather_object", verdict, "scatter_object_list"]
        assert names == [*phases, verdict, "gather_object", verdict] * 3


# Waiting -------------------------------------------------------------------------------------------------


class Pressed(Hook):
    """Notes which checkpoints there are when a save has been asked for."""

    priority = 100

    def __init__(self) -> None:
        self.found: list[list[int]] = []

    def after_train_iter(self, runner: Any) -> None:
        self.found.append(steps_in(runner.work_dir))


def pressed(work_dir: str) -> tuple[list[list[int]], list[int]]:
    hook = Pressed()
    with slow(0.1):
        runner = made(work_dir, 10, hook, save={"interval": 1})
        runner.train()
        left = steps_in(work_dir)  # nobody waits any more
    runner.close()
    return hook.found, left


def test_with_a_slow_disk_the_next_save_waits_and_none_is_dropped(two_ranks: Ranks, tmp_path: Path) -> None:
    for found, left in two_ranks(pressed, str(tmp_path)):
        assert left == list(range(1, 11))
        # One may be under way, and that may just have ended. The very last comes after all of training.
        assert all(steps[: i - 1] == list(range(1, i)) for i, steps in enumerate(found[:-1], start=1))
        assert any(len(steps) < i for i, steps in enumerate(found[:-1], start=1))


# The end -------------------------------------------------------------------------------------------------


class Leave(Hook):
    priority = 100

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == 7:
            raise self.kind("leaving")


KINDS = (ValueError, SystemExit, KeyboardInterrupt)


def left(work_dir: str, kind: type[BaseException], where: int | None) -> tuple[str, list[int], list[str]]:
    rank = int(os.environ["RANK"])
    with slow(0.4):
        runner = made(work_dir, 20, *([Leave(kind)] if where in (None, rank) else []), save={"interval": 6})
        told = ""
        try:
            runner.train()
        except BaseException as error:
            told = repr(error)
            assert type(error) is kind, error
    result = told, steps_in(work_dir), others_in(work_dir)
    runner.close()
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_who_leaves_while_a_save_is_under_way_has_it_and_the_reason_why_he_left(
    kind: type[BaseException], two_ranks: Ranks, tmp_path: Path
) -> None:
    for told, steps, others in two_ranks(left, str(tmp_path), kind, None):
        assert told == repr(kind("leaving"))
        assert steps in ([6], [6, 7]) and not others


def failing_while_leaving(work_dir: str) -> tuple[str, list[str], list[int], list[str]]:
    def fault() -> None:
        raise OSError(28, "No space left on device")

    with slow(0.4, fault):
        runner = made(work_dir, 20, Leave(ValueError), save={"interval": 6})
        with pytest.raises(ValueError, match="leaving") as caught:
            runner.train()
    runner.close()
    return str(caught.value), caught.value.__notes__, steps_in(work_dir), others_in(work_dir)


def test_a_save_that_fails_then_is_told_in_a_note(two_ranks: Ranks, tmp_path: Path) -> None:
    for told, notes, steps, others in two_ranks(failing_while_leaving, str(tmp_path)):
        assert told == "leaving" and not steps and not others
        assert any("No space left" in note for note in notes)


def in_a_row(work_dir: str) -> list[Any]:
    """One runner trains twice and tests; another follows in the same process."""
    found: list[Any] = []
    with slow(0.05):
        runner = made(
            f"{work_dir}/first",
            6,
            save={"interval": 2},
            test_dataloader={"dataset": points(8), "batch_size": 4},
            test_evaluator={"type": "Accuracy"},
        )
        runner.train()
        runner.train()
        found.append(steps_in(runner.work_dir))
        runner.test()
        runner.save_checkpoint()  # there already
        runner.close()
        second = made(f"{work_dir}/second", 5, save={"interval": 2})
        second.train()
        second.state.iter += 1
        second.save_checkpoint()
        second.close()  # waits for it
        found.append(steps_in(second.work_dir))
    return found


def test_jobs_and_runners_that_follow_each_other_all_save(two_ranks: Ranks, tmp_path: Path) -> None:
    assert two_ranks(in_a_row, str(tmp_path)) == [[[2, 4, 6], [2, 4, 5, 6]]] * 2
