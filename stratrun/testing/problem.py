"""What the checks train: a small classifier, its data, and plain PyTorch loops that say what is right."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset, TensorDataset

FEATURES, WIDTH, CLASSES = 6, 8, 3


class Block(nn.Module):
    """A residual block: ``x + down(tanh(up(norm(x))))``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm: nn.LayerNorm = nn.LayerNorm(WIDTH)
        self.up: nn.Linear = nn.Linear(WIDTH, 2 * WIDTH)
        self.down: nn.Linear = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.tanh(self.up(self.norm(x))))
        return out


class Classifier(nn.Module):
    """The model of the checks: ``embed``, ``blocks.0``, ``blocks.1``, and ``head`` with a number of rows that
    ranks cannot share evenly.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed: nn.Linear = nn.Linear(FEATURES, WIDTH)
        self.blocks: nn.ModuleList = nn.ModuleList([Block(), Block()])
        self.head: nn.Linear = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(x)
        return scores


class Centered(Classifier):
    """The same with a buffer that tells of each rank's own samples, as those of a BatchNorm do."""

    center: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.center.lerp_(x.detach().mean(0).to(self.center.dtype), 0.1)
        return super().forward(x)


Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Recipe:
    """What is trained and how: read by the runs under test and by the plain loops alike.

    `batch` is the global batch. `samples` leave a last batch of one sample, which most ranks get none of.
    """

    batch: int = 8
    epochs: int = 2
    accumulate: int = 1
    max_norm: float | None = None
    norm_type: float = 2.0
    optimizer: str = "SGD"
    weighted: bool = False
    """Whether the model gives a weight with each loss."""
    stream: bool = False
    """Whether the data has no length, so that its end within a window comes as a surprise."""
    parts: bool = False
    """Whether the head has an optimizer of its own."""
    thaws: bool = False
    """Whether the first parameters are frozen in the first epoch."""

    @property
    def samples(self) -> int:
        return 3 * self.batch + 1

    def but(self, **changes: Any) -> Self:
        return replace(self, **changes)


def points(samples: int, seed: int = 0) -> TensorDataset:
    """Points and their classes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, FEATURES, generator=generator)
    return TensorDataset(inputs, torch.randint(CLASSES, (samples,), generator=generator))


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """The same points without a length."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = points(self.samples).tensors
        return iter(list(zip(inputs, targets, strict=True)))


def weighted_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """A training step whose samples count by their class, as tokens or pixels would."""
    inputs, targets = batch
    weights = (targets + 1).to(torch.float32)
    losses = cross_entropy(model(inputs), targets, reduction="none")
    return {"loss": (losses * weights).sum() / weights.sum(), "weight": weights.sum()}


def make_optimizer(kind: str, parameters: Any) -> torch.optim.Optimizer:
    if kind == "AdamW":
        return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def optimizer_spec(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """What `plain_loop` makes, as the argument of a Runner."""
    kinds: dict[str, dict[str, Any]] = {
        "AdamW": {"type": "AdamW", "lr": 0.01, "weight_decay": 0.1},
        "SGD": {"type": "SGD", "lr": 0.1, "momentum": 0.9},
    }
    if not recipe.parts:
        return kinds[recipe.optimizer]
    body, head = two_parts(model)
    return {"body": {**kinds["SGD"], "params": body}, "head": {**kinds["AdamW"], "params": head}}


def two_parts(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of all submodules that have parameters but the last, and of the last."""
    names = [name for name, _ in model.named_parameters(recurse=False)]
    names += [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    return names[:-1], names[-1:]


@dataclass
class Truth:
    """What a plain loop came to."""

    weights: dict[str, Tensor]
    norms: list[float]
    model: nn.Module


def plain_loop(recipe: Recipe, build: Build, dtype: torch.dtype = torch.float32) -> Truth:
    """One process, PyTorch alone: every rank count and every split must come to this."""
    model = build().to(dtype)
    inputs, targets = points(recipe.samples).tensors
    inputs = inputs.to(dtype)
    last = tuple(f"{name}." for name in two_parts(model)[1]) if recipe.parts else ()
    named = list(model.named_parameters())
    optimizers = [make_optimizer(recipe.optimizer, [p for n, p in named if not f"{n}.".startswith(last)])]
    if recipe.parts:
        optimizers.append(make_optimizer("AdamW", [p for n, p in named if f"{n}.".startswith(last)]))
    norms: list[float] = []
    for epoch in range(recipe.epochs):
        first(model).requires_grad_(not (recipe.thaws and epoch == 0))
        for window in windows(recipe):
            _backward(model, inputs, targets, window, recipe.weighted)
            for optimizer in optimizers:
                if recipe.max_norm is not None:
                    owned = [p for group in optimizer.param_groups for p in group["params"]]
                    norm = nn.utils.clip_grad_norm_(owned, recipe.max_norm, recipe.norm_type)
                    norms.append(float(norm))
                optimizer.step()
                optimizer.zero_grad()
    return Truth(weights_of(model), norms, model)


def windows(recipe: Recipe) -> list[list[slice]]:
    """The batches of an epoch, `accumulate` to an update; the last window and its last batch are short."""
    starts = range(0, recipe.samples, recipe.batch)
    batches = [slice(start, min(start + recipe.batch, recipe.samples)) for start in starts]
    return [batches[i : i + recipe.accumulate] for i in range(0, len(batches), recipe.accumulate)]


def first(model: nn.Module) -> nn.Parameter:
    """The parameter that `Recipe.thaws` freezes."""
    return next(model.parameters())


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The values of all parameters, whole, in host memory. Every rank must call it."""
    return {name: whole(p.detach()).to("cpu", copy=True) for name, p in model.named_parameters()}


def whole(value: Any) -> Tensor:
    """A tensor that may be spread over the ranks, in one piece."""
    gather = getattr(value, "full_tensor", None)
    tensor: Tensor = value if gather is None else gather()
    return tensor


def _backward(model: nn.Module, inputs: Tensor, targets: Tensor, window: list[slice], weighted: bool) -> None:
    if weighted:
        parts = [weighted_loss(model, (inputs[part], targets[part])) for part in window]
        total = torch.stack([part["weight"] for part in parts]).sum()
        torch.stack([part["loss"] * part["weight"] / total for part in parts]).sum().backward()
        return
    for part in window:
        (cross_entropy(model(inputs[part]), targets[part]) / len(window)).backward()
