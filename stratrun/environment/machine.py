"""The interpreter and the machine below it."""

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

_GIB = 2**30
SHARED = Path("/dev/shm")
"""Where worker processes put what they give to the main one."""


def python() -> dict[str, Any]:
    return {"version": sys.version.split()[0], "executable": sys.executable}


def machine() -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cores_usable": usable_cores(),
        "memory": _gib(memory.total),
        "memory_available": _gib(memory.available),
    }
    limit = _number_in("/sys/fs/cgroup/memory.max")
    if limit is not None:
        found["memory_limit"] = _gib(limit)
    disk = shutil.disk_usage(".")
    found |= {"disk": _gib(disk.total), "disk_free": _gib(disk.free)}
    if SHARED.is_dir():
        found["shared_memory"] = _gib(shutil.disk_usage(SHARED).total)
    return found


def usable_cores() -> float:
    """Those that this process may run on, by its affinity and by the limit of its container."""
    # Only some systems have affinities.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity is not None else os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(cores, round(int(quota) / int(period), 2))
    except (OSError, ValueError):  # no such file, or no limit
        return cores


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _number_in(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def _gib(size: float) -> float:
    return round(size / _GIB, 2)
