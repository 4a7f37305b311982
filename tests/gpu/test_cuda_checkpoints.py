"""Saving and resuming on one GPU. Not run where there is none."""

import pytest
import torch

from stratrun.checkpoint import Staging
from stratrun.hooks import Hook
from tests.gpu.test_cuda import restored, train  # noqa: F401  (a fixture)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Stop(Hook):
    """Ends training after so many iterations."""

    priority = 100

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner):
        if runner.iter == self.at:
            runner.request("stop", agreed=True)


def test_copies_hold_the_state_of_the_moment_they_were_taken_though_the_device_goes_on():
    staging = Staging()
    weights = {f"w{i}": torch.full((1 << 20,), float(i), device="cuda") for i in range(8)}
    copies = staging.take(weights)
    for weight in weights.values():
        weight.add_(100.0)
    staging.wait()
    assert all(copies[f"w{i}"].is_pinned() for i in range(8))
    assert all(torch.equal(copies[f"w{i}"], torch.full((1 << 20,), float(i))) for i in range(8))


def test_taking_copies_does_not_wait_for_the_device():
    staging = Staging()
    weight = torch.randn(4096, 4096, device="cuda")
    staging.take({"w": weight})
    staging.wait()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        staging.take({"w": weight @ weight})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    staging.wait()


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_run_resumed_on_the_device_is_bitwise_the_uninterrupted_one(tmp_path, precision, asynchronous):
    options = {
        "precision": precision,
        "randomness": {"seed": 3, "deterministic": True},
        "default_hooks": {"checkpoint": {"interval": 1, "by_epoch": False, "keep_last": None}},
        "checkpoint_cfg": {"asynchronous": asynchronous},
    }
    whole = train(tmp_path / "whole", **options)
    train(tmp_path / "broken", custom_hooks=[Stop(5)], **options)
    resumed = train(tmp_path / "broken", resume=True, **options)
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert resumed.iter == whole.iter
