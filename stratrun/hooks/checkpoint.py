from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stratrun.errors import ConfigError, nearest
from stratrun.hooks.base import PRIORITIES, Hook
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext

# Words in the names of metrics of which more, or less, is better.
_GREATER = re.compile(
    "acc|accuracy|auc|auroc|ap|map|ar|recall|precision|sensitivity|specificity|f|fbeta|fscore|dice|iou|miou|"
    "jaccard|score|bleu|rouge|meteor|cider|psnr|ssim|r|kappa|mcc|reward|return|top"
)
_LESS = re.compile(
    "loss|nll|error|err|mae|mse|rmse|mape|perplexity|ppl|bpc|cer|wer|ter|fid|kid|lpips|distance|divergence|"
    "entropy|brier|ece|latency"
)


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Saves the run at intervals, at its end, and when a metric is better than before.

    Args:
        interval: Epochs (or iterations) between two saves; None for none.
        by_epoch: Whether `interval` counts epochs.
        keep_last: How many of the newest checkpoints to keep; None for all.
        save_last: Whether to save when training ends.
        save_best: Metric to watch; or several, or a mapping of metrics to ``"greater"`` or
            ``"less"``. Their best checkpoints are kept beside the newest.
        rule: Whether the ``"greater"`` or the ``"less"`` value is better; told from the name of the
            metric where it can be.
        keep_best: How many of the best to keep for each metric.
    """

    # Behind the hooks that change state, so that what they did is in the checkpoint.
    priority = PRIORITIES["VERY_LOW"]

    def __init__(
        self,
        interval: int | None = 1,
        by_epoch: bool = True,
        keep_last: int | None = 3,
        save_last: bool = True,
        save_best: str | Sequence[str] | Mapping[str, str] | None = None,
        rule: str | None = None,
        keep_best: int = 1,
    ) -> None:
        for name, count in (("interval", interval), ("keep_last", keep_last), ("keep_best", keep_best)):
            if count is None and name != "keep_best":
                continue
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                mend = "" if name == "keep_best" else f"; {name}=None turns it off"
                raise ConfigError(f"{name}={count!r} must be a whole number, at least 1{mend}")
        self.interval = interval
        self.by_epoch = by_epoch
        self.keep_last = keep_last
        self.save_last = save_last
        self.keep_best = keep_best
        self._rules = _rules(save_best, rule)
        self._saved_at = -1
        self._best: dict[str, list[tuple[float, int]]] = {name: [] for name in self._rules}

    @property
    def watched(self) -> list[str]:
        """The metrics whose best checkpoints are kept."""
        return list(self._rules)

    @property
    def best(self) -> dict[str, tuple[float, int]]:
        """The best value of each metric that is watched, and the iteration that it is from."""
        return {name: ranking[0] for name, ranking in self._best.items() if ranking}

    def after_train_iter(self, runner: RunContext) -> None:
        if not self.by_epoch and self.interval and runner.iter % self.interval == 0:
            self._save(runner)

    def after_train_epoch(self, runner: RunContext) -> None:
        if self.by_epoch and self.interval and runner.epoch % self.interval == 0:
            self._save(runner)

    def after_train(self, runner: RunContext) -> None:
        if self.save_last and self._saved_at != runner.iter:
            self._save(runner)

    def after_val_epoch(self, runner: RunContext, metrics: Mapping[str, float] | None = None) -> None:
        if not runner.training:
            return
        results = runner.metrics if metrics is None else metrics
        among_best = [self._note(name, results, runner.iter) for name in self._rules]
        if any(among_best):
            self._save(runner)

    def state_dict(self) -> dict[str, Any]:
        return {"saved_at": self._saved_at, "best": {name: list(r) for name, r in self._best.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved_at = state["saved_at"]
        # A metric that is watched now and was not then starts anew.
        self._best = {name: [(v, at) for v, at in state["best"].get(name, [])] for name in self._rules}

    def _save(self, runner: RunContext) -> None:
        # Before saving, as this is part of what is saved.
        self._saved_at = runner.iter
        protect = {at for ranking in self._best.values() for _, at in ranking}
        runner.save_checkpoint(keep_last=self.keep_last, protect=protect)

    def _note(self, name: str, results: Mapping[str, float], iteration: int) -> bool:
        """Sort a new value in. Returns whether it is among the best."""
        if name not in results:
            raise ConfigError(f"save_best={name!r} is no result of the evaluation; {nearest(name, results)}")
        value = results[name]
        if not math.isfinite(value):
            return False
        sign = -1 if self._rules[name] == "greater" else 1
        others = [entry for entry in self._best[name] if entry[1] != iteration]
        # The sort is stable: of equal values the earlier one stays ahead.
        ranking = sorted([*others, (value, iteration)], key=lambda entry: sign * entry[0])
        self._best[name] = ranking[: self.keep_best]
        return (value, iteration) in self._best[name]


def _rules(save_best: str | Sequence[str] | Mapping[str, str] | None, rule: str | None) -> dict[str, str]:
    """Which metrics to watch, and what is better for each."""
    if save_best is None:
        return {}
    names = [save_best] if isinstance(save_best, str) else list(save_best)
    given = dict(save_best) if isinstance(save_best, Mapping) else dict.fromkeys(names, rule)
    rules = {name: _inferred(name) if given[name] is None else str(given[name]) for name in names}
    for name, value in rules.items():
        if value not in ("greater", "less"):
            raise ConfigError(f"rule={value!r} of metric {name!r} is unknown; known: greater, less")
    return rules


def _inferred(name: str) -> str:
    # Numbers belong to no word: f1, r2, top5.
    words = re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower())
    greater, less = any(map(_GREATER.fullmatch, words)), any(map(_LESS.fullmatch, words))
    if greater == less:
        raise ConfigError(
            f"save_best={name!r}: the name does not tell whether more or less of it is better; "
            "add rule='greater' or rule='less'"
        )
    return "greater" if greater else "less"
