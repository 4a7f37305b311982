"""What a run has to show, passed on to its loggers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor

from stratrun.hooks.dispatch import HookList
from stratrun.loggers import LoggerGroup
from stratrun.runner.start import Started
from stratrun.state import TrainState

if TYPE_CHECKING:
    from stratrun.context import RunContext


# Where a validation has results.
_WITHHELD = ("after_val_epoch", "after_val", "on_break_off")


class _Run(Protocol):
    """What the verbs stand on."""

    state: TrainState

    @property
    def loggers(self) -> LoggerGroup: ...


class Logged:
    """Calls hooks, and logs under the counters of the run. Every process calls; the main one writes."""

    _silent: LoggerGroup | None = None

    @property
    def hooks(self) -> HookList:
        raise NotImplementedError

    @property
    def _started(self) -> Started:
        raise NotImplementedError

    @property
    def loggers(self) -> LoggerGroup:
        return self._silent or self._started.loggers

    @property
    def log_folder(self) -> str | None:
        return None if self.loggers.folder is None else str(self.loggers.folder.path)

    def call_hooks(self, point: str, /, **details: Any) -> None:
        if self._silent is None or point not in _WITHHELD:
            self.hooks.call(cast("RunContext", self), point, details)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Do what is in the block with nothing logged or written, as a validation that is broken off."""
        self._silent = LoggerGroup()
        try:
            yield
            self.hooks.call(cast("RunContext", self), "on_break_off", {})
        finally:
            self._silent = None

    def log(self: _Run, values: Mapping[str, Tensor | float], *, kind: str = "train") -> None:
        self.loggers.log_values(values, self.state, kind=kind)

    def log_image(self: _Run, name: str, image: Any) -> None:
        """Show a tensor, an array, a picture of Pillow or a figure of matplotlib; see `images.check_image`.

        Reads a tensor from its device: for log points and validations, not for each iteration.

        Raises:
            ConfigError: it is no image.
        """
        self.loggers.log_image(name, image, self.state.iter)

    def log_text(self: _Run, name: str, text: str) -> None:
        self.loggers.log_text(name, text, self.state.iter)

    def log_file(self: _Run, path: str | os.PathLike[str], name: str | None = None) -> None:
        """Keep a file with the logs.

        Raises:
            ConfigError: there is no such file.
        """
        self.loggers.log_file(path, name)
