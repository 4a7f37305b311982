"""PyTorch Lightning."""

import logging
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from peers.task import CLASSES, LEARNING_RATE, LOG_EVERY, Batch, Task, Variant, world_size

# What it says of the machine and of its options, past whoever redirects the output.
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Loader:
    """Batches that are ready: a list would be taken for several loaders."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Module(pl.LightningModule):
    def __init__(self, task: Task, *, logs: bool) -> None:
        super().__init__()
        self.net = task.model
        self.logs = logs
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")
        self.result = 0.0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = functional.cross_entropy(self.net(inputs), targets)
        if self.logs:
            self.log("loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, targets = batch
        self.accuracy.update(self.net(inputs), targets)
        if self.logs:
            self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)

    def on_test_epoch_end(self) -> None:
        self.result = float(self.accuracy.compute())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=LEARNING_RATE)


def _trainer(task: Task, **options: Any) -> Any:
    barebones = options.get("barebones", False)
    # No checkpoints for anyone: they are measured elsewhere.
    off = {} if barebones else {"enable_checkpointing": False, "enable_model_summary": False}
    return pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=world_size(),
        strategy="ddp" if world_size() > 1 else "auto",
        default_root_dir=task.folder,
        log_every_n_steps=None if barebones else LOG_EVERY,
        **off,
        **options,
    )


def train(task: Task) -> None:
    _trainer(task, barebones=True).fit(Module(task, logs=False), Loader(task.batches))


def train_and_log_to_csv(task: Task) -> None:
    trainer = _trainer(task, logger=CSVLogger(task.folder), enable_progress_bar=False)
    trainer.fit(Module(task, logs=True), Loader(task.batches))


def train_and_log(task: Task) -> None:
    trainer = _trainer(task, logger=TensorBoardLogger(task.folder))
    trainer.fit(Module(task, logs=True), Loader(task.batches))


def evaluate(task: Task) -> float:
    module = Module(task, logs=False)
    _trainer(task, barebones=True).test(module, Loader(task.batches))
    return module.result


def evaluate_and_log(task: Task) -> float:
    module = Module(task, logs=True)
    _trainer(task, logger=CSVLogger(task.folder), enable_progress_bar=False).test(
        module, Loader(task.batches)
    )
    return module.result


VARIANTS = (
    Variant("Lightning, barebones", "train", False, train),
    Variant("Lightning, CSV without a bar", "train", True, train_and_log_to_csv),
    Variant("Lightning, bar + TensorBoard", "train", True, train_and_log),
    Variant("Lightning, barebones, torchmetrics", "evaluate", False, evaluate),
    Variant("Lightning, self.log of torchmetrics", "evaluate", True, evaluate_and_log),
)
