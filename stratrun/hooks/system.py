from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from stratrun.errors import ConfigError
from stratrun.hooks.base import Hook
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    import psutil

    from stratrun.context import RunContext

_MIB = 2**20


@HOOKS.register_module()
class SystemHook(Hook):
    """Logs at log points how busy the machine is. What memory is in use is the `MemoryHook`'s to tell.

    Of the host since the last look: `cpu_busy`, percent of all its processors; `process_cpu`, of one
    processor by this process and its children (loader workers); `disk_read`, `disk_write`, `net_in` and
    `net_out`, in MiB a second, of the whole machine. Of the GPU at the moment, where it tells (for NVIDIA
    with the package nvidia-ml-py): `gpu_busy` in percent, `gpu_temperature` in degrees Celsius, `gpu_watts`;
    and `gpu_busy_min`, that of the process whose GPU is least busy.

    Args:
        every_seconds: How old a figure may be: the drivers take up to milliseconds to answer.
    """

    def __init__(self, every_seconds: float = 5.0) -> None:
        number = isinstance(every_seconds, int | float) and not isinstance(every_seconds, bool)
        if not number or not every_seconds >= 0:
            raise ConfigError(f"SystemHook: every_seconds={every_seconds!r} must be a number, 0 or more")
        self.every_seconds = every_seconds
        self._process: psutil.Process | None = None
        self._looked = float("-inf")
        self._sums: dict[str, float] = {}
        self._figures: dict[str, float] = {}

    def before_train(self) -> None:
        self._look()

    def before_log(self, runner: RunContext, values: dict[str, Any]) -> None:
        if monotonic() - self._looked >= self.every_seconds:
            self._figures = {**self._look(), **runner.engine.gauges.utilization()}
        values.update(self._figures)
        everyone = runner.engine.gauges.of_all(self._figures.get("gpu_busy"))
        busy = [one for one in everyone if one is not None]
        if busy:
            values["gpu_busy_min"] = min(busy)

    def _look(self) -> dict[str, float]:
        """What has been going on since the last look."""
        # Only now: a run that does without this hook does without the import.
        import psutil

        now, sums = monotonic(), self._counters(psutil)
        seconds, before = now - self._looked, self._sums
        self._looked, self._sums = now, sums
        busy = psutil.cpu_percent()  # since the last call, too
        if not before or seconds <= 0:
            return {}
        rates = {
            # A child that has ended takes its seconds with it.
            name: max(sums[name] - before[name], 0.0) / seconds
            for name in sums.keys() & before.keys()
        }
        rates["process_cpu"] *= 100
        return {"cpu_busy": busy, **dict(sorted(rates.items()))}

    def _counters(self, psutil: Any) -> dict[str, float]:
        """What only grows: processor seconds, and MiB that have passed."""
        if self._process is None:
            self._process = psutil.Process()
        seconds = 0.0
        for one in (self._process, *self._process.children(recursive=True)):
            try:
                times = one.cpu_times()
                seconds += times.user + times.system
            except psutil.Error:
                # Gone since, or not ours to look at.
                continue
        sums = {"process_cpu": seconds}
        disk, net = psutil.disk_io_counters(), psutil.net_io_counters()
        # None on machines without a disk or a network of their own, as containers may be.
        if disk is not None:
            sums.update(disk_read=disk.read_bytes / _MIB, disk_write=disk.write_bytes / _MIB)
        if net is not None:
            sums.update(net_in=net.bytes_recv / _MIB, net_out=net.bytes_sent / _MIB)
        return sums
