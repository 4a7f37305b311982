"""What a learning-rate range test is asked for, and of which runs it can be made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from stratrun.blocks import BlockTransforms
from stratrun.errors import ConfigError, nearest
from stratrun.loops import BaseLoop
from stratrun.loops.evaluate import names_loaders
from stratrun.loops.train import TrainLoop
from stratrun.optim import optimizer as optimizers
from stratrun.registry import LOOPS
from stratrun.runner.form import Form
from stratrun.runner.parts import loop_spec

_SCALES = ("exp", "linear")


@dataclass(frozen=True, slots=True)
class RangeTest:
    """What was asked for."""

    start: float
    end: float
    iters: int
    scale: str
    smoothing: float
    diverged: float
    optimizer: str | None
    loss: str

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value < inf:
                raise ConfigError(f"find_lr: {name}={value!r} must be a learning rate, a number above 0")
        if self.start >= self.end:
            raise ConfigError(f"find_lr: start={self.start!r} must be below end={self.end!r}")
        if type(self.iters) is not int or self.iters < 10:
            raise ConfigError(
                f"find_lr: iters={self.iters!r} must be a whole number of updates, at least 10, as "
                "fewer make no curve"
            )
        if self.scale not in _SCALES:
            raise ConfigError(
                f"find_lr: scale={self.scale!r} is unknown; {nearest(str(self.scale), _SCALES)}"
            )
        if not _is_number(self.smoothing) or not 0 <= self.smoothing < 1:
            raise ConfigError(f"find_lr: smoothing={self.smoothing!r} must be at least 0 and below 1")
        if not _is_number(self.diverged) or not self.diverged > 1:
            raise ConfigError(
                f"find_lr: diverged={self.diverged!r} must be a number above 1: how many times the best loss "
                "is too much; float('inf') goes on to the end"
            )

    def rates(self) -> list[float]:
        steps = [i / (self.iters - 1) for i in range(self.iters)]
        if self.scale == "linear":
            return [self.start + (self.end - self.start) * part for part in steps]
        return [self.start * (self.end / self.start) ** part for part in steps]


def check(form: Form, test: RangeTest) -> None:
    """Refuse a run that cannot be tested, before anything of it is started.

    Raises:
        ConfigError: says what stands in the way.
    """
    if form.optimizer is None:
        raise ConfigError(
            "find_lr() needs the optimizer whose learning rate it moves; give "
            "optimizer=dict(type='AdamW', lr=1e-3)"
        )
    chosen(form, test)
    if BlockTransforms(form.compile, form.activation_checkpointing).graphs:
        raise ConfigError(
            "find_lr() puts all back as it was, which a captured step would not notice; leave graphs=True "
            "out of compile for it: the rates are the same"
        )
    spec: Any = loop_spec(form, "train")
    kind: Any = type(spec)
    if not isinstance(spec, BaseLoop):
        kind, _ = LOOPS.check(spec, where="train_cfg", given=("runner", "dataloader"), offer=("evaluator",))
    if isinstance(kind, type):
        check_loop(kind)
    if names_loaders(form.train_dataloader):
        raise ConfigError(
            "find_lr() goes through the one loader that run_iter gets its batches of, and train_dataloader "
            "names several, which the loop itself takes from; write dict(type='MultiLoader', loaders=...)"
        )
    for one in _sources(form.train_dataloader):
        if hasattr(one, "__next__"):
            raise ConfigError(
                f"find_lr() reads training data, and a {type(one).__name__} can be read only once, so that "
                "none is left for train(); give the function that makes it, or a list"
            )


def chosen(form: Form, test: RangeTest) -> str:
    names = list(optimizers.specs(form.optimizer))
    if test.optimizer is None and len(names) == 1:
        return names[0]
    if test.optimizer is None:
        raise ConfigError(
            f"find_lr() moves the rate of one optimizer, and there are {', '.join(names)}; say which, with "
            f"optimizer={names[0]!r}; the others keep theirs"
        )
    if test.optimizer not in names:
        raise ConfigError(f"find_lr: optimizer={test.optimizer!r} is none; {nearest(test.optimizer, names)}")
    return test.optimizer


def check_loop(kind: Any) -> None:
    """Refuse a loop whose work on a batch may be elsewhere than where it is called from here."""
    if issubclass(kind, TrainLoop):
        name, elsewhere = "run_epoch", kind.run_epoch is not TrainLoop.run_epoch
    else:
        name, elsewhere = "run", kind.run_iter is BaseLoop.run_iter
    if elsewhere and kind.run_iter in (BaseLoop.run_iter, TrainLoop.run_iter):
        raise ConfigError(
            "find_lr() has a loop work on one batch after another by run_iter(idx, data_batch), and "
            f"{kind.__name__} has a {name}() of its own and no such method; put the work there"
        )


def _sources(spec: Any) -> Iterator[Any]:
    """What batches are read from: one thing, or those of several loaders."""
    loaders = spec.get("loaders") if isinstance(spec, Mapping) else None
    if isinstance(loaders, Mapping):
        for one in loaders.values():
            yield from _sources(one)
    else:
        yield spec


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
