"""What is got through in a second, by counts that can be told beforehand and a clock that is told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stratrun import ConfigError, Hook, Runner
from stratrun.accelerators.peaks import peak_flops
from stratrun.hooks import ThroughputHook
from stratrun.hooks import throughput as throughput_module
from tests.problems import CLASSES, FEATURES, perceptron, points, weights

INTERVAL, BATCH = 4, 2
# Two layers, FEATURES x 8 and 8 x CLASSES, 2 operations a weight: forward, gradients of weights, and of
# the inputs of the second alone.
FLOPS = 2 * (2 * FEATURES * 8 + 3 * 8 * CLASSES)


class Logged(Hook):
    """What other hooks have added at log points."""

    priority = 90

    def __init__(self) -> None:
        self.values: list[dict[str, Any]] = []

    def before_log(self, values: dict[str, Any]) -> None:
        self.values.append(dict(values))


class Clock:
    """A quarter of a second passes with each iteration; nothing takes time else but what is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(throughput_module, "perf_counter", lambda: self.now)


class Ticks(Hook):
    priority = 1

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def after_train_iter(self) -> None:
        self.clock.now += 0.25

    def before_val_epoch(self) -> None:
        self.clock.now += 1000.0


def run(hook: ThroughputHook | None, clock: Clock, work_dir: Path, **options: Any) -> tuple[Any, Any]:
    logged = Logged()
    form: dict[str, Any] = {
        "train_dataloader": {"dataset": points(40), "batch_size": BATCH},
        "val_dataloader": {"dataset": points(4), "batch_size": 4},
        "val_evaluator": "Accuracy",
        "randomness": {"seed": 1},
        "train_cfg": {"max_iters": 12, "val_interval": 6},
        "default_hooks": {"logger": {"type": "LoggerHook", "interval": INTERVAL}, "checkpoint": None},
    }
    runner = Runner(
        options.pop("model", None) or perceptron(),
        loss="cross_entropy",
        optimizer={"type": "SGD", "lr": 0.1},
        custom_hooks=[Ticks(clock), *([hook] if hook else []), *options.pop("more_hooks", ()), logged],
        loggers=[],
        work_dir=work_dir,
        **{**form, **options},
    )
    runner.train()
    runner.close()
    return runner, logged.values


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_rates_are_those_of_the_window_without_the_validation_in_it(clock: Clock, tmp_path: Path) -> None:
    hook = ThroughputHook(tokens_per_sample=10, peak_flops=8 * BATCH * FLOPS)
    _, logged = run(hook, clock, tmp_path)
    assert hook.flops == FLOPS
    assert len(logged) == 3
    for values in logged:
        # 4 iterations a second; the first window has one less, as counting began it anew.
        assert values["iters_per_s"] == pytest.approx(4)
        assert values["samples_per_s"] == pytest.approx(4 * BATCH)
        assert values["tokens_per_s"] == pytest.approx(40 * BATCH)
        assert values["tflops_per_s"] == pytest.approx(4 * BATCH * FLOPS / 1e12)
        assert values["mfu"] == pytest.approx(0.5)


def test_an_evaluation_that_is_broken_off_and_no_validation_takes_nothing_from_the_time(
    clock: Clock, tmp_path: Path
) -> None:
    class BreaksOff(Hook):
        def after_train_iter(self, runner: Any) -> None:
            if runner.iter == 6:
                runner.call_hooks("on_break_off")

    _, logged = run(ThroughputHook(), clock, tmp_path, more_hooks=[BreaksOff()])
    assert [values["iters_per_s"] for values in logged] == pytest.approx([4, 4, 4])


def test_counting_operations_changes_no_bit_and_ends_with_the_first_iteration(
    clock: Clock, tmp_path: Path
) -> None:
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    class Modes(Hook):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def after_train_iter(self) -> None:
            self.seen.append(len(_get_current_dispatch_mode_stack()))

    modes = Modes()
    hook = ThroughputHook()
    counted, logged = run(hook, clock, tmp_path / "a", default_hooks={"timer": modes, "checkpoint": None})
    plain, _ = run(None, clock, tmp_path / "b")
    assert modes.seen == [1] + [0] * 11
    truth = weights(plain.model)
    assert all(torch.equal(value, truth[name]) for name, value in weights(counted.model).items())
    assert "mfu" not in logged[0]  # nothing is known of a processor


def test_an_error_in_the_counted_iteration_leaves_no_mode_behind(clock: Clock, tmp_path: Path) -> None:
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(FEATURES, CLASSES))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(ThroughputHook(), clock, tmp_path, model=Fails())
    assert _get_current_dispatch_mode_stack() == []


def test_tokens_are_counted_in_each_batch_by_shape_or_by_a_function(clock: Clock, tmp_path: Path) -> None:
    inputs = torch.ones(24, FEATURES)
    inputs[1::2, 2:] = 0  # every other sample has but two
    data = TensorDataset(inputs, torch.zeros(24, dtype=torch.long))
    loader = {"dataset": data, "batch_size": BATCH, "shuffle": False}
    for tokens, each in ((0, BATCH * FEATURES), (lambda batch: batch[0].sum(), 7)):
        hook = ThroughputHook(tokens=tokens, flops=False)
        _, logged = run(hook, clock, tmp_path, train_dataloader=loader)
        assert [values["tokens_per_s"] for values in logged] == pytest.approx([4.0 * each] * 3)
        assert "tflops_per_s" not in logged[0]


def test_a_resumed_run_does_not_count_again(clock: Clock, tmp_path: Path) -> None:
    first = ThroughputHook()
    first.flops = 5.0
    second = ThroughputHook()
    second.load_state_dict(first.state_dict())
    run(second, clock, tmp_path)
    assert second.flops == 5.0


def test_wrong_arguments_are_refused(clock: Clock, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both count tokens"):
        ThroughputHook(tokens=0, tokens_per_sample=3)
    with pytest.raises(ConfigError, match="peak_flops=0 must be a number above 0"):
        ThroughputHook(peak_flops=0)
    with pytest.raises(ConfigError, match="tokens='ids' is no tensor of a batch, which is a list"):
        run(ThroughputHook(tokens="ids", flops=False), clock, tmp_path)


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", False, 989),
        ("NVIDIA H100 PCIe", "bf16-true", False, 756),
        ("NVIDIA H200", "32-true", True, 494.5),
        ("NVIDIA A100-SXM4-80GB", "32-true", False, 19.5),
        ("NVIDIA A10", "16-mixed", False, 125),
        ("NVIDIA L4", "bf16-mixed", False, 121),
        ("NVIDIA L40S", "bf16-mixed", False, 362),
        ("Tesla V100-SXM2-16GB", "16-mixed", False, 125),
        ("Tesla V100-SXM2-16GB", "32-true", True, 15.7),
        ("Tesla V100-SXM2-16GB", "bf16-mixed", False, None),
        ("AMD Instinct MI300X", "bf16-mixed", False, 1307.4),
        ("NVIDIA GeForce GTX 1060", "32-true", False, None),
        ("NVIDIA H100 80GB HBM3", "64-true", False, None),
    ],
)
def test_peaks_are_found_by_name_and_format(
    name: str, precision: str, tf32: bool, tera: float | None
) -> None:
    assert peak_flops(name, precision, tf32=tf32) == (None if tera is None else tera * 1e12)
