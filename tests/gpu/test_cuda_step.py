"""Steps that are captured in a CUDA graph, beside plain loops. Not run without a GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import ConfigError, NonFiniteError, Runner
from stratrun.testing import count_syncs
from tests.parity.test_whole_step import BATCH, EPOCHS, RATE, SAMPLES, Spoilt, arguments
from tests.problems import perceptron, points, weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("AdamW", {"lr": RATE, "fused": True}),
    ("SGD", {"lr": RATE, "fused": True, "momentum": 0.5}),
]


def on_gpu(model: nn.Module, **options: Any) -> Runner:
    given = {"accelerator": "cuda", "compile": {"graphs": True}, **options}
    runner = Runner(model, **arguments(**given))
    try:
        runner.train()
    finally:
        runner.close()
    return runner


def plain(
    kind: str, options: dict[str, Any], bad: int | None = None, gamma: float = 1.0
) -> dict[str, Tensor]:
    model = perceptron().cuda()
    inputs, targets = (tensor.cuda() for tensor in points(SAMPLES).tensors)
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options)
    for _ in range(EPOCHS):
        for number, first in enumerate(range(0, SAMPLES, BATCH)):
            if number == bad:
                continue
            part = slice(first, first + BATCH)
            cross_entropy(model(inputs[part]), targets[part]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] *= gamma
    return weights(model)


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_replays_train_as_a_plain_loop_does_to_the_bit(kind: str, options: dict[str, Any]) -> None:
    runner = on_gpu(perceptron(), optimizer={"type": kind, **options})
    torch.testing.assert_close(weights(runner.model), plain(kind, options), rtol=0, atol=0)


def test_an_optimizer_without_a_fused_kernel_is_captured_where_losses_are_not_looked_at() -> None:
    options = {"lr": RATE, "foreach": True}
    runner = on_gpu(perceptron(), optimizer={"type": "AdamW", **options}, non_finite="ignore")
    torch.testing.assert_close(weights(runner.model), plain("AdamW", options))


def test_a_schedule_reaches_the_replays() -> None:
    schedule = {"type": "ExponentialLR", "gamma": 0.9, "by_epoch": False}
    runner = on_gpu(perceptron(), param_scheduler=schedule)
    torch.testing.assert_close(weights(runner.model), plain(*OPTIMIZERS[0], gamma=0.9))


def test_replays_drop_an_update_that_is_not_finite() -> None:
    model = Spoilt(points(SAMPLES).tensors[0][BATCH * 4])
    runner = on_gpu(model, non_finite="skip")
    assert runner.state.skipped == EPOCHS
    torch.testing.assert_close(weights(model.inner), plain(*OPTIMIZERS[0], bad=4))
    model = Spoilt(points(SAMPLES).tensors[0][BATCH * 4])
    with pytest.raises(NonFiniteError, match="samples at 16, 17, 18, 19"):
        on_gpu(model)


def test_dropout_draws_anew_in_each_replay_and_the_compiled_step_is_captured_too() -> None:
    model = nn.Sequential(nn.Dropout(0.5), perceptron())
    runner = on_gpu(model, compile={"step": True, "graphs": True}, optimizer={"type": "AdamW", "lr": 0.0})
    inputs, targets = (tensor.cuda() for tensor in points(SAMPLES).tensors)
    batch = [inputs[:BATCH], targets[:BATCH]]
    losses = torch.stack([runner.engine.train_step(batch)["loss"] for _ in range(4)])
    assert len(losses.unique()) > 1


def test_a_replay_waits_for_nothing() -> None:
    engine = on_gpu(perceptron(), non_finite="ignore").engine
    inputs, targets = (tensor.cuda() for tensor in points(SAMPLES).tensors)
    with count_syncs() as found:
        for _ in range(3):
            engine.train_step([inputs[:BATCH], targets[:BATCH]])
    assert not found


class Waits(nn.Module):
    """Reads its loss on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.inner(inputs)
        return outputs * (1.0 if outputs.sum().item() else 2.0)


def test_a_step_that_waits_is_refused_when_it_is_captured() -> None:
    with pytest.raises(ConfigError, match="must not wait for the device"):
        on_gpu(Waits())
