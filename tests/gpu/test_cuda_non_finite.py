"""Losses that are no number on one GPU: fused optimizers drop the update. Not run without one."""

from typing import Any

import pytest
import torch

from stratrun import NonFiniteError, Runner
from tests.problems import QUIET, perceptron, weights
from tests.unit.test_non_finite import BAD, BATCH, SAMPLES, arguments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(tmp_path: Any, **options: Any) -> tuple[Runner, Any]:
    model = perceptron()
    given = arguments(param_scheduler=None, accelerator="cuda", work_dir=str(tmp_path), **options)
    runner, error = Runner(model, **{**QUIET, **given}), None
    try:
        runner.train()
    except NonFiniteError as caught:
        error = caught
    runner.close()
    return runner, error


def plain(stop: bool) -> dict[str, torch.Tensor]:
    """Without the bad batch, or up to it."""
    model = perceptron().cuda()
    inputs, targets = (t.cuda() for t in arguments()["train_dataloader"]["dataset"].tensors)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=True)
    for _ in range(1 if stop else 2):
        for first in range(0, SAMPLES, BATCH):
            part = slice(first, first + BATCH)
            if not first <= BAD < first + BATCH:
                torch.nn.functional.cross_entropy(model(inputs[part]), targets[part]).backward()
                optimizer.step()
                optimizer.zero_grad()
            elif stop:
                return weights(model)
    return weights(model)


@pytest.mark.parametrize("clip", [None, 1e9])
@pytest.mark.parametrize("fused", [True, False])
def test_parameters_are_those_from_before_the_update_when_the_run_ends(
    fused: bool, clip: float | None, tmp_path: Any
) -> None:
    optimizer = {"type": "AdamW", "lr": 0.02, "fused": fused}
    runner, error = on_gpu(tmp_path, optimizer=optimizer, clip_grad=clip)
    assert "samples at 8, 9, 10, 11" in str(error)
    torch.testing.assert_close(weights(runner.model), plain(stop=True))


def test_a_skipped_update_is_left_out_without_a_wait(tmp_path: Any) -> None:
    runner, error = on_gpu(tmp_path, non_finite="skip")
    assert error is None
    assert (runner.iter, runner.step, runner.state.skipped) == (12, 10, 2)
    torch.testing.assert_close(weights(runner.model), plain(stop=False))
    assert not any("waits for the device" in reason for reason in runner.reasons)


def test_a_rollback_goes_on_from_the_copy(tmp_path: Any) -> None:
    policy = {"policy": "rollback", "to": "memory", "every": 1}
    runner, error = on_gpu(tmp_path, non_finite=policy)
    assert error is None
    torch.testing.assert_close(weights(runner.model), plain(stop=False))
