"""Memory of host and children, as the system tells it."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from stratrun import ConfigError
from stratrun.hooks import MemoryHook
from stratrun.hooks import memory as memory_module

MIB = 2**20


class FakeRun:
    """Two processes, of which the other has twice the memory of this one."""

    def __init__(self) -> None:
        self.process = 0
        self.told: list[str] = []
        self.loggers = SimpleNamespace(say=self.told.append)
        self.engine = SimpleNamespace(
            memory=lambda: {"memory": 30.0}, gauges=SimpleNamespace(of_all=self.of_all)
        )

    def of_all(self, own: dict[str, float]) -> list[dict[str, float]]:
        return [own, {name: 2 * value for name, value in own.items()}]


def logged(hook: MemoryHook, run: FakeRun) -> dict[str, float]:
    values: dict[str, Any] = {}
    hook.before_log(cast(Any, run), values)
    return values


def test_figures_are_those_of_the_system_children_included_and_the_largest_of_all() -> None:
    hook, run = MemoryHook(every_seconds=0), FakeRun()
    alone = logged(hook, run)
    rss = psutil.Process().memory_info().rss / MIB
    assert alone["host_memory"] == pytest.approx(rss, rel=0.2)
    assert alone["host_free"] <= psutil.virtual_memory().total / MIB
    assert alone["host_memory_max"] == 2 * alone["host_memory"]
    assert alone["memory_max"] == 60.0
    assert "host_free_max" not in alone
    code = "import sys; held = bytearray(40 * 2**20); print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"up\n"
        assert logged(hook, run)["workers_memory"] - alone["workers_memory"] > 40
        child.communicate()
    assert run.told == []


def test_the_host_is_looked_at_no_more_often_than_asked_and_a_warning_comes_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [50.0]
    monkeypatch.setattr(memory_module, "monotonic", lambda: now[0])
    monkeypatch.setattr(memory_module, "_first_number", lambda paths: None)
    machine = SimpleNamespace(total=1000 * MIB, available=40 * MIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    hook, run = MemoryHook(every_seconds=5), FakeRun()
    assert logged(hook, run)["host_free"] == 40
    machine.available = 30 * MIB
    now[0] += 4
    assert logged(hook, run)["host_free"] == 40
    now[0] += 1
    assert logged(hook, run)["host_free"] == 30
    assert len(run.told) == 1
    assert "host memory is nearly full: 40 of 1000 MiB are free" in run.told[0]


def test_the_limit_of_a_container_counts_where_it_is_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {memory_module._LIMITS: 100 * MIB, memory_module._USED: 70 * MIB}
    monkeypatch.setattr(memory_module, "_first_number", numbers.get)
    assert logged(MemoryHook(), FakeRun())["host_free"] == 30


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="warn_above=95 must be a share"):
        MemoryHook(warn_above=95)
    with pytest.raises(ConfigError, match="every_seconds=-1 must be 0 or more"):
        MemoryHook(every_seconds=-1)
