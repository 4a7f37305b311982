"""In Ignite, whose users write the step."""

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver, ModelCheckpoint
from torch import nn

from wrong.pieces import loader, loss_of, model, samples


def train(
    folder: Path, net: Any = None, data: Any = None, then: Any = loss_of, *, epochs: int = 2, **options: Any
) -> Engine:
    net = model() if net is None else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trainer = create_supervised_trainer(net, optimizer, then, **options)
    trainer.run(loader() if data is None else data, max_epochs=epochs)
    return trainer


def right(folder: Path) -> None:
    train(folder)


def device_typo(folder: Path) -> None:
    train(folder, device="cdua")


def device_absent(folder: Path) -> None:
    train(folder, device="cuda")


def precision_typo(folder: Path) -> None:
    train(folder, amp_mode="fp17")


def hook_point_typo(folder: Path) -> None:
    trainer = Engine(lambda engine, batch: None)
    trainer.on("on_train_epoch_ends")(lambda: None)
    trainer.run([1], max_epochs=1)


def length_typo(folder: Path) -> None:
    Engine(lambda engine, batch: None).run([1], max_epoch=2)


def length_negative(folder: Path) -> None:
    train(folder, epochs=-5)


def accumulate_zero(folder: Path) -> None:
    train(folder, gradient_accumulation_steps=0)


def monitor_typo(folder: Path) -> None:
    saver = ModelCheckpoint(folder / "kept", score_name="val_los", n_saved=1)
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.metrics = {"val_loss": 1.0}
    evaluator.add_event_handler(Events.COMPLETED, saver, {"model": model()})
    evaluator.run([1])


def empty_loader(folder: Path) -> None:
    train(folder, data=[])


def spent_iterator(folder: Path) -> None:
    train(folder, data=iter(list(loader())))


def none_loss(folder: Path) -> None:
    train(folder, then=lambda outputs, labels: None)


def vector_loss(folder: Path) -> None:
    train(folder, then=lambda outputs, labels: loss_of(outputs, labels, "none"))


def nan_loss(folder: Path) -> None:
    train(folder, then=lambda outputs, labels: loss_of(outputs, labels) * float("nan"))


def shape_mismatch(folder: Path) -> None:
    train(folder, net=model(5))


def label_range(folder: Path) -> None:
    train(folder, data=loader(samples(labels=4)))


def _saved(folder: Path, net: nn.Module) -> Path:
    saver = Checkpoint({"model": net}, DiskSaver(str(folder / "kept"), create_dir=True), n_saved=1)
    trainer = Engine(lambda engine, batch: None)
    trainer.add_event_handler(Events.COMPLETED, saver)
    trainer.run([1])
    return next((folder / "kept").glob("*.pt"))


def no_checkpoint(folder: Path) -> None:
    Checkpoint.load_objects({"model": model()}, folder / "nowhere.pt")


def cut_checkpoint(folder: Path) -> None:
    path = _saved(folder, model())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    Checkpoint.load_objects({"model": model()}, path)


def other_checkpoint(folder: Path) -> None:
    Checkpoint.load_objects({"model": model()}, _saved(folder, nn.Sequential(model())))
