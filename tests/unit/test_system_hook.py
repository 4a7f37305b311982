"""How busy machine and device are, and giving memory back."""

import time
from types import SimpleNamespace as Namespace
from typing import Any, cast

import psutil
import pytest
import torch

from stratrun import ConfigError
from stratrun.accelerators.meters import CUDAMeter, HostMeter
from stratrun.hooks import EmptyCacheHook, SystemHook
from stratrun.hooks import system as system_module
from tests.problems import perceptron, points, trained

MIB = 2**20


class FakeRun:
    """Two processes, whose devices are busy to different degrees."""

    def __init__(self, busy: float | None = None) -> None:
        device = {} if busy is None else {"gpu_busy": busy}
        self.engine = Namespace(
            gauges=Namespace(
                utilization=lambda: device,
                of_all=lambda own: [own, None if own is None else own / 2],
            )
        )


def logged(hook: SystemHook, run: FakeRun) -> dict[str, float]:
    values: dict[str, Any] = {}
    hook.before_log(cast(Any, run), values)
    return values


def test_rates_are_those_since_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    now, read = [10.0], [0]
    monkeypatch.setattr(system_module, "monotonic", lambda: now[0])
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: Namespace(read_bytes=read[0], write_bytes=0))
    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)
    hook = SystemHook(every_seconds=5)
    hook.before_train()
    now[0], read[0] = 14.0, 100 * MIB
    assert logged(hook, FakeRun()) == {}
    now[0] = 20.0
    values = logged(hook, FakeRun())
    assert values["disk_read"] == pytest.approx(10)
    assert values["disk_write"] == 0
    assert "net_in" not in values and "gpu_busy_min" not in values
    now[0], read[0] = 24.0, 500 * MIB
    assert logged(hook, FakeRun()) == values


def test_the_processor_time_of_this_process_is_counted() -> None:
    hook = SystemHook(every_seconds=0)
    hook.before_train()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    assert logged(hook, FakeRun())["process_cpu"] > 5


def test_the_least_busy_device_is_told() -> None:
    hook = SystemHook(every_seconds=0)
    assert logged(hook, FakeRun(busy=80.0))["gpu_busy"] == 80
    assert logged(hook, FakeRun(busy=80.0))["gpu_busy_min"] == 40


def test_a_gpu_whose_driver_does_not_tell_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: torch.device) -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", missing)
    monkeypatch.setattr(torch.cuda, "temperature", lambda device: 61)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 350_000)
    figures = CUDAMeter().utilization(torch.device("cuda", 0))
    assert figures == {"gpu_temperature": 61.0, "gpu_watts": 350.0}


def test_memory_is_given_back_around_validations_and_every_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(HostMeter, "free_cached", lambda self: given.append("back"))
    form: dict[str, Any] = {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(12), "batch_size": 2},
        "val_dataloader": {"dataset": points(2), "batch_size": 2},
        "val_evaluator": "Accuracy",
        "train_cfg": {"max_epochs": 1},
        "optimizer": {"type": "SGD", "lr": 0.1},
    }
    trained(perceptron(), custom_hooks=[EmptyCacheHook()], **form)
    assert len(given) == 2
    given.clear()
    trained(perceptron(), custom_hooks=[EmptyCacheHook(around_validation=False, every=4)], **form)
    assert len(given) == 1


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="every_seconds=-1"):
        SystemHook(every_seconds=-1)
    with pytest.raises(ConfigError, match="every_seconds='5' must be a number"):
        SystemHook(every_seconds="5")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="every=0"):
        EmptyCacheHook(every=0)
