"""In Lightning."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from wrong.pieces import loader, loss_of, model, samples


class Lit(L.LightningModule):
    """Without a mistake; each case changes one thing."""

    def __init__(self, then: Callable[..., Any] = loss_of, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.then = net or model(), then

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.then(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Validated(Lit):
    """Validates too."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", loss_of(self.net(batch[0]), batch[1]))


def fit(
    folder: Path, module: Any = None, train: Any = None, val: Any = None, ckpt: Any = None, **options: Any
) -> L.Trainer:
    given: dict[str, Any] = dict(
        max_epochs=2,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Of how many workers a loader has, which is no mistake here.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    trainer = L.Trainer(**{**given, **options})
    trainer.fit(module or Lit(), loader() if train is None else train, val, ckpt_path=ckpt)
    return trainer


def right(folder: Path) -> None:
    fit(folder, Validated(), val=loader())


def device_typo(folder: Path) -> None:
    fit(folder, accelerator="cdua")


def device_absent(folder: Path) -> None:
    fit(folder, accelerator="cuda")


def strategy_typo(folder: Path) -> None:
    fit(folder, strategy="dpp")


def precision_typo(folder: Path) -> None:
    fit(folder, precision="fp17")


def hook_typo(folder: Path) -> None:
    fit(folder, callbacks=["EarlyStoping"])


def hook_point_typo(folder: Path) -> None:
    class Mine(L.Callback):
        def on_train_epoch_ends(self, trainer: Any, module: Any) -> None: ...

    fit(folder, callbacks=[Mine()])


def optimizer_argument(folder: Path) -> None:
    class Mine(Lit):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lrr=0.1)  # type: ignore[call-arg]

    fit(folder, Mine())


def optimizer_of_other(folder: Path) -> None:
    class Mine(Lit):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(model().parameters(), lr=0.1)

    fit(folder, Mine())


def length_typo(folder: Path) -> None:
    fit(folder, max_epoch=2)


def length_negative(folder: Path) -> None:
    fit(folder, max_epochs=-5)


def accumulate_zero(folder: Path) -> None:
    fit(folder, accumulate_grad_batches=0)


def no_val_data(folder: Path) -> None:
    fit(folder, Validated())


def monitor_typo(folder: Path) -> None:
    fit(folder, Validated(), val=loader(), callbacks=[ModelCheckpoint(folder, monitor="val_los")])


def empty_loader(folder: Path) -> None:
    fit(folder, train=[])


def spent_iterator(folder: Path) -> None:
    fit(folder, train=iter(list(loader())))


def none_loss(folder: Path) -> None:
    fit(folder, Lit(lambda outputs, targets: None))


def vector_loss(folder: Path) -> None:
    fit(folder, Lit(lambda outputs, targets: loss_of(outputs, targets, "none")))


def nan_loss(folder: Path) -> None:
    fit(folder, Lit(lambda outputs, targets: loss_of(outputs, targets) * float("nan")))


def shape_mismatch(folder: Path) -> None:
    fit(folder, Lit(net=model(5)))


def label_range(folder: Path) -> None:
    fit(folder, train=DataLoader(samples(labels=4), batch_size=4))


def no_checkpoint(folder: Path) -> None:
    fit(folder, ckpt="nowhere/last.ckpt")


def cut_checkpoint(folder: Path) -> None:
    fit(folder).save_checkpoint(folder / "a.ckpt")
    whole = (folder / "a.ckpt").read_bytes()
    (folder / "a.ckpt").write_bytes(whole[: len(whole) // 2])
    fit(folder, ckpt=folder / "a.ckpt", max_epochs=3)


def other_checkpoint(folder: Path) -> None:
    fit(folder, Lit(net=nn.Sequential(model()))).save_checkpoint(folder / "a.ckpt")
    fit(folder, ckpt=folder / "a.ckpt", max_epochs=3)


def plateau_alone(folder: Path) -> None:
    class Mine(Validated):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)]

    fit(folder, Mine(), val=loader())


def clip_negative(folder: Path) -> None:
    fit(folder, gradient_clip_val=-1)


def interval_zero(folder: Path) -> None:
    fit(folder, Validated(), val=loader(), check_val_every_n_epoch=0, callbacks=[EarlyStopping("val_loss")])
