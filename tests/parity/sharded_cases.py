"""Jobs of every kind that training has, each given to a strategy; and counts of what it exchanges."""

from collections import Counter, UserDict
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, softplus
from torch.utils.data import IterableDataset

from stratrun.hooks import Hook
from stratrun.loops import EpochBasedTrainLoop
from tests.parity.sharded import WIDTH, Block, Net, net, whole, with_runner
from tests.parity.test_traffic import Exchanges
from tests.parity.test_weighted import mean_loss, sequences
from tests.problems import CLASSES, FEATURES, points

Found = dict[str, Tensor]
Counts = dict[str, list[int]]
KINDS = {"allgather_": "gathered", "_allgather_base_": "gathered", "_reduce_scatter_base_": "averaged"}


class Unsized(IterableDataset[Any]):
    """Points one by one, so that only their end tells how many there are."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        yield from points(self.samples)


class Tagger(Net):
    def train_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        loss, tokens = mean_loss(self, batch)
        return {"loss": loss, "weight": tokens}


class Embedded(Net):
    """Its first block norms what comes out of a table, in full precision whatever the rest is computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Embedding(4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, 0].mul(2).round().long().remainder(4))


class Players(nn.Module):
    """Two networks that train against each other, with blocks of the same kind."""

    def __init__(self) -> None:
        super().__init__()
        self.draws, self.judges = nn.Linear(FEATURES, 6), nn.Linear(6, 1)
        self.parts = nn.ModuleDict({"draws": Block(), "judges": Block()})

    def drawn(self, x: Tensor) -> Tensor:
        return self.parts["draws"](self.draws(x))

    def score(self, x: Tensor) -> Tensor:
        return self.judges(self.parts["judges"](x))

    def judge_step(self, batch: list[Tensor]) -> Tensor:
        x = self.drawn(batch[0]).detach()
        return (softplus(-self.score(x + 1)) + softplus(self.score(x))).mean()

    def draw_step(self, batch: list[Tensor]) -> Tensor:
        return softplus(-self.score(self.drawn(batch[0]))).mean()


OF_PLAYERS = {
    "judge": {"type": "Adam", "lr": 0.01, "params": ["judges", "parts.judges"]},
    "draw": {"type": "SGD", "lr": 0.1, "momentum": 0.9, "params": ["draws", "parts.draws"]},
}


class Turns(EpochBasedTrainLoop):
    def run_iter(self, idx: int, data_batch: Any) -> dict[str, Tensor]:
        for player in ("judge", "draw"):
            loss = self.runner.engine.forward(data_batch, player)
            self.runner.engine.update(loss, optimizer=player)
        return {"loss": loss.detach()}


class Measured(nn.Module):
    """A loss with a parameter and blocks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, CLASSES))
        self.mix = nn.Linear(CLASSES, CLASSES)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.mix(outputs) * self.weight, targets)


class Opaque(Net):
    """Its result is an object to look into; one block shares a layer with another, and one with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[1].up = self.blocks[0].up
        self.entry = self.blocks[2].down

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.entry(torch.tanh(torch.cat([x, x[:, :2]], 1)))[:, :CLASSES]

    def train_step(self, batch: list[Tensor]) -> Any:
        return SimpleNamespace(loss=cross_entropy(self(batch[0]), batch[1]), told="anything")


class Hidden(Net):
    """Its result has no tensor that is seen from outside."""

    def train_step(self, batch: list[Tensor]) -> Any:
        return UserDict(loss=cross_entropy(self(batch[0]), batch[1]))


class Drawing(Net):
    """Random in training, and in validation too, of which ranks have different numbers of batches."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(dropout(x, 0.3, self.training))

    def val_step(self, batch: list[Tensor]) -> Tensor:
        return self(batch[0] + torch.randn_like(batch[0]))


class Normed(Net):
    """With statistics of its own of each rank's samples."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.batch_norm(x))


class Thaw(Hook):
    """The stem and a block learn from the second epoch on, and the head no more."""

    def before_train(self, runner: Any) -> None:
        self._set(runner.model, False)

    def before_train_epoch(self, runner: Any) -> None:
        if runner.epoch == 1:
            self._set(runner.model, True)

    def _set(self, model: Any, learns: bool) -> None:
        for part in (model.stem, model.blocks[1]):
            part.requires_grad_(learns)
        model.head.requires_grad_(not learns)


def job(name: str, strategy: Any, work_dir: str, **options: Any) -> Found:
    """One of the jobs, under a strategy; the weights that it reaches."""
    made = JOBS[name]
    runner = with_runner(strategy, work_dir, **{**made(), **options})
    return whole(runner.engine.state_module)


def jobs(strategies: list[Any], names: list[str], work_dir: str, **options: Any) -> dict[str, list[Found]]:
    return {name: [job(name, one, work_dir, **options) for one in strategies] for name in names}


class Counting(Hook):
    """Notes how many exchanges of each kind there were when an iteration was done."""

    priority = 100

    def __init__(self, exchanges: Exchanges) -> None:
        self.exchanges = exchanges
        self.seen: list[dict[str, int]] = []

    def after_train_iter(self) -> None:
        self.seen.append(dict(self.exchanges.counts))


def counted(strategies: list[Any], work_dir: str, kinds: dict[str, str] = KINDS) -> list[Counts]:
    """What the third and fourth batch exchange, which make one window, by kind."""
    return [_counted(strategy, work_dir, kinds) for strategy in strategies]


def _counted(strategy: Any, work_dir: str, kinds: dict[str, str]) -> Counts:
    with Exchanges() as exchanges:
        hook = Counting(exchanges)
        with_runner(
            strategy,
            work_dir,
            train_dataloader=_data(points(16)),
            train_cfg={"max_epochs": 1, "accumulate": 2},
            clip_grad=None,
            custom_hooks=[hook],
        )
    new = [Counter(after) - Counter(before) for before, after in pairwise(hook.seen[1:])]
    return {
        name: [sum(n for kind, n in one.items() if kinds.get(kind) == name) for one in new]
        for name in kinds.values()
    }


def _data(dataset: Any, size: int = 4) -> dict[str, Any]:
    return {"dataset": dataset, "global_batch_size": size, "shuffle": False}


JOBS: dict[str, Any] = {
    "embedded": lambda: {"model": net(Embedded)},
    "weighted": lambda: {
        "model": net(Tagger),
        "loss": None,
        "train_dataloader": _data(sequences(31), 6),
    },
    "unsized": lambda: {
        "train_dataloader": {"dataset": Unsized(38), "global_batch_size": 4, "drop_last": False},
    },
    "turns": lambda: {
        "model": net(Players),
        "loss": None,
        "optimizer": OF_PLAYERS,
        "train_cfg": {"type": Turns, "max_epochs": 2},
    },
    "measured": lambda: {"loss": net(Measured)},
    "opaque": lambda: {"model": net(Opaque), "loss": None},
    "hidden": lambda: {"model": net(Hidden), "loss": None},
    "drawing": lambda: {
        "model": net(Drawing),
        "val_dataloader": {"dataset": points(3), "batch_size": 1},
        "val_evaluator": {"type": "Accuracy"},
        "randomness": {"seed": 7},
    },
    "thawed": lambda: {"custom_hooks": [Thaw()]},
    "normed": lambda: {
        "model": net(Normed),
        "train_dataloader": _data(points(48)),
        "train_cfg": {"max_epochs": 2, "accumulate": 2},
    },
}
