"""``Runner.find_lr``: what it reads off a curve, what it goes through, and what it leaves alone."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, RandomSampler

from stratrun import EpochBasedTrainLoop, Runner
from stratrun.errors import ConfigError
from stratrun.hooks import Hook
from stratrun.hooks.dispatch import HookList
from stratrun.runner import BaseLoop
from stratrun.runner.lr_curve import FoundLR, smoothed
from tests.parity.test_find_lr import Plain, separable
from tests.problems import QUIET, weights


def runner_of(**options: Any) -> Runner:
    form: dict[str, Any] = {
        **QUIET,
        "train_dataloader": {"dataset": separable(), "batch_size": 8},
        "train_cfg": {"max_epochs": 2},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "randomness": {"seed": 1},
        **options,
    }
    return Runner(form.pop("model", None) or Plain(), **form)


# The curve ------------------------------------------------------------------------------------------------


def test_smoothed_losses_are_means_by_distance() -> None:
    losses = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0]
    for i, found in enumerate(smoothed(losses, 0.7)):
        shares = [0.7 ** abs(i - j) for j in range(len(losses))]
        wanted = sum(share * loss for share, loss in zip(shares, losses, strict=True)) / sum(shares)
        assert math.isclose(found, wanted, rel_tol=1e-12)
    assert smoothed(losses, 0.0) == losses


def test_the_suggestion_is_where_the_loss_falls_most_over_the_logarithm_of_the_rate() -> None:
    lrs = [10.0**-5, 10.0**-4, 10.0**-3, 10.0**-2, 10.0**-1, 1.0]
    found = FoundLR.of(lrs, [2.0, 1.9, 1.5, 0.6, 0.5, 7.0], smoothing=0.0)
    # Falls from one neighbour to the other: 0.5, 1.3, 1.0, ...
    assert found.suggestion == 1e-3
    assert found.tenth_of_minimum == pytest.approx(1e-2)
    # The same losses over other rates: a fall over a fifth of a decade counts five times as much.
    lrs[4] = 10.0**-1.8
    lrs[3], lrs[2] = 10.0**-2, 10.0**-2.1
    assert FoundLR.of(lrs, [2.0, 1.9, 1.5, 0.6, 0.5, 7.0], smoothing=0.0).suggestion == 1e-2


def test_there_is_no_suggestion_where_the_loss_only_varies_or_rises() -> None:
    lrs = [10.0 ** (i / 10 - 7) for i in range(80)]
    noise = torch.randn(80, generator=torch.Generator().manual_seed(0)).tolist()
    for losses in ([2 + 0.1 * one for one in noise], [1.0 + i for i in range(80)]):
        found = FoundLR.of(lrs, losses, smoothing=0.9)
        assert found.suggestion is None and "did not fall" in found.reason
    falling = FoundLR.of(lrs, [2 + 0.1 * one - 0.02 * i for i, one in enumerate(noise)], smoothing=0.9)
    assert falling.suggestion is not None and "higher end=" in falling.reason
    assert "4 rates only" in FoundLR.of(lrs[:4], [4.0, 3.0, 2.0, 1.0], smoothing=0.9).reason


def test_a_loss_that_blows_up_does_not_move_the_minimum_before_it() -> None:
    lrs = [10.0 ** (i / 10 - 7) for i in range(60)]
    losses = [1 / (1 + math.exp((i - 30) / 3)) + 0.1 for i in range(59)]
    calm = FoundLR.of(lrs[:59], losses, smoothing=0.9)
    wild = FoundLR.of(lrs, [*losses, 1e6], smoothing=0.9, limits=[math.inf] * 59 + [0.4])
    assert wild.suggestion == calm.suggestion
    assert lrs.index(wild.suggestion) in range(28, 33)


def test_it_is_drawn_and_written_as_json(tmp_path: Path) -> None:
    found = runner_of().find_lr(1e-4, 10, 30)
    found.plot(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads(found.to_json())
    assert written["lrs"] == found.lrs and written["suggestion"] == found.suggestion
    with pytest.raises(ConfigError, match=r"lr\.jpeg.*\.png"):
        found.plot(tmp_path / "lr.jpeg")


def test_a_known_best_rate_is_suggested_within_a_factor() -> None:
    class Bowl(nn.Module):
        """Whose curvature is 1: gradient descent converges at best with lr=1, and not from 2 on."""

        def __init__(self) -> None:
            super().__init__()
            self.at = nn.Parameter(torch.full((4,), 3.0))

        def train_step(self, batch: Any) -> Tensor:
            return self.at.square().sum() / 2 + 1

    found = runner_of(model=Bowl(), optimizer={"type": "SGD", "lr": 0.3}).find_lr(1e-5, 100, 120)
    assert found.suggestion is not None and 0.02 < found.suggestion < 1


def test_rates_rise_by_equal_steps_or_factors() -> None:
    assert runner_of().find_lr(0.1, 1.0, 10, scale="linear").lrs == pytest.approx(
        [0.1 * i for i in range(1, 11)]
    )
    assert runner_of().find_lr(1e-9, 1.0, 10).lrs == pytest.approx([10.0**i for i in range(-9, 1)])


# What it goes through -------------------------------------------------------------------------------------


def test_rates_are_those_to_be_written_where_they_are_scaled_by_the_batch() -> None:
    seen: list[float] = []

    class Seeing(EpochBasedTrainLoop):
        def run_iter(self, idx: int, data_batch: Any) -> Any:
            seen.append(self.runner.engine.optimizers["optimizer"].param_groups[0]["lr"])
            return super().run_iter(idx, data_batch)

    spec = {"type": "SGD", "lr": 0.1, "scale_lr": {"base_batch_size": 2}}
    found = runner_of(optimizer=spec, train_cfg={"type": Seeing, "max_epochs": 1}).find_lr(1e-3, 1e-1, 12)
    assert seen == pytest.approx([4 * rate for rate in found.lrs])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from separable(20)


def test_data_of_unknown_length_and_short_epochs_go_on() -> None:
    def run(find: bool) -> dict[str, Tensor]:
        runner = runner_of(
            train_dataloader={"dataset": Stream(), "batch_size": 8},
            train_cfg={"by_epoch": False, "max_iters": 9, "accumulate": 2},
        )
        if find:
            # 3 batches an epoch, the last of which is a window of its own.
            assert len(runner.find_lr(1e-5, 1e-3, 25).losses) == 25
        runner.train()
        return weights(runner.model)

    found, truth = run(True), run(False)
    assert all(torch.equal(found[name], truth[name]) for name in truth)


def test_a_sampler_of_the_users_and_workers_begin_again() -> None:
    def run(find: bool) -> dict[str, Tensor]:
        data = separable()
        loader = {"dataset": data, "batch_size": 8, "sampler": RandomSampler(data), "num_workers": 1}
        runner = runner_of(train_dataloader=loader)
        if find:
            runner.find_lr(iters=10)
        runner.train()
        runner.close()
        return weights(runner.model)

    found, truth = run(True), run(False)
    assert all(torch.equal(found[name], truth[name]) for name in truth)


class Positioned:
    """A loader that keeps its own position, and goes on with it."""

    def __init__(self) -> None:
        self.at, self.passes = 0, 0

    def __iter__(self) -> Iterator[Any]:
        data = separable(24)
        while self.at < 3:
            self.at += 1
            rows = [(index + self.passes) % 24 for index in range(8 * self.at - 8, 8 * self.at)]
            yield data[rows]
        self.at, self.passes = 0, self.passes + 1

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at, "passes": self.passes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at, self.passes = state["at"], state["passes"]


def test_a_loader_that_keeps_its_own_position_is_put_back() -> None:
    def run(find: bool) -> dict[str, Tensor]:
        runner = runner_of(train_dataloader=Positioned())
        if find:
            runner.find_lr(iters=11)
        runner.train()
        return weights(runner.model)

    found, truth = run(True), run(False)
    assert all(torch.equal(found[name], truth[name]) for name in truth)


class ByHand(EpochBasedTrainLoop):
    def run_iter(self, idx: int, data_batch: Any) -> Any:
        engine = self.runner.engine
        loss = engine.forward(data_batch, "train")
        engine.update(loss)
        return {"mine": loss.detach()}


def test_a_recipe_of_the_users_is_gone_through_and_names_its_loss() -> None:
    options = {"train_cfg": {"type": ByHand, "max_epochs": 1}}
    with pytest.raises(ConfigError, match="loss='loss' is nothing that a training step returned"):
        runner_of(**options).find_lr(iters=10)
    assert runner_of(**options).find_lr(iters=20, loss="mine").losses == runner_of().find_lr(iters=20).losses


class Bare(BaseLoop):
    def run(self) -> None:
        raise AssertionError("the test goes by run_iter")

    def run_iter(self, idx: int, data_batch: Any) -> Any:
        return self.runner.engine.train_step(data_batch)


def test_so_is_a_loop_of_the_users() -> None:
    found = runner_of(train_cfg={"type": Bare}).find_lr(iters=20)
    assert found.losses == runner_of().find_lr(iters=20).losses


def test_several_loaders_are_put_back() -> None:
    def run(find: bool) -> dict[str, Tensor]:
        loaders = {name: {"dataset": separable(n), "batch_size": 4} for name, n in (("a", 12), ("b", 20))}
        spec = {"type": "MultiLoader", "loaders": loaders, "mode": "weighted", "weights": {"a": 1, "b": 2}}
        runner = runner_of(train_dataloader=spec, train_cfg={"max_epochs": 2})
        if find:
            runner.find_lr(iters=13)
        runner.train()
        return weights(runner.model)

    found, truth = run(True), run(False)
    assert all(torch.equal(found[name], truth[name]) for name in truth)


# What it leaves alone -------------------------------------------------------------------------------------


def test_no_hook_is_called_and_no_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(HookList, "call", lambda self, runner, point, details: called.append(point))
    runner_of(
        work_dir=tmp_path / "run",
        default_hooks={},
        loggers=["console", "jsonl", "csv"],
        custom_hooks=[Hook()],
    ).find_lr(iters=10)
    assert called == [] and list(tmp_path.iterdir()) == []


def test_losses_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from stratrun.runner import range_steps

    reads: list[int] = []
    real = range_steps._Steps.read
    monkeypatch.setattr(range_steps._Steps, "read", lambda self: reads.append(1) or real(self))
    runner_of().find_lr(1e-7, 1e-3, 30)
    assert len(reads) == 4


def test_it_begins_with_the_weights_that_training_begins_with(tmp_path: Path) -> None:
    first = runner_of(work_dir=tmp_path / "run", default_hooks={})
    first.train()
    first.close()
    goes_on = first.find_lr(iters=10).losses[0]
    path = first.last_checkpoint
    loaded = runner_of(model=Plain(), load_from=path)
    before = weights(Plain())
    assert loaded.find_lr(iters=10).losses[0] < 0.9 * runner_of().find_lr(iters=10).losses[0]
    assert all(torch.equal(before[name], value) for name, value in weights(loaded.model).items())
    assert loaded.load_report is None and not loaded.has_weights
    again = runner_of(work_dir=tmp_path / "run", resume=True, default_hooks={})
    assert again.find_lr(iters=10).losses[0] == pytest.approx(loaded.find_lr(iters=10).losses[0])
    assert goes_on < runner_of().find_lr(iters=10).losses[0]
    again.close()


def test_what_a_checkpoint_had_for_the_optimizer_is_gone_after_it(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "work_dir": tmp_path / "run",
        "default_hooks": {},
        "optimizer": {"type": "AdamW", "lr": 0.1},
        "param_scheduler": {"type": "StepLR", "step_size": 1},
    }
    first = runner_of(**options)
    first.train()
    first.close()
    runner = runner_of(**options, resume=True)
    runner.find_lr(iters=10)
    optimizer = runner.engine.optimizers["optimizer"]
    assert not optimizer.state and optimizer.param_groups[0]["lr"] == 0.1
    assert runner.schedules[0].scheduler.optimizer.param_groups[0] is optimizer.param_groups[0]
    runner.close()


def test_it_cannot_be_done_within_a_job() -> None:
    class Asks(Hook):
        def before_train(self, runner: Any) -> None:
            runner.find_lr()

    with pytest.raises(ConfigError, match=r"cannot be done within train\(\)"):
        runner_of(custom_hooks=[Asks()]).train()
