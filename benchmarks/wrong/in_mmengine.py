"""In MMEngine."""

import logging
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

from wrong.pieces import loader, loss_of, model, samples


class Net(BaseModel):
    """Without a mistake; each case changes one thing."""

    def __init__(self, then: Any = loss_of, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.then = net or model(), then

    def forward(self, points: Tensor, labels: Tensor, mode: str = "tensor") -> Any:
        outputs = self.net(points)
        if mode == "loss":
            return {"loss": self.then(outputs, labels)}
        return outputs, labels


class Right(BaseMetric):
    """The share of right answers."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        outputs, labels = data_samples
        self.results.append((outputs.argmax(1) == labels).float().mean().item())

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        return {"accuracy": sum(results) / len(results)}


def train(folder: Path, **changes: Any) -> Runner:
    given: dict[str, Any] = dict(
        model=Net(),
        work_dir=str(folder / "work"),
        train_dataloader=loader(),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        log_level=logging.WARNING,
    )
    runner = Runner(**{**given, **changes})
    runner.train()
    return runner


def validated(**changes: Any) -> dict[str, Any]:
    return {"val_dataloader": loader(), "val_cfg": {}, "val_evaluator": [Right()], **changes}


def right(folder: Path) -> None:
    train(folder, **validated())


def hook_typo(folder: Path) -> None:
    train(folder, custom_hooks=[dict(type="EarlyStopingHook", monitor="accuracy")], **validated())


def hook_point_typo(folder: Path) -> None:
    class Mine(Hook):
        def after_train_epochh(self, runner: Any) -> None: ...

    train(folder, custom_hooks=[Mine()])


def optimizer_typo(folder: Path) -> None:
    train(folder, optim_wrapper=dict(optimizer=dict(type="AdmaW", lr=0.1)))


def optimizer_argument(folder: Path) -> None:
    train(folder, optim_wrapper=dict(optimizer=dict(type="SGD", lrr=0.1)))


def length_typo(folder: Path) -> None:
    train(folder, train_cfg=dict(by_epoch=True, max_epoch=2))


def length_negative(folder: Path) -> None:
    train(folder, train_cfg=dict(by_epoch=True, max_epochs=-5))


def accumulate_zero(folder: Path) -> None:
    train(folder, optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1), accumulative_counts=0))


def override_typo(folder: Path) -> None:
    config = Config(dict(optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1))))
    config.merge_from_dict({"optim_wraper.optimizer.lr": 1.0})
    train(folder, optim_wrapper=config.optim_wrapper)


def quoted_number(folder: Path) -> None:
    (folder / "run.yaml").write_text("optim_wrapper:\n  optimizer: {type: SGD, lr: 1e-3}\n")
    train(folder, optim_wrapper=Config.fromfile(folder / "run.yaml").optim_wrapper)


def no_val_data(folder: Path) -> None:
    train(folder, val_evaluator=[Right()])


def monitor_typo(folder: Path) -> None:
    train(
        folder, default_hooks=dict(checkpoint=dict(type="CheckpointHook", save_best="acuracy")), **validated()
    )


def empty_loader(folder: Path) -> None:
    train(folder, train_dataloader=dict(dataset=[], sampler=dict(type="DefaultSampler"), batch_size=4))


def none_loss(folder: Path) -> None:
    train(folder, model=Net(lambda outputs, labels: None))


def vector_loss(folder: Path) -> None:
    train(folder, model=Net(lambda outputs, labels: loss_of(outputs, labels, "none")))


def nan_loss(folder: Path) -> None:
    train(folder, model=Net(lambda outputs, labels: loss_of(outputs, labels) * float("nan")))


def shape_mismatch(folder: Path) -> None:
    train(folder, model=Net(net=model(5)))


def label_range(folder: Path) -> None:
    train(folder, train_dataloader=loader(samples(labels=4)))


def no_checkpoint(folder: Path) -> None:
    train(folder, load_from=str(folder / "nowhere.pth"))


def cut_checkpoint(folder: Path) -> None:
    train(folder)
    path = folder / "work" / "epoch_2.pth"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    train(folder, load_from=str(path), resume=True)


def other_checkpoint(folder: Path) -> None:
    torch.save(nn.Sequential(model()).state_dict(), folder / "other.pth")
    train(folder, load_from=str(folder / "other.pth"))


def no_launcher(folder: Path) -> None:
    train(folder, launcher="pytorch")


def plateau_alone(folder: Path) -> None:
    train(folder, param_scheduler=dict(type="ReduceOnPlateauLR"), **validated())


def clip_negative(folder: Path) -> None:
    train(folder, optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1), clip_grad=dict(max_norm=-1)))


def interval_zero(folder: Path) -> None:
    train(folder, **validated(train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=0)))
