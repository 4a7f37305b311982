"""What loggers of experiment trackers have in common."""

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stratrun.errors import ConfigError, nearest
from stratrun.loggers.abilities import Outcome
from stratrun.loggers.base import Logger
from stratrun.loggers.record import Record

if TYPE_CHECKING:
    from PIL.Image import Image

_QUEUE = ("capacity", "deadline")
_HELD = 256


class TrackingLogger(Logger):
    """A place that keeps runs by their ids, and lets one be gone on with.

    It decides when the tracker's run is begun: as late as with the first thing to write, when it is known
    which run of ours it is. Until then, and where that fails, the latest calls are held back; `flush` and
    `close` do not wait to be told. Secrets are out of all parameters before a subclass sees them. What is
    asked of a subclass: `begin`, `finish`, and how one thing of each kind is sent.

    Args:
        params: Of the run, beside its config.
        queue: ``dict(capacity=, deadline=)`` of the `BackgroundLogger` that it is put behind.
    """

    in_background: ClassVar[bool] = True

    def __init__(
        self,
        params: Mapping[str, Any] | None = None,
        queue: Mapping[str, Any] | None = None,
    ) -> None:
        for name, given in (("params", params), ("queue", queue)):
            if not isinstance(given, Mapping | None):
                raise ConfigError(f"{name}={given!r} must be a dict")
        for key in queue or ():
            if key not in _QUEUE:
                raise ConfigError(f"queue has no setting {key!r}; {nearest(str(key), _QUEUE)}")
        # Only now, as it imports a YAML reader.
        from stratrun.config.redaction import redacted

        self.queue: dict[str, Any] = dict(queue or {})
        self.params: dict[str, Any] = dict(redacted(dict(params or {})))
        self.config: str = ""
        self._run_id: str | None = None
        self._outcome: Outcome = "finished"
        self._is_told = self._has_begun = False
        self._held: deque[Callable[[], None]] = deque(maxlen=_HELD)

    # -- what a subclass says

    @abstractmethod
    def begin(self, run_id: str | None) -> None:
        """Begin a run with `params` and the text `config`, or go on with the one of that id."""

    @abstractmethod
    def finish(self, outcome: Outcome) -> None:
        """End the run, which may be begun again."""

    @abstractmethod
    def send_values(self, record: Record) -> None: ...
    @abstractmethod
    def send_image(self, name: str, image: "Image", step: int) -> None: ...
    @abstractmethod
    def send_text(self, name: str, text: str, step: int) -> None: ...
    @abstractmethod
    def send_file(self, name: str, path: Path) -> None: ...

    # -- what the run calls

    def log_config(self, text: str) -> None:
        self.config = text

    def start_run(self, run_id: str) -> None:
        self._run_id, self._is_told = run_id, True

    def end_run(self, outcome: Outcome) -> None:
        if self._is_told:
            # Also where nothing was logged: that there was such a run is worth knowing.
            self._outcome = outcome
            self._do(lambda: None)
            self.end()
        self._held.clear()

    def log(self, record: Record) -> None:
        self._do(partial(self.send_values, record))

    def log_image(self, name: str, image: "Image", step: int) -> None:
        self._do(partial(self.send_image, name, image, step))

    def log_text(self, name: str, text: str, step: int) -> None:
        self._do(partial(self.send_text, name, text, step))

    def log_file(self, name: str, path: Path) -> None:
        self._do(partial(self.send_file, name, path))

    def flush(self) -> None:
        if self._held:
            self._is_told = True
            self._send_held()

    def close(self) -> None:
        self.flush()
        self.end()

    def _do(self, act: Callable[[], None]) -> None:
        self._held.append(act)
        if self._is_told:
            self._send_held()

    def _send_held(self) -> None:
        while self._held:
            if not self._has_begun:
                self.begin(self._run_id)
                self._has_begun = True
            # Out of the line first: one that cannot be sent is not to hold up the others.
            self._held.popleft()()

    def end(self) -> None:
        """Finish what has begun; the next thing to write begins it again."""
        if self._has_begun:
            self._has_begun = False
            self.finish(self._outcome)


def config_values(text: str) -> dict[str, Any]:
    """The config as nested values; empty where it is none."""
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def flat(values: Any, name: str = "") -> dict[str, Any]:
    """Nested values under dotted names: ``train_dataloader.batch_size``, ``custom_hooks.0.type``."""
    if isinstance(values, Mapping):
        pairs = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, list | tuple) and any(isinstance(one, Mapping | list | tuple) for one in values):
        pairs = [(str(number), value) for number, value in enumerate(values)]
    else:
        return {name: values}
    found: dict[str, Any] = {}
    for key, value in pairs:
        found.update(flat(value, f"{name}.{key}" if name else key))
    return found
