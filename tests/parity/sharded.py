"""A model of blocks, for tests of strategies that spread it over ranks, and plain loops that train it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import Runner
from tests.problems import CLASSES, FEATURES, points, trained

WIDTH = 6
EPOCHS = 2
SAMPLES = 45
"""In batches of 4, three to an update: 4 updates an epoch, of which the last batch has one sample."""
CLIP = 0.05
OPTIMIZER: dict[str, Any] = {"type": "AdamW", "lr": 0.02, "weight_decay": 0.1}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 7), nn.Linear(7, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Net(nn.Module):
    """Parameters in blocks, outside of them, in the model itself, and one that is a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(FEATURES, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.bias = nn.Parameter(torch.full((CLASSES,), 0.1))
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.scale * self.head(x) + self.bias


def net(kind: type[nn.Module] = Net, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()


def windows(samples: int, batch: int, accumulate: int) -> list[list[slice]]:
    """Batches in the order of the data set, `accumulate` to an update, the last ones short."""
    batches = [slice(start, min(start + batch, samples)) for start in range(0, samples, batch)]
    return [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]


def plain(
    model: nn.Module,
    samples: int = SAMPLES,
    max_norm: float | None = CLIP,
    norm_type: float = 2.0,
    value: float | None = None,
) -> dict[str, Tensor]:
    """One process, which takes whole batches."""
    inputs, targets = points(samples).tensors
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    for _ in range(EPOCHS):
        for window in windows(samples, 4, 3):
            for part in window:
                (cross_entropy(model(inputs[part]), targets[part]) / len(window)).backward()
            if value is not None:
                nn.utils.clip_grad_value_(model.parameters(), value)
            if max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm, norm_type)
            optimizer.step()
            optimizer.zero_grad()
    return whole(model)


def whole(module: nn.Module) -> dict[str, Tensor]:
    """A state dict of plain tensors, however they are spread."""
    return {name: gathered(value) for name, value in module.state_dict().items()}


def gathered(value: Tensor) -> Tensor:
    value = value.detach()
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()


def with_runner(strategy: Any, work_dir: str, model: Any = None, **options: Any) -> Runner:
    return trained(
        net() if model is None else model,
        **{
            "loss": "cross_entropy",
            "train_dataloader": {"dataset": points(SAMPLES), "global_batch_size": 4, "shuffle": False},
            "train_cfg": {"max_epochs": EPOCHS, "accumulate": 3},
            "optimizer": OPTIMIZER,
            "clip_grad": CLIP,
            "strategy": strategy,
            "work_dir": work_dir,
            **options,
        },
    )


def each(cases: Iterable[Any], work_dir: str) -> list[dict[str, Tensor]]:
    """Weights that the strategies reach."""
    return [whole(with_runner(case, work_dir).model) for case in cases]


def assert_near(found: dict[str, Tensor], truth: dict[str, Tensor], relative: float = 1e-6) -> None:
    """Relative to the length of each tensor."""
    assert found.keys() == truth.keys()
    for name, expected in truth.items():
        expected = expected.double()
        away = float((found[name].double() - expected).norm() / expected.norm().clamp_min(1e-12))
        assert away <= relative, f"{name} is {away:.1e} away"


Builder = Callable[[], nn.Module]
