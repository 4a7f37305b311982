"""MMEngine's README example by MMEngine and by stratrun: `python benchmarks/mmengine_parity.py`.

The same classes, but for what they derive from, see the same batches from the same first weights: a small
network in the place of ResNet-50, and drawn images in the place of CIFAR-10. Shown is how far the loss
curves, the accuracies and the weights are apart at most. Exits with 1 where that is more than rounding.
"""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, Sampler, TensorDataset

TOLERANCE = 1e-5
SAMPLES, BATCH, EPOCHS, CLASSES = 200, 32, 5, 10
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD with momentum": {"type": SGD, "lr": 0.05, "momentum": 0.9},
    "AdamW": {"type": AdamW, "lr": 2e-3, "weight_decay": 0.05},
}


class Shuffled(Sampler[int]):
    """An order of its own for each epoch, which either framework tells it by `set_epoch`."""

    def __init__(self, count: int) -> None:
        self.count, self.epoch = count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        drawn = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(self.count, generator=drawn).tolist())

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def model_of(base: Any) -> Any:
    class MMResNet50(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.resnet = nn.Sequential(
                # Ahead of batch normalization a bias has no gradient but rounding, which AdamW makes much of.
                nn.Conv2d(3, 8, 3, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(8 * 36, CLASSES),
            )

        def forward(self, imgs: Tensor, labels: Tensor, mode: str) -> Any:
            x = self.resnet(imgs)
            if mode == "loss":
                return {"loss": functional.cross_entropy(x, labels)}
            return x, labels

    torch.manual_seed(0)
    return MMResNet50()


def metric_of(base: Any) -> Any:
    class Accuracy(base):  # type: ignore[misc]
        def process(self, data_batch: Any, data_samples: Any) -> None:
            score, gt = data_samples
            self.results.append({"batch_size": len(gt), "correct": (score.argmax(dim=1) == gt).sum().cpu()})

        def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
            total_correct = sum(item["correct"] for item in results)
            total_size = sum(item["batch_size"] for item in results)
            return {"accuracy": 100 * total_correct / total_size}

    return Accuracy


def curve_of(base: Any) -> Any:
    class Curve(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.losses: list[float] = []
            self.accuracies: list[float] = []

        def after_train_iter(
            self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
        ) -> None:
            self.losses.append(float(outputs["loss"].detach()))

        def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
            self.accuracies.append(float(metrics["accuracy"]))

    return Curve()


def loaders() -> dict[str, Any]:
    drawn = torch.Generator().manual_seed(1)
    images = torch.randn(SAMPLES, 3, 8, 8, generator=drawn)
    data = TensorDataset(images, images.mean((2, 3)).argmax(1) + 3 * (images.amax((1, 2, 3)) > 3))
    return {
        "train_dataloader": DataLoader(data, batch_size=BATCH, sampler=Shuffled(SAMPLES)),
        "val_dataloader": DataLoader(data, batch_size=BATCH, shuffle=False),
    }


def by_mmengine(optimizer: dict[str, Any], folder: str) -> tuple[Any, dict[str, Tensor]]:
    hooks, model = import_module("mmengine.hooks"), import_module("mmengine.model")
    runners, evaluator = import_module("mmengine.runner"), import_module("mmengine.evaluator")
    curve, built = curve_of(hooks.Hook), model_of(model.BaseModel)
    runner = runners.Runner(
        model=built,
        work_dir=folder,
        optim_wrapper={"optimizer": dict(optimizer)},
        train_cfg={"by_epoch": True, "max_epochs": EPOCHS, "val_interval": 1},
        val_cfg={},
        val_evaluator={"type": metric_of(evaluator.BaseMetric)},
        custom_hooks=[curve],
        default_hooks={"checkpoint": None},
        log_level="ERROR",
        experiment_name=uuid4().hex,  # instances are kept by name
        **loaders(),
    )
    runner.train()
    return curve, built.state_dict()


def by_stratrun(optimizer: dict[str, Any], folder: str) -> tuple[Any, dict[str, Tensor]]:
    from stratrun import Runner
    from stratrun_ext.migrate.mmengine import BaseMetric, BaseModel, Hook

    curve, built = curve_of(Hook), model_of(BaseModel)
    runner = Runner(
        model=built,
        work_dir=folder,
        optimizer=optimizer,
        train_cfg={"by_epoch": True, "max_epochs": EPOCHS, "val_interval": 1},
        val_cfg={},
        val_evaluator={"type": metric_of(BaseMetric)},
        custom_hooks=[curve],
        accelerator="cpu",
        loggers=[],
        **loaders(),
    )
    runner.train()
    return curve, built.state_dict()


def apart(ours: list[float], theirs: list[float]) -> float:
    if len(ours) != len(theirs) or not ours:
        return float("inf")
    return max(abs(one - other) for one, other in zip(ours, theirs, strict=True))


def compared(name: str) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        theirs, their_weights = by_mmengine(OPTIMIZERS[name], f"{folder}/theirs")
        ours, our_weights = by_stratrun(OPTIMIZERS[name], f"{folder}/ours")
        logging.shutdown()
    weights = max(float((our_weights[key] - value).abs().max()) for key, value in their_weights.items())
    return {
        "optimizer": name,
        "steps": len(ours.losses),
        "first": theirs.losses[0],
        "last": theirs.losses[-1],
        "loss": apart(ours.losses, theirs.losses),
        "accuracy": apart(ours.accuracies, theirs.accuracies),
        "weights": weights,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = [compared(name) for name in OPTIMIZERS]
    print("| MMEngine's README example | steps | loss | loss apart | accuracy apart | weights apart |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        figures = " | ".join(f"{row[key]:.1e}" for key in ("loss", "accuracy", "weights"))
        print(
            f"| {row['optimizer']} | {row['steps']} | {row['first']:.4f} to {row['last']:.4f} | {figures} |"
        )
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))
    return int(max(max(row["loss"], row["accuracy"], row["weights"]) for row in rows) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
