"""What a step of training or evaluation does beyond a plain loop, by count."""

import gc
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

# Not public, though torch tells others to derive from it.
from torch.utils._python_dispatch import TorchDispatchMode

from stratrun import Hook, Runner

Batch = tuple[Tensor, Tensor]
BATCHES = 24
FROM, TO = 10, 20
LOGGERS = ["console", "jsonl", "tensorboard"]
CHECK = "aten._amp_foreach_non_finite_check_and_unscale_.default"


def problem(batches: int = BATCHES) -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, [(torch.randn(5, 4), torch.randint(0, 3, (5,))) for _ in range(batches)]


class Operations(TorchDispatchMode):
    """Counts operations between two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Calls:
    """Counts calls of our own functions between two calls, by name."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> None:
        sys.setprofile(self._note)

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith("stratrun."):
            self.counts[f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}"] += 1


class Between(Hook):
    """Has something count from one iteration to another, log points not among them."""

    priority = 0

    def __init__(self, counter: Any) -> None:
        self.counter = counter

    def before_train_iter(self, batch_idx: int) -> None:
        self._turn(batch_idx)

    def before_test_iter(self, batch_idx: int) -> None:
        self._turn(batch_idx)

    def _turn(self, batch_idx: int) -> None:
        if batch_idx == FROM:
            self.counter.__enter__()
        elif batch_idx == TO:
            self.counter.__exit__(None, None, None)


def train(counter: Any, work_dir: str, **options: Any) -> None:
    model, batches = problem()
    runner = Runner(
        model,
        loss="cross_entropy",
        train_dataloader=batches,
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": 0.1},
        param_scheduler={"type": "StepLR", "step_size": 1},
        custom_hooks=[Between(counter)],
        loggers=LOGGERS,
        work_dir=work_dir,
        **options,
    )
    runner.train()
    runner.close()


def evaluate(counter: Any, work_dir: str) -> None:
    model, batches = problem()
    runner = Runner(
        model,
        test_dataloader=batches,
        test_evaluator="Accuracy",
        custom_hooks=[Between(counter)],
        loggers=LOGGERS,
        work_dir=work_dir,
    )
    runner.test()
    runner.close()


def per_step(counter: Any) -> dict[str, float]:
    return {name: count / (TO - FROM) for name, count in counter.counts.items()}


def test_a_step_makes_the_operations_of_a_plain_loop_and_one_that_looks_at_the_gradients(
    tmp_path: Any,
) -> None:
    found = Operations()
    train(found, str(tmp_path))
    model, batches = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = Operations()
    for number, (inputs, targets) in enumerate(batches):
        if number == FROM:
            plain.__enter__()
        if number == TO:
            plain.__exit__(None, None, None)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    # No section is opened for a profiler that is off, the seed of the backward pass is at hand, and an output
    # is given without its graph.
    expected = {name: n for name, n in per_step(plain).items() if not name.startswith("profiler.")}
    del expected["aten.ones_like.default"]
    expected["aten.detach.default"] = expected.get("aten.detach.default", 0) + 1
    assert per_step(found) == {**expected, CHECK: 1}


def test_a_step_of_evaluation_makes_the_operations_of_a_plain_loop(tmp_path: Any) -> None:
    found = Operations()
    evaluate(found, str(tmp_path))
    model, batches = problem()
    model.eval()
    plain, right = Operations(), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        for number, (inputs, targets) in enumerate(batches):
            if number == FROM:
                plain.__enter__()
            if number == TO:
                plain.__exit__(None, None, None)
            right += (model(inputs).argmax(1) == targets).sum()
    assert per_step(found) == per_step(plain)


@pytest.mark.parametrize(("job", "most"), [(train, 78), (evaluate, 28)])
def test_a_step_calls_few_functions_with_all_default_hooks_and_three_loggers(
    job: Callable[..., None], most: int, tmp_path: Any
) -> None:
    found = Calls()
    job(found, str(tmp_path))
    calls = per_step(found)
    assert sum(calls.values()) <= most, "\n".join(f"{n:6.1f} {name}" for name, n in sorted(calls.items()))


class Blocks(Hook):
    """Counts the memory blocks that Python holds, at the same distance from a log point each time."""

    priority = 100

    def __init__(self) -> None:
        self.held: list[int] = []

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter % 300 == 3:
            gc.collect()
            self.held.append(sys.getallocatedblocks())


def test_nothing_is_kept_of_a_step_once_it_was_logged(tmp_path: Any) -> None:
    found, (model, batches) = Blocks(), problem()
    runner = Runner(
        model,
        loss="cross_entropy",
        train_dataloader=batches,
        train_cfg={"max_iters": 1300},
        optimizer={"type": "SGD", "lr": 0.1, "momentum": 0.9},
        param_scheduler={"type": "StepLR", "step_size": 1},
        default_hooks={"logger": {"interval": 10}, "checkpoint": None},
        custom_hooks=[found],
        loggers=LOGGERS,
        work_dir=str(tmp_path),
    )
    runner.train()
    runner.close()
    # The first is of a run that has not made all that it keeps.
    _, first, *_, last = found.held
    assert last - first < 300, found.held  # of 900 steps
