"""When hooks are called: as the listing in `stratrun.hooks.base` says, by priority, with what they name."""

import re
from typing import Any

import pytest

import stratrun.hooks.base
from stratrun import Runner
from stratrun.errors import ConfigError
from stratrun.hooks import Hook
from stratrun.hooks.base import POINTS
from stratrun.hooks.dispatch import HookList
from stratrun.runner import BaseLoop
from tests.problems import perceptron, points
from tests.ranks import Ranks

EPOCHS, TRAIN_BATCHES, VAL_BATCHES = 2, 3, 2


def listed(times: dict[str, int]) -> list[str]:
    """The points of the listing, those "for each ..." as often as `times` says for that point."""
    text = (stratrun.hooks.base.__doc__ or "").partition("::")[2]
    block = re.split(r"\n(?=\S)", text.strip("\n"))[0]
    lines = [line for line in block.splitlines() if line.strip()]
    found = [(len(line) - len(line.lstrip()), line.split()[0], "for each" in line) for line in lines]
    return expanded(found, times)


def expanded(lines: list[tuple[int, str, bool]], times: dict[str, int]) -> list[str]:
    order: list[str] = []
    i = 0
    while i < len(lines):
        indent, name, repeated = lines[i]
        if not repeated:
            order.append(name)
            i += 1
            continue
        # What is repeated reaches to the first line that is indented less.
        end = next((j for j in range(i, len(lines)) if lines[j][0] < indent), len(lines))
        order += expanded([(indent, name, False), *lines[i + 1 : end]], times) * times[name]
        i = end
    return order


class Recorder(Hook):
    """Notes each built-in point that is called, with the counters at that moment."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.counters: list[tuple[str, int, int]] = []
        self.given: dict[str, set[str]] = {}

    def note(self, point: str, runner: Any, given: set[str]) -> None:
        self.calls.append(point)
        self.counters.append((point, runner.epoch, runner.iter))
        self.given[point] = given


def _method(point: str) -> Any:
    def method(self: Recorder, runner: Any, **details: Any) -> None:
        self.note(point, runner, set(details) - {"runner"})

    return method


for _point in POINTS:
    setattr(Recorder, _point, _method(_point))


def form(work_dir: str, **options: Any) -> dict[str, Any]:
    return {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(12), "global_batch_size": 4},
        "train_cfg": {"max_epochs": EPOCHS},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "val_dataloader": {"dataset": points(8), "global_batch_size": 4},
        "val_evaluator": {"type": "Accuracy"},
        "test_dataloader": {"dataset": points(8), "global_batch_size": 4},
        "test_evaluator": {"type": "Accuracy"},
        "predict_dataloader": {"dataset": points(8), "global_batch_size": 4},
        "work_dir": work_dir,
        "loggers": (),
        **options,
    }


def recorded(work_dir: str, job: str = "train", **options: Any) -> Recorder:
    recorder = Recorder()
    runner = Runner(perceptron(), **form(work_dir, custom_hooks=[recorder], **options))
    getattr(runner, job)()
    return recorder


def calls(work_dir: str, job: str) -> list[str]:
    return recorded(work_dir, job, default_hooks={"checkpoint": None, "logger": None}).calls


def test_a_recorded_training_run_is_in_the_order_of_the_listing(two_ranks: Ranks, tmp_path: Any) -> None:
    times = {
        "before_train_epoch": EPOCHS,
        "before_train_iter": TRAIN_BATCHES,
        "before_val_iter": VAL_BATCHES,
    }
    order = listed(times)
    assert len(order) == 6 + EPOCHS * (2 + 2 * TRAIN_BATCHES + 4 + 2 * VAL_BATCHES) - 2
    assert calls(str(tmp_path), "train") == order
    assert two_ranks(calls, str(tmp_path), "train") == [order, order]


@pytest.mark.parametrize("job", ["val", "test", "predict"])
def test_the_other_jobs_have_the_points_of_a_validation_between_those_of_the_run(
    job: str, tmp_path: Any
) -> None:
    body = [f"before_{job}", f"before_{job}_epoch"]
    body += [f"before_{job}_iter", f"after_{job}_iter"] * VAL_BATCHES
    body += [f"after_{job}_epoch", f"after_{job}"]
    assert calls(str(tmp_path), job) == ["before_run", *body, "after_run"]


def test_the_listing_and_the_points_around_checkpoints_name_every_built_in_point(tmp_path: Any) -> None:
    times = {"before_train_epoch": 1, "before_train_iter": 1, "before_val_iter": 1}
    validation = [point for point in listed(times) if "_val" in point]
    others = [point.replace("_val", f"_{job}") for job in ("test", "predict") for point in validation]
    text = stratrun.hooks.base.__doc__ or ""
    apart = [
        p
        for p in (
            "before_save_checkpoint",
            "after_load_checkpoint",
            "before_log",
            "after_log",
            "on_exception",
            "on_break_off",
        )
        if p in text
    ]
    assert sorted([*listed(times), *others, *apart]) == sorted(POINTS)


def test_a_save_comes_before_after_train_epoch_of_later_hooks_and_a_load_before_the_loop(
    tmp_path: Any,
) -> None:
    first = recorded(str(tmp_path), val_dataloader=None, val_evaluator=None).calls
    saved = first.index("before_save_checkpoint")
    assert first[saved - 1 : saved + 2] == [
        "after_train_epoch",
        "before_save_checkpoint",
        "before_train_epoch",
    ]
    # What comes at the very end of the training is in the checkpoint too.
    assert first[-4:] == ["after_train_epoch", "after_train", "before_save_checkpoint", "after_run"]
    more = {"train_cfg": {"max_epochs": 3}, "val_dataloader": None, "val_evaluator": None}
    again = recorded(str(tmp_path), resume=True, **more)
    assert again.calls[:4] == ["before_run", "after_load_checkpoint", "before_train", "before_train_epoch"]


def test_counters_have_moved_at_the_points_after_the_work(tmp_path: Any) -> None:
    seen = recorded(str(tmp_path), val_dataloader=None, val_evaluator=None).counters
    iterations = [(epoch, iteration) for point, epoch, iteration in seen if point == "after_train_iter"]
    assert iterations == [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6)]
    befores = [(epoch, iteration) for point, epoch, iteration in seen if point == "before_train_iter"]
    assert befores == [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4), (1, 5)]
    epochs = [(point, epoch) for point, epoch, _ in seen if point.endswith("_train_epoch")]
    both = [("before_train_epoch", 0), ("after_train_epoch", 1)]
    assert epochs == [*both, ("before_train_epoch", 1), ("after_train_epoch", 2)]


def test_each_point_gives_what_the_table_of_points_says(tmp_path: Any) -> None:
    given: dict[str, set[str]] = {}
    often = {"default_hooks": {"logger": {"interval": 2}}}
    for number, job in enumerate(("train", "val", "test", "predict")):
        given.update(recorded(f"{tmp_path}/{number}", job, **often).given)
    given.update(recorded(f"{tmp_path}/0", resume=True, train_cfg={"max_epochs": 3}).given)
    missing = {"on_exception", "on_break_off"}
    assert set(given) == set(POINTS) - missing
    assert {point: set(POINTS[point]) for point in given} == given


# Order among hooks ---------------------------------------------------------------------------------------


class Named(Hook):
    log: list[str]

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def before_run(self) -> None:
        self.log.append(self.name)


class Early(Named):
    priority = 10


def test_hooks_are_called_by_priority_then_in_the_order_of_registration(tmp_path: Any) -> None:
    log: list[str] = []
    runner = Runner(
        perceptron(),
        **form(
            str(tmp_path),
            custom_hooks=[
                {"type": Named, "name": "lowest", "log": log, "priority": "LOWEST"},
                Named("first normal", log),
                {"type": Named, "name": "twenty", "log": log, "priority": 20},
                Named("second normal", log),
                Early("early", log),
                {"type": Early, "name": "early that was put off", "log": log, "priority": "low"},
            ],
        ),
    )
    runner.test()
    order = ["early", "twenty", "first normal", "second normal", "early that was put off", "lowest"]
    assert log == order
    line = next(line for line in runner.hooks.describe().splitlines() if line.startswith("before_run:"))
    assert line == "before_run: Early (10), Named (20), Named (50), Named (50), Early (70), Named (100)"


def test_the_default_hooks_move_rates_then_log_then_save_behind_hooks_of_the_user(tmp_path: Any) -> None:
    runner = Runner(perceptron(), **form(str(tmp_path), custom_hooks=[Recorder()]))
    line = next(line for line in runner.hooks.describe().splitlines() if line.startswith("after_train_iter:"))
    names = re.findall(r"(\w+) \(\d+\)", line)
    assert names.index("Recorder") < names.index("ParamSchedulerHook") < names.index("LoggerHook")
    assert names.index("LoggerHook") < names.index("CheckpointHook")


@pytest.mark.parametrize("priority", [101, -1, "HIGHER", 1.5, True])
def test_a_priority_that_is_none_is_refused(priority: Any, tmp_path: Any) -> None:
    hooks = [{"type": Named, "name": "", "log": [], "priority": priority}]
    with pytest.raises(ConfigError, match=re.escape(f"priority={priority!r}")):
        Runner(perceptron(), **form(str(tmp_path), custom_hooks=hooks)).test()


# What a method is given ----------------------------------------------------------------------------------


class Asking(Hook):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def before_train_iter(self, data_batch: Any, batch_idx: int) -> None:
        self.seen.append((batch_idx, len(data_batch)))

    def after_train_iter(self, outputs: Any, runner: Any, *, batch_idx: int, extra: str = "own") -> None:
        self.seen.append((sorted(outputs), runner.iter, batch_idx, extra))

    def after_val_epoch(self, **details: Any) -> None:
        self.seen.append(sorted(details))

    @staticmethod
    def before_train_epoch() -> None:
        pass

    @property
    def before_lunch(self) -> Any:  # no method: must not be run at registration
        raise AssertionError("touched")


def test_a_method_takes_just_what_it_names_in_any_order(tmp_path: Any) -> None:
    hook = Asking()
    Runner(perceptron(), **form(str(tmp_path), custom_hooks=[hook], train_cfg={"max_epochs": 1})).train()
    assert hook.seen[:2] == [(0, 2), (["loss"], 1, 0, "own")]
    assert hook.seen[-1] == ["metrics", "runner"]


class Misspelt(Hook):
    def after_train_iter(self, output: Any) -> None: ...


def test_a_name_that_a_point_does_not_give_is_refused_when_the_hook_is_registered() -> None:
    with pytest.raises(ConfigError, match=r"Misspelt.after_train_iter asks for 'output'.*'outputs'"):
        HookList().register(Misspelt())


# Errors --------------------------------------------------------------------------------------------------


class Failing(Hook):
    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == 4:
            raise RuntimeError("no disk")


class Witness(Hook):
    def __init__(self) -> None:
        self.exceptions: list[BaseException] = []

    def on_exception(self, exception: BaseException) -> None:
        self.exceptions.append(exception)


def test_an_error_in_a_hook_names_hook_point_and_step_and_reaches_on_exception(tmp_path: Any) -> None:
    witness = Witness()
    options = form(str(tmp_path), custom_hooks=[Failing(), witness])
    options["train_cfg"] = {"max_epochs": 2, "accumulate": 2}
    with pytest.raises(RuntimeError, match="no disk") as caught:
        Runner(perceptron(), **options).train()
    # The first epoch has three batches and two windows; the fourth batch opens the third.
    assert caught.value.__notes__ == ["in Failing.after_train_iter, step 2"]
    assert witness.exceptions == [caught.value]


# Points of a loop's own, and default hooks ---------------------------------------------------------------


class Halves(BaseLoop):
    def run(self) -> None:
        for idx, batch in enumerate(self.dataloader):
            self.runner.call_hooks("before_half", half=idx, data_batch=batch)
            self.run_iter(idx, batch)
        self.runner.metrics = self.evaluator.evaluate()


class AtHalf(Hook):
    def __init__(self) -> None:
        self.halves: list[int] = []

    def before_half(self, half: int) -> None:
        self.halves.append(half)


class AtQuarter(Hook):
    def before_half(self, quarter: int) -> None: ...


def test_a_point_that_a_loop_invents_calls_the_hooks_that_have_it(tmp_path: Any) -> None:
    hook = AtHalf()
    Runner(perceptron(), **form(str(tmp_path), test_cfg={"type": Halves}, custom_hooks=[hook])).test()
    assert hook.halves == [0, 1]


def test_a_name_that_an_invented_point_does_not_give_is_refused_when_it_is_called(tmp_path: Any) -> None:
    options = form(str(tmp_path), test_cfg={"type": Halves}, custom_hooks=[AtQuarter()])
    with pytest.raises(ConfigError, match=r"AtQuarter\.before_half asks for 'quarter'"):
        Runner(perceptron(), **options).test()
