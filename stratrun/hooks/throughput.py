from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from stratrun.errors import ConfigError
from stratrun.hooks.base import Hook
from stratrun.hooks.flops import FlopCounting
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Logs how much training gets through in a second, and how much of the hardware that uses.

    At log points: `iters_per_s`; `samples_per_s` where batches are counted in samples; `tokens_per_s`;
    `tflops_per_s` of each process, and `mfu`, the share of what the hardware can do at most. All but these
    two are of all processes together. Validation counts as no time.

    The operations of a sample are counted by `torch.utils.flop_counter` during the first iteration, forward
    and backward, and those that recomputing of activations adds are among them.

    Args:
        tokens: What of a batch is tokens: its key or number, whose elements count, or a function of the
            batch that returns their number (of a mask, say, as a tensor: it is not read before a log
            point); or the number for each sample.
        flops: Operations of one sample (of one iteration, where batches are not counted in samples), in
            place of counting; False counts none.
        peak_flops: What the hardware behind one share of the data can do in a second, if that is unknown.
    """

    # Behind hooks that work on outputs: the first iteration ends with it.
    priority = 60

    def __init__(
        self,
        tokens: str | int | Callable[[Any], Any] | None = None,
        *,
        tokens_per_sample: int | None = None,
        flops: float | bool = True,
        peak_flops: float | None = None,
    ) -> None:
        if tokens is not None and tokens_per_sample is not None:
            raise ConfigError("ThroughputHook: tokens= and tokens_per_sample= both count tokens; give one")
        for name, value in (("tokens_per_sample", tokens_per_sample), ("peak_flops", peak_flops)):
            if value is not None and not value > 0:
                raise ConfigError(f"ThroughputHook: {name}={value!r} must be a number above 0")
        self.tokens_per_sample = tokens_per_sample
        self.peak_flops = peak_flops
        self.flops: float | None = None if isinstance(flops, bool) else float(flops)
        """Operations of one sample, once they are known."""
        self._counts = flops is True
        self._counting = FlopCounting()
        self._tokens: Any = 0
        if tokens is not None:
            self._tokens_of = tokens if callable(tokens) else _elements(tokens)
        self._begun = (0, 0, 0.0)
        self._away = 0.0
        self._left: float | None = None

    def before_train(self, runner: RunContext) -> None:
        # Those that take part in one batch together count as one.
        self._shares = len(runner.engine.collect([(0, None)]))
        self._peak = self.peak_flops or runner.engine.gauges.peak_flops()
        self._restart(runner)

    def before_train_iter(self) -> None:
        if self._counts:
            self._counting.begin()

    def after_train_iter(self, runner: RunContext, data_batch: Any) -> None:
        if self._counting.under_way:
            self._end_counting(runner)
        elif self.counts_tokens:
            self._tokens = self._tokens + self._tokens_of(data_batch)

    def before_val(self) -> None:
        self._left = perf_counter()

    def after_val(self) -> None:
        # None where what was broken off is no validation.
        if self._left is not None:
            self._away += perf_counter() - self._left
            self._left = None

    def before_log(self, runner: RunContext, values: dict[str, Any]) -> None:
        iterations, samples, begun = self._begun
        seconds = perf_counter() - begun - self._away
        iterations, samples = runner.iter - iterations, runner.samples - samples
        if iterations and seconds > 0:
            values.update(self._rates(runner, iterations, samples, seconds))
        self._restart(runner)

    def on_exception(self) -> None:
        self._counting.leave()

    def on_break_off(self) -> None:
        self.after_val()

    def state_dict(self) -> dict[str, Any]:
        return {"flops": self.flops}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._counts and state["flops"] is not None:
            self.flops, self._counts = state["flops"], False

    @property
    def counts_tokens(self) -> bool:
        return hasattr(self, "_tokens_of")

    def _restart(self, runner: RunContext) -> None:
        self._begun = (runner.iter, runner.samples, perf_counter())
        self._away, self._tokens = 0.0, 0

    def _rates(self, runner: RunContext, iterations: int, samples: int, seconds: float) -> dict[str, float]:
        rates = {"iters_per_s": iterations / seconds}
        if samples:
            rates["samples_per_s"] = samples / seconds
        if self.counts_tokens:
            mean = runner.engine.mean({"tokens": float(self._tokens)})["tokens"]
            rates["tokens_per_s"] = mean * self._shares / seconds
        elif self.tokens_per_sample is not None and samples:
            rates["tokens_per_s"] = samples * self.tokens_per_sample / seconds
        if self.flops:
            done = self.flops * (samples / self._shares if samples else iterations) / seconds
            rates["tflops_per_s"] = done / 1e12
            if self._peak:
                rates["mfu"] = done / self._peak
        return rates

    def _end_counting(self, runner: RunContext) -> None:
        counted, _ = self._counting.end()
        size = runner.engine.batch.size
        # An empty batch, which only keeps the processes in step, says nothing: the next one is counted.
        if size != 0:
            self.flops, self._counts = counted / (size or 1), False
        # A counted iteration is slow, and tells nothing of the others.
        self._restart(runner)


def _elements(key: str | int) -> Callable[[Any], int]:
    """Counts the elements of a part of the batch, which its shape tells."""

    def count(batch: Any) -> int:
        try:
            return int(batch[key].numel())
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"ThroughputHook: tokens={key!r} is no tensor of a batch, which is a {type(batch).__name__}; "
                "give the key or number of one, or a function of the batch"
            ) from error

    return count
