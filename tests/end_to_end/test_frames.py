"""How deep a user's model lies below `Runner.train()`: a traceback of theirs should show their code."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stratrun
from tests.problems import CLASSES, FEATURES, points, trained
from tests.ranks import Ranks

PACKAGE = str(Path(stratrun.__file__).parent)
LIMIT = 6


class Watched(nn.Module):
    """A classifier that notes which functions of ours are above it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.above: list[str] = []

    def scores(self, inputs: Tensor) -> Tensor:
        frame: Any = sys._getframe()
        self.above = []
        while frame is not None:
            if frame.f_code.co_filename.startswith(PACKAGE):
                self.above.append(frame.f_code.co_qualname)
            frame = None if frame.f_code.co_qualname == "Runner.train" else frame.f_back
        return torch.as_tensor(self.layer(inputs))


class WithSteps(Watched):
    def train_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.scores(batch[0]), batch[1])


class WithModes(Watched):
    def forward(self, inputs: Tensor, targets: Tensor, mode: str) -> dict[str, Tensor]:
        assert mode == "loss"
        return {"loss": nn.functional.cross_entropy(self.scores(inputs), targets)}


class WithoutLoss(Watched):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.scores(inputs)


class OfKeywords(Watched):
    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.scores(inputs), labels)}


def as_mapping(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {"inputs": torch.stack([s[0] for s in samples]), "labels": torch.stack([s[1] for s in samples])}


CONTRACTS: dict[str, tuple[type[Watched], dict[str, Any], dict[str, Any]]] = {
    "steps": (WithSteps, {}, {}),
    "modes": (WithModes, {}, {}),
    "loss": (WithoutLoss, {"loss": "cross_entropy"}, {}),
    "keywords": (OfKeywords, {}, {"collate_fn": as_mapping}),
}
LOOPS: dict[str, dict[str, Any]] = {"epochs": {"max_epochs": 1}, "iterations": {"max_iters": 3}}


def depth(contract: str, loop: str, work_dir: str) -> list[str]:
    kind, options, loading = CONTRACTS[contract]
    model = kind()
    trained(
        model,
        train_dataloader={"dataset": points(9), "batch_size": 3, **loading},
        train_cfg={**LOOPS[loop], "accumulate": 2},
        optimizer={"type": "SGD", "lr": 0.1},
        precision="bf16-mixed",
        clip_grad=1.0,
        work_dir=work_dir,
        **options,
    )
    return model.above


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("contract", CONTRACTS)
def test_at_most_six_frames_of_ours_lie_above_the_model(
    contract: str, loop: str, two_ranks: Ranks, tmp_path: Any
) -> None:
    for above in [depth(contract, loop, str(tmp_path)), *two_ranks(depth, contract, loop, str(tmp_path))]:
        assert above[-1] == "Runner.train", above
        assert len(above) <= LIMIT, above
