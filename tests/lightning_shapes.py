"""A class in Lightning's form, over any base, and what tests train it with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from stratrun_ext.migrate import lightning as ours

SAMPLES, VAL_SAMPLES, BATCH, EPOCHS = 44, 21, 8, 3


def data(samples: int = SAMPLES, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=generator)
    return TensorDataset(x, (x.sum(1) > 0).long())


def schedules(optimizer: torch.optim.Optimizer, name: str) -> list[dict[str, Any]]:
    """Schedulers in their dicts, of one kind or another."""
    if "plateau" in name:
        follows = "train_mean" if name == "train plateau" else "val_loss"
        options: dict[str, Any] = dict(factor=0.1, patience=0, threshold=10.0, threshold_mode="abs")
        return [dict(scheduler=ReduceLROnPlateau(optimizer, **options), monitor=follows)]
    if name == "epoch":
        return [dict(scheduler=ExponentialLR(optimizer, 0.5), interval="epoch")]
    warm = LinearLR(optimizer, 0.1, total_iters=4)
    if name == "step":
        return [dict(scheduler=warm, interval="step", frequency=2)]
    return [dict(scheduler=warm, interval="step"), dict(scheduler=ExponentialLR(optimizer, 0.5), frequency=2)]


class Steps:
    """What a class in Lightning's form consists of, but for its base."""

    log: Any
    log_dict: Any
    optimizers: Any
    parameters: Any
    current_epoch: int
    global_step: int

    def begin(self, schedule: str) -> None:
        self.schedule = schedule
        generator = torch.random.get_rng_state()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
        torch.random.set_rng_state(generator)
        self.curve: list[float] = []
        self.rates: list[float] = []
        self.points: list[Any] = []
        self.losses: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        self.log("train_mean", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(x))
        self.curve.append(loss.item())
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        self.points.append(("train", self.current_epoch, batch_idx, self.global_step))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out = self.net(x)
        values = {"val_loss": F.cross_entropy(out, y), "acc": (out.argmax(1) == y).float().mean()}
        self.log_dict(values, on_epoch=True, batch_size=len(x), sync_dist=True)
        self.losses.append(values["val_loss"])
        self.points.append(("val", self.current_epoch, batch_idx))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", F.cross_entropy(self.net(batch[0]), batch[1]), batch_size=len(batch[0]))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0]).softmax(1)  # type: ignore[no-any-return]

    def on_train_start(self) -> None:
        self.points.append("on_train_start")

    def on_train_epoch_start(self) -> None:
        self.points.append(("on_train_epoch_start", self.current_epoch))

    def on_train_epoch_end(self) -> None:
        self.points.append(("on_train_epoch_end", self.current_epoch, self.global_step))

    def on_validation_epoch_end(self) -> None:
        self.log("last_val_loss", self.losses[-1], sync_dist=True)
        self.points.append(("on_validation_epoch_end", self.current_epoch))

    def on_train_end(self) -> None:
        self.points.append("on_train_end")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        if not self.schedule:
            return optimizer
        return [optimizer], schedules(optimizer, self.schedule)


def shaped(base: type) -> Callable[..., Any]:
    """The same class over this base: Lightning's, ours, or `nn.Module` alone."""

    class Shaped(Steps, base):  # type: ignore[misc, valid-type]
        def __init__(self, schedule: str = "step") -> None:
            super().__init__()
            self.begin(schedule)

    return Shaped


BASES = {"ours": ours.LightningModule, "none": nn.Module}


def loaders(*, ready: bool = True) -> tuple[Any, Any]:
    """Training in the order of the data set, as the truth has it, and validation."""
    if ready:
        return DataLoader(data(), BATCH), DataLoader(data(VAL_SAMPLES, 1), 5)
    train = dict(dataset=data(), global_batch_size=BATCH, shuffle=False)
    return train, dict(dataset=data(VAL_SAMPLES, 1), batch_size=5)


def trained(work_dir: str, base: Any = "ours", schedule: str = "step", **options: Any) -> Any:
    """Train by our Runner. Returns the module and the runner."""
    module = shaped(BASES.get(base, base) if isinstance(base, str) else base)(schedule)
    feeds = loaders(ready=options.pop("ready", True))
    options = {
        "accelerator": "cpu",
        "loggers": ["jsonl"],
        "max_epochs": EPOCHS,
        "work_dir": work_dir,
        **options,
    }
    runner = ours.runner_for(module, *feeds, **options)
    runner.train()
    runner.close()
    return module, runner
