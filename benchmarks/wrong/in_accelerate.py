"""In Accelerate, whose users write the loop."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from wrong.pieces import loader, loss_of, model, samples


def train(
    folder: Path,
    net: Any = None,
    data: Any = None,
    then: Any = loss_of,
    *,
    limit: float | None = None,
    load: Any = None,
    **options: Any,
) -> Accelerator:
    accelerator = Accelerator(**{"cpu": True, "project_dir": str(folder), **options})
    net = model() if net is None else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net, optimizer, feed = accelerator.prepare(net, optimizer, loader() if data is None else data)
    if load is not None:
        accelerator.load_state(str(load))
    for _ in range(2):
        for points, labels in feed:
            with accelerator.accumulate(net):
                accelerator.backward(then(net(points), labels))
                if limit is not None:
                    accelerator.clip_grad_norm_(net.parameters(), limit)
                optimizer.step()
                optimizer.zero_grad()
    return accelerator


def right(folder: Path) -> None:
    train(folder)


def precision_typo(folder: Path) -> None:
    train(folder, mixed_precision="fp17")


def accumulate_zero(folder: Path) -> None:
    train(folder, gradient_accumulation_steps=0)


def empty_loader(folder: Path) -> None:
    train(folder, data=DataLoader([], batch_size=4))  # type: ignore[arg-type]


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


def no_checkpoint(folder: Path) -> None:
    train(folder, load=folder / "nowhere")


def cut_checkpoint(folder: Path) -> None:
    train(folder).save_state(str(folder / "state"))
    largest = folder / "state" / "model.safetensors"
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    train(folder, load=folder / "state")


def other_checkpoint(folder: Path) -> None:
    train(folder, net=nn.Sequential(model())).save_state(str(folder / "state"))
    train(folder, load=folder / "state")


def clip_negative(folder: Path) -> None:
    train(folder, limit=-1.0)
