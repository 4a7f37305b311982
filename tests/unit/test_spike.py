"""Spikes of the loss against the formula, and what follows from them against plain loops."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stratrun import ConfigError, Hook, Runner
from stratrun.hooks import MicroBatchHook, SpikeHook
from tests.problems import QUIET, trained
from tests.ranks import Ranks

SAMPLES, BATCH, EPOCHS, ODD = 24, 4, 3, 14
BATCHES = SAMPLES // BATCH
SETTINGS: dict[str, Any] = {"deviations": 1.0, "window": 9, "warmup": 6, "interval": 4}
RATE = 0.01


def samples() -> TensorDataset:
    """Numbers and others to be had of them; one of those is far off."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, 3, generator=generator, dtype=torch.float64)
    targets = inputs.sum(1, keepdim=True) + 0.1
    targets[ODD] += 50
    return TensorDataset(inputs, targets)


def net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Linear(3, 1).double()


class Stop(Hook):
    """Ends training after an iteration, as if from outside."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.state.agree("stop", "killed", urgent=True)


def form(work_dir: Path | str, hooks: Sequence[Any], **options: Any) -> dict[str, Any]:
    return {
        "loss": "mse_loss",
        "train_dataloader": {"dataset": samples(), "global_batch_size": BATCH, "shuffle": False},
        "train_cfg": {"max_epochs": EPOCHS},
        "optimizer": {"type": "SGD", "lr": RATE, "momentum": 0.5},
        "custom_hooks": list(hooks),
        "precision": "64-true",
        "work_dir": str(work_dir),
        **options,
    }


def plain(shares: int, policy: str = "warn") -> tuple[dict[str, Tensor], list[tuple[int, float]], float]:
    """Weights, spikes and the limit at the end by a loop in which each batch is of so many shares."""
    model, (inputs, targets) = net(), samples().tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.5, fused=True)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    limit, mean, variance, seen = math.inf, 0.0, 0.0, 0
    waiting: list[tuple[int, list[float]]] = []
    spikes: list[tuple[int, float]] = []
    alpha = 2 / (SETTINGS["window"] + 1)
    for iteration in range(1, EPOCHS * BATCHES + 1):
        first = (iteration - 1) % BATCHES * BATCH
        parts = [slice(first + share, first + BATCH, shares) for share in range(shares)]
        losses = [nn.functional.mse_loss(model(inputs[part]), targets[part]) for part in parts]
        waiting.append((iteration, [loss.item() for loss in losses]))
        optimizer.zero_grad()
        (sum(losses) / shares).backward()  # type: ignore[union-attr]
        if policy == "warn" or all(loss.item() <= limit for loss in losses):
            optimizer.step()
            kept = {name: value.clone() for name, value in model.state_dict().items()}
        if iteration % SETTINGS["interval"]:
            continue
        for number, found in waiting:
            spikes += [(number, loss) for loss in found if loss > limit]
            if not seen:
                mean = sum(found) / len(found)
            seen += 1
            apart = [min(loss, limit) - mean for loss in found]
            variance = (1 - alpha) * (variance + alpha * sum(one * one for one in apart) / len(apart))
            mean += alpha * sum(apart) / len(apart)
        waiting = []
        if seen >= SETTINGS["warmup"]:
            limit = mean + SETTINGS["deviations"] * math.sqrt(variance)
    return kept, spikes, limit


def whole(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Any] = model.state_dict()
    found = {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in state.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def run(strategy: str, work_dir: str, action: str, *hooks: Hook, **options: Any) -> tuple[Any, ...]:
    spike = SpikeHook(**SETTINGS, action=action)
    policy: Any = {"rollback": {"policy": "rollback", "to": "memory", "every": 1}}.get(action, action)
    given = form(work_dir, [spike, *hooks], **options)
    saving = {"checkpoint": {"interval": None, "keep_last": None}}
    runner = trained(
        net(),
        strategy=strategy,
        default_hooks=saving,
        non_finite="raise" if action == "warn" else policy,
        **given,
    )
    counts = (runner.iter, runner.step, runner.state.skipped)
    return whole(runner.model), spike.found, spike.limit, counts


@pytest.mark.parametrize("action", ["warn", "skip", "rollback"])
def test_spikes_and_what_follows_are_those_of_a_plain_loop(action: str, tmp_path: Path) -> None:
    weights, spikes, limit, counts = run("single", str(tmp_path), action)
    truth, found, at_last = plain(1, action)
    assert spikes == [(at, pytest.approx(loss)) for at, loss in found]
    assert [at for at, _ in found] == [10, 16]
    assert limit == pytest.approx(at_last)
    torch.testing.assert_close(weights, truth, rtol=1e-9, atol=1e-12)
    left_out = 0 if action == "warn" else 2
    assert counts == (EPOCHS * BATCHES, EPOCHS * BATCHES - left_out, left_out)


def uneven() -> dict[str, Any]:
    """Batches in which one sample of four makes almost all of the loss."""
    inputs, targets = samples().tensors
    targets[::BATCH] += 30
    dataset = TensorDataset(inputs, targets)
    return {"train_dataloader": {"dataset": dataset, "global_batch_size": BATCH, "shuffle": False}}


def in_parts(work_dir: str, strategy: str) -> int:
    truth = run(strategy, f"{work_dir}/whole", "skip", **uneven())
    for parts in (2, BATCH):
        found = run(strategy, f"{work_dir}/{parts}", "skip", MicroBatchHook(parts), **uneven())
        assert found[1] == [(at, pytest.approx(loss)) for at, loss in truth[1]]
        assert found[3] == truth[3]
        torch.testing.assert_close(found[0], truth[0], rtol=1e-9, atol=1e-12)
    return len(truth[1])


def test_a_batch_in_parts_is_a_spike_by_its_loss_as_a_whole(two_ranks: Ranks, tmp_path: Path) -> None:
    assert in_parts(str(tmp_path / "one"), "single") == 2
    assert two_ranks(in_parts, str(tmp_path / "two"), "ddp") == [2, 2]


def assert_parity(strategy: str, work_dir: str, shares: int) -> None:
    for action in ("warn", "skip", "rollback"):
        place = f"{work_dir}/{strategy}-{action}"
        truth = run(strategy, f"{place}/whole", action)
        weights, found, limit = plain(shares, action)
        assert truth[1] == [(at, pytest.approx(loss)) for at, loss in found] and len(found) == 2
        assert truth[2] == pytest.approx(limit)
        torch.testing.assert_close(truth[0], weights, rtol=1e-9, atol=1e-12)
        for at in (3, 9, 11):
            run(strategy, f"{place}/{at}", action, Stop(at))
            resumed = run(strategy, f"{place}/{at}", action, resume=True)
            assert resumed[2:] == truth[2:]
            torch.testing.assert_close(resumed[0], truth[0], rtol=0, atol=0)


def test_a_resumed_run_finds_the_spikes_of_the_uninterrupted_one(tmp_path: Path) -> None:
    assert_parity("single", str(tmp_path), 1)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_decide_alike_by_the_losses_of_both(
    strategy: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(assert_parity, strategy, str(tmp_path), 2)


def test_a_spike_is_told_with_its_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="stratrun"):
        trained(net(), **form(tmp_path / "warn", [SpikeHook(**SETTINGS)]))
        policy = {"non_finite": "skip"}
        trained(net(), **form(tmp_path / "skip", [SpikeHook(**SETTINGS, action="skip")], **policy))
    warned = [record.getMessage() for record in caplog.records]
    assert "a spike in iteration 10: loss" in warned[0] and "(samples 12, 13, 14, 15 of the data" in warned[0]
    assert "a loss above its limit in iteration 10 of epoch 1: loss" in warned[2]
    assert "the update is left out" in warned[2] and len(warned) == 4


def test_losses_are_read_at_the_interval_alone(tmp_path: Path) -> None:
    reads = []

    class Counted(SpikeHook):
        """Notes when losses are read."""

        def _read(self) -> list[float]:
            reads.append(sum(isinstance(loss, Tensor) for loss in self._own))
            return super()._read()

    trained(net(), **form(tmp_path, [Counted(**{**SETTINGS, "interval": 9})]))
    assert list(filter(None, reads)) == [9, 9]


def test_an_update_on_a_device_that_is_not_read_is_left_out_too(tmp_path: Path) -> None:
    class Unread(Hook):
        """Has the run take losses as of a device, which nothing reads from host memory."""

        def before_train(self, runner: Any) -> None:
            runner.engine.guard.limit.admits = lambda loss, batch: None

    truth, *_ = plain(1, "skip")
    for parts in (1, 2):
        hooks = [SpikeHook(**SETTINGS, action="skip"), Unread(), MicroBatchHook(parts)]
        runner = trained(net(), **form(tmp_path / str(parts), hooks, non_finite="skip"))
        torch.testing.assert_close(whole(runner.model), truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"deviations": 0}, "deviations=0 must be a number above 0"),
        ({"window": 0}, "window=0 must be a whole number of iterations"),
        ({"action": "skp"}, "action='skp' is unknown; did you mean 'skip'"),
    ],
)
def test_settings_that_find_nothing_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        SpikeHook(**settings)


def test_an_action_that_the_run_is_not_set_to_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    runner = Runner(lambda: pytest.fail("built"), **QUIET, **form(tmp_path, [SpikeHook(action="skip")]))
    with pytest.raises(ConfigError, match="this run has non_finite='raise'; give it the same"):
        runner.train()
