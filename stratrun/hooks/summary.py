from __future__ import annotations

from typing import TYPE_CHECKING

from stratrun.errors import ConfigError
from stratrun.hooks.base import Hook
from stratrun.hooks.flops import FlopCounting
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from torch import nn

    from stratrun.context import RunContext


@HOOKS.register_module()
class SummaryHook(Hook):
    """Shows a table of the model's modules: their parameters, how many are trained, and their operations.

    It comes when training begins, or with `flops` after the first iteration, in which the operations are
    counted: forward and backward, of one sample where batches are counted in samples, of this process's part
    of a model that several work on. Matrix products, convolutions and attention count. It is also
    written to ``model.txt`` beside the logs.

    Args:
        depth: How many levels of modules it shows.
    """

    # Behind hooks that freeze parts, and that work on outputs: the first iteration ends with it.
    priority = 60

    def __init__(self, depth: int = 2, *, flops: bool = True) -> None:
        if type(depth) is not int or depth < 1:
            raise ConfigError(f"SummaryHook: depth={depth!r} must be a whole number of at least 1")
        self.depth = depth
        self.flops = flops
        self._counting = FlopCounting()
        self._waits = False

    def before_train(self, runner: RunContext) -> None:
        self._waits = self.flops
        if not self._waits:
            self._show(runner, {}, 0)

    def before_train_iter(self) -> None:
        if self._waits:
            self._counting.begin()

    def after_train_iter(self, runner: RunContext) -> None:
        if not self._counting.under_way:
            return
        total, by_module = self._counting.end()
        size = runner.engine.batch.size
        # An empty batch, which only keeps the processes in step, says nothing: the next one is counted.
        if size != 0:
            self._waits = False
            per = size or 1
            self._show(runner, {path: count // per for path, count in by_module.items()}, total // per)

    def on_exception(self) -> None:
        self._counting.leave()

    def _show(self, runner: RunContext, flops: dict[str, int], total: int) -> None:
        text = table(runner.model, self.depth, flops, total)
        runner.loggers.say(text)
        if runner.log_folder is not None:
            from pathlib import Path

            Path(runner.log_folder, "model.txt").write_text(f"{text}\n", encoding="utf-8")


def table(model: nn.Module, depth: int, flops: dict[str, int] | None = None, total: int = 0) -> str:
    """Modules down to a depth as lines of a table.

    Args:
        flops: Operations by the paths that a flop counter has for modules, which begin with what the
            model lies in.
        total: Operations of the whole model.
    """
    names = [name for name, _ in model.named_modules() if name and name.count(".") < depth]
    within = _place_of(names, flops) if flops else ""
    rows = [_row("(all)", model, total if flops else None)]
    for name in names:
        count = flops.get(f"{within}.{name}", 0) if flops else None
        rows.append(_row("  " * name.count(".") + name, model.get_submodule(name), count))
    head = ("module", "type", "parameters", "trained", *(("operations",) if flops else ()))
    cells = [head, *(row[: len(head)] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join(
        "  " + "  ".join(_aligned(i, word, widths[i]) for i, word in enumerate(row)).rstrip() for row in cells
    )


def _place_of(names: list[str], flops: dict[str, int]) -> str:
    """The path of the model: below which most of its modules are found."""
    return max(flops, key=lambda path: (sum(f"{path}.{name}" in flops for name in names), -len(path)))


def _aligned(column: int, word: str, width: int) -> str:
    return word.ljust(width) if column < 2 else word.rjust(width)


def _row(name: str, module: nn.Module, flops: int | None) -> tuple[str, ...]:
    from torch.nn.parameter import is_lazy

    known = [p for p in module.parameters() if not is_lazy(p)]
    counts = (sum(p.numel() for p in known), sum(p.numel() for p in known if p.requires_grad))
    return name, type(module).__name__, *(f"{n:,}" for n in counts), _short(flops)


def _short(count: int | None) -> str:
    """
    >>> _short(1_500_000), _short(12)
    ('1.5 M', '12')
    """
    if count is None:
        return ""
    number, unit = float(count), ""
    for unit in ("", " k", " M", " G", " T", " P"):
        if number < 1000 or unit == " P":
            break
        number /= 1000
    return f"{number:.3g}{unit}"
