"""Losses with a weight: one effective batch gives one gradient, however it is split."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from tests.problems import CLASSES, FEATURES, perceptron, trained, weights
from tests.ranks import Ranks

LENGTH = 4
EFFECTIVE = 12
SPLITS = {"1x12": (12, 1), "2x6": (6, 2), "3x4": (4, 3)}


def sequences(samples: int) -> TensorDataset:
    """Sequences of up to `LENGTH` tokens, a few of them without any."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, LENGTH, FEATURES, generator=generator)
    targets = torch.randint(CLASSES, (samples, LENGTH), generator=generator)
    lengths = torch.randint(LENGTH + 1, (samples,), generator=generator)
    return TensorDataset(inputs, targets, torch.arange(LENGTH) < lengths[:, None])


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean over the tokens, and their number."""
    inputs, targets, mask = batch
    losses = cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * mask.flatten()).sum() / mask.sum().clamp_min(1), mask.sum()


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron()

    def train_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        loss, tokens = mean_loss(self.net, batch)
        return {"loss": loss, "weight": tokens}


def plain(samples: int, max_norm: float | None) -> dict[str, Tensor]:
    """The whole effective batch at once."""
    model, columns = perceptron(), sequences(samples).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(2):
        for start in range(0, samples, EFFECTIVE):
            x, y, mask = (column[start : start + EFFECTIVE] for column in columns)
            mean_loss(model, (x, y, mask))[0].backward()
            if max_norm:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()
    return weights(model)


def with_runner(
    samples: int, accumulate: int, max_norm: float | None, work_dir: str, batch: dict[str, int]
) -> dict[str, Tensor]:
    model = Tagger()
    trained(
        model,
        train_dataloader={"dataset": sequences(samples), "shuffle": False, **batch},
        train_cfg={"max_epochs": 2, "accumulate": accumulate},
        optimizer={"type": "SGD", "lr": 0.5, "momentum": 0.9},
        clip_grad=max_norm,
        work_dir=work_dir,
    )
    return weights(model.net)


# 31 samples: the last window has 7, which leaves a rank without a sample where batches are of 6.
@pytest.mark.parametrize("samples", [36, 31])
@pytest.mark.parametrize("max_norm", [None, 0.1])
@pytest.mark.parametrize("split", SPLITS)
def test_an_effective_batch_gives_one_gradient_however_it_is_split(
    split: str, max_norm: float | None, samples: int, two_ranks: Ranks, tmp_path: Any
) -> None:
    size, accumulate = SPLITS[split]
    truth = plain(samples, max_norm)
    alone = with_runner(samples, accumulate, max_norm, str(tmp_path), {"batch_size": size})
    torch.testing.assert_close(alone, truth, rtol=1e-6, atol=1e-6)
    spread = two_ranks(with_runner, samples, accumulate, max_norm, str(tmp_path), {"global_batch_size": size})
    for rank in spread:
        torch.testing.assert_close(rank, truth, rtol=1e-6, atol=1e-6)


class Plain(nn.Module):
    """Its loss has a weight in every second batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron()
        self.calls = 0

    def train_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        loss, tokens = mean_loss(self.net, batch)
        return {"loss": loss, "weight": tokens} if self.calls % 2 else {"loss": loss}


def test_a_weight_that_comes_and_goes_within_a_window_is_refused(tmp_path: Any) -> None:
    with pytest.raises(Exception, match="'weight' for one batch of an accumulation window"):
        trained(
            Plain(),
            train_dataloader={"dataset": sequences(12), "batch_size": 4},
            train_cfg={"max_epochs": 1, "accumulate": 3},
            optimizer={"type": "SGD", "lr": 0.5},
            work_dir=str(tmp_path),
        )
