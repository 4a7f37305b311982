"""Whether a metric has one value, however the samples are split over batches and ranks."""

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from stratrun.distributed import Collectives, ProcessEnv, control_group
from stratrun.errors import ConfigError
from stratrun.evaluation import BaseMetric, Evaluator, Metric
from stratrun.registry import METRICS
from stratrun.state import BatchInfo
from stratrun.testing.exchanges import Counted
from stratrun.testing.ranks import shared_ranks
from stratrun.testing.report import Checks, NotChecked, Report, Wrong
from stratrun.testing.running import alone
from stratrun.testing.spec import portable, title

CLAIMS = {
    "value": "it has the expected value",
    "batches": "batches of any size give the same value",
    "anew": "a second evaluation does not know of the first",
    "ranks": "two ranks, one with fewer samples, give the value of one process",
    "empty rank": "a rank without any sample changes nothing",
    "waiting": "update() reads no tensor, which would wait for the device",
}
Values = dict[str, float]
Outputs = Callable[[Tensor, Tensor], Any]


def check_metric(
    metric: Any,
    *,
    preds: Tensor | None = None,
    target: Tensor | None = None,
    outputs: Outputs | None = None,
    expected: float | Mapping[str, float] | None = None,
    tolerance: float = 1e-5,
    only: Collection[str] | None = None,
) -> Report:
    """Measure the same predictions in batches of several sizes, in one process and on two ranks.

    Args:
        metric: A class, a name, or a dict with `type` and arguments; each check makes one of its own.
        preds: Predictions for each sample, by default scores of 3 classes for 29 samples.
        target: What is right for each sample, by default classes.
        outputs: Module-level ``outputs(preds, target)``: what a model returns; by default `preds`.
        expected: The value, or the values by name.
        only: Names of the checks to run, of `metric.CLAIMS`; all by default.

    Raises:
        CheckFailure: some failed. The message says which and why.
    """
    if isinstance(metric, Metric | BaseMetric):
        raise ConfigError(
            f"metric={metric!r} is an object; give its class, or dict(type=TheClass, option=...)"
        )
    trial = _Trial(portable(METRICS, metric), _Data.of(preds, target, outputs or _preds), tolerance)
    checks = Checks(f"metric={title(metric)}", CLAIMS, only)
    methods: dict[str, Callable[[], Any]] = {
        "value": lambda: trial.value(expected),
        "batches": trial.batches,
        "anew": trial.anew,
        "ranks": lambda: trial.on_ranks(False),
        "empty rank": lambda: trial.on_ranks(True),
        "waiting": trial.waiting,
    }
    for check, claim in CLAIMS.items():
        checks.run(check, claim, methods[check])
    return checks.done()


def _preds(preds: Tensor, target: Tensor) -> Tensor:
    return preds


@dataclass
class _Data:
    """What there is to measure."""

    preds: Tensor
    target: Tensor
    outputs: Outputs

    @classmethod
    def of(cls, preds: Tensor | None, target: Tensor | None, outputs: Outputs) -> "_Data":
        generator = torch.Generator().manual_seed(0)
        if preds is None:
            preds = torch.randn(29, 3, generator=generator)
        if target is None:
            target = torch.randint(3, (len(preds),), generator=generator)
        if len(preds) != len(target) or len(preds) < 3:
            raise ConfigError(
                f"preds has {len(preds)} samples and target {len(target)}; give as many, three or more"
            )
        return cls(preds, target, outputs)

    def __len__(self) -> int:
        return len(self.preds)

    def feed(self, evaluator: Evaluator, chosen: list[int]) -> None:
        preds, target = self.preds[chosen], self.target[chosen]
        evaluator.process((preds, target), self.outputs(preds, target))


class _Trial:
    """The measurements of one metric."""

    def __init__(self, spec: Any, data: _Data, tolerance: float) -> None:
        self.spec, self.data, self.tolerance = spec, data, tolerance
        self.ranks = shared_ranks(2)
        self._whole: Values | None = None

    @property
    def whole(self) -> Values:
        if self._whole is None:
            self._whole = alone(_measured, self.spec, self.data, len(self.data))
        return self._whole

    def compare(
        self, found: Mapping[str, float], truth: Mapping[str, float], where: str, likely: str
    ) -> None:
        for name, value in truth.items():
            if name not in found:
                raise Wrong(f"{where} it gives {', '.join(found)}, not {name!r}")
            same = found[name] == value or (math.isnan(found[name]) and math.isnan(value))
            if not same and not abs(found[name] - value) <= self.tolerance * max(1.0, abs(value)):
                raise Wrong(f"{where} {name} is {found[name]:.6g} instead of {value:.6g}", likely)

    # -- the checks

    def value(self, expected: float | Mapping[str, float] | None) -> str:
        found = self.whole
        if expected is not None:
            truth = expected if isinstance(expected, Mapping) else {next(iter(found)): float(expected)}
            self.compare(found, truth, "over all samples", "")
        return ", ".join(f"{name}={value:.6g}" for name, value in found.items())

    def batches(self) -> None:
        for size in (1, 4):
            found = alone(_measured, self.spec, self.data, size)
            self.compare(
                found,
                self.whole,
                f"in batches of {size}",
                "keep sums and the number of samples, not means of batches: the last may be short",
            )

    def anew(self) -> None:
        fresh, second = alone(_measured_again, self.spec, self.data)
        self.compare(
            second,
            fresh,
            "the second time",
            "declare what it keeps with add_state(), or forget it in reset()",
        )

    def on_ranks(self, empty: bool) -> None:
        shares = [list(range(len(self.data))), []] if empty else _shares(len(self.data))
        for rank, found in enumerate(self.ranks(_on_rank, self.spec, self.data, shares)):
            self.compare(
                found,
                self.whole,
                f"on rank {rank}",
                "add_state(name, default, reduce) says how what ranks have becomes one: 'sum', 'max', 'min', "
                "or a list, which is joined in the order of the samples; compute() works on that",
            )

    def waiting(self) -> None:
        def reads() -> int:
            evaluator = Evaluator(self.spec)
            if not isinstance(evaluator._entries[0].metric, Metric):
                raise NotChecked("only for metrics made for it, subclasses of stratrun.Metric")
            self.data.feed(evaluator, [0, 1])  # finds out what it is given
            with Counted() as counted:
                self.data.feed(evaluator, [0, 1])
            number: int = counted.reads
            return number

        found: int = alone(reads)
        if found:
            raise Wrong(
                f"it reads {found} values in each batch", "no float(), .item() or if tensor: before compute()"
            )


def _shares(samples: int) -> list[list[int]]:
    """Every other sample, and one of the second rank's given to the first: one batch more there."""
    first, second = list(range(0, samples, 2)), list(range(1, samples, 2))
    return [sorted([*first, second[-1]]), second[:-1]]


def _measured(spec: Any, data: _Data, size: int) -> Values:
    evaluator, info = Evaluator(spec), BatchInfo()
    evaluator.bind(Collectives(ProcessEnv()), info)
    return _fed(evaluator, info, data, list(range(len(data))), size)


def _measured_again(spec: Any, data: _Data) -> tuple[Values, Values]:
    """The first three samples, by a new metric and by one that has measured all before."""
    fresh, used, info = Evaluator(spec), Evaluator(spec), BatchInfo()
    for evaluator in (fresh, used):
        evaluator.bind(Collectives(ProcessEnv()), info)
    _fed(used, info, data, list(range(len(data))), 4)
    return _fed(fresh, info, data, [0, 1, 2], 2), _fed(used, info, data, [0, 1, 2], 2)


def _on_rank(spec: Any, data: _Data, shares: list[list[int]]) -> Values:
    env = ProcessEnv.from_environ(os.environ)
    ranks = Collectives(env, control_group(env, timedelta(seconds=20)))
    evaluator, info = Evaluator(spec), BatchInfo()
    evaluator.bind(ranks, info)
    try:
        return _fed(evaluator, info, data, shares[env.rank], 2)
    finally:
        ranks.close()


def _fed(evaluator: Evaluator, info: BatchInfo, data: _Data, mine: list[int], size: int) -> Values:
    for start in range(0, len(mine), size):
        chosen = mine[start : start + size]
        info.size, info.positions = len(chosen), chosen
        data.feed(evaluator, chosen)
    return evaluator.evaluate()
