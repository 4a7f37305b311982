"""Which iterations were best by which metric."""

import math
import re
from collections.abc import Mapping, Sequence

from stratrun.errors import ConfigError, nearest

# Words in the names of metrics of which more, or less, is better.
_GREATER = re.compile(
    "acc|accuracy|auc|auroc|ap|map|ar|recall|precision|sensitivity|specificity|f|fbeta|fscore|dice|iou|miou|"
    "jaccard|score|bleu|rouge|meteor|cider|psnr|ssim|r|kappa|mcc|reward|return|top"
)
_LESS = re.compile(
    "loss|nll|error|err|mae|mse|rmse|mape|perplexity|ppl|bpc|cer|wer|ter|fid|kid|lpips|distance|divergence|"
    "entropy|brier|ece|latency"
)
_USUAL = ("accuracy", "precision", "recall", "score", "loss", "error", "perplexity", "auroc", "rmse")
_RULES = {"greater": "greater", "less": "less", "max": "greater", "min": "less"}
Entry = tuple[float, int]
"""A value, and the iteration that it is from."""


class Ranking:
    """The best values of each metric that is watched, best first.

    What is no finite number is never among them. Of equal values the earlier one stays ahead.
    """

    def __init__(self, rules: Mapping[str, str], size: int) -> None:
        """
        Args:
            rules: ``"greater"`` or ``"less"`` for each metric.
            size: How many of the best to keep for each.
        """
        self.rules: dict[str, str] = dict(rules)
        self._size = size
        self._best: dict[str, list[Entry]] = {name: [] for name in rules}

    @property
    def best(self) -> dict[str, list[Entry]]:
        return {name: list(entries) for name, entries in self._best.items()}

    @property
    def iterations(self) -> set[int]:
        return {at for entries in self._best.values() for _, at in entries}

    def note(self, results: Mapping[str, float], iteration: int) -> bool:
        """Sort the results of an evaluation in. Returns whether any of them is among the best.

        Raises:
            ConfigError: a metric that is watched is not among them; names the nearest.
        """
        among_best = [self._note(name, results, iteration) for name in self.rules]
        return any(among_best)

    def _note(self, name: str, results: Mapping[str, float], iteration: int) -> bool:
        if name not in results:
            raise ConfigError(f"save_best={name!r} is no result of the evaluation; {nearest(name, results)}")
        value = results[name]
        if not math.isfinite(value):
            return False
        sign = -1 if self.rules[name] == "greater" else 1
        others = [entry for entry in self._best[name] if entry[1] != iteration]
        # The sort is stable: of equal values the earlier one stays ahead.
        ranking = sorted([*others, (value, iteration)], key=lambda entry: sign * entry[0])
        self._best[name] = ranking[: self._size]
        return (value, iteration) in self._best[name]

    def state_dict(self) -> dict[str, list[Entry]]:
        return self.best

    def load_state_dict(self, state: Mapping[str, Sequence[Sequence[float]]]) -> None:
        """A metric that is watched now and was not then starts anew."""
        self._best = {name: [(v, int(at)) for v, at in state.get(name, [])] for name in self.rules}


def rules_of(save_best: str | Sequence[str] | Mapping[str, str | None] | None) -> dict[str, str]:
    """Which metrics to watch, and whether ``"greater"`` or ``"less"`` is better for each.

    Raises:
        ConfigError: the name of a metric does not tell, or a rule is unknown.
    """
    if save_best is None:
        return {}
    given = save_best if isinstance(save_best, Mapping) else dict.fromkeys(_names(save_best))
    return {name: _inferred(name) if rule is None else _rule(name, rule) for name, rule in given.items()}


def _names(save_best: str | Sequence[str]) -> list[str]:
    names = [save_best] if isinstance(save_best, str) else save_best
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"save_best={save_best!r} must be the name of a metric, several, or a mapping such as "
            "{'accuracy': 'greater'}"
        )
    return list(names)


def _rule(name: str, rule: str) -> str:
    if not isinstance(rule, str) or rule not in _RULES:
        raise ConfigError(f"save_best={ {name: rule}!r}: {rule!r} is no rule; {nearest(str(rule), _RULES)}")
    return _RULES[rule]


def inferred(name: str) -> str | None:
    """Whether ``"greater"`` or ``"less"`` of a metric is better, by its name; None if that does not tell."""
    # Numbers belong to no word: f1, r2, top5.
    words = re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower())
    greater, less = any(map(_GREATER.fullmatch, words)), any(map(_LESS.fullmatch, words))
    if greater == less:
        return None
    return "greater" if greater else "less"


def _inferred(name: str) -> str:
    found = inferred(name)
    if found is None:
        raise ConfigError(
            f"save_best={name!r}: the name does not tell whether more or less of it is better; "
            f"{meant(name)}write save_best={ {name: 'greater'}!r} or {'less'!r}"
        )
    return found


def meant(name: str) -> str:
    """The usual name of a metric that one may have been meant for, as the beginning of a mend."""
    guess = nearest(name, _USUAL)
    return f"{guess} Else " if guess.startswith("did you mean") else ""
