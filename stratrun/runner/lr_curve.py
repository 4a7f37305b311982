"""What a learning-rate range test has found: its curve, and what that suggests."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from math import isfinite, log, sqrt
from statistics import fmean
from typing import Any

from stratrun.errors import ConfigError, MissingDependencyError

ENDINGS = (".png", ".svg", ".pdf")
_LEAST = 5
"""Rates that make a curve."""
_SURE = 3.0
"""How many times its own uncertainty the smoothed loss has to fall."""


@dataclass(frozen=True, slots=True)
class FoundLR:
    """The curve of a range test (Smith 2017, arXiv:1506.01186), and what is commonly read off it.

    Smoothed is the mean of all losses weighted by ``smoothing ** |i - j|``, without the lag of a running
    mean: ``s[i] = sum(b**|i-j| * loss[j]) / sum(b**|i-j|)``, where losses above `diverged` times the best
    running mean before them count as that many times it.

    `suggestion` is the rate where the smoothed loss falls most steeply over the logarithm of the rate,
    ``min (s[i+1] - s[i-1]) / (log lr[i+1] - log lr[i-1])``, before its minimum; `tenth_of_minimum` a tenth of
    the rate at its minimum: both rules are fast.ai's. There is none where the loss does not fall by more than
    three standard errors of the smoothed loss.
    """

    lrs: list[float]
    """As they would be written; what groups multiply them by (`lr_mult`, `scale_lr`) comes on top."""
    losses: list[float]
    """Of the batches that the update at each rate was made of, from before that update."""
    smoothed: list[float]
    suggestion: float | None
    tenth_of_minimum: float | None
    reason: str
    """What the suggestion is, or why there is none."""
    ended: str
    """Why the test went no further."""

    @classmethod
    def of(
        cls,
        lrs: Sequence[float],
        losses: Sequence[float],
        *,
        smoothing: float,
        limits: Sequence[float] | None = None,
        ended: str = "",
    ) -> FoundLR:
        """
        Args:
            limits: What each loss counts as at most.
        """
        smooth = smoothed(losses if limits is None else list(map(min, losses, limits)), smoothing)
        steepest, low, reason = _read_off(lrs, losses, smooth, smoothing)
        tenth = None if low is None else lrs[low] / 10
        suggestion = None if steepest is None else lrs[steepest]
        return cls(list(lrs), list(losses), smooth, suggestion, tenth, reason, ended)

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw it into a ``.png``, ``.svg`` or ``.pdf``.

        Raises:
            ConfigError: the file is of another kind.
            MissingDependencyError: matplotlib is not installed.
        """
        path = os.fspath(path)
        check_picture(path)
        from matplotlib.figure import Figure

        # Not pyplot, which would look for a screen.
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes: Any = figure.subplots()
        axes.plot(self.lrs, self.losses, color="0.75", linewidth=1, label="loss")
        axes.plot(self.lrs, self.smoothed, linewidth=1.5, label="smoothed")
        marks = {"suggestion": self.suggestion, "a tenth of the minimum's": self.tenth_of_minimum}
        for (name, rate), colour in zip(marks.items(), ("tab:red", "tab:green"), strict=True):
            if rate is not None:
                axes.axvline(rate, color=colour, linestyle="--", linewidth=1, label=f"{name}: {rate:.3g}")
        axes.set(xlabel="learning rate", ylabel="loss", xscale="log")
        if self.smoothed:
            low, high = min(self.smoothed), max(self.smoothed)
            margin = 0.1 * (high - low) or 1.0
            axes.set_ylim(low - margin, high + margin)  # and not as high as single losses
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(path, dpi=120)


def check_picture(path: str) -> None:
    """Refuse a file that could not be drawn."""
    if not path.endswith(ENDINGS):
        raise ConfigError(f"{path!r} is no picture that can be drawn; it must end in {', '.join(ENDINGS)}")
    if find_spec("matplotlib") is None:
        raise MissingDependencyError(f"drawing {path!r} needs 'matplotlib'; pip install 'stratrun[plot]'")


def smoothed(losses: Sequence[float], smoothing: float) -> list[float]:
    """Means weighted by ``smoothing ** |i - j|``: a pass forward and one back, in which the loss itself
    would count twice."""
    ahead = _running(losses, smoothing)
    back = _running(losses[::-1], smoothing)[::-1]
    pairs = zip(ahead, back, losses, strict=True)
    return [(a + c - loss) / (wa + wc - 1) for (a, wa), (c, wc), loss in pairs]


def _running(losses: Sequence[float], smoothing: float) -> list[tuple[float, float]]:
    found, total, weight = [], 0.0, 0.0
    for loss in losses:
        total, weight = smoothing * total + loss, smoothing * weight + 1.0
        found.append((total, weight))
    return found


def _read_off(
    lrs: Sequence[float], losses: Sequence[float], smooth: Sequence[float], smoothing: float
) -> tuple[int | None, int | None, str]:
    """Where the loss falls most steeply, where it is lowest, and what is to be said of that."""
    count = len(smooth)
    if count < _LEAST:
        return None, None, f"there are losses of {count} rates only; begin with a lower one"
    low = min(range(count), key=smooth.__getitem__)
    top = max(smooth[: low + 1])
    if low == 0 or top - smooth[low] <= _SURE * _uncertainty(losses[: low + 1], smooth, smoothing):
        return (
            None,
            None,
            (
                "the loss did not fall by more than it varies from batch to batch; give a higher end=, more "
                "iters=, or a lower start= if it rose from the beginning"
            ),
        )
    logs = [log(rate) for rate in lrs]
    inner = range(1, min(low, count - 2) + 1)
    slopes = {i: (smooth[i + 1] - smooth[i - 1]) / (logs[i + 1] - logs[i - 1]) for i in inner}
    steepest = min(slopes, key=slopes.__getitem__)
    reason = f"where the smoothed loss, from {top:.4g} down to {smooth[low]:.4g}, falls most steeply"
    if low == count - 1:
        reason += "; it was still falling at the last rate, so that a higher end= may show a better one"
    return steepest, low, reason


def _uncertainty(losses: Sequence[float], smooth: Sequence[float], smoothing: float) -> float:
    """The standard error of the smoothed loss, by how far losses are from it."""
    spread = sqrt(fmean((loss - mean) ** 2 for loss, mean in zip(losses, smooth, strict=False)))
    b = smoothing
    # The sum of the squares of the weights over the square of their sum.
    return spread * sqrt((1 + b * b) * (1 - b) / (1 + b) ** 3) if isfinite(spread) else spread
