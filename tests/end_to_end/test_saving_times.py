"""When a run is saved, be it that an exception ends it: what goes on from there is the uninterrupted run."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stratrun.checkpoint.selection import resolve
from stratrun.hooks import Hook
from stratrun.runner import rescue
from stratrun.storage import Folder
from tests.end_to_end import resume_job
from tests.end_to_end.resume_job import GLOBAL_BATCH, PER_EPOCH, Augmented, Case, differences, on
from tests.ranks import Ranks

AT = 6  # in the second epoch, with one micro-batch in the window where three are accumulated
SAVE = {"interval": None, "save_on": "exception"}


class Broken(Exception):
    """What a run of these tests is broken off by."""


class Fault(Hook):
    """Breaks the run off at one place."""

    def __init__(self, where: str, error: type[BaseException], at: int = AT) -> None:
        self.where, self.error, self.at = where, error, at

    def fail(self, *_: Any) -> None:
        raise self.error(self.where)

    def before_train_iter(self, runner: Any) -> None:
        if runner.iter != self.at:
            return
        torch.rand(3)
        if self.where == "hook":
            self.fail()
        elif self.where == "forward":
            runner.model.net.register_forward_hook(self.fail)
        elif self.where == "backward":
            runner.model.net[0].weight.register_hook(self.fail)
        elif self.where == "update":
            runner.engine.optimizers["optimizer"].register_step_post_hook(self.fail)

    def after_train_iter(self, runner: Any) -> None:
        if self.where == "after" and runner.iter == self.at + 1:
            self.fail()

    def after_train_epoch(self) -> None:
        if self.where == "epoch":
            self.fail()

    def after_val_iter(self, batch_idx: int) -> None:
        if self.where == "validation" and batch_idx == 0:
            self.fail()


class Unreadable(Augmented):
    """Samples of which the second batch of the second epoch cannot be read, on no rank."""

    def __init__(self, error: type[BaseException], size: int) -> None:
        super().__init__()
        self.error, self.size = error, size
        self.reads = 0

    def __getitem__(self, index: int) -> Any:
        self.reads += self.epoch == 1
        if self.reads > GLOBAL_BATCH // self.size:
            raise self.error("data")
        return super().__getitem__(index)


def train_broken(
    case: Case, work_dir: str, where: str, error: type[BaseException], save: Any = SAVE, at: int = AT
) -> list[str]:
    """Train until the run breaks off, and return what the exception tells."""
    if where == "data":
        data = {"dataset": Unreadable(error, case.size), "global_batch_size": GLOBAL_BATCH}
        case = replace(case, options={**case.options, "train_dataloader": data})
    try:
        resume_job.train(replace(case, hooks=(Fault(where, error, at),)), work_dir, save=save)
    except error as caught:
        assert str(caught).startswith(where)
        return [note for note in getattr(caught, "__notes__", []) if note.startswith("stratrun:")]
    raise AssertionError("the run was not broken off")


def saved(folder: Path) -> list[str]:
    place = folder / "checkpoints"
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


@pytest.fixture(scope="module")
def truths() -> dict[Any, list[dict[str, Any]]]:
    """Runs that were not broken off, by size and accumulation."""
    return {}


def truth_of(truths: Any, ranks: Ranks, case: Case, folder: Path) -> list[dict[str, Any]]:
    key = (case.size, case.accumulate)
    if key not in truths:
        truths[key] = on(ranks, case.size, resume_job.train, case, str(folder / "whole"), save=SAVE)
        shutil.rmtree(folder / "whole", ignore_errors=True)
    found: list[dict[str, Any]] = truths[key]
    return found


def assert_goes_on(resumed: list[dict[str, Any]], truth: list[dict[str, Any]], done: int) -> None:
    for found, whole in zip(resumed, truth, strict=True):
        # What was logged of iteration `done` was so before the save, but for a validation after it.
        rows = [row for row in whole["logged"] if row[0] > done or (row[0] == done and row[3] == "val")]
        rest = {**whole, "seen": whole["seen"][done:], "logged": rows}
        for part in rest.keys() - {"rows", "counts"}:
            assert differences(found[part], rest[part], part) == []


@pytest.mark.parametrize(
    ("where", "accumulate"),
    [(where, n) for where in ("data", "hook", "forward", "validation") for n in (1, 3)] + [("backward", 1)],
)
@pytest.mark.parametrize(("size", "error"), [(1, Broken), (2, Broken), (1, KeyboardInterrupt)])
def test_a_run_that_an_exception_broke_off_goes_on_as_if_it_had_not(
    where: str, size: int, error: Any, accumulate: int, two_ranks: Ranks, tmp_path: Path, truths: Any
) -> None:
    case = Case(size, accumulate=accumulate)
    truth = truth_of(truths, two_ranks, case, tmp_path)
    told = on(two_ranks, size, train_broken, case, str(tmp_path), where, error)
    done = PER_EPOCH if where == "validation" else AT
    name = f"step-{done:08d}"
    assert saved(tmp_path) == [name], told
    for notes in told:
        assert len(notes) == 1 and f"saved as of iteration {done}; resume=True" in notes[0]
        assert notes[0].endswith(name)
    resumed = on(two_ranks, size, resume_job.train, case, str(tmp_path), save=SAVE, resume=True)
    assert_goes_on(resumed, truth, done)


@pytest.mark.parametrize(
    ("where", "accumulate", "reason"),
    [
        ("update", 1, f"the parameters have begun to change after iteration {AT}"),
        ("backward", 3, "the iteration that was broken off has changed tensors that are not copied"),
        ("after", 1, f"iteration {AT + 1} has ended after iteration {AT}, and not all hooks"),
        ("epoch", 1, "an epoch has ended after iteration 5, and not all hooks"),
    ],
)
def test_what_a_resumed_run_could_not_go_on_from_exactly_is_not_saved(
    where: str, accumulate: int, reason: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    save = {**SAVE, "interval": 3, "by_epoch": False}
    case = Case(accumulate=accumulate, options={"checkpoint_cfg": {"asynchronous": False}})
    (notes,) = on(two_ranks, 1, train_broken, case, str(tmp_path), where, Broken, save)
    newest = 3 if where == "epoch" else AT
    assert len(notes) == 1 and f"stratrun: nothing was saved: {reason}" in notes[0]
    assert notes[0].endswith(f"the newest checkpoint is {tmp_path}/checkpoints/step-{newest:08d}")
    assert saved(tmp_path)[-1] == f"step-{newest:08d}"


def test_nothing_is_saved_of_a_run_that_has_not_begun(two_ranks: Ranks, tmp_path: Path) -> None:
    (notes,) = on(two_ranks, 1, train_broken, Case(), str(tmp_path), "forward", Broken, SAVE, 0)
    assert notes == [] and saved(tmp_path) == []


def failing_save(work_dir: str) -> list[str]:
    original = rescue.Checkpointer.save
    rescue.Checkpointer.save = lambda *_, **__: (_ for _ in ()).throw(OSError("full"))  # type: ignore[method-assign]
    try:
        return train_broken(Case(), work_dir, "forward", Broken)
    finally:
        rescue.Checkpointer.save = original  # type: ignore[method-assign]


def test_a_save_that_fails_then_is_a_note_to_what_went_wrong_first(two_ranks: Ranks, tmp_path: Path) -> None:
    (notes,) = on(two_ranks, 1, failing_save, str(tmp_path))
    assert notes == ["stratrun: then saving failed too: OSError: full; there is no checkpoint yet"]


def trained_and_resumed(work_dir: str, save: Any, **options: Any) -> tuple[Any, Any]:
    whole = resume_job.train(Case(**options), work_dir, save=save)
    return whole, resume_job.train(Case(**options), work_dir, save=save, resume=True)


@pytest.mark.parametrize(
    "save",
    [
        {"interval": PER_EPOCH, "by_epoch": False, "save_best": "accuracy"},
        {"interval": 1, "save_best": ["accuracy", "loss"]},
    ],
)
def test_a_finished_run_that_is_resumed_repeats_nothing(save: Any, two_ranks: Ranks, tmp_path: Path) -> None:
    ((whole, again),) = on(two_ranks, 1, trained_and_resumed, str(tmp_path), save)
    assert again["seen"] == []
    assert [row for row in again["logged"] if row[3] != "progress"] == []
    for part in ("weights", "counters", "hooks", "windows", "torch"):
        assert differences(again[part], whole[part]) == []


def test_best_is_by_all_validations_the_last_one_too(two_ranks: Ranks, tmp_path: Path) -> None:
    save = {"save_best": {"accuracy": "greater", "loss": "less"}}
    (whole,) = on(two_ranks, 1, resume_job.train, Case(), str(tmp_path), save=save)
    results = [(row[0], row[4]) for row in whole["logged"] if row[3] == "val"]
    assert len(results) == 2
    highest = max(results, key=lambda result: (result[1]["accuracy"], -result[0]))[0]
    lowest = min(results, key=lambda result: (result[1]["loss"], result[0]))[0]
    work_dir = Folder(tmp_path)
    assert resolve(work_dir, "best:accuracy").name == f"step-{highest:08d}"
    assert resolve(work_dir, "best:loss").name == f"step-{lowest:08d}"
    assert resolve(work_dir, "last").name == f"step-{2 * PER_EPOCH:08d}"


def minutes_apart(work_dir: str) -> list[int]:
    """Ranks whose clocks go at other speeds: two iterations a minute on average."""
    import os
    from types import SimpleNamespace

    from stratrun.control import agreement, control
    from stratrun.hooks import CheckpointHook

    now = [0.0]

    class Clock(CheckpointHook):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.pace = 10.0 if os.environ["RANK"] == "0" else 51.0
            self.at: list[int] = []

        def after_train_iter(self, runner: Any) -> None:
            now[0] += self.pace
            super().after_train_iter(runner)

        def _save(self, runner: Any) -> None:
            self.at.append(runner.iter)
            super()._save(runner)

    hook = Clock(interval=None, minutes=1, save_on=None)
    with pytest.MonkeyPatch.context() as patch:
        for module in (agreement, control):
            patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
        resume_job.train(Case(2), work_dir, save=hook)  # type: ignore[arg-type]
    return hook.at


def test_ranks_with_different_clocks_save_at_the_same_iterations(two_ranks: Ranks, tmp_path: Path) -> None:
    first, second = on(two_ranks, 2, minutes_apart, str(tmp_path))
    # Two iterations a minute, of which they know one iteration later.
    assert first == second == [4, 6, 9]
