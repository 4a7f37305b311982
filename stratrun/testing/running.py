"""Runs that the checks look at, in this process or on ranks."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stratrun.hooks import Hook
from stratrun.runner import Runner
from stratrun.testing import problem
from stratrun.testing.exchanges import Counted
from stratrun.testing.problem import Recipe
from stratrun.testing.process_state import isolated
from stratrun.testing.ranks import Ranks, shared_ranks
from stratrun.testing.report import Wrong

QUIET: dict[str, Any] = {
    "loggers": (),
    "default_hooks": {"checkpoint": None, "logger": None},
    "accelerator": "cpu",
}
"""Arguments of a run that only its weights or metrics are wanted of."""


@dataclass(frozen=True)
class Part:
    """What is under test, as far as it can travel to ranks."""

    strategy: Any = "auto"
    precision: Any = "32-true"
    build: problem.Build = problem.Centered
    rank: int = 0
    """Of this process. Models of ranks other than the first begin with other weights."""

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11 + self.rank)
            return self.build()


@dataclass
class Seen:
    """What a run came to, as one rank sees it."""

    start: dict[str, Tensor] = field(default_factory=dict)
    """Values of the parameters where the loop began."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    saved: dict[str, Tensor] = field(default_factory=dict)
    """Those where the run was saved and stopped, if it was."""
    norms: list[float] = field(default_factory=list)
    exchanges: list[Counter[str]] = field(default_factory=list)
    """Of each iteration."""
    counters: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    buffers: list[dict[str, Tensor]] = field(default_factory=list)
    """At the beginning of each validation."""
    predictions: list[Any] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


class Watch(Hook):
    """Notes what a run does, and ends it early where asked.

    Args:
        stop_at: Iteration after which to save and stop.
        thaw: Whether to thaw the first parameter before the second epoch.
    """

    priority = 100

    def __init__(self, seen: Seen, stop_at: int | None = None, *, thaw: bool = False) -> None:
        self.seen = seen
        self.stop_at = stop_at
        self.thaw = thaw
        self.counted: Counted = Counted()
        self._before: Counter[str] = Counter()

    def before_train(self, runner: Any) -> None:
        self.seen.start = problem.weights_of(runner.model)
        self.seen.complaints += complaints_of(runner)

    def before_train_epoch(self, runner: Any) -> None:
        if self.thaw:
            problem.first(runner.model).requires_grad_(runner.epoch > 0)

    def before_train_iter(self) -> None:
        self._before = Counter(self.counted.exchanges)

    def after_train_iter(self, runner: Any, outputs: Any) -> None:
        self.seen.exchanges.append(self.counted.exchanges - self._before)
        if "grad_norm" in outputs:
            norm = outputs["grad_norm"]
            if hasattr(norm, "full_tensor") or getattr(norm, "dim", lambda: 0)() != 0:
                self.seen.complaints.append(
                    f"clip_grad_norm returned {type(norm).__name__}, not one plain number"
                )
            self.seen.norms.append(float(problem.whole(norm)))
        if runner.iter == self.stop_at:
            self.seen.saved = problem.weights_of(runner.model)
            runner.save_checkpoint()
            runner.request("stop", agreed=True)

    def before_val_epoch(self, runner: Any) -> None:
        self.seen.buffers.append({n: b.detach().clone() for n, b in runner.model.named_buffers()})


def train(part: Part, recipe: Recipe, work_dir: str, stop_at: int | None = None, **options: Any) -> Seen:
    """One training run by the recipe. `options` go to the Runner."""
    model = part.model()
    problem.first(model).requires_grad_(not recipe.thaws)
    loss: dict[str, Any] = {"loss": "cross_entropy"}
    if recipe.weighted:
        model.train_step = partial(problem.weighted_loss, model)  # type: ignore[assignment]
        loss = {}
    seen = Seen()
    watch = Watch(seen, stop_at, thaw=recipe.thaws)
    dataset: Any = problem.Stream(recipe.samples) if recipe.stream else problem.points(recipe.samples)
    shuffle = {} if recipe.stream else {"shuffle": False}
    form = {
        **QUIET,
        **loss,
        "strategy": part.strategy,
        "precision": part.precision,
        "work_dir": work_dir,
        "train_dataloader": {"dataset": dataset, "global_batch_size": recipe.batch, **shuffle},
        "train_cfg": {"max_epochs": recipe.epochs, "accumulate": recipe.accumulate},
        "optimizer": problem.optimizer_spec(recipe, model),
        "randomness": {"seed": 3},
        "custom_hooks": [watch],
    }
    if recipe.max_norm is not None:
        form["clip_grad"] = {"max_norm": recipe.max_norm, "norm_type": recipe.norm_type}
    runner = Runner(model, **{**form, **options})
    with watch.counted:
        runner.train()
    if runner.model is not model and "model" not in options:
        seen.complaints.append(
            "runner.model is not the user's model any more, but something put in its place"
        )
    seen.weights = problem.weights_of(runner.model)
    seen.counters = runner.state.state_dict()
    seen.metrics = dict(runner.metrics)
    if "predict_dataloader" in options:
        seen.predictions = runner.predict()
    runner.close()
    return seen


def complaints_of(runner: Any) -> list[str]:
    """What is wrong with the optimizers' view of the model."""
    named = {id(p): name for name, p in runner.model.named_parameters()}
    owned = [p for one in runner.engine.optimizers.values() for g in one.param_groups for p in g["params"]]
    foreign = sum(id(p) not in named for p in owned)
    if foreign:
        return [f"optimizers update {foreign} tensors that are not parameters of the model"]
    lacking = sorted(set(named.values()) - {named[id(p)] for p in owned})
    return [f"no optimizer updates {', '.join(lacking)}"] if lacking else []


class Place:
    """Where the runs of one part take place: on ranks, or here for a part that takes one process."""

    def __init__(self, part: Part, world_size: int) -> None:
        self.part = part
        self.world_size = world_size
        self.ranks: Ranks | None = shared_ranks(world_size) if world_size > 1 else None

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Call ``function(part, ...)`` everywhere; results by rank."""
        if self.ranks is None:
            return [alone(function, self.part, *args, **kwargs)]
        return self.ranks(on_rank, function, self.part, *args, **kwargs)

    def trained(self, recipe: Recipe, folder: str, **options: Any) -> list[Seen]:
        """Train everywhere. What is wrong whatever the numbers are is raised."""
        found: list[Seen] = self(train, recipe, folder, **options)
        for seen in found:
            if seen.complaints:
                raise Wrong("; ".join(seen.complaints))
        return found


def on_rank(function: Callable[..., Any], part: Part, *args: Any, **kwargs: Any) -> Any:
    known = Part(part.strategy, part.precision, part.build, int(os.environ["RANK"]))
    return function(known, *args, **kwargs)


def alone(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function here and leave nothing of it behind: no drawn numbers, no settings."""
    with isolated():
        return function(*args, **kwargs)
