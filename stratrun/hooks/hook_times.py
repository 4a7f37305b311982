from __future__ import annotations

from contextlib import AbstractContextManager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from stratrun.hooks.base import Hook
from stratrun.hooks.watching import Watching
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext


@HOOKS.register_module()
class HookTimesHook(Hook):
    """Tells at the end of a job how many microseconds each hook has taken, at each point.

    What a hook calls in turn, such as the hooks of a validation that it starts, counts for those. The host's
    clock is read, so a hook that only queues work for a GPU is quick. At log points the log gets
    `hook_us`, what all hooks take in an iteration. Watching costs about a microsecond a call.
    """

    # First, so that it watches all the others from the start.
    priority = 0

    def __init__(self) -> None:
        self.times: dict[tuple[str, str], Spent] = {}
        """By the name of the hook's class and the point."""
        self._known: dict[tuple[int, str], Spent] = {}
        self._watching = Watching()
        self._open: list[float] = []
        self._logged = (0, 0.0)

    def before_run(self, runner: RunContext) -> None:
        self.times, self._known, self._open = {}, {}, []
        self._logged = (runner.iter, 0.0)
        self._watching.end()
        self._watching.begin(runner.hooks, self._around)

    def before_log(self, runner: RunContext, values: dict[str, Any]) -> None:
        iterations, before = self._logged
        total = sum(timed.seconds for timed in self.times.values())
        if runner.iter > iterations:
            values["hook_us"] = (total - before) / (runner.iter - iterations) * 1e6
        self._logged = (runner.iter, total)

    def after_run(self, runner: RunContext) -> None:
        self._watching.end()
        runner.loggers.say(self.report())

    def on_exception(self) -> None:
        self._watching.end()

    def report(self) -> str:
        """A table of all hooks and points, those that took longest in all first."""
        # All but the call in which this is asked for at the end of a job.
        done = {f"{name}.{point}": spent for (name, point), spent in self.times.items() if spent.calls}
        if not done:
            return "hooks: none was called"
        width = max(map(len, done))
        lines = [f"{'hooks':<{width}} {'calls':>8} {'us a call':>10} {'longest':>10} {'ms in all':>10}"]
        for name, spent in sorted(done.items(), key=lambda row: -row[1].seconds):
            lines.append(
                f"{name:<{width}} {spent.calls:>8} {spent.seconds / spent.calls * 1e6:>10.1f} "
                f"{spent.longest * 1e6:>10.1f} {spent.seconds * 1e3:>10.2f}"
            )
        return "\n".join(lines)

    def _around(self, hook: Hook, point: str) -> AbstractContextManager[Any]:
        timed = self._known.get((id(hook), point))
        if timed is None:
            key = (type(hook).__name__, point)
            timed = self._known[id(hook), point] = self.times.setdefault(key, Spent(self._open))
        return timed


class Spent:
    """Calls of one hook at one point. `open` are the seconds to leave out of each call under way."""

    def __init__(self, open: list[float]) -> None:
        self.calls: int = 0
        self.seconds: float = 0.0
        self.longest: float = 0.0
        self._open = open

    def __enter__(self) -> None:
        # The seconds of the calls within this one are known when it ends; so is when it began.
        self._open.append(0.0)
        self._open.append(perf_counter())

    def __exit__(self, *error: object) -> None:
        took = perf_counter() - self._open.pop()
        own = took - self._open.pop()
        self.calls += 1
        self.seconds += own
        self.longest = max(self.longest, own)
        if self._open:
            self._open[-2] += took
