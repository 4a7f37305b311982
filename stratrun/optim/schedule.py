"""A scheduler, and when it moves."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from stratrun.errors import ConfigError, nearest
from stratrun.optim.driven import RATE


class Schedule:
    """One torch scheduler, and when it moves.

    Outside of its window it leaves the value alone. In its window it acts on whatever the value is by then,
    so that several of them chain.

    Args:
        by_epoch: Move after each epoch, rather than after each optimizer update.
        monitor: Metric that a plateau scheduler follows; it then moves after each validation.
        param: What of a parameter group it moves, for whoever asks.
        begin: How many epochs (updates, validations) come before its window.
        end: After how many its window is over; None for never.
        make: Makes the scheduler at the beginning of a window that has not begun yet.
    """

    def __init__(
        self,
        scheduler: LRScheduler,
        *,
        by_epoch: bool = True,
        monitor: str | None = None,
        param: str = RATE,
        begin: int = 0,
        end: int | None = None,
        make: Callable[[], LRScheduler] | None = None,
    ) -> None:
        self.scheduler: LRScheduler = scheduler
        self.by_epoch = by_epoch
        self.monitor = monitor
        self.param = param
        self.begin: int = begin
        # Torch's raises after its last step, which a longer training comes to.
        longest = begin + scheduler.total_steps if isinstance(scheduler, OneCycleLR) else None
        self.end: Any = longest if end is None else end
        self.position: int = 0
        """How many epochs (updates, validations) it has seen."""
        self._make = make

    @property
    def in_window(self) -> bool:
        return self.begin <= self.position and (self.end is None or self.position < self.end)

    def step(self) -> None:
        self.position += 1
        if not self.in_window:
            return
        if self.position == self.begin and self._make is not None:
            self.scheduler = self._make()
            return
        # Or torch warns that no update came before, where all of this process were skipped for overflow, or
        # it resumes before its first one.
        self.scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]
        self.scheduler.step()

    def follow(self, metrics: Mapping[str, float]) -> None:
        """Move by the latest validation.

        Raises:
            ConfigError: validation gave no metric of that name.
        """
        assert self.monitor is not None
        if self.monitor not in metrics:
            raise ConfigError(
                f"param_scheduler: monitor={self.monitor!r} is no metric of the validation; "
                f"{nearest(self.monitor, metrics)}"
            )
        if self.in_window:
            cast(ReduceLROnPlateau, self.scheduler).step(metrics[self.monitor])
        self.position += 1

    def state_dict(self) -> dict[str, Any]:
        window = {"position": self.position, "begin": self.begin, "end": self.end}
        return {**self.scheduler.state_dict(), "window": window}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = {key: value for key, value in state.items() if key != "window"}
        self.scheduler.load_state_dict(own)
        # Earlier versions had no windows.
        window = state.get("window", {"position": own["last_epoch"]})
        self.position = window["position"]
        if "begin" in window:
            self.begin, self.end = window["begin"], window["end"]
