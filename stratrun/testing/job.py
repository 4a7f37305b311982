"""Whole jobs of a Runner, for the checks of what it is extended with."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stratrun.hooks import Hook
from stratrun.registry import HOOKS
from stratrun.runner import Runner
from stratrun.runner.form import DEFAULT_HOOKS
from stratrun.testing import problem
from stratrun.testing.exchanges import Counted
from stratrun.testing.running import QUIET

Form = Callable[[], dict[str, Any]]
STOP = 5
"""Iteration after which runs are stopped, to go on with: within the second epoch."""
LOG_EVERY = 3


def default_form() -> dict[str, Any]:
    """Arguments of a Runner whose every job can be done, in some milliseconds."""
    torch.manual_seed(11)
    return {
        "model": problem.Classifier(),
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": problem.points(29), "global_batch_size": 8},
        "train_cfg": {"max_epochs": 2},
        "optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9},
        "val_dataloader": {"dataset": problem.points(9, seed=5), "global_batch_size": 2},
        "val_cfg": {},
        "val_evaluator": {"type": "Accuracy"},
        "test_dataloader": {"dataset": problem.points(9, seed=6), "global_batch_size": 2},
        "test_cfg": {},
        "test_evaluator": {"type": "Accuracy"},
        "predict_dataloader": {"dataset": problem.points(9, seed=7), "global_batch_size": 2},
        "predict_cfg": {},
        "randomness": {"seed": 3},
    }


@dataclass
class Done:
    """What a job came to, as one process sees it."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    at_start: dict[str, Tensor] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    result: Any = None
    points: list[str] = field(default_factory=list)
    """The hook points in the order of their calls."""
    iters: list[int] = field(default_factory=list)
    """`runner.iter` at each `after_train_iter`."""
    reads: list[int] = field(default_factory=list)
    exchanges: list[Counter[str]] = field(default_factory=list)
    """Of each training iteration, and what hooks do after it."""
    states: list[dict[str, Any]] = field(default_factory=list)
    """Of the hooks under test."""
    logged: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """What hooks gave to `runner.log` and to log points, with the iteration."""
    told: list[str] = field(default_factory=list)
    """What the run had to say of its hooks at its end."""
    drawn: Tensor = field(default_factory=lambda: torch.empty(0))
    """State of torch's generator at the end."""


class Follow(Hook):
    """Comes last at each point, and notes what was done until there."""

    priority = 100

    def __init__(self, done: Done, stop_at: int | None = None, *, save: bool = False) -> None:
        self.done = done
        self.stop_at = stop_at
        self.save = save
        self.counted: Counted = Counted()
        self._before: tuple[int, Counter[str]] = (0, Counter())

    def before_train(self, runner: Any) -> None:
        self.done.at_start = problem.weights_of(runner.model)

    def after_train_iter(self, runner: Any) -> None:
        reads, exchanges = self._before
        self.done.reads.append(self.counted.reads - reads)
        self.done.exchanges.append(self.counted.exchanges - exchanges)
        self._before = (self.counted.reads, Counter(self.counted.exchanges))
        self.done.iters.append(runner.iter)
        if runner.iter % LOG_EVERY == 0:
            self._log(runner)
        if runner.iter == self.stop_at:
            if self.save:
                runner.save_checkpoint()
            runner.request("stop", agreed=True)

    def _log(self, runner: Any) -> None:
        """Have a log point, of which there are none without a hook that logs."""
        values: dict[str, Any] = {}
        runner.call_hooks("before_log", values=values)
        runner.call_hooks("after_log")
        self.done.logged.append((runner.iter, values))


def run(
    form: Form,
    changes: Mapping[str, Any],
    work_dir: str,
    *,
    job: str = "train",
    hooks: tuple[Any, ...] = (),
    stop_at: int | None = None,
    save: bool = False,
) -> Done:
    """Do one job of a Runner with the arguments of `form`, changed.

    Args:
        hooks: Specs of those under test.
    """
    done = Done()
    follow = Follow(done, stop_at, save=save)
    arguments = {**default_form(), **QUIET, "work_dir": work_dir, **form(), **changes}
    own = tuple(arguments.pop("custom_hooks", ()))
    # One that every run has is there once.
    replaced = {n: None for n, name in DEFAULT_HOOKS.items() if name in {_name_of(spec) for spec in hooks}}
    arguments["default_hooks"] = {**arguments["default_hooks"], **replaced}
    runner = Runner(**arguments, custom_hooks=[*own, *hooks, follow])
    call = runner.call_hooks

    def noted(point: str, /, **details: Any) -> None:
        done.points.append(point)
        call(point, **details)

    log = runner.log

    def logged(values: Mapping[str, Any], **details: Any) -> None:
        done.logged.append((runner.iter, dict(values)))
        log(values, **details)

    runner.call_hooks, runner.log = noted, logged  # type: ignore[method-assign]
    # A loop may leave out a point for which no hook has a method.
    runner.hooks.listens = lambda point: True  # type: ignore[method-assign]
    with follow.counted:
        done.result = getattr(runner, job)()
    done.logged = [(at, {name: float(value) for name, value in entry.items()}) for at, entry in done.logged]
    built = [hook for hook in runner.hooks if type(hook).__name__ in {_name_of(spec) for spec in hooks}]
    done.states = [hook.state_dict() for hook in built]
    done.told = runner.hooks.never_called()
    done.weights = problem.weights_of(runner.model)
    done.counters = {name: getattr(runner, name) for name in ("epoch", "iter", "step", "samples")}
    done.metrics = dict(runner.metrics)
    done.drawn = torch.get_rng_state()
    runner.close()
    return done


def on_rank(*args: Any, **kwargs: Any) -> Done:
    """`run`, on ranks that each have a stream of random numbers of their own."""
    torch.manual_seed(int(os.environ["RANK"]))
    return run(*args, **kwargs)


def nothing() -> dict[str, Any]:
    """A form that changes nothing."""
    return {}


def model_of(form: Form) -> nn.Module:
    model: nn.Module = {**default_form(), **form()}["model"]
    return model


def _name_of(spec: Any) -> str:
    """The name of the class of a hook."""
    kind = HOOKS.check(spec)[0]
    return str(getattr(kind, "__name__", kind))
