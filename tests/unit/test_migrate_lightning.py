"""A class in Lightning's form trains as a plain loop does, and as Lightning does, under every strategy."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from stratrun.hooks import Hook
from stratrun_ext.migrate import lightning as ours
from stratrun_ext.migrate.lightning import LightningModule, runner_for
from tests.lightning_shapes import BASES, BATCH, EPOCHS, data, loaders, schedules, shaped, trained
from tests.ranks import Ranks

PER_EPOCH = 6


def plain(schedule: str) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """The losses, the learning rates and the weights of a loop written out."""
    model = shaped(nn.Module)("").net
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    moved = schedules(optimizer, schedule)
    curve, rates = [], []
    for epoch in range(EPOCHS):
        for idx, (x, y) in enumerate(DataLoader(data(), BATCH)):
            loss = F.cross_entropy(model(x), y)
            curve.append(loss.item())
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for one in moved:
                if one.get("interval") == "step" and (idx + 1) % one.get("frequency", 1) == 0:
                    one["scheduler"].step()
        for one in moved:
            if one.get("interval", "epoch") == "epoch" and (epoch + 1) % one.get("frequency", 1) == 0:
                follows = [validated(model)] if "monitor" in one else []
                one["scheduler"].step(*follows)
    return curve, rates, {f"net.{name}": value.clone() for name, value in model.state_dict().items()}


def validated(model: nn.Module) -> float:
    x, y = data(21, 1).tensors
    with torch.no_grad():
        return float(F.cross_entropy(model(x), y))


def weights(module: Any) -> dict[str, Tensor]:
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        for name, value in module.state_dict().items()
    }


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("schedule", ["step", "epoch", "plateau", "two"])
def test_a_class_trains_as_a_plain_loop_does(base: str, schedule: str, tmp_path: Path) -> None:
    curve, rates, truth = plain(schedule)
    module, runner = trained(str(tmp_path), base, schedule)
    assert module.curve == curve
    assert module.rates == pytest.approx(rates)
    torch.testing.assert_close(weights(module), truth, rtol=0, atol=0)
    assert runner.metrics["val_loss"] == pytest.approx(validated(module.net), abs=1e-6)


def test_hooks_are_called_in_lightnings_order(tmp_path: Path) -> None:
    module, _ = trained(str(tmp_path), "ours")
    names = [point if isinstance(point, str) else point[0] for point in module.points]
    assert names[0] == "on_train_start" and names[-1] == "on_train_end"
    epoch = ["on_train_epoch_start", *["train"] * PER_EPOCH, *["val"] * 5]
    epoch += ["on_validation_epoch_end", "on_train_epoch_end"]
    assert names[1:-1] == epoch * EPOCHS
    assert module.points[1 + len(epoch)] == ("on_train_epoch_start", 1)
    assert module.points[len(epoch)] == ("on_train_epoch_end", 0, PER_EPOCH)


def test_training_values_are_logged_as_on_step_and_on_epoch_say(tmp_path: Path) -> None:
    options: Any = {"default_hooks": {"logger": {"interval": 2}}}
    _, runner = trained(str(tmp_path), "ours", **options)
    (log,) = tmp_path.rglob("*.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [row for row in rows if "train_loss" in str(row)]
    epochs = [row for row in rows if "train_mean" in str(row)]
    assert len(steps) == EPOCHS * PER_EPOCH // 2 and len(epochs) == EPOCHS
    assert not any("train_loss_epoch" in str(row) or "train_mean_epoch" in str(row) for row in rows)
    assert runner.metrics["last_val_loss"] > 0


def test_testing_and_prediction_go_by_the_methods_of_the_class(tmp_path: Path) -> None:
    from stratrun_ext.migrate.lightning import Trainer

    module = shaped(nn.Module)("")
    trainer = Trainer(max_epochs=1, accelerator="cpu", loggers=[], default_root_dir=tmp_path)
    trainer.fit(module, *loaders())
    (found,) = trainer.test(module, DataLoader(data(21, 1), 4))
    assert found == {"test_loss": pytest.approx(validated(module.net), abs=1e-6)}
    rows = trainer.predict(module, DataLoader(data(21, 1), 4))
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(rows), module.net(data(21, 1).tensors[0]).softmax(1))


# -- ranks and resuming


class StopAt(Hook):
    """Ends the run after an iteration, with a checkpoint of it."""

    priority = 100

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.request("stop", agreed=True)


def on_ranks(work_dir: str, **options: Any) -> tuple[dict[str, Tensor], list[float], dict[str, float], Any]:
    module, runner = trained(work_dir, ready=False, **options)
    return weights(module), module.rates, dict(runner.metrics), module.points


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("schedule", ["step", "plateau"])
def test_two_ranks_reach_the_weights_of_a_plain_loop(
    strategy: str, schedule: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    _, rates, truth = plain(schedule)
    found = two_ranks(on_ranks, str(tmp_path), strategy=strategy, schedule=schedule)
    for own, moved, metrics, _ in found:
        torch.testing.assert_close(own, truth, rtol=1e-4, atol=1e-5)
        assert moved == pytest.approx(rates)
        assert metrics["val_loss"] == pytest.approx(found[0][2]["val_loss"])
    model = shaped(nn.Module)("").net
    model.load_state_dict({name.removeprefix("net."): value for name, value in found[0][0].items()})
    assert found[0][2]["val_loss"] == pytest.approx(validated(model), abs=1e-6)


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
@pytest.mark.parametrize(("schedule", "at"), [("two", 8), ("plateau", 6), ("train plateau", 9)])
def test_a_stopped_run_goes_on_to_the_bit(
    strategy: str, schedule: str, at: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    def do(folder: str, **more: Any) -> Any:
        run = on_ranks if strategy == "single" else lambda *a, **k: two_ranks(on_ranks, *a, **k)[0]
        return run(str(tmp_path / folder), strategy=strategy, schedule=schedule, **more)

    truth = do("whole")
    before = do("broken", custom_hooks=[StopAt(at)])
    after = do("broken", resume=True)
    torch.testing.assert_close(after[0], truth[0], rtol=0, atol=0)
    assert before[1] + after[1] == truth[1]
    assert after[2] == truth[2]
    ends = [point for point in before[3] + after[3] if point[0] == "on_train_epoch_end"]
    assert ends == [point for point in truth[3] if point[0] == "on_train_epoch_end"]


# -- the real package


@pytest.mark.filterwarnings("ignore")  # of Lightning, about torch
@pytest.mark.parametrize("schedule", ["", "step", "epoch", "plateau", "train plateau", "two"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_itself_gives_the_same_losses_and_calls(
    schedule: str, accumulate: int, tmp_path: Path
) -> None:
    lightning = pytest.importorskip("lightning")
    theirs = shaped(lightning.LightningModule)(schedule)
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        num_sanity_val_steps=0,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=0.5,
        **quiet,
    )
    trainer.fit(theirs, *loaders())
    for number, base in enumerate((lightning.LightningModule, *BASES)):
        options: Any = {"clip_grad": {"max_norm": 0.5}, "train_cfg": {"accumulate": accumulate}}
        module, runner = trained(str(tmp_path / str(number)), base, schedule, **options)
        assert (module.curve, module.rates, module.points) == (theirs.curve, theirs.rates, theirs.points)
        for name, value in runner.metrics.items():
            assert value == pytest.approx(float(trainer.callback_metrics[name]), abs=1e-6)


# -- metrics as objects


def measured(work_dir: str, strategy: str) -> tuple[dict[str, float], float]:
    """What validation gives for a metric that was logged as an object, and its true value."""
    from torchmetrics.classification import MulticlassAccuracy

    class Measured(shaped(LightningModule)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__("")
            self.accuracy = MulticlassAccuracy(2, average="micro")

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.accuracy(self.net(batch[0]), batch[1])
            self.log("accuracy", self.accuracy)
            self.losses.append(torch.zeros(()))

    module = Measured()
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "loggers": [],
        "work_dir": work_dir,
        "strategy": strategy,
    }
    runner = runner_for(module, *loaders(ready=False), max_epochs=2, **options)
    runner.train()
    runner.close()
    x, y = data(21, 1).tensors
    with torch.no_grad():
        return dict(runner.metrics), (module.net(x).argmax(1) == y).float().mean().item()


@pytest.mark.parametrize("strategy", ["single", "ddp"])
def test_a_metric_logged_as_an_object_is_computed_over_all_ranks(
    strategy: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    run = (lambda *a: [measured(*a)]) if strategy == "single" else (lambda *a: two_ranks(measured, *a))
    for metrics, truth in run(str(tmp_path), strategy):
        assert metrics["accuracy"] == pytest.approx(truth)


def test_a_trainer_has_what_training_logged_beside_the_results(tmp_path: Path) -> None:
    trainer = ours.Trainer(max_epochs=1, accelerator="cpu", loggers=[], default_root_dir=tmp_path)
    trainer.fit(shaped(ours.LightningModule)(""), *loaders())
    assert {"train_mean", "val_loss", "acc"} <= set(trainer.callback_metrics)
