"""Models that ranks build without memory against the one that a single process builds."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import Hook
from tests.parity.sharded import assert_near, whole, with_runner
from tests.problems import CLASSES, FEATURES
from tests.ranks import Ranks

WIDTH = 160  # squares of it are large enough to be built without memory
SPREAD: list[Any] = [
    "fsdp",
    {"type": "fsdp", "ignore": ["stem", "table", "copy"]},
    {"type": "fsdp", "offload": True},
]


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(FEATURES, WIDTH)
        self.table, self.copy = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.copy.weight = self.table.weight
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.register_buffer("shift", torch.randn(WIDTH, WIDTH) * random.random())
        self.dropout = nn.Dropout(0.1)
        self.scale = nn.Parameter(np.random.rand() * torch.randn(WIDTH, WIDTH).abs().mean(0))
        for block in self.blocks:
            nn.init.trunc_normal_(block.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.copy(torch.tanh(self.table(self.stem(x))))
        for block in self.blocks:
            x = x + torch.tanh(block(self.norm(x))) @ self.shift / WIDTH
        return self.head(self.dropout(x) * self.scale)


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(CLASSES, CLASSES) + torch.eye(CLASSES))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs @ self.mix, targets)


class First(Hook):
    """Notes the weights and what the generators would draw, before the first step."""

    def before_train(self, runner: Any) -> None:
        self.draws = [
            float(torch.get_rng_state().float().sum()),
            random.getstate()[1][:5],
            np.random.get_state()[1][:5].tolist(),
        ]
        self.weights = whole(runner.model)


def found(strategy: Any, work_dir: str, model: Any = Large, **options: Any) -> tuple[Any, ...]:
    hook = First()
    random.seed(1)
    given = {"loss": {"type": Loss}, "clip_grad": None, "custom_hooks": [hook], "randomness": {"seed": 4}}
    given.update(train_cfg={"max_iters": 3}, optimizer={"type": "SGD", "lr": 0.5})
    runner = with_runner(strategy, work_dir, {"type": model}, **{**given, **options})
    tied = runner.model.table.weight is runner.model.copy.weight
    return hook.weights, hook.draws, whole(runner.engine.state_module), tied


def under(strategies: list[Any], work_dir: str, model: Any = Large) -> list[Any]:
    return [found(strategy, work_dir, model) for strategy in strategies]


def test_ranks_hold_the_weights_of_one_process_bit_for_bit_and_go_on_alike(
    two_ranks: Ranks, tmp_path: Any
) -> None:
    truth, draws, _, _ = found("single", str(tmp_path))
    first, second = two_ranks(under, ["ddp", *SPREAD], str(tmp_path))
    for rank in (first, second):
        trained = rank[0][2]
        for initial, drawn, after, tied in rank:
            assert initial.keys() == truth.keys()
            assert [name for name in truth if not torch.equal(initial[name], truth[name])] == []
            assert drawn == rank[0][1]  # the same under each strategy, so dropout is too
            assert tied
            assert_near(after, trained)
    assert first[0][1] == draws
    assert second[0][1] != draws


class Unseeded(Large):
    """Its weights come of a generator that no seed reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[0].weight.data.copy_(torch.from_numpy(np.random.default_rng().random((WIDTH, WIDTH))))


def test_what_ranks_would_build_differently_is_as_the_main_rank_has_it(
    two_ranks: Ranks, tmp_path: Any
) -> None:
    kept_whole = {"type": "fsdp", "ignore": ["blocks.0"]}
    first, second = two_ranks(under, [kept_whole], str(tmp_path), Unseeded)
    name = "blocks.0.weight"
    assert torch.equal(first[0][0][name], second[0][0][name])
    assert torch.equal(first[0][2][f"model.{name}"], second[0][2][f"model.{name}"])
