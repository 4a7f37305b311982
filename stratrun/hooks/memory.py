from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from stratrun.errors import ConfigError
from stratrun.hooks.base import Hook
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    import psutil

    from stratrun.context import RunContext

_MIB = 2**20
# Where a container is told how much it may have; the lesser of this and the machine's is what counts.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


@HOOKS.register_module()
class MemoryHook(Hook):
    """Logs at log points what memory the host and the hardware have in use, and warns before it runs out.

    In MiB: `host_memory` of this process, `workers_memory` of its children (loader workers; pages that they
    share with it are in both), `host_free` of the machine or the container; and of each figure that the
    hardware tells, and of these two, the largest among all processes, as `<name>_max`.

    Args:
        warn_above: Share of the host's memory beyond which a warning is given, once.
        every_seconds: How old a figure of the host may be: to look at a machine full of processes
            takes milliseconds.
    """

    def __init__(self, warn_above: float = 0.95, *, every_seconds: float = 5.0) -> None:
        if not 0 < warn_above <= 1:
            raise ConfigError(f"MemoryHook: warn_above={warn_above!r} must be a share, above 0 and up to 1")
        if every_seconds < 0:
            raise ConfigError(f"MemoryHook: every_seconds={every_seconds!r} must be 0 or more")
        self.warn_above = warn_above
        self.every_seconds = every_seconds
        self._process: psutil.Process | None = None
        self._looked = float("-inf")
        self._figures: dict[str, float] = {}
        self._warned = False

    def before_log(self, runner: RunContext, values: dict[str, Any]) -> None:
        if monotonic() - self._looked >= self.every_seconds:
            self._figures = self._look(runner)
            self._looked = monotonic()
        values.update(self._figures)
        own = {**runner.engine.memory(), **self._figures}
        own.pop("host_free", None)
        everyone = runner.engine.gauges.of_all(own)
        for name in own:
            values[f"{name}_max"] = max(one.get(name, 0.0) for one in everyone)

    def _look(self, runner: RunContext) -> dict[str, float]:
        # Only now: a run that does without this hook does without the import.
        import psutil

        if self._process is None:
            self._process = psutil.Process()
        workers = 0
        for child in self._process.children(recursive=True):
            try:
                workers += child.memory_info().rss
            except psutil.Error:
                # Gone since, or not ours to look at.
                continue
        machine = psutil.virtual_memory()
        total, free = machine.total, machine.available
        limit, used = _first_number(_LIMITS), _first_number(_USED)
        if limit is not None and used is not None and limit < total:
            total, free = limit, min(free, max(limit - used, 0))
        if 1 - free / total > self.warn_above and not self._warned:
            self._warned = True
            runner.loggers.say(
                f"host memory is nearly full: {free / _MIB:.0f} of {total / _MIB:.0f} MiB are free, of which "
                f"this process has {self._process.memory_info().rss / _MIB:.0f} and its children "
                f"{workers / _MIB:.0f}; fewer loader workers, or smaller caches of data sets, take less"
            )
        return {
            "host_memory": self._process.memory_info().rss / _MIB,
            "workers_memory": workers / _MIB,
            "host_free": free / _MIB,
        }


def _first_number(paths: tuple[str, ...]) -> int | None:
    """The number in the first of these files that is there; None for none, and for "max"."""
    for path in paths:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None
