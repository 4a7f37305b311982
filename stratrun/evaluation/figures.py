"""Files with figures, drawn by matplotlib, which is imported when the first is drawn."""

from __future__ import annotations

import inspect
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratrun.errors import MissingDependencyError

if TYPE_CHECKING:
    from torch import Tensor


def require_plot(who: str) -> None:
    """
    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingDependencyError(
            f"{who}: figures need matplotlib; install it with: pip install 'stratrun[plot]', or pass "
            "plot=False"
        )


def save_matrix(matrix: Tensor, names: list[str], path: Path) -> None:
    """Draw shares of each row as a square of colours, with the counts where there is room for them."""
    from matplotlib.figure import Figure

    size = len(names)
    figure = Figure(figsize=(2 + 0.4 * min(size, 30), 2 + 0.4 * min(size, 30)), layout="constrained")
    axes = figure.subplots()
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the row")
    axes.set(xlabel="predicted", ylabel="right")
    if size <= 30:
        axes.set_xticks(range(size), names, rotation=45, ha="right")
        axes.set_yticks(range(size), names)
    if size <= 15:
        for row in range(size):
            for column in range(size):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(int(matrix[row, column])), ha="center", va="center", color=colour)
    save(figure, path)


def save_plot(metric: Any, result: Any, path: Path) -> None:
    """The figure that a metric of torchmetrics draws of its result, and the numbers that are in it."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.json").write_text(json.dumps(_plain(result)), encoding="utf-8")
    # Only curves can have their area beside them.
    score = {"score": True} if "score" in inspect.signature(metric.plot).parameters else {}
    figure, _ = metric.plot(result, **score)
    try:
        save(figure, path.with_name(f"{path.name}.png"))
    finally:
        pyplot.close(figure)  # or it is kept for good


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.tolist() if hasattr(value, "tolist") else value


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
