from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar

from stratrun.errors import ConfigError
from stratrun.hooks.base import Hook
from stratrun.hooks.watching import Watching
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from torch.profiler import profile

    from stratrun.context import RunContext


@HOOKS.register_module()
class ProfilerHook(Hook):
    """Profiles a few iterations with `torch.profiler`, and writes a trace of each such window.

    A trace is ``profile/iterations-<first>-<last>.process-<number>.json.gz`` beside the logs, for
    https://ui.perfetto.dev or chrome://tracing, with a table of the operations beside it as ``.txt``.
    Hooks are named in it. Outside of the windows the profiler does not exist, and an iteration costs one
    comparison.

    Args:
        wait: Iterations before each window.
        warmup: Iterations that are profiled and thrown away, as a profiler's first ones are slow.
        active: Iterations that are kept.
        repeat: Windows over the whole training, those before a resume included.
        processes: Numbers of the processes to profile; all by default.
        folder: Where to put the traces, in place of ``profile`` beside the logs.
        options: For `torch.profiler.profile`: `record_shapes`, `profile_memory`, `with_stack`, ...
    """

    # First, so that an iteration holds the work of all other hooks.
    priority = 0
    goes_on: ClassVar[None] = None

    def __init__(
        self,
        wait: int = 10,
        *,
        warmup: int = 2,
        active: int = 3,
        repeat: int = 1,
        processes: Collection[int] | None = None,
        folder: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        _check("wait", wait, 0)
        for name, value in (("warmup", warmup), ("active", active), ("repeat", repeat)):
            _check(name, value, 1)
        for name in ("schedule", "on_trace_ready"):
            if name in options:
                raise ConfigError(
                    f"ProfilerHook: {name}= is the hook's own; say wait=, warmup=, active=, repeat="
                )
        self.wait: int = wait
        self.warmup: int = warmup
        self.active: int = active
        self.repeat: int = repeat
        self.processes: frozenset[int] | None = None if processes is None else frozenset(processes)
        self.folder = folder
        self.options = options
        self.traces: list[str] = []
        """Paths of the traces that this process has written."""
        self._done = 0
        self._chosen = True
        self._next = -1
        self._profile: profile | None = None
        self._watching = Watching()

    def before_train(self, runner: RunContext) -> None:
        self._chosen = self.processes is None or runner.process in self.processes
        # Where the first process logs: the others have no log folder of their own.
        folder = runner.engine.gauges.of_all(runner.log_folder)[0] or runner.work_dir
        self._folder = os.fspath(self.folder or os.path.join(folder, "profile"))
        self._aim(runner)

    def before_train_iter(self, runner: RunContext) -> None:
        if runner.iter == self._next and self._chosen:
            self._open(runner)

    def after_train_iter(self, runner: RunContext) -> None:
        # Here, and not before the next iteration: waiting for its batch belongs to that.
        if self._profile is not None:
            self._profile.step()
        # Windows count on all processes alike, as one checkpoint tells all how many there were.
        if self._next >= 0 and runner.iter == self._next + self.warmup + self.active:
            self._close(runner)

    def after_train(self, runner: RunContext) -> None:
        # A window that the end of training has cut short tells something all the same.
        if 0 <= self._next < runner.iter:
            self._close(runner)

    def on_exception(self) -> None:
        if self._profile is not None:
            self._watching.end()
            running, self._profile = self._profile, None
            running.stop()

    def state_dict(self) -> dict[str, Any]:
        return {"windows": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._done = state["windows"]

    def _open(self, runner: RunContext) -> None:
        from torch import profiler

        schedule = profiler.schedule(wait=0, warmup=self.warmup, active=self.active, repeat=1)
        # By itself it would wait for another window, and throw away what it has of this one when stopped.
        self._profile = profiler.profile(schedule=schedule, **self.options)
        self._profile.start()
        self._watching.begin(
            runner.hooks, lambda hook, point: profiler.record_function(f"{type(hook).__name__}.{point}")
        )

    def _close(self, runner: RunContext) -> None:
        done, self._profile = self._profile, None
        if done is not None:
            self._watching.end()
            done.stop()
            self._write(runner, done)
        self._done += 1
        self._aim(runner)

    def _aim(self, runner: RunContext) -> None:
        self._next = runner.iter + self.wait if self._done < self.repeat else -1

    def _write(self, runner: RunContext, done: profile) -> None:
        first, last = self._next + self.warmup + 1, runner.iter
        if last >= first:
            os.makedirs(self._folder, exist_ok=True)
            name = f"iterations-{first}-{last}.process-{runner.process}"
            path = os.path.join(self._folder, name)
            done.export_chrome_trace(f"{path}.json.gz")
            with open(f"{path}.txt", "w", encoding="utf-8") as file:
                file.write(done.key_averages().table(sort_by="self_cpu_time_total", row_limit=50))
            self.traces.append(f"{path}.json.gz")
            runner.loggers.say(f"profile of iterations {first} to {last}: {path}.json.gz")


def _check(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"ProfilerHook: {name}={value!r} must be a whole number of at least {least}")
